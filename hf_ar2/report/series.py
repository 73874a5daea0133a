"""The series that trainers log and reports draw: metrics per round, losses, and the difficulty of negatives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Stage → entries of `trainer.state.log_history`, with "epoch" and "step".
LogHistory = Mapping[str, Sequence[Mapping[str, Any]]]


class Style(NamedTuple):
    """How a series is drawn: label, name of a colour (the figure and the page each have its value), marker."""

    label: str
    colour: str
    marker: str


RETRIEVER, PIPELINE = Style("retriever", "blue", "o"), Style("pipeline", "vermilion", "s")
HYBRID = Style("hybrid", "green", "^")
LOSSES = ("loss/retriever", "loss/ranker", "loss/adversarial", "loss/distillation")
LOSS_COLOURS = ("blue", "vermilion", "green", "purple", "orange", "sky")
POOL_SHARES = {
    "ranker_accuracy": Style("lists the ranker gets right", "vermilion", "s"),
    "teacher_accuracy": Style("retriever's lists the ranker gets right", "purple", "D"),
    "pool/ranker_beats_positive": Style("negatives ranked above the positive", "blue", "o"),
    "pool/deceived": Style("negatives ranked above the positive", "blue", "o"),
    "pool/outscored": Style("pools whose top beats the positive", "orange", "^"),
}
POOL_MARGINS = {
    "pool/mean_margin": Style("positive minus negatives, mean", "green", "v"),
    "pool/top_margin": Style("positive minus top candidate, mean", "blue", "o"),
}


class Panel(NamedTuple):
    """A chart of training: logged key → style, the axis ("epoch" or "step") with its label, and the label of y."""

    styles: Mapping[str, Style]
    along: str
    x_label: str
    y_label: str


def training_panels(log_history: LogHistory, metric: str, metric_name: str) -> tuple[Panel, Panel, Panel]:
    """The metric per round, every `loss/<name>`, and the pool's shares (its margins if no share was logged)."""
    logged = {key for entries in log_history.values() for entry in entries for key in entry}
    dev = {f"eval_retriever_{metric}": RETRIEVER, f"eval_pipeline_{metric}": PIPELINE}
    keys = dict.fromkeys([*LOSSES, *sorted(key for key in logged if key.startswith("loss/"))])
    looks = itertools.cycle(zip(LOSS_COLOURS, "osvD^o", strict=True))
    losses = {key: Style(key.removeprefix("loss/"), *look) for key, look in zip(keys, looks, strict=False)}
    pool, unit = (POOL_SHARES, "share") if logged & set(POOL_SHARES) else (POOL_MARGINS, "score")
    return (
        Panel(dev, "epoch", "round", metric_name),
        Panel(losses, "step", "step", "loss"),
        Panel(pool, "epoch", "round", unit),
    )


def points(entries: Sequence[Mapping[str, Any]], key: str, along: str) -> np.ndarray:
    """float64 `[n, 2]`: position along the axis and value, of the entries where the key has a finite value."""
    found = [(entry.get(along, number), entry[key]) for number, entry in enumerate(entries) if key in entry]
    array = np.array([(x, y) for x, y in found if y is not None], np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]
