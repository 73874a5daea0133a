"""Where the time of a run went, stage by stage, and what more of it would go into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_ar2.evaluation.tables import format_table
from hf_ar2.recipes.budget import Costs, make_plan
from hf_ar2.recipes.recipe import Recipe, RecipeError

_MINING, _EVALUATION = "refresh", "evaluation"


def time_table(run: Path, recipe: Recipe, evaluation: float) -> str:
    """Seconds of every stage by what they went into, from the notes in the run folder.

    Args:
        evaluation: seconds of the evaluation of all rows.
    """
    rows: list[list[Any]] = []
    for stage in recipe.stages:
        path = run / "stages" / stage / "done.json"
        if not path.is_file():
            continue
        done = json.loads(path.read_text(encoding="utf-8"))
        parts = done.get("parts", {})
        training = sum(value for name, value in parts.items() if name not in (_MINING, _EVALUATION, "saving"))
        rows.append(
            [
                stage,
                done.get("steps"),
                parts.get(_MINING, 0.0),
                training,
                parts.get(_EVALUATION, 0.0),
                done["seconds"],
            ]
        )
    rows.append(["rows of results", None, None, None, evaluation, evaluation])
    sums = [sum(row[column] or 0.0 for row in rows) for column in range(2, 6)]
    rows.append(["all", None, *sums])
    cells = [
        [row[0], "–" if row[1] is None else f"{row[1]:,}"]
        + ["–" if value is None else f"{value:,.0f}" for value in row[2:]]
        for row in rows
    ]
    headings = ["seconds", "steps", "encoding and mining", "training", "evaluation", "all"]
    return format_table(cells, headings)


def more_time(recipe: Recipe, seconds: float, costs: Costs, more: float = 3600.0) -> str:
    """What further seconds would go into, as a sentence: the difference of the two plans.

    Args:
        recipe: as it was given, with all its stages.
        seconds: that the run had.
    """
    try:
        now, then = make_plan(recipe, seconds, costs), make_plan(recipe, seconds + more, costs)
    except RecipeError:
        return ""
    parts = []
    for stage, training in then.training.items():
        gained = training - now.training.get(stage, 0.0)
        new = " (not trained in this run)" if stage in now.dropped or stage not in now.training else ""
        if gained >= 1:
            parts.append(f"{stage} +{gained:,.0f} s{new}")
    return f"Another hour would go into: {', '.join(parts)}." if parts else ""
