"""The evaluation of every row on a file of real questions, next to the splits of the collection."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hf_ar2.collections import Collection
from hf_ar2.collections.questions import QUESTIONS, qrels_of, read_questions, with_questions
from hf_ar2.evaluation.runs import read_run, run_file
from hf_ar2.evaluation.success import TOP_K, questions_answered
from hf_ar2.evaluation.systems import evaluated_queries
from hf_ar2.evaluation.tables import stage_table
from hf_ar2.files import read_json
from hf_ar2.recipes.recipe import Recipe, errors_at


def with_recipe_questions(recipe: Recipe, collection: Collection) -> Collection:
    """The collection with the recipe's questions, if it names a file of them."""
    if recipe.questions is None:
        return collection
    with errors_at("questions"):
        return with_questions(collection, recipe.questions)


def question_splits(recipe: Recipe, collection: Collection) -> list[str]:
    """The split `questions` if the recipe has questions and some are judged, else nothing."""
    return [QUESTIONS] if recipe.questions is not None and QUESTIONS in collection.qrels else []


def question_texts(collection: Collection) -> dict[str, str]:
    """Id → text of the judged questions; a row's rankings of them are made again when these change."""
    rows = evaluated_queries(collection, QUESTIONS)
    found = collection.queries.select(rows)
    return dict(zip(found["id"], found["text"], strict=True))


def answered(run: Path, rows: Iterable[str], collection: Collection) -> dict[str, tuple[str, int]]:
    """Row → its pipeline (without a ranker its retriever), and for how many questions that finds a relevant passage."""
    ids = list(collection.queries["id"]), list(collection.corpus["id"])
    queries = evaluated_queries(collection, QUESTIONS)
    found: dict[str, tuple[str, int]] = {}
    for row in rows:
        files = {system: run_file(run, row, QUESTIONS, system) for system in ("pipeline", "retriever")}
        system = next((system for system, file in files.items() if file.is_file()), None)
        if system is None:  # a part of the corpus was searched, and others were better on dev
            continue
        ranking = read_run(files[system], *ids).of_queries(queries).passage_rows
        found[row] = system, questions_answered(collection, QUESTIONS, ranking)
    return found


def print_questions(recipe: Recipe, run: Path, collection: Collection) -> None:
    """Print how the rows do on the questions, or how to judge them."""
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
    tests = read_json(run / "significance.json", {})["tests"]
    judged = len(evaluated_queries(collection, QUESTIONS))
    metrics = read_json(run / "metrics.json", {})
    print(f"\n{stage_table(metrics, tests, split=QUESTIONS, names=recipe.table_metrics)}")
    print(f"\n{recipe.questions}: {judged:,} of {asked:,} questions are judged. A relevant passage is")
    for row, (system, count) in answered(run, recipe.rows, collection).items():
        print(f"  among the first {TOP_K} of {row}, {system}: in {count:,} of {judged:,} questions")
