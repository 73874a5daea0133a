"""The evaluation of every row on a file of real questions, next to the splits of the collection."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_ar2.cards.facts import CHOSEN
from hf_ar2.collections import Collection
from hf_ar2.collections.questions import QUESTIONS, qrels_of, read_questions, with_questions
from hf_ar2.evaluation.runs import read_run, run_file
from hf_ar2.evaluation.success import answered_table, questions_answered
from hf_ar2.evaluation.systems import LEXICAL_ROW, evaluated_queries
from hf_ar2.evaluation.tables import stage_table
from hf_ar2.files import read_json
from hf_ar2.recipes.recipe import Recipe, errors_at


def with_recipe_questions(recipe: Recipe, collection: Collection) -> Collection:
    """The collection with the recipe's questions, if it names a file of them."""
    if recipe.questions is None:
        return collection
    _ = collection.corpus_fingerprint  # so that the copy has it: hashing the texts can take minutes
    with errors_at("questions"):
        return with_questions(collection, recipe.questions)


def question_splits(recipe: Recipe, collection: Collection) -> list[str]:
    """The split `questions` if the recipe has questions and some are judged, else nothing."""
    return [QUESTIONS] if recipe.questions is not None and QUESTIONS in collection.qrels else []


def questions_note(collection: Collection) -> dict[str, Any]:
    """The inputs of a row's rankings of the judged questions, besides the row: their texts by id, and the passages."""
    found = collection.queries.select(evaluated_queries(collection, QUESTIONS))
    texts = dict(zip(found["id"], found["text"], strict=True))
    return {"texts": texts, "corpus": collection.corpus_fingerprint}


def answered(run: Path, rows: Iterable[str], collection: Collection) -> dict[str, tuple[str, int]]:
    """Row → its system, and for how many questions that system finds a relevant passage among the first results.

    The system is the served one, or in other rows the first that was measured of pipeline, hybrid and retriever. Rows
    that were not measured on the questions are left out.
    """
    ids = collection.queries["id"][:], collection.corpus["id"][:]
    queries = evaluated_queries(collection, QUESTIONS)
    chosen = read_json(run / CHOSEN, {})
    found: dict[str, tuple[str, int]] = {}
    for row in rows:
        systems = ["pipeline", "hybrid", "retriever"]
        if row == chosen.get("row"):
            systems.insert(0, chosen["system"])
        files = {system: run_file(run, row, QUESTIONS, system) for system in systems}
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
    label = f"hf-ar2 label {run} {recipe.questions}"
    if not question_splits(recipe, collection):
        print(
            f"\n{recipe.questions}: {asked:,} questions, none of them judged yet, so nothing was measured on them "
            f"({qrels_of(recipe.questions).name} has the judgments).\n"
            f"Judge what is found: {label}"
        )
        return
    tests = read_json(run / "significance.json", {})["tests"]
    judged = len(evaluated_queries(collection, QUESTIONS))
    metrics, served = read_json(run / "metrics.json", {}), read_json(run / CHOSEN, {}).get("row")
    print(f"\n{stage_table(metrics, tests, split=QUESTIONS, names=recipe.table_metrics, served=served)}")
    rest = f". Judge the others: {label}" if judged < asked else ""
    print(f"\n{recipe.questions}: {judged:,} of {asked:,} questions are judged{rest}")
    table = []
    for row, (system, count) in answered(run, [LEXICAL_ROW, *recipe.rows], collection).items():
        name = LEXICAL_ROW if row == LEXICAL_ROW else system
        table.append(([row, f"{name} (served)" if row == served else name], count))
    print(f"\n{answered_table(table, ['row', 'system'], judged)}")
