"""Runs a recipe: its stages, each once, then the evaluation of what they trained."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import transformers
import yaml
from accelerate import PartialState

from hf_ar2.augmentation import augment
from hf_ar2.cards.environment import describe_environment
from hf_ar2.cards.facts import hub_id
from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.joined import texts_of_sources
from hf_ar2.collections.questions import query_sources
from hf_ar2.encoding.processes import Processes
from hf_ar2.files import check_files, files_in, read_json, write_json, write_note, write_text
from hf_ar2.index.encodings import Encodings, encoding_name
from hf_ar2.lock import locked
from hf_ar2.models.limits import position_count, set_length_limit
from hf_ar2.models.loading import LOADING_OPTIONS, load_ranker, load_retriever
from hf_ar2.progress import format_duration
from hf_ar2.recipes.budget import Budget, more_time, time_table
from hf_ar2.recipes.checks import check_collection, check_recipe
from hf_ar2.recipes.costs import encodes
from hf_ar2.recipes.encodings import forget_encodings
from hf_ar2.recipes.evaluation import evaluate_rows
from hf_ar2.recipes.finish import finish
from hf_ar2.recipes.guard import evaluate_guard, load_guard
from hf_ar2.recipes.inputs import INPUTS, Inputs, check_minutes, check_run_folder
from hf_ar2.recipes.lengths import Length
from hf_ar2.recipes.merging import check_merges, merge
from hf_ar2.recipes.planning import describe_plan, plan_identity, plan_run, without_useless_stages
from hf_ar2.recipes.questions import with_recipe_questions
from hf_ar2.recipes.recipe import (
    Recipe,
    RecipeError,
    encodings_folder,
    errors_at,
    lists_folder,
    on_every_machine,
    say,
    source_name,
    stage_config,
)
from hf_ar2.report.times import EVALUATION, minutes_note
from hf_ar2.search.run_index import SEARCHED_INDEX
from hf_ar2.search.runs import model_fields, with_level_of
from hf_ar2.settings.secrets import without_secrets
from hf_ar2.trainers import (
    AR2Trainer,
    JointConfig,
    JointTrainer,
    LTReTrainer,
    RankerTrainer,
    RetrieverTrainer,
    RocketQAv2Trainer,
)
from hf_ar2.trainers.arguments import naming
from hf_ar2.trainers.checkpoints import last_complete_checkpoint, read_run


def run_recipe(recipe: Recipe) -> Path:
    """Run every stage that is not done, evaluate, and write everything to the run folder, which is returned.

    `FolderInUse` is raised if another run writes to the run folder.
    """
    run = Path(recipe.output_dir)
    check_recipe(recipe, run)
    budget = Budget(run, None if recipe.minutes is None else recipe.minutes * 60, recipe.clock)
    state = PartialState()
    with locked(run, budget.write) if state.is_main_process else nullcontext():
        Processes.current(state.device).remove_leftovers(run)
        on_every_machine(run)
        _run_stages(recipe, run, budget)
    return run


def _run_stages(recipe: Recipe, run: Path, budget: Budget) -> None:
    started = time.time()
    load = partial(load_model, recipe, run)
    check_minutes(recipe, run)
    check_done_stages(recipe, run)
    say(f"{recipe.name}: {recipe.collection} → {run}")
    searched = with_level_of(vars(recipe), load_collection(recipe.collection))
    collection = searched.for_training()
    say(repr(collection))
    whole = with_recipe_questions(recipe, searched)  # for the evaluation alone
    check_collection(recipe, collection, run, load)
    identity = plan_identity(recipe)
    recipe, left_out = without_useless_stages(recipe, collection)
    if left_out:
        say(left_out)
    plan, costs, part = None, None, collection
    if recipe.minutes is not None or any("max_epochs" in body for body in recipe.stages.values()):
        first = next(body["retriever"] for body in recipe.stages.values() if "retriever" in body)
        plan, costs, part = plan_run(recipe, identity, run, collection, budget, load("retriever", first))
    all_stages = recipe
    if plan is not None and costs is not None and budget.seconds is not None:
        recipe = plan.recipe  # without the stages for which there is too little time
        say(f"\n{describe_plan(plan, costs, budget.seconds, len(collection.corpus))}")
    guard = load_guard(recipe)
    inputs = Inputs(recipe, collection, guard)
    check_run_folder(run, inputs)
    check_merges(recipe, collection, run, load)
    state = PartialState()
    state.wait_for_everyone()  # all processes have read the folder before one writes to it
    if state.is_main_process:
        write_run_header(run, recipe, query_sources(collection))
    length = Length(plan, budget, costs, part is not collection)
    for number, stage in enumerate(recipe.stages, 1):
        # A stage that encodes no passages trains on all queries.
        trained_on = part if encodes(recipe, stage) else collection
        run_stage(stage, run, trained_on, inputs, f"[{number}/{len(recipe.stages)}] {stage}", length)
        budget.write()
    budget.stage = evaluating = Budget(run / EVALUATION, None)
    if recipe.rows:
        chosen_on = part if part is not collection else None
        evaluate_rows(recipe, run, collection, whole, inputs, load, budget.close, chosen_on)
        if guard is not None:
            evaluate_guard(recipe, run, guard, inputs, load)
    evaluating.write()
    budget.stage = None
    state.wait_for_everyone()
    if state.is_main_process:
        times = time_table(run, recipe, evaluating.spent)
        if note := minutes_note(run, vars(recipe)):
            times += f"\n{textwrap.fill(note, 80)}"
        if costs is not None and budget.seconds is not None:
            times += f"\n{textwrap.fill(more_time(all_stages, budget.seconds, costs), 100)}"
        finish(recipe, run, whole, time.time() - started, load, times)
    state.wait_for_everyone()
    Encodings(encodings_folder(run)).keep_only([])  # those on the disks of other machines


def run_stage(
    stage: str, run: Path, collection: Collection, inputs: Inputs, title: str, length: Length
) -> None:
    """Run one stage, from its last complete checkpoint or block of scores; nothing if it is done."""
    recipe, folder = inputs.recipe, run / "stages" / stage
    key = recipe.stage_key(stage)
    done = folder / "done.json"
    if done.is_file():
        say(f"{title}: done before, {format_duration(read_json(done, {})['seconds'])}")
        remove_index(folder)  # a kill may have come before it
        return
    say(f"\n{title}")
    state = PartialState()
    state.wait_for_everyone()  # all processes have looked for done.json before one writes
    if state.is_main_process:
        write_text(folder / "key.txt", key)
        write_json(folder / INPUTS, inputs.of_stage(stage))
    length.budget.stage = spent = Budget(folder, None)  # also of the attempts before this one
    try:
        trainer = recipe.stages[stage]["trainer"]
        if trainer == "augment":
            report = write_lists(recipe, stage, run, collection)
        elif trainer == "merge":
            report = merge(recipe, stage, run, collection, inputs.guard, partial(load_model, recipe, run))
        else:
            report = train(recipe, stage, run, collection, title, length)
    finally:
        length.budget.write()
        length.budget.stage = None
    if state.is_main_process:
        write_note(done, {**report, "key": key, "seconds": spent.spent}, _results_of(folder))
        remove_index(folder)
    on_every_machine(run)
    forget_encodings(recipe, run)
    state.wait_for_everyone()


def remove_index(folder: Path) -> None:
    """Delete the index and the pool of a stage that is done."""
    for name in ("index", "pool"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _results_of(folder: Path) -> list[Path]:
    """The files in a stage's folder that later stages, rows and the report read."""
    parts = ("retriever", "query_encoder", "ranker", "base", "lists", SEARCHED_INDEX)
    return [file for part in parts for file in files_in(folder / part)] + [*folder.glob("trainer_state.json")]


def check_done_stages(recipe: Recipe, run: Path) -> None:
    """Check that the files of finished stages are as they were written; older stages have no checksums, and pass."""
    for stage in recipe.stages:
        folder = run / "stages" / stage
        checksums = read_json(folder / "done.json", {}).get("checksums", {})
        check_files(folder, checksums, f"Delete {folder} to run this stage again.")


def train(
    recipe: Recipe, stage: str, run: Path, collection: Collection, title: str, length: Length
) -> dict[str, Any]:
    """Train a stage's models and save them in its folder; returns what done.json records."""
    folder = run / "stages" / stage
    transformers.set_seed(recipe.seed)
    args = stage_config(recipe, stage, run)
    # A checkpoint of the models alone is for `load_best_model_at_end`; a stage cannot continue from it.
    models_only = args.save_only_model
    checkpoint = None if models_only else last_complete_checkpoint(folder)
    if checkpoint:
        keep_lists_of_step(args, read_run(Path(checkpoint))["run"]["global_batch"], stage)
    trainer = make_trainer(recipe, stage, run, collection, args)
    if length.plan is not None or "max_epochs" in recipe.stages[stage]:
        say(f"{title}: {length.set(trainer, recipe.stages[stage], folder, stage)}")
    PartialState().wait_for_everyone()  # all processes have looked
    if checkpoint is None and PartialState().is_main_process:
        for left in folder.glob("checkpoint-*"):  # of an attempt that is not continued
            shutil.rmtree(left)
    if checkpoint:
        say(f"{title}: continues from {Path(checkpoint).name}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if PartialState().is_main_process:
        if isinstance(trainer, LTReTrainer) and trainer.index_is_its_own:
            trainer.save_index(folder / SEARCHED_INDEX)
        write_json(folder / "trainer_state.json", asdict(trainer.state))
        for best in folder.glob("checkpoint-*") if models_only else ():
            shutil.rmtree(best)
    return {
        **trainer.training_summary(),
        "steps": trainer.state.global_step,
        "parts": dict(trainer.step_log.seconds),
        # Those of the weights that the stage started with and ended with.
        "encodings": {
            source_name(recipe.stages[stage]["retriever"]): trainer.retrieval.start,
            stage: trainer.retrieval.encoding,
        },
    }


def keep_lists_of_step(args: JointConfig, lists: int, stage: str) -> None:
    """Divide the lists of a step that the stage began with among the processes, whose number may have changed."""
    steps, processes = args.gradient_accumulation_steps, max(1, args.world_size)
    if lists % (steps * processes):
        raise RecipeError(
            f"stage {stage}: it began with {lists} lists in a step, which {processes} processes cannot share evenly; "
            "continue with another number of processes"
        )
    args.per_device_train_batch_size = lists // (steps * processes)


def make_trainer(recipe: Recipe, stage: str, run: Path, collection: Collection, args: Any) -> JointTrainer:
    """The stage's trainer, with the models it starts from."""
    body = recipe.stages[stage]
    retriever = load_model(recipe, run, "retriever", body["retriever"])
    if body["trainer"] == "retriever":
        return RetrieverTrainer(retriever, args, collection)
    if body["trainer"] == "ltre":
        name = source_name(body["retriever"])
        start = recipe.models[name]["model"] if name in recipe.models else f"stage {name} of {recipe.name}"
        ltre = LTReTrainer(retriever, args, collection)
        ltre.publisher.sources["retriever"] = str(start)
        return ltre
    ranker = load_model(recipe, run, "ranker", body["ranker"])
    if body["trainer"] == "ranker":
        return RankerTrainer(retriever, ranker, args, collection)
    joint = AR2Trainer if body["trainer"] == "ar2" else RocketQAv2Trainer
    return joint(retriever, ranker, args, collection)


def write_lists(recipe: Recipe, stage: str, run: Path, collection: Collection) -> dict[str, Any]:
    """Write the training lists of a stage that augments; tokens, encodings and scores are shared within the run."""
    body = recipe.stages[stage]
    models: dict[str, Any] = {
        role: load_model(recipe, run, role, body[role]).to(PartialState().device)
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


def load_model(recipe: Recipe, run: Path, role: str, source: Any) -> Any:
    """The retriever or ranker that a stage or a row names: one of the recipe's, or one that a stage trained."""
    name = source_name(source)
    fields = model_fields(vars(recipe), run, source, role)
    pair_length: int | None = None
    # A ranker may start from the encoder of a retriever that was warmed up.
    if role == "ranker" and name in recipe.stages and not Path(fields["model"]).is_dir():
        fields = model_fields(vars(recipe), run, source, "retriever")
        pair_length = recipe.args.get("max_pair_length")
        say(f"The ranker starts as the encoder of stage {name!r} with a new head.")
    model = fields.pop("model")
    # A new head is drawn from the seed, whatever was drawn before.
    transformers.set_seed(recipe.seed)
    known = ("layers", "max_length", "dropout", "lora", "prompts", "dtype", *LOADING_OPTIONS)
    place = f"models.{name}" if name in recipe.models else f"{role} of stage {name!r}"
    with errors_at(place, (ValueError, OSError)), naming(role, model):
        if role == "retriever":
            return load_retriever(model, **fields)
        ranker = load_ranker(model, **{key: value for key, value in fields.items() if key in known})
    # The retriever's own limit is that of single texts; an error now would end a run whose other stages are trained.
    if pair_length is not None and "max_length" not in fields:
        set_length_limit(ranker, min(pair_length, position_count(ranker) or pair_length))
    return ranker


def write_run_header(run: Path, recipe: Recipe, sources: dict[str, dict[str, int]]) -> None:
    """Write the resolved recipe and the environment, so that a run can be repeated, and where the queries come from."""
    body = {key: value for key, value in vars(recipe).items() if key != "output_dir"}
    write_text(run / "recipe.yaml", yaml.safe_dump(without_secrets(body), sort_keys=False))
    models = [body["model"] for body in recipe.models.values()]
    names = [*texts_of_sources(recipe.collection).values(), *models, recipe.guard]
    names = without_secrets([name for name in names if name])
    environment = {
        **describe_environment(),
        "processes": PartialState().num_processes,
        "command": shlex.join(without_secrets(sys.argv)),
        "on_the_hub": [name for name in names if hub_id(name)],
    }
    if sources:
        environment["query_sources"] = sources
    write_json(run / "environment.json", environment)
