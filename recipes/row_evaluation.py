"""One row of a recipe's evaluation: what its retriever, BM25, its ranker and its pipeline rank, as run files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_ar2.cards.facts import read_json
from hf_ar2.collections import Collection
from hf_ar2.evaluation.hybrid import UNFITTED, candidates_of_both, fit_weight
from hf_ar2.evaluation.runs import run_file, write_run
from hf_ar2.evaluation.systems import LEXICAL_ROW, SYSTEMS, evaluated_queries, measure, rankings_of_systems
from hf_ar2.evaluation.weights import Blend, fit_blend
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.json_files import write_json
from hf_ar2.recipes.choosing import choosing_split, from_structure
from hf_ar2.recipes.encodings import note_row
from hf_ar2.recipes.recipe import Recipe
from hf_ar2.recipes.stage_settings import row_config
from hf_ar2.trainers import LTReConfig
from hf_ar2.trainers.ltre import FrozenRetrieval
from hf_ar2.trainers.retrieval import Retrieval, encoders_of

# In a row's folder in evaluation/: how its systems order.
BLEND = "pipeline.json"


def read_blend(run: Path, row: str) -> Blend | None:
    """How a row's systems order, as it was fitted on dev; None where the row has neither BM25 nor a ranker."""
    stored = read_json(run / "evaluation" / row / BLEND)
    return Blend(stored["weight"], stored["depth"], stored.get("lexical", 0.0)) if stored else None


def open_lexical(recipe: Recipe, run: Path, collection: Collection) -> LexicalIndex | None:
    """The BM25 index of the collection, kept in the run; None where the recipe's evaluation has no `lexical: true`."""
    if not recipe.evaluation.get("lexical"):
        return None
    texts = list(collection.passage_texts(recipe.args.get("title_separator", " ")))
    return LexicalIndex.open_or_build(texts, run / "lexical")


def evaluate_lexical(
    recipe: Recipe, run: Path, collection: Collection, splits: list[str], lexical: LexicalIndex
) -> None:
    """Write the run files of BM25 alone, the row that all others are compared with."""
    for split in splits:
        query_rows = evaluated_queries(collection, split)
        texts = list(collection.queries.select(query_rows)["text"])
        scores, rows = lexical.search(texts, recipe.evaluation.get("depth", 100))
        _write_runs(recipe, run, collection, LEXICAL_ROW, split, query_rows, {"retriever": (rows, scores)})


def evaluate_row(
    recipe: Recipe,
    run: Path,
    collection: Collection,
    name: str,
    splits: list[str],
    load: Callable[[str, Any], Any],
    lexical: LexicalIndex | None,
) -> None:
    """Rank the queries of the splits with a row's systems and write the run files.

    The weight of BM25 is fitted on the split that is chosen on (fixed where no person asked its queries), then the
    pipeline's weight and depth; the other splits are ranked with those. Where only other splits are due, the weights
    are those that were stored.
    """
    settings = recipe.evaluation
    row = settings["rows"][name]
    args = row_config(recipe, name, run)
    encoders = encoders_of(args)
    retriever = load("retriever", row["retriever"]).to(args.device)
    rerank_depth, depth = settings.get("rerank_depth", 20), settings.get("depth", 100)
    ranker = load("ranker", row["ranker"]).to(args.device) if "ranker" in row and rerank_depth else None
    retrieve_with = FrozenRetrieval if isinstance(args, LTReConfig) else Retrieval
    retrieval = retrieve_with(retriever, ranker, collection, args, encoders)
    temperatures = retrieval.retriever_temperature, retrieval.args.ranker_temperature
    fixed, chosen_on = settings.get("pipeline_weight"), choosing_split(recipe, collection)[0]
    blend = Blend(1.0 if fixed is None else float(fixed))
    if chosen_on not in splits:
        blend = read_blend(run, name) or blend
    for split in splits:  # the one that is chosen on comes first
        query_rows = evaluated_queries(collection, split)
        scores, rows = retrieval.retrieve(query_rows, depth, f"{name}, {split}: queries")
        found = {"retriever": (rows, scores)}
        if lexical is not None:
            both = candidates_of_both(
                scores,
                rows,
                list(collection.queries.select(query_rows)["text"]),
                lexical,
                partial(retrieval.score_passages, query_rows),
            )
            if split == chosen_on:
                metric = recipe.test_metric

                def values_of(ranking: np.ndarray, split: str = split, metric: str = metric) -> np.ndarray:
                    return measure(collection, split, ranking, [metric])[metric]

                lexical_weight = UNFITTED
                if not from_structure(collection, split):
                    lexical_weight = fit_weight(both, temperatures[0], values_of, depth)
                blend = Blend(blend.weight, blend.depth, lexical_weight)
            scores, rows = both.ranked(blend.lexical, temperatures[0], depth)
            found["hybrid"] = (rows, scores)
        ranked = retrieval.ranker_scores(query_rows, rows, rerank_depth, f"{name}, {split}: ranking")
        if ranked is not None and split == chosen_on and fixed is None:
            fitted = fit_blend(scores, rows, ranked, collection, split, recipe.test_metric, *temperatures)
            blend = Blend(fitted.weight, fitted.depth, blend.lexical)
        with_ranker = rankings_of_systems(scores, rows, ranked, *temperatures, blend.weight, blend.depth)
        found |= {system: value for system, value in with_ranker.items() if system != "retriever"}
        if encoders.processes.is_first:
            _write_runs(recipe, run, collection, name, split, query_rows, found)
    if encoders.processes.is_first:
        note_row(run, name, retrieval.opened)
        if ranker is not None or lexical is not None:
            note = {**asdict(blend), "fitted_on": chosen_on if fixed is None else None}
            write_json(run / "evaluation" / name / BLEND, note)
    del retriever, ranker, retrieval
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write_runs(
    recipe: Recipe,
    run: Path,
    collection: Collection,
    name: str,
    split: str,
    query_rows: np.ndarray,
    found: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    ids = np.asarray(collection.queries["id"], object)[query_rows].tolist()
    for system in set(SYSTEMS) - set(found):  # of an evaluation with other settings
        run_file(run, name, split, system).unlink(missing_ok=True)
    for system, (ranking, values) in found.items():
        path = run_file(run, name, split, system)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_run(path, ids, collection.corpus["id"], ranking, values, tag=f"{recipe.name}-{name}-{system}")
