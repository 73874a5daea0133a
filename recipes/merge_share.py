"""Chooses on dev how much of the starting weights a merged retriever gets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_ar2.evaluation.significance import paired_test
from hf_ar2.models.merging import DEFAULT_SHARE, MAX_FREE_SHARE, MAX_LOSS

# Shares of the starting weights that `auto` chooses from.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


_LEVEL = 0.05


def choose_share(
    dev: Mapping[float, np.ndarray] | None, guard: Mapping[float, np.ndarray] | None = None
) -> tuple[float, str]:
    """Which share of the starting weights to take, and why.

    Differences are judged by the paired test over queries: significant below p = .05.

    - *Dev alone*: of the shares up to .3 that are not significantly below the best one, the largest. Averaging costs
      nothing in search and keeps what the model knew, so a difference that may be luck is no reason to take less. Above
      .3 a share is taken only where it is the best and all up to .3 are significantly below it.
    - *Dev and guard* (a collection of other texts): of all shares that are not significantly below the best one on
      dev, the one that is best on the guard; at equal values there the one that is better on dev. Shares above .3 must
      not lose more than .02 on dev either, for with few queries hardly any difference is significant.
    - *No dev*, where its queries come from headings and the like: what they ask is not what people will ask, and
      fitting them is no gain. Half of the starting weights are taken, unless another share is significantly better on
      the guard; then the one that is best there.

    Args:
        dev: share → float64 `[Q]`, the test metric per query; None where the queries come from the texts' structure.
        guard: the same of the guard's queries; None without a guard.

    Returns:
        The share, and the reason in words.
    """
    if dev is None:
        if guard is None:
            return DEFAULT_SHARE, "the queries of dev were not asked by people, and there is no guard"
        best = _best(guard)
        if best != DEFAULT_SHARE and _below(guard[DEFAULT_SHARE], guard[best]):
            return best, f"significantly better on the guard than {DEFAULT_SHARE}"
        return DEFAULT_SHARE, (
            "the queries of dev were not asked by people, and no other share is significantly better on the guard"
        )
    best = _best(dev)
    as_good = [share for share in dev if not _below(dev[share], dev[best])]
    if guard is not None:
        least = dev[best].mean() - MAX_LOSS
        allowed = [share for share in as_good if share <= MAX_FREE_SHARE or dev[share].mean() >= least]
        share = max(allowed, key=lambda share: (guard[share].mean(), dev[share].mean(), share))
        return share, "the best on the guard of the shares that cost nothing on dev"
    free = [share for share in as_good if share <= MAX_FREE_SHARE]
    if not free:
        return best, f"the best on dev, significantly above those up to {MAX_FREE_SHARE}"
    return max(free), f"the largest up to {MAX_FREE_SHARE} that is not significantly below the best on dev"


def _best(values: Mapping[float, np.ndarray]) -> float:
    return max(values, key=lambda share: (values[share].mean(), -share))


def _below(values: np.ndarray, best: np.ndarray) -> bool:
    """Whether values are significantly below the best; a single query tells nothing."""
    if len(values) < 2 or values.mean() >= best.mean():
        return False
    return paired_test(values, best).p_value < _LEVEL
