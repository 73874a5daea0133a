"""Retrieval metrics over arrays of row numbers, in pure numpy.

A ranking is an int array `retrieved` `[Q, K]`: for query `i` of the judgments, passage rows, best first, with -1 where
fewer than K passages were retrieved. `gains` looks up the judged relevance of every hit; the measures are functions of
that array and return one float64 per query, as a paired test needs.

Conventions, those of trec_eval (and so of pytrec_eval and ir_measures):

- A passage is relevant if its relevance is at least the relevance level, by default 1; an unjudged passage is not
  relevant. TREC DL takes level 2 for all measures but nDCG, which reads the grades themselves.
- The rank is the column; equal scores keep the given order (trec_eval sorts by score, then by document id descending).
- nDCG's gain is the relevance and its discount log2(rank + 1); negative relevance has gain 0.
- A query without retrieved passages, or without relevant ones, scores 0 and is part of the mean;
  `judgments.positives()` leaves out the latter.

Metrics are named with their cutoff: "mrr@10", "recall@100", "hit_rate@20", "ndcg@10", "map@100"; "map" without a cutoff
uses the whole list.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hf_ar2.collections.judgments import Judgments

MEASURES = ("mrr", "recall", "hit_rate", "ndcg", "map")
DEFAULT_METRICS = ("mrr@10", "ndcg@10", "recall@100")
_CELLS_AT_ONCE = 1 << 24


def gains(retrieved: np.ndarray, judgments: Judgments) -> np.ndarray:
    """Judged relevance of every retrieved passage, int32 `[Q, K]`; 0 for unjudged passages and padding.

    ValueError if `retrieved` (see `evaluate_rankings`) is not a `[Q, K]` integer array for the queries of `judgments`,
    or holds a judged passage twice for one query.
    """
    retrieved = np.asarray(retrieved)
    if retrieved.ndim != 2 or len(retrieved) != len(judgments) or retrieved.dtype.kind not in "iu":
        raise ValueError(
            f"retrieved must be an integer array [{len(judgments)}, K], one list of passage rows for each of "
            f"the {len(judgments)} judged queries; found {retrieved.dtype} {list(retrieved.shape)}"
        )
    result = np.zeros(retrieved.shape, np.int32)
    # Comparing each judged passage with its query's list costs about a nanosecond per cell; a binary search for every
    # hit among the judgments takes a hundred times as long.
    query_of = _query_of_judgment(judgments)
    step = max(1, _CELLS_AT_ONCE // max(1, retrieved.shape[1]))
    for start in range(0, len(query_of), step):
        part = slice(start, start + step)
        found, column = np.nonzero(retrieved[query_of[part]] == judgments.passage_rows[part, None])
        repeated = np.flatnonzero(found[1:] == found[:-1])
        if len(repeated):
            judgment = start + int(found[repeated[0]])
            raise ValueError(
                f"passage row {judgments.passage_rows[judgment]} was retrieved twice for query row "
                f"{judgments.query_rows[query_of[judgment]]}; a ranking must hold each passage once"
            )
        result[query_of[part][found], column] = judgments.relevance[part][found]
    return result


def num_relevant(judgments: Judgments, relevance_level: int = 1) -> np.ndarray:
    """Number of passages of each query whose relevance is at least `relevance_level`, int64 `[Q]`."""
    relevant = _query_of_judgment(judgments)[judgments.relevance >= relevance_level]
    return np.bincount(relevant, minlength=len(judgments))


def mrr(gains: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank of the first relevant passage among the first k, else 0: float64 `[Q]`; its mean is MRR@k."""
    rank_of_first = np.argmax(_first(gains, k) > 0, axis=1) + 1
    return hit_rate(gains, k) / rank_of_first


def hit_rate(gains: np.ndarray, k: int) -> np.ndarray:
    """1 if a relevant passage is among the first k, else 0: float64 `[Q]`. Also success@k, top-k accuracy."""
    return np.any(_first(gains, k) > 0, axis=1).astype(np.float64)


def recall(gains: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Share of a query's relevant passages that are among the first k: float64 `[Q]`."""
    found = np.count_nonzero(_first(gains, k) > 0, axis=1)
    return found / np.maximum(num_relevant, 1)


def ndcg(gains: np.ndarray, judgments: Judgments, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k, `ndcg_cut` of trec_eval: float64 `[Q]`.

    DCG@k = sum over ranks r <= k of relevance_r / log2(r + 1), divided by the DCG@k of the judged passages in order of
    relevance (Järvelin and Kekäläinen 2002, with the relevance itself as the gain, not 2^relevance - 1).
    """
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    rows, columns = np.nonzero(_first(gains, k) > 0)
    dcg = np.bincount(rows, gains[rows, columns] * discounts[columns], minlength=len(gains))

    query_of = _query_of_judgment(judgments)
    relevance = np.maximum(judgments.relevance, 0)
    best_first = np.lexsort((-relevance, query_of))
    rank = np.arange(len(relevance)) - judgments.offsets[query_of]
    ideal = relevance[best_first] * np.where(rank < k, discounts[np.minimum(rank, k - 1)], 0.0)
    ideal_dcg = np.bincount(query_of, ideal, minlength=len(judgments))
    return np.divide(dcg, ideal_dcg, out=np.zeros(len(gains)), where=ideal_dcg > 0)


def average_precision(gains: np.ndarray, num_relevant: np.ndarray, k: int | None = None) -> np.ndarray:
    """Mean precision at the ranks of a query's relevant passages: float64 `[Q]`; its mean over queries is MAP.

    A relevant passage that is not among the first k (None: the whole list) counts 0, as in trec_eval's `map`
    and `map_cut`.
    """
    rows, columns = np.nonzero(_first(gains, gains.shape[1] if k is None else k) > 0)
    nth_of_query = np.arange(len(rows)) - np.searchsorted(rows, rows) + 1
    precision = np.bincount(rows, nth_of_query / (columns + 1), minlength=len(gains))
    return precision / np.maximum(num_relevant, 1)


def parse_metric(name: str) -> tuple[str, int | None]:
    """Split the name of a metric into its measure and its cutoff; the ValueError suggests the nearest name."""
    match = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]*))?", name)
    if match and match[1] in MEASURES and (match[2] or match[1] == "map"):
        return match[1], int(match[2]) if match[2] else None
    measure, _, cutoff = name.lower().replace("-", "_").partition("@")
    aliases = {"rr": "mrr", "r": "recall", "success": "hit_rate", "accuracy": "hit_rate", "ap": "map"}
    near = [aliases[measure]] if measure in aliases else difflib.get_close_matches(measure, MEASURES, n=1)
    depth = cutoff if cutoff.isdigit() and int(cutoff) > 0 else "10"
    near = [name if name == "map" and not cutoff else f"{name}@{depth}" for name in near]
    hint = "".join(f"did you mean {name!r}? " for name in near)
    raise ValueError(
        f"unknown metric {name!r}; {hint}Metrics are {', '.join(f'{measure}@k' for measure in MEASURES)} "
        "with a cutoff k of at least 1, and map"
    )


def evaluate_rankings(
    retrieved: np.ndarray,
    judgments: Judgments,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    num_passages: int | None = None,
    relevance_level: int | None = None,
) -> dict[str, np.ndarray]:
    """Several metrics of one set of rankings, per query.

    Args:
        retrieved: int `[Q, K]`, passage rows, best first, -1 padded; row `i` belongs to query `i` of `judgments`.
        judgments: the judgments of the same Q queries.
        metrics: names, see `parse_metric`.
        num_passages: size of the corpus. A cutoff may exceed K only if the lists hold the whole corpus.
        relevance_level: the lowest grade that is relevant, for all measures but nDCG, which reads the grades; None:
            that of the judgments.

    Returns:
        metric name -> float64 `[Q]`, in the order of `judgments`.

    Raises:
        ValueError: an unknown metric; a cutoff above K; a level below 1; malformed `retrieved`, see `gains`.

    Example:
        >>> from hf_ar2.collections.judgments import Judgments
        >>> judgments = Judgments.from_triples([0, 1], [4, 5], [1, 1])
        >>> evaluate_rankings(np.array([[3, 4], [6, 7]]), judgments, ["mrr@2", "recall@1"])
        {'mrr@2': array([0.5, 0. ]), 'recall@1': array([0., 0.])}
    """
    relevance_level = judgments.level if relevance_level is None else relevance_level
    if relevance_level < 1:
        raise ValueError(f"relevance_level={relevance_level}: expected a grade of at least 1")
    parsed = [(name, *parse_metric(name)) for name in metrics]
    gain = gains(retrieved, judgments)
    relevant = num_relevant(judgments, relevance_level)
    exhaustive = num_passages is not None and gain.shape[1] >= num_passages
    values = {}
    for name, measure, k in parsed:
        if exhaustive and k is not None and k > gain.shape[1]:
            gain = np.pad(gain, ((0, 0), (0, k - gain.shape[1])))
        hits = np.where(gain >= relevance_level, gain, 0)
        if k is None or measure == "map":
            values[name] = average_precision(hits, relevant, k)
        elif measure == "recall":
            values[name] = recall(hits, relevant, k)
        elif measure == "ndcg":
            values[name] = ndcg(gain, judgments, k)
        else:
            values[name] = mrr(hits, k) if measure == "mrr" else hit_rate(hits, k)
    return values


def _first(gains: np.ndarray, k: int) -> np.ndarray:
    """The first k columns; raises if the lists are shorter."""
    if k < 1:
        raise ValueError(f"the cutoff k must be at least 1, found {k}")
    if k > gains.shape[1]:
        raise ValueError(
            f"the cutoff {k} exceeds the lists of {gains.shape[1]} passages; retrieve at least {k} passages per query, "
            f"or choose a cutoff of at most {gains.shape[1]}"
        )
    return gains[:, :k]


def _query_of_judgment(judgments: Judgments) -> np.ndarray:
    """The position of each judgment's query among the judged queries, int64 `[J]`."""
    return np.repeat(np.arange(len(judgments)), np.diff(judgments.offsets))
