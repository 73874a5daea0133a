"""The evaluation of a recipe's rows: run files, the choice of the served system, metrics and tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from hf_ar2.cards.facts import CHOSEN
from hf_ar2.collections import Collection
from hf_ar2.evaluation.hybrid import DEFAULT_LEXICAL_WEIGHT, candidates_of_both, fit_weight
from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.own import deeper, without_own
from hf_ar2.evaluation.runs import read_run, run_file, write_run
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.evaluation.systems import (
    LEXICAL_ROW,
    SYSTEMS,
    Ranking,
    evaluated_queries,
    measure,
    rankings_of_systems,
)
from hf_ar2.evaluation.weights import Blend, fit_blend
from hf_ar2.files import DamagedFile, check_files, read_json, write_json, write_note
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.recipes.choosing import choose, choosing_split, evaluated_splits, people_asked, serve_last
from hf_ar2.recipes.encodings import record_row_encodings
from hf_ar2.recipes.inputs import Inputs, differing
from hf_ar2.recipes.questions import question_splits, questions_note
from hf_ar2.recipes.recipe import Load, Recipe, on_every_machine, row_config, say, source_name
from hf_ar2.search.run_index import INDEX, LABEL, TRAINING_INDEX
from hf_ar2.trainers import LTReConfig
from hf_ar2.trainers.frozen_retrieval import FrozenRetrieval
from hf_ar2.trainers.retrieval import Retrieval, encoders_of

# In a row's folder in evaluation/: the weights of its systems.
BLEND = "pipeline.json"


def evaluate_rows(
    recipe: Recipe,
    run: Path,
    collection: Collection,
    whole: Collection,
    inputs: Inputs,
    load: Load,
    when_chosen: Callable[[], None] = lambda: None,
    part: Collection | None = None,
) -> dict[str, Any]:
    """Evaluate every row that is not up to date, choose the served system, and write run files, metrics and tests.

    Args:
        collection: as it is trained on, see `Collection.for_training`.
        whole: as users search it, with the headings that training hides, and with their questions as a split.
        when_chosen: called after every row is ranked on the split that is chosen on, before the other splits are.
        part: searched instead on the split that is chosen on. With a part, only the first row, the best retriever and
            the served row are evaluated on other splits, and on questions.
    """
    choice = collection if part is None else part
    rows = recipe.rows
    splits = evaluated_splits(recipe, collection)
    more = question_splits(recipe, whole)
    chosen_on = choosing_split(recipe, collection)[0]
    searched = {split: choice if split == chosen_on else collection for split in splits}
    searched |= dict.fromkeys(more, whole)
    asked = questions_note(whole) if more else {}
    keys = {name: _row_key(recipe, name, inputs) for name in rows}
    due = {
        name: _due_splits(recipe, run, name, keys[name], splits, [chosen_on] if part is not None else splits)
        for name in rows
    }
    for name in rows if more else ():
        # Questions change more often than anything else: only their rankings are made again.
        again = f"The questions of row {name} are searched again now."
        noted = run / "evaluation" / name / "questions.json"
        if due[name] or not _is_noted(noted, lambda found: found == asked, again):
            due[name] += more
    state = PartialState()
    state.wait_for_everyone()  # all processes have read the folder before one writes to it
    if state.is_main_process:
        # Nothing may be chosen from what an earlier evaluation left.
        for name in [name for name in due if set(splits) <= set(due[name])]:
            for file in ("key.json", BLEND):
                (run / "evaluation" / name / file).unlink(missing_ok=True)
            shutil.rmtree(run / "runs" / name, ignore_errors=True)
    kept_as = {collection.corpus_fingerprint: TRAINING_INDEX, whole.corpus_fingerprint: INDEX}
    # First the split that is chosen on, with which the served row and the weights are decided, then the others.
    for first in (True, False):
        now = {split: of for split, of in searched.items() if (split == chosen_on) == first}
        lexical = open_lexical(recipe, run, now.values())
        if lexical and state.is_main_process:
            evaluate_lexical(recipe, run, now, lexical)
        measured = set(rows)
        if not first and part is not None:
            chosen = read_json(run / CHOSEN, {})
            measured = {next(iter(rows)), chosen["row"], chosen["retriever_row"]}
        for name in rows:
            splits_now = {split: of for split, of in now.items() if split in due[name]}
            if splits_now and name in measured:
                opened = evaluate_row(recipe, run, splits_now, name, load, lexical)
                if state.is_main_process:
                    encodings = {kept_as[of]: encoding for of, encoding in opened.items() if of in kept_as}
                    record_row_encodings(run, name, encodings)
                on_every_machine(run)
        if first:
            if state.is_main_process:
                choose_from_runs(recipe, run, choice)
            on_every_machine(run)
            when_chosen()
    if not state.is_main_process:
        return {}
    for name in [name for name in due if due[name]]:
        folder = run / "evaluation" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = [*_written_runs(run, name, with_parts(collection, splits)), *folder.glob(BLEND)]
        write_note(folder / "key.json", {"of": keys[name]}, files)
        if more:
            write_note(folder / "questions.json", {"of": asked}, _written_runs(run, name, more))
        else:
            (folder / "questions.json").unlink(missing_ok=True)
    parts = {name: of for split, of in searched.items() for name in with_parts(of, [split])}
    return write_metrics(recipe, run, parts)


def _row_key(recipe: Recipe, name: str, inputs: Inputs) -> list[Any]:
    """Everything that the rankings of a row depend on."""
    row = recipe.rows[name]
    sources = [source_name(row[role]) for role in ("retriever", "ranker", "index") if role in row]
    stage_keys = [recipe.stage_key(source) for source in sources if source in recipe.stages]
    return [row, stage_keys, recipe.evaluation, inputs.of_row(name)]


def _due_splits(
    recipe: Recipe, run: Path, name: str, key: list[Any], splits: list[str], least: Sequence[str | None]
) -> list[str]:
    """The splits that a row has to be evaluated on: none if it is up to date with all of them or the `least`."""
    folder = run / "evaluation" / name
    there = [split for split in splits if run_file(run, name, split, "retriever").is_file()]
    again = f"Row {name} is evaluated again now."
    fresh = _is_noted(folder / "key.json", partial(_same_key, key), again)
    fresh &= there in (splits, list(least))
    weighted = "ranker" in recipe.rows[name] or recipe.evaluation.get("lexical")
    fresh &= not weighted or (folder / BLEND).is_file()
    return [] if fresh else list(splits)


def with_parts(collection: Collection, splits: Iterable[str]) -> list[str]:
    """The splits, each with its parts where the collection is several (see `Collection.by_member`)."""
    return [name for split in splits for name in (split, *collection.by_member(split).values())]


def _written_runs(run: Path, row: str, splits: Iterable[str]) -> list[Path]:
    found = [run_file(run, row, split, system) for split in splits for system in SYSTEMS]
    return [path for path in found if path.is_file()]


def _is_noted(path: Path, same: Callable[[Any], bool], again: str) -> bool:
    """Whether a note is `of` the same, and its files are unchanged; prints a message if they are not.

    A note of an older run has no checksums, and passes.
    """
    try:
        noted = read_json(path)
        if isinstance(noted, list):
            noted = {"of": noted, "checksums": {}}
        if not same(noted.get("of")):
            return False
        check_files(path.parent, noted["checksums"], again)
    except FileNotFoundError:
        return False
    except DamagedFile as error:
        say(str(error))
        return False
    return True


def _same_key(key: list[Any], noted: list[Any]) -> bool:
    """Whether a row was evaluated with this key; the key of an older run has no hashes of inputs, and passes."""
    *earlier, hashes = [*noted, {}][:4]
    return bool(earlier == json.loads(json.dumps(key[:3]))) and not differing(hashes, key[3])


def open_lexical(recipe: Recipe, run: Path, collections: Iterable[Collection]) -> dict[str, LexicalIndex]:
    """Corpus fingerprint → its BM25 index, kept in the run; `{}` if the recipe's evaluation has no `lexical: true`."""
    found: dict[str, LexicalIndex] = {}
    for collection in collections if recipe.evaluation.get("lexical") else ():
        if collection.corpus_fingerprint not in found:
            texts = recipe.texts.passage_texts(collection)
            index = LexicalIndex.of_members(texts, collection.member_rows, run / "lexical")
            found[collection.corpus_fingerprint] = index
    return found


def evaluate_lexical(
    recipe: Recipe, run: Path, searched: Mapping[str, Collection], lexical: Mapping[str, LexicalIndex]
) -> None:
    """Write the run files of BM25 alone, the row that all others are compared with; arguments as of `evaluate_row`."""
    for split, collection in searched.items():
        query_rows = evaluated_queries(collection, split)
        texts = collection.queries.select(query_rows)["text"][:]
        own_rows = collection.own_rows[query_rows]
        ranges = collection.searched_rows(query_rows)
        index = lexical[collection.corpus_fingerprint]
        scores, rows = index.search(texts, deeper(own_rows, recipe.depth), ranges)
        scores, rows = without_own(scores, rows, own_rows, recipe.depth)
        _write_runs(recipe, run, collection, LEXICAL_ROW, split, {"retriever": (rows, scores)})


def evaluate_row(
    recipe: Recipe,
    run: Path,
    searched: Mapping[str, Collection],
    name: str,
    load: Load,
    lexical: Mapping[str, LexicalIndex],
) -> dict[str, str]:
    """Rank the queries of some splits with a row's systems and write the run files.

    On the split that is chosen on, the weight of BM25 is fitted (fixed if people asked none of its queries), then the
    pipeline's weight and depth. Other splits are ranked with these weights, or with the stored ones.

    `searched` is split → the collection that its queries search, first the split that is chosen on; `lexical` is from
    `open_lexical`. Returns corpus fingerprint → the encoding that was searched, if it was made by the run.
    """
    row, depth, metric = recipe.rows[name], recipe.depth, recipe.test_metric
    args = row_config(recipe, name, run)
    encoders = encoders_of(args)
    retriever = load("retriever", row["retriever"]).to(args.device)
    ranks = "ranker" in row and recipe.rerank_depth
    ranker = load("ranker", row["ranker"]).to(args.device) if ranks else None
    retrieve_with = FrozenRetrieval if isinstance(args, LTReConfig) else Retrieval
    fixed = recipe.evaluation.get("pipeline_weight")
    chosen_on = choosing_split(recipe, next(iter(searched.values())))[0]
    blend = Blend(1.0 if fixed is None else float(fixed))
    if chosen_on not in searched:
        blend = read_blend(run, name) or blend
    retrieval: Retrieval | None = None
    opened: dict[str, str] = {}
    for split, collection in searched.items():
        if retrieval is None or retrieval.collection is not collection:
            retrieval = retrieve_with(retriever, ranker, collection, args, encoders)
            # The indexes of a finished run, which are used again if the models are the same.
            retrieval.encodings.kept = [run / INDEX, run / TRAINING_INDEX, run / LABEL / INDEX]
        temperatures = retrieval.retriever_temperature, retrieval.args.ranker_temperature
        query_rows = evaluated_queries(collection, split)
        scores, rows = retrieval.retrieve(query_rows, depth, f"{name}, {split}: queries")
        found = {"retriever": (rows, scores)}
        if lexical:
            texts = collection.queries.select(query_rows)["text"][:]
            own_rows, ranges = collection.own_rows[query_rows], collection.searched_rows(query_rows)
            score = partial(retrieval.score_passages, query_rows)
            index = lexical[collection.corpus_fingerprint]
            both = candidates_of_both(scores, rows, texts, index, score, own_rows, ranges)
            if split == chosen_on:
                blend = replace(blend, lexical=DEFAULT_LEXICAL_WEIGHT)
                if people_asked(collection, split):
                    values_of = partial(_values, collection, split, metric)
                    blend = replace(blend, lexical=fit_weight(both, temperatures[0], values_of, depth))
            scores, rows = both.ranked(blend.lexical, temperatures[0], depth)
            found["hybrid"] = (rows, scores)
        ranked = retrieval.ranker_scores(query_rows, rows, recipe.rerank_depth, f"{name}, {split}: ranking")
        if ranked is not None and split == chosen_on and fixed is None:
            fitted = fit_blend(scores, rows, ranked, collection, split, metric, *temperatures)
            blend = replace(fitted, lexical=blend.lexical)
        with_ranker = rankings_of_systems(scores, rows, ranked, *temperatures, blend.weight, blend.depth)
        found |= {system: value for system, value in with_ranker.items() if system != "retriever"}
        if encoders.processes.is_first:
            _write_runs(recipe, run, collection, name, split, found)
        if retrieval.opened is not None and retrieval.start is not None:
            opened[collection.corpus_fingerprint] = retrieval.start
    if encoders.processes.is_first and (ranker is not None or lexical):
        content = {**asdict(blend), "fitted_on": chosen_on if fixed is None else None}
        write_note(run / "evaluation" / name / BLEND, content)
    del retriever, ranker, retrieval
    torch.cuda.empty_cache()
    return opened


def _values(collection: Collection, split: str, metric: str, ranking: np.ndarray) -> np.ndarray:
    return measure(collection, split, ranking, [metric])[metric]


def read_blend(run: Path, row: str) -> Blend | None:
    """The weights of a row's systems, as fitted on dev; None if the row has neither BM25 nor a ranker."""
    stored = read_json(run / "evaluation" / row / BLEND, {})
    return Blend(stored["weight"], stored["depth"], stored.get("lexical", 0.0)) if stored else None


def _write_runs(
    recipe: Recipe, run: Path, collection: Collection, name: str, split: str, found: dict[str, Ranking]
) -> None:
    query_rows = evaluated_queries(collection, split)
    ids = np.asarray(collection.queries["id"][:], object)[query_rows].tolist()
    passage_ids = collection.corpus["id"]
    for part in with_parts(collection, [split]):
        kept = np.flatnonzero(np.isin(query_rows, evaluated_queries(collection, part)))
        for system in set(SYSTEMS) - set(found):  # of an evaluation with other settings
            run_file(run, name, part, system).unlink(missing_ok=True)
        for system, (ranking, values) in found.items():
            path = run_file(run, name, part, system)
            path.parent.mkdir(parents=True, exist_ok=True)
            tag = f"{recipe.name}-{name}-{system}"
            write_run(path, [ids[place] for place in kept], passage_ids, ranking[kept], values[kept], tag=tag)


def choose_from_runs(recipe: Recipe, run: Path, collection: Collection) -> None:
    """Write chosen.json from the stored run files, so that a resumed run chooses the same."""
    blends = {row: read_blend(run, row) or Blend() for row in recipe.rows}
    split, why = choosing_split(recipe, collection)
    if split is None:
        write_note(run / CHOSEN, serve_last(recipe, why, blends))
        return
    values: dict[str, dict[str, np.ndarray]] = {}
    for row in recipe.rows:
        for system in SYSTEMS:
            found = per_query(run, row, split, system, collection, [recipe.test_metric])
            if found:  # the ranker's lists may be too short for the metric
                values.setdefault(row, {})[system] = found[recipe.test_metric]
    write_note(run / CHOSEN, choose(recipe, values, blends, people_asked(collection, split)))


def per_query(
    run: Path, row: str, split: str, system: str, collection: Collection, metrics: list[str]
) -> dict[str, np.ndarray] | None:
    """Per-query values of a stored run, by metric; None if there is no such run."""
    path = run_file(run, row, split, system)
    if not path.is_file():
        return None
    stored = read_run(path, collection.queries["id"], collection.corpus["id"])
    ranking = stored.of_queries(evaluated_queries(collection, split)).passage_rows
    if (
        row == LEXICAL_ROW
    ):  # BM25 finds only passages that share a word with the query, so its lists may be short
        missing = max(parse_metric(name)[1] or 0 for name in metrics) - ranking.shape[1]
        ranking = np.pad(ranking, ((0, 0), (0, max(0, missing))), constant_values=-1)
    return measure(collection, split, ranking, metrics)


def write_metrics(recipe: Recipe, run: Path, collections: dict[str, Collection]) -> dict[str, Any]:
    """Write `metrics.json` (row → split → system → metric) and `significance.json`, the tests on the test metric."""
    metric = recipe.test_metric
    rows = [LEXICAL_ROW, *recipe.rows] if recipe.evaluation.get("lexical") else list(recipe.rows)
    means: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    for split, collection in collections.items():
        before: dict[str, dict[str, np.ndarray]] = {}  # the last retriever and the last pipeline
        for row in rows:
            measured = {
                system: per_query(run, row, split, system, collection, recipe.metrics) for system in SYSTEMS
            }
            systems = {system: values for system, values in measured.items() if values is not None}
            if "retriever" not in systems:
                continue
            means.setdefault(row, {})[split] = {
                system: {name: float(value.mean()) for name, value in values.items()}
                for system, values in systems.items()
            }
            compared = tests.setdefault(row, {}).setdefault(split, {})
            if len(evaluated_queries(collection, split)) < 2:
                continue  # a difference on one query is no evidence
            for key, system, other in (
                ("retriever", "retriever", before.get("retriever")),
                ("hybrid", "hybrid", systems["retriever"]),
                ("pipeline", "pipeline", systems["retriever"]),
                ("pipeline_before", "pipeline", before.get("pipeline")),
            ):
                if system in systems and other is not None:
                    compared[key] = asdict(paired_test(systems[system][metric], other[metric]))
            before |= systems
    write_json(run / "metrics.json", means)
    write_json(run / "significance.json", {"metric": metric, "tests": tests})
    return means
