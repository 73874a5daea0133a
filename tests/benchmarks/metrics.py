"""Metrics of 10,000 queries with 1,000 hits each: this library's arrays against pytrec_eval's dictionaries.

    python tests/benchmarks/metrics.py [--queries 10000] [--hits 1000] [--repeats 3]

Both compute MRR@10, Recall@50, Recall@1000 and nDCG@10 from the same rankings, in turns, in one thread.
pytrec_eval takes nested dictionaries of string ids, so its time is given without and with making them from
the arrays that a search returns. (It has no cutoff for the reciprocal rank, and computes that of the list.)
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import pytrec_eval

from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation.metrics import evaluate_rankings

OURS = ["mrr@10", "recall@50", "recall@1000", "ndcg@10"]
THEIRS = {"recip_rank", "recall_50", "recall_1000", "ndcg_cut_10"}


def random_task(num_queries: int, hits: int, num_passages: int = 1_000_000, seed: int = 0):
    """Rankings with one to three relevant passages a query, most of them among the hits."""
    rng = np.random.default_rng(seed)
    # A random start and an odd stride modulo a power of two never repeat a passage.
    stride = 2 * rng.integers(1, num_passages // 4, num_queries) + 1
    modulus = 1 << (num_passages - 1).bit_length()
    retrieved = (rng.integers(0, modulus, num_queries)[:, None] + stride[:, None] * np.arange(hits)) % modulus
    triples = []
    for query in range(num_queries):
        for passage in rng.choice(retrieved[query, : hits // 2], rng.integers(1, 4), replace=False):
            triples.append((query, int(passage), int(rng.integers(1, 3))))
    return retrieved, Judgments.from_triples(*np.array(triples).T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--hits", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    retrieved, judgments = random_task(options.queries, options.hits)
    metrics = [name for name in OURS if int(name.split("@")[1]) <= options.hits]
    qrels = {
        f"q{i}": {f"d{p}": int(r) for p, r in zip(*judgments.of(i), strict=True)}
        for i in range(len(judgments))
    }
    scores = (1.0 / np.arange(1, options.hits + 1)).tolist()

    seconds: dict[str, list[float]] = {
        "hf_ar2": [],
        "pytrec_eval": [],
        "pytrec_eval with its dictionaries": [],
    }
    for _ in range(options.repeats):
        start = time.perf_counter()
        ours = evaluate_rankings(retrieved, judgments, metrics)
        seconds["hf_ar2"].append(time.perf_counter() - start)

        start = time.perf_counter()
        run = {
            f"q{i}": dict(zip([f"d{p}" for p in rows], scores, strict=True))
            for i, rows in enumerate(retrieved.tolist())
        }
        made = time.perf_counter()
        theirs = pytrec_eval.RelevanceEvaluator(qrels, THEIRS).evaluate(run)
        seconds["pytrec_eval"].append(time.perf_counter() - made)
        seconds["pytrec_eval with its dictionaries"].append(time.perf_counter() - start)
        del run

    expected = [theirs[f"q{i}"]["ndcg_cut_10"] for i in range(options.queries)]
    np.testing.assert_allclose(ours["ndcg@10"], expected, atol=1e-9)
    print(f"{options.queries:,} queries x {options.hits:,} hits: {', '.join(metrics)}")
    print(f"median seconds of {options.repeats}, in turns; nDCG@10 of every query agrees to 1e-9")
    for name, values in seconds.items():
        ratios = [value / own for value, own in zip(values, seconds["hf_ar2"], strict=True)]
        print(f"  {name:<36}{statistics.median(values):8.2f} s{statistics.median(ratios):8.1f} x")


if __name__ == "__main__":
    main()
