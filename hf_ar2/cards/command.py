"""The command that started a run, from its environment.json."""

from __future__ import annotations

import shlex
from pathlib import Path

from hf_ar2.files import read_json


def how_to_finish(run: str | Path) -> str:
    """A sentence on how to finish an interrupted run: with the command that started it, which continues it."""
    again = "Run the command that started it again to continue"
    try:
        command = read_json(Path(run) / "environment.json", {}).get("command", "")
        script, recipe, *options = shlex.split(command)
    except ValueError:  # no command, or one whose quotes were lost
        return again
    folder = Path(script).parent
    if Path(script).name != "run.py" or recipe.startswith("-"):
        return again
    if Path(recipe).is_relative_to(folder) and folder.name:  # a recipe of the package
        recipe = Path(recipe).relative_to(folder).with_suffix("").as_posix()
    return f"Finish it with: {shlex.join(['hf-ar2', 'train', recipe, *options])}"
