"""What a run folder says of a run: its recipe, environment, metrics, tests, stages and logs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ar2.cards.facts import CHOSEN, read_json
from hf_ar2.search.recipe_file import read_recipe

_UNFINISHED = "its recipe has not come to its end. The command that started it continues it"


@dataclass(frozen=True)
class RunFolder:
    """A run that has come to its end.

    Attributes:
        folder: where it is.
        label: tells it from the other runs of a page.
        recipe: contents of recipe.yaml.
        environment: contents of environment.json, empty where there is none.
        metrics: row -> split -> system -> metric -> value, as in metrics.json.
        tests: row -> split -> system -> the fields of a `PairedTest`.
        chief: the metric that was tested.
        stages: stage -> contents of its done.json and its `log_history`, in the order they ran.
        chosen: contents of chosen.json, which system is served; empty for a run without one.
    """

    folder: Path
    label: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    tests: dict[str, Any]
    chief: str
    stages: dict[str, dict[str, Any]]
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The split that the recipe reports on."""
        return str((self.recipe.get("evaluation") or {}).get("report_split", "test"))


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[RunFolder]:
    """Read run folders, and give each a label of its own: its recipe's name, or else its folder's.

    Raises:
        FileNotFoundError: no run folder, or one without metrics.
        ValueError: a folder that is given twice, or a file in it that cannot be read.
    """
    paths = [Path(folder) for folder in folders]
    for place, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:place]]:
            raise ValueError(f"{path} is given twice; name every run once")
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
            raise FileNotFoundError(f"{folder} has no {name} yet: {_UNFINISHED}")
    significance = read_json(folder / "significance.json")
    stages = {}
    for stage, body in (recipe.get("stages") or {}).items():
        found: dict[str, Any] = {"trainer": body.get("trainer", ""), "log_history": []}
        for name in ("done.json", "trainer_state.json"):
            found |= read_json(folder / "stages" / stage / name)
        stages[stage] = found
    try:
        return RunFolder(
            folder=folder,
            label=label,
            recipe=recipe,
            environment=read_json(folder / "environment.json"),
            metrics=read_json(folder / "metrics.json"),
            tests=significance["tests"],
            chief=significance["metric"],
            stages=stages,
            chosen=read_json(folder / CHOSEN),
        )
    except KeyError as error:
        raise ValueError(
            f"{folder / 'significance.json'}: field {error} is missing; expected 'metric' and 'tests'. Run the "
            "recipe's evaluation again: delete the file and give the command that made the run"
        ) from None
