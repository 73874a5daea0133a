"""Arrow columns of datasets: id look-up and content hashes without a Python object per row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_ar2.collections.problems import CollectionError

PASSAGE_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "title", "text")})
# Title and text for training, where they differ from those for search; null where they are the same.
TRAINING_COLUMNS = {"title": "training_title", "text": "training_text"}
TRAINING_VIEW_FEATURES = datasets.Features(
    {**PASSAGE_FEATURES, **{name: datasets.Value("string") for name in TRAINING_COLUMNS.values()}}
)
QUERY_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "text")})
# The source of a query is its origin, such as "heading" or "generated:MODEL"; "" for queries that people asked.
_ALL_QUERY_FEATURES = datasets.Features(
    {**QUERY_FEATURES, "answers": datasets.List(datasets.Value("string")), "source": datasets.Value("string")}
)
QRELS_FEATURES = datasets.Features(
    {
        "query_id": datasets.Value("string"),
        "passage_id": datasets.Value("string"),
        "relevance": datasets.Value("int32"),
    }
)
# Lists of positives and negatives, see `hf_ar2.training_lists.TrainingLists`.
LIST_FEATURES = datasets.Features(
    {
        "query_id": datasets.Value("string"),
        "positive_ids": datasets.List(datasets.Value("string")),
        "negative_ids": datasets.List(datasets.Value("string")),
        "positive_scores": datasets.List(datasets.Value("float32")),
        "negative_scores": datasets.List(datasets.Value("float32")),
        "kind": datasets.Value("string"),
    }
)
_HASHED_ROWS = 65_536


def dataset_of(columns: Mapping[str, Sequence | np.ndarray], features: datasets.Features) -> datasets.Dataset:
    """A dataset from Python or numpy columns; unlike `from_dict`, does not encode every value."""
    schema = features.arrow_schema
    arrays = [pa.array(columns[name], type=schema.field(name).type) for name in schema.names]
    return datasets.Dataset(pa.table(arrays, schema=schema))


def read_parquet(files: Sequence[Path]) -> datasets.Dataset:
    """The rows of parquet files, in order; CollectionError if one cannot be read or has other columns."""
    try:
        return datasets.Dataset(pa.concat_tables([pq.read_table(file) for file in files]))
    except (pa.ArrowException, OSError) as error:
        raise CollectionError(f"{files[0]}: cannot be read as parquet ({error})") from error


def query_features(columns: Iterable[str]) -> datasets.Features:
    """Features of queries with these columns, out of `id`, `text`, `answers` and `source`."""
    given = set(columns)
    return datasets.Features({name: of for name, of in _ALL_QUERY_FEATURES.items() if name in given})


def check_columns(place: str, dataset: datasets.Dataset, expected: Sequence[str]) -> None:
    """Raises `CollectionError` if a column is missing."""
    if missing := [name for name in expected if name not in dataset.column_names]:
        found = f"found columns {dataset.column_names}; expected {list(expected)}, {missing} is missing"
        raise CollectionError(f"{place}: {found}")


def relevant_qrels(query_ids: Sequence[str], passage_ids: Sequence[str]) -> datasets.Dataset:
    """Judgments of relevance 1 for each pair."""
    columns = {"query_id": query_ids, "passage_id": passage_ids, "relevance": [1] * len(query_ids)}
    return dataset_of(columns, QRELS_FEATURES)


def arrow_column(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """The column as Arrow data, without a copy where the dataset has no indices mapping.

    `with_format` would copy the dataset, and serialise a FAISS index that is attached to it.
    """
    column = dataset.data.column(name)
    if dataset._indices is not None:
        column = column.take(dataset._indices.column(0))
    return column


def rows_of(ids: pa.ChunkedArray | Sequence[str], known_ids: pa.ChunkedArray) -> np.ndarray:
    """The row of each id in `known_ids` as int64 `[N]`, -1 where there is none."""
    if not isinstance(ids, pa.ChunkedArray):
        ids = pa.chunked_array([pa.array(ids, type=pa.string())])
    if len(ids) == 0:
        return np.empty(0, dtype=np.int64)
    found = pc.index_in(ids, value_set=known_ids.cast(ids.type))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def first_occurrences(ids: pa.ChunkedArray) -> np.ndarray:
    """A bool mask `[N]`: True where no earlier row has the same id."""
    if len(ids) == 0:
        return np.empty(0, dtype=bool)
    # Codes are assigned in the order of first occurrence, so a new id has a code above all before it.
    codes = pa.concat_arrays(ids.chunks).dictionary_encode().indices.to_numpy()
    return np.append(True, codes[1:] > np.maximum.accumulate(codes)[:-1])


def hash_strings(column: pa.ChunkedArray, digest: hashlib.blake2b) -> None:
    """Adds a string column to a hashlib digest; the result does not depend on the chunks."""
    digest.update(f"strings {len(column)};".encode())
    for start in range(0, len(column), _HASHED_ROWS):
        part = column.slice(start, _HASHED_ROWS).cast(pa.large_string())
        digest.update(pc.binary_length(part).to_numpy().tobytes())
        for chunk in part.chunks:
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            if len(chunk) and ends[-1] > ends[0]:
                digest.update(memoryview(data)[ends[0] : ends[-1]])


def hash_string_lists(column: pa.ChunkedArray, digest: hashlib.blake2b) -> None:
    """Adds a column of lists of strings to a hashlib digest."""
    digest.update(pc.list_value_length(column).to_numpy().astype(np.int64).tobytes())
    hash_strings(flat(column), digest)


def flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a column of lists, one after the other."""
    return pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=column.type.value_type)


def lists_fingerprint(lists: datasets.Dataset) -> str:
    """32 hex digits that identify the ids, scores and kinds of training lists, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("query_id", "kind"):
        hash_strings(arrow_column(lists, name), digest)
    for role in ("positive", "negative"):
        hash_string_lists(arrow_column(lists, f"{role}_ids"), digest)
        digest.update(flat(arrow_column(lists, f"{role}_scores")).to_numpy().tobytes())
    return digest.hexdigest()


def content_hash(*parts: bytes | np.ndarray) -> str:
    """32 hex digits of byte strings and arrays, each with its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        digest.update(f"{len(data)};".encode())
        digest.update(data)
    return digest.hexdigest()
