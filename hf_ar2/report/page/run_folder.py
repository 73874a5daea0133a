"""The contents of a run folder: recipe, environment, metrics, tests, stages and logs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ar2.cards.facts import CHOSEN, how_to_finish, reported_split
from hf_ar2.files import read_json
from hf_ar2.search.runs import read_recipe


@dataclass(frozen=True)
class RunFolder:
    """A finished run."""

    folder: Path
    label: str  # its name on the page
    recipe: dict[str, Any]  # contents of recipe.yaml
    environment: dict[str, Any]  # contents of environment.json; {} without the file
    metrics: dict[str, Any]  # row -> split -> system -> metric -> value, as in metrics.json
    tests: dict[str, Any]  # row -> split -> system -> the fields of a `PairedTest`
    primary_metric: str  # the tested metric
    stages: dict[str, dict[str, Any]]  # in the order they ran: contents of done.json, and the log_history
    chosen: dict[str, Any] = field(default_factory=dict)  # contents of chosen.json; {} without the file

    @property
    def split(self) -> str:
        """The split that the recipe reports on."""
        return reported_split(self.recipe)

    @property
    def served(self) -> dict[str, Any] | None:
        """Row, system and reason of what is served; None without a chosen.json."""
        return {key: self.chosen[key] for key in ("row", "system", "reason")} if self.chosen else None


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[RunFolder]:
    """Read run folders, and label each with its recipe's name, or with its folder's if recipes share a name.

    Example:
        >>> from hf_ar2.report.page import read_runs
        >>> def metrics_of_quickstart() -> dict:
        ...     return read_runs(["runs/quickstart"])[0].metrics
    """
    paths = [Path(folder) for folder in folders]
    for place, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:place]]:
            raise ValueError(f"{path} is given twice; give each run once")
    recipes = [read_recipe(path) for path in paths]
    candidates = [
        [str(recipe.get("name", path.name)) for path, recipe in zip(paths, recipes, strict=True)],
        [path.resolve().name for path in paths],
        [str(path) for path in paths],
    ]
    labels = next(names for names in candidates if len(set(names)) == len(names) or names is candidates[-1])
    return [_read(*found) for found in zip(paths, labels, recipes, strict=True)]


def _read(folder: Path, label: str, recipe: dict[str, Any]) -> RunFolder:
    for name in ("metrics.json", "significance.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name} yet: its recipe has not finished. {how_to_finish(folder)}"
            )
    significance = read_json(folder / "significance.json", {})
    stages = {}
    for stage, body in (recipe.get("stages") or {}).items():
        found: dict[str, Any] = {"trainer": body.get("trainer", ""), "log_history": []}
        for name in ("done.json", "trainer_state.json"):
            found |= read_json(folder / "stages" / stage / name, {})
        stages[stage] = found
    try:
        return RunFolder(
            folder=folder,
            label=label,
            recipe=recipe,
            environment=read_json(folder / "environment.json", {}),
            metrics=read_json(folder / "metrics.json", {}),
            tests=significance["tests"],
            primary_metric=significance["metric"],
            stages=stages,
            chosen=read_json(folder / CHOSEN, {}),
        )
    except KeyError as error:
        raise ValueError(
            f"{folder / 'significance.json'}: field {error} is missing; expected 'metric' and 'tests'. Run the "
            "recipe's evaluation again: delete the file and run the command that made the run again"
        ) from None
