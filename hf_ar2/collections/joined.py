"""Several collections as one, to train on batches from one of them at a time and to evaluate on each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.tables import (
    LIST_FEATURES,
    PASSAGE_FEATURES,
    QRELS_FEATURES,
    TRAINING_COLUMNS,
    TRAINING_VIEW_FEATURES,
    arrow_column,
    query_features,
)
from hf_ar2.settings.plain_yaml import read_yaml
from hf_ar2.settings.values import check_name

_IDS = ("id", "query_id", "passage_id", "positive_ids", "negative_ids")


def join_collections(
    collections: Mapping[str, Collection], weights: Mapping[str, float] | None = None, name: str | None = None
) -> Collection:
    """One collection of several, whose ids begin with their collection's name: `nq/q7`.

    Every split but `train` exists for all collections together and for each one: `dev`, `dev-nq`, `dev-squad`. In
    mining and evaluation a query searches only the passages of its own collection. The lists of a training step are
    from one collection, which is drawn in proportion to its weight times the number of its training lists.

    Args:
        collections: Name -> collection, at least two.
        weights: Name -> a number above 0; 1 for the others.
        name: By default the names, joined by `+`.

    Raises:
        CollectionError: A name is not a file name without white space, a weight is not positive or not for one of the
            collections, a collection is already joined or has a relevance level, or a split has judgments in some
            collections and only answers in others.

    Example:
        >>> from hf_ar2 import load_collection
        >>> parts = {name: load_collection(f"python-packages:{name}") for name in ("json", "csv")}
        >>> joined = join_collections(parts, weights={"csv": 2})
        >>> joined.splits
        ['train', 'dev', 'test', 'dev-csv', 'dev-json', 'test-csv', 'test-json']
        >>> joined.queries["id"][0].split("/")[0]
        'json'
    """
    given = dict.fromkeys(collections, 1.0) | dict(weights or {})
    _check(collections, given)
    by_split: dict[str, dict[str, datasets.Dataset]] = {}
    answers: dict[str, np.ndarray] = {}
    first_query = 0
    for one, part in collections.items():
        for split, table in part.qrels.items():
            by_split.setdefault(split, {})[one] = table
            if split != "train":
                by_split[f"{split}-{one}"] = {one: table}
        for split, rows in part.answer_splits.items():
            for wanted in (split, f"{split}-{one}"):
                answers[wanted] = np.append(answers.get(wanted, []), rows + first_query).astype(np.int64)
        first_query += len(part.queries)
    if both := answers.keys() & by_split.keys():
        raise CollectionError(f"split {min(both)!r}: some collections have judgments, others only answers")
    corpora = {one: part.corpus for one, part in collections.items()}
    asked = {one: part.queries for one, part in collections.items()}
    lists = {one: part.lists for one, part in collections.items() if part.lists is not None}
    viewed = any(TRAINING_COLUMNS["text"] in table.column_names for table in corpora.values())
    return Collection(
        name or "+".join(collections),
        _stacked(corpora, TRAINING_VIEW_FEATURES if viewed else PASSAGE_FEATURES),
        _stacked(asked, query_features(column for table in asked.values() for column in table.column_names)),
        {split: _stacked(tables, QRELS_FEATURES) for split, tables in by_split.items()},
        {f"{one}: {cause}": n for one, part in collections.items() for cause, n in part.skipped.items()},
        answers,
        _stacked(lists, LIST_FEATURES) if lists else None,
        members={one: float(weight) for one, weight in given.items()},
    )


def sources_of(source: Any) -> dict[str, tuple[Any, float]] | None:
    """The sources of several collections: name -> source and weight; None if `source` is one collection.

    Several are a mapping, a list, or one of these as YAML text in one line,
    `{nq: data/nq, squad: {path: data/squad, weight: 2}}`. The name of an item of a list is the last part of its path. A
    mapping from names of splits to `datasets.Dataset`s is one collection.
    """
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        try:
            source = read_yaml(source)
        except ValueError as error:
            raise CollectionError(f"collection: found {source}; {error}") from None
    if isinstance(source, Mapping):
        splits = {"train", "dev", "test", "validation", "valid", "val", "eval"}
        tables = all(isinstance(part, datasets.Dataset) for part in source.values())
        if isinstance(source, datasets.DatasetDict) or (tables and splits & set(source)):
            return None
        items = list(source.items())
    elif isinstance(source, list | tuple):
        items = [(_name_of(part), part) for part in source]
    else:
        return None
    found: dict[str, tuple[Any, float]] = {}
    for name, entry in items:
        if name in found:
            raise CollectionError(f"collection: two are named {name!r}; give names: {{one: …, other: …}}")
        weight: Any = 1.0
        if isinstance(entry, Mapping) and "path" in entry:
            if unknown := set(entry) - {"path", "weight"}:
                raise CollectionError(
                    f"collection.{name}: unknown key {min(unknown)!r}; expected path, weight"
                )
            entry, weight = entry["path"], entry.get("weight", 1.0)
        sources = str | Path | Collection | datasets.Dataset | datasets.DatasetDict
        if not isinstance(entry, sources) or not entry:
            raise CollectionError(
                f"collection.{name}: found {entry!r}; expected a path or an id, or path and weight"
            )
        found[name] = entry, weight
    _check(dict.fromkeys(found), {name: weight for name, (_, weight) in found.items()})
    return found


def source_text(source: Any) -> str:
    """The source of a collection, or of several, as one line that `load_collection` takes."""
    several = sources_of(source)
    if several is None and isinstance(source, str | Path):
        return str(source)
    body = {
        name: str(path) if weight == 1 else {"path": str(path), "weight": weight}
        for name, (path, weight) in (several or {}).items()
    }
    return yaml.safe_dump(body, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def texts_of_sources(text: str) -> dict[str, str]:
    """Name -> source, for the text of a source; of one collection the name is ""."""
    several = sources_of(text)
    return {"": text} if several is None else {name: str(source) for name, (source, _) in several.items()}


def _name_of(source: Any) -> str:
    if isinstance(source, Mapping) and "path" in source:
        source = source["path"]
    if not isinstance(source, str | Path | Collection):
        raise CollectionError(f"collection: found a list with {source!r}; give names: {{one: …, other: …}}")
    name = source.name if isinstance(source, Collection) else str(source)
    return re.sub(r"[^\w.+-]+", "-", Path(name.rpartition(":")[2]).name)


def _check(collections: Mapping[str, Collection | None], weights: Mapping[str, Any]) -> None:
    if len(collections) < 2:
        raise CollectionError(f"several collections: found {list(collections)}; expected at least two")
    for name, collection in collections.items():
        try:
            check_name(name)
        except ValueError as error:
            raise CollectionError(f"several collections: {error}") from None
        if re.search(r"\s", name):
            raise CollectionError(f"several collections: the name {name!r} contains white space")
        if collection is not None and (collection.members or collection.relevance_levels):
            raise CollectionError(f"{name}: already joined, or with a relevance level; set it after joining")
    for name, weight in weights.items():
        if name not in collections:
            raise CollectionError(f"weights: {name!r} is not among {', '.join(collections)}")
        if type(weight) not in (int, float) or not 0 < weight < math.inf:
            raise CollectionError(f"weight of {name!r}: found {weight!r}; expected a number above 0")


def _stacked(tables: Mapping[str, datasets.Dataset], features: datasets.Features) -> datasets.Dataset:
    """The rows of tables, with the table's name before each id; texts are not copied."""
    shown = {name: title for title, name in TRAINING_COLUMNS.items()}
    schema = features.arrow_schema
    columns = []
    for field in schema:
        chunks: list[pa.Array] = []
        for name, table in tables.items():
            names = (field.name, shown.get(field.name))
            there = next((name for name in names if name in table.column_names), None)
            if there is None:  # this table has no answers or no source
                empty: Any = [] if pa.types.is_list(field.type) else ""
                chunks.append(pa.array([empty] * len(table), field.type))
                continue
            column = arrow_column(table, there).cast(field.type)
            chunks += [_prefixed(name, chunk) for chunk in column.chunks] if there in _IDS else column.chunks
        columns.append(pa.chunked_array(chunks, field.type))
    return datasets.Dataset(pa.table(columns, schema=schema))


def _prefixed(name: str, ids: pa.Array) -> pa.Array:
    if pa.types.is_list(ids.type):
        return pa.ListArray.from_arrays(ids.offsets, _prefixed(name, ids.values))
    return pc.binary_join_element_wise(name, ids, "/")
