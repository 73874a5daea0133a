"""The guard of a recipe: a collection of other texts, on which every row's retriever is measured beside its start."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_ar2.cards.facts import read_json
from hf_ar2.cards.guard import GUARD_FILE
from hf_ar2.collections import Collection, load_collection
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.evaluation.systems import out_of_reach
from hf_ar2.json_files import write_json
from hf_ar2.recipes.recipe import Recipe, RecipeError, source_name
from hf_ar2.recipes.sampled import sample_of, values_among
from hf_ar2.search.runs import settings_of_run
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

if TYPE_CHECKING:
    from hf_ar2.recipes.inputs import Inputs

QUERIES = 300
PASSAGES = 5000
# The same part in every run, whatever its seed.
_SEED = 0
# Of the settings, what a measurement depends on.
_READ = ("max_query_length", "max_passage_length", "title_separator", "bf16", "metrics", "depth")


@dataclass(frozen=True)
class GuardSplit:
    """A split of the guard as it is measured on.

    Attributes:
        split: its name.
        sample: the collection with this split alone, and with a sample of it where it is large.
        queries, passages: how many there are in all.
    """

    split: str
    sample: Collection
    queries: int
    passages: int

    def __str__(self) -> str:
        counts = {"queries": self.queries, "passages": self.passages}
        kept = {"queries": len(self.sample.queries), "passages": len(self.sample.corpus)}
        told = [
            f"{kept[what]:,} {what}" if kept[what] == total else f"{kept[what]:,} of {total:,} {what}"
            for what, total in counts.items()
        ]
        return f"{self.split}: {', '.join(told)}"


@dataclass(frozen=True)
class Guard:
    """The guard of a run.

    Attributes:
        source: as the recipe names it.
        choice: its split dev, or test where it has none, for choosing.
        report: its split test, or dev where it has none, for the table at the end.
    """

    source: str
    choice: GuardSplit
    report: GuardSplit


def load_guard(recipe: Recipe) -> Guard | None:
    """The recipe's guard, with at most 300 queries a split and 5,000 passages; None where it names none.

    Raises:
        RecipeError: it cannot be loaded, it has no judgments, or it is the collection that is trained on.
    """
    if recipe.guard is None:
        return None
    if recipe.guard == recipe.collection:
        raise RecipeError(
            f"guard: {recipe.guard} is the collection that is trained on; expected one of other texts"
        )
    try:
        collection = load_collection(recipe.guard).for_training()
        judged = [
            split
            for split in ("dev", "test")
            if split in collection.qrels and len(collection.judgments(split).positives())
        ]
    except (ValueError, OSError, ImportError) as error:
        raise RecipeError(f"guard: {error}") from None
    if not judged:
        raise RecipeError(
            f"guard: {recipe.guard} has no judgments of a split dev or test with a relevant passage; it has "
            f"{', '.join(collection.splits) or 'none'}"
        )
    splits = {
        split: GuardSplit(
            split,
            sample_of(collection, split, QUERIES, PASSAGES, _SEED),
            len(collection.judgments(split)),
            len(collection.corpus),
        )
        for split in judged
    }
    depth = recipe.evaluation.get("depth", 100)
    for part in splits.values():
        total = len(part.sample.corpus)
        if out_of_reach([recipe.test_metric], min(depth, total), total):
            raise RecipeError(
                f"guard: {recipe.test_metric} cannot be computed of the {depth} passages that are retrieved per query; "
                "raise evaluation.depth"
            )
    return Guard(recipe.guard, splits[judged[0]], splits[judged[-1]])


def evaluate_guard(
    recipe: Recipe, run: Path, guard: Guard, inputs: Inputs, load: Callable[[str, Any], Any]
) -> None:
    """Measure every row's retriever on the guard, and the model they go back to, and write `guard.json`.

    Retrievers are searched exactly, each once; what was measured before is not measured again. The file is written anew
    after each, whole or not at all.

    Args:
        load: the model of a role and a source.
    """
    rows = {name: row["retriever"] for name, row in recipe.evaluation["rows"].items()}
    base, _ = recipe.way_back(list(rows.values())[-1])
    settings = settings_of_run(vars(recipe))
    noted = read_json(run / GUARD_FILE)
    known = {
        json.dumps(entry["key"], sort_keys=True): entry
        for entry in [*noted.get("rows", {}).values(), *([noted["before"]] if noted else [])]
    }
    PartialState().wait_for_everyone()  # all have looked before one writes
    found: dict[str, Any] = {
        "guard": guard.source,
        "split": guard.report.split,
        "queries": len(guard.report.sample.queries),
        "of_queries": guard.report.queries,
        "passages": len(guard.report.sample.corpus),
        "of_passages": guard.report.passages,
        "metric": recipe.test_metric,
        "before": None,
        "rows": {},
    }
    for name, source in [(None, base), *rows.items()]:
        stage = source_name(source)
        of_stage = recipe.stage_key(stage) if stage in recipe.stages else recipe.models[stage]
        read = {field: getattr(settings, field) for field in _READ}
        key = [source, of_stage, read, recipe.test_metric, inputs.of_guard(source)]
        written = json.dumps(key, sort_keys=True)
        if written not in known:
            metrics, values = _measured(recipe, run, guard.report.sample, settings, load("retriever", source))
            known[written] = {
                "retriever": source,
                "metrics": metrics,
                "values": values,
                "key": key,
            }
        entry = {field: value for field, value in known[written].items() if field != "test"}
        if name is None:
            found["before"] = entry
        else:
            if source != base and len(entry["values"]) > 1:
                test = paired_test(np.array(entry["values"]), np.array(found["before"]["values"]))
                entry["test"] = asdict(test)
            found["rows"][name] = entry
            if PartialState().is_main_process:
                write_json(run / GUARD_FILE, found)
    PartialState().wait_for_everyone()


def _measured(
    recipe: Recipe, run: Path, sample: Collection, settings: Settings, retriever: SentenceTransformer
) -> tuple[dict[str, float], list[float]]:
    """Means of all metrics, and the test metric's values per query."""
    device = PartialState().device
    system = SearchSystem(retriever.to(device), None, sample, settings, run)
    (split,) = sample.splits
    metrics = list(dict.fromkeys([recipe.test_metric, *settings.metrics]))
    beyond = out_of_reach(metrics, min(settings.depth, len(sample.corpus)), len(sample.corpus))
    metrics = [metric for metric in metrics if metric not in beyond]
    values = values_among(
        system.retriever,
        system.retriever_inputs,
        system.encoders,
        sample.judgments(split),
        np.arange(len(sample.corpus)),
        metrics,
        settings.depth,
    )
    del retriever, system
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    means = {metric: float(values[metric].mean()) for metric in metrics}
    return means, values[recipe.test_metric].tolist()
