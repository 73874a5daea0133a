"""The figure `report.png` of a run: the metrics of every stage and the curves of training."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_ar2.evaluation.tables import Metrics, display_name
from hf_ar2.report.series import HYBRID, PIPELINE, RETRIEVER, LogHistory, Panel, points, training_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito, which people with any kind of colour blindness can tell apart.
COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
}
GREY = "#6E6E6E"
_MANY_POINTS = 40
# Characters of a stage's name, and of all of them in one line below the bars.
_LONGEST_NAME, _LINE_OF_NAMES = 24, 64


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
    """Draw a run's figure, report.png: the metric of each stage, dev metrics per round, losses, pool difficulty.

    A panel draws the series that were logged (`training_panels` names their keys), and says so if none was. The metrics
    are as in metrics.json; `dev_split` is the split that the trainers evaluated, for a title.
    """
    from matplotlib.figure import Figure  # slow to import; made directly, it does not change pyplot's state

    figure = Figure(figsize=(12, 8), dpi=130, layout="constrained")
    (stages_axes, dev_axes), (loss_axes, pool_axes) = figure.subplots(2, 2)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    name = display_name(metric)
    _draw_stages(stages_axes, metrics, split, metric)
    _finish(stages_axes, f"{name} by stage, {split}", "", name)

    dev, losses, pool = training_panels(log_history, metric, name)
    for axes, panel, headline in (
        (dev_axes, dev, f"{name} per round, {dev_split}"),
        (loss_axes, losses, "Losses by phase"),
        (pool_axes, pool, "Pool difficulty"),
    ):
        _draw_series(axes, log_history, panel)
        _finish(axes, headline, panel.x_label, panel.y_label, legend_below=panel is pool)

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _draw_stages(axes: Axes, metrics: Metrics, split: str, metric: str) -> None:
    stages = [stage for stage in metrics if split in metrics[stage]]
    measured = {system for stage in stages for system in metrics[stage][split]}
    styles = [
        (style, hatch)
        for style, hatch in ((RETRIEVER, ""), (HYBRID, "\\\\"), (PIPELINE, "//"))
        if style.label in measured
    ]
    width = 0.8 / max(2, len(styles))
    for number, (style, hatch) in enumerate(styles):
        side = (number - (len(styles) - 1) / 2) * width
        values = [metrics[stage][split].get(style.label, {}).get(metric) for stage in stages]
        bars = [(place + side, value) for place, value in enumerate(values) if value is not None]
        if bars:
            x, heights = zip(*bars, strict=True)
            colour = COLOURS[style.colour]
            label = "retriever + BM25" if style is HYBRID else style.label
            drawn = axes.bar(
                x, heights, 0.95 * width, color=colour, hatch=hatch, edgecolor="white", label=label
            )
            axes.bar_label(drawn, fmt="%.3f", padding=2, fontsize=9 if len(stages) * len(styles) <= 8 else 7)
    names = [stage if len(stage) <= _LONGEST_NAME else f"{stage[: _LONGEST_NAME - 1]}…" for stage in stages]
    slanted = max(map(len, names), default=0) * len(names) > _LINE_OF_NAMES
    axes.set_xticks(range(len(stages)), names)
    if slanted:
        axes.set_xticklabels(names, rotation=20, ha="right")
    axes.margins(y=0.2)


def _draw_series(axes: Axes, log_history: LogHistory, panel: Panel) -> None:
    """A line per key of the panel, broken between stages."""
    along, offset, shown = panel.along, 0.0, []
    for stage, entries in log_history.items():
        series = {key: points(entries, key, along) for key in panel.styles}
        if not any(len(found) for found in series.values()):
            continue
        for key, found in series.items():
            label, name, marker = panel.styles[key]
            colour = COLOURS[name]
            x, y = found.T
            if len(x) > _MANY_POINTS:  # the values in pale, their running mean over them
                axes.plot(x + offset, y, color=colour, alpha=0.25, linewidth=0.8)
                y = _running_mean(y, len(y) // 20)
            if len(x) > _MANY_POINTS or along == "step":
                marker = ""
            if len(x):
                known = axes.get_legend_handles_labels()[1]
                label = "_nolegend_" if label in known else label
                axes.plot(
                    x + offset, y, color=colour, linewidth=1.8, marker=marker, markersize=5, label=label
                )
        end = offset + max(float(entry.get(along, 0.0)) for entry in entries)
        shown.append((stage, offset, end))
        offset = math.ceil(end) if along == "epoch" else end  # so that a stage's rounds are at the ticks
    # More than two names alternate between two heights: a short stage is narrower than its name.
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


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` neighbours on each side, fewer at the ends."""
    total = np.append(0.0, np.cumsum(values))
    place = np.arange(len(values))
    low, high = np.maximum(place - window, 0), np.minimum(place + window + 1, len(values))
    return (total[high] - total[low]) / (high - low)
