"""Training lists on disk, written by `hf-ar2 augment`, `hf-ar2 score` or a person, and read by every trainer.

A folder holds a saved `datasets.Dataset` with one row per list, `manifest.json` (the inputs of the lists; written last,
so that a folder with it is complete), and `queries.jsonl` for queries that the collection may not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from hf_ar2.collections import Collection
from hf_ar2.collections.lines import json_lines, write_lines
from hf_ar2.collections.problems import Problems
from hf_ar2.collections.readers.entries import id_of
from hf_ar2.collections.tables import (
    LIST_FEATURES,
    QUERY_FEATURES,
    arrow_column,
    dataset_of,
    flat,
    lists_fingerprint,
    rows_of,
)
from hf_ar2.files import check_files, read_json, write_note, writing
from hf_ar2.settings.augment import KINDS
from hf_ar2.terminal import counted
from hf_ar2.training_lists.pool import CandidatePool

logger = logging.get_logger(__name__)

FORMAT = "hf-ar2 training lists 1"
# The name, in place of a folder, for the lists that the collection came with.
OF_COLLECTION = "collection"
_MANIFEST, _QUERIES = "manifest.json", "queries.jsonl"


@dataclass(frozen=True)
class TrainingLists:
    """Lists of one or more positives and of negatives, by id. A query may have several lists.

    Attributes:
        dataset: one row per list: `query_id`; `positive_ids`, labelled ones first; `negative_ids`, in the order of
            the retriever that found them; `positive_scores` and `negative_scores`, the ranker's or another teacher's,
            float32, NaN in lists without scores; `kind`:
            `undenoised` (labelled positives, any other retrieved passages as negatives), `denoised` (also positives,
            and only negatives, of which the ranker is confident) or `pseudo` (the same for a query without labels).
        manifest: the inputs of the lists, and how many were kept, and dropped for each cause.
        queries: columns `id`, `text`: queries that the collection may not have; None: there are none.
        folder: where they were read from, for messages.

    Example:
        >>> lists = TrainingLists(
        ...     dataset_of({"query_id": ["q"], "positive_ids": [["a"]], "negative_ids": [["b", "c"]],
        ...         "positive_scores": [[2.5]], "negative_scores": [[0.5, -1.0]], "kind": ["denoised"]},
        ...         LIST_FEATURES),
        ...     manifest={})
        >>> collection = Collection(
        ...     name="tiny",
        ...     corpus=datasets.Dataset.from_dict({"id": ["a", "b", "c"], "title": [""] * 3, "text": ["x", "y", "z"]}),
        ...     queries=datasets.Dataset.from_dict({"id": ["q"], "text": ["which"]}),
        ...     qrels={})
        >>> pool = lists.to_pool(collection)
        >>> pool.positive_rows.tolist(), pool.passage_rows.tolist(), pool.scores.tolist()
        ([[0]], [[1, 2]], [[0.5, -1.0]])
    """

    dataset: datasets.Dataset
    manifest: dict[str, Any]
    queries: datasets.Dataset | None = None
    folder: Path = field(default=Path("training lists"), compare=False)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that identify the ids, scores and kinds of all lists, in their order."""
        return lists_fingerprint(self.dataset)

    def to_pool(self, collection: Collection, kinds: Iterable[str] | None = None) -> CandidatePool:
        """A candidate pool, in memory, with one entry per list. Its scores are those of the lists.

        Args:
            collection: has the ids; with `queries` added, see `Collection.with_queries`.
            kinds: the kinds of lists to include; None: all.

        Raises:
            ValueError: an unknown kind, or an id that the collection does not have; the message names the row.
        """
        wanted = set(KINDS if kinds is None else kinds)
        if wanted - set(KINDS):
            raise ValueError(f"kinds={sorted(wanted)}: expected some of {', '.join(KINDS)}")
        made_from = self.manifest.get("collection", {}).get("corpus_fingerprint")
        if made_from is not None and made_from != collection.corpus_fingerprint:
            logger.warning(
                f"{self.folder}: the lists were made from another corpus than {collection.name} is now; they are "
                "matched by id"
            )
        taken = np.flatnonzero(np.isin(np.asarray(self.dataset["kind"][:], dtype=object), list(wanted)))
        table = self.dataset.select(taken)
        queries = rows_of(arrow_column(table, "query_id"), arrow_column(collection.queries, "id"))
        if (queries < 0).any():
            at = int(np.flatnonzero(queries < 0)[0])
            raise ValueError(
                f"{self.folder}, row {taken[at]}: found query_id {table[at]['query_id']!r}, which is not among the "
                f"{len(collection.queries)} queries of {collection.name}"
            )
        positive_rows, positive_scores = self._padded("positive", table, taken, collection)
        passage_rows, scores = self._padded("negative", table, taken, collection)
        return CandidatePool(
            query_rows=queries,
            passage_rows=passage_rows,
            scores=scores,
            positive_rows=positive_rows,
            positive_scores=positive_scores,
            fingerprint=f"{self.manifest.get('fingerprint') or self.fingerprint}:{','.join(sorted(wanted))}",
        )

    def _padded(
        self, role: str, table: datasets.Dataset, taken: np.ndarray, collection: Collection
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corpus rows int32 and scores float32 of a column of lists, each `[N, widest]`."""
        ids, scores = flat(arrow_column(table, f"{role}_ids")), arrow_column(table, f"{role}_scores")
        counts = pc.list_value_length(arrow_column(table, f"{role}_ids")).to_numpy().astype(np.int64)
        rows = rows_of(ids, arrow_column(collection.corpus, "id"))
        if (rows < 0).any():
            entry = int(np.flatnonzero(rows < 0)[0])
            at = int(np.searchsorted(np.cumsum(counts), entry, side="right"))
            raise ValueError(
                f"{self.folder}, row {taken[at]}: found {ids[entry].as_py()!r} in {role}_ids, which is not among the "
                f"{len(collection.corpus)} passages of {collection.name}"
            )
        there = np.arange(int(counts.max(initial=0))) < counts[:, None]
        padded = np.full(there.shape, -1, dtype=np.int32)
        padded[there] = rows
        padded_scores = np.full(there.shape, -np.inf, dtype=np.float32)
        padded_scores[there] = flat(scores).to_numpy()
        return padded, padded_scores


def lists_of(collection: Collection, split: str) -> TrainingLists:
    """The lists that a collection came with (`Collection.lists`), for the judged pairs of a split; ValueError without
    any.

    Negatives that are not in the corpus are left out: a sample of a collection keeps all its lists.
    """
    place = f"train_lists={OF_COLLECTION!r}: {collection.name}"
    if collection.lists is None:
        raise ValueError(f"{place} came without negatives; mine negatives, or name folders of training lists")
    collection.judgments(split)  # raises where there is no such split
    qrels = collection.qrels[split]
    pairs = (arrow_column(qrels, name).to_pylist() for name in ("query_id", "passage_id"))
    judged = set(zip(*pairs, strict=True))
    known = set(arrow_column(collection.corpus, "id").to_pylist())
    columns: dict[str, list] = {name: [] for name in LIST_FEATURES}
    for row in collection.lists.to_list():
        kept = [at for at, id in enumerate(row["negative_ids"]) if id in known]
        if kept and all((row["query_id"], id) in judged for id in row["positive_ids"]):
            row |= {name: [row[name][at] for at in kept] for name in ("negative_ids", "negative_scores")}
            for name, cell in row.items():
                columns[name].append(cell)
    if not columns["kind"]:
        raise ValueError(
            f"{place} came with {counted(len(collection.lists), 'lists')}, but none for split {split!r}"
        )
    return TrainingLists(dataset_of(columns, LIST_FEATURES), {}, folder=Path(OF_COLLECTION))


def load_training_lists(folder: str | Path) -> TrainingLists:
    """Read a folder of training lists.

    Raises:
        FileNotFoundError: there are no complete lists in the folder.
        ValueError: another format; a column is missing or of another type; a list without a positive or a negative,
            with different numbers of ids and scores, with scores of which some are not finite, an unknown kind, or a
            passage that is both positive and negative. The message names folder, column and row.

    Example:
        >>> import tempfile
        >>> table = datasets.Dataset.from_list([
        ...     {"query_id": "q", "positive_ids": ["a"], "negative_ids": ["b"], "positive_scores": [2.5],
        ...      "negative_scores": [0.5], "kind": "denoised"}
        ... ])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_training_lists(folder, table, {"made by": "hand"})
        ...     lists = load_training_lists(folder)
        >>> len(lists), lists.manifest["made by"]
        (1, 'hand')
    """
    folder = Path(folder)
    path = folder / _MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, so {folder} has no complete training lists; write them with hf-ar2 augment"
        )
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: field format is {manifest.get('format')!r}, expected {FORMAT!r}")
    check_files(folder, manifest.pop("checksums", {}), f"Delete {folder} and write the lists again.")
    found = datasets.load_from_disk(str(folder))
    if not isinstance(found, datasets.Dataset):
        raise ValueError(f"{folder}: found a {type(found).__name__}; expected a single datasets.Dataset")
    found = _listed(folder, found)
    _check(folder, found)
    queries = read_queries(folder / _QUERIES) if (folder / _QUERIES).is_file() else None
    return TrainingLists(found, manifest, queries, folder)


def save_training_lists(
    folder: str | Path,
    dataset: datasets.Dataset,
    manifest: dict[str, Any],
    queries: datasets.Dataset | None = None,
) -> TrainingLists:
    """Write a folder of training lists, and read them back; existing lists are replaced, other files are kept.

    Args:
        folder: created if it does not exist.
        dataset, queries: as in `TrainingLists`. The dataset may have one column `scores`, of the positives and then
            the negatives, in place of `positive_scores` and `negative_scores`, or no scores.
        manifest: information about the lists; `format` and `fingerprint` are added.

    Raises:
        ValueError: as in `load_training_lists`.

    Example:
        >>> import tempfile
        >>> table = datasets.Dataset.from_list([
        ...     {"query_id": "q", "positive_ids": ["a"], "negative_ids": ["b"], "positive_scores": [2.5],
        ...      "negative_scores": [0.5], "kind": "denoised"}
        ... ])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_training_lists(folder, table, {"made by": "hand"}).dataset["negative_ids"][0]
        ['b']
    """
    folder = Path(folder)
    table = _listed(folder, dataset)
    if table.features != LIST_FEATURES:
        table = table.cast(LIST_FEATURES)
    _check(folder, table)
    manifest = {"format": FORMAT, "fingerprint": TrainingLists(table, {}).fingerprint} | manifest
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / _MANIFEST, folder / _QUERIES, *folder.glob("data-*.arrow")]:
        old.unlink(missing_ok=True)
    with writing(folder):
        table.save_to_disk(str(folder))
        if queries is not None:
            pairs = zip(queries["id"][:], queries["text"][:], strict=True)
            lines = (json.dumps({"_id": id, "text": text}, ensure_ascii=False) for id, text in pairs)
            write_lines(folder / _QUERIES, lines)
        written = {*folder.glob("data-*.arrow"), folder / "dataset_info.json", folder / "state.json"}
        write_note(folder / _MANIFEST, manifest, sorted(written | {*folder.glob(_QUERIES)}))
    return load_training_lists(folder)


def read_queries(path: str | Path) -> datasets.Dataset:
    """Read queries without labels, columns `id` and `text`: JSON lines with `_id` and `text`, plain or gzipped.

    Raises:
        FileNotFoundError: there is no such file. ValueError: names a line that is not JSON or lacks a field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected queries as JSON lines with _id and text")
    columns: dict[str, list[str]] = {"id": [], "text": []}
    for line, entry in json_lines(path, Problems()):
        for name, value in (("_id", id_of(entry.get("_id"))), ("text", entry.get("text"))):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f"{path}:{line}: found {name} {entry.get(name)!r}; expected a string that is not empty"
                )
            columns[name.lstrip("_")].append(value)
    return dataset_of(columns, QUERY_FEATURES)


def _listed(folder: Path, dataset: datasets.Dataset) -> datasets.Dataset:
    dataset = _with_scores_of_roles(folder, dataset)
    missing = [name for name in LIST_FEATURES if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{folder}: found columns {dataset.column_names}; expected {list(LIST_FEATURES)}, {missing} is missing"
        )
    return dataset.select_columns(list(LIST_FEATURES))


def _with_scores_of_roles(folder: Path, dataset: datasets.Dataset) -> datasets.Dataset:
    """The dataset with scores of positives and of negatives, made of its column `scores`; without one they are NaN."""
    columns, ids = dataset.column_names, ("positive_ids", "negative_ids")
    if {"positive_scores", "negative_scores"} & set(columns) or not {*ids} <= set(columns):
        return dataset
    counts = [pc.list_value_length(arrow_column(dataset, name)).fill_null(0).to_numpy() for name in ids]
    scores = np.full(int(sum(map(np.sum, counts))), np.nan, np.float32)
    if "scores" in columns:
        column = arrow_column(dataset, "scores")
        found = pc.list_value_length(column).fill_null(-1).to_numpy()
        wrong = found != counts[0] + counts[1]
        expected = "one per passage, positives then negatives"
        _check_rows(folder, "scores", wrong, "another number of scores", expected)
        scores = flat(column).to_numpy(zero_copy_only=False).astype(np.float32)
        infinite = [not np.isfinite(row).all() for row in np.split(scores, np.cumsum(found)[:-1])]
        _check_rows(folder, "scores", infinite, "a score that is not finite", "finite scores")
    of_positives = np.tile([True, False], len(dataset)).repeat(np.stack(counts, axis=1).reshape(-1))
    for name, number, values in zip(ids, counts, (scores[of_positives], scores[~of_positives]), strict=True):
        offsets = np.append(0, np.cumsum(number)).astype(np.int32)
        lists = pa.ListArray.from_arrays(offsets, pa.array(values, type=pa.float32()))
        dataset = dataset.add_column(
            name.replace("_ids", "_scores"), lists, feature=datasets.List(datasets.Value("float32"))
        )
    return dataset


def _check(folder: Path, dataset: datasets.Dataset) -> None:
    for name, expected in LIST_FEATURES.items():
        if dataset.features[name] != expected:
            raise ValueError(f"{folder}, column {name}: found {dataset.features[name]}, expected {expected}")
    columns = {name: arrow_column(dataset, name) for name in LIST_FEATURES}
    scored = np.zeros(len(dataset), dtype=bool)
    for name in ("positive_scores", "negative_scores"):
        there = ~np.isnan(flat(columns[name]).to_numpy(zero_copy_only=False))
        lengths = pc.list_value_length(columns[name]).fill_null(0).to_numpy()
        scored[np.repeat(np.arange(len(dataset)), lengths)[there]] = True
    for name, column in columns.items():
        _check_rows(folder, name, column.is_null().to_numpy(), "null", "a value")
    unknown = ~np.isin(columns["kind"].to_pylist(), KINDS)
    _check_rows(folder, "kind", unknown, "another kind", " or ".join(KINDS))
    for role in ("positive", "negative"):
        counts = pc.list_value_length(columns[f"{role}_ids"]).to_numpy()
        number = pc.list_value_length(columns[f"{role}_scores"]).to_numpy()
        _check_rows(folder, f"{role}_ids", counts == 0, "an empty list", f"at least one {role}")
        place = f"{role}_scores"
        _check_rows(
            folder, place, counts != number, "different numbers of scores and ids", "one score per id"
        )
        unscored = ~np.isfinite(flat(columns[place]).to_numpy())
        lists = np.repeat(np.arange(len(counts)), counts)
        wrong = np.isin(np.arange(len(counts)), lists[unscored]) & scored
        _check_rows(folder, place, wrong, "a score that is not finite", "finite scores")
    both = _contradictions(columns["positive_ids"], columns["negative_ids"])
    _check_rows(folder, "negative_ids", both, "a passage that is also in positive_ids", "it in one of them")


def _contradictions(positives: pa.ChunkedArray, negatives: pa.ChunkedArray) -> np.ndarray:
    """Which lists have a passage among both positives and negatives, bool `[N]`."""
    codes = {}
    known = pc.unique(pa.chunked_array([*flat(positives).chunks, *flat(negatives).chunks], type=pa.string()))
    for role, column in (("positive", positives), ("negative", negatives)):
        passages = pc.index_in(flat(column), value_set=known).to_numpy().astype(np.int64)
        lists = np.repeat(np.arange(len(column)), pc.list_value_length(column).to_numpy())
        codes[role] = lists * len(known) + passages
    shared = np.intersect1d(codes["positive"], codes["negative"])
    return np.isin(np.arange(len(positives)), shared // max(len(known), 1))


def _check_rows(
    folder: Path, column: str, wrong: Sequence[bool] | np.ndarray, found: str, expected: str
) -> None:
    if np.any(wrong):
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{folder}, column {column}, row {row}: found {found}; expected {expected}")
