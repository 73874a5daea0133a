"""How training went, as series that the page draws: metrics per round, losses, pool difficulty, time per stage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_ar2.evaluation.tables import display_name
from hf_ar2.report.page.run_folder import RunFolder
from hf_ar2.report.plot import (
    BLUE,
    GREEN,
    LOSSES,
    ORANGE,
    POOL_MARGINS,
    POOL_SHARES,
    PURPLE,
    SKY,
    VERMILION,
    LogHistory,
)

# The page has its own shades of them for light and for dark.
COLOURS = {
    BLUE: "blue",
    VERMILION: "vermilion",
    GREEN: "green",
    PURPLE: "purple",
    ORANGE: "orange",
    SKY: "sky",
}
MOST_POINTS = 200


def training_charts(run: RunFolder) -> list[dict[str, Any]]:
    """The charts of a run; one whose values were not logged is there without series.

    Returns:
        title, axis labels, `series` (label, colour, marker, and for each stage a line of `[x, y]`) and `stages` (name
        and where it begins and ends along the axis).
    """
    logs = {stage: found["log_history"] for stage, found in run.stages.items()}
    name = display_name(run.chief)
    dev = {
        f"eval_retriever_{run.chief}": ("retriever", BLUE, "o"),
        f"eval_pipeline_{run.chief}": ("pipeline", VERMILION, "s"),
    }
    logged = {key for entries in logs.values() for entry in entries for key in entry}
    keys = dict.fromkeys([*LOSSES, *sorted(key for key in logged if key.startswith("loss/"))])
    looks = itertools.cycle(zip((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY), "osvD^o", strict=True))
    losses = {key: (key.removeprefix("loss/"), *look) for key, look in zip(keys, looks, strict=False)}
    pool, unit = (POOL_SHARES, "share") if logged & set(POOL_SHARES) else (POOL_MARGINS, "score")
    return [
        _chart(f"{name} per round, on held-out queries", "round", name, logs, dev, "epoch"),
        _chart("Losses", "step", "loss", logs, losses, "step"),
        _chart("Pool difficulty", "round", unit, logs, pool, "epoch"),
    ]


def stage_times(run: RunFolder) -> list[dict[str, Any]]:
    """What each stage took, in seconds: in all, and of that on each phase of its training (by name, as logged)."""
    times = []
    for stage, found in run.stages.items():
        last: dict[str, Any] = next(
            (entry for entry in reversed(found["log_history"]) if "train_runtime" in entry), {}
        )
        lists = found.get("lists")
        times.append(
            {
                "stage": stage,
                "trainer": found["trainer"],
                "seconds": found.get("seconds"),
                "phases": {
                    key.removeprefix("seconds/"): value
                    for key, value in last.items()
                    if key.startswith("seconds/")
                },
                "steps": found.get("steps"),
                "lists": sum(lists.values()) if isinstance(lists, dict) else None,
            }
        )
    return times


def _chart(
    title: str,
    x_label: str,
    y_label: str,
    logs: LogHistory,
    styles: Mapping[str, tuple[str, str, str]],
    along: str,
) -> dict[str, Any]:
    """Stages follow each other along the axis, along "epoch" each from a whole number on; a stage that logged none of
    the keys is left out.
    """
    series: dict[str, dict[str, Any]] = {}
    stages, start, most = [], 0.0, 0
    for stage, entries in logs.items():
        lines = {key: _points(entries, key, along) for key in styles}
        if not any(map(len, lines.values())):
            continue
        for key, points in lines.items():
            label, colour, marker = styles[key]
            if len(points):
                most = max(most, len(points))
                line = {"label": label, "colour": COLOURS[colour], "marker": marker, "lines": []}
                moved = _thinned(points) + np.array([start, 0.0])
                series.setdefault(label, line)["lines"].append(moved.round(6).tolist())
        end = round(start + max(float(entry.get(along, 0.0)) for entry in entries), 6)
        stages.append({"name": stage, "start": start, "end": end})
        # The page marks whole rounds, and a stage's round 0 must not fall on the last round of the one before.
        start = math.floor(end) + 1.0 if along == "epoch" else end
    chart = {"title": title, "x": x_label, "y": y_label, "stages": stages, "series": list(series.values())}
    if most > MOST_POINTS:
        chart["note"] = f"Each point is the mean of about {most / MOST_POINTS:.0f} logged values."
    return chart


def _points(entries: Sequence[Mapping[str, Any]], key: str, along: str) -> np.ndarray:
    """float64 `[n, 2]`: place along the axis and value, of the entries that have the key with a finite value."""
    found = [(entry.get(along, number), entry[key]) for number, entry in enumerate(entries) if key in entry]
    points = np.array([(x, y) for x, y in found if y is not None], np.float64).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def _thinned(points: np.ndarray) -> np.ndarray:
    """At most `MOST_POINTS` points, each the mean of neighbours."""
    if len(points) <= MOST_POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, MOST_POINTS)])
