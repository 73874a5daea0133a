"""The HTML report: what it is made from, what it holds, and that nothing in it can run or be fetched."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny_collection
from datasets import Dataset
from tiny_run import METRICS, make_tiny_run

from hf_ar2.collections import Collection
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.report import common_collection
from hf_ar2.evaluation import read_run
from hf_ar2.evaluation.runs import run_file, write_run
from hf_ar2.evaluation.systems import evaluated_queries, measure
from hf_ar2.report.page import read_runs, render_page
from hf_ar2.report.page.page import SCRIPTS, default_pair, pack, page_data
from hf_ar2.report.page.queries import NO_PASSAGE, PASSAGE_CHARACTERS, query_browser
from hf_ar2.report.page.run_folder import RunFolder
from hf_ar2.report.page.training import MOST_POINTS, stage_times, training_charts

HOSTILE = (
    "</script><img src=x onerror=alert(1)> \"quoted\" 'single' & \u2028 \u2029 <!-- ${x} $data \\u003c 𝒳"
)
DTYPES = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "f32": np.float32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_collection: Collection) -> Path:
    return make_tiny_run(tmp_path_factory.mktemp("runs") / "tiny", str(data), tiny_collection)


@pytest.fixture(scope="module")
def browser(run: Path, tiny_collection: Collection) -> dict[str, Any]:
    return query_browser(read_runs([run]), tiny_collection, "test", METRICS)


def unpacked(page: str) -> Any:
    """What the page's script makes of its data, in Python."""
    found = re.search(r'<script type="application/octet-stream" id="data">([^<]*)</script>', page)
    assert found
    block = gzip.decompress(base64.b64decode(found[1], validate=True))
    length = int.from_bytes(block[:4], "little")
    assert length % 4 == 0

    def revive(value: dict[str, Any]) -> Any:
        if set(value) != {"$"}:
            return value
        kind, offset, size = value["$"]
        assert offset % 4 == 0
        return np.frombuffer(block, DTYPES[kind], size, 4 + length + offset)

    return json.loads(block[4 : 4 + length], object_hook=revive)


# ---- The query browser's data --------------------------------------------------------------------------------------


def test_every_system_shows_its_run_files_best_ten(
    browser: dict[str, Any], run: Path, tiny_collection: Collection
) -> None:
    query_ids, passage_ids = list(tiny_collection.queries["id"]), list(tiny_collection.corpus["id"])
    query_rows = evaluated_queries(tiny_collection, "test")
    assert browser["queries"]["id"] == [query_ids[row] for row in query_rows]
    assert [(system["row"], system["system"]) for system in browser["systems"]] == [
        ("zero-shot", "retriever"),
        ("warm-up", "retriever"),
        ("warm-up", "pipeline"),
        ("AR2", "retriever"),
        ("AR2", "pipeline"),
    ]
    shown = np.array(browser["passages"]["id"])
    positives = tiny_collection.judgments("test").passage_rows
    for system in browser["systems"]:
        stored = read_run(run_file(run, system["row"], "test", system["system"]), query_ids, passage_ids)
        np.testing.assert_array_equal(
            shown[system["top"]], np.array(passage_ids)[stored.passage_rows[:, :10]]
        )
        hits = stored.passage_rows == positives[:, None]  # one positive for each query
        np.testing.assert_array_equal(system["relevance"], hits[:, :10])
        np.testing.assert_array_equal(system["first"], hits.argmax(axis=1) + 1)
        np.testing.assert_array_equal(system["positive_ranks"], system["first"])
        for metric, values in measure(tiny_collection, "test", stored.passage_rows, METRICS).items():
            np.testing.assert_allclose(system["values"][metric], values, rtol=1e-6)


def test_a_hit_has_the_scores_of_both_models_where_there_are_any(
    browser: dict[str, Any], run: Path, tiny_collection: Collection
) -> None:
    ids = list(tiny_collection.queries["id"]), list(tiny_collection.corpus["id"])
    shown = browser["passages"]["id"]
    for system in browser["systems"]:
        for model in ("retriever", "ranker"):
            path = run_file(run, system["row"], "test", model)
            known = {}
            if path.is_file():
                for line in path.read_text().splitlines():
                    query, _, passage, _, score, _ = line.split()
                    known[query, passage] = float(score)
            expected = [
                [known.get((query, shown[place]), np.nan) for place in top]
                for query, top in zip(browser["queries"]["id"], system["top"], strict=True)
            ]
            np.testing.assert_allclose(system[model], expected, rtol=2**-12)
    # The ranker has scored five passages of each query.
    pipeline = browser["systems"][-1]
    assert (np.isfinite(pipeline["ranker"]).sum(axis=1) == 5).all() and len(ids[0]) > 0


def test_each_passage_is_held_once_and_cut(tiny_collection: Collection, tmp_path: Path) -> None:
    long = "word " * 200
    corpus = Dataset.from_list([{**row, "text": long} for row in tiny_collection.corpus])
    collection = dataclasses.replace(tiny_collection, corpus=corpus)
    passages = query_browser(
        read_runs([make_tiny_run(tmp_path / "run", "unused", collection)]), collection, "test", METRICS
    )["passages"]
    assert len(set(passages["id"])) == len(passages["id"]) <= 60
    assert all(len(text) <= PASSAGE_CHARACTERS and text.endswith("word…") for text in passages["text"])


def test_all_pairs_are_tested_as_the_table_in_the_terminal_is(browser: dict[str, Any], run: Path) -> None:
    stored = json.loads((run / "significance.json").read_text())["tests"]
    tests = browser["tests"]
    assert len(tests) == 10  # pairs of five systems
    assert tests["0-1"] == stored["warm-up"]["test"]["retriever"]
    assert tests["1-2"] == stored["warm-up"]["test"]["pipeline"]
    assert tests["3-4"] == stored["AR2"]["test"]["pipeline"]
    assert tests["2-4"] == stored["AR2"]["test"]["pipeline_before"]
    assert tests["0-4"]["difference"] > 0


def test_lists_that_end_early_are_padded(tiny_collection: Collection, tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "run", "unused", tiny_collection)
    query_rows = evaluated_queries(tiny_collection, "test")
    ids = np.asarray(tiny_collection.queries["id"], object)[query_rows].tolist()
    path, passage_ids = run_file(run, "AR2", "test", "pipeline"), tiny_collection.corpus["id"]
    short = np.full((len(ids), 12), -1)
    short[1:, :3] = [4, 5, 6]  # nothing at all for the first query
    short[-1] = np.arange(12)
    write_run(path, ids, passage_ids, short, -np.abs(short))
    last = query_browser(read_runs([run]), tiny_collection, "test", METRICS)["systems"][-1]
    assert last["system"] == "pipeline"
    assert (last["top"][0] == NO_PASSAGE).all() and (last["top"][1:-1, 3:] == NO_PASSAGE).all()
    assert (last["top"][-1] != NO_PASSAGE).all()
    assert np.isnan(last["retriever"][0]).all() and last["values"]["mrr@10"][0] == 0

    write_run(path, ids, passage_ids, short[:, :3], short[:, :3])
    with pytest.raises(
        ValueError, match="AR2, pipeline: lists of 3 passages are too short for mrr@10, ndcg@10"
    ):
        query_browser(read_runs([run]), tiny_collection, "test", METRICS)


def test_a_split_known_by_its_answers_marks_the_passages_that_hold_one(
    tiny_collection: Collection, tmp_path: Path
) -> None:
    run = make_tiny_run(tmp_path / "run", "unused", tiny_collection)
    rows = evaluated_queries(tiny_collection, "test")
    answers = [["apple"] if row in rows else [] for row in range(len(tiny_collection.queries))]
    answered = dataclasses.replace(
        tiny_collection,
        queries=tiny_collection.queries.add_column("answers", answers),
        qrels={},
        answer_splits={"test": rows},
    )
    found = query_browser(read_runs([run]), answered, "test", ["mrr@10", "hit_rate@10"])
    texts = np.array(["apple" in text for text in found["passages"]["text"]])
    for system in found["systems"]:
        np.testing.assert_array_equal(system["relevance"], texts[system["top"]])
    assert len(found["positives"]["passages"]) == 0


# ---- Training ------------------------------------------------------------------------------------------------------


def test_stages_follow_each_other_along_the_axis(run: Path) -> None:
    dev, losses, pool = training_charts(read_runs([run])[0])
    assert [stage["name"] for stage in losses["stages"]] == ["retriever", "ar2"]
    assert losses["stages"][1] == {"name": "ar2", "start": 20.0, "end": 30.0}
    lines = {series["label"]: series["lines"] for series in losses["series"]}
    # The adversarial loss was not a number.
    assert lines == {"retriever": [[[10.0, 1.5], [20.0, 1.0]]], "ranker": [[[25.0, 0.7]]]}
    assert {series["label"]: series["lines"][0][-1] for series in dev["series"]} == {
        "retriever": [1.0, 0.6],
        "pipeline": [1.0, 0.7],
    }
    assert {series["label"] for series in pool["series"]} == {
        "lists the ranker gets right",
        "pools whose top beats the positive",
    }


def test_a_round_stands_at_a_tick_that_no_other_stage_has(run: Path) -> None:
    found = read_runs([run])[0]
    lists = {"ranker_accuracy": 0.5}
    for length, begins in ((0.174202, 1.0), (1.0, 2.0)):
        logs = {
            "ranker": [{"epoch": length, **lists}],
            "ar2": [{"epoch": 0.0, **lists}, {"epoch": 1.0, **lists}],
        }
        stages = {stage: {"trainer": stage, "log_history": log} for stage, log in logs.items()}
        pool = training_charts(dataclasses.replace(found, stages=stages))[2]
        assert pool["series"][0]["lines"] == [[[length, 0.5]], [[begins, 0.5], [begins + 1, 0.5]]]
        assert pool["stages"] == [
            {"name": "ranker", "start": 0.0, "end": length},
            {"name": "ar2", "start": begins, "end": begins + 1},
        ]


def test_long_logs_are_thinned_to_means(run: Path) -> None:
    found = read_runs([run])[0]
    log = [{"step": step, "epoch": 0.0, "loss/ranker": float(step)} for step in range(1, 1001)]
    long = dataclasses.replace(found, stages={"ranker": {"trainer": "ranker", "log_history": log}})
    chart = training_charts(long)[1]
    [line] = chart["series"][0]["lines"]
    assert len(line) == MOST_POINTS and line[0] == [3.0, 3.0] and "mean of about 5 logged" in chart["note"]


def test_times_are_told_by_phase(run: Path) -> None:
    first, second = stage_times(read_runs([run])[0])
    assert (first["seconds"], first["phases"], first["steps"]) == (10.0, {}, 20)
    assert (second["stage"], second["phases"]) == ("ar2", {"refresh": 2.5, "ranker": 1.5, "retriever": 3.0})


# ---- The page ------------------------------------------------------------------------------------------------------


def test_what_is_packed_comes_back(run: Path, tiny_collection: Collection) -> None:
    runs = read_runs([run])
    page = render_page(runs, tiny_collection)
    found, expected = unpacked(page), page_data(runs, tiny_collection)
    assert found["browser"]["passages"] == expected["browser"]["passages"]
    assert (found["before"], found["after"]) == (0, 3)
    for ours, theirs in zip(expected["browser"]["systems"], found["browser"]["systems"], strict=True):
        for name in ("top", "retriever", "ranker", "relevance", "first", "positive_ranks"):
            np.testing.assert_array_equal(ours[name].ravel(), theirs[name])
    assert page == render_page(runs, tiny_collection)  # equal runs give equal files
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack({"value": float("nan")})


class Markup(HTMLParser):
    """Elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and text.strip():
            self.scripts.append(text)


def hostile(collection: Collection) -> Collection:
    """The collection with markup in every text, title and query."""
    return dataclasses.replace(
        collection,
        corpus=Dataset.from_list([{**row, "title": HOSTILE, "text": HOSTILE} for row in collection.corpus]),
        queries=Dataset.from_list([{**row, "text": HOSTILE + row["id"]} for row in collection.queries]),
        name=HOSTILE,
    )


def test_no_text_becomes_markup(run: Path, tiny_collection: Collection, tmp_path: Path) -> None:
    plain = Markup(render_page(read_runs([run]), tiny_collection))
    [found] = read_runs([make_tiny_run(tmp_path / "run", "unused", tiny_collection, name=HOSTILE)])
    assert found.label == HOSTILE
    page = render_page([found], hostile(tiny_collection))
    markup = Markup(page)
    assert [tag for tag, _ in markup.tags] == [tag for tag, _ in plain.tags]
    assert len(markup.scripts) == 2  # the data and the script
    assert "\u2028" not in markup.scripts[1]
    texts = unpacked(page)["browser"]
    assert set(texts["passages"]["text"]) == {HOSTILE} and texts["queries"]["text"][0].startswith(HOSTILE)


def test_nothing_can_be_fetched_and_no_other_script_runs(run: Path, tiny_collection: Collection) -> None:
    markup = Markup(render_page(read_runs([run]), tiny_collection))
    for tag, attributes in markup.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form"), tag
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes), tag
        target = attributes.get("href") or "#"
        assert target.startswith("#") or target == "data:,", target
    policy = next(a["content"] for tag, a in markup.tags if tag == "meta" and "http-equiv" in a) or ""
    digest = base64.b64encode(hashlib.sha256(markup.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy
    for name in SCRIPTS:
        code = (files("hf_ar2.report.page") / name).read_text(encoding="utf-8")
        for forbidden in (
            "innerHTML",
            "outerHTML =",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "fetch(",
        ):
            assert forbidden not in code, f"{name}: {forbidden}"


def test_what_is_compared_first() -> None:
    def systems(*names: tuple[int, str, str]) -> list[dict[str, Any]]:
        return [{"run": run, "row": row, "system": system} for run, row, system in names]

    one = systems((0, "a", "retriever"), (0, "a", "pipeline"), (0, "b", "retriever"))
    assert default_pair(one, 1) == (0, 2), "a retriever is not compared with a pipeline"
    both = systems(*((0, row, system) for row in "ab" for system in ("retriever", "pipeline")))
    assert default_pair(both, 1) == (1, 3)
    assert default_pair([*systems((0, "zero-shot", "retriever")), *both], 1) == (0, 3)
    two = systems((0, "a", "retriever"), (0, "b", "retriever"), (1, "a", "retriever"), (1, "b", "retriever"))
    two += systems((1, "b", "pipeline"))
    assert default_pair(two, 2) == (1, 3)
    assert default_pair(systems((0, "a", "retriever")), 1) == (0, 0)


# ---- Run folders ---------------------------------------------------------------------------------------------------


def test_runs_are_told_apart(run: Path, data: Path, tiny_collection: Collection, tmp_path: Path) -> None:
    same = make_tiny_run(tmp_path / "again", str(data), tiny_collection, seed=1)
    other = make_tiny_run(tmp_path / "x" / "tiny", str(data), tiny_collection, name="other")
    assert [found.label for found in read_runs([run, other])] == ["tiny", "other"]
    assert [found.label for found in read_runs([run, same])] == ["tiny", "again"]
    third = make_tiny_run(tmp_path / "y" / "tiny", str(data), tiny_collection)
    assert [found.label for found in read_runs([run, third])] == [str(run), str(third)]
    page = unpacked(render_page(read_runs([run, same]), tiny_collection))
    assert page["title"] == "tiny · again" and len(page["browser"]["systems"]) == 10
    assert (page["before"], page["after"]) == (4, 9)  # the runs' last rows


def test_what_is_served_is_said_and_compared_with_the_first_row(
    data: Path, tiny_collection: Collection, tmp_path: Path
) -> None:
    run = make_tiny_run(tmp_path / "run", str(data), tiny_collection)
    assert unpacked(render_page(read_runs([run]), tiny_collection))["runs"][0]["served"] is None
    chosen = {"row": "warm-up", "system": "retriever", "reason": "warm-up (retriever): dev MRR@10 .500."}
    for served, after in [
        (chosen, 1),
        (chosen | {"row": "zero-shot"}, 3),
        (chosen | {"system": "ranker"}, 3),
    ]:
        (run / "chosen.json").write_text(json.dumps(served))
        page = unpacked(render_page(read_runs([run]), tiny_collection))
        assert page["runs"][0]["served"] == served
        assert (page["before"], page["after"]) == (0, after), "a ranker alone has no lists to browse"


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(text)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("recipe.yaml"), "is not a run folder: it has no recipe.yaml"),
        (without("metrics.json"), "has no metrics.json yet: its recipe has not finished. Run the command"),
        (
            written("metrics.json", "{"),
            "metrics.json: not a complete JSON file .* Delete it and run the command",
        ),
        (written("metrics.json", "[]"), "metrics.json: expected a JSON object, found list"),
        (
            written("significance.json", "{}"),
            "significance.json: field 'tests' is missing; expected 'metric'",
        ),
        (written("runs/AR2/test.ranker.trec", "a b c d\n"), "test.ranker.trec:1: found 4 columns"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_named(
    spoil: Callable[[Path], None], message: str, data: Path, tiny_collection: Collection, tmp_path: Path
) -> None:
    folder = make_tiny_run(tmp_path / "run", str(data), tiny_collection)
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        render_page(read_runs([folder]), tiny_collection)


def test_runs_that_share_no_queries_raise_an_error(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is given twice; give each run once"):
        read_runs([run, run.parent / "." / run.name])
    [found] = read_runs([run])
    other = make_tiny_collection(seed=1)
    other.save(tmp_path / "other")
    elsewhere: RunFolder = dataclasses.replace(
        found, recipe={**found.recipe, "collection": str(tmp_path / "other")}
    )
    with pytest.raises(ValueError, match="made on different collections .* make one page for each"):
        common_collection([found, elsewhere])
    dev = dataclasses.replace(found, recipe={**found.recipe, "evaluation": {"report_split": "dev"}})
    with pytest.raises(ValueError, match="report on different splits .* make one page for each"):
        common_collection([found, dev])
    with pytest.raises(ValueError, match="no TREC runs of split 'dev' in runs/"):
        render_page([dev], common_collection([dev]))


def test_the_command_writes_the_page_and_says_how_large_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pages" / "report.html"
    assert cli.main(["report", str(run), "--output", str(path)]) == 0
    assert re.search(
        r"report.html: 0\.\d MB, 3 rows of tiny on tiny, test; passages", capsys.readouterr().out
    )
    assert unpacked(path.read_text(encoding="utf-8"))["collection"]["queries"] == 8
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == path.read_bytes()
    assert cli.main(["report", str(tmp_path / "absent")]) == 1
    assert "absent is not a run folder: there is no such folder" in capsys.readouterr().err
