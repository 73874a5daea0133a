"""A split to tune on for collections that come without one, as BEIR's SciFact does."""

from __future__ import annotations

import hashlib
import logging

import numpy as np

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError

logger = logging.getLogger(__name__)


def with_dev_split(collection: Collection, share: float) -> Collection:
    """The collection with this share of the queries of `train` as `dev`, if it has the one and lacks the other.

    A hash of a query's id decides, so that the parts are the same everywhere.

    Args:
        collection: Any; one with a split `dev`, or with fewer than two queries in `train`, comes back as it is.
        share: Of the queries; 0 leaves every collection as it is.

    Raises:
        CollectionError: A share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise CollectionError(f"dev_share: found {share}; expected at least 0 and less than 1")
    have = {*collection.splits, *collection.answer_splits}
    if not share or "train" not in have or "dev" in have:
        return collection
    table = collection.qrels["train"]
    ids, of_row = np.unique(np.asarray(table["query_id"], object).astype(str), return_inverse=True)
    if len(ids) < 2:
        return collection
    places = np.array([int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") for id in ids])
    chosen = np.zeros(len(ids), bool)
    chosen[np.argsort(places, kind="stable")[: max(1, round(share * len(ids)))]] = True
    parts = {
        name: table.select(np.flatnonzero(chosen[of_row] == wanted))
        for name, wanted in (("train", False), ("dev", True))
    }
    logger.warning(
        "%s has no split dev: %d of the %d queries of train are dev now, by a hash of their ids (dev_share=0 leaves "
        "train whole)",
        collection.name,
        chosen.sum(),
        len(ids),
    )
    return Collection(
        collection.name,
        collection.corpus,
        collection.queries,
        {**collection.qrels, **parts},
        collection.skipped,
        collection.answer_splits,
    )
