"""What the report says of a run besides its rankings: what is served and compared, limits of the numbers, times."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from tiny_run import make_tiny_run

from hf_ar2.collections import Collection
from hf_ar2.evaluation.runs import run_file
from hf_ar2.recipes.budget import time_table
from hf_ar2.recipes.recipe import Recipe
from hf_ar2.report.page import read_runs
from hf_ar2.report.page.page import page_data
from hf_ar2.report.page.training import stage_times
from hf_ar2.report.times import minutes_note


def with_bm25(run: Path) -> Path:
    """The run with a row of BM25 before its own, and with hybrids, which rank as the retrievers do."""
    metrics = json.loads((run / "metrics.json").read_text())
    for row, splits in metrics.items():
        file = run_file(run, row, "test", "hybrid")
        shutil.copy(run_file(run, row, "test", "retriever"), file)
        splits["test"]["hybrid"] = splits["test"]["retriever"]
    lexical = run_file(run, "BM25", "test", "retriever")
    lexical.parent.mkdir()
    shutil.copy(run_file(run, "zero-shot", "test", "retriever"), lexical)
    only = {"test": {"retriever": metrics["zero-shot"]["test"]["retriever"]}}
    (run / "metrics.json").write_text(json.dumps({"BM25": only, **metrics}))
    return run


def test_a_hybrid_is_shown_and_compared_with_the_model_before_training(
    data: Path, tiny_collection: Collection, tmp_path: Path
) -> None:
    run = with_bm25(make_tiny_run(tmp_path / "run", str(data), tiny_collection))

    def pair(**chosen: str) -> list[tuple[str, str]]:
        (run / "chosen.json").write_text(json.dumps({**chosen, "reason": "it is best."}))
        page = page_data(read_runs([run]), tiny_collection)
        systems = [(system["row"], system["system"]) for system in page["browser"]["systems"]]
        assert systems[0] == ("BM25", "retriever") and ("AR2", "hybrid") in systems
        return [systems[page["before"]], systems[page["after"]]]

    assert pair(row="AR2", system="hybrid") == [("zero-shot", "hybrid"), ("AR2", "hybrid")]
    assert pair(row="zero-shot", system="hybrid") == [("zero-shot", "retriever"), ("zero-shot", "hybrid")]
    assert pair(row="AR2", system="pipeline") == [("zero-shot", "retriever"), ("AR2", "pipeline")]
    assert pair(row="zero-shot", system="retriever") == [("zero-shot", "retriever"), ("AR2", "retriever")]

    # The model before training is known by its retriever, wherever its row stands.
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["rows"] |= {"zero-shot": {"retriever": "ar2"}, "AR2": {"retriever": "ar2"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert pair(row="AR2", system="hybrid") == [("warm-up", "hybrid"), ("AR2", "hybrid")]


def test_the_setup_and_the_limits_of_the_numbers_are_sentences(
    data: Path, tiny_collection: Collection, tmp_path: Path
) -> None:
    run = make_tiny_run(tmp_path / "run", str(data), tiny_collection)
    environment = json.loads((run / "environment.json").read_text())
    sources = {"train": {"heading": 24}, "test": {"": 2, "generated:t5": 6}}
    environment |= {"query_sources": sources, "on_the_hub": [], "gpu": None, "processes": 1}
    (run / "environment.json").write_text(json.dumps(environment))
    chosen = {"row": "AR2", "system": "retriever", "split": "test", "reason": "it is best."}
    (run / "chosen.json").write_text(json.dumps(chosen))
    plan = {"part": 30, "of_passages": 60, "costs": {"passages": 29}}
    (run / "plan.json").write_text(json.dumps(plan))
    shown = page_data(read_runs([run]), tiny_collection)["runs"][0]
    assert shown["setup"] == {
        "folder": str(run),
        "Python": "3.11",
        "processor": "Some CPU, 2 cores, 1 thread used",
        "GPU": "none",
        "processes": "1",
        "on the Hub": "neither the collection nor a model",
        "queries": "train: headings of the documents (24); test: written by t5 (6) and asked by people (2)",
    }
    asked, part = shown["notes"]["test"]
    assert "those of test are written by t5 (6), plus 2 asked" in asked
    assert "On test only a part of the corpus was searched, 29 of 60 passages" in part


def test_all_times_are_those_of_the_table_that_a_run_ends_with(
    data: Path, tiny_collection: Collection, tmp_path: Path
) -> None:
    run = make_tiny_run(tmp_path / "run", str(data), tiny_collection)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "time.json").write_text(json.dumps({"seconds": 65.2, "clock": "wall"}))
    (run / "time.json").write_text(json.dumps({"seconds": 130.0, "clock": "processor"}))
    [found] = read_runs([run])
    assert [(time["stage"], time["seconds"]) for time in stage_times(found)] == [
        ("retriever", 10.0),
        ("ar2", 10.0),
        ("rows of results", 65.2),
    ]
    table = time_table(run, Recipe(**found.recipe, models={}), 65.2).splitlines()
    assert [line.split("  ")[-1].strip() for line in table[2:]] == ["10 s", "10 s", "1 min 5 s", "1 min 25 s"]
    assert minutes_note(run, found.recipe) == ""
    given = {**found.recipe, "minutes": 2.5, "clock": "processor"}
    assert minutes_note(run, given) == (
        "The run was given 2 min 30 s of processor time and took 2 min 10 s until the served system was chosen. "
        "All other times are by the wall clock."
    )
    assert "processor" not in minutes_note(run, {**given, "clock": "wall"})
