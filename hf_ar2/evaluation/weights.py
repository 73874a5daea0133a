"""The weight of the ranker and the depth of the pipeline, fitted on a dev split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.evaluation.metrics import hit_rate, mrr, parse_metric
from hf_ar2.evaluation.systems import hits_of_split, measure, pipeline_scores

# Of BM25 in the hybrid, and of the ranker in the pipeline; the ranker alone is a separate system.
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
# Tried if smaller than the number of passages that the ranker scored, which is always tried.
DEPTHS = (5, 10, 20, 50)
# Settings within this many standard errors of the best one count as equally good.
_EQUALLY_GOOD = 0.5


@dataclass(frozen=True)
class Blend:
    """How the pipeline orders a query's first passages: retriever / τ + weight · ranker / τ'."""

    weight: float = 1.0
    depth: int | None = None  # passages of a query that are reordered; None: all that the ranker scored
    lexical: float = 0.0  # weight of BM25, see `hf_ar2.evaluation.hybrid`; 0: the retriever alone


def fit_blend(
    scores: np.ndarray,
    rows: np.ndarray,
    ranker_scores: np.ndarray,
    collection: Collection,
    split: str,
    metric: str,
    retriever_temperature: float,
    ranker_temperature: float = 1.0,
) -> Blend:
    """Fit weight and depth on a split; of the `equally_good`, take those nearest to weight 1 and full depth.

    Every weight of `WEIGHTS` is tried with every depth, and distance is counted in steps of that grid. In simulations
    with 50 to 300 queries this lost less than .01 MRR@10 against the best weight, while weight 1 lost up to .2 with a
    weak ranker.

    Args:
        scores, rows: float32 and int64 `[Q, K]`, the retriever's results for the split's queries, best first.
        ranker_scores: float32 `[Q, k]` of its first k.
    """
    scored = ranker_scores.shape[1]
    depths = [*(depth for depth in DEPTHS if depth < scored), scored]
    values = _values_of_order(rows, collection, split, metric, scored)
    tried = np.empty((len(depths), len(WEIGHTS), len(rows)))
    for place, depth in enumerate(depths):
        for number, weight in enumerate(WEIGHTS):
            heads = scores[:, :depth], ranker_scores[:, :depth]
            both = pipeline_scores(*heads, retriever_temperature, ranker_temperature, weight)
            tried[place, number] = values(np.argsort(-both, axis=1, kind="stable"))
    good = equally_good(tried)
    steps = np.abs(np.arange(len(WEIGHTS)) - WEIGHTS.index(1.0)) + np.arange(len(depths))[::-1, None]
    depth, weight = divmod(int(np.where(good, steps, steps.max() + 1).argmin()), len(WEIGHTS))
    return Blend(WEIGHTS[weight], None if depths[depth] == scored else depths[depth])


def equally_good(tried: np.ndarray) -> np.ndarray:
    """Which settings are less than half a standard error below the best one, bool `[..., W]`.

    `tried` is the metric of every query at every weight, float64 `[..., W, Q]`, weights ascending. The means are
    smoothed over neighbouring weights (¼, ½, ¼), because a small split says little about one setting. The standard
    error is that of the paired difference over the queries.
    """
    padded = np.pad(tried.mean(axis=-1), [(0, 0)] * (tried.ndim - 2) + [(1, 1)], mode="edge")
    means = 0.25 * padded[..., :-2] + 0.5 * padded[..., 1:-1] + 0.25 * padded[..., 2:]
    best = np.unravel_index(int(means.argmax()), means.shape)
    errors = (tried[best] - tried).std(axis=-1) / np.sqrt(tried.shape[-1])
    return np.asarray(means >= means[best] - _EQUALLY_GOOD * errors - 1e-12)


def _values_of_order(
    rows: np.ndarray, collection: Collection, split: str, metric: str, scored: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the order of each query's first passages, int64 `[Q, k]`, to the metric, float64 `[Q]`."""
    kind, cutoff = parse_metric(metric)
    judged = split in collection.qrels
    # Answers are matched once, not for every order.
    ranked = rows if judged else hits_of_split(collection, split, rows[:, : max(scored, cutoff or 0)])

    def values(order: np.ndarray) -> np.ndarray:
        head = np.take_along_axis(ranked, order, axis=1)
        ordered = np.concatenate([head, ranked[:, order.shape[1] :]], axis=1)[:, :cutoff]
        if judged:
            return measure(collection, split, ordered, [metric])[metric]
        return (hit_rate if kind == "hit_rate" else mrr)(ordered, min(cutoff or 1, ordered.shape[1]))

    return values
