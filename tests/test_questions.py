"""Real questions: read from a file, judged beside it, measured on for every row, and never trained on."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_recipe

from hf_ar2.collections import Collection, CollectionError
from hf_ar2.collections.questions import (
    QUESTIONS,
    qrels_of,
    query_source_note,
    question_id,
    read_judged,
    read_questions,
    with_questions,
    write_judged,
)
from hf_ar2.command_line import main as cli
from hf_ar2.evaluation.runs import run_file, write_run
from hf_ar2.files import write_json, write_text
from hf_ar2.index.encodings import Encodings
from hf_ar2.recipes.inputs import check_minutes
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.questions import answered
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.runner import run_recipe


def passage_of(collection: Collection, split: str, number: int) -> tuple[str, str]:
    """A query's text and the id of its passage."""
    judged = collection.qrels[split][number]
    texts = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))
    return texts[judged["query_id"]], judged["passage_id"]


@pytest.fixture
def asked(tmp_path: Path, tiny_collection: Collection, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five questions, four of them judged; the working folder is beside them."""
    monkeypatch.chdir(tmp_path)
    pairs = [passage_of(tiny_collection, "test", number) for number in range(5)]
    questions = [text.replace("where does", "where is it that") for text, _ in pairs]
    file = tmp_path / "asked.txt"
    file.write_text("\ufeff# asked in May\n\n" + "\n".join(questions) + "\n", encoding="utf-8")
    judged = {
        question_id(text): {passage: 1, "p100": 0} if passage != "p100" else {passage: 1}
        for text, (_, passage) in zip(questions[:3], pairs, strict=False)
    }
    write_judged(file, judged | {question_id(questions[3]): {"p101": 0}})
    return file


def test_real_questions_are_asked_for_only_where_there_are_none(tiny_collection):
    headings = ["heading"] * len(tiny_collection.queries)
    collection = dataclasses.replace(
        tiny_collection, queries=tiny_collection.queries.add_column("source", headings)
    )
    note = "The queries of test are headings of your documents (8), not questions of your users."
    assert query_source_note(collection, "test", None) == note
    asking = query_source_note(collection, "test", "runs/mine")
    assert asking.startswith(note) and asking.endswith("hf-ar2 label runs/mine FILE")
    assert query_source_note(tiny_collection, "test", "runs/mine") == ""


def test_a_file_of_questions_is_read_as_people_write_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "asked.txt"
    file.write_bytes(
        "\ufeffWo wohnen Bienen?\r\n\r\n# später\r\n  wer  tanzt? \r\nWO wohnen bienen?\r\n".encode()
    )
    assert list(read_questions(file).values()) == ["Wo wohnen Bienen?", "wer tanzt?"]
    assert "repeated questions are ignored: 1 (line 5: WO wohnen bienen?)" in caplog.text
    for content, message in (
        (b"# nothing\n\n", "found no question"),
        (b"caf\xe9?\n", "asked.txt:1: found bytes that are not UTF-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(CollectionError, match=message):
            read_questions(file)


def test_judgments_stay_with_their_questions_when_the_file_is_edited(
    asked: Path, tiny_collection: Collection
) -> None:
    before = with_questions(tiny_collection, asked)

    def judged(collection: Collection) -> dict[str, set[str]]:
        texts = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))
        found: dict[str, set[str]] = {}
        for row in collection.qrels[QUESTIONS]:
            found.setdefault(texts[row["query_id"]].casefold(), set()).add(row["passage_id"])
        return found

    lines = asked.read_text(encoding="utf-8-sig").splitlines()
    asked.write_text("\n".join([*reversed(lines[2:]), "is this one new?"]).replace("where", "Where"))
    after = with_questions(tiny_collection, asked)
    assert judged(after) == judged(before) and len(after.queries) == len(before.queries) + 1


def test_the_collection_itself_stays_as_it_is(asked: Path, tiny_collection: Collection) -> None:
    found = with_questions(tiny_collection, asked)
    assert found.splits == ["train", "dev", "test", "questions"]
    assert len(found.judgments(QUESTIONS)) == 4, "a question without a relevant passage counts"
    assert found.corpus_fingerprint == tiny_collection.corpus_fingerprint
    for split in tiny_collection.splits:
        mine, theirs = found.judgments(split), tiny_collection.judgments(split)
        assert np.array_equal(mine.query_rows, theirs.query_rows)
        assert np.array_equal(mine.passage_rows, theirs.passage_rows)
    with pytest.raises(CollectionError, match="already has a split 'questions'"):
        with_questions(found, asked)


def test_what_does_not_fit_is_counted_and_named(
    asked: Path, tiny_collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    trained, _ = passage_of(tiny_collection, "train", 0)
    with open(asked, "a") as stream:
        stream.write(trained.upper() + "\n")
    judged = read_judged(asked)
    first = next(iter(judged))
    judged[first] |= {"gone1": 1, "gone2": 0}
    write_judged(asked, judged | {"question-of-before": {"p100": 1}})
    found = with_questions(tiny_collection, asked)
    assert len(found.judgments(QUESTIONS)) == 4
    assert "judged passages that are not in the corpus are ignored: 2 (gone1; gone2)" in caplog.text
    assert "judged questions that are not in asked.txt are ignored: 1 (question-of-before)" in caplog.text
    assert f"questions that are also training queries: 1 ({trained.upper()})" in caplog.text

    write_judged(asked, {first: {"gone1": 1}})
    assert QUESTIONS not in with_questions(tiny_collection, asked).splits


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("query\tpassage\n", r"asked.txt.qrels.tsv:1: found the columns \['query', 'passage'\]"),
        ("query-id\tcorpus-id\tscore\nq\tp\tyes\n", "qrels.tsv:2: found score 'yes'"),
        ("query-id\tcorpus-id\tscore\nq\tp\t1\nq\tp\t0\n", "qrels.tsv:3: found a second, different"),
        ("query-id\tcorpus-id\tscore\nq\tp\n", "qrels.tsv:2: found 2 tab-separated"),
    ],
)
def test_damaged_judgments_are_an_error(asked: Path, lines: str, message: str) -> None:
    qrels_of(asked).write_text(lines)
    with pytest.raises(CollectionError, match=message):
        read_judged(asked)


# --- a run


def recipe_file(home: Path, folder: Path, **fields: object) -> Path:
    """One stage of two steps, and a row before and after it."""
    recipe = {
        "name": "tiny",
        "collection": str(home / "data"),
        "models": {"light": {"model": str(home / "retriever")}, "heavy": {"model": str(home / "ranker")}},
        "args": {
            "max_passage_length": 32,
            "max_pair_length": 48,
            "per_device_train_batch_size": 4,
            "eval_strategy": "no",
            "eval_on_start": False,
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
        },
        "stages": {"g0": {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 2}}},
        "evaluation": {
            "splits": ["test"],
            "choose_on": None,
            "metrics": ["mrr@10"],
            "depth": 20,
            "rerank_depth": 5,
            "rows": {"zero-shot": {"retriever": "light"}, "both": {"retriever": "g0", "ranker": "heavy"}},
        },
        **fields,
    }
    return write_recipe(folder / "tiny.yaml", recipe)


@pytest.mark.slow
def test_every_row_is_measured_on_the_questions_and_nothing_is_trained_again(
    asked: Path, home: Path, tiny_collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = asked.parent / "run", recipe_file(home, asked.parent)

    def run_with(**overrides: str) -> str:
        run_recipe(load_recipe(path, {"output_dir": str(run), **overrides}))
        return capsys.readouterr().out

    assert "questions" not in run_with()
    files = {
        row: run / "runs" / row / f"test.{system}.trec"
        for row, system in (("zero-shot", "retriever"), ("both", "pipeline"))
    }
    times = {row: file.stat().st_mtime_ns for row, file in files.items()}
    index = (run / "index" / "meta.json").read_text()
    encoded = [entry["encoding"] for entry in Encodings(run / "encodings").log()]
    assert len(set(encoded)) == len(encoded) == 2, "zero-shot and g0"

    said = run_with(questions=str(asked))
    assert "done before" in said and "questions: 4 queries" in said
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["zero-shot"]) == set(metrics["both"]) == {"test", "questions"}
    assert set(metrics["both"]["questions"]) == {"retriever", "ranker", "pipeline"}
    assert {row: file.stat().st_mtime_ns for row, file in files.items()} == times, "test was not ranked again"
    assert f"{asked}: 4 of 5 questions are judged" in said
    assert "answered in the first 3" in said
    first = re.search(r"^both +pipeline \(served\) +(\d) of 4$", said, re.MULTILINE)
    assert first and re.search(r"^zero-shot +retriever +\d of 4$", said, re.MULTILINE)
    assert (run / "index" / "meta.json").read_text() == index, "what search uses stays"
    assert [entry["encoding"] for entry in Encodings(run / "encodings").log()[len(encoded) :]] == encoded[
        :1
    ], "the other row alone: the served one has an index"

    # judged once more: nothing of what was ranked changes; a new question is ranked
    ranked = run / "runs" / "both" / "questions.pipeline.trec"
    before = ranked.read_text()
    judged, ids = read_judged(asked), list(read_questions(asked))
    top = next(line.split()[2] for line in before.splitlines() if line.split()[0] == ids[3])
    judged[ids[3]] = {top: 1}
    write_judged(asked, judged)
    said = run_with(questions=str(asked))
    more = re.search(r"^both +pipeline \(served\) +(\d) of 4$", said, re.MULTILINE)
    assert more and int(more[1]) == int(first[1]) + 1 and ranked.read_text() == before
    write_judged(asked, judged | {ids[4]: {top: 1}})
    assert "questions: 5 queries" in run_with(questions=str(asked))
    assert {line.split()[0] for line in ranked.read_text().splitlines()} == set(ids)

    # what reads a run folder knows of them
    assert cli.main(["compare", str(run), "--split", "questions"]) == 0
    assert "questions: 5 queries" in capsys.readouterr().out
    assert cli.main(["report", str(run)]) == 0 and cli.main(["card", str(run)]) == 0
    assert "questions, 5 queries" in capsys.readouterr().out
    assert cli.main(["evaluate", str(run), "--questions", str(asked)]) == 0
    said = capsys.readouterr().out
    assert "questions: 5 queries, 60 passages" in said
    pipeline = metrics_of(said, "pipeline")
    assert (
        pipeline
        == f"{json.loads((run / 'metrics.json').read_text())['both'][QUESTIONS]['pipeline']['mrr@10']:.3f}"
    )
    assert re.search(r"^pipeline \(served\) +\d of 5$", said, re.MULTILINE)
    assert cli.main(["evaluate", str(run), "--split", "questions"]) == 0, "the recipe names the file"
    assert metrics_of(capsys.readouterr().out, "pipeline") == pipeline


def metrics_of(said: str, system: str) -> str:
    found = re.search(rf"^{system} +(\S+)", said, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.slow
def test_without_judgments_the_run_says_how_to_make_them_and_goes_on(
    asked: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qrels_of(asked).unlink()
    run, path = asked.parent / "run", recipe_file(home, asked.parent, questions=str(asked))
    run_recipe(load_recipe(path, {"output_dir": str(run)}))
    said = capsys.readouterr().out
    assert f"Judge what is found: hf-ar2 label {run} {asked}" in said and "hf-ar2 search" in said
    assert set(json.loads((run / "metrics.json").read_text())["both"]) == {"test"}
    assert cli.main(["evaluate", str(run), "--questions", str(asked)]) == 1
    error = capsys.readouterr().err
    assert f"none of its 5 questions is judged in {qrels_of(asked)}" in error and "hf-ar2 label" in error


def test_rows_that_were_not_measured_are_not_counted(
    asked: Path, tiny_collection: Collection, tmp_path: Path
) -> None:
    # With a part of the corpus only some rows are measured on the questions.
    collection = with_questions(tiny_collection, asked)
    rank_all(tmp_path, collection, "served", "retriever")
    assert list(answered(tmp_path, ["warm-up", "served"], collection)) == ["served"]


def rank_all(run: Path, collection: Collection, row: str, *systems: str) -> None:
    """Run files of the questions with every passage, in the order of the corpus."""
    judgments, ids = collection.judgments(QUESTIONS), list(collection.corpus["id"])
    queries = [collection.queries[int(row)]["id"] for row in judgments.query_rows]
    found = np.tile(np.arange(len(ids)), (len(queries), 1))
    for system in systems:
        file = run_file(run, row, QUESTIONS, system)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_run(file, queries, ids, found, -found.astype(np.float32))


def test_a_row_answers_with_what_is_served_else_with_the_most_that_it_has(
    asked: Path, tiny_collection: Collection, tmp_path: Path
) -> None:
    collection = with_questions(tiny_collection, asked)
    rank_all(tmp_path, collection, "alone", "retriever")
    rank_all(tmp_path, collection, "mixed", "retriever", "hybrid")
    rank_all(tmp_path, collection, "ranked", "retriever", "hybrid", "ranker", "pipeline")
    rows = ["alone", "mixed", "ranked"]

    def systems() -> list[str]:
        return [system for system, _ in answered(tmp_path, rows, collection).values()]

    assert systems() == ["retriever", "hybrid", "pipeline"]
    for row, system in (("ranked", "ranker"), ("ranked", "hybrid"), ("mixed", "retriever")):
        write_json(tmp_path / "chosen.json", {"row": row, "system": system})
        assert systems()[rows.index(row)] == system


@pytest.mark.slow
def test_the_hybrid_is_measured_on_the_questions_if_it_is_served(
    asked: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = asked.parent / "run", recipe_file(home, asked.parent)
    recipe = load_recipe(path, {"output_dir": str(run), "questions": str(asked)})
    recipe.stages = {}
    recipe.evaluation |= {"lexical": True, "rows": {"zero-shot": {"retriever": "light"}}, "choose_on": "dev"}
    run_recipe(recipe)
    chosen = json.loads((run / "chosen.json").read_text())
    assert chosen["system"] == "hybrid", "the tiny retriever is random"
    said = capsys.readouterr().out
    found = re.findall(r"^(BM25|zero-shot) +(BM25|hybrid \(served\)) +(\d) of 4$", said, re.MULTILINE)
    assert [row[:2] for row in found] == [("BM25", "BM25"), ("zero-shot", "hybrid (served)")]
    assert cli.main(["evaluate", str(run), "--questions", str(asked)]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^hybrid \(served\) +{found[1][2]} of 4$", said, re.MULTILINE)
    assert re.search(r"^retriever +\d of 4$", said, re.MULTILINE)
    hybrid = json.loads((run / "metrics.json").read_text())["zero-shot"][QUESTIONS]["hybrid"]["mrr@10"]
    assert metrics_of(said, "hybrid") == f"{hybrid:.3f}"


def test_a_file_that_cannot_be_read_is_an_error_before_anything_is_trained(
    asked: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    run, path = asked.parent / "run", recipe_file(home, asked.parent)
    with pytest.raises(RecipeError, match="questions: absent.txt: no such file"):
        run_recipe(load_recipe(path, {"output_dir": str(run), "questions": "absent.txt"}))
    qrels_of(asked).write_text("nonsense\n")
    with pytest.raises(RecipeError, match="questions: .*qrels.tsv:1: found the columns"):
        run_recipe(load_recipe(path, {"output_dir": str(run), "questions": str(asked)}))
    assert not run.exists()


@pytest.mark.parametrize(
    ("given", "earlier", "message"),
    [
        (
            None,
            2,
            "--minutes is missing, but {run} was started with --minutes 2. Add --minutes 2 to the command",
        ),
        (3.5, 2, "--minutes 3.5, but {run} was started with --minutes 2. Give --minutes 2 in the command"),
        (3, None, "--minutes 3, but {run} was started without --minutes. Leave it out of the command"),
    ],
)
def test_a_run_continues_with_the_minutes_that_it_was_started_with(
    given: float | None, earlier: float | None, message: str, asked: Path, home: Path
) -> None:
    """As when `--questions FILE` is added to a command, and `--minutes N` is forgotten."""
    run, path = asked.parent / "run", recipe_file(home, asked.parent)
    recipe = load_recipe(path, {"output_dir": str(run), "questions": str(asked)})
    recipe.minutes = earlier
    write_text(run / "recipe.yaml", yaml.safe_dump(vars(recipe)))
    recipe.minutes = given
    check_minutes(recipe, run)  # nothing has been planned or trained yet
    write_json(run / "plan.json", {})
    with pytest.raises(RecipeError, match=re.escape(message.format(run=run))):
        run_recipe(recipe)
    recipe.minutes = earlier
    check_minutes(recipe, run)


def test_a_file_and_another_split_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "runs/x", "--questions", "asked.txt", "--split", "test"])
    assert "--split and --questions cannot be combined" in capsys.readouterr().err
