"""The files with a run's times, and a note on how much of its minutes a run has used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ar2.files import read_json
from hf_ar2.progress import format_duration

# In the run folder: the seconds until the served system was chosen, by the recipe's clock. In the folder of a stage, or
# of the evaluation: its seconds by the wall clock, all calls of the command together.
TIME = "time.json"
EVALUATION = "evaluation"


def evaluation_seconds(run: Path) -> float | None:
    """Seconds of the evaluation of rows, by the wall clock; None in runs that did not record them."""
    seconds = read_json(run / EVALUATION / TIME, {}).get("seconds")
    return None if seconds is None else float(seconds)


def minutes_note(run: Path, recipe: Mapping[str, Any]) -> str:
    """A sentence on how much of its minutes a run has used, by which clock; "" without minutes."""
    minutes, used = recipe.get("minutes"), read_json(run / TIME, {}).get("seconds")
    if minutes is None or used is None:
        return ""
    of_processor = recipe.get("clock") == "processor"
    return (
        f"The run was given {format_duration(60 * minutes)}{' of processor time' if of_processor else ''} and took "
        f"{format_duration(used)} until the served system was chosen."
        f"{' All other times are by the wall clock.' if of_processor else ''}"
    )
