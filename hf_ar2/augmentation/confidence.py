"""Where a ranker is sure: which passages it takes for irrelevant, and which for relevant.

Three ways to draw the two lines. Passages between them are neither, and are left out of denoised lists.
"""

from __future__ import annotations

import numpy as np

from hf_ar2.augmentation.calibration import Calibration

THRESHOLDS = ("absolute", "quantile", "margin")
# The lines where nobody says otherwise, (irrelevant, relevant); the first are RocketQA's.
DEFAULT_LINES = {"absolute": (0.1, 0.9), "quantile": (0.5, 0.99), "margin": (2.0, 2.0)}

# Masks of what is surely irrelevant and what is surely relevant, bool `[Q, n]` each.
Sure = tuple[np.ndarray, np.ndarray]


def sure_by_probability(
    scores: np.ndarray, calibration: Calibration, irrelevant: float, relevant: float
) -> Sure:
    """Probability of relevance below `irrelevant`, and above `relevant`: RocketQA's .1 and .9.

    Args:
        scores: float `[Q, n]`, the ranker's logits.
        calibration: makes probabilities of them; the identity for a ranker that was trained pointwise.

    Example:
        >>> sure_by_probability(np.array([[-3.0, 0.0, 3.0]]), Calibration(), 0.1, 0.9)
        (array([[ True, False, False]]), array([[False, False,  True]]))
    """
    probabilities = calibration.probabilities(scores)
    return probabilities < irrelevant, probabilities > relevant


def log_shares(scores: np.ndarray) -> np.ndarray:
    """The log-softmax of each query's scores, which no constant per query changes; -inf stays.

    Args:
        scores: float `[Q, n]`; -inf where there is no passage.

    Returns:
        float64 `[Q, n]`.

    Example:
        >>> shares = log_shares(np.array([[1.0, 3.0], [101.0, 103.0]]))
        >>> shares.round(2).tolist()
        [[-2.13, -0.13], [-2.13, -0.13]]
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

    Example:
        >>> scores = np.array([[0.0, 1.0, 2.0, 9.0]])
        >>> low, high = quantile_lines([(scores, np.array([[True, True, True, False]]))], 0.5, 1.0)
        >>> [low, high] == log_shares(scores)[0, 1:3].tolist()
        True
    """
    shares = np.concatenate([log_shares(scores)[unlabelled] for scores, unlabelled in scored])
    if not len(shares):
        raise ValueError("there is no unlabelled passage to take quantiles of; retrieve deeper")
    low, high = np.quantile(shares, [irrelevant, relevant])
    return float(low), float(high)


def sure_by_share(scores: np.ndarray, low: float, high: float) -> Sure:
    """Log-shares below `low`, and above `high`; the lines are from `quantile_lines`.

    Example:
        >>> scores = np.array([[4.0, 1.0, 0.0]])
        >>> np.exp(log_shares(scores)).round(2).tolist()
        [[0.94, 0.05, 0.02]]
        >>> sure_by_share(scores, low=np.log(0.03), high=np.log(0.9))
        (array([[False, False,  True]]), array([[ True, False, False]]))
    """
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

    Example:
        >>> sure_by_margin(np.array([[0.0, 2.5, 9.0]]), np.array([[3.0, 4.0]]), irrelevant=2, relevant=2)
        (array([[ True, False, False]]), array([[False, False,  True]]))
    """
    highest = positive_scores.max(axis=1, keepdims=True)
    lowest = np.where(np.isfinite(positive_scores), positive_scores, np.inf).min(axis=1, keepdims=True)
    return scores < lowest - irrelevant, scores > highest + relevant
