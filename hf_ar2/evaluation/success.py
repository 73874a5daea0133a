"""What a person who searches looks at: in how many questions one of the first results is relevant."""

from __future__ import annotations

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.evaluation.systems import measure

# How many results are looked at.
TOP_K = 3


def questions_answered(collection: Collection, split: str, rows: np.ndarray, first: int = TOP_K) -> int:
    """The number of a split's queries of which the first results hold a relevant passage.

    Args:
        rows: int64 `[Q, K]` passage rows, in the order of `evaluated_queries`; where K is less, all are looked at.
    """
    metric = f"hit_rate@{min(first, rows.shape[1])}"
    return int(measure(collection, split, rows, [metric])[metric].sum())
