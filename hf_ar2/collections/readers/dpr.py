"""DPR's files for Natural Questions and TriviaQA: retriever json, `psgs_w100.tsv`, `*.qa.csv`.

The formats of Karpukhin et al. 2020, "Dense Passage Retrieval for Open-Domain Question Answering".
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import csv_rows, find_file
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.readers.entries import Qrels, Queries, id_of
from hf_ar2.collections.readers.json_records import json_records
from hf_ar2.collections.readers.passages import PassageRows, read_corpus
from hf_ar2.collections.tables import arrow_column, rows_of
from hf_ar2.progress import progress_bar
from hf_ar2.terminal import counted

PASSAGES_HEADER = ["id", "text", "title"]
# Fields that name a context's passage: Natural Questions, TriviaQA, and the results that DPR itself writes.
_ID_FIELDS = ("passage_id", "psg_id", "id")


def load_dpr(
    folder: str | Path,
    *,
    positives: str = "gold",
    hard_negatives: bool = False,
    name: str | None = None,
    cache_dir: str | Path | None = None,
    skip: Iterable[str] = (),
) -> Collection:
    """Reads DPR's files of one dataset from a folder; each file may be gzipped.

    - `psgs_w100.tsv`: the Wikipedia passages, with the header id, text, title.
    - `*-train.json`, `*-dev.json`, `*-test.json` (as in `biencoder-nq-train.json`): questions with answers,
      positive and hard-negative contexts. A question's id is its split and its index there: `train-0`. A context is
      named by `passage_id`, `psg_id` or `id`, with or without a prefix such as `wiki:`.
    - `*-train.qa.csv` and so on (as in `nq-test.qa.csv`): questions and answers. A split that has such a file
      is in `Collection.answer_splits`; a question that is also in the split's json is the same query, any
      other gets an id such as `test-qa-0`.

    Args:
        positives: `"gold"` takes the first positive context of a question, as in the paper; `"all"` takes all.
        hard_negatives: Whether to keep the hard-negative contexts, as judgments of relevance 0.
        name, cache_dir, skip: As in `load_collection`. A question without a positive stays among the queries.

    Raises:
        CollectionError: A file is missing or has an invalid line.

    Example:
        >>> import json, tempfile
        >>> question = {"question": "who sang", "answers": ["Ann"], "positive_ctxs": [{"passage_id": "7"}]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "psgs_w100.tsv").write_text("id\\ttext\\ttitle\\n7\\tAnn sang.\\tAnn")
        ...     _ = Path(folder, "nq-dev.json").write_text(json.dumps([question]))
        ...     collection = load_dpr(folder, name="tiny")
        >>> collection.queries[0]
        {'id': 'dev-0', 'text': 'who sang', 'answers': ['Ann']}
    """
    if positives not in ("gold", "all"):
        raise CollectionError(f"positives: found {positives!r}; expected 'gold' or 'all'")
    folder = Path(folder)
    problems = Problems(skip)
    passages = find_file(folder, "psgs_w100.tsv")
    if passages is None:
        raise CollectionError(f"{folder}: found no psgs_w100.tsv or psgs_w100.tsv.gz with DPR's passages")
    corpus = read_corpus(lambda own: _passages(passages, own), [passages], problems, cache_dir)
    passage_ids = arrow_column(corpus, "id")
    queries = Queries(problems)
    found = {
        split: _read_questions(file, split, queries, positives, hard_negatives, passage_ids, problems)
        for split, file in _files(folder, "json").items()
    }
    answered = {
        split: _read_answers(file, split, queries, problems)
        for split, file in _files(folder, "qa.csv").items()
    }
    if not len(queries):
        raise CollectionError(f"{folder}: found no files such as nq-train.json or nq-test.qa.csv")
    table = queries.dataset()
    query_ids = arrow_column(table, "id")
    qrels = {split: judged.dataset(query_ids, passage_ids) for split, judged in found.items()}
    answer_splits = {split: np.unique(rows_of(ids, query_ids)) for split, ids in answered.items()}
    problems.log_skipped(str(folder))
    return Collection(name or folder.resolve().name, corpus, table, qrels, problems.skipped, answer_splits)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    files = {}
    for split in ("train", "dev", "test"):
        found = [*folder.glob(f"*-{split}.{ending}"), *folder.glob(f"*-{split}.{ending}.gz")]
        if len(found) > 1:
            names = ", ".join(sorted(file.name for file in found))
            raise CollectionError(f"{folder}: found {names}; expected one file of {split} per folder")
        if found:
            files[split] = found[0]
    return files


def _passages(file: Path, problems: Problems) -> PassageRows:
    for line, fields in csv_rows(file, problems):
        if line == 1:
            if fields != PASSAGES_HEADER:
                raise CollectionError(
                    f"{file}:1: found the columns {fields}; expected the header {PASSAGES_HEADER}"
                )
        elif len(fields) != 3:
            found = counted(len(fields), "tab-separated columns")
            if any("\n" in field for field in fields):
                found += " (one continues over several lines; is its quote closed?)"
            problems.malformed(file, line, found, "3: id, text, title")
        else:
            id, text, title = fields
            yield line, id, title, text


def _read_questions(
    file: Path,
    split: str,
    queries: Queries,
    positives: str,
    hard_negatives: bool,
    known_passages: pa.ChunkedArray,
    problems: Problems,
) -> Qrels:
    """Adds the questions of a retriever json to the queries, and returns their judgments."""
    judged: list[tuple[str, str, int, int]] = []
    added: dict[str, int] = {}
    for number, (line, entry) in enumerate(
        progress_bar(json_records(file), description=f"Reading {file.name}", unit=" questions", delay=3)
    ):
        query_id = f"{split}-{number}"
        problem = _invalid(entry, hard_negatives)
        if problem is not None:
            problems.malformed(file, line, *problem)
        elif queries.add(query_id, entry["question"], file, line, entry["answers"]):
            added[query_id] = line
            chosen = entry["positive_ctxs"][: 1 if positives == "gold" else None]
            others = entry["hard_negative_ctxs"] if hard_negatives else []
            judged.extend((query_id, _passage_id(context), 1, line) for context in chosen)
            judged.extend((query_id, _passage_id(context), 0, line) for context in others)
    passage_ids, known = _known_ids([passage_id for _, passage_id, _, _ in judged], known_passages)
    # A passage listed twice is judged once; one that is also a hard negative is a positive.
    relevance: dict[tuple[str, str], tuple[int, int]] = {}
    answerable = set()
    for (query_id, _, grade, line), passage_id, here in zip(judged, passage_ids, known, strict=True):
        relevance.setdefault((query_id, passage_id), (grade, line))
        if here and grade:
            answerable.add(query_id)
    for query_id, line in added.items():
        if query_id not in answerable:
            found = f"question {query_id!r} without a positive context that is among the passages"
            problems.raise_or_skip("questions without a positive", file, line, found, "at least one")
    qrels = Qrels(file, problems)
    for (query_id, passage_id), (grade, line) in relevance.items():
        if query_id in answerable:
            qrels.add(query_id, passage_id, grade, line)
    return qrels


def _invalid(entry: Any, hard_negatives: bool) -> tuple[str, str] | None:
    """What was found and what was expected, if an item of a retriever json is invalid; else None."""
    if not isinstance(entry, dict):
        return f"an item that is a {type(entry).__name__}", "an object"
    lists = ["answers", "positive_ctxs"] + ["hard_negative_ctxs"] * hard_negatives
    for field, kind in [("question", str), *((field, list) for field in lists)]:
        if not isinstance(entry.get(field), kind):
            return f"{field} {entry.get(field)!r}", f"a field {field!r} of type {kind.__name__}"
    if not all(isinstance(answer, str) for answer in entry["answers"]):
        return f"answers {entry['answers']!r}", "a list of strings"
    for field in lists[1:]:
        for context in entry[field]:
            if not isinstance(context, dict) or not _passage_id(context):
                return f"a context in {field} without an id", "a field 'passage_id', 'psg_id' or 'id'"
    return None


def _passage_id(context: dict[str, Any]) -> str:
    """The id of a context's passage; "" if it has none. In some files the id is 0."""
    ids = (id_of(context.get(field)) for field in _ID_FIELDS)
    return next((id for id in ids if id), "")


def _known_ids(ids: list[str], known_passages: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The ids, and whether the corpus has them. A prefix (`wiki:7`) is removed where only the rest is an id."""
    known = rows_of(ids, known_passages) >= 0
    unknown = np.flatnonzero(~known)
    shortened = [ids[at].partition(":")[2] for at in unknown]
    fits = rows_of(shortened, known_passages) >= 0
    ids = list(ids)
    for at, short in zip(unknown[fits].tolist(), np.array(shortened, object)[fits], strict=True):
        ids[at], known[at] = short, True
    return ids, known


def _read_answers(file: Path, split: str, queries: Queries, problems: Problems) -> list[str]:
    """Adds the new questions of a `*.qa.csv` to the queries and returns the ids of all its questions."""
    known = queries.by_text(f"{split}-")
    ids = []
    for number, (line, fields) in enumerate(csv_rows(file, problems)):
        if len(fields) != 2:
            found = counted(len(fields), "tab-separated columns")
            problems.malformed(file, line, found, "2: question, list of answers")
            continue
        try:
            answers = ast.literal_eval(fields[1])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            answers = None
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            found = f"answers {fields[1][:80]!r}"
            problems.malformed(file, line, found, "a Python list of strings, as in ['one', 'two']")
            continue
        query_id = known.get(fields[0])
        if query_id is None:
            query_id = f"{split}-qa-{number}"
            if not queries.add(query_id, fields[0], file, line, answers):
                continue
        ids.append(query_id)
    return ids
