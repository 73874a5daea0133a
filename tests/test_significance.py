"""Paired tests against scipy's, and what a p-value means when it is computed here."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ar2.evaluation import significance
from hf_ar2.evaluation.significance import holm, paired_test

stats = pytest.importorskip("scipy.stats")


def two_runs(seed, num_queries, gain):
    """Reciprocal ranks of two systems, with the many ties that such values have."""
    rng = np.random.default_rng(seed)
    ranks = rng.integers(1, 12, num_queries)
    better = np.maximum(1, ranks - rng.integers(-2, 3, num_queries) * (rng.random(num_queries) < 0.5) - gain)
    return 1.0 / better, 1.0 / ranks


def scipy_randomization(a, b, samples):
    def mean_difference(x, y, axis):
        return (x - y).mean(axis=axis)

    result = stats.permutation_test(
        (a, b), mean_difference, permutation_type="samples", vectorized=True, n_resamples=samples, rng=1
    )
    return result.pvalue


@pytest.mark.parametrize("seed", range(4))
def test_exact_randomization_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(11), rng.random(11)
    assert paired_test(a, b).p_value == pytest.approx(scipy_randomization(a, b, np.inf), abs=1e-12)


def test_ties_leave_an_exact_p_unchanged():
    a, b = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.1, 0.2, 0.3, 0.2])
    few = paired_test(a, b)
    many = paired_test(np.append(a, np.full(500, 0.5)), np.append(b, np.full(500, 0.5)))
    assert many.p_value == few.p_value == 0.25  # 4 of 16 assignments are as extreme
    assert (many.wins, many.losses, many.ties) == (3, 1, 500)


@pytest.mark.parametrize(("seed", "gain"), [(0, 0), (1, 0), (2, 1)])
def test_sampled_randomization_is_close_to_scipy(seed, gain):
    a, b = two_runs(seed, 150, gain)
    ours = paired_test(a, b, samples=10_000).p_value
    theirs = scipy_randomization(a, b, 10_000)
    assert ours == pytest.approx(theirs, abs=4 * np.sqrt(2 * theirs * (1 - theirs) / 10_000) + 2e-4)


def test_sampling_is_seeded_and_never_claims_zero():
    a, b = two_runs(3, 200, 0)
    assert paired_test(a, b, seed=5) == paired_test(a, b, seed=5)
    assert paired_test(a, b, seed=5).p_value != paired_test(a, b, seed=6).p_value
    assert paired_test(np.ones(100), np.zeros(100), samples=999).p_value == 1 / 1000


def test_sampling_in_blocks_draws_the_asked_number(monkeypatch):
    a, b = two_runs(4, 60, 0)
    whole = paired_test(a, b, samples=4000).p_value
    monkeypatch.setattr(significance, "_CELLS_AT_ONCE", 7 * 60)
    blocks = paired_test(a, b, samples=4000).p_value
    assert blocks * 4001 == pytest.approx(round(blocks * 4001))
    assert blocks == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_t_equals_scipy(seed):
    a, b = two_runs(seed, 80, 0)
    assert paired_test(a, b, method="t").p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_t_of_constant_differences():
    same = np.linspace(0.25, 0.75, 9)
    assert paired_test(same, same, method="t").p_value == 1.0
    assert paired_test(same + 0.125, same, method="t").p_value == 0.0


def test_difference_wins_losses_and_ties():
    result = paired_test(np.array([1.0, 0.5, 0.5, 0.1 + 0.2]), np.array([0.5, 1.0, 0.25, 0.3]))
    assert result.difference == pytest.approx(0.0625)
    assert (result.wins, result.losses, result.ties) == (2, 1, 1)  # 0.1 + 0.2 and 0.3 are a tie
    swapped = paired_test(np.array([0.5, 1.0]), np.array([1.0, 0.0]))
    assert (swapped.wins, swapped.losses) == (1, 1)


@pytest.mark.parametrize("method", ["randomization", "t"])
def test_equal_runs_do_not_differ(method):
    values = np.random.default_rng(0).random(30)
    assert paired_test(values, values, method=method).p_value == 1.0


@pytest.mark.parametrize("method", ["randomization", "t"])
def test_under_the_hypothesis_p_is_uniform(method):
    """A test at level .05 is wrong about 5 times in 100, the property that the table's stars promise."""
    rng = np.random.default_rng(11)
    p = [paired_test(rng.random(40), rng.random(40), method, samples=400).p_value for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085


def test_holm_by_hand_and_in_any_order():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.5])


def test_what_cannot_be_paired_raises_an_error():
    with pytest.raises(ValueError, match=r"found \[3\] and \[2\]"):
        paired_test(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="two or more queries"):
        paired_test(np.ones(1), np.zeros(1))
    with pytest.raises(ValueError, match="query 1 has a = nan"):
        paired_test(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(ValueError, match="unknown method 'wilcoxon'"):
        paired_test(np.ones(2), np.zeros(2), method="wilcoxon")
