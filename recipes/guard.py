"""The guard of a recipe: a collection of other texts, on which retrievers are compared with their start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_ar2.cards.guard import GUARD_FILE, counts_text
from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.joined import texts_of_sources
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.evaluation.systems import out_of_reach
from hf_ar2.files import read_json, write_note
from hf_ar2.recipes.recipe import Load, Recipe, RecipeError, errors_at, source_name
from hf_ar2.recipes.sampled import sample_of, values_among
from hf_ar2.search.runs import settings_of_run
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

if TYPE_CHECKING:
    from hf_ar2.recipes.inputs import Inputs

QUERIES = 300
PASSAGES = 5000
# The sample is the same in every run, whatever its seed.
_SEED = 0
# Settings that a measurement depends on.
_RELEVANT = "max_query_length max_passage_length title_separator passage_template bf16 metrics depth".split()


@dataclass(frozen=True)
class GuardSplit:
    """A split of the guard, or a sample of it; `queries` and `passages` are the numbers before sampling."""

    split: str
    sample: Collection
    queries: int
    passages: int

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of queries and passages, after and before sampling, as in `guard.json`."""
        kept = {"queries": len(self.sample.queries), "passages": len(self.sample.corpus)}
        return {**kept, "of_queries": self.queries, "of_passages": self.passages}

    def __str__(self) -> str:
        return f"{self.split}: {counts_text(self.counts)}"


@dataclass(frozen=True)
class Guard:
    """The guard of a run."""

    source: str  # as the recipe names it
    choice: GuardSplit  # dev, or test if it has no dev: for choosing the share of a merge
    report: GuardSplit  # test, or dev if it has no test: for the table at the end


def load_guard(recipe: Recipe) -> Guard | None:
    """The recipe's guard, with at most 300 queries per split and 5,000 passages; None if it names none."""
    if recipe.guard is None:
        return None
    if recipe.guard in (recipe.collection, *texts_of_sources(recipe.collection).values()):
        raise RecipeError(
            f"guard: {recipe.guard} is the collection that is trained on; expected one of other texts"
        )
    with errors_at("guard", (ValueError, OSError, ImportError)):
        collection = load_collection(recipe.guard).for_training()
        have = [split for split in ("dev", "test") if split in collection.qrels]
        judged = [split for split in have if len(collection.judgments(split).positives())]
    if not judged:
        raise RecipeError(
            f"guard: {recipe.guard} has no judgments of a split dev or test with a relevant passage; it has "
            f"{', '.join(collection.splits) or 'none'}"
        )
    splits = []
    for split in judged:
        sample = sample_of(collection, split, QUERIES, PASSAGES, _SEED)
        splits.append(GuardSplit(split, sample, len(collection.judgments(split)), len(collection.corpus)))
        total = len(sample.corpus)
        if out_of_reach([recipe.test_metric], min(recipe.depth, total), total):
            raise RecipeError(
                f"guard: {recipe.test_metric} cannot be computed from the {recipe.depth} passages that are retrieved "
                "per query; raise evaluation.depth"
            )
    return Guard(recipe.guard, splits[0], splits[-1])


def evaluate_guard(recipe: Recipe, run: Path, guard: Guard, inputs: Inputs, load: Load) -> None:
    """Measure every row's retriever on the guard, and the model that training started from, and write `guard.json`.

    Search is exact. Each retriever is measured once, also over several runs of the command.
    """
    rows = {name: row["retriever"] for name, row in recipe.rows.items()}
    base, _ = recipe.first_model(list(rows.values())[-1])
    settings = settings_of_run(vars(recipe))
    earlier = read_json(run / GUARD_FILE, {})
    entries = [*earlier["rows"].values(), earlier["before"]] if earlier else []
    known = {json.dumps(entry["key"], sort_keys=True): entry for entry in entries}
    PartialState().wait_for_everyone()  # all processes have read the file before one writes it
    found: dict[str, Any] = {
        "guard": guard.source,
        "split": guard.report.split,
        **guard.report.counts,
        "metric": recipe.test_metric,
        "before": None,
        "rows": {},
    }
    for name, source in [(None, base), *rows.items()]:
        stage = source_name(source)
        trained_by = recipe.stage_key(stage) if stage in recipe.stages else recipe.models[stage]
        relevant = {field: getattr(settings, field) for field in _RELEVANT}
        key = [source, trained_by, relevant, recipe.test_metric, inputs.of_guard(source)]
        text = json.dumps(key, sort_keys=True)
        if text not in known:
            metrics, values = _measure(recipe, run, guard.report.sample, settings, load("retriever", source))
            known[text] = {"retriever": source, "metrics": metrics, "values": values, "key": key}
        entry = {field: value for field, value in known[text].items() if field != "test"}
        if name is None:
            found["before"] = entry
            continue
        if source != base and len(entry["values"]) > 1:
            before = np.array(found["before"]["values"])
            entry["test"] = asdict(paired_test(np.array(entry["values"]), before))
        found["rows"][name] = entry
        if PartialState().is_main_process:
            write_note(run / GUARD_FILE, found)
    PartialState().wait_for_everyone()


def _measure(
    recipe: Recipe, run: Path, sample: Collection, settings: Settings, retriever: SentenceTransformer
) -> tuple[dict[str, float], list[float]]:
    """Means of all metrics, and the values of the test metric per query."""
    retriever = retriever.to(PartialState().device)
    system = SearchSystem(retriever, None, sample, settings, run)
    (split,) = sample.splits
    metrics = list(dict.fromkeys([recipe.test_metric, *settings.metrics]))
    beyond = out_of_reach(metrics, min(settings.depth, len(sample.corpus)), len(sample.corpus))
    metrics = [metric for metric in metrics if metric not in beyond]
    rows = np.arange(len(sample.corpus))
    values = values_among(system, retriever, sample.judgments(split), rows, metrics)
    del retriever, system
    torch.cuda.empty_cache()
    means = {metric: float(values[metric].mean()) for metric in metrics}
    return means, values[recipe.test_metric].tolist()
