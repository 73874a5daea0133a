"""Ends a run when the evaluation no longer rises: the learning rate decays from there, then training stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer


class Patience(TrainerCallback):
    """Chooses the last step of a run from its evaluations.

    After `patience` evaluations in a row that are not above the best one before them, the run gets its last step:
    with the schedule `warmup_stable_decay` the one that makes the decay its last `decay_share`, with any other the
    step it is at. The choice is part of a checkpoint (`JointTrainer.round_state`), so a resumed run ends where the
    uninterrupted one does.
    """

    def __init__(self, trainer: JointTrainer, patience: int) -> None:
        self.trainer = trainer
        self.patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run may have its last step already."""
        if self.trainer.end_step is not None:
            state.max_steps = self.trainer.end_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare with the best evaluation so far; the ones before the schedule has warmed up do not count."""
        trainer, noted = self.trainer, self.trainer.round_state
        if trainer.end_step is not None or state.global_step == 0:
            return
        value = kwargs["metrics"].get(trainer.watched_metric)
        if value is None:
            return
        if value > noted.get("best", -1.0):
            noted.update(best=value, without_rise=0)
            return
        noted["without_rise"] = noted.get("without_rise", 0) + 1
        if noted["without_rise"] >= self.patience:
            step = state.global_step
            kind = str(args.lr_scheduler_type).split(".")[-1].lower()
            share = args.decay_share if kind == "warmup_stable_decay" else 0.0
            end = step if share >= 1 else round(step / (1 - share))
            trainer.end_step = min(max(end, step + 1), trainer.total_steps)
            state.max_steps = trainer.end_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop at the last step."""
        if self.trainer.end_step is not None and state.global_step >= self.trainer.end_step:
            control.should_training_stop = True
        return control
