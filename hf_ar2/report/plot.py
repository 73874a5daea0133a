"""The figure `report.png` of a run: the metrics of every stage and the curves of training."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ar2.evaluation.tables import Metrics, display_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LogHistory = Mapping[str, Sequence[Mapping[str, Any]]]


# The palette of Okabe and Ito, told apart by people with any kind of colour blindness.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"


GREY = "#6E6E6E"


# What trainers log about the difficulty of pools: key -> label, colour, marker.
POOL_SHARES = {
    "ranker_accuracy": ("lists the ranker gets right", VERMILION, "s"),
    "teacher_accuracy": ("retriever's lists the ranker gets right", PURPLE, "D"),
    "pool/ranker_beats_positive": ("negatives ranked above the positive", BLUE, "o"),
    "pool/deceived": ("negatives ranked above the positive", BLUE, "o"),
    "pool/outscored": ("pools whose top beats the positive", ORANGE, "^"),
}


POOL_MARGINS = {
    "pool/mean_margin": ("positive less negatives, mean", GREEN, "v"),
    "pool/top_margin": ("positive less top candidate, mean", BLUE, "o"),
}


LOSSES = ("loss/retriever", "loss/ranker", "loss/adversarial", "loss/distillation")


_MANY_POINTS = 40


def plot_report(
    log_history: LogHistory,
    metrics: Metrics,
    path: str | os.PathLike[str],
    *,
    split: str = "test",
    dev_split: str = "dev",
    metric: str = "mrr@10",
    title: str = "",
) -> None:
    """Draw a run's figure, report.png: what each stage reached, dev metrics per round, losses, pool difficulty.

    A panel draws those of its series that were logged, and says so where none was. Stages follow each other along
    the axis, in the order given.

    Args:
        log_history: stage -> entries of `trainer.state.log_history`, with "epoch" and "step". Drawn are
            `eval_retriever_<metric>` and `eval_pipeline_<metric>`, every `loss/<name>`, and the keys of
            `POOL_SHARES` (those of `POOL_MARGINS` where no share was logged).
        metrics: as in metrics.json, see `stage_table`.
        path: the PNG file; its folder is made.
        split: which split of `metrics` the first panel shows.
        dev_split: the split that the trainers evaluated, for the second panel's title.
        metric: which metric the first two panels show.
        title: headline, such as the recipe and the collection.
    """
    from matplotlib.figure import Figure  # slow to import; a Figure of its own leaves pyplot's state alone

    figure = Figure(figsize=(12, 8), dpi=130, layout="constrained")
    (stages_axes, dev_axes), (loss_axes, pool_axes) = figure.subplots(2, 2)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    name = display_name(metric)
    _draw_stages(stages_axes, metrics, split, metric)
    _finish(stages_axes, f"{name} by stage, {split}", "", name)

    dev = {
        f"eval_retriever_{metric}": ("retriever", BLUE, "o"),
        f"eval_pipeline_{metric}": ("pipeline", VERMILION, "s"),
    }
    _draw_series(dev_axes, log_history, dev, "epoch")
    _finish(dev_axes, f"{name} per round, {dev_split}", "round", name)

    logged = {key for entries in log_history.values() for entry in entries for key in entry}
    losses = dict.fromkeys([*LOSSES, *sorted(key for key in logged if key.startswith("loss/"))])
    colours = itertools.cycle((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY))
    styles = {
        key: (key.removeprefix("loss/"), colour, "") for key, colour in zip(losses, colours, strict=False)
    }
    _draw_series(loss_axes, log_history, styles, "step")
    _finish(loss_axes, "Losses by phase", "step", "loss")

    pool, unit = (POOL_SHARES, "share") if logged & set(POOL_SHARES) else (POOL_MARGINS, "score")
    _draw_series(pool_axes, log_history, pool, "epoch")
    _finish(pool_axes, "Pool difficulty", "round", unit, legend_below=True)

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _draw_stages(axes: Axes, metrics: Metrics, split: str, metric: str) -> None:
    stages = [stage for stage in metrics if split in metrics[stage]]
    for system, side, colour, hatch in (("retriever", -0.2, BLUE, ""), ("pipeline", 0.2, VERMILION, "//")):
        values = [metrics[stage][split].get(system, {}).get(metric) for stage in stages]
        bars = [(place + side, value) for place, value in enumerate(values) if value is not None]
        if bars:
            x, heights = zip(*bars, strict=True)
            drawn = axes.bar(x, heights, 0.38, color=colour, hatch=hatch, edgecolor="white", label=system)
            axes.bar_label(drawn, fmt="%.3f", padding=2, fontsize=9)
    axes.set_xticks(range(len(stages)), stages)
    axes.margins(y=0.2)


def _draw_series(
    axes: Axes, log_history: LogHistory, styles: Mapping[str, tuple[str, str, str]], along: str
) -> None:
    """A line per key of `styles` (label, colour, marker), broken between stages; along "epoch" or "step"."""
    offset, shown = 0.0, []
    for stage, entries in log_history.items():
        series = {key: _points(entries, key, along) for key in styles}
        if not any(len(points) for points in series.values()):
            continue
        for key, points in series.items():
            label, colour, marker = styles[key]
            x, y = points.T
            if len(x) > _MANY_POINTS:  # the values as they are in pale, their running mean over them
                axes.plot(x + offset, y, color=colour, alpha=0.25, linewidth=0.8)
                y, marker = _running_mean(y, len(y) // 20), ""
            if len(x):
                known = axes.get_legend_handles_labels()[1]
                label = "_nolegend_" if label in known else label
                axes.plot(
                    x + offset, y, color=colour, linewidth=1.8, marker=marker, markersize=5, label=label
                )
        end = offset + max(float(entry.get(along, 0.0)) for entry in entries)
        shown.append((stage, offset, end))
        offset = math.ceil(end) if along == "epoch" else end  # so that a stage's rounds stand at the ticks
    # More than two names take turns between two heights: a short stage is narrower than its name.
    for number, (stage, start, end) in enumerate(shown):
        if number:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=":")
        height = 1.06 if len(shown) > 2 and number % 2 else 1.01
        place = axes.get_xaxis_transform()
        axes.text((start + end) / 2, height, stage, transform=place, ha="center", fontsize=9, color=GREY)
    if offset:
        axes.set_xlim(-0.02 * offset, 1.02 * offset)
        axes.locator_params(axis="x", integer=True)


def _finish(axes: Axes, title: str, x_label: str, y_label: str, *, legend_below: bool = False) -> None:
    """Title, labels, grid and legend, or a note that nothing was logged."""
    axes.set_title(title, loc="left", fontweight="bold", pad=28)
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.get_legend_handles_labels()[1]:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not logged in this run", transform=axes.transAxes, ha="center", color=GREY)
        return
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    if legend_below:
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    else:
        axes.legend(frameon=False, fontsize=9)


def _points(entries: Sequence[Mapping[str, Any]], key: str, along: str) -> np.ndarray:
    """float64 `[n, 2]`: place along the axis and value, of the entries that have the key with a finite value."""
    points = [(entry.get(along, number), entry[key]) for number, entry in enumerate(entries) if key in entry]
    array = np.array([(x, y) for x, y in points if y is not None], np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` neighbours on each side, fewer at the ends."""
    total = np.append(0.0, np.cumsum(values))
    place = np.arange(len(values))
    low, high = np.maximum(place - window, 0), np.minimum(place + window + 1, len(values))
    return (total[high] - total[low]) / (high - low)
