"""A run that is killed wherever it may be, and continued, ends where the uninterrupted one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_tiny_collection
from tiny_ar2 import TRAINERS, make_trainer
from transformers import TrainerCallback

from hf_ar2.trainers.checkpoints import fingerprints, last_complete_checkpoint

pytestmark = pytest.mark.slow

# Rounds of four steps, the last one cut short; the checkpoint at a round's end is written before its evaluation.
STEPS = 7
ROUNDS = {"per_device_train_batch_size": 6, "ranker_steps": 2, "retriever_steps": 2, "num_rounds": 2}
ROUNDS |= {"steps_per_round": 4, "list_depth": 10, "max_steps": STEPS, "logging_steps": 3}
ROUNDS |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "epoch"}
# Where the run is killed, one after the other: event and global step.
KILLS = {
    "before the first step": ("on_train_begin", 0),
    "between two checkpoints": ("on_step_end", 3),
    "at a round's end": ("on_save", 4),
    "between evaluation and refresh": ("on_evaluate", 4),
    "between refresh and step": ("on_epoch_begin", 4),
    "within a round": ("on_save", 6),
    "at the last step": ("on_save", STEPS),
    "after the last save": ("on_train_end", STEPS),
}


class Killed(BaseException):
    """Passes all handlers of errors."""


class Kill(TrainerCallback):
    """Ends a run in one of its events."""

    def __init__(self, event: str, step: int) -> None:
        def kill(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise Killed

        setattr(self, event, kill)


def make(name: str, models: Path, folder: Path, **settings: Any) -> Any:
    known = TRAINERS[name][1].__dataclass_fields__
    chosen = {key: value for key, value in ROUNDS.items() if key in known}
    chosen |= {"num_negatives": 0} if name == "ltre" else {}
    return make_trainer(name, models, folder, make_tiny_collection(), **{**chosen, **settings})


def outcome(trainer: Any) -> tuple[Any, ...]:
    """Weights, steps and log, without times and what is only known of a step as it is taken."""
    left_out = {"search_share"} | (
        {"grad_norm", "learning_rate"} if trainer.args.logging_strategy == "epoch" else set()
    )
    entries = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    log = [{key: value for key, value in entry.items() if key not in left_out} for entry in entries]
    return fingerprints(trainer.model), trainer.state.global_step, log


PATIENT = {"patience": 1, "learning_rate": 0.3, "max_steps": 40, "eval_strategy": "steps", "eval_steps": 2}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "ranker_mrr@5", "eval_metrics": ["mrr@5"]}


@pytest.mark.parametrize(
    ("name", "settings", "never"),
    [
        *((name, {}, []) for name in TRAINERS),
        ("retriever", {"max_steps": 8, "logging_strategy": "epoch", "num_negatives": 0}, []),
        ("ranker", {"save_strategy": "epoch", **BEST}, ["between evaluation and refresh", "within a round"]),
        ("retriever", PATIENT, ["between evaluation and refresh", "within a round"]),
    ],
)
def test_a_run_that_is_killed_at_every_boundary_ends_like_one_that_is_not(
    name, settings, never, models, tmp_path
):
    whole = make(name, models, tmp_path / "whole", **settings)
    whole.train()
    last = whole.state.global_step
    assert last == (whole.round_state.get("end_step") or settings.get("max_steps", STEPS))
    for place in [place for place in KILLS if place not in never]:
        event, step = KILLS[place]
        trainer = make(name, models, tmp_path / "killed", **settings)
        trainer.add_callback(Kill(event, last if step == STEPS else step))
        with pytest.raises(Killed):
            trainer.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path / "killed"))
    trainer = make(name, models, tmp_path / "killed", **settings)
    trainer.train(resume_from_checkpoint=True)
    assert outcome(trainer) == outcome(whole)
