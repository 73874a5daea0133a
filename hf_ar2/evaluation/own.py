"""Rankings without the query itself, for collections whose queries are also passages, and of one of several."""

from __future__ import annotations

import numpy as np


def without_own(
    scores: np.ndarray, rows: np.ndarray, own_rows: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `depth` passages of each ranking without the passage that is the query itself.

    Args:
        scores, rows: float32 and int64 `[Q, K]`, best first; K is `deeper(own_rows, depth)` or more, for full lists.
            The result is `[Q, min(depth, K)]`; -inf and -1 fill lists that became shorter.
        own_rows: int64 `[Q]`, see `Collection.own_rows`.
    """
    own = (rows == own_rows[:, None]) & (own_rows[:, None] >= 0)
    if own.any():
        order = np.argsort(own, axis=1, kind="stable")
        rows = np.take_along_axis(np.where(own, -1, rows), order, axis=1)
        scores = np.take_along_axis(np.where(own, -np.inf, scores).astype(scores.dtype), order, axis=1)
    return scores[:, :depth], rows[:, :depth]


def deeper(own_rows: np.ndarray, depth: int) -> int:
    """The depth to search, so that `depth` passages are left: one more if any query is a passage."""
    return depth + int((own_rows >= 0).any())


def mask_other_rows(scores: np.ndarray, rows: np.ndarray, ranges: np.ndarray | None) -> None:
    """Set the scores `[Q, P]` of passages at rows `[P]` outside each query's range to -inf, in place.

    `ranges` are int64 `[Q, 2]`, see `Collection.searched_rows`; None: nothing is outside.
    """
    if ranges is not None:
        scores[(rows < ranges[:, :1]) | (rows >= ranges[:, 1:])] = -np.inf
