"""Run a recipe with several seeds and print means, spreads and tests.

    python recipes/study.py RECIPE.yaml --seeds 1,2,3 --against AR2 [--key value ...]

A recipe whose stages start from the same warm-up compares methods: every row of its evaluation is a line of the table.
Per-query values are averaged over seeds before the paired test, so that a seed is not counted as more queries.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from hf_ar2.collections import Collection, load_collection
from hf_ar2.command_line.launch import launch_command
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.evaluation.tables import MARKS, format_p, format_table
from hf_ar2.files import read_json, write_text
from hf_ar2.recipes.evaluation import per_query
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.run import parse_arguments
from hf_ar2.search.runs import with_level_of
from hf_ar2.terminal import counted


def main(arguments: list[str] | None = None) -> None:
    """Run the seeds that are not done, then print the table and write it to `study.md`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    try:
        path, overrides = parse_arguments(arguments)
        if "seed" in overrides:
            raise RecipeError(f"--seed {overrides['seed']}: a study has several; expected --seeds 1,2,3")
        seeds = read_seeds(overrides.pop("seeds", "1,2,3"))
        against = overrides.pop("against", None)
        recipe = load_recipe(path, overrides)
        folder = Path(overrides.pop("output_dir", f"runs/{recipe.name.replace('/', '-')}"))
        rows = list(recipe.rows)
        if against is not None and against not in rows:
            raise RecipeError(f"--against {against}: no such row; the recipe has {', '.join(rows)}")
        for seed in seeds:
            run_seed(path, overrides, folder / f"seed-{seed}", seed)
        table = summarise(recipe, [folder / f"seed-{seed}" for seed in seeds], against or rows[-1])
    except RecipeError as error:
        sys.exit(f"study: {error}")
    print(table)
    write_text(folder / "study.md", table + "\n")


def read_seeds(text: str) -> list[int]:
    """The seeds in `1,2,3`; each counts once."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise RecipeError(
            f"--seeds {text}: expected different whole numbers of at least 0, separated by commas, as in 1,2,3"
        )
    return seeds


def run_seed(path: str, overrides: dict[str, str], folder: Path, seed: int) -> None:
    """Run one seed in a separate process, through `accelerate launch`; stages that are done are not run again."""
    keys = {"output_dir": str(folder), "seed": str(seed), **overrides}
    options = [word for key, value in keys.items() for word in (f"--{key}", value)]
    one_process = {"num_processes": 1, "num_machines": 1}
    if subprocess.run(launch_command(Path(path), options, machines=one_process)).returncode:
        raise RecipeError(f"the run with seed {seed} failed, see above; run the same command to resume it")


def summarise(recipe: Recipe, runs: list[Path], against: str) -> str:
    """The table: per row mean ± standard deviation over seeds, and the test against one row."""
    collection = with_level_of(vars(recipe), load_collection(recipe.collection))
    split, metric = recipe.report_split, recipe.test_metric
    values = {
        system: {row: seed_values(runs, row, split, system, collection, metric) for row in recipe.rows}
        for system in ("retriever", "pipeline")
    }
    retriever = values["retriever"]
    body = []
    for row in recipe.rows:
        change = "" if row == against else difference(retriever[against], retriever[row])
        spreads = [spread(of_system[row]) for of_system in values.values()]
        body.append([row, *spreads, cost(recipe, runs, row), change])
    headings = ["", *(f"{system} {metric}" for system in values), "minutes", f"{against} − row (retriever)"]
    queries = counted(len(collection.judgments(split)), "queries")
    title = f"{recipe.collection}, {split}: {queries}, {counted(len(runs), 'seeds')}"
    marks = f"{MARKS} (two-sided paired test over the queries)".replace("*", "\\*")
    return f"{title}\n\n{format_table(body, headings, markdown=True)}\n\n{marks}"


def seed_values(
    runs: list[Path], row: str, split: str, system: str, collection: Collection, metric: str
) -> np.ndarray | None:
    """Per-query values of every seed, float64 `[seeds, Q]`; None if the row has no such run."""
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
    source = recipe.rows[row]["retriever"]
    done = [read_json(run / "stages" / str(source) / "done.json", {}) for run in runs]
    return f"{np.mean([stage['seconds'] for stage in done]) / 60:.1f}" if all(done) else "–"


if __name__ == "__main__":
    main()
