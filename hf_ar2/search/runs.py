"""The settings of a run's models, and of the system that it serves, from its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ar2.cards.facts import (
    CHOSEN,
    first_model,
    last_row,
    reported_split,
    served_row,
    source_changes,
    source_name,
)
from hf_ar2.collections import Collection
from hf_ar2.files import read_json
from hf_ar2.settings.search import OF_EVALUATION, Settings


def settings_of_run(recipe: dict[str, Any], folder: str | Path | None = None) -> Settings:
    """The settings in the `args` and the `evaluation` of a recipe, and in the row that the run in `folder` serves.

    Without a folder, the last row is taken as served.
    """
    args, evaluation = recipe.get("args") or {}, recipe.get("evaluation") or {}
    # The trainers' rerank_depth is for evaluation during training, not for the one at the end.
    read = {name: value for name, value in args.items() if name not in OF_EVALUATION}
    row = last_row(recipe) if folder is None else served_row(folder, recipe)
    searched = {name: row[name] for name in ("index_factory", "search_parameters") if name in row}
    split = {"report_split": reported_split(recipe)}
    return Settings().changed(read | split | evaluation | searched | (_chosen(folder) if folder else {}))


def with_level_of(recipe: Mapping[str, Any], collection: Collection) -> Collection:
    """The collection with a recipe's `evaluation.relevance_level` in the splits that the recipe evaluates."""
    evaluation = recipe.get("evaluation") or {}
    level = evaluation.get("relevance_level", 1)
    splits = [*evaluation.get("splits", ("dev", "test")), evaluation.get("choose_on", "dev")]
    return collection if level == 1 else collection.with_relevance_level(level, splits)


def model_fields(recipe: Mapping[str, Any], run: str | Path, source: Any, role: str) -> dict[str, Any]:
    """The arguments of `load_retriever` or `load_ranker` for the `source` that a stage or a row of a recipe names.

    `run` is the folder with the models of the stages; for the forms of a source see `source_name`.
    """
    name = source_name(source)
    models, stages = recipe.get("models") or {}, recipe.get("stages") or {}
    fields = dict(models.get(name, {}))
    if name in stages:
        kept, first = ("attn_implementation", "trust_remote_code"), first_model(role, name, stages)
        fields = {key: value for key, value in models.get(first, {}).items() if key in kept}
        fields["model"] = str(Path(run) / "stages" / name / role)
    return fields | source_changes(source)


def _chosen(folder: str | Path) -> dict[str, Any]:
    """The system that a run chose, as `Settings` has it."""
    chosen = read_json(Path(folder) / CHOSEN, {})
    if chosen.get("system") not in ("hybrid", "pipeline", "ranker"):
        return {}
    return {
        "system": chosen["system"],
        "weight": 1.0 if chosen["weight"] is None else chosen["weight"],
        "pipeline_depth": chosen["depth"],
        "lexical_weight": chosen.get("lexical", 0.0),
    }
