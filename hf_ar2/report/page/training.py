"""The page's charts of training: metrics per round, losses, pool difficulty, time per stage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hf_ar2.evaluation.tables import display_name
from hf_ar2.report.page.run_folder import RunFolder
from hf_ar2.report.series import LogHistory, Panel, points, training_panels
from hf_ar2.report.times import evaluation_seconds

MOST_POINTS = 200


def training_charts(run: RunFolder) -> list[dict[str, Any]]:
    """The charts of a run. A chart without logged values has no series.

    A chart has a title, axis labels, `series` (label, colour, marker, and for each stage a line of `[x, y]`) and
    `stages` (name and where it begins and ends along the axis).
    """
    logs = {stage: found["log_history"] for stage, found in run.stages.items()}
    name = display_name(run.primary_metric)
    titles = (f"{name} per round, on held-out queries", "Losses", "Pool difficulty")
    panels = training_panels(logs, run.primary_metric, name)
    return [_chart(title, logs, panel) for title, panel in zip(titles, panels, strict=True)]


def stage_times(run: RunFolder) -> list[dict[str, Any]]:
    """The seconds of each stage, in all and in each phase of its training (by name, as logged), and of the evaluation.

    They are by the wall clock, as in the table that a run ends with.
    """
    times: list[dict[str, Any]] = []
    for stage, found in run.stages.items():
        ends = [entry for entry in found["log_history"] if "train_runtime" in entry]
        last = ends[-1] if ends else {}
        logged = {key: value for key, value in last.items() if key.startswith("seconds/")}
        lists = found.get("lists")
        times.append(
            {
                "stage": stage,
                "trainer": found["trainer"],
                "seconds": found.get("seconds"),
                "phases": {key.removeprefix("seconds/"): value for key, value in logged.items()},
                "steps": found.get("steps"),
                "lists": sum(lists.values()) if isinstance(lists, dict) else None,
            }
        )
    evaluation = evaluation_seconds(run.folder)
    if evaluation is not None:
        nothing: dict[str, Any] = {"phases": {}, "steps": None, "lists": None}
        times.append({"stage": "rows of results", "trainer": "evaluation", "seconds": evaluation, **nothing})
    return times


def _chart(title: str, logs: LogHistory, panel: Panel) -> dict[str, Any]:
    """One chart. Stages follow each other along the axis; along "epoch" each starts at an integer. A stage that logged
    none of the keys is left out.
    """
    along = panel.along
    series: dict[str, dict[str, Any]] = {}
    stages, start, most = [], 0.0, 0
    for stage, entries in logs.items():
        lines = {key: points(entries, key, along) for key in panel.styles}
        if not any(map(len, lines.values())):
            continue
        for key, found in lines.items():
            style = panel.styles[key]
            if len(found):
                most = max(most, len(found))
                moved = _thinned(found) + np.array([start, 0.0])
                line = series.setdefault(style.label, {**style._asdict(), "lines": []})
                line["lines"].append(moved.round(6).tolist())
        end = round(start + max(float(entry.get(along, 0.0)) for entry in entries), 6)
        stages.append({"name": stage, "start": start, "end": end})
        # The axis has a tick per round, and a stage's round 0 must not fall on the last round of the previous stage.
        start = math.floor(end) + 1.0 if along == "epoch" else end
    chart = {
        "title": title,
        "x": panel.x_label,
        "y": panel.y_label,
        "stages": stages,
        "series": list(series.values()),
    }
    if most > MOST_POINTS:
        chart["note"] = f"Each point is the mean of about {most / MOST_POINTS:.0f} logged values."
    return chart


def _thinned(found: np.ndarray) -> np.ndarray:
    """At most `MOST_POINTS` points, each the mean of neighbours."""
    if len(found) <= MOST_POINTS:
        return found
    return np.array([part.mean(axis=0) for part in np.array_split(found, MOST_POINTS)])
