"""The BEIR layout (Thakur et al. 2021), as a folder.

`corpus.jsonl`, `queries.jsonl`, and `qrels/<split>.tsv` for each split.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import find_file, find_splits, json_lines, tab_separated
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.readers.entries import Qrels, Queries, id_of
from hf_ar2.collections.readers.passages import PassageRows, read_corpus
from hf_ar2.collections.tables import (
    LIST_FEATURES,
    PASSAGE_FEATURES,
    TRAINING_COLUMNS,
    TRAINING_VIEW_FEATURES,
    arrow_column,
    read_parquet,
    rows_of,
)
from hf_ar2.collections.write import ANSWER_SPLIT_HEADER, ANSWER_SPLITS, LISTS, QRELS_HEADER


def load_beir(
    folder: str | Path,
    *,
    name: str | None = None,
    cache_dir: str | Path | None = None,
    skip: Iterable[str] = (),
) -> Collection:
    """Reads a BEIR folder; each file may be gzipped.

    `corpus.jsonl` has `_id`, `text` and optionally `title`, `training_title` and `training_text` (see
    `Collection.for_training`); `queries.jsonl` has `_id`, `text` and optionally `answers` (a list of strings) and
    `source` (a string, such as "heading"). Other fields are ignored. `qrels/<split>.tsv` has the header `query-id`,
    `corpus-id`, `score`. `lists.parquet` may have training lists, see `Collection.lists`.

    Args:
        name, cache_dir, skip: As in `load_collection`.

    Raises:
        CollectionError: A file is missing or has an invalid line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "corpus.jsonl").write_text('{"_id": "d1", "title": "Paris", "text": "A city."}')
        ...     _ = Path(folder, "queries.jsonl").write_text('{"_id": "q1", "text": "which city"}')
        ...     Path(folder, "qrels").mkdir()
        ...     _ = Path(folder, "qrels/test.tsv").write_text("query-id\\tcorpus-id\\tscore\\nq1\\td1\\t1")
        ...     load_beir(folder, name="tiny")
        Collection 'tiny': 1 passage, 1 query
          test: 1 query, 1 judgment (1 relevant)
    """
    folder = Path(folder)
    problems = Problems(skip)
    corpus_file, queries_file = find_file(folder, "corpus.jsonl"), find_file(folder, "queries.jsonl")
    if corpus_file is None or queries_file is None:
        missing = "corpus.jsonl" if corpus_file is None else "queries.jsonl"
        raise CollectionError(f"{folder}: found no {missing} or {missing}.gz; expected a BEIR folder")
    corpus = read_corpus(
        lambda own: _passages(corpus_file, own), [corpus_file], problems, cache_dir, TRAINING_VIEW_FEATURES
    )
    corpus = fill_training_columns(corpus)
    queries = _queries(queries_file, problems).dataset()
    query_ids, passage_ids = arrow_column(queries, "id"), arrow_column(corpus, "id")
    files, answered = find_splits(folder / "qrels", "*.tsv"), find_splits(folder / ANSWER_SPLITS, "*.tsv")
    if not files and not answered:
        raise CollectionError(f"{folder / 'qrels'}: found no qrels; expected files such as test.tsv")
    qrels = {split: _qrels(file, problems).dataset(query_ids, passage_ids) for split, file in files.items()}
    answer_splits = {split: _answered(file, query_ids, problems) for split, file in answered.items()}
    problems.log_skipped(str(folder))
    name = name or folder.resolve().name
    return Collection(name, corpus, queries, qrels, problems.skipped, answer_splits, _lists(folder / LISTS))


def _lists(file: Path) -> datasets.Dataset | None:
    if not file.is_file():
        return None
    lists = read_parquet([file])
    if lists.features != LIST_FEATURES:
        raise CollectionError(f"{file}: found the columns {lists.features}; expected {LIST_FEATURES}")
    return lists


def _passages(file: Path, problems: Problems) -> PassageRows:
    for line, entry in json_lines(file, problems):
        entry["title"] = entry.get("title") or ""
        read = {name: entry.get(name) for name in TRAINING_COLUMNS.values()}
        given = [name for name, value in read.items() if value is not None]
        if not _has_strings(entry, ("_id", "title", "text", *given), file, line, problems):
            continue
        if len(given) == len(read) and not any((value or "").strip() for value in read.values()):
            found = f"passage {entry['_id']!r} with an empty training_title and training_text"
            problems.raise_or_skip("empty passages", file, line, found, "a text to train on")
            continue
        yield line, entry["_id"], entry["title"], entry["text"], *read.values()


def fill_training_columns(corpus: datasets.Dataset) -> datasets.Dataset:
    """Fill null training columns from the title and the text; drop the columns if all their values are null."""
    read = {name: arrow_column(corpus, name) for name in TRAINING_COLUMNS.values()}
    if all(column.null_count == len(corpus) for column in read.values()):
        return corpus.select_columns(list(PASSAGE_FEATURES))
    columns = {name: arrow_column(corpus, name) for name in PASSAGE_FEATURES}
    for shown, name in TRAINING_COLUMNS.items():
        columns[name] = pc.coalesce(read[name], columns[shown])
    return datasets.Dataset(pa.table(columns, schema=TRAINING_VIEW_FEATURES.arrow_schema))


def _queries(file: Path, problems: Problems) -> Queries:
    queries = Queries(problems)
    for line, entry in json_lines(file, problems):
        if not _has_strings(entry, ("_id", "text"), file, line, problems):
            continue
        answers, source = entry.get("answers"), entry.get("source")
        if answers is not None and not (
            isinstance(answers, list) and all(isinstance(one, str) for one in answers)
        ):
            problems.malformed(file, line, f"answers {answers!r}", "a list of strings")
        elif source is not None and not isinstance(source, str):
            problems.malformed(file, line, f"source {source!r}", "a string")
        else:
            queries.add(entry["_id"], entry["text"], file, line, answers, source)
    return queries


def _has_strings(
    entry: dict[str, Any], fields: Iterable[str], file: Path, line: int, problems: Problems
) -> bool:
    """Whether an entry has these fields, all strings; an integer id becomes one."""
    for field in fields:
        value = entry.get(field)
        if field == "_id" and (id := id_of(value)) is not None:
            entry["_id"] = value = id
        if not isinstance(value, str):
            found = f"{field!r}: {entry[field]!r}" if field in entry else f"the fields {sorted(entry)}"
            expected = "a string or an integer" if field == "_id" else "a string"
            problems.malformed(file, line, found, f"a field {field!r} with {expected}")
            return False
    return True


def _qrels(file: Path, problems: Problems) -> Qrels:
    qrels = Qrels(file, problems)
    for line, (query_id, passage_id, relevance) in tab_separated(file, 3, problems, header=QRELS_HEADER):
        qrels.add(query_id, passage_id, relevance, line)
    return qrels


def _answered(file: Path, query_ids: pa.ChunkedArray, problems: Problems) -> np.ndarray:
    """The rows of the queries listed in a file of `answer_splits`."""
    listed = list(tab_separated(file, 1, problems, header=ANSWER_SPLIT_HEADER))
    rows = rows_of([fields[0] for _, fields in listed], query_ids)
    for row in np.flatnonzero(rows < 0).tolist():
        line, (id,) = listed[row]
        problems.raise_or_skip(
            "unknown queries in qrels", file, line, f"query id {id!r}", "the id of a query"
        )
    return np.unique(rows[rows >= 0])
