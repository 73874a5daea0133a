"""The number of questions with a relevant passage among the first results."""

from __future__ import annotations

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.evaluation.systems import measure

# The number of results that a user is assumed to look at.
TOP_K = 3


def questions_answered(collection: Collection, split: str, rows: np.ndarray) -> int:
    """The number of a split's queries with a relevant passage among the first results (all, if K is smaller).

    Args:
        rows: int64 `[Q, K]` passage rows, in the order of `evaluated_queries`.
    """
    metric = f"hit_rate@{min(TOP_K, rows.shape[1])}"
    return int(measure(collection, split, rows, [metric])[metric].sum())
