"""The data of the page's query browser: the top passages of every system for every query of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.evaluation import paired_test, read_run
from hf_ar2.evaluation.metrics import gains
from hf_ar2.evaluation.runs import Run, check_run_files, run_file
from hf_ar2.evaluation.systems import evaluated_queries, hits_of_split, measure
from hf_ar2.report.page.run_folder import RunFolder

TOP = 10
PASSAGE_CHARACTERS = 400
QUERY_CHARACTERS = 1_000
NO_PASSAGE = 0xFFFFFFFF
# Systems that rank all retrieved passages; the ranker's scores are shown next to each.
SYSTEMS = ("retriever", "hybrid", "pipeline")


def query_browser(
    runs: Sequence[RunFolder], collection: Collection, split: str, metrics: Sequence[str]
) -> dict[str, Any]:
    """Queries, passages and each system's results, with passages given by their position in `passages`.

    Args:
        metrics: such as "mrr@10", without those that the lists are too short for. The first is tested.

    Returns:
        - `queries`: `id` and `text`, Q strings each.
        - `passages`: `id`, `title` and `text`, each passage once; texts are cut at `PASSAGE_CHARACTERS`.
        - `positives`: `offsets` uint32 `[Q + 1]` into `passages` uint32 `[P]`, as in compressed rows.
        - `systems`: run, row and system, and arrays: `top` uint32 `[Q, 10]` (`NO_PASSAGE` after the end of a list),
          `retriever` and `ranker` float32 `[Q, 10]` (NaN without a score), `relevance` uint8 `[Q, 10]`,
          `first` uint16 `[Q]` (rank of the first positive, 0 without one), `positive_ranks` uint16 `[P]` and
          `values` (metric -> float32 `[Q]`).
        - `metrics`: those that every system has.
        - `tests`: for systems i < j `"i-j"` -> difference, p, wins, losses and ties of j against i on the first metric.
    """
    query_rows = evaluated_queries(collection, split)
    query_ids, passage_ids = collection.queries["id"][:], collection.corpus["id"][:]
    offsets, positives = _positives(collection, split, query_rows)
    systems: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        for row in run.metrics:
            check_run_files(run.folder, row)
            stored = {
                name: read_run(path, query_ids, passage_ids).of_queries(query_rows)
                for name in ("ranker", *SYSTEMS)
                if (path := run_file(run.folder, row, split, name)).is_file()
            }
            for name in SYSTEMS:
                if name in stored:
                    found = _system(stored, row, name, collection, split, metrics, offsets, positives)
                    systems.append({"run": number, "row": row, "system": name, **found})
    if not systems:
        folders = ", ".join(str(run.folder) for run in runs)
        raise ValueError(
            f"{folders}: no TREC runs of split {split!r} in runs/; the recipe's evaluation writes them. Run the "
            "command that made the run again"
        )
    shown = np.unique(np.concatenate([positives, *(system["top"].ravel() for system in systems)]))
    shown = shown[shown >= 0]
    for system in systems:
        system["top"] = _places(shown, system["top"])
    common = [metric for metric in metrics if all(metric in system["values"] for system in systems)]
    tests = _tests(systems, common[0]) if len(query_rows) > 1 else {}
    for system in systems:
        system["values"] = {metric: system["values"][metric].astype(np.float32) for metric in common}
    texts = [_clipped(text, QUERY_CHARACTERS) for text in collection.queries.select(query_rows)["text"]]
    return {
        "split": split,
        "queries": {"id": [query_ids[row] for row in query_rows.tolist()], "text": texts},
        "passages": _passages(collection, shown),
        "positives": {"offsets": offsets.astype(np.uint32), "passages": _places(shown, positives)},
        "systems": systems,
        "metrics": common,
        "tests": tests,
    }


def _system(
    stored: dict[str, Run],
    row: str,
    name: str,
    collection: Collection,
    split: str,
    metrics: Sequence[str],
    offsets: np.ndarray,
    positives: np.ndarray,
) -> dict[str, Any]:
    ranking = stored[name].passage_rows
    top = np.full((len(ranking), TOP), -1, np.int64)
    top[:, : ranking.shape[1]] = ranking[:, :TOP]
    if split in collection.qrels:
        judgments = collection.judgments(split)
        relevance, level = gains(ranking, judgments), judgments.level
    else:
        relevance, level = hits_of_split(collection, split, ranking).astype(np.int32), 1
    marks = np.zeros(top.shape, np.uint8)
    marks[:, : ranking.shape[1]] = np.clip(relevance[:, :TOP], 0, 255)
    same = ranking[np.repeat(np.arange(len(ranking)), np.diff(offsets))] == positives[:, None]
    values = measure(collection, split, ranking, metrics)
    if not values:
        raise ValueError(
            f"{row}, {name}: lists of {ranking.shape[1]} passages are too short for {', '.join(metrics)}; evaluate the "
            "recipe with a larger evaluation.depth, or with metrics of a smaller cutoff"
        )
    return {
        "top": top,
        "retriever": _scores_of(top, stored.get("retriever")),
        "ranker": _scores_of(top, stored.get("ranker")),
        "relevance": marks,
        "first": _first_rank(relevance >= level),
        "positive_ranks": _first_rank(same),
        "values": values,
    }


def _first_rank(found: np.ndarray) -> np.ndarray:
    """The first rank in each row of a mask `[N, K]`, from 1, uint16 `[N]`; 0 without one."""
    return np.where(found.any(axis=1), np.minimum(found.argmax(axis=1) + 1, 0xFFFF), 0).astype(np.uint16)


def _scores_of(top: np.ndarray, run: Run | None) -> np.ndarray:
    """A run's scores of the passages in `top`, float32 `[Q, 10]`; NaN for passages it does not hold."""
    scores = np.full(top.shape, np.nan, np.float32)
    if run is not None and run.passage_rows.shape[1]:
        for column, passages in enumerate(top.T):
            same = (run.passage_rows == passages[:, None]) & (passages[:, None] >= 0)
            held = np.flatnonzero(same.any(axis=1))
            scores[held, column] = run.scores[held, same[held].argmax(axis=1)]
    # The page shows no more than 12 bits of the mantissa; zeros for the others compress well.
    bits = scores.view(np.uint32)
    return np.where(np.isnan(scores), scores, ((bits + 0x400) & np.uint32(0xFFFFF800)).view(np.float32))


def _positives(collection: Collection, split: str, query_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The judged positives as offsets `[Q + 1]` and passage rows; none for a split with answers instead."""
    if split not in collection.qrels:
        return np.zeros(len(query_rows) + 1, np.int64), np.zeros(0, np.int64)
    judgments = collection.judgments(split)
    relevant = judgments.relevance >= judgments.level
    return np.append(0, np.cumsum(relevant))[judgments.offsets], judgments.passage_rows[relevant]


def _passages(collection: Collection, rows: np.ndarray) -> dict[str, list[str]]:
    found = collection.corpus[rows.tolist()]
    return {
        "id": found["id"],
        "title": [_clipped(title, PASSAGE_CHARACTERS) for title in found["title"]],
        "text": [_clipped(text, PASSAGE_CHARACTERS) for text in found["text"]],
    }


def _places(shown: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Positions of passage rows among the shown passages, uint32."""
    return np.where(rows < 0, NO_PASSAGE, np.searchsorted(shown, rows)).astype(np.uint32)


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _tests(systems: Sequence[dict[str, Any]], metric: str) -> dict[str, dict[str, float]]:
    values = [system["values"][metric] for system in systems]
    pairs = combinations(range(len(systems)), 2)
    return {f"{i}-{j}": dataclasses.asdict(paired_test(values[j], values[i])) for i, j in pairs}
