"""Training lists that were written before the run, beside the ones it mines itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers.utils import logging

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.collections.tables import content_hash
from hf_ar2.trainers.config import JointConfig
from hf_ar2.training_lists.pool import CandidatePool, concatenate_pools, padded_positives
from hf_ar2.training_lists.stored import load_training_lists

logger = logging.get_logger(__name__)

_NOTE = "train_lists.txt"


def read_stored_lists(collection: Collection, args: JointConfig) -> tuple[Collection, CandidatePool | None]:
    """Read the folders of `train_lists`.

    Returns:
        The collection, with the queries that only the lists have, and a pool of one entry per list; None without
        `train_lists`.

    Raises:
        ValueError: there is no list of `train_list_kinds`, or a list has a negative that `train_split` judges relevant.
    """
    if not args.train_lists:
        return collection, None
    stored = [load_training_lists(folder) for folder in args.train_lists]
    for lists in stored:
        if lists.queries is not None:
            collection = collection.with_queries(lists.queries)
    pools = [lists.to_pool(collection, kinds=args.train_list_kinds) for lists in stored]
    if not any(map(len, pools)):
        kinds = "at all" if args.train_list_kinds is None else f"of the kinds {args.train_list_kinds}"
        raise ValueError(f"train_lists={args.train_lists}: no list {kinds}")
    judgments = collection.judgments(args.train_split).positives()
    for folder, pool in zip(args.train_lists, pools, strict=True):
        _refuse_relevant_negatives(folder, pool, judgments, collection, args.train_split)
    if args.eval_split in collection.qrels:
        evaluated = collection.judgments(args.eval_split).query_rows
        leaked = sum(int(np.isin(pool.query_rows, evaluated).sum()) for pool in pools)
        if leaked:
            logger.warning(
                f"{leaked} of the stored lists are of queries of eval_split={args.eval_split!r}, so that what is "
                "measured there was trained on"
            )
    return collection, concatenate_pools([pool for pool in pools if len(pool)])


def with_stored_lists(
    mined: CandidatePool | None, stored: CandidatePool | None, judgments: Judgments
) -> tuple[CandidatePool, np.ndarray | None]:
    """One pool of mined and stored lists, and what is known to be relevant to each entry's query.

    Args:
        mined: of the training queries; None where only stored lists are trained on.
        stored: of `read_stored_lists`.
        judgments: of the training queries, relevant ones only.

    Returns:
        The pool, and int32 `[Q, P]`: an entry's own positives and the judged ones of its query, -1 padded. None where
        the pool's positives are all of them.
    """
    if stored is None:
        assert mined is not None
        return mined, None
    pool = stored if mined is None else concatenate_pools([mined, stored])
    return pool, np.concatenate([pool.positive_rows, _judged(pool, judgments)], axis=1)


def note_stored_lists(folder: Path, stored: CandidatePool | None) -> None:
    """Write into a checkpoint which stored lists it was trained on."""
    (folder / _NOTE).write_text(_fingerprint(stored))


def refuse_other_lists(folder: Path, stored: CandidatePool | None) -> None:
    """Compare with the note in a checkpoint.

    Raises:
        ValueError: the checkpoint was trained on other stored lists, so that resuming would not continue its run.
    """
    if (folder / _NOTE).is_file() and (folder / _NOTE).read_text() != _fingerprint(stored):
        raise ValueError(
            f"{folder}: trained on other lists than those train_lists has now; resume with the lists the run began "
            "with, or begin a new one"
        )


def _fingerprint(stored: CandidatePool | None) -> str:
    if stored is None:
        return "none"
    return content_hash(stored.query_rows, stored.passage_rows, stored.positive_rows)


def _judged(pool: CandidatePool, judgments: Judgments) -> np.ndarray:
    """The judged positives of each entry's query, int32 `[Q, P]`, -1 padded and for queries without judgments."""
    positives = padded_positives(judgments)
    place = np.searchsorted(judgments.query_rows, pool.query_rows)
    place = np.minimum(place, len(judgments) - 1)
    there = judgments.query_rows[place] == pool.query_rows
    return np.where(there[:, None], positives[place], np.int32(-1))


def _refuse_relevant_negatives(
    folder: str, pool: CandidatePool, judgments: Judgments, collection: Collection, split: str
) -> None:
    judged = _judged(pool, judgments)
    for column in judged.T:
        entries, places = np.nonzero((pool.passage_rows == column[:, None]) & (pool.passage_rows >= 0))
        if len(entries):
            query = collection.queries["id"][int(pool.query_rows[entries[0]])]
            passage = collection.corpus["id"][int(pool.passage_rows[entries[0], places[0]])]
            raise ValueError(
                f"{folder}: a list of query {query!r} has passage {passage!r} as a negative, which split {split!r} "
                "judges relevant; write the lists again with these judgments"
            )
