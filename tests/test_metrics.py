"""Metrics against pytrec_eval and ir_measures on random rankings, and the cases that those leave open."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation import metrics
from hf_ar2.evaluation.metrics import evaluate_rankings


def random_task(seed, num_queries=40, num_passages=120, depth=50):
    """Graded judgments, several relevant passages, some judged not relevant, lists of random length."""
    rng = np.random.default_rng(seed)
    triples = []
    for query in range(num_queries):
        judged = rng.choice(num_passages, rng.integers(1, 15), replace=False)
        relevance = rng.integers(0, 4, len(judged))
        relevance[0] = max(relevance[0], 1)
        triples += [(3 * query + 1, passage, grade) for passage, grade in zip(judged, relevance, strict=True)]
    judgments = Judgments.from_triples(*np.array(triples).T)
    retrieved = rng.random((num_queries, num_passages)).argsort(axis=1)[:, :depth]
    retrieved[np.arange(depth) >= rng.integers(0, depth + 1, num_queries)[:, None]] = -1
    retrieved[0], retrieved[1, 1:] = -1, -1
    return retrieved, judgments


def as_dicts(retrieved, judgments):
    qrels, run = {}, {}
    for i in range(len(judgments)):
        qrels[str(i)] = {str(p): int(r) for p, r in zip(*judgments.of(i), strict=True)}
        run[str(i)] = {str(p): 1.0 / rank for rank, p in enumerate(retrieved[i].tolist(), 1) if p >= 0}
    return qrels, run


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pytrec_eval(seed):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    retrieved, judgments = random_task(seed)
    qrels, run = as_dicts(retrieved, judgments)
    theirs_of = {
        "recall@5": "recall_5",
        "recall@50": "recall_50",
        "hit_rate@20": "success_20",
        "ndcg@1": "ndcg_cut_1",
        "ndcg@10": "ndcg_cut_10",
        "ndcg@50": "ndcg_cut_50",
        "map@20": "map_cut_20",
        "map": "map",
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(theirs_of.values())).evaluate(run)
    ours = evaluate_rankings(retrieved, judgments, list(theirs_of))
    for name, their_name in theirs_of.items():
        # pytrec_eval leaves a query with nothing retrieved out; trec_eval -c, and we, count it as 0.
        expected = [theirs.get(str(i), {}).get(their_name, 0.0) for i in range(len(judgments))]
        np.testing.assert_allclose(ours[name], expected, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_means_equal_ir_measures(seed):
    ir_measures = pytest.importorskip("ir_measures")
    from ir_measures import AP, RR, R, Success, nDCG

    retrieved, judgments = random_task(seed)
    theirs_of = {
        "mrr@10": RR @ 10,
        "recall@50": R @ 50,
        "hit_rate@20": Success @ 20,
        "ndcg@10": nDCG @ 10,
        "map@20": AP @ 20,
        "map": AP,
    }
    theirs = ir_measures.calc_aggregate(list(theirs_of.values()), *as_dicts(retrieved, judgments))
    ours = evaluate_rankings(retrieved, judgments, list(theirs_of))
    for name, measure in theirs_of.items():
        assert ours[name].mean() == pytest.approx(theirs[measure], abs=1e-9), name


def test_a_ranking_worked_out_by_hand():
    # Relevant: 4 (grade 1) and 7 (grade 2); 9 was judged not relevant; 8 was never judged.
    judgments = Judgments.from_triples([0, 0, 0], [4, 7, 9], [1, 2, 0])
    retrieved = np.array([[9, 7, 8, 4, -1]])
    assert metrics.gains(retrieved, judgments).tolist() == [[0, 2, 0, 1, 0]]
    values = evaluate_rankings(retrieved, judgments, ["mrr@5", "recall@2", "hit_rate@1", "map", "ndcg@5"])
    dcg = 2 / np.log2(3) + 1 / np.log2(5)
    ideal = 2 / np.log2(2) + 1 / np.log2(3)
    expected = {
        "mrr@5": 1 / 2,
        "recall@2": 1 / 2,
        "hit_rate@1": 0,
        "map": (1 / 2 + 2 / 4) / 2,
        "ndcg@5": dcg / ideal,
    }
    assert {name: value.item() for name, value in values.items()} == pytest.approx(expected)


def test_queries_without_relevant_or_retrieved_passages_count_zero():
    judgments = Judgments.from_triples([0, 1, 2], [5, 5, 5], [1, 0, 1])
    retrieved = np.array([[5, 6], [5, 6], [-1, -1]])
    for name, values in evaluate_rankings(
        retrieved, judgments, ["mrr@2", "recall@2", "ndcg@2", "map"]
    ).items():
        assert values.tolist() == [1.0, 0.0, 0.0], name
    assert len(judgments.positives()) == 2


def test_negative_relevance_is_not_relevant_and_costs_nothing():
    judgments = Judgments.from_triples([0, 0], [1, 2], [-2, 1])
    values = evaluate_rankings(np.array([[1, 2]]), judgments, ["mrr@2", "ndcg@2", "recall@1"])
    assert [value.item() for value in values.values()] == pytest.approx([0.5, 1 / np.log2(3), 0.0])


def test_no_queries_at_all():
    values = evaluate_rankings(
        np.zeros((0, 10), np.int64), Judgments.from_triples([], [], []), ["mrr@10", "ndcg@10"]
    )
    assert {name: value.shape for name, value in values.items()} == {"mrr@10": (0,), "ndcg@10": (0,)}


def test_long_judgment_lists_are_joined_in_blocks(monkeypatch):
    retrieved, judgments = random_task(7)
    whole = metrics.gains(retrieved, judgments)
    monkeypatch.setattr(metrics, "_CELLS_AT_ONCE", 3 * retrieved.shape[1])
    np.testing.assert_array_equal(metrics.gains(retrieved, judgments), whole)


def test_a_cutoff_beyond_the_lists_raises_an_error():
    judgments = Judgments.from_triples([0], [5], [1])
    with pytest.raises(
        ValueError, match=r"cutoff 100 exceeds the lists of 2 passages; retrieve at least 100"
    ):
        evaluate_rankings(np.array([[5, 6]]), judgments, ["recall@100"])


def test_a_cutoff_beyond_the_lists_is_right_where_they_hold_the_whole_corpus():
    judgments = Judgments.from_triples([0, 0], [0, 1], [1, 2])
    values = evaluate_rankings(np.array([[0, 2, 1]]), judgments, ["recall@100", "ndcg@10"], num_passages=3)
    assert values["recall@100"].tolist() == [1.0]
    assert values["ndcg@10"].item() == pytest.approx((1 + 2 / 2) / (2 + 1 / np.log2(3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mrr10", r"did you mean 'mrr@10'"),
        ("MRR@10", r"did you mean 'mrr@10'"),
        ("recal@100", r"did you mean 'recall@100'"),
        ("R@50", r"did you mean 'recall@50'"),
        ("ndgc@5", r"did you mean 'ndcg@5'"),
        ("ndcg", r"did you mean 'ndcg@10'"),
        ("recall@0", r"did you mean 'recall@10'"),
        ("zzz", r"Metrics are mrr@k, recall@k, hit_rate@k, ndcg@k, map@k .* and map"),
    ],
)
def test_an_unknown_metric_is_named_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        metrics.parse_metric(name)


def test_what_is_not_a_ranking_of_these_queries_raises_an_error():
    judgments = Judgments.from_triples([0, 1], [5, 6], [1, 1])
    for wrong in (np.array([[5, 6]]), np.array([5, 6]), np.array([[5.0], [6.0]])):
        with pytest.raises(ValueError, match="one list of passage rows for each of the 2 judged queries"):
            metrics.gains(wrong, judgments)
    with pytest.raises(ValueError, match="passage row 6 was retrieved twice for query row 1"):
        metrics.gains(np.array([[5, 6], [6, 6]]), judgments)


def test_metrics_import_nothing_but_numpy():
    """The room's rule: whoever has arrays can use the metrics without torch or datasets being loaded."""
    import subprocess
    import sys

    code = "import sys, hf_ar2.evaluation.metrics; print({'torch', 'datasets', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_relevance_level():
    """As in TREC DL, where grade 1 is related but not relevant; nDCG keeps all grades."""
    judgments = Judgments.from_triples([0, 0, 0, 1], [1, 2, 3, 1], [1, 2, 3, 1])
    retrieved = np.array([[1, 2, 9], [1, 8, 9]])
    names = ["mrr@3", "recall@3", "hit_rate@1", "map", "ndcg@3"]
    strict = evaluate_rankings(retrieved, judgments, names, relevance_level=2)
    assert strict["mrr@3"].tolist() == [0.5, 0] and strict["recall@3"].tolist() == [0.5, 0]
    assert strict["hit_rate@1"].tolist() == [0, 0] and strict["map"].tolist() == [0.25, 0]
    loose = evaluate_rankings(retrieved, judgments, names)
    np.testing.assert_array_equal(strict["ndcg@3"], loose["ndcg@3"])
    assert loose["mrr@3"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="relevance_level=0: expected a grade of at least 1"):
        evaluate_rankings(retrieved, judgments, names, relevance_level=0)
