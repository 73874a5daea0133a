"""What a trainer does between its steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer


class Rounds(TrainerCallback):
    """Runs the refresh where no prefetched batch can be stale: before the epoch's data loader starts."""

    def __init__(self, trainer: JointTrainer) -> None:
        self.trainer = trainer
        self._since = time.perf_counter()

    def _spent_on(self, what: str) -> None:
        """Put the time since the last call on one account; GPUs may still be at work on its end."""
        now = time.perf_counter()
        self.trainer.seconds[what] += now - self._since
        self._since = now

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run goes on with the averages of the log entry that was open, and with its times."""
        self.trainer.seconds.clear()
        self.trainer.restore_log_window()
        self._since = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch is a round."""
        self.trainer.begin_round()
        self._spent_on("refresh")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Its batch, its passes and its optimizer step."""
        self._spent_on(self.trainer.phase(state.global_step - 1))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation may have encoded the corpus, which the next refresh then finds done."""
        self._spent_on("evaluation")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is written."""
        self._spent_on("saving")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The rates of this step, before the schedule moves on."""
        self.trainer.note_learning_rates()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have moved."""
        self.trainer.after_step()
