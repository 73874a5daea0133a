"""Which passages a ranker confidently scores as irrelevant, and which as relevant.

Passages between the two thresholds are neither, and are left out of denoised lists.
"""

from __future__ import annotations

import numpy as np

# Masks of the passages that are confidently irrelevant and confidently relevant, bool `[Q, n]` each.
ConfidenceMasks = tuple[np.ndarray, np.ndarray]


def log_shares(scores: np.ndarray) -> np.ndarray:
    """The log-softmax of each query's scores, float64 `[Q, n]`; a constant per query does not change it.

    Where there is no passage, a score is -inf, and so is the result.
    """
    scores = np.asarray(scores, dtype=np.float64)
    top = scores.max(axis=1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    return np.where(np.isfinite(scores), scores - top - np.where(np.isfinite(total), total, 0), -np.inf)


def quantile_thresholds(
    scored: list[tuple[np.ndarray, np.ndarray]], irrelevant: float, relevant: float
) -> tuple[float, float]:
    """Two thresholds on `log_shares`, as quantiles (between 0 and 1) over the unlabelled passages of all queries.

    They are on shares rather than scores, because listwise training leaves a constant per query undetermined. `scored`
    has for each set of queries the scores `[Q, n]` and a mask of the unlabelled passages, bool `[Q, n]`.
    """
    shares = np.concatenate([log_shares(scores)[unlabelled] for scores, unlabelled in scored])
    if not len(shares):
        raise ValueError("found no unlabelled passages for the quantiles; retrieve more passages")
    low, high = np.quantile(shares, [irrelevant, relevant])
    return float(low), float(high)


def masks_by_margin(
    scores: np.ndarray, positive_scores: np.ndarray, irrelevant: float, relevant: float
) -> ConfidenceMasks:
    """Scores more than `irrelevant` below the lowest labelled positive, and more than `relevant` above the highest.

    Both are logits. `scores` are float `[Q, n]`, `positive_scores` float `[Q, P]`, -inf padded, at least one per query.
    """
    highest = positive_scores.max(axis=1, keepdims=True)
    lowest = np.where(np.isfinite(positive_scores), positive_scores, np.inf).min(axis=1, keepdims=True)
    return scores < lowest - irrelevant, scores > highest + relevant
