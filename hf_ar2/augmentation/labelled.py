"""Scored candidates, with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_ar2.augmentation.scored import ScoredCandidates, score_candidates
from hf_ar2.collections.judgments import Judgments
from hf_ar2.search.system import SearchSystem
from hf_ar2.training_lists.filters import among, text_groups
from hf_ar2.training_lists.pool import padded_positives


@dataclass(frozen=True)
class LabelledCandidates:
    """Scored candidates of Q queries, with their labels.

    Attributes:
        scored: the candidates.
        positive: bool `[Q, n]`, labelled relevant.
        duplicate: bool `[Q, n]`, not labelled relevant, but with the text of a labelled positive.
        judged_irrelevant: bool `[Q, n]`, labelled with a grade that is not relevant.
    """

    scored: ScoredCandidates
    positive: np.ndarray
    duplicate: np.ndarray
    judged_irrelevant: np.ndarray

    @cached_property
    def not_positive(self) -> np.ndarray:
        """Passages that are neither positives nor duplicates of one, bool `[Q, n]`."""
        return (self.scored.rows >= 0) & ~self.positive & ~self.duplicate

    @cached_property
    def unlabelled(self) -> np.ndarray:
        """Those of `not_positive` without a label, bool `[Q, n]`."""
        return self.not_positive & ~self.judged_irrelevant


def labelled_candidates(
    system: SearchSystem, split: str, depth: int, folder: Path, text_keys: np.ndarray
) -> LabelledCandidates:
    """Scored candidates of the queries of a split that have a relevant passage.

    Args:
        system: a retriever and a ranker over a collection.
        depth: passages retrieved per query.
        folder: for the scores.
        text_keys: int64 `[N]`, `passage_text_keys` of the corpus.
    """
    judgments = system.collection.judgments(split)
    positives = judgments.positives()
    if len(positives) == 0:
        raise ValueError(f"split {split!r} of {system.collection.name} has no query with a relevant passage")
    padded = padded_positives(positives)
    scored = score_candidates(system, positives.query_rows, padded, depth, folder, f"Queries of {split}")
    positive = among(scored.rows, positives.passage_rows, positives.offsets)
    groups, of_positives = text_groups(text_keys, scored.rows, positives.passage_rows)
    duplicate = among(groups, of_positives, positives.offsets) & ~positive
    return LabelledCandidates(scored, positive, duplicate, _judged_irrelevant(scored, judgments))


def _judged_irrelevant(scored: ScoredCandidates, judgments: Judgments) -> np.ndarray:
    judged = judgments.take(np.searchsorted(judgments.query_rows, scored.query_rows))
    zero = judged.relevance < judgments.level
    if not zero.any():
        return np.zeros(scored.rows.shape, dtype=bool)
    offsets = np.append(0, np.cumsum(zero))[judged.offsets]
    return among(scored.rows, judged.passage_rows[zero], offsets)
