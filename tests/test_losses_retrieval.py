"""LTRe's loss against a plain loop over pairs, by value and by gradient."""

from __future__ import annotations

import math

import pytest
import torch

from hf_ar2.losses import retrieval_pairwise_loss


def by_loop(scores, relevant, weighting, cut, mask):
    """The formula, pair by pair."""
    value = {
        "lambda_mrr": lambda r: 1 / r if r <= cut else 0.0,
        "lambda_ndcg": lambda r: 1 / math.log2(1 + r) if r <= cut else 0.0,
    }.get(weighting)
    lists = []
    for b in range(len(scores)):
        pairs = []
        for p in range(scores.shape[1]):
            for n in range(scores.shape[1]):
                if mask[b, p] and mask[b, n] and relevant[b, p] and not relevant[b, n]:
                    weight = 1.0 if value is None else abs(value(p + 1) - value(n + 1))
                    pairs.append(weight * torch.log1p(torch.exp(scores[b, n] - scores[b, p])))
        lists.append(sum(pairs) / len(pairs) if pairs else scores[b].sum() * 0)
    return sum(lists) / len(lists)


def lists(kind, seed=0):
    """Scores `[5, 9]` best first, with all, some or no relevant passages, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, 9, generator=generator, dtype=torch.float64).sort(descending=True).values
    relevant = torch.rand(5, 9, generator=generator) < {"all": 1.1, "some": 0.3, "none": -1.0}[kind]
    mask = torch.rand(5, 9, generator=generator) < 0.8
    return scores.requires_grad_(), relevant, mask


@pytest.mark.parametrize("weighting", ["lambda_mrr", "lambda_ndcg", "ranknet"])
@pytest.mark.parametrize("kind", ["all", "some", "none"])
@pytest.mark.parametrize("cut", [1, 4, 200])
def test_it_is_the_loop_by_value_and_by_gradient(weighting, kind, cut):
    scores, relevant, mask = lists(kind)
    loss = retrieval_pairwise_loss(scores, relevant, weighting, cut, mask)
    expected = by_loop(scores, relevant, weighting, cut, mask)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(value, scores)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)
    assert (found[~mask] == 0).all()
    assert (loss > 0) == (kind == "some")


def test_two_halves_of_a_batch_are_the_batch_even_where_a_list_has_no_pair():
    """Gradients are averaged over processes; each has half of the lists, and one of these has no relevant passage."""
    scores = torch.tensor([[2.0, 1.0], [3.0, 1.0], [2.0, 2.0], [1.0, 0.0]])
    relevant = torch.tensor([[False, True], [False, False], [False, True], [True, False]])
    halves = [retrieval_pairwise_loss(scores[part], relevant[part]) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, retrieval_pairwise_loss(scores, relevant))


def test_without_a_mask_every_entry_is_real():
    scores, relevant, _ = lists("some")
    everything = torch.ones_like(relevant)
    assert torch.equal(
        retrieval_pairwise_loss(scores, relevant), retrieval_pairwise_loss(scores, relevant, mask=everything)
    )


def test_gaps_of_a_thousand_and_rubbish_under_the_mask_leave_it_finite():
    scores = torch.tensor(
        [[1000.0, -1000.0, float("nan")], [-1000.0, 1000.0, -float("inf")]], requires_grad=True
    )
    relevant = torch.tensor([[False, True, True], [True, False, False]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    loss = retrieval_pairwise_loss(scores, relevant, "ranknet", mask=mask)
    loss.backward()
    assert loss.item() == 2000.0
    torch.testing.assert_close(scores.grad, torch.tensor([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0]]))


def test_the_weight_is_what_a_swap_changes_in_mrr():
    """One relevant passage, third of four: its pair with rank n weighs |1/3 - 1/n|."""
    scores = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    retrieval_pairwise_loss(scores, torch.tensor([[False, False, True, False]])).backward()
    assert scores.grad[0].tolist() == pytest.approx(
        [(1 - 1 / 3) / 6, (1 / 2 - 1 / 3) / 6, -(2 / 3 + 1 / 6 + 1 / 12) / 6, (1 / 3 - 1 / 4) / 6]
    )


def test_bf16_scores_are_ranked_in_float32():
    scores = torch.tensor([[3.0, 1.0]], dtype=torch.bfloat16)
    assert retrieval_pairwise_loss(scores, torch.tensor([[False, True]])).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cut": 0}, ValueError, "cut=0: expected at least 1"),
        ({"weighting": "mrr"}, ValueError, "weighting='mrr': expected one of lambda_mrr"),
        ({"scores": torch.zeros(3)}, ValueError, r"shape \[3\], expected \[batch, list\]"),
        ({"scores": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "expected a floating point dtype"),
        ({"relevant": torch.zeros(2, 3)}, TypeError, "relevant is torch.float32, expected torch.bool"),
        (
            {"mask": torch.ones(2, 4, dtype=torch.bool)},
            ValueError,
            r"mask has shape \[2, 4\], expected \[2, 3\]",
        ),
    ],
)
def test_what_does_not_fit_raises_an_error(change, error, message):
    given = {"scores": torch.zeros(2, 3), "relevant": torch.zeros(2, 3, dtype=torch.bool), **change}
    with pytest.raises(error, match=message):
        retrieval_pairwise_loss(**given)
