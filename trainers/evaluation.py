"""Evaluation during training: what both models and their pipeline rank for the queries of a split, with metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation.metrics import evaluate_rankings, parse_metric
from hf_ar2.evaluation.own import deeper, mask_other_rows, without_own
from hf_ar2.evaluation.systems import check_relevant, rankings_of_systems
from hf_ar2.files import read_json, write_note
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.trainers.retrieval import Retrieval

# In the output folder: the corpus rows of the passages that evaluations search, see `eval_passages`.
_PASSAGES = "eval_passages.json"


@dataclass(frozen=True)
class EvalRankings:
    """The rankings of an evaluation, for custom metrics (`compute_metrics`).

    Attributes:
        judgments: of the Q evaluated queries; line i of every array belongs to its i-th query.
        rows: system ("retriever", with a ranker also "ranker" and "pipeline") → int64 `[Q, K]`, rows in the corpus,
            best first, padded with -1.
        scores: system → float32 `[Q, K]`.
        collection: the searched collection.
    """

    judgments: Judgments
    rows: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    collection: Collection

    @property
    def query_ids(self) -> list[str]:
        """The ids of the queries."""
        return self.collection.queries.select(self.judgments.query_rows)["id"][:]

    def passage_ids(self, system: str) -> list[list[str]]:
        """The ids of the passages that a system ranked for each query, best first."""
        ids = self.collection.corpus["id"][:]
        return [[ids[row] for row in ranked if row >= 0] for ranked in self.rows[system]]


class Evaluation:
    """Evaluates the models of a run on a split, with the index that the next refresh uses anyway.

    Args:
        split: None: `eval_split`, on `eval_queries` and `eval_passages`; another split is evaluated as a whole.

    Attributes:
        judgments: of the evaluated queries; empty if nothing is evaluated and the collection lacks the split.

    Raises:
        ValueError: the split does not exist or has no relevant passage, but is evaluated on.
    """

    def __init__(self, retrieval: Retrieval, split: str | None = None) -> None:
        self.retrieval = retrieval
        self.whole = split is not None
        self.judgments = (
            _evaluated_judgments(retrieval) if split is None else _all_judgments(retrieval, split)
        )
        self._rows: np.ndarray | None = None  # passages that are searched instead of the corpus
        # The last evaluation, and a hash of the weights that it measured.
        self._weights = ""
        self._values: dict[str, dict[str, np.ndarray]] = {}
        self._rankings: EvalRankings | None = None

    def of_split(self, split: Any, prefix: str) -> tuple[Evaluation, str]:
        """The evaluation of a split (None: `eval_split`), and the prefix of its metrics.

        Raises:
            ValueError: there is no such split, or the prefix is the name of another one.
        """
        own, splits = self.retrieval.args.eval_split, self.retrieval.collection.splits
        if split is None:
            if prefix not in ("eval", own) and prefix in splits:
                raise ValueError(
                    f"metric_key_prefix={prefix!r}: evaluate() without a split measures eval_split={own!r}; call "
                    f"evaluate({prefix!r})"
                )
            return self, prefix
        if not isinstance(split, str):
            raise ValueError(
                "evaluate() takes no dataset; it evaluates retrieval on the qrels split named by `eval_split`, or on "
                f"the one whose name it is given ({', '.join(splits)}); found a {type(split).__name__}"
            )
        if split == own:
            return self, prefix
        return Evaluation(self.retrieval, split), split if prefix == "eval" else prefix

    def metrics(self) -> dict[str, float]:
        """Mean metrics of the retriever, of the ranker over its first `rerank_depth`, and of the pipeline.

        Returns:
            `retriever_mrr@10`, …, and where there is a ranker `ranker_mrr@10`, …, `pipeline_mrr@10`, …; the ranker's
            metrics have a cutoff within `rerank_depth`. With several collections, also the metrics of each:
            `NAME_retriever_mrr@10`, ….
        """
        measured, collection = self.per_query(), self.retrieval.collection
        members = collection.query_members[self.judgments.query_rows]
        parts = {f"{name}_": members == place for place, name in enumerate(collection.members)}
        return {
            f"{part}{system}_{metric}": float(values[own].mean())
            for part, own in {"": np.ones(len(members), bool), **parts}.items()
            for system, found in measured.items()
            for metric, values in found.items()
            if own.any() or not part
        }

    def check_best_metric(self) -> None:
        """Raise ValueError before the first evaluation if `metric_for_best_model` is none of `metrics`."""
        args, collection = self.retrieval.args, self.retrieval.collection
        named = str(args.metric_for_best_model).removeprefix("eval_")
        metrics = {"retriever": tuple(args.eval_metrics)}
        if self.retrieval.ranker is not None and args.rerank_depth:
            metrics |= {"ranker": self._within_depth, "pipeline": tuple(args.eval_metrics)}
        names = [f"{system}_{metric}" for system, found in metrics.items() for metric in found]
        if named in [
            f"{part}{name}" for part in ("", *(f"{one}_" for one in collection.members)) for name in names
        ]:
            return
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r}: no evaluation gives this metric; expected one of "
            f"{', '.join(names)} (see eval_metrics and rerank_depth)"
        )

    @property
    def _within_depth(self) -> tuple[str, ...]:
        """The metrics of the ranker, which orders the first `rerank_depth` passages alone."""
        args = self.retrieval.args
        depth = args.rerank_depth
        return tuple(metric for metric in args.eval_metrics if (parse_metric(metric)[1] or depth) <= depth)

    def own_metrics(self, compute: Any) -> dict[str, float]:
        """What `compute_metrics` returns for the rankings; nothing without one."""
        if compute is None:
            return {}
        found = compute(self.rankings())
        if not isinstance(found, dict):
            raise TypeError(f"compute_metrics returned {type(found).__name__}; expected a dict of floats")
        return found

    def per_query(self) -> dict[str, dict[str, np.ndarray]]:
        """System → metric → value per query, float64 `[Q]`, see `metrics`."""
        self._update()
        return self._values

    def rankings(self) -> EvalRankings:
        """What `metrics` measures."""
        self._update()
        assert self._rankings is not None
        return self._rankings

    def _update(self) -> None:
        """Rank the queries, unless neither model has changed since the last call."""
        retrieval, args, judgments = self.retrieval, self.retrieval.args, self.judgments
        models = [model for model in (retrieval.retriever, retrieval.ranker) if model is not None]
        weights = ":".join(map(weights_fingerprint, models))
        if weights == self._weights:
            return
        scores, rows = self._retrieve()
        depth = args.rerank_depth
        ranked = retrieval.ranker_scores(judgments.query_rows, rows, depth)
        temperatures = retrieval.retriever_temperature, args.ranker_temperature
        found = rankings_of_systems(scores, rows, ranked, *temperatures)
        searched = len(retrieval.collection.corpus if self._rows is None else self._rows)
        self._values = {}
        for system, (ranking, _) in found.items():
            metrics = self._within_depth if system == "ranker" else tuple(args.eval_metrics)
            self._values[system] = evaluate_rankings(ranking, judgments, metrics, num_passages=searched)
        self._rankings = EvalRankings(
            judgments,
            {system: ranking for system, (ranking, _) in found.items()},
            {system: ranked for system, (_, ranked) in found.items()},
            retrieval.collection,
        )
        self._weights = weights

    def _retrieve(self) -> tuple[np.ndarray, np.ndarray]:
        """The retriever's first `eval_depth` passages: of the corpus, or of a part of it (`eval_passages`)."""
        retrieval, query_rows = self.retrieval, self.judgments.query_rows
        depth, limit = retrieval.args.eval_depth, None if self.whole else retrieval.args.eval_passages
        if limit is None or limit >= len(retrieval.collection.corpus):
            return retrieval.retrieve(query_rows, depth, "Evaluation queries")
        retriever, inputs = retrieval.retriever, retrieval.retriever_inputs
        assert retriever is not None and inputs is not None
        if self._rows is None:
            self._rows = self._passages(limit)
        passages = retrieval.encoders.embed_passages(retriever, inputs, self._rows)
        scores = retrieval.embed_queries(query_rows, "Evaluation queries") @ passages.T
        mask_other_rows(scores, self._rows, retrieval.collection.searched_rows(query_rows))
        own_rows = retrieval.collection.own_rows[query_rows]
        order = np.argsort(-scores, axis=1, kind="stable")[:, : deeper(own_rows, depth)]
        scores = np.take_along_axis(scores, order, axis=1)
        return without_own(scores, np.where(np.isneginf(scores), -1, self._rows[order]), own_rows, depth)

    def _passages(self, limit: int) -> np.ndarray:
        """Ascending corpus rows: all positives of the evaluated queries, then passages that they first retrieved.

        They are kept in the output folder, so that a resumed run searches the same ones.
        """
        retrieval, args = self.retrieval, self.retrieval.args
        identity = f"{retrieval.collection.fingerprint}:{args.eval_split}:{args.eval_queries}:{limit}"
        path = retrieval.folder / _PASSAGES
        processes = retrieval.encoders.processes
        kept = processes.of_first(read_json(path) if processes.is_first and path.is_file() else None)
        if kept is not None and kept["of"] == identity:
            return np.asarray(kept["rows"], np.int64)
        _, found = retrieval.retrieve(self.judgments.query_rows, args.eval_depth, "Evaluation queries")
        positives = self.judgments.positives().passage_rows
        by_rank = np.concatenate([positives, found.T.reshape(-1)])
        by_rank = by_rank[by_rank >= 0]
        first = np.sort(np.unique(by_rank, return_index=True)[1])
        rows = np.sort(by_rank[first[: max(limit, len(np.unique(positives)))]])
        if processes.is_first:
            write_note(path, {"of": identity, "rows": rows.tolist()})
        processes.barrier()
        return rows


def _all_judgments(retrieval: Retrieval, split: str) -> Judgments:
    collection = retrieval.collection.with_relevance_level(retrieval.args.relevance_level, [split])
    if split not in collection.qrels:
        raise ValueError(f"{collection.name} has no split {split!r}; it has {', '.join(collection.splits)}")
    check_relevant(collection, split)
    return collection.judgments(split)


def _evaluated_judgments(retrieval: Retrieval) -> Judgments:
    args, collection = retrieval.args, retrieval.collection
    evaluates = args.eval_strategy != "no" or args.eval_on_start
    if args.eval_split not in collection.qrels:
        if not evaluates:
            return retrieval.train_judgments.take(np.arange(0))
        raise ValueError(
            f"eval_split={args.eval_split!r}: {collection.name} has the splits {', '.join(collection.splits)}; name "
            "one of them or set eval_strategy='no'"
        )
    judgments = collection.judgments(args.eval_split)
    if evaluates and not len(judgments.positives()):
        raise ValueError(
            f"eval_split={args.eval_split!r}: this split of {collection.name} has no query with a relevant passage, of "
            f"grade {judgments.level} or more, so nothing can be measured on it; name another split or set "
            "eval_strategy='no'"
        )
    if args.eval_queries is None or args.eval_queries >= len(judgments):
        return judgments
    chosen = np.random.default_rng(args.seed).choice(len(judgments), args.eval_queries, replace=False)
    return judgments.take(np.sort(chosen))
