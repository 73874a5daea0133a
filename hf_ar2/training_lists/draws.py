"""Draws of positives and negatives for training lists, each a pure function of a seed and a position.

The *position* of a list is its number in the run. The contents of a list depend only on ``(seed, position)``, so
one process and eight draw the same lists, and a resumed run needs no generator state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hf_ar2.training_lists.pool import CandidatePool

SAMPLERS = ("uniform", "top", "simans")

# Each kind of draw has its own stream, so that the draws of one list are independent.
_NEGATIVES, _POSITIVES, _RANDOM, _MORE_POSITIVES, _MEMBERS = 1, 2, 3, 4, 5

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_NO_ROW = np.iinfo(np.int64).max // 2


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64: a bijection of uint64 that spreads every bit over all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def counter_uniform(seed: int, positions: np.ndarray, columns: int, stream: int = 0) -> np.ndarray:
    """Uniform numbers that are a hash of ``(seed, stream, position, column)``: float64 ``[B, columns]``, strictly in
    (0, 1).

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), started for each position from a hash of seed, stream, position.

    Args:
        seed: any integer; only its low 64 bits are used.
        positions: integers ``[B]``. columns: numbers per position.
        stream: draws with different streams are independent.
    """
    low = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    key = _mix(_mix(low + _GOLDEN) + _GOLDEN * np.array([stream + 1], dtype=np.uint64))
    state = _mix(key ^ _mix(np.asarray(positions).astype(np.uint64) * _GOLDEN + _GOLDEN))
    counters = np.arange(1, columns + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(state[:, None] + counters[None, :])
    # 52 bits and a half exclude 0 and 1: with 53 bits the largest value would round to 1.
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def sample_negatives(
    pool: CandidatePool,
    indices: np.ndarray,
    n: int,
    *,
    seed: int,
    positions: np.ndarray,
    sampler: str = "uniform",
    simans_a: float = 0.5,
    simans_b: float = 0.0,
    positive_columns: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``n`` different negatives per list from the pool.

    ``uniform`` draws uniformly (AR2); ``top`` takes the first ``n``; ``simans`` draws in proportion to
    ``exp(-a (s_i - s_+ - b)^2)`` (SimANS, Zhou et al., EMNLP Industry 2022), where ``s_+`` is the score of the list's
    positive. Draws are without replacement (Gumbel top-n over log-weights, so that no weight underflows). The draw of n
    negatives is a prefix of the draw of more.

    Args:
        indices: integers ``[B]``, pool entries (not query rows).
        simans_a: per squared unit of score: some hundreds for cosine scores, the paper's 0.5 for dot products.
        simans_b: in units of score; above 0 prefers candidates that score above the positive.
        positive_columns: integers ``[B]``, the column of each list's positive; default: the first.

    Returns:
        ``rows`` int64 ``[B, n]`` and ``mask`` bool ``[B, n]``; -1 under a False mask where the pool has too few.

    Raises:
        ValueError: unknown sampler; lengths differ; ``simans`` on a pool without the positives' scores.
    """
    indices, positions = _aligned(indices, positions)
    rows = np.asarray(pool.passage_rows[indices], dtype=np.int64)
    if sampler == "top":
        keys = np.broadcast_to(-np.arange(rows.shape[1], dtype=np.float64), rows.shape)
    elif sampler == "uniform":
        keys = counter_uniform(seed, positions, rows.shape[1], stream=_NEGATIVES)
    elif sampler == "simans":
        positive = _list_positive_scores(pool, indices, positive_columns)
        gap = np.asarray(pool.scores[indices], dtype=np.float64) - positive[:, None] - simans_b
        gumbel = -np.log(-np.log(counter_uniform(seed, positions, rows.shape[1], stream=_NEGATIVES)))
        keys = gumbel - simans_a * np.square(gap)
    else:
        raise ValueError(f"sampler is {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    keys = np.where(rows >= 0, keys, -np.inf)
    order = np.argsort(-keys, axis=1, kind="stable")[:, :n]
    chosen = np.full((len(rows), n), -1, dtype=np.int64)
    chosen[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
    return chosen, chosen >= 0


def draw_members(shares: np.ndarray, count: int, *, seed: int, stream: int) -> np.ndarray:
    """Draw the collection of each training step, in proportion to the shares ``[M]`` (of any sum): int64 ``[count]``.

    The uniform numbers of the draws are multiples of the golden ratio modulo 1, from a start that seed and stream
    decide, so that the collections alternate and any stretch of steps has them close to their shares.
    """
    start = counter_uniform(seed, np.array([stream]), 1, stream=_MEMBERS)[0, 0]
    ends = np.cumsum(shares)
    return np.searchsorted(ends / ends[-1], (start + np.arange(count) * _GOLDEN_RATIO) % 1, side="right")


def sample_positive_columns(
    pool: CandidatePool, indices: np.ndarray, *, seed: int, positions: np.ndarray, first: bool = False
) -> np.ndarray:
    """Draw one of each query's positives, uniformly, or take the first: int64 ``[B]``, columns of
    ``pool.positive_rows``.
    """
    indices, positions = _aligned(indices, positions)
    if first:
        return np.zeros(len(indices), dtype=np.int64)
    counts = (pool.positive_rows[indices] >= 0).sum(axis=1)
    uniform = counter_uniform(seed, positions, 1, stream=_POSITIVES)[:, 0]
    return np.floor(uniform * counts).astype(np.int64)


def sample_more_positive_columns(
    pool: CandidatePool,
    indices: np.ndarray,
    columns: np.ndarray,
    n: int,
    *,
    seed: int,
    positions: np.ndarray,
    first: bool = False,
) -> np.ndarray:
    """Draw up to ``n`` further positives of each list, without replacement, or with ``first`` in the pool's order.

    ``columns`` are those of the positives that the lists have already, see :func:`sample_positive_columns`.

    Returns:
        int64 ``[B, n]``: columns of ``pool.positive_rows``; -1 where a query has no more positives.
    """
    indices, positions = _aligned(indices, positions)
    there = np.asarray(pool.positive_rows[indices]) >= 0
    there[np.arange(len(indices)), columns] = False
    keys = counter_uniform(seed, positions, there.shape[1], stream=_MORE_POSITIVES)
    if first:
        keys = np.broadcast_to(np.arange(there.shape[1], dtype=np.float64), there.shape)
    order = np.argsort(np.where(there, keys, np.inf), axis=1, kind="stable")[:, :n]
    chosen = np.full((len(indices), n), -1, dtype=np.int64)
    chosen[:, : order.shape[1]] = np.where(np.take_along_axis(there, order, axis=1), order, -1)
    return chosen


def sample_random_passages(
    corpus_size: int, n: int, *, seed: int, positions: np.ndarray, exclude: np.ndarray | None = None
) -> np.ndarray:
    """Draw ``n`` different passages of the corpus per list: int64 ``[B, n]``, -1 where too few are left.

    ``exclude`` ``[B, P]`` has rows that a list must not get (its positives, or negatives that it has already), in any
    order and padded with -1; ValueError for one that is not in the corpus.
    """
    positions = np.asarray(positions, dtype=np.int64)
    lists = len(positions)
    taken = np.zeros((lists, 0), dtype=np.int64) if exclude is None else np.asarray(exclude, dtype=np.int64)
    if taken.shape[:1] != (lists,) or taken.ndim != 2:
        raise ValueError(f"exclude has shape {taken.shape}; expected [{lists}, P], one row per list")
    if taken.size and taken.max() >= corpus_size:
        raise ValueError(f"exclude holds row {taken.max()}; the corpus has rows 0 to {corpus_size - 1}")
    taken = np.sort(np.where(taken < 0, _NO_ROW, taken), axis=1)
    repeated = np.zeros(taken.shape, dtype=bool)
    repeated[:, 1:] = taken[:, 1:] == taken[:, :-1]
    taken = np.sort(np.where(repeated, _NO_ROW, taken), axis=1)

    free = corpus_size - (taken < _NO_ROW).sum(axis=1)
    uniform = counter_uniform(seed, positions, n, stream=_RANDOM)
    drawn = np.full((lists, n), -1, dtype=np.int64)
    for column in range(n):
        # The r-th row that is not taken is r plus the number of taken rows before it; the i-th taken row t_i
        # (ascending) is before it if and only if t_i - i <= r.
        rank = np.floor(uniform[:, column] * free).astype(np.int64)
        before = (taken - np.arange(taken.shape[1]) <= rank[:, None]).sum(axis=1)
        drawn[:, column] = np.where(free > 0, rank + before, -1)
        taken = np.sort(np.column_stack([taken, np.where(free > 0, rank + before, _NO_ROW)]), axis=1)
        free = np.maximum(free - 1, 0)
    return drawn


def _list_positive_scores(
    pool: CandidatePool, indices: np.ndarray, positive_columns: np.ndarray | None
) -> np.ndarray:
    columns = np.zeros(len(indices), dtype=np.int64) if positive_columns is None else positive_columns
    if len(columns) != len(indices):
        raise ValueError(f"positive_columns has {len(columns)} entries for {len(indices)} lists")
    scores = np.asarray(pool.positive_scores[indices, columns], dtype=np.float64)
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(
            f"the positive in column {columns[bad]} of pool entry {indices[bad]} has score {scores[bad]}; "
            "SimANS needs every positive's score: give positive_scores to build_pool, and columns of real "
            "positives here"
        )
    return scores


def _aligned(indices: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    indices, positions = np.asarray(indices, dtype=np.int64), np.asarray(positions, dtype=np.int64)
    if indices.shape != positions.shape or indices.ndim != 1:
        raise ValueError(f"indices has shape {indices.shape}, positions {positions.shape}; expected [B]")
    return indices, positions
