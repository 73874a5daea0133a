"""What happens between rounds: encode the corpus, index it, mine candidates, evaluate on the index that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.utils import logging

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.length_limits import query_truncation_warning, truncation_line, truncations
from hf_ar2.encoding.probe import check_inputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.evaluation.hybrid import score_rows
from hf_ar2.evaluation.metrics import evaluate_rankings, parse_metric
from hf_ar2.evaluation.own import deeper, mask_other_rows, without_own
from hf_ar2.evaluation.systems import Ranking, rankings_of_systems
from hf_ar2.files import read_json, write_note
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.encodings import Encodings, encoding_name
from hf_ar2.index.fingerprint import index_fingerprint
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.index.search import NO_RANGES
from hf_ar2.models.loading import default_temperature, weights_fingerprint
from hf_ar2.trainers.config import JointConfig
from hf_ar2.training_lists.pool import CandidatePool, build_pool, padded_positives, passage_text_keys

logger = logging.get_logger(__name__)

# Searched beyond pool depth and positives, so that dropped duplicates do not leave a pool short.
_SLACK = 8
# Rows of the passages that stand for the corpus in evaluations during training.
EVAL_PASSAGES = "eval_passages.json"
# Times the pool depth that is searched where a limit on scores may drop the head of a ranking.
_DEEPER = 20


def encoders_of(args: JointConfig) -> Encoders:
    """How a configuration has models run outside its training steps."""
    return Encoders(
        device=args.device,
        processes=Processes.current(args.device),
        bf16=bool(args.bf16),
        budget=args.encode_tokens or 2048,
        show_progress=not args.disable_tqdm,
    )


@dataclass(frozen=True)
class EvalRankings:
    """What an evaluation ranked, for metrics of one's own.

    Attributes:
        judgments: of the Q evaluated queries; line i of every array belongs to its i-th query.
        rows: system ("retriever", with a ranker also "ranker" and "pipeline") → int64 `[Q, K]`, rows in the corpus,
            best first, -1 padded.
        scores: system → float32 `[Q, K]`.
        collection: what was searched.
    """

    judgments: Judgments
    rows: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    collection: Collection

    @property
    def query_ids(self) -> list[str]:
        """The ids of the queries."""
        return list(self.collection.queries.select(self.judgments.query_rows)["id"])

    def passage_ids(self, system: str) -> list[list[str]]:
        """The ids of the passages that a system ranked for each query, best first."""
        ids = list(self.collection.corpus["id"])
        return [[ids[row] for row in ranked if row >= 0] for ranked in self.rows[system]]


class Retrieval:
    """The retriever's index and candidate pool of a run, and the measurements made with them.

    Args:
        retriever, ranker: the models as they are trained; either may be None.
        collection: what is searched.
        args: lengths, depths, filters, metrics; where the pool (`output_dir`), indexes and tokens are kept.
        encoders: how models are run.

    Attributes:
        start: the encoding (see `encoding_name`) of the retriever as it came; None without a retriever.
    """

    # Whether every rank searches by itself, in one FAISS file.
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
        self.retriever_inputs: RetrieverInputs | None = None
        if retriever is not None:
            self.retriever_inputs = RetrieverInputs(
                retriever,
                collection,
                cache,
                args,
                show_progress=encoders.progress,
            )
        self.ranker_inputs: RankerInputs | None = None
        if ranker is not None:
            self.ranker_inputs = RankerInputs(
                ranker,
                collection,
                cache,
                args,
                show_progress=encoders.progress,
            )
        judgments = collection.judgments(args.train_split)
        self.train_judgments = judgments.positives()
        if len(self.train_judgments) == 0:
            raise ValueError(
                f"split {args.train_split!r} of {collection.name} has no query with a relevant passage, of grade "
                f"{judgments.level} or more"
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
        # Embeddings of the whole corpus by the retriever as it is, for the next refresh.
        self.encoded: Path | None = None
        self._eval_rows: np.ndarray | None = None
        self._evaluated_with: str | None = None
        self._evaluated: dict[str, dict[str, np.ndarray]] = {}
        self._eval_rankings: EvalRankings | None = None
        self.encodings = Encodings(args.index_dir or self.folder / "index")
        self.start = self.encoding if retriever is not None else None

    @property
    def encoding(self) -> str:
        """The name of the encoding of the retriever as it is now, whether it is there or not."""
        assert self.retriever is not None
        return self.encoding_of(self.retriever)

    def encoding_of(self, retriever: SentenceTransformer) -> str:
        """The name of the encoding of a retriever like this one, with weights of its own."""
        return encoding_name(self._fingerprint(retriever), self.args.index_dtype)

    @property
    def opened(self) -> str | None:
        """The name of the encoding that is open; None where nothing was searched, or files that were given."""
        return None if self._index is None else self._index.folder.name

    def refresh(self) -> CorpusIndex:
        """The index of the retriever as it is now; encoded only where nobody has encoded with these weights.

        Of the weights that training has left behind nothing stays: at most two encodings of this retriever are there
        at a time, the former and the new one. In a shared folder that of the weights it came with stays too, which
        others may name.
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
                self.encoded,
                self.whole_index,
            )
            if self.encoders.processes.world_size == 1 or self.whole_index:
                self._index.attach(self.collection.corpus)
            if self.encoders.processes.is_first:
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
        """Search every training query and write the pool of what is not relevant."""
        judgments = self.train_judgments
        positives = padded_positives(judgments)
        args = self.args
        limits = (args.absolute_margin, args.relative_margin, args.max_score)
        wanted = args.pool_depth * (1 if limits == (None,) * 3 else _DEEPER) + args.range_min
        own_rows = self.collection.own_rows[judgments.query_rows]
        depth = deeper(own_rows, wanted + positives.shape[1] + _SLACK)
        depth = min(depth, len(self.collection.corpus))
        search = self._search_bm25 if self.args.mine_with == "bm25" else self._search_retriever
        scores, rows, positive_scores, source = search(judgments, positives, depth)
        folder = self.folder / "pool"
        fingerprint = f"{source}:{round_number}"
        hits = self._answer_hits(rows, judgments) if self.args.filter_answers else None
        if self.encoders.processes.is_first:
            build_pool(
                scores,
                rows,
                judgments,
                depth=self.args.pool_depth,
                positive_scores=positive_scores,
                own_rows=own_rows,
                text_keys=self._duplicate_keys(),
                answer_hits=hits,
                absolute_margin=args.absolute_margin,
                relative_margin=args.relative_margin,
                max_score=args.max_score,
                range_min=args.range_min,
                folder=folder,
                round=round_number,
                fingerprint=fingerprint,
            )
        self.encoders.processes.barrier()
        return CandidatePool.open(folder, fingerprint)

    def _search_retriever(
        self, judgments: Judgments, positives: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """Scores and rows `[Q, depth]` of the current index, the scores of the positives `[Q, P]`, and their origin."""
        index = self.refresh()
        queries = self.embed_queries(judgments.query_rows, "Training queries")
        scores, rows = self._search(index, queries, depth, judgments.query_rows)
        known = np.asarray(index.embeddings[np.maximum(positives, 0).reshape(-1)], np.float32)
        known = known.reshape(*positives.shape, -1)
        return scores, rows, np.einsum("qd,qpd->qp", queries, known), index.fingerprint

    def _search_bm25(
        self, judgments: Judgments, positives: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """As `_search_retriever`, with BM25: nothing is encoded."""
        passages = self.args.passage_texts(self.collection)
        index = LexicalIndex.of_members(passages, self.collection.member_rows)
        queries = list(self.collection.queries.select(judgments.query_rows)["text"])
        ranges = self.collection.searched_rows(judgments.query_rows)
        scores, rows = index.search(queries, depth, ranges)
        return scores, rows, index.scores(queries, positives, ranges), f"bm25:{self.collection.fingerprint}"

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
            metrics are those with a cutoff within `rerank_depth`. Of several collections then those of each, too:
            `NAME_retriever_mrr@10`, ….
        """
        measured = self.per_query(judgments)
        evaluated = (judgments if judgments is not None else self.eval_judgments).query_rows
        members = self.collection.query_members[evaluated]
        parts = {f"{name}_": members == place for place, name in enumerate(self.collection.members)}
        return {
            f"{part}{system}_{metric}": float(values[own].mean())
            for part, own in {"": np.ones(len(evaluated), bool), **parts}.items()
            for system, found in measured.items()
            for metric, values in found.items()
            if own.any() or not part
        }

    def per_query(self, judgments: Judgments | None = None) -> dict[str, dict[str, np.ndarray]]:
        """System → metric → value per query, float64 `[Q]`, see `evaluate`.

        Of the evaluation split the values are kept until one of the models changes.
        """
        of_models = self._models_fingerprint() if judgments is None else None
        if of_models is not None and of_models == self._evaluated_with:
            return self._evaluated
        judgments = judgments if judgments is not None else self.eval_judgments
        scores, rows = self._retrieve_for_evaluation(judgments)
        searched = len(self.collection.corpus if self._eval_rows is None else self._eval_rows)
        depth = self.args.rerank_depth
        within = [metric for metric in self.args.eval_metrics if (parse_metric(metric)[1] or depth) <= depth]
        values: dict[str, dict[str, np.ndarray]] = {}
        rankings = self.rankings(judgments.query_rows, scores, rows, depth)
        for system, (ranking, _) in rankings.items():
            wanted = within if system == "ranker" else self.args.eval_metrics
            values[system] = evaluate_rankings(ranking, judgments, tuple(wanted), num_passages=searched)
        if of_models is not None:
            self._evaluated_with, self._evaluated = of_models, values
            self._eval_rankings = EvalRankings(
                judgments,
                {system: ranking for system, (ranking, _) in rankings.items()},
                {system: ranked for system, (_, ranked) in rankings.items()},
                self.collection,
            )
        return values

    def eval_rankings(self) -> EvalRankings:
        """What `evaluate` measures on the evaluation split, with the models as they are."""
        self.per_query()
        assert self._eval_rankings is not None
        return self._eval_rankings

    def print_what_is_cut(self) -> None:
        """Print what the length limits cut, with a warning where many queries lose something."""
        cuts = truncations(self.retriever_inputs, self.ranker_inputs, self.train_judgments)
        print(truncation_line(cuts), flush=True)
        if (warning := query_truncation_warning(cuts)) is not None:
            logger.warning(warning)

    def _models_fingerprint(self) -> str:
        models = [model for model in (self.retriever, self.ranker) if model is not None]
        return ":".join(weights_fingerprint(model) for model in models)

    def _retrieve_for_evaluation(self, judgments: Judgments) -> tuple[np.ndarray, np.ndarray]:
        """The retriever's first `eval_depth` passages: of the corpus, or of the `eval_passages` that stand for it."""
        depth, limit = self.args.eval_depth, self.args.eval_passages
        if limit is None or limit >= len(self.collection.corpus):
            return self.retrieve(judgments.query_rows, depth, "Evaluation queries")
        assert self.retriever is not None and self.retriever_inputs is not None
        if self._eval_rows is None:
            self._eval_rows = self._passages_to_evaluate_on(limit)
        passages = self.encoders.embed_passages(self.retriever, self.retriever_inputs, self._eval_rows)
        scores = self.embed_queries(judgments.query_rows, "Evaluation queries") @ passages.T
        mask_other_rows(scores, self._eval_rows, self.collection.searched_rows(judgments.query_rows))
        own_rows = self.collection.own_rows[judgments.query_rows]
        order = np.argsort(-scores, axis=1, kind="stable")[:, : deeper(own_rows, depth)]
        scores = np.take_along_axis(scores, order, axis=1)
        return without_own(scores, np.where(np.isneginf(scores), -1, self._eval_rows[order]), own_rows, depth)

    def _passages_to_evaluate_on(self, limit: int) -> np.ndarray:
        """Rows of the corpus, ascending: all positives of the evaluated queries, then what they retrieve at first.

        They are kept in the output folder, so that a resumed run evaluates on the same ones.
        """
        identity = f"{self.collection.fingerprint}:{self.args.eval_split}:{self.args.eval_queries}:{limit}"
        path = self.folder / EVAL_PASSAGES
        if path.is_file():
            kept = read_json(path)
            if kept["of"] == identity:
                return np.asarray(kept["rows"], np.int64)
        judgments = self.eval_judgments
        _, found = self.retrieve(judgments.query_rows, self.args.eval_depth, "Evaluation queries")
        by_rank = np.concatenate([judgments.positives().passage_rows, found.T.reshape(-1)])
        by_rank = by_rank[by_rank >= 0]
        _, first = np.unique(by_rank, return_index=True)
        rows = np.sort(
            by_rank[np.sort(first)[: max(limit, len(np.unique(judgments.positives().passage_rows)))]]
        )
        if self.encoders.processes.is_first:
            write_note(path, {"of": identity, "rows": rows.tolist()})
        self.encoders.processes.barrier()
        return rows

    def _eval_judgments(self) -> Judgments:
        if self.args.eval_split not in self.collection.qrels:
            if self.args.eval_strategy == "no" and not self.args.eval_on_start:
                return self.train_judgments.take(np.arange(0))
            raise ValueError(
                f"eval_split={self.args.eval_split!r}: {self.collection.name} has the splits "
                f"{', '.join(self.collection.splits)}; name one of them or set eval_strategy='no'"
            )
        judgments = self.collection.judgments(self.args.eval_split)
        evaluates = self.args.eval_strategy != "no" or self.args.eval_on_start
        if evaluates and not len(judgments.positives()):
            raise ValueError(
                f"eval_split={self.args.eval_split!r}: this split of {self.collection.name} has no query with a "
                f"relevant passage, of grade {judgments.level} or more, so nothing can be measured on it; name another "
                "split or set eval_strategy='no'"
            )
        limit = self.args.eval_queries
        if limit is None or limit >= len(judgments):
            return judgments
        chosen = np.random.default_rng(self.args.seed).choice(len(judgments), limit, replace=False)
        return judgments.take(np.sort(chosen))

    def _duplicate_keys(self) -> np.ndarray | None:
        if not self.args.filter_duplicates:
            return None
        if self._text_keys is None:
            self._text_keys = passage_text_keys(self.args.passage_texts(self.collection))
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
