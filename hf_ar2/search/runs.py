"""Run folders, as training leaves them: their recipe, and the settings of the system that they serve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_ar2.cards.facts import CHOSEN, last_row, read_json, served_row, source_changes, source_name
from hf_ar2.settings.search import OF_EVALUATION, Settings


def read_run(folder: str | Path) -> dict[str, Any]:
    """The recipe of a run folder that has come to its end.

    Raises:
        FileNotFoundError: no run folder, or no retriever in it yet; the message says what to do.
        ValueError: a recipe.yaml that is no recipe.
    """
    recipe = read_recipe(folder)
    if not (Path(folder) / "retriever").is_dir():
        stages = [Path(folder) / "stages" / name for name in recipe.get("stages") or {}]
        if stages and not last_row(recipe) and all((stage / "done.json").is_file() for stage in stages):
            raise FileNotFoundError(
                f"{folder} has no retriever/: its recipe is done but has no evaluation.rows, the last of which names "
                f"the run's models. Name one by itself, {stages[-1]}/retriever for example, or add a row and give the "
                "command that started it again: what is trained stays"
            )
        raise FileNotFoundError(
            f"{folder} has no retriever/ yet: its recipe has not come to its end. The command that started it "
            "continues it"
        )
    return recipe


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """The recipe a run folder was made by, whether it has come to its end or not.

    Raises:
        FileNotFoundError: no run folder; the message names those that are near.
        ValueError: a recipe.yaml that is no recipe.
    """
    folder = Path(folder)
    path = folder / "recipe.yaml"
    if not path.is_file():
        runs = sorted(
            str(found.parent)
            for found in (folder.parent, Path("runs"))
            for found in found.glob("*/recipe.yaml")
        )
        here = (
            f"Run folders here: {', '.join(dict.fromkeys(runs))}"
            if runs
            else "Make one with: hf-ar2 quickstart"
        )
        what = "it has no recipe.yaml" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"{folder} is no run folder: {what}. {here}")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path}: not valid YAML: {error}. Restore the file, or run the recipe again with: hf-ar2 train"
        ) from None
    if not isinstance(recipe, dict) or "collection" not in recipe:
        raise ValueError(
            f"{path}: expected a recipe with the field 'collection'. Run it again with: hf-ar2 train"
        )
    return recipe


def settings_of_run(recipe: dict[str, Any], folder: str | Path | None = None) -> Settings:
    """The settings in the `args` and the `evaluation` of a recipe, and in the row that is served.

    Args:
        recipe: contents of a recipe.yaml.
        folder: the run, whose chosen.json says which row and system are served; None: the last row.
    """
    args, evaluation = recipe.get("args") or {}, recipe.get("evaluation") or {}
    # A trainer's own rerank_depth is for its evaluations during training, not for the one at the end.
    read = {name: value for name, value in args.items() if name not in OF_EVALUATION}
    row = last_row(recipe) if folder is None else served_row(folder, recipe)
    searched = {name: row[name] for name in ("index_factory", "search_parameters") if name in row}
    return Settings().changed(read | evaluation | searched | (_chosen(folder) if folder is not None else {}))


def model_fields(recipe: Mapping[str, Any], run: str | Path, source: Any, role: str) -> dict[str, Any]:
    """The arguments of `load_retriever` or `load_ranker` for what a stage or a row of a recipe names.

    Args:
        recipe: its `models` and `stages`.
        run: the run folder, with the models of the stages.
        source: the name of a model or a stage, or a mapping with `from` and what is changed in it.
        role: `"retriever"` or `"ranker"`.
    """
    name = source_name(source)
    fields = dict((recipe.get("models") or {}).get(name, {}))
    if name in (recipe.get("stages") or {}):
        fields["model"] = str(Path(run) / "stages" / name / role)
    return fields | source_changes(source)


def _chosen(folder: str | Path) -> dict[str, Any]:
    """The system that a run chose, as `Settings` has it."""
    chosen = read_json(Path(folder) / CHOSEN)
    if chosen.get("system") not in ("hybrid", "pipeline", "ranker"):
        return {}
    weight = 1.0 if chosen["weight"] is None else chosen["weight"]
    return {
        "system": chosen["system"],
        "weight": weight,
        "pipeline_depth": chosen["depth"],
        "lexical_weight": chosen.get("lexical", 0.0),
    }
