"""A small run as a script, for tests that need a process of their own (a kill, two ranks)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import make_tiny_collection, with_passages
from transformers import TrainerCallback
from two_processes import leave

from hf_ar2.collections import Collection, join_collections
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    LTReConfig,
    LTReTrainer,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
    RocketQAv2Config,
    RocketQAv2Trainer,
)
from hf_ar2.trainers.checkpoints import fingerprints

TRAINERS: dict[str, Any] = {
    "ar2": (AR2Trainer, AR2Config),
    "rocketqa-v2": (RocketQAv2Trainer, RocketQAv2Config),
    "ranker": (RankerTrainer, RankerConfig),
    "ltre": (lambda retriever, _, **given: LTReTrainer(retriever, **given), LTReConfig),
    "retriever": (lambda retriever, _, **given: RetrieverTrainer(retriever, **given), RetrieverConfig),
}

SETTINGS: dict[str, Any] = {
    "num_rounds": 2,
    "ranker_steps": 3,
    "retriever_steps": 4,
    "learning_rate": 1e-3,
    "ranker_learning_rate": 1e-3,
    "num_negatives": 3,
    "pool_depth": 10,
    "eval_depth": 20,
    "rerank_depth": 5,
    "teacher_gate": "off",
    "eval_metrics": ["mrr@10"],
    "max_passage_length": 32,
    "max_pair_length": 48,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "bf16": False,
}


# Neither evaluates nor saves.
QUIET: dict[str, Any] = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}


class KillAfter(TrainerCallback):
    """Sends this process SIGKILL once a step is done, as a machine that is taken away does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def without_dropout(model: torch.nn.Module) -> Any:
    """Turns dropout off, for comparisons in which generator states differ by design."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def settings_of(config: type) -> dict[str, Any]:
    """Those of the settings above that a trainer's configuration has."""
    fields = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in SETTINGS.items() if name in fields}


def make_trainer(
    name: str,
    models: Path,
    output: Path,
    collection: Collection,
    *,
    dropout: bool = True,
    callbacks: list[TrainerCallback] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of the tiny models, with settings on top of those above."""
    retriever = load_retriever(models / "tiny-retriever", device="cpu")
    ranker = load_ranker(models / "tiny-ranker", device="cpu")
    if not dropout:
        retriever, ranker = without_dropout(retriever), without_dropout(ranker)
    trainer_class, config = TRAINERS[name]
    args = config(output_dir=str(output), **{**settings_of(config), **settings})
    return trainer_class(retriever, ranker, args=args, collection=collection, callbacks=callbacks)


def losses(log: list[dict[str, Any]]) -> list[float]:
    """The losses of a log, in its order."""
    return [entry["loss"] for entry in log if "loss" in entry]


def snapshot(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters, by name."""
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def moved(trainer: Any, before: dict[str, torch.Tensor]) -> set[str]:
    """The names of the parameters that are not as they were in a snapshot."""
    after = trainer.model.named_parameters()
    return {name for name, weight in after if not torch.equal(weight, before[name])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trainer", choices=TRAINERS, default="ar2")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--kill_after", type=int)
    parser.add_argument("--killed_rank", type=int, default=0)
    parser.add_argument("--answers", action="store_true", help="give queries answers")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--passages", type=int, default=60)
    parser.add_argument("--no_dropout", action="store_true")
    parser.add_argument("--joined", action="store_true", help="train on two collections")
    parser.add_argument("--own_disks", action="store_true", help="a folder for each process, in the output")
    options = parser.parse_args()
    if options.own_disks:
        options.output = own_disk(options.output)
    train(options)
    sys.stdout.flush()
    sys.stderr.flush()
    leave()


def two_collections() -> Collection:
    """Two tiny collections in one; the second has a larger weight."""
    return join_collections(
        {"a": make_tiny_collection(), "b": make_tiny_collection(seed=1)}, weights={"b": 3}
    )


def own_disk(output: Path) -> Path:
    """A folder that only this process knows, as the disk of its machine."""
    return output / f"disk-{os.environ['RANK']}"


def train(options: argparse.Namespace) -> None:
    """Train, and write what the first process ended with."""
    collection = (
        two_collections() if options.joined else with_passages(make_tiny_collection(), options.passages)
    )
    if options.answers:
        answers = [[text.split()[-2]] for text in collection.queries["text"]]
        collection = dataclasses.replace(
            collection, queries=collection.queries.add_column("answers", answers)
        )
    kills = options.kill_after and int(os.environ.get("RANK", 0)) == options.killed_rank
    trainer = make_trainer(
        options.trainer,
        options.models,
        options.output,
        collection,
        dropout=not options.no_dropout,
        callbacks=[KillAfter(options.kill_after)] if kills else None,
        **options.settings,
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.gather_weights()
    if trainer.is_world_process_zero():
        codebook = trainer.model.codebook
        result = {
            "centroids": None if codebook is None else codebook.centroids.tolist(),
            "world_size": trainer.encoders.processes.world_size,
            "log": trainer.state.log_history,
            "weights": fingerprints(trainer.whole),
        }
        (options.output / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
