"""`hf-ar2 compare`: systems from run folders and TREC files in one table, with paired tests."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.cards.facts import CHOSEN, PLAN, how_to_finish, reported_split
from hf_ar2.cards.measured import part_note, query_note
from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.lines import numbered_lines
from hf_ar2.collections.questions import QUESTIONS, query_sources, with_questions
from hf_ar2.collections.tables import PASSAGE_FEATURES, QRELS_FEATURES, QUERY_FEATURES, dataset_of
from hf_ar2.command_line.launch import is_run
from hf_ar2.command_line.parser import nearest
from hf_ar2.evaluation import compare as compare_systems
from hf_ar2.evaluation import read_qrels
from hf_ar2.evaluation.metrics import DEFAULT_METRICS, parse_metric
from hf_ar2.evaluation.runs import check_run_files, run_file
from hf_ar2.evaluation.systems import LEXICAL_ROW
from hf_ar2.files import read_json
from hf_ar2.search.runs import read_recipe, with_level_of
from hf_ar2.terminal import visible_lines

# The split of a collection that is made from a qrels file.
JUDGED = "judged"


@dataclass
class Systems:
    """The systems to compare."""

    files: dict[str, Path]  # system -> TREC run file, in the order of the table
    recipes: list[dict[str, Any]]  # of the run folders
    split: str  # of the run folders and of the collection
    notes: list[str] = field(default_factory=list)  # remarks below the table

    @property
    def first(self) -> str:
        """The system that the others are compared with: the first one except BM25, which run folders list first."""
        others = [name for name in self.files if name.split("/")[-1] != LEXICAL_ROW]
        return others[0] if others else next(iter(self.files))


def compare(arguments: argparse.Namespace) -> None:
    """Print the table, and write it to a file on request."""
    for metric in arguments.metrics or ():
        parse_metric(metric)  # a wrong name fails before anything is loaded
    systems = find_systems(arguments.systems, arguments.split)
    collection = judged_collection(arguments, systems)
    split = JUDGED if arguments.qrels else systems.split
    metrics = arguments.metrics or metrics_of(systems.recipes)
    against = arguments.against or systems.first
    if against not in systems.files:
        raise ValueError(f"--against {against}: no such system{nearest(against, systems.files)}")
    result = compare_systems(collection, systems.files, split, metrics, against, arguments.relevance_level)
    title = result.title.replace(f", {JUDGED}:", ":") if arguments.qrels else result.title
    asked = query_note(query_sources(collection), [split])
    result = replace(result, title=title, notes=[*filter(None, [asked]), *systems.notes, *result.notes])
    if arguments.markdown:
        text = result.to_markdown()
    else:
        text = result.to_latex() if arguments.latex else str(result)
    print(visible_lines(text))
    if arguments.output:
        path = Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"\nIn {path}: this table")


def find_systems(given: Sequence[str], split: str | None) -> Systems:
    """The run files of the systems: for a run folder those of BM25, and of every row's retriever, hybrid and pipeline.

    A system is named after the row (`ROW`, `ROW + BM25`, `ROW pipeline`, or `ROW ranker` if the run serves that) or the
    file. With several run folders, the folder's name comes first.
    """
    folders = {}
    for name in given:
        if Path(name).is_dir():
            _check_not_results(Path(name))
            folders[name] = read_recipe(name)
    recipes = list(folders.values())
    if split is None:
        split = reported_split(recipes[0]) if recipes else "test"
    found = Systems({}, recipes, split)
    named: list[tuple[str, Path]] = []
    for name in given:
        path = Path(name)
        if name in folders:
            before = f"{path.resolve().name}/" if len(folders) > 1 else ""
            files = _row_files(path, folders[name], split, found.notes)
            named += [(before + row, file) for row, file in files]
        elif path.is_file():
            named.append((re.sub(r"(\.(trec|run|txt|tsv))?(\.gz)?$", "", path.name), path))
        else:
            raise FileNotFoundError(f"{name}: no such run folder or TREC run file")
    named = _with_lexical_once(named)
    counts = Counter(name for name, _ in named)
    for name, path in named:
        name = name if counts[name] == 1 else str(path)
        if name in found.files:
            raise ValueError(f"{name} is given twice; expected each system once")
        found.files[name] = path
    return found


def _with_lexical_once(named: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The systems with BM25 listed once, as `BM25`, if its ranking is the same in all runs."""
    lexical = [path for name, path in named if name.split("/")[-1] == path.parent.name == LEXICAL_ROW]
    rankings = [[line.split()[:4] for _, line in numbered_lines(path)] for path in lexical]
    if not lexical or any(ranking != rankings[0] for ranking in rankings):
        return named
    once = [(LEXICAL_ROW if path == lexical[0] else name, path) for name, path in named]
    return [(name, path) for name, path in once if path not in lexical[1:]]


def _check_not_results(folder: Path) -> None:
    """Check that a folder was not written by `hf-ar2 evaluate --output`, whose run files have to be named."""
    files = sorted(folder.glob("*.trec"))
    if files and not is_run(folder):
        qrels = min(folder.glob("*.qrels"), default=folder / "test.qrels")
        raise ValueError(f"{folder} is not a run folder; name its run files: {files[0]} ... --qrels {qrels}")


def _row_files(run: Path, recipe: dict[str, Any], split: str, notes: list[str]) -> list[tuple[str, Path]]:
    """System and run file of every row that a recipe's evaluation has written."""
    files, evaluation = [], recipe.get("evaluation") or {}
    rows = evaluation.get("rows") or {}
    expected = [*evaluation.get("splits", ()), reported_split(recipe)]
    chosen = read_json(run / CHOSEN, {})
    if chosen:
        notes.append(f"{run} serves {chosen['reason']}")
        notes += filter(None, [part_note(read_json(run / PLAN, {}), chosen, [split])])
    lexical = [LEXICAL_ROW] * run_file(run, LEXICAL_ROW, split, "retriever").is_file()
    for row in [*lexical, *rows]:
        check_run_files(run, row)
        systems = {"retriever": row, "hybrid": f"{row} + BM25", "pipeline": f"{row} pipeline"}
        if (chosen.get("row"), chosen.get("system")) == (row, "ranker"):
            systems["ranker"] = f"{row} ranker"
        paths = [(label, run_file(run, row, split, system)) for system, label in systems.items()]
        of_row = [(label, path) for label, path in paths if path.is_file()]
        if not of_row:
            notes.append(f"{run}: row {row} has not been evaluated on {split} and is left out.")
        files += of_row
    if not files:
        splits = sorted({path.name.split(".")[0] for path in run.glob("runs/*/*.trec")})
        if splits and (split not in expected or (run / "metrics.json").is_file()):
            raise ValueError(
                f"{run} has no run files of split {split!r}; it has {', '.join(splits)}; choose with --split"
            )
        raise ValueError(f"{run} has no results yet: it is not finished. {how_to_finish(run)}")
    return files


def judged_collection(arguments: argparse.Namespace, systems: Systems) -> Collection:
    """The judgments: those of --qrels, of --collection, or of the run folders' collection."""
    if arguments.qrels:
        if arguments.split and not systems.recipes:
            raise ValueError("--split is for collections with several splits; with --qrels, leave it out")
        return collection_of_qrels(Path(arguments.qrels), list(systems.files.values()))
    sources = list(dict.fromkeys(str(recipe["collection"]) for recipe in systems.recipes))
    if arguments.collection:
        sources = [arguments.collection]
    if not sources:
        raise ValueError("TREC run files have no judgments: add --qrels FILE or --collection SOURCE")
    if len(sources) > 1:
        raise ValueError(
            f"the runs use {len(sources)} collections, {' and '.join(sources)}; compare runs of one collection, or "
            "choose it with --collection"
        )
    collection = load_collection(sources[0]).for_training()  # as the runs read it
    if systems.recipes:
        collection = with_level_of(systems.recipes[0], collection)
    asked = dict.fromkeys(recipe["questions"] for recipe in systems.recipes if recipe.get("questions"))
    if systems.split != QUESTIONS or not asked:
        return collection
    if len(asked) > 1:
        files = " and ".join(asked)
        raise ValueError(f"the runs use {len(asked)} files of questions, {files}; compare runs of one")
    return with_questions(collection, next(iter(asked)))


def collection_of_qrels(qrels: Path, runs: Sequence[Path]) -> Collection:
    """A collection with ids only: those of a qrels file and of the run files, in split `judged`."""
    if not qrels.is_file():
        raise FileNotFoundError(
            f"--qrels {qrels}: no such file; expected lines of query_id 0 passage_id relevance"
        )
    ids: tuple[dict[str, None], dict[str, None]] = ({}, {})  # dicts keep the order
    for path in (qrels, *runs):
        for _, line in numbered_lines(path):
            fields = line.split()
            if len(fields) >= 3:  # shorter lines are errors of the reader below
                ids[0][fields[0]] = ids[1][fields[1 if len(fields) == 3 else 2]] = None
    query_ids, passage_ids = map(list, ids)
    judgments = read_qrels(qrels, query_ids, passage_ids)
    if not len(judgments):
        raise ValueError(f"{qrels}: found no judgment; expected lines of query_id 0 passage_id relevance")
    queries = np.repeat(judgments.query_rows, np.diff(judgments.offsets))
    columns: dict[str, list[Any]] = {
        "query_id": [query_ids[row] for row in queries],
        "passage_id": [passage_ids[row] for row in judgments.passage_rows],
        "relevance": judgments.relevance.tolist(),
    }
    empty = [""] * len(passage_ids)
    return Collection(
        name=qrels.name,
        corpus=dataset_of({"id": passage_ids, "title": empty, "text": empty}, PASSAGE_FEATURES),
        queries=dataset_of({"id": query_ids, "text": query_ids}, QUERY_FEATURES),
        qrels={JUDGED: dataset_of(columns, QRELS_FEATURES)},
    )


def metrics_of(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics of the first run folder's recipe, its test metric first; without run folders the default ones."""
    evaluation = (recipes[0].get("evaluation") or {}) if recipes else {}
    metrics = list(evaluation.get("metrics") or DEFAULT_METRICS)
    primary = evaluation.get("test_metric")
    return list(dict.fromkeys([primary, *metrics])) if primary else metrics
