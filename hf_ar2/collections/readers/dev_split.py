"""A dev split for collections that come without one, such as BEIR's SciFact."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.splits import hash_of

logger = logging.getLogger(__name__)


def with_dev_split(collection: Collection, share: float) -> Collection:
    """Move a share of the queries of `train` to a new split `dev`, chosen by a hash of their ids.

    Args:
        collection: Returned unchanged if it has a split `dev`, or fewer than two queries in `train`.
        share: Of the queries; 0 changes nothing.

    Raises:
        CollectionError: The share is not in [0, 1).
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
    places = np.array([hash_of(id) for id in ids])
    chosen = np.zeros(len(ids), bool)
    chosen[np.argsort(places, kind="stable")[: max(1, round(share * len(ids)))]] = True
    parts = {
        name: table.select(np.flatnonzero(chosen[of_row] == wanted))
        for name, wanted in (("train", False), ("dev", True))
    }
    logger.warning(
        "%s has no split dev: %d of the %d queries of train are now dev, chosen by a hash of their ids (dev_share=0 "
        "keeps all in train)",
        collection.name,
        chosen.sum(),
        len(ids),
    )
    return replace(collection, qrels={**collection.qrels, **parts})
