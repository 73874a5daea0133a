"""What a trainer does between its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer


class Rounds(TrainerCallback):
    """Runs the refresh where no prefetched batch can be stale: before the epoch's data loader starts.

    Example:
        ```python
        from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer
        from hf_ar2.trainers.rounds import Rounds

        args = RetrieverConfig(output_dir="runs/retriever")
        trainer = RetrieverTrainer("sentence-transformers/all-MiniLM-L6-v2", args=args, collection="BeIR/scifact")
        assert any(isinstance(callback, Rounds) for callback in trainer.callback_handler.callbacks)
        ```
    """

    def __init__(self, trainer: JointTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run goes on with the averages of the log entry that was open."""
        self.trainer.restore_log_window()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch is a round."""
        self.trainer.begin_round()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The rates of this step, before the schedule moves on."""
        self.trainer.note_learning_rates()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have moved."""
        self.trainer.after_step()
