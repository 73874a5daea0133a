"""The end of a run: the served models and their cards, the table, the plot, and what to type next."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

from hf_ar2.cards.card import model_card
from hf_ar2.cards.facts import CHOSEN, is_trained, served_row, training_of_run
from hf_ar2.cards.guard import GUARD_FILE, guard_table
from hf_ar2.cards.mark import write_card
from hf_ar2.collections import Collection
from hf_ar2.collections.questions import query_source_note
from hf_ar2.evaluation.tables import member_table, stage_table
from hf_ar2.files import files_in, read_json, write_note, writing
from hf_ar2.models.lora import save_model
from hf_ar2.progress import format_duration
from hf_ar2.recipes.encodings import encoding_times, keep_served_index
from hf_ar2.recipes.questions import print_questions
from hf_ar2.recipes.recipe import Load, Recipe, source_name
from hf_ar2.report.plot import plot_report
from hf_ar2.search.run_index import SEARCHED_INDEX
from hf_ar2.search.runs import SERVED


def finish(recipe: Recipe, run: Path, collection: Collection, seconds: float, load: Load, times: str) -> None:
    """Write the served models to the run's root and `report.png`, print the table and the next command.

    The collection has the recipe's questions. `seconds` are those of this call of the command, `times` is a table of
    where the time went.
    """
    if not recipe.rows:
        (run / CHOSEN).unlink(missing_ok=True)  # of an evaluation that the recipe no longer has
    chosen = read_json(run / CHOSEN, {})
    written = save_served_models(recipe, run, load)
    keep_served_index(run, chosen.get("row") if recipe.rows else None)
    write_cards(recipe, run, written)
    states = {stage: read_json(run / "stages" / stage / "trainer_state.json", {}) for stage in recipe.stages}
    histories = {stage: state["log_history"] for stage, state in states.items() if state}
    if recipe.rows:
        metrics, significance = read_json(run / "metrics.json", {}), read_json(run / "significance.json", {})
        split = recipe.report_split
        tests, names = significance["tests"], recipe.table_metrics
        print("\n" + stage_table(metrics, tests, split=split, names=names, served=chosen["row"]))
        if parts := collection.by_member(split):
            print("\n" + member_table(metrics, parts, recipe.test_metric))
        left = [row for row in recipe.rows if split not in metrics.get(row, {})]
        if left:  # with a part of the corpus, encoding the whole corpus for all rows takes too long
            reason = f"Not evaluated on {split}, to save time, because they are not served"
            print("\n" + textwrap.fill(f"{reason}: {', '.join(left)}.", 80))
        if asked := query_source_note(collection, split, None if recipe.questions else str(run)):
            print(f"\n{asked}")
        if recipe.guard is not None:
            print("\n" + guard_table(read_json(run / GUARD_FILE, {})))
        metric = significance["metric"]
        plot_report(histories, metrics, run / "report.png", split=split, metric=metric, title=recipe.name)
        print_questions(recipe, run, collection)
    written += ["metrics.json", "chosen.json", "runs/", "report.png"] if recipe.rows else ["stages/"]
    if encoded := encoding_times(run):
        print(f"\n{encoded}")
    print(f"\n{times}")
    print(f"\nThis command took {format_duration(seconds)}. In {run}: {', '.join(written)}")
    if chosen:
        print(textwrap.fill(f"Served: {chosen['reason']} {chosen['advice']}", 100))
    if "retriever/" in written:
        print(f'Next: hf-ar2 search {run} "your query"')
        if recipe.rows:
            print(f"      hf-ar2 report {run}")


def save_served_models(recipe: Recipe, run: Path, load: Load) -> list[str]:
    """Copy the models of the served row to the run's root. Returns their folders, such as `"retriever/"`."""
    served = served_row(run, vars(recipe))
    written = []
    (run / SERVED).unlink(missing_ok=True)
    ltre = (("retriever", "query_encoder"), ("index", SEARCHED_INDEX))  # only stages of LTRe have these
    for role, part in (("retriever", "retriever"), *ltre, ("ranker", "ranker")):
        new = run / f".{part}.partial"  # so that an interrupted copy leaves the former models, or none
        shutil.rmtree(new, ignore_errors=True)
        source = served.get(role)
        stage = source_name(source) if source is not None else None
        trained = run / "stages" / str(stage) / part
        if stage in recipe.stages and trained.is_dir() and not (part == role and isinstance(source, dict)):
            with writing(run / part, sum(file.stat().st_size for file in files_in(trained))):
                shutil.copytree(trained, new)
        elif part == role and source is not None:  # one of the recipe's, or a stage's with changes
            save_model(load(role, source), new)
        shutil.rmtree(run / part, ignore_errors=True)
        if new.is_dir():
            new.rename(run / part)
            written.append(f"{part}/")
    write_note(run / SERVED, {}, [file for part in written for file in files_in(run / part)])
    return written


def write_cards(recipe: Recipe, run: Path, written: list[str]) -> None:
    """Write a README.md into each of the `written` models at the run's root that a stage of the run trained."""
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
            write_card(run / part, card)
