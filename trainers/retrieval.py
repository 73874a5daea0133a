"""Search in a run: the corpus is encoded and indexed when the retriever has changed, and mined for candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.utils import logging

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.length_limits import (
    passage_length_advice,
    query_truncation_warning,
    truncation_line,
    truncations,
)
from hf_ar2.encoding.probe import check_inputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.evaluation.hybrid import score_rows
from hf_ar2.evaluation.own import deeper, without_own
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.encodings import Encodings, encoding_name, index_fingerprint
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.index.search import NO_RANGES
from hf_ar2.models.loading import default_temperature
from hf_ar2.trainers.config import JointConfig
from hf_ar2.training_lists.pool import CandidatePool, build_pool, padded_positives, shared_text_keys

logger = logging.get_logger(__name__)

# Passages searched beyond pool depth and positives, so that dropped duplicates do not leave a pool short.
_SLACK = 8
# With a limit on scores, which may drop the top of a ranking, this many times the pool depth is searched.
_DEEPER = 20
# Queries whose answers are searched for at a time, and passages whose text is kept for the next ones (1 GB).
_ANSWERED, _KEPT_TEXTS = 1024, 500_000


def encoders_of(args: JointConfig) -> Encoders:
    """How a configuration runs models outside its training steps."""
    return Encoders(
        device=args.device,
        processes=Processes.current(args.device),
        bf16=bool(args.bf16),
        budget=args.encode_tokens or 2048,
        show_progress=not args.disable_tqdm,
    )


class Retrieval:
    """The index and the candidate pool of a run, and the scores of its models.

    Args:
        retriever, ranker: the models as they are trained; either may be None.
        args: lengths, depths, filters and metrics, and the folders of pool (`output_dir`), indexes and tokens.

    Attributes:
        retriever_temperature: divides the retriever's scores in a softmax.
        start: the encoding (see `encoding_name`) of the retriever before training; None without a retriever.
    """

    # Whether every rank searches the whole index, in one FAISS file.
    whole_index = False

    def __init__(
        self,
        retriever: SentenceTransformer | None,
        ranker: CrossEncoder | None,
        collection: Collection,
        args: JointConfig,
        encoders: Encoders,
    ) -> None:
        self.retriever = retriever
        self.ranker = ranker
        self.collection = collection
        self.args = args
        self.encoders = encoders
        self.folder = Path(str(args.output_dir))
        if collection.members and args.index_factory != "Flat":
            raise ValueError(f"index_factory={args.index_factory!r}: such an index {NO_RANGES}")
        check_inputs(retriever, ranker, collection, args)
        cache = Path(args.cache_dir) if args.cache_dir else self.folder / "cache"
        shared: dict[str, Any] = {"show_progress": encoders.progress, "processes": encoders.processes}
        self.retriever_inputs: RetrieverInputs | None = None
        if retriever is not None:
            self.retriever_inputs = RetrieverInputs(retriever, collection, cache, args, **shared)
        self.ranker_inputs: RankerInputs | None = None
        if ranker is not None:
            self.ranker_inputs = RankerInputs(ranker, collection, cache, args, **shared)
        judgments = collection.judgments(args.train_split)
        self.train_judgments = judgments.positives()
        if len(self.train_judgments) == 0:
            raise ValueError(
                f"split {args.train_split!r} of {collection.name} has no query with a relevant passage, of grade "
                f"{judgments.level} or more"
            )
        if without := len(judgments) - len(self.train_judgments):
            logger.warning(
                f"{without} of {len(judgments)} queries of split {args.train_split!r} have no relevant "
                "passage and are not trained on"
            )
        self._text_keys: np.ndarray | None = None
        self._index: CorpusIndex | None = None
        # A file with this rank's part of the corpus as the retriever encodes it, for the next refresh.
        self.encoded: Path | None = None
        self.retriever_temperature = args.retriever_temperature or 1.0
        if retriever is not None and args.retriever_temperature is None:
            self.retriever_temperature = default_temperature(retriever)
        self.encodings = Encodings(args.index_dir or self.folder / "index")
        self.start = self.encoding if retriever is not None else None

    @property
    def encoding(self) -> str:
        """The name of the encoding of the current retriever, whether or not it exists."""
        assert self.retriever is not None
        return self.encoding_of(self.retriever)

    def encoding_of(self, retriever: SentenceTransformer) -> str:
        """The name of the encoding of a retriever with other weights than this one."""
        return encoding_name(self._fingerprint(retriever), self.args.index_dtype)

    @property
    def opened(self) -> str | None:
        """The name of the open encoding; None before the first search, and for files that were given."""
        return None if self._index is None else self._index.folder.name

    def refresh(self) -> CorpusIndex:
        """The index of the current retriever; the corpus is encoded unless it was encoded with these weights before.

        The encoding of former weights is deleted once the new one is complete. In a shared folder (`index_dir`) that of
        the weights the retriever came with is kept, because other runs may use it.
        """
        assert self.retriever is not None and self.retriever_inputs is not None
        fingerprint = self._fingerprint(self.retriever)
        if self._index is None or self._index.fingerprint != fingerprint:
            former = self.opened
            self._index = self.encodings.index(
                self.encoders,
                self.retriever,
                self.retriever_inputs,
                fingerprint,
                self.args.index_factory,
                self.args.index_dtype,
                encoded=self.encoded,
                whole=self.whole_index,
            )
            if self.encoders.processes.world_size == 1 or self.whole_index:
                self._index.attach(self.collection.corpus)
            # All ranks delete, because machines may have separate disks.
            if self.args.index_dir is None:
                self.encodings.keep_only([self._index.folder.name])
            elif former is not None and former != self.start:
                self.encodings.remove(former)
        return self._index

    def _fingerprint(self, retriever: SentenceTransformer) -> str:
        assert self.retriever_inputs is not None
        return index_fingerprint(retriever, self.retriever_inputs, self.encoders.precision)

    def embed_queries(self, rows: np.ndarray, description: str) -> np.ndarray:
        """Embeddings of query rows, float32 `[Q, d]`."""
        assert self.retriever is not None and self.retriever_inputs is not None
        return self.encoders.embed_queries(self.retriever, self.retriever_inputs, rows, description)

    def mine(self, round_number: int) -> CandidatePool:
        """Search every training query and write the pool of passages that are not relevant."""
        args, judgments = self.args, self.train_judgments
        positives = padded_positives(judgments)
        limits = {
            "absolute_margin": args.absolute_margin,
            "relative_margin": args.relative_margin,
            "max_score": args.max_score,
        }
        limited = any(limit is not None for limit in limits.values())
        wanted = args.pool_depth * (_DEEPER if limited else 1) + args.range_min
        own_rows = self.collection.own_rows[judgments.query_rows]
        depth = deeper(own_rows, wanted + positives.shape[1] + _SLACK)
        depth = min(depth, len(self.collection.corpus))
        search = self._search_bm25 if args.mine_with == "bm25" else self._search_retriever
        scores, rows, positive_scores, source = search(judgments, positives, depth)
        folder = self.folder / "pool"
        fingerprint = f"{source}:{round_number}"
        hits = self._answer_hits(rows, judgments) if args.filter_answers else None
        text_keys = self._duplicate_keys()
        if self.encoders.processes.is_first:
            build_pool(
                scores,
                rows,
                judgments,
                depth=args.pool_depth,
                positive_scores=positive_scores,
                own_rows=own_rows,
                text_keys=text_keys,
                answer_hits=hits,
                range_min=args.range_min,
                **limits,
                folder=folder,
                round=round_number,
                fingerprint=fingerprint,
            )
        self.encoders.processes.share(self.folder, folder.name)
        return CandidatePool.open(folder, fingerprint)

    def _search_retriever(
        self, judgments: Judgments, positives: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """Scores and rows `[Q, depth]` of the current index, those of the positives `[Q, P]`, and its fingerprint."""
        index = self.refresh()
        queries = self.embed_queries(judgments.query_rows, "Training queries")
        scores, rows = self._search(index, queries, depth, judgments.query_rows)
        known = np.asarray(index.embeddings[np.maximum(positives, 0)], np.float32)
        return scores, rows, np.einsum("qd,qpd->qp", queries, known), index.fingerprint

    def _search_bm25(
        self, judgments: Judgments, positives: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """As `_search_retriever`, with BM25: nothing is encoded."""
        passages = self.args.passage_texts(self.collection)
        index = LexicalIndex.of_members(passages, self.collection.member_rows)
        queries = self.collection.queries.select(judgments.query_rows)["text"][:]
        ranges = self.collection.searched_rows(judgments.query_rows)
        scores, rows = index.search(queries, depth, ranges)
        return scores, rows, index.scores(queries, positives, ranges), f"bm25:{self.collection.fingerprint}"

    def retrieve(self, query_rows: np.ndarray, depth: int, description: str) -> tuple[np.ndarray, np.ndarray]:
        """The retriever's scores float32 `[Q, depth]` and passage rows int64 `[Q, depth]`, best first.

        A query that is itself a passage is not among its own results, see `Collection.own_rows`.
        """
        index = self.refresh()
        queries = self.embed_queries(query_rows, description)
        own_rows = self.collection.own_rows[query_rows]
        scores, rows = self._search(index, queries, min(deeper(own_rows, depth), index.ntotal), query_rows)
        return without_own(scores, rows, own_rows, depth)

    def _search(
        self, index: Any, queries: np.ndarray, depth: int, query_rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self.encoders.search(index, queries, depth, self.collection.searched_rows(query_rows))
        if isinstance(index, CorpusIndex):
            index.release_device()  # the training steps need the memory; LTRe, whose steps search, has a FrozenIndex
        return found

    def score_passages(self, query_rows: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The retriever's scores of passages at corpus rows `[Q, K]` (-1: any number), float32 `[Q, K]`."""
        return score_rows(self.refresh(), self.embed_queries(query_rows, "Queries"), rows)

    def ranker_scores(
        self, query_rows: np.ndarray, rows: np.ndarray, depth: int, description: str = "Ranking"
    ) -> np.ndarray | None:
        """The ranker's scores of each query's first `depth` passages, float32 `[Q, depth]`; None without a ranker."""
        if self.ranker is None or not depth:
            return None
        assert self.ranker_inputs is not None
        return self.encoders.rank(self.ranker, self.ranker_inputs, query_rows, rows[:, :depth], description)

    def print_truncations(self) -> None:
        """Print the shares of texts that are truncated, with advice if many are."""
        cuts = truncations(self.retriever_inputs, self.ranker_inputs, self.train_judgments)
        print(truncation_line(cuts), flush=True)
        if self.retriever is not None:
            advice = passage_length_advice(cuts, self.retriever, self.collection, self.args)
            if advice is not None:
                print(advice, flush=True)
        if (warning := query_truncation_warning(cuts)) is not None:
            logger.warning(warning)

    def _duplicate_keys(self) -> np.ndarray | None:
        if not self.args.filter_duplicates:
            return None
        if self._text_keys is None:
            texts = self.args.lazy_passage_texts(self.collection)
            self._text_keys = shared_text_keys(texts, self.encoders.processes)
        return self._text_keys

    def _answer_hits(self, rows: np.ndarray, judgments: Judgments) -> np.ndarray:
        """Which passages `[Q, K]` contain an answer; each rank looks for those of its share of the queries."""
        from hf_ar2.evaluation.answers import answer_hits, token_string

        queries, ranks = self.collection.queries, self.encoders.processes
        if "answers" not in queries.column_names:
            raise ValueError(
                f"filter_answers=True, but the queries of {self.collection.name} have no answers"
            )
        found, own, cache = np.zeros(rows.shape, np.uint8), ranks.part_of(len(rows)), dict[int, str]()
        for start in range(own.start, own.stop, _ANSWERED):
            block = slice(start, min(start + _ANSWERED, own.stop))
            if len(cache) > _KEPT_TEXTS:
                cache.clear()
            new = [row for row in np.unique(rows[block]).tolist() if row >= 0 and row not in cache]
            cache |= zip(new, map(token_string, self.collection.corpus[new]["text"]), strict=True)
            answers = queries.select(judgments.query_rows[block])["answers"]
            found[block] = answer_hits(rows[block], list(answers), (), cache)
        return ranks.combine(found).astype(bool)
