"""The configurations that a recipe's stages and rows are run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_ar2.recipes.encodings import encodings_folder
from hf_ar2.recipes.recipe import CONFIGS, Recipe
from hf_ar2.search.run_index import SEARCHED_INDEX, RunIndex
from hf_ar2.settings.effects import OF_THE_MACHINE
from hf_ar2.settings.text import ScoringConfig, names_of
from hf_ar2.trainers import LTReConfig, RetrieverConfig

# Of a recipe's common settings, those that evaluation needs; the others are about training.
_EVALUATION = (*names_of(ScoringConfig), "encode_tokens", "train_split", *OF_THE_MACHINE)
# Of a row, what the configuration has under the same name.
_ROW_SETTINGS = ("index_factory", "index", "index_ids", "search_parameters")


def stage_config(recipe: Recipe, stage: str, run: Path) -> Any:
    """The configuration of a stage in a run folder.

    Raises:
        ValueError, TypeError: settings that the stage's trainer refuses.
    """
    body = recipe.stages[stage]
    settings = recipe.stage_args(stage)
    if body["trainer"] in ("augment", "merge"):
        return CONFIGS[body["trainer"]](**settings)
    settings.setdefault("cache_dir", str(run / "cache"))
    settings["index_dir"] = str(encodings_folder(run))
    if body.get("lists"):
        written = [str(lists_folder(run, name)) for name in body["lists"]]
        settings["train_lists"] = written + (settings.get("train_lists") or [])
    return CONFIGS[body["trainer"]](output_dir=str(run / "stages" / stage), **settings)


def row_config(recipe: Recipe, row: str, run: Path) -> RetrieverConfig | LTReConfig:
    """The configuration that a row is evaluated with: an `LTReConfig` where it is searched with an index of its own.

    Raises:
        ValueError, TypeError: settings that do not fit each other.
    """
    body = recipe.evaluation["rows"][row]
    settings: dict[str, Any] = {key: value for key, value in recipe.args.items() if key in _EVALUATION}
    settings |= {
        "cache_dir": str(run / "cache"),
        "index_dir": str(encodings_folder(run)),
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
    }
    settings |= {key: body[key] for key in _ROW_SETTINGS if key in body}
    stage = settings.get("index")
    if stage is not None and stage in recipe.stages:
        del settings["index"]
        found = RunIndex.of_stage(run / "stages" / stage / SEARCHED_INDEX, recipe.stage_args(stage))
        if found is None:  # it is searched exactly, as it was trained
            settings["index_factory"] = "Flat"
        else:
            settings["index"] = str(found.path)
            settings |= {} if found.ids is None else {"index_ids": str(found.ids)}
    output = str(run / "evaluation" / row)
    if "index" in settings or "search_parameters" in settings:
        return LTReConfig(output_dir=output, vectors="index", **settings)
    return RetrieverConfig(output_dir=output, **settings)


def lists_folder(run: Path, stage: str) -> Path:
    """Where an augmenting stage leaves its training lists."""
    return run / "stages" / stage / "lists"
