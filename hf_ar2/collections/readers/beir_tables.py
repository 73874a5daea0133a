"""The BEIR layout as tables: on the Hub (BEIR, MTEB, NanoBEIR), and as a folder of parquet files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import numpy as np
from datasets.exceptions import DatasetNotFoundError

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.readers.beir import fill_training_columns
from hf_ar2.collections.readers.entries import Qrels, Queries, id_of
from hf_ar2.collections.readers.passages import check_passages
from hf_ar2.collections.tables import (
    PASSAGE_FEATURES,
    TRAINING_COLUMNS,
    TRAINING_VIEW_FEATURES,
    arrow_column,
    check_columns,
    read_parquet,
)
from hf_ar2.collections.write import QRELS_HEADER

logger = logging.getLogger(__name__)

_NO_DATASET = (DatasetNotFoundError, ConnectionError)
_TABLES = ("corpus", "queries")


def load_beir_from_hub(
    dataset_id: str, *, name: str | None = None, cache_dir: str | Path | None = None, skip: Iterable[str] = ()
) -> Collection:
    """Reads a BEIR-style collection from the Hub.

    The configurations `corpus` and `queries` have the columns of the BEIR files; ids are in `_id` or `id`. The
    judgments are the splits (`validation` becomes `dev`) of the dataset `<id>-qrels` (`BeIR/scifact`), or else of the
    configuration `qrels` or `default` (`mteb/scifact`). If judgments have no score, every listed passage is relevant,
    and if their only split is `train`, it becomes `test` (`zeta-alpha-ai/NanoSciFact`). The corpus stays memory-mapped
    by `datasets`.

    Args:
        dataset_id: The Hub id without `-qrels`.
        name, cache_dir, skip: As in `load_collection`.

    Raises:
        CollectionError: The dataset does not exist or the Hub cannot be reached, a column is missing, or an entry is
            invalid; the message names the row, counted from 1.

    Example:
        ```python
        from hf_ar2.collections import load_beir_from_hub

        collection = load_beir_from_hub("BeIR/scifact")  # judgments: BeIR/scifact-qrels
        print(collection)
        ```
    """
    try:
        passages, queries = (
            _only(f"{dataset_id} ({part})", datasets.load_dataset(dataset_id, part, cache_dir=cache_dir))
            for part in _TABLES
        )
        place, judgments = _hub_judgments(dataset_id, cache_dir)
    except _NO_DATASET as error:
        raise CollectionError(
            f"{dataset_id}: found no such folder here, and no collection on the Hub ({error}); expected a folder, or a "
            f"Hub id with the configurations corpus and queries, whose judgments are its configuration qrels or "
            f"default, or the dataset {dataset_id}-qrels"
        ) from error
    if (
        list(judgments) == ["train"]
        and not place.endswith("-qrels")
        and "score" not in judgments["train"].features
    ):
        logger.warning(f"{place}: its only split, train, is read as test, because NanoBEIR is for evaluation")
        judgments = {"test": judgments["train"]}
    name = name or dataset_id.split("/")[-1]
    return _of_tables(dataset_id, name, passages, queries, place, judgments, skip)


def _hub_judgments(
    dataset_id: str, cache_dir: str | Path | None
) -> tuple[str, Mapping[str, datasets.Dataset]]:
    """Where the judgments are, and split -> table."""
    try:
        return f"{dataset_id}-qrels", datasets.load_dataset(f"{dataset_id}-qrels", cache_dir=cache_dir)
    except _NO_DATASET as error:
        try:
            names = datasets.get_dataset_config_names(dataset_id)
        except _NO_DATASET:
            raise error from None
        part = next((part for part in ("qrels", "default") if part in names), None)
        if part is None:
            raise
    return f"{dataset_id}, {part}", datasets.load_dataset(dataset_id, part, cache_dir=cache_dir)


def _only(place: str, tables: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """The only split of a configuration, whatever its name."""
    if len(tables) != 1:
        raise CollectionError(f"{place}: found the splits {list(tables)}; expected one")
    return next(iter(tables.values()))


def load_beir_parquet(folder: str | Path, *, name: str | None = None, skip: Iterable[str] = ()) -> Collection:
    """Reads a folder of parquet files in the layout of the Hub.

    Passages are in `corpus.parquet` or `corpus/*.parquet`, queries in `queries.parquet` or `queries/*.parquet`, the
    judgments of a split in `qrels/<split>.parquet`; a table may be in parts, as in `test-00000-of-00002.parquet`.
    """
    folder = Path(folder)
    passages, queries = (_parquet(parquet_files(folder, part), folder / part) for part in _TABLES)
    of_split: dict[str, list[Path]] = {}
    for file in sorted((folder / "qrels").glob("*.parquet")):
        of_split.setdefault(file.stem.split("-0")[0], []).append(file)
    if not of_split:
        raise CollectionError(f"{folder / 'qrels'}: found no qrels; expected files such as test.parquet")
    judgments = {split: _parquet(files, folder / "qrels") for split, files in of_split.items()}
    place = str(folder / "qrels")
    return _of_tables(str(folder), name or folder.resolve().name, passages, queries, place, judgments, skip)


def parquet_files(folder: Path, part: str) -> list[Path]:
    """The parquet files of a table of a folder, in order."""
    return sorted([*folder.glob(f"{part}.parquet"), *folder.glob(f"{part}/*.parquet")])


def _parquet(files: list[Path], place: Path) -> datasets.Dataset:
    if not files:
        raise CollectionError(f"{place}: found no {place.name}.parquet or {place.name}/*.parquet")
    return read_parquet(files)


def _of_tables(
    source: str,
    name: str,
    passages: datasets.Dataset,
    table: datasets.Dataset,
    qrels_place: str,
    judgments: Mapping[str, datasets.Dataset],
    skip: Iterable[str],
) -> Collection:
    """A collection of tables in the Hub's layout, with strings or integers as ids, in a column `_id` or `id`."""
    problems = Problems(skip)
    place = f"{source} (corpus)"
    corpus = _passages(passages, place)
    keep = check_passages(corpus, lambda row: row + 1, place, problems)
    if not keep.all():
        corpus = corpus.select(np.flatnonzero(keep))
    place = f"{source} (queries)"
    queries = Queries(problems)
    table = _with_id(table, place)
    check_columns(place, table, ["_id", "text"])
    for row, entry in enumerate(table.to_list(), 1):
        queries.add(id_of(entry["_id"]) or "", entry["text"] or "", place, row, source=entry.get("source"))
    found = queries.dataset()
    query_ids, passage_ids = arrow_column(found, "id"), arrow_column(corpus, "id")
    qrels = {}
    for split, part in judgments.items():
        place = f"{qrels_place} ({split})"
        judged = Qrels(place, problems)
        if "score" not in part.column_names:  # NanoBEIR lists only relevant passages
            part = part.add_column("score", [1] * len(part))
        check_columns(place, part, QRELS_HEADER)
        columns = [arrow_column(part, column).to_pylist() for column in QRELS_HEADER]
        for row, (query_id, passage_id, relevance) in enumerate(zip(*columns, strict=True), 1):
            # The Hub's tables have integers for ids that look like numbers.
            judged.add(str(query_id), str(passage_id), relevance, row)
        qrels["dev" if split == "validation" else split] = judged.dataset(query_ids, passage_ids)
    problems.log_skipped(source)
    return Collection(name, corpus, found, qrels, problems.skipped)


def _with_id(table: datasets.Dataset, place: str) -> datasets.Dataset:
    """The table with its ids in `_id`, checked to be strings or integers."""
    if "_id" not in table.column_names and "id" in table.column_names:
        table = table.rename_column("id", "_id")
    if "_id" in table.column_names:
        dtype = str(getattr(table.features["_id"], "dtype", table.features["_id"]))
        if not dtype.startswith(("string", "large_string", "int", "uint")):
            raise CollectionError(f"{place}: found ids of type {dtype}; expected strings or integers")
    return table


def _passages(corpus: datasets.Dataset, place: str) -> datasets.Dataset:
    corpus = _with_id(corpus, place)
    check_columns(place, corpus, ["_id", "text"])
    if "title" not in corpus.column_names:
        corpus = corpus.add_column("title", [""] * len(corpus))
    hidden = set(TRAINING_COLUMNS.values()) <= set(corpus.column_names)
    features = TRAINING_VIEW_FEATURES if hidden else PASSAGE_FEATURES
    corpus = corpus.rename_column("_id", "id").select_columns(list(features)).cast(features)
    if hidden:
        corpus = fill_training_columns(corpus)
    if any(arrow_column(corpus, name).null_count for name in PASSAGE_FEATURES):
        corpus = corpus.map(
            lambda rows: {name: [value or "" for value in values] for name, values in rows.items()},
            batched=True,
        )
    return corpus
