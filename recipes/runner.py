"""Runs a recipe: its stages, each once, then the evaluation of what came out."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import transformers
import yaml
from accelerate import PartialState
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.augmentation import augment
from hf_ar2.cards.environment import describe_environment
from hf_ar2.cards.facts import hub_id
from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.sources import query_sources
from hf_ar2.index.encodings import encoding_name
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.recipes.budget import Budget, encodes
from hf_ar2.recipes.checks import check_files, check_indexes, check_settings, check_splits
from hf_ar2.recipes.encodings import encodings_folder, forget_encodings
from hf_ar2.recipes.evaluation import check_evaluation, evaluate_rows, finish
from hf_ar2.recipes.guard import evaluate_guard, load_guard
from hf_ar2.recipes.inputs import INPUTS, Inputs, refuse_other_inputs
from hf_ar2.recipes.lengths import Length
from hf_ar2.recipes.merging import check_merges, merge
from hf_ar2.recipes.planning import describe_plan, plan_run
from hf_ar2.recipes.questions import check_questions, with_recipe_questions
from hf_ar2.recipes.recipe import Recipe, RecipeError, source_changes, source_name
from hf_ar2.recipes.stage_settings import lists_folder, stage_config
from hf_ar2.recipes.time_table import more_time, time_table
from hf_ar2.search.run_index import SEARCHED_INDEX
from hf_ar2.trainers import (
    AR2Trainer,
    JointTrainer,
    LTReTrainer,
    RankerTrainer,
    RetrieverTrainer,
    RocketQAv2Trainer,
)
from hf_ar2.trainers.checkpoints import last_complete_checkpoint


def run_recipe(recipe: Recipe) -> Path:
    """Run every stage that is not done, evaluate, and leave a run folder that says all of it.

    Returns:
        The run folder.
    """
    started, given = time.time(), recipe
    run = Path(recipe.output_dir)
    check_settings(recipe, run)
    check_files(recipe)
    check_questions(recipe)
    say(f"{recipe.name}: {recipe.collection} → {run}")
    collection = load_collection(recipe.collection).for_training()
    say(repr(collection))
    asked = with_recipe_questions(recipe, collection)  # what is trained does not depend on them
    check_splits(recipe, collection, run)
    check_evaluation(recipe, collection)
    check_indexes(recipe, run, lambda name: load_model(recipe, "retriever", name, run))
    budget = Budget(run, None if recipe.minutes is None else recipe.minutes * 60, recipe.clock)
    plan, costs, part = None, None, collection
    if recipe.minutes is not None or any("max_epochs" in body for body in recipe.stages.values()):
        first = next(body["retriever"] for body in recipe.stages.values() if "retriever" in body)
        retriever = load_model(recipe, "retriever", first, run)
        assert isinstance(retriever, SentenceTransformer)
        plan, costs, part = plan_run(recipe, run, collection, budget, retriever)
        del retriever
    if plan is not None and costs is not None and budget.seconds is not None:
        recipe = plan.recipe  # without the stages that the minutes do not reach to
        say(f"\n{describe_plan(plan, costs, budget.seconds, len(collection.corpus))}")
    refuse_other_settings(recipe, run)

    def load(role: str, source: Any) -> SentenceTransformer | CrossEncoder:
        return load_model(recipe, role, source, run)

    check_merges(recipe, collection, run, load)
    guard = load_guard(recipe)
    inputs = Inputs(recipe, collection, guard)
    refuse_other_inputs(run, inputs)
    state = PartialState()
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        write_run_header(run, recipe, query_sources(collection))
    length = Length(plan, budget, costs, part is not collection)
    for number, stage in enumerate(recipe.stages, 1):
        # What needs no encoding trains on all queries.
        trained_on = part if encodes(recipe, stage) else collection
        run_stage(recipe, stage, run, trained_on, inputs, f"[{number}/{len(recipe.stages)}] {stage}", length)
        budget.note()
    trained = time.time()
    if recipe.evaluation.get("rows"):
        chooses = part if part is not collection else None
        evaluate_rows(recipe, run, asked, inputs, load, budget.note, chooses)
        if guard is not None:
            evaluate_guard(recipe, run, guard, inputs, load)
    state.wait_for_everyone()
    if state.is_main_process:
        times = time_table(run, recipe, time.time() - trained)
        if costs is not None and budget.seconds is not None:
            times += f"\n{more_time(given, budget.seconds, costs)}"
        finish(recipe, run, asked, time.time() - started, load, times)
    state.wait_for_everyone()
    return run


def refuse_other_settings(recipe: Recipe, run: Path) -> None:
    """Refuse a run folder whose stages were run with other settings, before anything in it is touched."""
    for stage in recipe.stages:
        started = run / "stages" / stage / "key.txt"
        if started.is_file() and started.read_text() != recipe.stage_key(stage):
            raise RecipeError(
                f"{started.parent}: this stage was run with other settings. Choose another --output_dir, or delete the "
                "folder to run it again"
            )


def run_stage(
    recipe: Recipe,
    stage: str,
    run: Path,
    collection: Collection,
    inputs: Inputs,
    title: str,
    length: Length,
) -> None:
    """Run one stage, from its last complete checkpoint or block of scores; nothing if it is done."""
    folder = run / "stages" / stage
    key = recipe.stage_key(stage)
    done = folder / "done.json"
    if done.is_file():
        say(f"{title}: done before, {json.loads(done.read_text())['seconds']:.0f} s")
        return
    say(f"\n{title}")
    # Every process has looked before one of them writes.
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key.txt").write_text(key)
        (folder / INPUTS).write_text(json.dumps(inputs.of_stage(stage), indent=1))
    started = time.time()
    if recipe.stages[stage]["trainer"] == "augment":
        report = write_lists(recipe, stage, run, collection)
    elif recipe.stages[stage]["trainer"] == "merge":
        report = merge(
            recipe,
            stage,
            run,
            collection,
            inputs.guard,
            lambda role, name: load_model(recipe, role, name, run),
        )
    else:
        report = train(recipe, stage, run, collection, folder, title, length)
    if PartialState().is_main_process:
        done.write_text(json.dumps({**report, "key": key, "seconds": time.time() - started}))
        for leftover in ("index", "pool"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        forget_encodings(recipe, run)
    PartialState().wait_for_everyone()


def train(
    recipe: Recipe, stage: str, run: Path, collection: Collection, folder: Path, title: str, length: Length
) -> dict[str, Any]:
    """Train a stage's models, and leave them in its folder."""
    transformers.set_seed(recipe.seed)
    trainer = make_trainer(recipe, stage, run, collection)
    if length.plan is not None or "max_epochs" in recipe.stages[stage]:
        say(f"{title}: {length.set(trainer, recipe.stages[stage], folder, stage)}")
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint:
        say(f"{title}: continues from {Path(checkpoint).name}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if isinstance(trainer, LTReTrainer) and trainer.index_is_its_own and PartialState().is_main_process:
        trainer.save_index(folder / SEARCHED_INDEX)
    if PartialState().is_main_process:
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
    return {
        **trainer.training_summary(),
        "steps": trainer.state.global_step,
        "parts": dict(trainer.step_log.seconds),
        # of the weights the stage started from, and of those it ended with
        "encodings": {
            source_name(recipe.stages[stage]["retriever"]): trainer.retrieval.start,
            stage: trainer.retrieval.encoding,
        },
    }


def make_trainer(recipe: Recipe, stage: str, run: Path, collection: Collection) -> JointTrainer:
    """The stage's trainer, with the models it starts from."""
    body = recipe.stages[stage]
    args = stage_config(recipe, stage, run)
    retriever: Any = load_model(recipe, "retriever", body["retriever"], run)
    if body["trainer"] == "retriever":
        return RetrieverTrainer(retriever, args, collection)
    if body["trainer"] == "ltre":
        ltre = LTReTrainer(retriever, args, collection)
        ltre.publisher.sources["retriever"] = source_of(recipe, body["retriever"])
        return ltre
    ranker: Any = load_model(recipe, "ranker", body["ranker"], run)
    if body["trainer"] == "ranker":
        return RankerTrainer(retriever, ranker, args, collection)
    joint = AR2Trainer if body["trainer"] == "ar2" else RocketQAv2Trainer
    return joint(retriever, ranker, args, collection)


def write_lists(recipe: Recipe, stage: str, run: Path, collection: Collection) -> dict[str, Any]:
    """Write an augmenting stage's training lists; tokens, encodings and scores are shared by the stages of the run."""
    body = recipe.stages[stage]
    models: dict[str, Any] = {
        role: load_model(recipe, role, body[role], run).to(PartialState().device)
        for role in ("retriever", "ranker")
    }
    args = stage_config(recipe, stage, run)
    lists = augment(
        collection,
        models["retriever"],
        models["ranker"],
        lists_folder(run, stage),
        args,
        names={role: source_name(body[role]) for role in models},
        work_folder=run,
        index_dir=encodings_folder(run),
    )
    kinds = Counter(lists.dataset["kind"])
    say(f"{stage}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) + " lists")
    encoding = encoding_name(lists.manifest["index_fingerprint"], args.index_dtype)
    return {
        "lists": dict(kinds),
        "settings": recipe.stage_args(stage),
        "encodings": {source_name(body["retriever"]): encoding},
    }


def source_of(recipe: Recipe, source: Any) -> str:
    """What a card calls the model a stage starts from: its name or folder, or the stage that trained it."""
    name = source_name(source)
    return str(recipe.models[name]["model"]) if name in recipe.models else f"stage {name} of {recipe.name}"


def load_model(recipe: Recipe, role: str, source: Any, run: Path) -> SentenceTransformer | CrossEncoder:
    """The model a stage or a row names: one of the recipe's, or what an earlier stage left."""
    name = source_name(source)
    fields = dict(recipe.models.get(name, {}))
    if name in recipe.stages:
        folder = run / "stages" / name / role
        # A ranker may start from the encoder of a retriever that was warmed up.
        if not folder.is_dir() and role == "ranker":
            folder = run / "stages" / name / "retriever"
            say(f"The ranker gets a fresh head on the encoder of stage {name!r}.")
        fields["model"] = str(folder)
    fields |= source_changes(source)
    model = fields.pop("model")
    # A fresh head is drawn from the seed, whatever was drawn before.
    transformers.set_seed(recipe.seed)
    if role == "retriever":
        return load_retriever(model, **fields)
    allowed = {key: value for key, value in fields.items() if key in ("layers", "max_length", "dropout")}
    return load_ranker(model, **allowed)


def write_run_header(run: Path, recipe: Recipe, sources: dict[str, dict[str, int]]) -> None:
    """The resolved recipe and the environment, so that a run can be repeated, and where the queries come from."""
    run.mkdir(parents=True, exist_ok=True)
    body = {key: value for key, value in vars(recipe).items() if key != "output_dir"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    names = [recipe.collection, *(body["model"] for body in recipe.models.values())]
    names += [recipe.guard] if recipe.guard else []
    environment = {
        **describe_environment(),
        "processes": PartialState().num_processes,
        "command": " ".join(sys.argv),
        "on_the_hub": [name for name in names if hub_id(name)],
    }
    if sources:
        environment["query_sources"] = sources
    (run / "environment.json").write_text(json.dumps(environment, indent=1))


def say(text: str) -> None:
    """Print on the first process."""
    if PartialState().is_main_process:
        print(text, flush=True)
