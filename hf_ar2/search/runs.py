"""The recipe.yaml of a run folder, and the settings of its models and of the system that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ar2.cards.facts import (
    CHOSEN,
    first_model,
    how_to_finish,
    last_row,
    reported_split,
    served_row,
    source_changes,
    source_name,
)
from hf_ar2.collections import Collection
from hf_ar2.files import check_files, read_json
from hf_ar2.settings.plain_yaml import read_yaml
from hf_ar2.settings.search import OF_EVALUATION, Settings

# The checksums of the models at the root of a run folder.
SERVED = "served.json"


def read_finished_recipe(folder: str | Path) -> dict[str, Any]:
    """The recipe of a finished run, after checking that the files of its models are unchanged.

    FileNotFoundError if it is not a run folder, or has no retriever yet; ValueError if a file is damaged.
    """
    recipe = read_recipe(folder)
    if not (Path(folder) / "retriever").is_dir():
        stages = [Path(folder) / "stages" / name for name in recipe.get("stages") or {}]
        if stages and not last_row(recipe) and all((stage / "done.json").is_file() for stage in stages):
            raise FileNotFoundError(
                f"{folder} has no retriever/: all stages are done, but the recipe has no evaluation.rows, the last of "
                f"which names the run's models. Name a model itself, such as {stages[-1]}/retriever, or add a row and "
                "repeat the command that started the run: finished stages are kept"
            )
        raise FileNotFoundError(
            f"{folder} has no retriever/ yet: the run is not finished. {how_to_finish(folder)}"
        )
    checksums = read_json(Path(folder) / SERVED, {}).get("checksums", {})
    check_files(Path(folder), checksums, "Repeat the command that made the run: it writes its models again.")
    return recipe


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """The recipe of a run folder, finished or not."""
    folder = Path(folder)
    path = folder / "recipe.yaml"
    if not path.is_file():
        near = {
            str(file.parent)
            for place in (folder.parent, Path("runs"))
            for file in place.glob("*/recipe.yaml")
        }
        model = next((at for at in (folder, folder / "retriever") if (at / "modules.json").is_file()), None)
        if model is not None:
            raise FileNotFoundError(
                f"{folder} is not a run folder: it has no recipe.yaml, but {'is' if model == folder else 'holds'} a "
                "model. Run folders come from hf-ar2 train; to measure the model: hf-ar2 evaluate --retriever "
                f"{model} --collection …; to search with it: hf-ar2 search with the same options"
            )
        here = f"Run folders here: {', '.join(sorted(near))}" if near else "Make one with: hf-ar2 quickstart"
        what = "it has no recipe.yaml" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"{folder} is not a run folder: {what}. {here}")
    try:
        recipe = read_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}. Restore the file, or run the recipe again with: hf-ar2 train"
        ) from None
    if not isinstance(recipe, dict) or "collection" not in recipe:
        raise ValueError(f"{path}: expected a recipe with a field 'collection'. Run it again: hf-ar2 train")
    return recipe


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
