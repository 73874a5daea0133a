"""Builds training lists from scored candidates and counts the passages that are dropped."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hf_ar2.augmentation.confidence import ConfidenceMasks
from hf_ar2.augmentation.labelled import LabelledCandidates
from hf_ar2.collections import Collection
from hf_ar2.collections.tables import LIST_FEATURES, arrow_column
from hf_ar2.settings.augment import KINDS, AugmentConfig
from hf_ar2.training_lists.draws import counter_uniform

# Lists per table, so that their ids stay far below the size limit of an Arrow array.
_LISTS_AT_ONCE = 8192


def build_lists(
    kind: str,
    collection: Collection,
    candidates: LabelledCandidates,
    masks: ConfidenceMasks | None,
    text_keys: np.ndarray,
    args: AugmentConfig,
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """The lists of one kind as a dataset with the columns of training lists, and counts for the manifest.

    The counts are `lists`; `dropped_lists`, cause → queries without a list; and `retrieved`, the passages of all
    queries: the sum of `negatives`, `added_positives` and `dropped_passages`, cause → passages.

    Args:
        masks: confidently irrelevant and relevant passages; None for undenoised lists.
        text_keys: int64 `[N]` of the corpus; a passage with the text of an added positive cannot be a negative.
    """
    scored = candidates.scored
    dropped = Counter[str]()
    dropped["positive"] += int(candidates.positive.sum())
    dropped["duplicate of a positive"] += int(candidates.duplicate.sum())
    negative: np.ndarray = candidates.not_positive
    added = np.full((len(scored), 0), -1, dtype=np.int64)
    if kind != "undenoised":
        assert masks is not None
        irrelevant, relevant = masks
        negative = candidates.not_positive & irrelevant
        relevant = candidates.not_positive & relevant & ~irrelevant
        added = _best(scored.scores, relevant, args.added_positives)
        copies = negative & _has_text_of(scored.rows, added, text_keys)
        negative &= ~copies
        chosen = np.zeros(scored.rows.shape, dtype=bool)
        chosen[np.nonzero(added >= 0)[0], added[added >= 0]] = True
        dropped["relevant, beyond added_positives"] += int((relevant & ~chosen).sum())
        dropped["unsure"] += int((candidates.not_positive & ~relevant & ~irrelevant).sum())
        dropped["duplicate of a positive"] += int(copies.sum())
    if args.stored_negatives is not None:
        drawn = _draw(negative, scored.query_rows, args.stored_negatives, args.seed + KINDS.index(kind))
        dropped["beyond stored_negatives"] += int((negative & ~drawn).sum())
        negative = drawn
    has_positive = np.concatenate([scored.positive_rows, added], axis=1).max(axis=1, initial=-1) >= 0
    has_negative = negative.any(axis=1)
    keep = has_positive & has_negative
    dropped["of a list that was dropped"] += int(negative[~keep].sum() + (added[~keep] >= 0).sum())
    tables = [
        _table(kind, collection, candidates, negative, added, entries)
        for entries in np.array_split(np.flatnonzero(keep), max(1, -(-int(keep.sum()) // _LISTS_AT_ONCE)))
    ]
    return datasets.Dataset(pa.concat_tables(tables)), {
        "lists": int(keep.sum()),
        "dropped_lists": {
            "no relevant passage": int((~has_positive).sum()),
            "no negative": int((has_positive & ~has_negative).sum()),
        },
        "retrieved": int((scored.rows >= 0).sum()),
        "negatives": int(negative[keep].sum()),
        "added_positives": int((added[keep] >= 0).sum()),
        "dropped_passages": dict(dropped),
    }


def _best(scores: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` highest scores in each row of the mask, int64 `[Q, count]`, -1 padded; stable."""
    count = min(count, scores.shape[1])
    order = np.argsort(np.where(mask, -scores, np.inf), axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(mask, order, axis=1), order, -1)


def _has_text_of(rows: np.ndarray, columns: np.ndarray, text_keys: np.ndarray) -> np.ndarray:
    """Which passages `[Q, n]` have the text of a passage in the columns `[Q, A]` of their row, bool `[Q, n]`."""
    keys = text_keys[np.maximum(rows, 0)]
    found = np.zeros(rows.shape, dtype=bool)
    for column in columns.T:
        own = np.take_along_axis(keys, np.maximum(column, 0)[:, None], axis=1)
        found |= (keys == own) & (column >= 0)[:, None]
    return found


def _draw(mask: np.ndarray, query_rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` random places of each row of the mask; a draw depends only on the query's row and the seed."""
    keys = np.where(mask, counter_uniform(seed, query_rows, mask.shape[1]), np.inf)
    ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
    return mask & (ranks < count)


def _table(
    kind: str,
    collection: Collection,
    candidates: LabelledCandidates,
    negative: np.ndarray,
    added: np.ndarray,
    entries: np.ndarray,
) -> pa.Table:
    """The lists of these queries (indices in `candidates`) as an Arrow table."""
    scored, schema = candidates.scored, LIST_FEATURES.arrow_schema
    passage_ids = arrow_column(collection.corpus, "id")
    query_ids = arrow_column(collection.queries, "id").take(pa.array(scored.query_rows[entries]))
    rows, scores, places = scored.rows[entries], scored.scores[entries], added[entries]
    new = np.maximum(places, 0)
    new_rows = np.where(places >= 0, np.take_along_axis(rows, new, 1), -1)
    positive_rows = np.concatenate([scored.positive_rows[entries], new_rows], axis=1)
    new_scores = np.take_along_axis(scores, new, 1)
    positive_scores = np.concatenate([scored.positive_scores[entries], new_scores], axis=1)
    columns: dict[str, Any] = {"query_id": query_ids, "kind": pa.array([kind] * len(entries))}
    for role, values, weights, mask in (
        ("positive", positive_rows, positive_scores, positive_rows >= 0),
        ("negative", rows, scores, negative[entries]),
    ):
        offsets = np.append(0, np.cumsum(mask.sum(axis=1))).astype(np.int32)
        ids = passage_ids.take(pa.array(values[mask].astype(np.int64))).combine_chunks()
        ids = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
        columns[f"{role}_ids"] = pa.ListArray.from_arrays(offsets, ids)
        kept = pa.array(weights[mask], type=pa.float32())
        columns[f"{role}_scores"] = pa.ListArray.from_arrays(offsets, kept)
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)
