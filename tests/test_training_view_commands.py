"""Commands on a collection whose queries are headings: a run and `evaluate` measure alike, `search` shows headings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_tiny_ranker, make_tiny_retriever

from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.questions import question_id, write_judged
from hf_ar2.command_line import main as cli
from hf_ar2.index import shards
from hf_ar2.index.encodings import Encodings
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import Recipe
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.training_lists.stored import load_training_lists

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> Path:
    """What a recipe without training leaves, over files whose headings are the queries of the tiny collection."""
    folder = tmp_path_factory.mktemp("headings")
    (folder / "docs").mkdir()
    queries = list(tiny_collection.queries["text"])
    for number, row in enumerate(tiny_collection.corpus):
        heading = f"{queries[number % len(queries)]} {number // len(queries)}"
        (folder / "docs" / f"{number}.md").write_text(f"# {heading}\n\n{row['text']}\n")
    load_collection(f"text:{folder / 'docs'}", all_headings=True).save(folder / "data")
    make_tiny_retriever(folder / "retriever")
    make_tiny_ranker(folder / "ranker")
    models = {role: {"model": str(folder / role)} for role in ("retriever", "ranker")}
    row = {"retriever": "retriever", "ranker": "ranker"}
    settings = {
        "max_passage_length": 32,
        "max_pair_length": 48,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    recipe = Recipe("headings", str(folder / "data"), models=models, stages={}, args=settings)
    recipe.evaluation = {"rows": {"zero-shot": row}, "metrics": ["mrr@10"], "depth": 20, "rerank_depth": 10}
    recipe.evaluation["choose_on"] = None  # the ranker is served too
    recipe.output_dir = str(folder / "run")
    return run_recipe(recipe)


def test_evaluate_measures_what_the_run_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = json.loads((run / "metrics.json").read_text())["zero-shot"]
    assert cli.main(["evaluate", str(run), "--output", str(tmp_path)]) == 0
    assert "read as in training: without the headings that are queries" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == of_run["test"]
    assert cli.main(["compare", str(run)]) == 0
    assert f"{of_run['test']['pipeline']['mrr@10']:.3f}" in capsys.readouterr().out


def test_search_finds_and_shows_headings_and_keeps_an_index_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heading = load_collection(run.parent / "data").queries["text"][0]
    for _ in range(2):  # neither command builds the other's index again
        assert cli.main(["search", str(run), heading, "-k", "60"]) == 0
        assert heading in capsys.readouterr().out
        assert cli.main(["evaluate", str(run)]) == 0
        indexes = {
            folder: (run / folder / "meta.json").read_text() for folder in ("index", "index_for_training")
        }
    assert (
        json.loads(indexes["index"])["fingerprint"]
        != json.loads(indexes["index_for_training"])["fingerprint"]
    )
    assert cli.main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0


def test_lists_are_made_of_what_training_reads(run: Path, tmp_path: Path) -> None:
    assert cli.main(["augment", str(run), "--output", str(tmp_path / "lists"), "--kinds", "undenoised"]) == 0
    lists = load_training_lists(tmp_path / "lists")
    collection = load_collection(run.parent / "data")
    assert lists.manifest["collection"]["corpus_fingerprint"] == collection.for_training().corpus_fingerprint


def test_questions_are_measured_on_what_users_search_and_nothing_is_encoded_twice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question in the words of a heading finds its passage, for users see and search headings."""
    collection = load_collection(run.parent / "data")
    asked, judged = tmp_path / "asked.txt", {}
    for row in collection.qrels["test"]:
        title = collection.corpus[collection.corpus["id"].index(row["passage_id"])]["title"]
        judged[question_id(title)] = {row["passage_id"]: 1}
        with asked.open("a") as file:
            file.write(f"{title}\n")
    write_judged(asked, judged)

    def evaluated(folder: Path) -> dict:
        recipe = load_recipe(run / "recipe.yaml", {"output_dir": str(folder), "questions": str(asked)})
        run_recipe(recipe)
        return json.loads((folder / "metrics.json").read_text())["zero-shot"]

    once = tmp_path / "run"
    metrics = evaluated(once)
    log = Encodings(once / "encodings").log()
    assert len({entry["encoding"] for entry in log}) == len(log) == 2, "as in training, and as users search"
    hidden = Encodings(run / "encodings").log()[0]["encoding"]
    for folder, encoding in (("index_for_training", hidden), ("index", log[1]["encoding"])):
        assert json.loads((once / folder / "meta.json").read_text())["fingerprint"] == encoding
    assert metrics["test"] == json.loads((run / "metrics.json").read_text())["zero-shot"]["test"]
    assert metrics["questions"]["retriever"]["mrr@10"] > metrics["test"]["retriever"]["mrr@10"]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the corpus was encoded again")

    monkeypatch.setattr(shards, "encode_rows", never)
    capsys.readouterr()
    assert (
        cli.main(["evaluate", str(once), "--questions", str(asked), "--output", str(tmp_path / "out")]) == 0
    )
    assert "read as in training" not in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["questions"] == metrics["questions"]
    assert cli.main(["search", str(once), "falcon"]) == 0 and cli.main(["evaluate", str(once)]) == 0

    # asked anew of the finished run: the index of search is searched
    asked.write_text(asked.read_text() + "is this one new?\n")
    write_judged(asked, judged | {question_id("is this one new?"): {collection.corpus["id"][0]: 1}})
    before = (once / "index" / "meta.json").stat().st_mtime_ns
    assert evaluated(once)["test"] == metrics["test"]
    assert (once / "index" / "meta.json").stat().st_mtime_ns == before
