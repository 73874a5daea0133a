"""What a trainer does between its steps: refresh at the start of a round, add up its log, stop early."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_ar2.encoding.processes import Processes
from hf_ar2.losses.list_scores import ListScores
from hf_ar2.trainers.config_checks import schedule_kind

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer

# Steps between two estimates of how many fit into the time; the first few steps each make one.
_STEPS_PER_ESTIMATE = 5


class StepLog:
    """Sums of what this process logged since the last log entry; an entry has the means over all processes.

    Attributes:
        sums: name → sum and number of values.
        seconds: each phase, `refresh`, `evaluation` and `saving` → seconds of this process, also before it was resumed.
        learning_rates: `lr/retriever` and `lr/ranker` of the current step.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.seconds: dict[str, float] = defaultdict(float)
        self.learning_rates: dict[str, float] = {}
        self._since = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of a step."""
        for name, value in values.items():
            total = self.sums[name]
            total[0] += float(value.detach())
            total[1] += 1

    def not_finite(self, loss: Tensor, scores: ListScores, step: str, own_loss: bool) -> ValueError:
        """The error for a loss that is NaN or infinite; it names the model whose scores are not finite."""
        roles = {"retriever": scores.retriever_scores, "ranker": scores.ranker_scores}
        causes = [
            f"; the {role}'s scores are not finite"
            for role, found in roles.items()
            if found is not None and not bool(torch.isfinite(found).all())
        ]
        rates = ", ".join(f"{name} {rate:.1e}" for name, rate in self.learning_rates.items())
        hint = ""
        if own_loss and scores.mask.shape[1] == 1:
            hint = ". The loss was given lists without negatives (num_negatives=0)"
        return ValueError(
            f"{step}: the loss is {loss.item()}{''.join(causes)}. Training diverged, or a model's weights are not "
            f"finite; lower the learning rate{f' ({rates})' if rates else ''}{hint}"
        )

    def entry(self, logs: dict[str, float]) -> dict[str, float]:
        """The values of a log entry besides the loss: means of the steps, and at the end of a run the seconds."""
        found: dict[str, float] = {}
        if "loss" in logs and self.sums:
            names = sorted(self.sums)
            sums = self.processes.combine(np.array([self.sums[name] for name in names], np.float64))
            found = {name: float(total / count) for name, (total, count) in zip(names, sums, strict=True)}
            self.sums.clear()
            found |= self.learning_rates
        if "train_runtime" in logs:
            found |= {f"seconds/{name}": round(spent, 3) for name, spent in self.seconds.items()}
        return found

    def start_clock(self) -> None:
        """Count seconds from now on."""
        self._since = time.perf_counter()

    def add_seconds(self, part: str) -> float:
        """Add the time since the last call to a part, and return it; a GPU may still be working on the last step."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        self.seconds[part] += spent
        return spent

    def note_learning_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the learning rate of each model's encoder."""
        for group in reversed(optimizer.param_groups):
            if "/encoder/" in group["name"]:
                self.learning_rates[f"lr/{group['model']}"] = group["lr"]


class Rounds(TrainerCallback):
    """Begins a round with every epoch, before the data loader starts, so that no prefetched batch is stale."""

    def __init__(self, trainer: JointTrainer) -> None:
        self.trainer = trainer
        self.log = trainer.step_log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Continue the open log entry and the times of a resumed run.

        If the checkpoint is of the last step of a round and was written before the evaluation, evaluate now.
        """
        trainer = self.trainer
        self.log.seconds.clear()
        trainer.checkpoints.restore_log_window()
        self.log.start_clock()
        trainer.refreshing.start()
        self.log.add_seconds("refresh")
        step = state.global_step
        at_end = step > 0 and (step % trainer.steps_per_round == 0 or step >= trainer.total_steps)
        if at_end and trainer.round_state.get("ended_at") != step:
            trainer.control = trainer.callback_handler.on_epoch_end(args, state, control)
            trainer._maybe_log_save_evaluate(
                trainer._tr_loss, None, trainer.model_wrapped, None, state.epoch, None, time.time()
            )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch is a round."""
        self.trainer.begin_round()
        self.log.add_seconds("refresh")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the time of the step, then take its share of a refresh."""
        trained = self.log.add_seconds(self.trainer.phases.phase(state.global_step - 1))
        self.trainer.refreshing.advance()
        refreshed = self.log.add_seconds("refresh")
        self.trainer.refreshing.log_step(refreshed, trained + refreshed)
        # The last weights may be the best, whatever eval_steps is.
        if args.save_strategy == "best" and args.eval_strategy == "steps":
            control.should_evaluate |= state.global_step >= self.trainer.total_steps

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record for the next checkpoint that the round has ended."""
        self.trainer.round_state["ended_at"] = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop a refresh that is in flight, as when `patience` has ended the run."""
        self.trainer.refreshing.close()
        self.trainer.refreshing.drop()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation may have encoded the corpus; the next refresh then reuses the encoding."""
        self.log.add_seconds("evaluation")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint has been written."""
        self.log.add_seconds("saving")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The learning rates of this step, before the schedule moves on."""
        assert self.trainer.optimizer is not None
        self.log.note_learning_rates(self.trainer.optimizer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have been updated."""
        self.trainer.after_step()


class Patience(TrainerCallback):
    """Chooses the last step once `patience` evaluations in a row are not above the best one before them.

    With the schedule `warmup_stable_decay` the decay becomes the last `decay_share` of the run; with any other schedule
    the next step is the last. The choice is part of a checkpoint (`JointTrainer.round_state`), so a resumed run ends
    where the uninterrupted one does.
    """

    def __init__(self, trainer: JointTrainer, patience: int) -> None:
        self.trainer = trainer
        self.patience = patience
        # The first metric of the model that is trained.
        system = "ranker" if trainer.trained == ("ranker",) else "retriever"
        self.metric = f"eval_{system}_{trainer.args.eval_metrics[0]}"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """In a resumed run the last step may already be chosen."""
        if (end := self.trainer.round_state.get("end_step")) is not None:
            state.max_steps = end

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare with the best evaluation so far; one before the first step does not count."""
        trainer, kept = self.trainer, self.trainer.round_state
        if "end_step" in trainer.round_state or state.global_step == 0:
            return
        value = kwargs["metrics"].get(self.metric)
        if value is None:
            return
        if value > kept.get("best", -1.0):
            kept.update(best=value, without_rise=0)
            return
        kept["without_rise"] = kept.get("without_rise", 0) + 1
        if kept["without_rise"] >= self.patience:
            step = state.global_step
            share = _decay_share(args)
            end = step if share >= 1 else round(step / (1 - share))
            kept["end_step"] = min(max(end, step + 1), trainer.total_steps)
            state.max_steps = kept["end_step"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop at the last step."""
        end = self.trainer.round_state.get("end_step")
        if end is not None and state.global_step >= end:
            control.should_training_stop = True
        return control


class TimeLimit(TrainerCallback):
    """Ends a run when its time is over: the number of steps follows from the time that the steps have taken.

    The number is estimated until the decay of the schedule `warmup_stable_decay` begins, or with any other schedule
    until the end. It is part of a checkpoint (`JointTrainer.round_state`); all processes use that of the first.

    Args:
        trainer: any but AR2's, whose rounds have fixed numbers of steps. It never trains more than `max_steps`.
        clock: returns seconds.
        seconds: for training and its evaluations, from `on_train_begin` on.
        steps: the first estimate.
    """

    def __init__(self, trainer: JointTrainer, clock: Callable[[], float], seconds: float, steps: int) -> None:
        self.trainer, self.clock, self.seconds = trainer, clock, seconds
        trainer.round_state["steps_in_time"] = steps
        self.started: tuple[int, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """In a resumed run the estimate is that of the checkpoint."""
        self.end = self.clock() + self.seconds
        state.max_steps = self.trainer.total_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Estimate the last step, and stop there."""
        trainer, step = self.trainer, state.global_step
        if self.started is None:  # the first step is slower
            self.started = step, self.clock()
        elif self._estimates(taken := step - self.started[0]) and not self._decays(step):
            now = self.clock()
            each = (now - self.started[1]) / taken
            steps = step + max(1, int((self.end - now) / each)) if each > 0 else trainer.planned_steps
            trainer.round_state["steps_in_time"] = trainer.encoders.processes.of_first(steps)
            state.max_steps = trainer.total_steps
        if step >= trainer.total_steps:
            control.should_training_stop = True
        return control

    def _estimates(self, taken: int) -> bool:
        return taken <= _STEPS_PER_ESTIMATE or taken % _STEPS_PER_ESTIMATE == 0

    def _decays(self, step: int) -> bool:
        """Whether the learning rate already falls (another number of steps would make it jump), or the run ends."""
        return step >= (1 - _decay_share(self.trainer.args)) * self.trainer.total_steps


def _decay_share(args: Any) -> float:
    """The share of a run's steps at its end that the schedule `warmup_stable_decay` sets apart; 0 with any other."""
    return args.decay_share if schedule_kind(args.lr_scheduler_type) == "warmup_stable_decay" else 0.0
