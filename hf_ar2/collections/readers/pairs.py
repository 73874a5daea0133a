"""Pairs, labelled pairs, triplets and scored lists of texts, as the trainers of sentence-transformers take them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import csv_rows, json_lines
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.splits import SPLITS, nonempty_splits
from hf_ar2.collections.tables import (
    LIST_FEATURES,
    PASSAGE_FEATURES,
    QUERY_FEATURES,
    dataset_of,
    read_parquet,
    relevant_qrels,
)
from hf_ar2.progress import progress_bar

logger = logging.getLogger(__name__)

# What `load_collection` takes; `load_pairs` takes no list, and in a mapping only datasets.
Source: TypeAlias = str | Path | datasets.Dataset | Mapping[str, Any] | list[Any]

FORMATS = (".parquet", ".jsonl", ".json", ".csv")
_QUERY = ("anchor", "query", "question")
_PASSAGE = ("positive", "passage", "answer", "document", "context")
_NEGATIVE = re.compile(r"negatives?|negative[_-]?\d+")
# The names that sentence-transformers reserves for labels.
_SCORES = ("label", "labels", "score", "scores")
_EXPECTED = (
    f"one column with queries ({', '.join(_QUERY)}), one with passages ({', '.join(_PASSAGE)}), and optionally "
    f"negatives (negative, negative_1 and so on, or lists in negatives) and one column of scores ({', '.join(_SCORES)})"
)
_DEV = ("validation", "valid", "val", "eval")
_SPLIT_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join((*SPLITS, *_DEV))})(?![a-z])")

Row = tuple[int, dict[str, Any]]


class _Columns(NamedTuple):
    query: str
    passage: str
    negatives: list[str]
    scores: str | None


def load_pairs(
    source: Source, *, name: str | None = None, cache_dir: str | Path | None = None, skip: Iterable[str] = ()
) -> Collection:
    """Reads rows of a query, a relevant passage, and optionally negatives and a teacher's scores.

    Columns are recognised by their names, in any case; others are ignored, with a warning:

    - the query: `anchor`, `query` or `question`; the passage: `positive`, `passage`, `answer`, `document` or `context`;
    - negatives: `negative`, `negative_1`, `negative_2` and so on, or `negatives`; a cell is a text or a list of texts;
    - scores of the n negatives and the passage: `label`, `labels`, `score` or `scores`. As in sentence-transformers, a
      cell is a list of 1 + n scores, the passage's first, or n margins (the passage's score minus a negative's); with
      one negative the margin may be a number;
    - without columns of negatives, the same column has labels: 1 where the passage is relevant, 0 where it is a
      negative of the query.

    Equal texts are one passage or one query, whose id is a hash of the text; so a query that is also a passage has the
    id of that passage, see `Collection.own_rows`. Negatives and scores become `Collection.lists`, to train on with
    `train_lists=["collection"]`: a list for each pair of query and passage, with the negatives of all its rows. Of
    margins, lists keep 0 for the passage and minus the margin for a negative. A negative that is relevant to its query
    in another row, or has the text of the query, is dropped and counted in `skipped`, and so are the negatives of
    queries without a relevant passage.

    Splits are those of the source (`validation`, `valid`, `val` and `eval` become `dev`). If there is only `train`, a
    hash of the query puts 80 % of the queries into train, 10 % into dev and 10 % into test.

    Args:
        source: A `datasets.Dataset`, which is the split `train`; a `DatasetDict`, or another dict of split -> Dataset;
            a file (parquet, JSON lines, csv with a header; the last two also gzipped); a folder with such files, also
            in its subfolder `data`, where the split is a word of the file's name (`nli-dev.jsonl`) or else `train`; a
            folder of `save_to_disk`; or a Hub id, with a configuration after a colon where there are several
            (`sentence-transformers/all-nli:triplet`).
        name, cache_dir, skip: As in `load_collection`; the name of datasets in memory is by default "pairs".

    Raises:
        CollectionError: The source or its columns are unknown, or a row is invalid; the message names the column and
            the line (in a table the row, counted from 1).

    Example:
        >>> from datasets import Dataset
        >>> rows = {"anchor": ["who sings?"], "positive": ["Birds sing."], "negative": ["A dog barks."]}
        >>> collection = load_pairs({"train": Dataset.from_dict(rows), "dev": Dataset.from_dict(rows)})
        >>> collection
        Collection 'pairs': 2 passages, 1 query
          train: 1 query, 1 judgment (1 relevant)
          dev: 1 query, 1 judgment (1 relevant)
          training lists: 1
    """
    problems = Problems(skip)
    pairs = _Pairs(problems)
    for split, place, columns, rows in _tables(source, cache_dir, problems):
        pairs.read(split, place, _columns_of(columns, place), rows)
    if name is None:
        name = Path(source).resolve().name.partition(":")[0] if isinstance(source, str | Path) else "pairs"
    if not pairs.passages:
        raise CollectionError(f"{name}: found no rows; expected at least one pair of a query and a passage")
    if not any(pairs.judged.values()):
        raise CollectionError(f"{name}: all labels are 0; expected 1 for the passages that are relevant")
    collection = pairs.collection(name)
    problems.log_skipped(name)
    return collection


class _Pairs:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.passages: dict[str, str] = {}  # id -> text, as the next
        self.queries: dict[str, str] = {}
        self.judged: dict[str, dict[tuple[str, str], None]] = {}  # split -> (query, passage)
        # (query, passage, its score: NaN is never equal, so None without) -> negative -> score
        self.lists: dict[tuple[str, str, float | None], dict[str, float]] = {}
        self.labelled: dict[str, dict[str, float]] = {}  # query -> passages with the label 0, without scores

    def read(self, split: str, place: str, columns: _Columns, rows: Iterable[Row]) -> None:
        judged = self.judged.setdefault(split, {})
        for line, row in progress_bar(rows, description=f"Reading {place}", unit=" rows", delay=3):
            negatives = [(name, text) for name in columns.negatives for text in _listed(row.get(name))]
            texts = [(columns.query, row.get(columns.query)), (columns.passage, row.get(columns.passage))]
            if not all(self._is_text(name, text, columns, place, line) for name, text in texts + negatives):
                continue
            n = len(negatives)
            cell = row.get(columns.scores) if columns.scores else None
            labels = columns.scores is not None and not columns.negatives and cell in (0, 1)
            scores = _teacher_scores(cell, n) if columns.scores and not labels else None
            if columns.scores and not labels and scores is None:
                found = f"{columns.scores} {cell!r} of a row with {n} negatives"
                expected = f"a list of {n + 1} finite scores, the passage's first"
                expected += f", or {n} margins between the passage and each negative" if n else ""
                advice = "Remove the column if it does not hold a teacher's scores."
                if n == 0:
                    advice = f"Without it, every row is a relevant passage. {advice}"
                if not columns.negatives:
                    expected += ", or a label: 1 for a relevant passage, 0 for another one"
                self.problems.malformed(place, line, found, expected, advice)
                continue
            query, passage = (_id(text) for _, text in texts)
            self.queries.setdefault(query, texts[0][1])
            self.passages.setdefault(passage, texts[1][1])
            if labels and not cell:
                self.labelled.setdefault(query, {})[passage] = math.nan
                continue
            judged[query, passage] = None
            if not negatives:
                continue
            of_list = self.lists.setdefault((query, passage, scores[0] if scores else None), {})
            of_negatives = scores[1:] if scores else [math.nan] * n
            for (_, text), score in zip(negatives, of_negatives, strict=True):
                id = _id(text)
                self.passages.setdefault(id, text)
                if scores and of_list.get(id, score) != score:
                    found = (
                        f"the score {score} of a negative that has {of_list[id]} in another row of this pair"
                    )
                    self.problems.malformed(place, line, found, "one score")
                of_list.setdefault(id, score)

    def _is_text(self, name: str, text: Any, columns: _Columns, place: str, line: int) -> bool:
        if isinstance(text, str) and text.strip():
            return True
        cause = "empty queries" if name == columns.query else "empty passages"
        cause = cause if isinstance(text, str) else "malformed lines"
        self.problems.raise_or_skip(cause, place, line, f"{text!r} in the column {name!r}", "a text")
        return False

    def collection(self, name: str) -> Collection:
        judged = self.judged
        if list(judged) == ["train"]:
            splits = nonempty_splits(self.queries)
            judged = {
                split: {pair: None for pair in judged["train"] if splits[pair[0]] == split}
                for split in SPLITS
            }
            counts = {split: len({query for query, _ in pairs}) for split, pairs in judged.items()}
            parts = ", ".join(f"{count:,} {split}" for split, count in counts.items())
            logger.warning(f"{name} has only the split train; its queries are divided by a hash: {parts}")
        elif "train" in judged:
            trained = {query for query, _ in judged["train"]}
            for split in set(judged) - {"train"}:
                if both := len(trained & {query for query, _ in judged[split]}):
                    logger.warning(f"{name}: {both} queries of {split} are also in train")
        return Collection(
            name,
            _texts(self.passages, PASSAGE_FEATURES),
            _texts(self.queries, QUERY_FEATURES),
            {split: relevant_qrels(*zip(*pairs, strict=True)) for split, pairs in judged.items() if pairs},
            self.problems.skipped,
            lists=self._training_lists(),
        )

    def _training_lists(self) -> datasets.Dataset | None:
        positives = dict.fromkeys(pair for pairs in self.judged.values() for pair in pairs)
        for query, passage in positives:
            if query in self.labelled:
                self.lists.setdefault((query, passage, None), {}).update(self.labelled[query])
        alone = self.labelled.keys() - {query for query, _ in positives}
        if dropped := sum(len(self.labelled[query]) for query in alone):
            self.problems.skipped["negatives of queries without a relevant passage"] += dropped
        columns: dict[str, list] = {column: [] for column in LIST_FEATURES}
        for (query, passage, score), scores in self.lists.items():
            kept = [id for id in scores if id != query and (query, id) not in positives]
            if dropped := len(scores) - len(kept):
                self.problems.skipped["negatives that are relevant, or the query itself"] += dropped
            if kept:
                columns["query_id"].append(query)
                columns["positive_ids"].append([passage])
                columns["positive_scores"].append([math.nan if score is None else score])
                columns["negative_ids"].append(kept)
                columns["negative_scores"].append([scores[id] for id in kept])
                columns["kind"].append("undenoised")
        return dataset_of(columns, LIST_FEATURES) if columns["kind"] else None


def _id(text: str) -> str:
    """An id of a text that does not depend on other rows, so that a query stays in its split as data grows."""
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _texts(texts: dict[str, str], features: datasets.Features) -> datasets.Dataset:
    columns = {"id": list(texts), "text": list(texts.values()), "title": [""] * len(texts)}
    return dataset_of({name: columns[name] for name in features}, features)


def _listed(cell: Any) -> list:
    return cell if isinstance(cell, list) else [cell]


def _teacher_scores(cell: Any, negatives: int) -> list[float] | None:
    """The scores of the passage and of its negatives; None where the cell does not have them."""
    scores = _listed(cell)
    if not all(
        isinstance(score, int | float) and type(score) is not bool and math.isfinite(score)
        for score in scores
    ):
        return None
    if isinstance(cell, list) and len(scores) == negatives + 1:
        return [float(score) for score in scores]
    return [0.0, *(-float(margin) for margin in scores)] if len(scores) == negatives else None


def _columns_of(columns: list[str], place: str) -> _Columns:
    """The roles of the columns of a table: one has queries, one has passages, and at most one has scores."""
    by_role = {
        "query": [column for column in columns if column.casefold() in _QUERY],
        "passage": [column for column in columns if column.casefold() in _PASSAGE],
        "negatives": [column for column in columns if _NEGATIVE.fullmatch(column.casefold())],
        "scores": [column for column in columns if column.casefold() in _SCORES],
    }
    several = [
        f"several of {role} ({', '.join(by_role[role])})"
        for role in ("query", "passage", "scores")
        if len(by_role[role]) > 1
    ]
    if several or not by_role["query"] or not by_role["passage"]:
        found = f"found the columns {columns}{', ' if several else ''}{', '.join(several)}"
        raise CollectionError(
            f"{place}: {found}; expected {_EXPECTED}. Rename the columns, or remove those that are not meant"
        )
    read = {column for names in by_role.values() for column in names}
    if unread := [column for column in columns if column not in read]:
        logger.warning("%s: the columns %s are not read", place, ", ".join(unread))
    return _Columns(
        by_role["query"][0], by_role["passage"][0], by_role["negatives"], next(iter(by_role["scores"]), None)
    )


def pair_files(folder: Path) -> list[Path]:
    """The files of rows in a folder, or else in its subfolder `data`."""
    found = [
        sorted(file for file in part.glob("*") if _ending(file) in FORMATS)
        for part in (folder, folder / "data")
    ]
    return found[0] or found[1]


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _ending(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix


def _tables(
    source: Source, cache_dir: str | Path | None, problems: Problems
) -> Iterator[tuple[str, str, list[str], Iterable[Row]]]:
    """Split, place for messages, columns and rows of each table."""
    path = Path(source) if isinstance(source, str | Path) else None
    place = "dataset" if path is None else str(source)
    files: list[Path] = []
    tables: Any = source
    if path is not None and path.is_dir() and is_saved(path):
        tables = datasets.load_from_disk(str(path))
    elif path is not None and path.exists():
        files = [path] if path.is_file() else pair_files(path)
        if not files or _ending(files[0]) not in FORMATS:
            raise CollectionError(f"{source}: found no file of rows; expected {', '.join(FORMATS)}")
    elif path is not None:
        tables = _from_hub(str(source), cache_dir)
    for file in files:
        word = _SPLIT_IN_NAME.findall(file.name.casefold())
        yield _split(word[0] if word else "train"), *_read_file(file, problems)
    if not files:
        of_split = tables if isinstance(tables, Mapping) else {"train": tables}
        for split, table in of_split.items():
            at = place if table is tables else f"{place} ({split})"
            if not isinstance(table, datasets.Dataset):
                raise CollectionError(f"{at}: found a {type(table).__name__}; expected a datasets.Dataset")
            yield _split(split), at, table.column_names, _rows(table)


def _split(name: str) -> str:
    return "dev" if name in _DEV else name


def _from_hub(source: str, cache_dir: str | Path | None) -> Any:
    id, _, configuration = source.partition(":")
    try:
        return datasets.load_dataset(id, configuration or None, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise CollectionError(
            f"{source}: cannot be loaded from the Hub ({error}); expected an id, and where there are several "
            f"configurations one of them, as in {id}:NAME"
        ) from error


def _rows(table: datasets.Dataset) -> Iterator[Row]:
    batches = table.with_format("arrow").iter(1000)
    return enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def _read_file(file: Path, problems: Problems) -> tuple[str, list[str], Iterable[Row]]:
    """Place, columns and rows of a file."""
    if _ending(file) == ".parquet":
        table = read_parquet([file])
        return str(file), table.column_names, _rows(table)
    if _ending(file) == ".csv":
        lines = csv_rows(file, problems, delimiter=",")
        _, header = next(lines, (1, []))
        return str(file), header, _csv_cells(file, header, lines, problems)
    rows = list(json_lines(file, problems))
    return str(file), list(dict.fromkeys(name for _, row in rows for name in row)), rows


def _csv_cells(
    file: Path, header: list[str], lines: Iterable[tuple[int, list[str]]], problems: Problems
) -> Iterator[Row]:
    """The rows of a csv file: cells of `negatives` and of scores are JSON, the others texts."""
    for line, fields in lines:
        if len(fields) != len(header):
            found = f"{len(fields)} comma-separated columns"
            problems.malformed(file, line, found, f"the {len(header)} of line 1")
            continue
        row: dict[str, Any] = dict(zip(header, fields, strict=True))
        for name in header:
            if name.casefold() in ("negatives", *_SCORES):
                try:
                    row[name] = json.loads(row[name])
                except ValueError:
                    found = f"{row[name]!r} in the column {name!r}"
                    problems.malformed(file, line, found, "JSON: a number or a list")
                    break
        else:
            yield line, row
