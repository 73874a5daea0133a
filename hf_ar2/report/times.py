"""Where a run's time is recorded, and what a run with minutes has used of them."""

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
    """What the evaluation of rows has taken, by the wall clock; None in runs that did not record it."""
    seconds = read_json(run / EVALUATION / TIME, {}).get("seconds")
    return None if seconds is None else float(seconds)


def minutes_note(run: Path, recipe: Mapping[str, Any]) -> str:
    """What a run has used of its minutes, as a sentence that names the clock; "" without minutes."""
    minutes, used = recipe.get("minutes"), read_json(run / TIME, {}).get("seconds")
    if minutes is None or used is None:
        return ""
    of_processor = recipe.get("clock") == "processor"
    return (
        f"The run was given {format_duration(60 * minutes)}{' of processor time' if of_processor else ''} and took "
        f"{format_duration(used)} until the served system was chosen."
        f"{' All other times are by the wall clock.' if of_processor else ''}"
    )
