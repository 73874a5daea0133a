"""The number of questions with a relevant passage among the first results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.evaluation.systems import measure
from hf_ar2.evaluation.tables import format_table

# The number of results that a user is assumed to look at.
TOP_K = 3


def questions_answered(collection: Collection, split: str, rows: np.ndarray) -> int:
    """The number of a split's queries with a relevant passage among the first results (all, if K is smaller).

    `rows` are passage rows int64 `[Q, K]`, in the order of `evaluated_queries`.
    """
    metric = f"hit_rate@{min(TOP_K, rows.shape[1])}"
    return int(measure(collection, split, rows, [metric])[metric].sum())


def answered_table(rows: Sequence[tuple[Sequence[str], int]], names: Sequence[str], questions: int) -> str:
    """A table of how many of the judged `questions` are answered: for each row the texts under `names`, and the number.

    Example:
        >>> print(answered_table([(["retriever"], 1), (["hybrid (served)"], 2)], ["system"], 4))
        system           answered in the first 3
        ────────────────────────────────────────
        retriever                         1 of 4
        hybrid (served)                   2 of 4
    """
    cells = [[*texts, f"{count:,} of {questions:,}"] for texts, count in rows]
    return format_table(cells, [*names, f"answered in the first {TOP_K}"])
