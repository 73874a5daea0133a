"""Opens the models, the collection and the index that a command names."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from hf_ar2.collections import load_collection
from hf_ar2.collections.questions import QUESTIONS, with_questions
from hf_ar2.command_line.arguments import ANY_MODEL
from hf_ar2.command_line.launch import is_run
from hf_ar2.folders import temporary_folder
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.progress import on_terminal
from hf_ar2.search.run_index import INDEX, TRAINING_INDEX, RunIndex
from hf_ar2.search.runs import read_finished_recipe, settings_of_run, with_level_of
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

# Options that change a retriever's embeddings, so that the run's index cannot be used.
CHANGES = ("truncate_dim", "passage_prompt")

Model = TypeVar("Model")


@contextlib.contextmanager
def opened_system(
    arguments: argparse.Namespace, *, ranker: bool = True, for_training: bool = False
) -> Iterator[SearchSystem]:
    """The models, collection and settings that the command line names: by a run folder, one by one, or both.

    Tokens and the index are kept in the run folder, or in a temporary folder if there is none, or if the retriever, its
    vectors or the collection are not the run's. The index that a run was evaluated with is searched, unless the command
    line names another index or other passages.

    With `for_training`, passages are read as in training (`Collection.for_training`), to reproduce a run's metrics. If
    they differ from those that users search, their index has a separate folder.
    """
    given = _without_none(vars(arguments))
    run = given.get("run") or (given["model"] if is_run(given.get("model")) else None)
    recipe = {} if run is None else read_finished_recipe(run)
    settings = Settings.of_models() if run is None else settings_of_run(recipe, run)
    run_index = None
    retriever_name, ranker_name = given.get("retriever") or given.get("model"), given.get("ranker")
    source = given.get("collection")
    kept = run is not None and not given.keys() & {"retriever", "collection", *CHANGES}
    if run is not None:
        if given.keys() & {"retriever", "ranker"}:  # the run chose for its own models
            settings = settings.changed({"system": "pipeline", "weight": 1.0, "pipeline_depth": None})
        retriever_name = given.get("retriever") or str(Path(run) / "retriever")
        if ranker_name is None and (Path(run) / "ranker").is_dir():
            ranker_name = str(Path(run) / "ranker")
        source = source or recipe["collection"]
        if kept and not given.keys() & {"index", "max_passage_length", "title_separator", "passage_template"}:
            run_index = RunIndex.from_run(run, recipe)
        if given.get("split") == QUESTIONS and "questions" not in given and recipe.get("questions"):
            given["questions"] = recipe["questions"]
    assert retriever_name is not None and source is not None
    settings = settings.changed(given)
    if run is None and given.get("model_dtype") == "float32":  # a run's index has the precision of its recipe
        settings = settings.changed({"bf16": False})
    if given.get("rerank_depth", 0) > settings.depth:
        raise ValueError(
            f"--rerank_depth {settings.rerank_depth}: expected at most the depth, {settings.depth}: a ranker reorders "
            "what the retriever found"
        )
    with contextlib.nullcontext(run) if run is not None and kept else temporary_folder() as work_folder:
        quiet()
        collection, index_name = with_level_of(recipe, load_collection(source)), INDEX
        if "questions" in given:
            collection = with_questions(collection, given["questions"])
        if for_training and (read := collection.for_training()) is not collection:
            collection, index_name = read, TRAINING_INDEX
        retriever = loaded_model(arguments, "retriever", retriever_name)
        second = None
        # A rerank_depth of 0 in the recipe is only about its evaluation.
        if ranker and ranker_name is not None and given.get("rerank_depth") != 0:
            second = loaded_model(arguments, "ranker", ranker_name)
        indexes: dict[str, Any] = {"run_index": run_index, "index_name": index_name}
        indexes["index_folder"] = given.get("index")
        yield SearchSystem(retriever, second, collection, settings, work_folder, **indexes)


def loaded_model(arguments: argparse.Namespace, role: str, name: str) -> Any:
    """The retriever or the ranker of this name, loaded as the command line says."""
    given = vars(arguments).get
    options = {option: given(option) for option in ("attn_implementation", "trust_remote_code")}
    options["dtype"] = given("model_dtype")
    if role == "retriever":
        options |= {"revision": given("revision"), "truncate_dim": given("truncate_dim")}
        prompts = {"query": given("query_prompt"), "document": given("passage_prompt")}
    else:
        options["revision"] = given("ranker_revision")
        prompts = {"query": given("ranker_prompt")}
    options["prompts"] = _without_none(prompts) or None
    load = load_retriever if role == "retriever" else load_ranker
    return loaded(role, name, partial(load, **_without_none(options)))


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def quiet() -> None:
    """Turn off progress bars and messages of other libraries; warnings are kept."""
    transformers_logging.disable_progress_bar()
    if not on_terminal():
        datasets.disable_progress_bars()
    logging.getLogger("httpx").setLevel(logging.WARNING)


def loaded(what: str, name: str, load: Callable[[str], Model], advice: str = ANY_MODEL) -> Model:
    """A model, or a ValueError that says which one cannot be loaded, why, and what was expected (`advice`).

    `what` is the role or the option that names the model.
    """
    try:
        return load(name)
    except (OSError, ValueError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{what} {name!r} contains custom code. Review it, then pass --trust_remote_code to run it"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{what} {name!r} cannot be loaded: {reason} Expected {advice}") from error
