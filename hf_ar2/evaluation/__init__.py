"""Metrics, run files, paired tests, comparisons of systems, and answer matching."""

from hf_ar2.evaluation.answers import answer_hits, has_answer
from hf_ar2.evaluation.comparison import Comparison, compare
from hf_ar2.evaluation.metrics import evaluate_rankings
from hf_ar2.evaluation.runs import Run, read_qrels, read_run, write_qrels, write_run
from hf_ar2.evaluation.significance import PairedTest, holm, paired_test

__all__ = [
    "Comparison",
    "PairedTest",
    "Run",
    "answer_hits",
    "compare",
    "evaluate_rankings",
    "has_answer",
    "holm",
    "paired_test",
    "read_qrels",
    "read_run",
    "write_qrels",
    "write_run",
]
