"""Retrieval metrics for `evaluate`: ranked passage ids against graded judgments.

`evaluate` copies this file elsewhere before it imports it, so it names what it needs absolutely; and it reads the
import lines itself, so there is one import a line.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation.metrics import DEFAULT_METRICS, evaluate_rankings

_DESCRIPTION = """\
MRR@k, Recall@k, hit rate@k, nDCG@k and MAP of ranked lists of passages, with the conventions of trec_eval: a passage
is relevant where its grade is above 0, one that nobody judged is not, the place in the list is the rank, and nDCG's
gain is the grade itself.
"""

_INPUTS = """\
Args:
    predictions: one list of passage ids (strings) for each query, best first, each passage at most once. Lists may
        differ in length.
    references: one dictionary for each query: `passage_ids`, the judged passages (strings), and `relevance`, the
        grade of each (whole numbers; 1.0 is one). A query has at least one judged passage.
    metrics: names such as "mrr@10", "recall@100", "hit_rate@20", "ndcg@10", "map@100"; "map" alone takes the whole
        list. The default is mrr@10, ndcg@10 and recall@100.
    num_passages: size of the corpus, where the lists hold all of it: only then may a cutoff be larger than the
        longest list.
    per_query: also return the values of each query, which a paired test needs.

Returns:
    metric -> its mean over the queries; with `per_query` also "per_query": metric -> a value for each query.

Raises:
    ValueError: an unknown metric; a cutoff that no list reaches; a query without judgments; a passage that is ranked
        or judged twice for one query; grades that are not one whole number for each judged passage.

Examples:
    >>> ir_metrics = evaluate.load("hf_ar2/evaluation/ir_metrics")
    >>> ir_metrics.compute(
    ...     predictions=[["d7", "d3", "d4"], ["d6", "d1", "d5"]],
    ...     references=[
    ...         {"passage_ids": ["d4", "d7"], "relevance": [1, 2]},
    ...         {"passage_ids": ["d5"], "relevance": [1]},
    ...     ],
    ...     metrics=["mrr@3", "recall@2"],
    ... )
    {'mrr@3': 0.6666666666666666, 'recall@2': 0.25}
"""

_CITATION = """\
@article{jarvelin2002,
  author = {J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana},
  title = {Cumulated Gain-Based Evaluation of {IR} Techniques},
  journal = {ACM Transactions on Information Systems},
  volume = {20},
  number = {4},
  pages = {422--446},
  year = {2002}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class IRMetrics(evaluate.Metric):
    """The metrics of `hf_ar2.evaluation.metrics` over ids."""

    def _info(self) -> evaluate.MetricInfo:
        strings = datasets.Sequence(datasets.Value("string"))
        # As int32, 0.9 would become 0 before it could be checked.
        grades = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": strings, "references": {"passage_ids": strings, "relevance": grades}}
            ),
            reference_urls=["https://trec.nist.gov/trec_eval/"],
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[dict[str, Any]],
        metrics: list[str] | tuple[str, ...] = DEFAULT_METRICS,
        num_passages: int | None = None,
        per_query: bool = False,
    ) -> dict[str, Any]:
        retrieved, judgments = as_rows(predictions, references)
        values = evaluate_rankings(retrieved, judgments, list(metrics), num_passages=num_passages)
        result: dict[str, Any] = {name: float(value.mean()) for name, value in values.items()}
        if per_query:
            result["per_query"] = {name: value.tolist() for name, value in values.items()}
        return result


def as_rows(predictions: list[list[str]], references: list[dict[str, Any]]) -> tuple[np.ndarray, Judgments]:
    """The same with rows in place of ids, as the numpy functions take them: int64 `[Q, K]`, and the judgments.

    Raises:
        ValueError: see `_INPUTS`.
    """
    rows: dict[str, int] = {}
    retrieved = np.full((len(predictions), max(map(len, predictions), default=0)), -1, np.int64)
    queries: list[int] = []
    passages: list[int] = []
    grades: list[int] = []
    for query, (ranked, judged) in enumerate(zip(predictions, references, strict=True)):
        ids, relevance = judged["passage_ids"], judged["relevance"]
        if not ids:
            raise ValueError(
                f"references[{query}]: found no judged passage; expected at least one. Leave the query out of "
                "predictions and references, as trec_eval does"
            )
        if len(relevance) != len(ids):
            raise ValueError(
                f"references[{query}]: found {len(relevance)} grades for {len(ids)} judged passages; expected one "
                "grade each"
            )
        for one, grade in zip(ids, relevance, strict=True):
            if not float(grade).is_integer():
                raise ValueError(
                    f"references[{query}]: found grade {grade} of passage {one!r}; expected whole numbers. Give grades "
                    "such as 0, 1, 2 and 3, as qrels have them"
                )
        for place, found in ((f"predictions[{query}]", ranked), (f"references[{query}]", ids)):
            if len(set(found)) < len(found):
                twice = next(one for position, one in enumerate(found) if one in found[:position])
                raise ValueError(f"{place}: found passage {twice!r} twice; name each passage once")
        retrieved[query, : len(ranked)] = [rows.setdefault(one, len(rows)) for one in ranked]
        queries += [query] * len(ids)
        passages += [rows.setdefault(one, len(rows)) for one in ids]
        grades += map(int, relevance)
    return retrieved, Judgments.from_triples(queries, passages, grades)
