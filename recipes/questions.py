"""The evaluation of every row on real questions, beside the splits of the collection."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_ar2.collections import Collection
from hf_ar2.collections.questions import QUESTIONS, qrels_of, read_questions, with_questions
from hf_ar2.evaluation.runs import read_run, run_file
from hf_ar2.evaluation.success import TOP_K, questions_answered
from hf_ar2.evaluation.systems import evaluated_queries
from hf_ar2.evaluation.tables import stage_table
from hf_ar2.recipes.recipe import Recipe, RecipeError


def check_questions(recipe: Recipe) -> None:
    """Refuse a file of questions that is not there or holds none, before anything is trained.

    Raises:
        RecipeError: with the file and what is wrong with it.
    """
    if recipe.questions is None:
        return
    try:
        read_questions(str(recipe.questions))
    except ValueError as error:
        raise RecipeError(f"questions: {error}") from None


def with_recipe_questions(recipe: Recipe, collection: Collection) -> Collection:
    """The collection with the recipe's questions, where it names a file of them.

    Raises:
        RecipeError: its judgments cannot be read, or the collection has a split of this name.
    """
    if recipe.questions is None:
        return collection
    try:
        return with_questions(collection, recipe.questions)
    except ValueError as error:
        raise RecipeError(f"questions: {error}") from None


def question_splits(recipe: Recipe, collection: Collection) -> list[str]:
    """The split `questions` where it is asked for and something in it is judged, else nothing."""
    return [QUESTIONS] if recipe.questions is not None and QUESTIONS in collection.qrels else []


def questions_note(collection: Collection) -> dict[str, str]:
    """What a row's ranking of the questions depends on beside the row: their ids and texts."""
    rows = evaluated_queries(collection, QUESTIONS)
    found = collection.queries.select(rows)
    return dict(zip(found["id"], found["text"], strict=True))


def answered(run: Path, rows: Iterable[str], collection: Collection) -> dict[str, tuple[str, int]]:
    """Row -> its pipeline (without a ranker its retriever), and how many questions that answers first of all."""
    ids = list(collection.queries["id"]), list(collection.corpus["id"])
    queries = evaluated_queries(collection, QUESTIONS)
    found: dict[str, tuple[str, int]] = {}
    for row in rows:
        files = {system: run_file(run, row, QUESTIONS, system) for system in ("pipeline", "retriever")}
        system = next(system for system, file in files.items() if file.is_file())
        ranking = read_run(files[system], *ids).of_queries(queries).passage_rows
        found[row] = system, questions_answered(collection, QUESTIONS, ranking)
    return found


def say_questions(recipe: Recipe, run: Path, collection: Collection) -> None:
    """Print what the rows do on the questions, or how to judge them."""
    if recipe.questions is None:
        return
    asked = len(read_questions(recipe.questions))
    if not question_splits(recipe, collection):
        print(
            f"\n{recipe.questions}: {asked:,} questions, none of them judged yet, so nothing was measured on them "
            f"({qrels_of(recipe.questions).name} has the judgments).\n"
            f"Judge what is found: hf-ar2 label {run} {recipe.questions}"
        )
        return
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    tests = json.loads((run / "significance.json").read_text())
    judged = len(evaluated_queries(collection, QUESTIONS))
    print(f"\n{stage_table(metrics, tests['tests'], split=QUESTIONS)}")
    print(f"\n{recipe.questions}: {judged:,} of {asked:,} questions are judged. A relevant passage is")
    for row, (system, count) in answered(run, recipe.evaluation["rows"], collection).items():
        print(f"  among the first {TOP_K} of {row}, {system}: in {count:,} of {judged:,} questions")
