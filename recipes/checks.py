"""Checks of a recipe against its collection and files, so that its errors show before anything is trained.

Each raises a `RecipeError` that names the field, what was found and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from hf_ar2.collections import Collection
from hf_ar2.collections.questions import read_questions
from hf_ar2.evaluation.runs import check_run_ids
from hf_ar2.evaluation.systems import check_relevant, out_of_reach
from hf_ar2.index.faiss_build import new_faiss_index
from hf_ar2.index.search import NO_RANGES, FaissSearcher
from hf_ar2.models.limits import set_truncate_dim
from hf_ar2.models.loading import resolve_model_name
from hf_ar2.recipes.choosing import evaluated_splits
from hf_ar2.recipes.recipe import Load, Recipe, RecipeError, errors_at, row_config, source_name, stage_config
from hf_ar2.training_lists.stored import OF_COLLECTION, lists_of


def check_recipe(recipe: Recipe, run: Path) -> None:
    """Check what can be checked without the collection."""
    check_settings(recipe, run)
    check_named_files(recipe)
    check_models(recipe, run)


def check_collection(recipe: Recipe, collection: Collection, run: Path, load: Load) -> None:
    """Check the recipe against its collection and its models."""
    check_splits(recipe, collection, run)
    check_evaluation(recipe, collection)
    check_exact(recipe, collection, run)
    check_dimensions(recipe, run, load)
    check_adapters(recipe, load)


def check_settings(recipe: Recipe, run: Path) -> None:
    """Check the settings of every stage and row."""
    for place, configure, name, _ in _configured(recipe):
        with errors_at(place, (ValueError, TypeError)):
            configure(recipe, name, run)


def check_named_files(recipe: Recipe) -> None:
    """Check that the files that the recipe names exist, and that a stage named as an index leaves one."""
    if recipe.questions is not None:
        with errors_at("questions"):
            read_questions(str(recipe.questions))
    for stage in recipe.stages:
        settings = recipe.stage_args(stage)
        unlabelled = settings.get("unlabelled")
        if unlabelled is not None and not Path(unlabelled).is_file():
            raise RecipeError(
                f"stages.{stage}.args.unlabelled: {unlabelled}: no such file; expected queries as JSON lines with _id "
                f"and text, named on the command line for example: --{stage}.unlabelled queries.jsonl"
            )
        _check_index_files(f"stages.{stage}.args", settings)
    for name, row in recipe.rows.items():
        source = row.get("index")
        if source not in recipe.stages:
            _check_index_files(f"evaluation.rows.{name}", row)
        elif recipe.stages[source]["trainer"] != "ltre":
            known = [name for name, body in recipe.stages.items() if body["trainer"] == "ltre"]
            raise RecipeError(
                f"evaluation.rows.{name}.index: stage {source!r} leaves no index (trainer "
                f"{recipe.stages[source]['trainer']!r}); expected a stage of trainer 'ltre' "
                f"({', '.join(known) or 'there is none'}) or a FAISS file; without 'index' the row is searched exactly"
            )


def check_models(recipe: Recipe, run: Path) -> None:
    """Check that the models that are still to be loaded are folders here, in packages, on the Hub or in its cache."""
    places = {run / "stages" / name / "done.json": body for name, body in recipe.stages.items()}
    places |= {run / "evaluation" / name / "key.json": body for name, body in recipe.rows.items()}
    left = [body for note, body in places.items() if not note.is_file()]
    used = {source_name(body[role]) for body in left for role in ("retriever", "ranker") if role in body}
    for name, body in recipe.models.items():
        if name not in used:
            continue
        with errors_at(f"models.{name}.model"):
            model = resolve_model_name(body["model"])
        if Path(model).is_dir():
            continue
        try:  # of a model on the Hub, this one file is downloaded
            snapshot_download(model, revision=body.get("revision"), allow_patterns=["config.json"])
        except (OSError, ValueError) as error:
            found = str(error).strip().partition("\n")[0]
            raise RecipeError(
                f"models.{name}.model: {model}: found no such folder here, and no such model on the Hub or in "
                f"its cache ({type(error).__name__}: {found}); expected a folder, package:NAME/FOLDER, or a Hub id"
            ) from None


def check_splits(recipe: Recipe, collection: Collection, run: Path) -> None:
    """Check that the splits that stages train, evaluate or calibrate on have judgments."""
    for stage, body in recipe.stages.items():
        config = stage_config(recipe, stage, run)
        if body["trainer"] == "augment":
            reads_labels = set(config.list_kinds) != {"pseudo"}
            names = {"train_split": reads_labels, "calibrate": config.calibrate is not None}
        elif body["trainer"] == "merge":
            names = {"eval_split": config.share == "auto"}
        else:
            evaluates = config.eval_strategy != "no" or config.eval_on_start
            names = {"train_split": True, "eval_split": evaluates}
            if OF_COLLECTION in (config.train_lists or ()):
                with errors_at(f"stages.{stage}.args", (ValueError,)):
                    lists_of(collection, config.train_split)
        for name in [name for name, read in names.items() if read]:
            split, level = getattr(config, name), getattr(config, "relevance_level", None)
            if split not in collection.qrels:
                raise RecipeError(
                    f"stages.{stage}.args.{name}: {collection.name} has no judgments of a split {split!r}; it has "
                    f"{', '.join(collection.splits)}"
                )
            with errors_at(f"stages.{stage}.args.{name}"):
                check_relevant(collection, split, level)


def check_evaluation(recipe: Recipe, collection: Collection) -> None:
    """Check the splits, metrics and depths of the evaluation."""
    if not recipe.rows:
        return
    splits, metrics = evaluated_splits(recipe, collection), recipe.metrics
    total = len(collection.corpus)
    with errors_at("collection"):
        check_run_ids(collection)
    with errors_at("evaluation"):
        for split in splits:
            check_relevant(collection, split)
        beyond = out_of_reach(metrics, min(recipe.depth, total), total)
    if recipe.report_split not in splits:
        raise RecipeError(
            f"evaluation.report_split: found {recipe.report_split!r}, expected one of the splits {', '.join(splits)}"
        )
    if recipe.test_metric not in metrics:
        raise RecipeError(
            f"evaluation.test_metric: found {recipe.test_metric!r}, expected one of the metrics {', '.join(metrics)}"
        )
    if beyond:
        raise RecipeError(
            f"evaluation.metrics: {', '.join(beyond)} cannot be computed from the {recipe.depth} passages that are "
            "retrieved per query; raise evaluation.depth, or leave the metric out"
        )


def check_dimensions(recipe: Recipe, run: Path, load: Load) -> None:
    """Check the indexes (can FAISS build and search them?), `truncate_dim` and `matryoshka_dims` of stages and rows."""
    retrievers: dict[str, Any] = {}
    for place, configure, name, body in _configured(recipe):
        with errors_at(place, (ValueError, TypeError)):
            config = configure(recipe, name, run)
            search_parameters = getattr(config, "search_parameters", None)
            exact = config.index_factory == "Flat" and not search_parameters
            indexes = not exact and getattr(config, "index", None) is None
            trains = getattr(config, "matryoshka_dims", None) and body["trainer"] != "ranker"
            model, changes = recipe.first_model(body["retriever"])
            cuts = [fields["truncate_dim"] for fields in changes if fields.get("truncate_dim")]
            if not (indexes or trains or cuts or recipe.models[model].get("truncate_dim")):
                continue
            if model not in retrievers:
                retrievers[model] = load("retriever", model)
            retriever = retrievers[model]
            with retriever.truncate_embeddings(retriever.truncate_dim):  # which is restored
                for cut in cuts:
                    set_truncate_dim(retriever, cut)
                dimension = int(retriever.get_embedding_dimension() or 0)
            if trains:
                config.check_dimension(dimension)
            if indexes:
                FaissSearcher(new_faiss_index(config.index_factory, dimension), "cpu", search_parameters)


def check_exact(recipe: Recipe, collection: Collection, run: Path) -> None:
    """Check that stages and rows search exactly if there are several collections, which are searched separately."""
    for place, configure, name, _ in _configured(recipe) if collection.members else ():
        config = configure(recipe, name, run)
        if getattr(config, "index_factory", "Flat") != "Flat" or getattr(config, "search_parameters", None):
            raise RecipeError(f"{place}.index_factory: {config.index_factory!r}: such an index {NO_RANGES}")


def check_adapters(recipe: Recipe, load: Load) -> None:
    """Check that the adapters (LoRA) of the recipe's models can be added: the layers that they name may not exist."""
    done = set()
    for stage, body in recipe.stages.items():
        for role in ("retriever", "ranker"):
            name = source_name(body[role]) if role in body else None
            if name in recipe.models and recipe.models[name].get("lora") and (role, name) not in done:
                done.add((role, name))
                with errors_at(f"stages.{stage}.{role}: models.{name}"):
                    load(role, name)


def _configured(recipe: Recipe) -> Iterator[tuple[str, Callable[..., Any], str, dict[str, Any]]]:
    """Every stage and row: its place in the recipe, the function that returns its configuration, its name and body."""
    for stage, body in recipe.stages.items():
        yield f"stages.{stage}.args", stage_config, stage, body
    for row, body in recipe.rows.items():
        yield f"evaluation.rows.{row}", row_config, row, body


def _check_index_files(place: str, settings: dict[str, Any]) -> None:
    for name in ("index", "index_ids"):
        path = settings.get(name)
        if path is not None and not Path(path).exists():
            raise RecipeError(f"{place}.{name}: {path}: no such file; build it first, or correct its path")
