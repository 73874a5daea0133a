"""The evaluation at the end of a recipe: run files, metrics, significance, table, plot, and what to type next."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from hf_ar2.cards.card import model_card
from hf_ar2.cards.facts import CHOSEN, is_trained, read_json, served_row, training_of_run
from hf_ar2.cards.guard import GUARD_FILE, guard_table
from hf_ar2.collections import Collection
from hf_ar2.collections.sources import query_source_note
from hf_ar2.evaluation.runs import read_run, run_file
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.evaluation.systems import LEXICAL_ROW, SYSTEMS, evaluated_queries, measure, out_of_reach
from hf_ar2.evaluation.tables import stage_table
from hf_ar2.evaluation.weights import Blend
from hf_ar2.recipes.choosing import (
    choose,
    choosing_split,
    evaluated_splits,
    from_structure,
    serve_last,
    write_chosen,
)
from hf_ar2.recipes.encodings import keep_served_index, told_encodings
from hf_ar2.recipes.inputs import Inputs, differing
from hf_ar2.recipes.questions import question_splits, questions_note, say_questions
from hf_ar2.recipes.recipe import Recipe, RecipeError, source_name
from hf_ar2.recipes.row_evaluation import (
    BLEND,
    evaluate_lexical,
    evaluate_row,
    open_lexical,
    read_blend,
)
from hf_ar2.report.plot import plot_report
from hf_ar2.search.run_index import SEARCHED_INDEX


def check_evaluation(recipe: Recipe, collection: Collection) -> None:
    """Refuse before anything is trained an evaluation that could not be carried out after it.

    Raises:
        RecipeError: a split that the collection or the evaluation lacks, an unknown metric, or one that needs more
            passages than are retrieved, a `rerank_depth` that is no whole number of at least 0.
    """
    settings = recipe.evaluation
    if not settings.get("rows"):
        return
    splits, report_split = evaluated_splits(recipe, collection), settings.get("report_split", "test")
    weight = settings.get("pipeline_weight")
    if weight is not None and not (type(weight) in (int, float) and 0 <= weight < float("inf")):
        raise RecipeError(
            f"evaluation.pipeline_weight: found {weight!r}, expected a number of at least 0, or null to fit it"
        )
    rerank_depth = settings.get("rerank_depth", 20)
    if type(rerank_depth) is not int or rerank_depth < 0:
        raise RecipeError(
            f"evaluation.rerank_depth: found {rerank_depth!r}, expected a whole number of at least 0; with 0 the "
            "retrievers alone are evaluated"
        )
    metrics = settings.get("metrics", ["mrr@10", "ndcg@10", "recall@100"])
    chief, depth, total = recipe.test_metric, settings.get("depth", 100), len(collection.corpus)
    try:
        for split in splits:
            evaluated_queries(collection, split)
        beyond = out_of_reach(metrics, min(depth, total), total)
    except ValueError as error:
        raise RecipeError(f"evaluation: {error}") from None
    if report_split not in splits:
        raise RecipeError(
            f"evaluation.report_split: {report_split!r} is none of the splits {', '.join(splits)}"
        )
    if chief not in metrics:
        raise RecipeError(f"evaluation.test_metric: {chief!r} is none of the metrics {', '.join(metrics)}")
    if beyond:
        raise RecipeError(
            f"evaluation.metrics: {', '.join(beyond)} cannot be computed of the {depth} passages that are retrieved "
            "per query; raise evaluation.depth, or leave the metric out"
        )


def evaluate_rows(
    recipe: Recipe,
    run: Path,
    collection: Collection,
    inputs: Inputs,
    load: Callable[[str, Any], Any],
    when_chosen: Callable[[], None] = lambda: None,
    part: Collection | None = None,
) -> dict[str, Any]:
    """Evaluate every row that has not been and write its run files; then `metrics.json`, `significance.json` and
    `chosen.json`.

    Args:
        when_chosen: called when every row was ranked on the split that is chosen on, before the other splits are.
        part: of the collection, what is searched for the split that is chosen on; None: all of it. With a part, only
            the first row, the best retriever and the served row are measured on the other splits.
    """
    chooses = collection if part is None else part
    settings = recipe.evaluation
    splits, more = evaluated_splits(recipe, collection), question_splits(recipe, collection)
    chosen_on = choosing_split(recipe, collection)[0]
    asked = questions_note(collection) if more else {}
    keys, due = {}, {}
    for name, row in settings["rows"].items():
        note = run / "evaluation" / name / "key.json"
        keys[name] = [row, [recipe.stage_key(s) for s in _stages(recipe, row)], settings, inputs.of_row(name)]
        there = [split for split in splits if run_file(run, name, split, "retriever").is_file()]
        fresh = there == list(splits) or (part is not None and there == [chosen_on])
        fresh &= not ("ranker" in row or settings.get("lexical")) or (note.parent / BLEND).is_file()
        fresh = fresh and _holds(note, json.loads(json.dumps(keys[name])))
        due[name] = [] if fresh else list(splits)
        # Questions are edited oftener than anything else: only what they are is ranked again.
        if more and not (fresh and read_json(note.with_name("questions.json")) == asked):
            due[name] += more
    PartialState().wait_for_everyone()  # all have looked before one writes
    if PartialState().is_main_process:
        for name in [name for name in due if set(splits) <= set(due[name])]:
            # What is left of another evaluation must not be chosen from.
            for note in ("key.json", BLEND):
                (run / "evaluation" / name / note).unlink(missing_ok=True)
            shutil.rmtree(run / "runs" / name, ignore_errors=True)
    lexical = open_lexical(recipe, run, chooses)
    for first, searched in ((True, chooses), (False, collection)):
        if not first and part is not None:
            lexical = open_lexical(recipe, run, collection)
        if lexical is not None and PartialState().is_main_process:
            ranked = [split for split in [*splits, *more] if (split == chosen_on) == first]
            evaluate_lexical(recipe, run, searched, ranked, lexical)
        measured = set(settings["rows"]) if first or part is None else _measured_rows(run, settings["rows"])
        for name in settings["rows"]:
            splits_now = [split for split in due[name] if (split == chosen_on) == first]
            if splits_now and name in measured:
                evaluate_row(recipe, run, searched, name, splits_now, load, lexical)
                PartialState().wait_for_everyone()
        if first:
            if PartialState().is_main_process:
                choose_from_runs(recipe, run, chooses)
            PartialState().wait_for_everyone()
            when_chosen()
    if not PartialState().is_main_process:
        return {}
    for name in [name for name in due if due[name]]:
        folder = run / "evaluation" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key.json").write_text(json.dumps(keys[name], sort_keys=True))
        if more:
            content = json.dumps(asked, ensure_ascii=False)
            (folder / "questions.json").write_text(content, encoding="utf-8")
        else:
            (folder / "questions.json").unlink(missing_ok=True)
    return _measure(
        recipe, run, {split: chooses if split == chosen_on else collection for split in [*splits, *more]}
    )


def _measured_rows(run: Path, rows: dict[str, Any]) -> set[str]:
    chosen = read_json(run / CHOSEN)
    return {next(iter(rows)), chosen["row"], chosen["retriever_row"]}


def choose_from_runs(recipe: Recipe, run: Path, collection: Collection) -> None:
    """Write chosen.json from the stored run files, so that a run that was interrupted comes to the same."""
    settings = recipe.evaluation
    metric = recipe.test_metric
    blends = {row: read_blend(run, row) or Blend() for row in settings["rows"]}
    split, why = choosing_split(recipe, collection)
    if split is None:
        write_chosen(run, serve_last(recipe, why, blends))
        return
    values: dict[str, dict[str, np.ndarray]] = {}
    for row in settings["rows"]:
        for system in SYSTEMS:
            found = per_query(run, row, split, system, collection, [metric])
            if found:  # the ranker's lists may be too short for the metric
                values.setdefault(row, {})[system] = found[metric]
    write_chosen(run, choose(recipe, values, blends, from_people=not from_structure(collection, split)))


def _holds(note: Path, key: list[Any]) -> bool:
    """Whether a row was evaluated with this key; one that was noted without contents is taken as it is."""
    if not note.is_file():
        return False
    *noted, contents = [*json.loads(note.read_text()), {}][:4]
    return bool(noted == key[:3]) and not differing(contents, key[3])


def _stages(recipe: Recipe, row: dict[str, Any]) -> list[str]:
    names = [source_name(row[role]) for role in ("retriever", "ranker", "index") if role in row]
    return [name for name in names if name in recipe.stages]


def per_query(
    run: Path, row: str, split: str, system: str, collection: Collection, metrics: list[str]
) -> dict[str, np.ndarray] | None:
    """Per-query values of a stored run, by metric; None where there is no such run."""
    path = run_file(run, row, split, system)
    if not path.is_file():
        return None
    stored = read_run(path, collection.queries["id"], collection.corpus["id"])
    ranking = stored.of_queries(evaluated_queries(collection, split)).passage_rows
    return measure(collection, split, ranking, metrics)


def evaluated_rows(recipe: Recipe) -> list[str]:
    """Names of the rows that there are run files of: BM25 where it was asked for, then the recipe's."""
    rows = list(recipe.evaluation.get("rows", {}))
    return [LEXICAL_ROW, *rows] if recipe.evaluation.get("lexical") else rows


def _measure(recipe: Recipe, run: Path, collections: dict[str, Collection]) -> dict[str, Any]:
    """`metrics.json`: row → split → system → metric; `significance.json`: who beats whom, on the test metric.

    Args:
        collections: split → what was searched.
    """
    settings = recipe.evaluation
    metrics = settings.get("metrics", ["mrr@10", "ndcg@10", "recall@100"])
    chief = recipe.test_metric
    means: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    for split, collection in collections.items():
        values = {
            row: {
                system: found
                for system in SYSTEMS
                if (found := per_query(run, row, split, system, collection, metrics)) is not None
            }
            for row in evaluated_rows(recipe)
            if run_file(run, row, split, "retriever").is_file()
        }
        before = with_pipeline = None
        for row, systems in values.items():
            means.setdefault(row, {})[split] = {
                system: {metric: float(value.mean()) for metric, value in found.items()}
                for system, found in systems.items()
            }
            compared = tests.setdefault(row, {}).setdefault(split, {})
            if len(evaluated_queries(collection, split)) < 2:
                continue  # no test can tell one query's difference from luck
            if before is not None:
                # Against the row before.
                compared["retriever"] = asdict(
                    paired_test(systems["retriever"][chief], values[before]["retriever"][chief])
                )
            if "hybrid" in systems:
                compared["hybrid"] = asdict(
                    paired_test(systems["hybrid"][chief], systems["retriever"][chief])
                )
            if "pipeline" in systems:
                # Against the row's own retriever, and against the last pipeline before it.
                compared["pipeline"] = asdict(
                    paired_test(systems["pipeline"][chief], systems["retriever"][chief])
                )
                if with_pipeline is not None:
                    compared["pipeline_before"] = asdict(
                        paired_test(systems["pipeline"][chief], values[with_pipeline]["pipeline"][chief])
                    )
                with_pipeline = row
            before = row
    (run / "metrics.json").write_text(json.dumps(means, indent=1))
    (run / "significance.json").write_text(json.dumps({"metric": chief, "tests": tests}, indent=1))
    return means


def finish(
    recipe: Recipe,
    run: Path,
    collection: Collection,
    seconds: float,
    load: Callable[[str, Any], Any],
    times: str,
) -> None:
    """The final models at the run's root, `report.png`, the table, and the next command.

    Args:
        collection: with the recipe's questions, where it names some.
        times: where the time went, for a person.
    """
    rows = recipe.evaluation.get("rows", {})
    if not rows:
        (run / CHOSEN).unlink(missing_ok=True)  # of an evaluation that the recipe no longer has
    chosen = read_json(run / CHOSEN)
    written = keep_models(recipe, run, load)
    keep_served_index(run, chosen.get("row") if rows else None)
    write_cards(recipe, run, written)
    histories = {}
    for stage in recipe.stages:
        state = run / "stages" / stage / "trainer_state.json"
        if state.is_file():
            histories[stage] = json.loads(state.read_text())["log_history"]
    if rows:
        metrics = json.loads((run / "metrics.json").read_text())
        tests = json.loads((run / "significance.json").read_text())
        split = recipe.evaluation.get("report_split", "test")
        print("\n" + stage_table(metrics, tests["tests"], split=split, served=chosen["row"]))
        if note := query_source_note(collection, split, str(run)):
            print(f"\n{note}")
        if recipe.guard is not None:
            print("\n" + guard_table(json.loads((run / GUARD_FILE).read_text(encoding="utf-8"))))
        plot_report(
            histories, metrics, run / "report.png", split=split, metric=tests["metric"], title=recipe.name
        )
        say_questions(recipe, run, collection)
    written += ["metrics.json", "chosen.json", "runs/", "report.png"] if rows else ["stages/"]
    if encoded := told_encodings(run):
        print(f"\n{encoded}")
    print(f"\n{times}")
    print(f"\n{seconds / 60:.1f} minutes. In {run}: {', '.join(written)}")
    if chosen:
        print(textwrap.fill(f"Served: {chosen['reason']} {chosen['advice']}", 100))
    if "retriever/" in written:
        print(f'Next: hf-ar2 search {run} "your query"')
        if rows:
            print(f"      hf-ar2 report {run}")


def keep_models(recipe: Recipe, run: Path, load: Callable[[str, Any], Any]) -> list[str]:
    """Put what the served row of the evaluation used at the run's root, in the place of what was there before.

    Args:
        load: the model of a role and a source, as it was evaluated.

    Returns:
        The folders that are there now, such as `"retriever/"`.
    """
    served = served_row(run, vars(recipe))
    written = []
    # An LTRe stage leaves more than a retriever.
    for role, part in (
        ("retriever", "retriever"),
        ("retriever", "query_encoder"),
        ("index", SEARCHED_INDEX),
        ("ranker", "ranker"),
    ):
        new = run / f".{part}.partial"  # so that an interrupted copy leaves the former models, or none
        shutil.rmtree(new, ignore_errors=True)
        source = served.get(role)
        stage = source_name(source) if source is not None else None
        trained = run / "stages" / str(stage) / part
        if stage in recipe.stages and trained.is_dir() and not (part == role and isinstance(source, dict)):
            shutil.copytree(trained, new)
        elif part == role and source is not None:  # one of the recipe's, or a stage's with changes
            load(role, source).save_pretrained(str(new), create_model_card=False)
        shutil.rmtree(run / part, ignore_errors=True)
        if new.is_dir():
            new.rename(run / part)
            written.append(f"{part}/")
    return written


def write_cards(recipe: Recipe, run: Path, written: list[str]) -> None:
    """A README.md in each of the run's models that are at its root: what its stages were and what came out.

    Args:
        written: folders at the run's root, such as `"retriever/"`; those that hold no model that a stage of the run
            trained are passed over.
    """
    for part, role, other in (
        ("retriever", "retriever", "ranker"),
        ("query_encoder", "retriever", "ranker"),
        ("ranker", "ranker", "retriever"),
    ):
        if f"{part}/" in written and is_trained(run, vars(recipe), role):
            card = model_card(
                training_of_run(run, vars(recipe), role),
                run / part,
                partner=str(run / other) if f"{other}/" in written else None,
                query_side_of=str(run / "retriever") if part == "query_encoder" else None,
            )
            (run / part / "README.md").write_text(card, encoding="utf-8")
