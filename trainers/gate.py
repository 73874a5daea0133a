"""Whether a ranker is ahead of the retriever that it is to teach, on the evaluation split."""

from __future__ import annotations

from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.significance import PairedTest, paired_test
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.retrieval import Retrieval

GATES = ("ahead", "off")


def check_gate(args: JointConfig, retrieval: Retrieval) -> None:
    """Check that the two models can be compared.

    Raises:
        ValueError: there are no queries to compare them on, or the ranker orders fewer passages than the metric needs.
    """
    metric = args.eval_metrics[0]
    cutoff = parse_metric(metric)[1] or 1
    if len(retrieval.eval_judgments) == 0:
        raise ValueError(
            f"teacher_gate='ahead' compares ranker and retriever on eval_split={args.eval_split!r}, which "
            f"{retrieval.collection.name} does not have or which has no queries; name another split, or set "
            "teacher_gate='off'"
        )
    if cutoff > args.rerank_depth:
        raise ValueError(
            f"teacher_gate='ahead' compares {metric} of ranker and retriever, but the ranker orders "
            f"rerank_depth={args.rerank_depth} passages; raise rerank_depth to {cutoff}, name a smaller cutoff first "
            "in eval_metrics, or set teacher_gate='off'"
        )


def ranker_lead(retrieval: Retrieval) -> PairedTest:
    """The ranker over the retriever's first `rerank_depth` passages against the retriever, query by query.

    Returns:
        The paired test of the first of `eval_metrics`; `difference` is ranker less retriever.
    """
    metric = retrieval.args.eval_metrics[0]
    values = retrieval.per_query()
    return paired_test(values["ranker"][metric], values["retriever"][metric])
