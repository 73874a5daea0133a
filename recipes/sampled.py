"""Search measured on a sample of queries and passages, so that comparing many retrievers costs little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation.metrics import evaluate_rankings
from hf_ar2.evaluation.own import deeper, without_own
from hf_ar2.index.faiss_build import fill_faiss_index, new_faiss_index
from hf_ar2.index.search import FaissSearcher, search_in_ranges
from hf_ar2.search.system import SearchSystem

# A corpus of up to this many passages is not reduced: encoding it takes seconds.
MOST_PASSAGES = 2000
_FEWEST_QUERIES = 30


def sample_of(collection: Collection, split: str, queries: int, passages: int, seed: int) -> Collection:
    """A split of a collection, with a seeded sample of at most so many `queries` and `passages`.

    All relevant passages of the kept queries are kept, then random others.
    """
    judgments, total = collection.judgments(split), len(collection.corpus)
    rng = np.random.default_rng(seed)
    if len(judgments) > queries:
        judgments = judgments.take(np.sort(rng.choice(len(judgments), queries, replace=False)))
    corpus, qrels = collection.corpus, collection.qrels[split]
    if total > passages:
        relevant = np.unique(judgments.positives().passage_rows)
        others = np.setdiff1d(np.arange(total), relevant, assume_unique=True)
        more = rng.choice(others, max(0, passages - len(relevant)), replace=False)
        corpus = collection.select_passages(np.sort(np.concatenate([relevant, more])))
    asked = collection.queries.select(judgments.query_rows)
    kept_queries, kept_passages = set(asked["id"][:]), set(corpus["id"][:])
    pairs = zip(qrels["query_id"][:], qrels["passage_id"][:], strict=True)
    kept = np.flatnonzero([query in kept_queries and passage in kept_passages for query, passage in pairs])
    return Collection(
        collection.name,
        corpus,
        asked,
        {split: qrels.select(kept)},
        relevance_levels=collection.relevance_levels,
        members=collection.members,
    )


def reduced(
    judgments: Judgments, found: Sequence[np.ndarray], total: int, queries: int, seed: int
) -> tuple[Judgments, np.ndarray]:
    """A sample of at most so many `queries`, and the passages that matter for comparing retrievers on them, ascending.

    These are relevant or were retrieved: `found` has the passage rows int64 `[Q, k]`, -1 padded, of each retriever. If
    they are more than half of a corpus of `total` passages that is not small, fewer queries are taken.
    """
    order = np.random.default_rng(seed).permutation(len(judgments))
    count = min(queries, len(judgments))
    while True:
        chosen = np.sort(order[:count])
        part = judgments.take(chosen)
        retrieved = [of_one[chosen].ravel() for of_one in found]
        rows = np.unique(np.concatenate([part.positives().passage_rows, *retrieved]))
        rows = rows[rows >= 0]
        if len(rows) <= max(MOST_PASSAGES, total // 2) or count <= _FEWEST_QUERIES:
            return part, rows
        count = max(_FEWEST_QUERIES, count * 3 // 4)


def values_among(
    system: SearchSystem,
    retriever: SentenceTransformer,
    judgments: Judgments,
    passage_rows: np.ndarray,
    metrics: Sequence[str],
) -> dict[str, np.ndarray]:
    """Metrics of a retriever's exact search among some passages, metric → float64 `[Q]`; no index is written.

    Args:
        system: over the collection, with the settings; its own retriever is not used.
        passage_rows: int64 `[P]`, ascending; what is searched.
    """
    encoders, collection, depth = system.encoders, system.collection, system.settings.depth
    passages = encoders.embed_passages(retriever, system.retriever_inputs, passage_rows)
    queries = encoders.embed_queries(retriever, system.retriever_inputs, judgments.query_rows)
    index = new_faiss_index("Flat", passages.shape[1])
    fill_faiss_index(index, passages, seed=0)
    own_rows = collection.own_rows[judgments.query_rows]
    searched = min(deeper(own_rows, depth), len(passage_rows))
    ranges = collection.searched_rows(judgments.query_rows)
    places_of = None if ranges is None else np.searchsorted(passage_rows, ranges)
    scores, places = search_in_ranges(FaissSearcher(index).search, queries, searched, places_of)
    ranking = np.where(places >= 0, passage_rows[np.maximum(places, 0)], -1)
    _, ranking = without_own(scores, ranking, own_rows, depth)
    return evaluate_rankings(ranking, judgments, list(metrics), num_passages=len(passage_rows))
