"""Paired significance tests over per-query values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Up to this many differing queries all 2^n sign assignments are enumerated.
_EXACT_UP_TO = 16
_CELLS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class PairedTest:
    """The result of a paired test between runs a and b over the same queries.

    Attributes:
        difference: mean of a minus mean of b.
        p_value: two-sided.
        wins: queries on which a is better.
        losses: queries on which b is better.
        ties: queries on which both have the same value.

    Example:
        >>> test = PairedTest(difference=0.04, p_value=0.012, wins=80, losses=20, ties=339)
        >>> f"{test.difference:+.3f} (p = {test.p_value:.3f}), better on {test.wins}, worse on {test.losses}"
        '+0.040 (p = 0.012), better on 80, worse on 20'
    """

    difference: float
    p_value: float
    wins: int
    losses: int
    ties: int


def paired_test(
    a: np.ndarray,
    b: np.ndarray,
    method: Literal["randomization", "t"] = "randomization",
    samples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Two-sided paired test of the null hypothesis that runs a and b are equally good.

    `"randomization"` is Fisher's randomisation test (Smucker, Allan and Carterette 2007): under the null hypothesis
    both signs of each query's difference are equally likely, so p is the share of sign assignments whose mean is at
    least as far from 0 as the observed one. With up to 16 differing queries all assignments are enumerated and p is
    exact; otherwise `samples` random ones are drawn and p = (count + 1) / (samples + 1). `"t"` is Student's paired t
    test.

    Args:
        a, b: float `[Q]`, one value per query, of the same queries in the same order.
        method: `"randomization"` or `"t"`.
        samples, seed: of the random sign assignments.

    Raises:
        ValueError: shapes differ, fewer than two queries, a value that is not finite, an unknown method.

    Example:
        >>> paired_test(np.array([1.0, 1.0, 0.5, 1.0, 0.2]), np.array([0.5, 0.2, 0.5, 0.4, 0.1]))
        PairedTest(difference=0.4, p_value=0.125, wins=4, losses=0, ties=1)
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ValueError(
            f"a and b must be one value per query for the same two or more queries; found "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        query = int(np.flatnonzero(~(np.isfinite(a) & np.isfinite(b)))[0])
        raise ValueError(f"values must be finite; query {query} has a = {a[query]} and b = {b[query]}")
    difference = a - b
    # Equal metrics that were summed in another order differ in the last bits; they are ties.
    difference[np.abs(difference) <= 1e-12 * np.maximum(np.abs(a), np.abs(b))] = 0.0
    if method == "randomization":
        p_value = _randomization_p(difference[difference != 0], samples, seed)
    elif method == "t":
        p_value = _t_p(difference)
    else:
        raise ValueError(f"unknown method {method!r}; it is 'randomization' or 't'")
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return PairedTest(float(difference.mean()), p_value, wins, losses, len(a) - wins - losses)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values of several comparisons, corrected for the family-wise error rate by Holm's step-down method (1979).

    The i-th smallest of m is multiplied by m - i + 1; the results are made monotone and capped at 1.

    Returns:
        float64, in the order given.

    Raises:
        ValueError: a value outside [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be a flat list of numbers in [0, 1]; found {p_values!r}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _randomization_p(difference: np.ndarray, samples: int, seed: int) -> float:
    """The p-value, from the non-zero differences."""
    n = len(difference)
    if n == 0:
        return 1.0
    # A tolerance, so that rounding does not decide whether an assignment is as extreme as the observed one.
    observed = abs(difference.sum()) - 1e-10 * np.abs(difference).sum()
    if n <= _EXACT_UP_TO:
        signs = 2.0 * ((np.arange(1 << n)[:, None] >> np.arange(n)) & 1) - 1.0
        return float((np.abs(signs @ difference) >= observed).mean())
    if samples < 1:
        raise ValueError(f"samples must be at least 1, found {samples}")
    rng = np.random.default_rng(seed)
    bytes_per_sample = (n + 7) // 8
    count, step = 0, max(1, _CELLS_AT_ONCE // n)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        random = rng.integers(0, 256, (size, bytes_per_sample), np.uint8)
        bits = np.unpackbits(random, axis=1, count=n)
        # Sum of signed differences = twice the sum of the positive ones, minus the sum of all.
        count += int((np.abs(2.0 * (bits @ difference) - difference.sum()) >= observed).sum())
    return (count + 1) / (samples + 1)


def _t_p(difference: np.ndarray) -> float:
    from scipy import stats  # slow to import, and only this method needs it

    n, spread = len(difference), difference.std(ddof=1)
    if spread <= 1e-12 * np.abs(difference).max():  # every query differs by the same amount
        return 1.0 if difference[0] == 0 else 0.0
    return float(2.0 * stats.t.sf(abs(difference.mean()) / (spread / np.sqrt(n)), n - 1))
