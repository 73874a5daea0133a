"""Run a recipe with several seeds and print means, spreads and tests.

    python recipes/study.py RECIPE.yaml --seeds 1,2,3 --against AR2 [--key value ...]

A recipe whose stages start from the same warm-up compares methods: every row of its evaluation is a line of the table.
Per-query values are averaged over seeds before the paired test, so that a seed is not counted as more queries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.collections import Collection, load_collection
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.evaluation.tables import MARKS, format_p, format_table
from hf_ar2.recipes.evaluation import per_query
from hf_ar2.recipes.recipe import Recipe, RecipeError, load_recipe
from hf_ar2.recipes.run import parse_arguments


def main(arguments: list[str] | None = None) -> None:
    """Run what is not done, then print the table and write it to `study.md`."""
    try:
        path, overrides = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        seeds = [int(seed) for seed in overrides.pop("seeds", "1,2,3").split(",")]
        against = overrides.pop("against", None)
        recipe = load_recipe(path, overrides)
        folder = Path(overrides.pop("output_dir", f"runs/{recipe.name.replace('/', '-')}"))
        rows = list(recipe.evaluation.get("rows", {}))
        if against is not None and against not in rows:
            raise RecipeError(f"--against {against}: no such row; the recipe has {', '.join(rows)}")
        for seed in seeds:
            run_seed(path, overrides, folder / f"seed-{seed}", seed)
        table = summarise(recipe, [folder / f"seed-{seed}" for seed in seeds], against or rows[-1])
    except RecipeError as error:
        sys.exit(f"study: {error}")
    print(table)
    (folder / "study.md").write_text(table + "\n")


def run_seed(path: str, overrides: dict[str, str], folder: Path, seed: int) -> None:
    """One run in a process of its own, through `accelerate launch`; stages that are done are not done again."""
    launch = [
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *launch,
        "--num_cpu_threads_per_process",
        threads,
    ]
    command += [
        str(Path(__file__).with_name("run.py")),
        path,
        "--output_dir",
        str(folder),
        "--seed",
        str(seed),
    ]
    for key, value in overrides.items():
        command += [f"--{key}", value]
    if subprocess.run(command).returncode:
        raise RecipeError(
            f"the run with seed {seed} failed; see above, then give the same command to continue"
        )


def summarise(recipe: Recipe, runs: list[Path], against: str) -> str:
    """The table: per row mean ± standard deviation over seeds, and the test against one row."""
    collection = load_collection(recipe.collection)
    settings = recipe.evaluation
    split = settings.get("report_split", "test")
    metric = recipe.test_metric
    values = {
        system: {row: seed_values(runs, row, split, system, collection, metric) for row in settings["rows"]}
        for system in ("retriever", "pipeline")
    }
    lines = []
    for row in settings["rows"]:
        line: dict[str, Any] = {"row": row}
        for system, found in values.items():
            line[system] = spread(found[row])
        line["cost"] = cost(recipe, runs, row)
        line[f"{against} − row"] = (
            "" if row == against else difference(values["retriever"][against], values["retriever"][row])
        )
        lines.append(line)
    columns = {
        "row": "",
        "retriever": f"retriever {metric}",
        "pipeline": f"pipeline {metric}",
        "cost": "minutes",
    }
    columns[f"{against} − row"] = f"{against} − row (retriever)"
    title = f"{recipe.collection}, {split}: {len(collection.judgments(split))} queries, {len(runs)} seeds"
    body = [[line[key] for key in columns] for line in lines]
    marks = f"{MARKS} (two-sided paired test over the queries)".replace("*", "\\*")
    return f"{title}\n\n{format_table(body, list(columns.values()), markdown=True)}\n\n{marks}"


def seed_values(
    runs: list[Path], row: str, split: str, system: str, collection: Collection, metric: str
) -> np.ndarray | None:
    """Per-query values of every seed, float64 `[seeds, Q]`; None where the row has no such run."""
    found = [per_query(run, row, split, system, collection, [metric]) for run in runs]
    values = [of_seed[metric] for of_seed in found if of_seed is not None]
    return np.stack(values) if len(values) == len(runs) else None


def spread(values: np.ndarray | None) -> str:
    """Mean over seeds ± their standard deviation."""
    if values is None:
        return "–"
    means = values.mean(axis=1)
    return f"{means.mean():.3f} ± {means.std(ddof=1) if len(means) > 1 else 0:.3f}"


def difference(a: np.ndarray | None, b: np.ndarray | None) -> str:
    """Difference of the means with the p-value of the paired test over queries."""
    if a is None or b is None:
        return "–"
    test = paired_test(a.mean(axis=0), b.mean(axis=0))
    return f"{test.difference:+.3f} ({format_p(test.p_value, test.difference)})"


def cost(recipe: Recipe, runs: list[Path], row: str) -> str:
    """Mean minutes of the stage the row's retriever comes from."""
    source = recipe.evaluation["rows"][row]["retriever"]
    done = [run / "stages" / str(source) / "done.json" for run in runs]
    if not all(path.is_file() for path in done):
        return "–"
    return f"{np.mean([json.loads(path.read_text())['seconds'] for path in done]) / 60:.1f}"


if __name__ == "__main__":
    main()
