"""Recipes: a collection, models, and the stages that train them, in one YAML file.

How `hf-ar2 train own-corpus` runs: `run.py` reads the command line and `loading.py` the recipe (`recipe.py`); then
`runner.run_recipe` checks it (`checks.py`), divides the minutes (`planning.py`, `budget.py`), runs each stage
(`lengths.py` sets its steps, `merging.py` merges) and evaluates the rows (`evaluation.py`, `choosing.py`, `guard.py`);
`finish.py` writes the served models and prints the results. `study.py` runs a recipe with several seeds.
"""
