"""Prints a trainer's log in lines of at most 80 columns, and on a terminal a progress bar below them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.std import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from hf_ar2.evaluation.tables import NAN_NOTE
from hf_ar2.progress import format_duration, line_is_due, on_terminal, progress_bar
from hf_ar2.terminal import counted

_WIDTH = 80
_EVALUATION = re.compile(r"(?P<prefix>\S+?)_(?P<system>retriever|ranker|pipeline)_(?P<metric>.+)")
# The names of values in a line, in this order; None: not printed. Values of other names come last.
_NAMES: dict[str, str | None] = {
    "loss": "loss",
    "loss/retriever": "retriever",
    "loss/ranker": "ranker",
    "loss/adversarial": "advers.",
    "loss/distillation": "distill.",
    "loss/contrastive": "contrast.",
    "loss/query_centric": "query-c.",
    "loss/passage_centric": "passage-c.",
    "ranker_accuracy": "acc.",
    "teacher_accuracy": "teacher acc.",
    "train_mrr@10": "mrr@10",
    "missed_positives": "missed",
    "kl_ranker_to_retriever": "KL",
    "agreement": "agree",
    "entropy/ranker": "entropy",
    "pool/deceived": "deceived",
    "pool/candidates": "candidates",
    "pool/short_pools": "short",
    "pool/empty_pools": "empty",
    "pool/top_margin": "margin",
    "pool/outscored": "outscored",
    "pool/age": "pool age",
    "refresh_share": "refresh",
    "pool/dropped/absolute_margin": "absolute_margin",
    "pool/dropped/relative_margin": "relative_margin",
    "pool/dropped/max_score": "max_score",
    "pool/dropped/range_min": "range_min",
    "lr/retriever": "lr",
    "lr/ranker": "ranker lr",
    "kl_retriever_to_ranker": None,
    "entropy/retriever": None,
    "list_length": None,
    "pool/queries": None,
    "pool/dropped/positive": None,
    "pool/dropped/duplicate_of_positive": None,
    "pool/dropped/contains_answer": None,
    "pool/top_score": None,
    "pool/positive_score": None,
    "search_share": None,
    "learning_rate": None,
    "grad_norm": None,
    "epoch": None,
    "total_flos": None,
}


class LogLines(TrainerCallback):
    """Prints a trainer's log in place of transformers' bar and its dicts; trackers still get all of it.

    On a terminal every entry is printed, above a bar with the time that is left. Elsewhere evaluations, the last entry
    and a summary of the training are printed, and at most one other entry every 30 seconds. `disable_tqdm` hides the
    bar.

    Args:
        phases: the trainer's; the loss of an entry about only one of them is shown as the loss.
    """

    def __init__(self, phases: Sequence[str]) -> None:
        self.phases = phases
        self._bar: tqdm[Any] | None = None
        self._began, self._first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The bar starts at the step from which a resumed run continues."""
        self._began, self._first_step = time.monotonic(), state.global_step
        if on_terminal() and state.is_world_process_zero and not args.disable_tqdm:
            bar = progress_bar(total=state.max_steps, description="Training", unit="steps")
            bar.initial = bar.n = state.global_step
            self._bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print the entry, if it is time for it."""
        if not state.is_world_process_zero or not logs:
            return
        always = "loss" not in logs and not any(key.startswith("pool/") for key in logs)
        if not (on_terminal() or line_is_due() or always or state.global_step >= state.max_steps):
            return
        left = None
        done = state.global_step - self._first_step
        if self._bar is None and 0 < done and state.global_step < state.max_steps:
            left = (time.monotonic() - self._began) / done * (state.max_steps - state.global_step)
        for line in log_lines(logs, state.global_step, state.max_steps, self.phases, args.eval_split, left):
            if self._bar is not None:
                self._bar.write(line)
            else:
                print(line, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The bar ends."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def print_log_lines(handler: CallbackHandler, phases: Sequence[str]) -> None:
    """Put `LogLines` in the place of transformers' own bar or printer; in a notebook its table stays."""
    theirs = [one for one in handler.callbacks if type(one) in (ProgressCallback, PrinterCallback)]
    if theirs:  # transformers adds its callback after those of the user
        handler.callbacks[handler.callbacks.index(theirs[-1])] = LogLines(phases)


def log_lines(
    logs: Mapping[str, Any],
    step: int,
    steps: int,
    phases: Sequence[str] = (),
    eval_split: str = "dev",
    left: float | None = None,
) -> list[str]:
    """An entry of the log as lines of at most 80 columns, the second and later ones indented.

    Args:
        step, steps: the current step, and the steps of the run.
        eval_split: the split that `eval_` refers to.
        left: seconds until the end, shown if given.
    """
    start = f"step {step:>{len(str(steps))}}/{steps}  " if steps else ""  # 0 outside of training
    if "train_runtime" in logs:
        return _wrapped(_of_the_end(logs, step), "", 4)
    # Values of a step, such as `kl_ranker_to_retriever`, may also match the pattern.
    found = {
        key: match for key in logs if "loss" not in logs and (match := _EVALUATION.fullmatch(key)) is not None
    }
    if found:
        lines: list[str] = []
        systems = dict.fromkeys((match["prefix"], match["system"]) for match in found.values())
        before = ""
        for prefix, system in systems:
            # `eval_NAME` is about one of several collections.
            name = eval_split if prefix == "eval" else re.sub("^eval_", f"{eval_split}-", prefix)
            place = f"{name}: "
            items = [
                _item(match["metric"], logs[key])
                for key, match in found.items()
                if (match["prefix"], match["system"]) == (prefix, system)
            ]
            head = f"{place if place != before else ' ' * len(place)}{system:<11}"
            lines += _wrapped(items, (start if not lines else " " * len(start)) + head, 0)
            before = place
        return lines
    values = _printed(logs, phases)
    if "loss" not in logs and values and all(key.startswith("pool/") for key in values):
        items = [_item(_NAMES.get(key) or key.removeprefix("pool/"), values[key]) for key in values]
        items.insert(0, "pool:")
    else:
        items = [_item(_NAMES.get(key) or key, value) for key, value in values.items()]
    if "epoch" in logs:
        items.insert(0, f"round {logs['epoch']:.2f}")
    if left is not None:
        items.append(f"{format_duration(left)} left")
    lines = _wrapped(items, start, 0)
    return [*lines, " " * len(start) + NAN_NOTE] if any(item.endswith(" NaN") for item in items) else lines


def _printed(logs: Mapping[str, Any], phases: Sequence[str]) -> dict[str, Any]:
    """The values that are printed, in their order."""
    losses = [f"loss/{phase}" for phase in phases if f"loss/{phase}" in logs]
    # The loss of a single phase is shown as the loss; a mean over several phases says nothing.
    without = set(losses) if len(losses) == 1 else {"loss"} if losses else set()
    keys = [key for key in _NAMES if key in logs] + [key for key in logs if key not in _NAMES]
    return {key: logs[key] for key in keys if _NAMES.get(key, key) is not None and key not in without}


def _of_the_end(logs: Mapping[str, Any], step: int) -> list[str]:
    spent = {key.removeprefix("seconds/"): logs[key] for key in logs if key.startswith("seconds/")}
    parts = [f"{name} {format_duration(value)}" for name, value in spent.items()]
    took = f"{counted(step, 'steps')} in {format_duration(logs['train_runtime'])}"
    return [took + (":" if parts else ""), *parts]


def _item(name: str, value: Any) -> str:
    return f"{name} {_short(value)}"


def _short(value: Any) -> str:
    """A number in five or six characters."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    size = abs(value)
    if not math.isfinite(value):
        return "NaN" if value != value else str(value)
    if size >= 1000 or value == int(value):
        return f"{value:>5,.0f}"
    if size < 0.0005:
        return f"{value:.1e}".replace("e-0", "e-")
    text = f"{value:.3f}" if size < 10 else f"{value:.2f}" if size < 100 else f"{value:.1f}"
    return re.sub(r"^(-?)0", r"\1", text).rjust(5)


def _wrapped(items: Sequence[str], start: str, indent: int) -> list[str]:
    """Items two spaces apart; none is broken."""
    lines, line = [], start + items[0] if items else start.rstrip()
    for item in items[1:]:
        if len(line) + 2 + len(item) > _WIDTH:
            lines.append(line)
            line = " " * (len(start) or indent) + item
        else:
            line += f"  {item}"
    return [*lines, line]
