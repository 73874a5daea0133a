"""Where a ranker is sure: which passages it takes for irrelevant, and which for relevant.

Three ways to draw the two lines. Passages between them are neither, and are left out of denoised lists.
"""

from __future__ import annotations

import numpy as np

from hf_ar2.augmentation.calibration import Calibration

# Masks of what is surely irrelevant and what is surely relevant, bool `[Q, n]` each.
Sure = tuple[np.ndarray, np.ndarray]


def sure_by_probability(
    scores: np.ndarray, calibration: Calibration, irrelevant: float, relevant: float
) -> Sure:
    """Probability of relevance below `irrelevant`, and above `relevant`: RocketQA's .1 and .9.

    Args:
        scores: float `[Q, n]`, the ranker's logits.
        calibration: makes probabilities of them; the identity for a ranker that was trained pointwise.
    """
    probabilities = calibration.probabilities(scores)
    return probabilities < irrelevant, probabilities > relevant


def log_shares(scores: np.ndarray) -> np.ndarray:
    """The log-softmax of each query's scores, which no constant per query changes; -inf stays.

    Args:
        scores: float `[Q, n]`; -inf where there is no passage.

    Returns:
        float64 `[Q, n]`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    top = scores.max(axis=1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    return np.where(np.isfinite(scores), scores - top - np.where(np.isfinite(total), total, 0), -np.inf)


def quantile_lines(
    scored: list[tuple[np.ndarray, np.ndarray]], irrelevant: float, relevant: float
) -> tuple[float, float]:
    """Two lines on `log_shares`, as quantiles over all unlabelled passages of all queries.

    Shares and not scores, because a ranker trained on lists knows its scores only up to a constant per query.

    Args:
        scored: for each set of queries scores `[Q, n]` and which passages are unlabelled, bool `[Q, n]`.
        irrelevant, relevant: quantiles between 0 and 1.

    Raises:
        ValueError: there is no unlabelled passage.
    """
    shares = np.concatenate([log_shares(scores)[unlabelled] for scores, unlabelled in scored])
    if not len(shares):
        raise ValueError("there is no unlabelled passage to take quantiles of; retrieve deeper")
    low, high = np.quantile(shares, [irrelevant, relevant])
    return float(low), float(high)


def sure_by_share(scores: np.ndarray, low: float, high: float) -> Sure:
    """Log-shares below `low`, and above `high`; the lines are from `quantile_lines`."""
    shares = log_shares(scores)
    return shares < low, shares > high


def sure_by_margin(
    scores: np.ndarray, positive_scores: np.ndarray, irrelevant: float, relevant: float
) -> Sure:
    """Scores further than `irrelevant` below the lowest labelled positive, and than `relevant` above the highest.

    Args:
        scores: float `[Q, n]`.
        positive_scores: float `[Q, P]`, -inf where there is none; at least one per query.
        irrelevant, relevant: in logits, at least 0.
    """
    highest = positive_scores.max(axis=1, keepdims=True)
    lowest = np.where(np.isfinite(positive_scores), positive_scores, np.inf).min(axis=1, keepdims=True)
    return scores < lowest - irrelevant, scores > highest + relevant
