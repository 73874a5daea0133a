"""Runs a recipe: its stages, each once, then the evaluation of what came out."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from accelerate import PartialState
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.collections import Collection, load_collection
from hf_ar2.models import load_ranker, load_retriever
from hf_ar2.recipes.evaluation import evaluate_rows, finish
from hf_ar2.recipes.recipe import CONFIGS, Recipe, RecipeError, source_name
from hf_ar2.trainers import AR2Trainer, JointTrainer, RankerTrainer, RetrieverTrainer
from hf_ar2.trainers.checkpoints import last_complete_checkpoint

PACKAGES = ("torch", "transformers", "sentence-transformers", "datasets", "accelerate", "numpy", "faiss-cpu")


def run_recipe(recipe: Recipe, recipe_path: str) -> Path:
    """Run every stage that is not done, evaluate, and leave a run folder that says all of it.

    Returns:
        The run folder.
    """
    started = time.time()
    run = Path(recipe.output_dir)
    state = PartialState()
    if state.is_main_process:
        write_run_header(run, recipe)
    say(f"{recipe.name}: {recipe.collection} → {run}")
    collection = load_collection(recipe.collection)
    say(repr(collection))
    for number, stage in enumerate(recipe.stages, 1):
        run_stage(recipe, stage, run, collection, f"[{number}/{len(recipe.stages)}] {stage}")
    if recipe.evaluation.get("rows"):
        evaluate_rows(recipe, run, collection, lambda role, source: load_model(recipe, role, source, run))
    state.wait_for_everyone()
    if state.is_main_process:
        finish(recipe, run, recipe_path, time.time() - started)
    state.wait_for_everyone()
    return run


def run_stage(recipe: Recipe, stage: str, run: Path, collection: Collection, title: str) -> None:
    """Train one stage, from its last complete checkpoint if there is one; nothing if it is done."""
    folder = run / "stages" / stage
    key = recipe.stage_key(stage)
    done = folder / "done.json"
    started_key = folder / "key.txt"
    if started_key.is_file() and started_key.read_text() != key:
        raise RecipeError(
            f"{folder}: this stage was run with other settings. Choose another --output_dir, or delete the folder to "
            "run it again"
        )
    if done.is_file():
        say(f"{title}: done before, {json.loads(done.read_text())['seconds']:.0f} s")
        return
    say(f"\n{title}")
    # Every process has looked before one of them writes.
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        started_key.write_text(key)
    transformers.set_seed(recipe.seed)
    trainer = make_trainer(recipe, stage, run, collection, folder)
    started = time.time()
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint:
        say(f"{title}: continues from {Path(checkpoint).name}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if PartialState().is_main_process:
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        done.write_text(
            json.dumps({"key": key, "seconds": time.time() - started, "steps": trainer.state.global_step})
        )
        for leftover in ("index", "pool"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
    PartialState().wait_for_everyone()


def make_trainer(recipe: Recipe, stage: str, run: Path, collection: Collection, folder: Path) -> JointTrainer:
    """The stage's trainer, with the models it starts from."""
    body = recipe.stages[stage]
    settings = recipe.stage_args(stage)
    settings.setdefault("cache_dir", str(run / "cache"))
    args: Any = CONFIGS[body["trainer"]](output_dir=str(folder), **settings)
    retriever = load_model(recipe, "retriever", body["retriever"], run)
    if body["trainer"] == "retriever":
        return RetrieverTrainer(retriever, args=args, collection=collection)
    ranker = load_model(recipe, "ranker", body["ranker"], run)
    if body["trainer"] == "ranker":
        return RankerTrainer(ranker, retriever, args=args, collection=collection)
    return AR2Trainer(retriever, ranker, args=args, collection=collection)


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
    if isinstance(source, dict):
        fields |= {key: value for key, value in source.items() if key != "from"}
    model = fields.pop("model")
    # A fresh head is drawn from the seed, whatever was drawn before.
    transformers.set_seed(recipe.seed)
    if role == "retriever":
        return load_retriever(model, **fields)
    allowed = {key: value for key, value in fields.items() if key in ("layers", "max_length", "dropout")}
    return load_ranker(model, **allowed)


def write_run_header(run: Path, recipe: Recipe) -> None:
    """The resolved recipe and the environment, so that a run can be repeated."""
    run.mkdir(parents=True, exist_ok=True)
    body = {key: value for key, value in vars(recipe).items() if key != "output_dir"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    environment = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if _installed(name)},
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "processes": PartialState().num_processes,
        "command": " ".join(sys.argv),
    }
    (run / "environment.json").write_text(json.dumps(environment, indent=1))


def processor_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def say(text: str) -> None:
    """Print on the first process."""
    if PartialState().is_main_process:
        print(text, flush=True)


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True
