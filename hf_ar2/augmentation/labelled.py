"""Scored candidates, with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_ar2.augmentation.scored import ScoredCandidates, score_candidates
from hf_ar2.search.system import SearchSystem
from hf_ar2.training_lists.filters import among, text_groups
from hf_ar2.training_lists.pool import padded_positives


@dataclass(frozen=True)
class LabelledCandidates:
    """Scored candidates of Q queries, with masks of their labels, bool `[Q, n]`."""

    scored: ScoredCandidates
    positive: np.ndarray  # labelled relevant
    duplicate: np.ndarray  # not labelled relevant, but with the text of a labelled positive
    judged_irrelevant: np.ndarray  # labelled with a grade that is not relevant

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
    """Scored candidates (see `score_candidates`) of the queries of a split that have a relevant passage.

    `text_keys` are those of the corpus, int64 `[N]`, see `passage_text_keys`.
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
    judged = judgments.take(np.searchsorted(judgments.query_rows, scored.query_rows))
    negative = judged.relevance < judgments.level
    judged_irrelevant = np.zeros(scored.rows.shape, dtype=bool)
    if negative.any():
        offsets = np.append(0, np.cumsum(negative))[judged.offsets]
        judged_irrelevant = among(scored.rows, judged.passage_rows[negative], offsets)
    return LabelledCandidates(scored, positive, duplicate, judged_irrelevant)
