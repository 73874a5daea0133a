"""What a recipe is refused for before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_ar2.collections import Collection
from hf_ar2.index.faiss_build import new_faiss_index
from hf_ar2.index.search import FaissSearcher
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.stage_settings import row_config, stage_config


def check_settings(recipe: Recipe, run: Path) -> None:
    """Refuse settings of stages and rows that their configurations refuse.

    Raises:
        RecipeError: with the stage or row, and the reason.
    """
    for stage in recipe.stages:
        _refused(f"stages.{stage}.args", stage_config, recipe, stage, run)
    for row in recipe.evaluation.get("rows", {}):
        _refused(f"evaluation.rows.{row}", row_config, recipe, row, run)


def check_files(recipe: Recipe) -> None:
    """Refuse a recipe that names a file that is not there, or as an index a stage that leaves none.

    Raises:
        RecipeError: with the field and the file.
    """
    for stage in recipe.stages:
        settings = recipe.stage_args(stage)
        unlabelled = settings.get("unlabelled")
        if unlabelled is not None and not Path(unlabelled).is_file():
            raise RecipeError(
                f"stages.{stage}.args.unlabelled: {unlabelled}: no such file; expected queries as JSON lines with _id "
                f"and text, named on the command line for example: --{stage}.unlabelled queries.jsonl"
            )
        _check_index_files(f"stages.{stage}.args", settings)
    for name, row in recipe.evaluation.get("rows", {}).items():
        stage = row.get("index")
        if stage not in recipe.stages:
            _check_index_files(f"evaluation.rows.{name}", row)
        elif recipe.stages[stage]["trainer"] != "ltre":
            known = [name for name, body in recipe.stages.items() if body["trainer"] == "ltre"]
            raise RecipeError(
                f"evaluation.rows.{name}.index: stage {stage!r} leaves no index (trainer "
                f"{recipe.stages[stage]['trainer']!r}); expected a stage of trainer 'ltre' "
                f"({', '.join(known) or 'there is none'}) or a FAISS file; without 'index' the row is searched exactly"
            )


def check_splits(recipe: Recipe, collection: Collection, run: Path) -> None:
    """Refuse stages that train, evaluate or calibrate on a split without judgments.

    Raises:
        RecipeError: with the stage's setting and the splits that there are.
    """
    for stage, body in recipe.stages.items():
        config = stage_config(recipe, stage, run)
        if body["trainer"] == "augment":
            reads_labels = set(config.list_kinds) != {"pseudo"}
            names = {"train_split": reads_labels, "calibrate": config.calibrate is not None}
        elif body["trainer"] == "merge":
            names = {"eval_split": config.share == "auto"}
        else:
            names = {
                "train_split": True,
                "eval_split": config.eval_strategy != "no" or config.eval_on_start,
            }
        for name, read in names.items():
            split = getattr(config, name)
            if read and split not in collection.qrels:
                raise RecipeError(
                    f"stages.{stage}.args.{name}: {collection.name} has no judgments of a split {split!r}; it has "
                    f"{', '.join(collection.splits)}"
                )


def check_indexes(recipe: Recipe, run: Path, load: Callable[[str], Any]) -> None:
    """Refuse indexes that FAISS cannot make of the retrievers' vectors, or not search as they are to be.

    Args:
        load: the retriever that one of the recipe's models is.

    Raises:
        RecipeError: with the stage or row, and the reason.
    """
    dimensions: dict[str, int] = {}

    def fit(config: Any, source: Any) -> None:
        searched = getattr(config, "search_parameters", None)
        if getattr(config, "index", None) is not None or (config.index_factory == "Flat" and not searched):
            return
        name = recipe.way_back(source)[0]
        if name not in dimensions:
            dimensions[name] = int(load(name).get_embedding_dimension() or 0)
        FaissSearcher(new_faiss_index(config.index_factory, dimensions[name]), "cpu", searched)

    for stage, body in recipe.stages.items():
        _refused(f"stages.{stage}.args", fit, stage_config(recipe, stage, run), body["retriever"])
    for row, body in recipe.evaluation.get("rows", {}).items():
        _refused(f"evaluation.rows.{row}", fit, row_config(recipe, row, run), body["retriever"])


def _check_index_files(place: str, settings: dict[str, Any]) -> None:
    for name in ("index", "index_ids"):
        path = settings.get(name)
        if path is not None and not Path(path).exists():
            raise RecipeError(f"{place}.{name}: {path}: no such file; build it first, or correct its path")


def _refused(place: str, make: Callable[..., Any], *arguments: Any) -> None:
    """What `make` refuses is the recipe's error, at a place in it."""
    try:
        make(*arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{place}: {error}") from None
