"""Reranking by the ranker, and by the pipeline of retriever and ranker."""

from __future__ import annotations

import numpy as np


def rerank(retrieved: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Reorder each query's candidates by score; ties keep the retriever's order.

    Args:
        retrieved: int64 `[Q, k]`, best first, -1 padded.
        scores: float32 `[Q, k]`.

    Returns:
        int64 `[Q, k]`.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(retrieved, order, axis=1)


def pipeline_scores(
    retriever_scores: np.ndarray,
    ranker_scores: np.ndarray,
    retriever_temperature: float,
    ranker_temperature: float = 1.0,
    weight: float = 1.0,
) -> np.ndarray:
    """log p_retriever(d|q) + weight · log p_ranker(d|q), up to a constant per query.

    Each model was trained as a softmax over its scores at its temperature. `hf_ar2.evaluation.weights` fits the weight
    on a dev split.

    Args:
        retriever_scores, ranker_scores: float32 `[Q, k]` of the same candidates; -inf under padding.
        weight: of the ranker, at least 0; 0 keeps the retriever's order.

    Returns:
        float32 `[Q, k]`.
    """
    if weight == 0:  # 0 times the -inf of padding is NaN
        return np.where(np.isneginf(ranker_scores), -np.inf, retriever_scores / retriever_temperature)
    return retriever_scores / retriever_temperature + weight * (ranker_scores / ranker_temperature)


def pipeline(retrieved: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The retriever's ranking with its first k candidates reordered by the scores of both models.

    Args:
        retrieved: int64 `[Q, K]`.
        scores: float32 `[Q, k]`, k ≤ K, of the first k candidates, see `pipeline_scores`.

    Returns:
        int64 `[Q, K]`.
    """
    depth = scores.shape[1]
    return np.concatenate([rerank(retrieved[:, :depth], scores), retrieved[:, depth:]], axis=1)
