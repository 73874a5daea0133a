"""`hf_ar2.evaluation.compare`: systems from run files, runs and mappings, and what it says of bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_ar2.collections import Collection
from hf_ar2.evaluation import Run, compare, holm, paired_test

QUERIES = [f"q{i}" for i in range(8)]
PASSAGES = [f"d{i}" for i in range(8)]

SCRIPT = """
from hf_ar2.collections import load_collection
from hf_ar2.evaluation import compare

result = compare(load_collection("capitals"), {"BM25": "bm25.trec", "mine": "mine.trec"}, metrics=["mrr@4", "map"])
print(result)
print(result.to_latex())
"""


def found_at(rank: int) -> dict[str, dict[str, float]]:
    """Four passages for each query, the relevant one at this rank (from 1)."""
    run = {}
    for i, query in enumerate(QUERIES):
        others = [passage for passage in PASSAGES if passage != PASSAGES[i]][:3]
        ranked = [*others[: rank - 1], PASSAGES[i], *others[rank - 1 :]]
        run[query] = {passage: 1.0 - 0.1 * place for place, passage in enumerate(ranked)}
    return run


def write_trec(path: Path, run: dict[str, dict[str, float]]) -> Path:
    lines = [
        f"{query} Q0 {passage} {rank} {score} t"
        for query, found in run.items()
        for rank, (passage, score) in enumerate(found.items(), 1)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def collection() -> Collection:
    """Eight queries with one relevant passage each."""
    return Collection(
        "capitals",
        Dataset.from_dict({"id": PASSAGES, "title": PASSAGES, "text": PASSAGES}),
        Dataset.from_dict({"id": QUERIES, "text": QUERIES}),
        {"test": Dataset.from_dict({"query_id": QUERIES, "passage_id": PASSAGES, "relevance": [1] * 8})},
    )


def test_ten_lines_compare_a_run_of_ones_own(
    collection: Collection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(SCRIPT.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    collection.save(tmp_path / "capitals")
    write_trec(tmp_path / "bm25.trec", found_at(2))
    write_trec(tmp_path / "mine.trec", found_at(1))
    exec(compile(SCRIPT, "script", "exec"), {})
    shown = capsys.readouterr().out
    assert shown.startswith("capitals, test: 8 queries\n\nsystem  MRR@4")
    assert "mine    1.000  1.000   +0.500  .008  **  8/0/0".split() in [
        line.split() for line in shown.splitlines()
    ]
    assert r"mine & 1.000 & 1.000 & +0.500 & .008 ** & 8/0/0 \\" in shown


def test_files_runs_and_mappings_give_the_same(collection: Collection, tmp_path: Path) -> None:
    mapping = found_at(2)
    run = Run(
        np.arange(8), np.array([[PASSAGES.index(p) for p in mapping[q]] for q in QUERIES]), np.zeros((8, 4))
    )
    unsorted = {query: dict(sorted(found.items())) for query, found in mapping.items()}
    systems: dict[str, Any] = {"file": str(write_trec(tmp_path / "a.trec", mapping)), "run": run}
    result = compare(collection, {**systems, "mapping": mapping, "unsorted": unsorted}, metrics=["mrr@4"])
    assert result.means == {name: {"mrr@4": 0.5} for name in ("file", "run", "mapping", "unsorted")}
    assert {test.p_value for test in result.tests.values()} == {1.0}


def test_tests_are_corrected_for_their_number(collection: Collection) -> None:
    systems = {"second": found_at(2), "first": found_at(1), "third": found_at(3)}
    result = compare(collection, systems, metrics=["mrr@4", "recall@1"], against="first")
    base = result.values["first"]["mrr@4"]
    raw = [paired_test(result.values[name]["mrr@4"], base).p_value for name in ("second", "third")]
    assert [test.p_value for test in result.tests.values()] == holm(raw).tolist()
    assert list(result.tests) == ["second", "third"] and result.tests["third"].losses == 8
    assert "| third | 0.333 | 0.000 | -0.667 | .016 ▼ | 0/8/0 |" in result.to_markdown()


def test_missing_queries_count_zero_and_short_lists_leave_a_dash(collection: Collection) -> None:
    part = {query: found for query, found in found_at(1).items() if query in ("q0", "q1")}
    one_each = {query: {next(iter(found)): 1.0} for query, found in found_at(1).items()}
    result = compare(
        collection, {"all": found_at(1), "part": part, "one": one_each}, metrics=["mrr@1", "mrr@4"]
    )
    assert result.means["part"]["mrr@4"] == 0.25
    assert result.notes == ["part: queries without a list, which count 0: 6."]
    assert "mrr@4" not in result.means["one"]
    assert "–: the system's lists are shorter than the cutoff." in str(result)


@pytest.mark.parametrize(
    ("systems", "options", "message"),
    [
        ({}, {}, "at least one system"),
        ({"a": found_at(1)}, {"metrics": []}, "one metric"),
        ({"a": found_at(1)}, {"metrics": ["mrr"]}, "unknown metric 'mrr'"),
        ({"a": found_at(1)}, {"metrics": ["mrr@5"]}, "the lists of a are too short for mrr@5"),
        ({"a": found_at(1)}, {"against": "b"}, "against='b': no such system; expected one of a"),
        ({"a": found_at(1)}, {"split": "dev"}, "has no split 'dev'"),
        ({"a": {"q9": {"d1": 1.0}}}, {}, "a: unknown query id 'q9'"),
        ({"a": {"q1": {"d9": 1.0}}}, {}, "a: unknown passage id 'd9'"),
        ({"a": {}}, {}, "a: none of its 0 queries is among the 8 judged ones of capitals, such as 'q0'"),
    ],
)
def test_bad_input(collection: Collection, systems: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(collection, systems, **{"metrics": ["mrr@4"], **options})
