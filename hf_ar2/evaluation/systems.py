"""The systems that are evaluated: the retriever, the ranker over its first candidates, and the pipeline of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_ar2.evaluation.answers import answer_hits
from hf_ar2.evaluation.metrics import evaluate_rankings, hit_rate, mrr, parse_metric
from hf_ar2.terminal import counted

if TYPE_CHECKING:
    from hf_ar2.collections import Collection

# hybrid: retriever and BM25; ranker: reranks the first of their passages; pipeline: the weighted sum of all scores.
SYSTEMS = ("retriever", "hybrid", "ranker", "pipeline")
# The row of BM25 alone.
LEXICAL_ROW = "BM25"

# One system's rankings: passage rows int64 [Q, K], best first, -1 padded, and scores float32 [Q, K].
Ranking = tuple[np.ndarray, np.ndarray]


def rankings_of_systems(
    scores: np.ndarray,
    rows: np.ndarray,
    ranker_scores: np.ndarray | None,
    retriever_temperature: float,
    ranker_temperature: float = 1.0,
    weight: float = 1.0,
    depth: int | None = None,
) -> dict[str, Ranking]:
    """The rankings of `retriever` `[Q, K]`, and with a ranker also of `ranker` `[Q, k]` and `pipeline` `[Q, K]`.

    Args:
        scores, rows: float32 and int64 `[Q, K]`, the retriever's results, best first.
        ranker_scores: float32 `[Q, k]` of its first k; None without a ranker.
        weight: of the ranker in the pipeline, see `pipeline_scores`.
        depth: number of passages that the pipeline reorders; None: k.
    """
    found = {"retriever": (rows, scores)}
    if ranker_scores is not None:
        scored = ranker_scores.shape[1]
        depth = min(depth or scored, scored)
        temperatures = retriever_temperature, ranker_temperature
        both = pipeline_scores(scores[:, :depth], ranker_scores[:, :depth], *temperatures, weight)
        ordered = -np.sort(-both, axis=1)
        # The passages below keep the retriever's order, with falling scores.
        tail = ordered[:, -1:] - 1 - np.arange(rows.shape[1] - depth, dtype=ordered.dtype)
        reordered = np.concatenate([_rerank(rows[:, :depth], both), rows[:, depth:]], axis=1)
        found["ranker"] = (_rerank(rows[:, :scored], ranker_scores), -np.sort(-ranker_scores, axis=1))
        found["pipeline"] = (reordered, np.concatenate([ordered, tail], axis=1))
    return found


def pipeline_scores(
    retriever_scores: np.ndarray,
    ranker_scores: np.ndarray,
    retriever_temperature: float,
    ranker_temperature: float = 1.0,
    weight: float = 1.0,
) -> np.ndarray:
    """log p_retriever(d|q) + weight · log p_ranker(d|q), up to a constant per query: float32 `[Q, k]`.

    Each model was trained as a softmax over its scores at its temperature. `hf_ar2.evaluation.weights` fits the weight
    on a dev split; weight 0 keeps the retriever's order.

    Args:
        retriever_scores, ranker_scores: float32 `[Q, k]` of the same candidates; -inf under the padding.
    """
    if weight == 0:  # 0 times the -inf of padding is NaN
        return np.where(np.isneginf(ranker_scores), -np.inf, retriever_scores / retriever_temperature)
    return retriever_scores / retriever_temperature + weight * (ranker_scores / ranker_temperature)


def _rerank(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each query's passages `[Q, k]` by their scores `[Q, k]`, best first; ties keep the given order."""
    return np.take_along_axis(rows, np.argsort(-scores, axis=1, kind="stable"), axis=1)


def evaluated_queries(collection: Collection, split: str) -> np.ndarray:
    """Rows of a split's queries with judgments or, in a split without judgments, with answers: int64 `[Q]`."""
    if split in collection.qrels:
        return collection.judgments(split).query_rows
    if split in collection.answer_splits:
        return np.asarray(collection.answer_splits[split], np.int64)
    known = ", ".join([*collection.splits, *collection.answer_splits])
    raise ValueError(f"{collection.name} has no split {split!r}; it has {known}")


def check_relevant(collection: Collection, split: str, relevance_level: int | None = None) -> None:
    """Check that a split can be measured: without a relevant passage, every metric would be 0 or NaN."""
    queries = len(evaluated_queries(collection, split))
    if split in collection.qrels:
        judgments = collection.judgments(split)
        level, highest = relevance_level or judgments.level, max(judgments.relevance, default=None)
        if highest is None or highest < level:
            raise ValueError(
                f"split {split!r} of {collection.name} has no relevant passage in its "
                f"{counted(queries, 'judged queries')}: expected a grade of at least relevance_level={level}, and the "
                f"highest is {highest}. Nothing can be measured on it; name another split"
            )
    if not queries:
        raise ValueError(f"split {split!r} of {collection.name} has no queries; name another split")


def out_of_reach(metrics: Sequence[str], depth: int, total: int) -> list[str]:
    """The metrics whose cutoff exceeds `depth`, the ranked passages of `total`, unless all passages are ranked."""
    return [metric for metric in metrics if min(parse_metric(metric)[1] or 0, total) > depth]


def measure(
    collection: Collection,
    split: str,
    rows: np.ndarray,
    metrics: Sequence[str],
    relevance_level: int | None = None,
) -> dict[str, np.ndarray]:
    """Metrics of a split's ranking, per query: metric → float64 `[Q]`.

    In a split with answers but without judgments, a passage is relevant if it contains an answer (as in DPR). The rows
    are int64 `[Q, K]`, in the order of `evaluated_queries`; metrics that are `out_of_reach` of K are left out.
    """
    total = len(collection.corpus)
    beyond = out_of_reach(metrics, rows.shape[1], total)
    parsed = {metric: parse_metric(metric) for metric in metrics if metric not in beyond}
    if split in collection.qrels:
        judged = collection.judgments(split)
        levels = {"num_passages": total, "relevance_level": relevance_level}
        return evaluate_rankings(rows, judged, list(parsed), **levels)
    wrong = [name for name, (kind, k) in parsed.items() if kind not in ("hit_rate", "mrr") or k is None]
    if wrong:
        raise ValueError(
            f"split {split!r} has answers but no judgments, so {', '.join(wrong)} cannot be computed; hit_rate@k and "
            "mrr@k can"
        )
    hits = hits_of_split(collection, split, rows)
    longest = rows.shape[1]  # shorter than a cutoff only if it is the whole corpus
    return {
        name: (hit_rate if kind == "hit_rate" else mrr)(hits, min(k or 1, longest))
        for name, (kind, k) in parsed.items()
    }


def hits_of_split(collection: Collection, split: str, rows: np.ndarray) -> np.ndarray:
    """Which passages int `[Q, K]` contain an answer to their query, in a split with answers: bool `[Q, K]`."""
    answers = list(collection.queries.select(evaluated_queries(collection, split))["answers"])
    return answer_hits(rows, answers, collection.corpus["text"])
