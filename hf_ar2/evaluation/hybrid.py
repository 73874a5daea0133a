"""Hybrid retrieval: candidates of the retriever and of BM25, sorted by a weighted sum of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_ar2.evaluation.weights import WEIGHTS, equally_good
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.index.lexical import LexicalIndex

# For collections whose queries are headings, which share more words with their passages than questions do, so that a
# fitted weight would be too high. It is close to the weights fitted on collections of real questions.
DEFAULT_LEXICAL_WEIGHT = 0.3


@dataclass(frozen=True)
class Candidates:
    """Passages found by the retriever or by BM25 for Q queries, arrays `[Q, K]`."""

    rows: np.ndarray  # int64, each passage once, -1 padded
    retriever: np.ndarray  # float32, the retriever's scores; -inf under the padding
    lexical: np.ndarray  # float32, BM25's scores; 0 under the padding

    def ranked(self, weight: float, temperature: float, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 and rows int64 `[Q, depth]`, best first: retriever / temperature + weight · BM25.

        The sum is multiplied by the temperature, so that it can replace the retriever's score.
        """
        best = self.best(weight, temperature, depth)
        return best.scores(weight, temperature), best.rows

    def best(self, weight: float, temperature: float, depth: int) -> Candidates:
        """The first `depth` passages of each query, best first."""
        order = np.argsort(-self.scores(weight, temperature), axis=1, kind="stable")[:, :depth]
        parts = self.rows, self.retriever, self.lexical
        return Candidates(*(np.take_along_axis(part, order, axis=1) for part in parts))

    def scores(self, weight: float, temperature: float) -> np.ndarray:
        """The scores of the hybrid, float32 `[Q, K]`."""
        return (self.retriever + temperature * weight * self.lexical).astype(np.float32)


def candidates_of_both(
    scores: np.ndarray,
    rows: np.ndarray,
    query_texts: Sequence[str],
    lexical: LexicalIndex,
    score_passages: Callable[[np.ndarray], np.ndarray],
    own_rows: np.ndarray | None = None,
    ranges: np.ndarray | None = None,
) -> Candidates:
    """The passages that the retriever found, then those that only BM25 found, with the scores of both.

    Args:
        scores, rows: float32 and int64 `[Q, K]`, the retriever's results, best first.
        score_passages: from rows int64 `[Q, K]` to the retriever's scores, float32; scores of -1 are ignored.
        own_rows, ranges: of these queries, see `Collection.own_rows` and `Collection.searched_rows`.
    """
    _, found = lexical.search(query_texts, rows.shape[1], ranges)
    if own_rows is not None:
        found = np.where(found == own_rows[:, None], -1, found)
    # Passages that both found are kept once.
    repeated = (found[:, :, None] == rows[:, None, :]).any(axis=2)
    extra = np.where(repeated, -1, found)
    both = np.concatenate([rows, extra], axis=1)
    extra_scores = np.where(extra >= 0, score_passages(extra), -np.inf)
    return Candidates(
        both,
        np.concatenate([np.where(rows >= 0, scores, -np.inf), extra_scores], axis=1).astype(np.float32),
        lexical.scores(query_texts, both, ranges),
    )


def score_rows(index: CorpusIndex | FrozenIndex, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The retriever's scores float32 `[Q, K]` of passages at corpus rows `[Q, K]` for queries float32 `[Q, d]`.

    Scores of row -1 are arbitrary.
    """
    scores = np.empty(rows.shape, np.float32)
    for number, passages in enumerate(np.maximum(rows, 0)):
        if isinstance(index, FrozenIndex):
            vectors = index.vectors(passages).cpu().numpy()
        else:
            vectors = np.asarray(index.embeddings[passages], np.float32)
        scores[number] = vectors @ queries[number]
    return scores


def fit_weight(
    candidates: Candidates, temperature: float, values_of: Callable[[np.ndarray], np.ndarray], depth: int
) -> float:
    """The weight of BM25 in the middle of those that are `equally_good` as the best one on a split's queries.

    Fitted on half of a dev split, the middle one was better on the other half than the smallest or the best one.
    `values_of` takes a ranking int64 `[Q, depth]` and returns the metric of every query, float64 `[Q]`.
    """
    tried = np.stack([values_of(candidates.ranked(weight, temperature, depth)[1]) for weight in WEIGHTS])
    good = np.flatnonzero(equally_good(tried))
    return WEIGHTS[int(good[len(good) // 2])]
