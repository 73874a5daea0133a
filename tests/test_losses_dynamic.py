"""RocketQAv2's distillation and the ranker's losses over several positives, against loops and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_ar2.losses import (
    distillation_loss,
    dynamic_listwise_distillation,
    listwise_cross_entropy,
    pointwise_cross_entropy,
)
from hf_ar2.losses.dynamic import PRESETS

DIRECTIONS = ("ranker_to_retriever", "retriever_to_ranker")
RAGGED = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
SEVERAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def kl(of: list[float], to: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(of, to, strict=True))


def two_models(queries: int = 3, length: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, queries, length, generator=generator, dtype=torch.float64) * 2
    return draw[0], draw[1]


def gradients(loss: Callable[[Tensor, Tensor], Tensor], *scores: Tensor) -> list[Tensor | None]:
    leaves = [score.detach().clone().requires_grad_() for score in scores]
    loss(*leaves).backward()
    return [leaf.grad for leaf in leaves]


def finite_differences(
    value: Callable[[Tensor], Tensor | float], scores: Tensor, step: float = 1e-6
) -> Tensor:
    gradient = torch.zeros_like(scores)
    for index in np.ndindex(*scores.shape):
        up, down = scores.clone(), scores.clone()
        up[index] += step
        down[index] -= step
        gradient[index] = (value(up) - value(down)) / (2 * step)
    return gradient


# ---- Dynamic listwise distillation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
def test_the_value_is_that_of_a_loop(direction: str, reduction: str) -> None:
    retriever, ranker = two_models()
    total = 0.0
    for row in range(3):
        p = softmax([score / 0.5 for score in retriever[row][RAGGED[row]].tolist()])
        r = softmax([score / 2.0 for score in ranker[row][RAGGED[row]].tolist()])
        divergence = kl(r, p) if direction == "ranker_to_retriever" else kl(p, r)
        total += divergence / len(p) if reduction == "mean" else divergence
    expected = total if reduction == "sum" else total / 3
    found = dynamic_listwise_distillation(retriever, ranker, direction, True, 0.5, 2.0, reduction, RAGGED)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_mean_is_over_all_elements_of_full_lists_as_the_released_code_takes_it() -> None:
    retriever, ranker = two_models()
    elements = torch.nn.functional.kl_div(
        torch.log_softmax(retriever, 1), torch.log_softmax(ranker, 1), log_target=True, reduction="none"
    )
    found = dynamic_listwise_distillation(retriever, ranker, reduction="mean")
    assert found.item() == pytest.approx(elements.mean().item(), rel=1e-12)


def test_the_gradient_table() -> None:
    """Both sides of both directions, as closed forms and by finite differences."""
    retriever, ranker = two_models(queries=1)
    p, r = torch.softmax(retriever, 1), torch.softmax(ranker, 1)
    forward = (r * (r / p).log()).sum()
    backward = (p * (p / r).log()).sum()
    table = {
        "ranker_to_retriever": (p - r, r * ((r / p).log() - forward)),
        "retriever_to_ranker": (p * ((p / r).log() - backward), r - p),
    }
    for direction, expected in table.items():

        def loss(s: Tensor, u: Tensor, direction: str = direction) -> Tensor:
            return dynamic_listwise_distillation(s, u, direction, detach_teacher=False)

        found = gradients(loss, retriever, ranker)
        torch.testing.assert_close(found, list(expected), atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(found[0], finite_differences(lambda s: loss(s, ranker), retriever))
        torch.testing.assert_close(found[1], finite_differences(lambda u: loss(retriever, u), ranker))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_detached_teacher_gets_no_gradient_and_the_retriever_keeps_its_own(direction: str) -> None:
    scores = two_models()
    detached = gradients(lambda s, u: dynamic_listwise_distillation(s, u, direction), *scores)
    live = gradients(
        lambda s, u: dynamic_listwise_distillation(s, u, direction, detach_teacher=False), *scores
    )
    assert detached[1] is None and live[1] is not None
    torch.testing.assert_close(detached[0], live[0])


def test_the_presets_train_as_the_spec_says() -> None:
    """The code: (p − r)/m and r − y. The paper: the ranker goes half-way between label and retriever."""
    retriever, ranker = two_models(queries=1)
    p, r, y = torch.softmax(retriever, 1), torch.softmax(ranker, 1), torch.eye(5, dtype=torch.float64)[:1]

    def step(preset: str) -> list[Tensor | None]:
        return gradients(
            lambda s, u: dynamic_listwise_distillation(s, u, **PRESETS[preset]) + listwise_cross_entropy(u),
            retriever,
            ranker,
        )

    torch.testing.assert_close(step("reference"), [(p - r) / 5, r - y])
    torch.testing.assert_close(step("paper")[1], 2 * (r - (p + y) / 2))


def test_from_ranker_to_retriever_it_pulls_as_a_cross_entropy_to_the_ranker() -> None:
    scores = two_models()
    found = gradients(lambda s, u: dynamic_listwise_distillation(s, u, mask=RAGGED), *scores)
    expected = gradients(lambda s, u: distillation_loss(s, u, mask=RAGGED), *scores)
    torch.testing.assert_close(found[0], expected[0])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_stands_under_the_mask_does_not_matter(direction: str) -> None:
    retriever, ranker = two_models()
    garbage = torch.tensor([0.0, math.nan, math.inf, -math.inf, 1e30], dtype=torch.float64)

    def loss(s: Tensor, u: Tensor) -> Tensor:
        return dynamic_listwise_distillation(s, u, direction, detach_teacher=False, mask=RAGGED)

    clean = gradients(loss, retriever, ranker)
    spoilt = gradients(
        loss, torch.where(RAGGED, retriever, garbage), torch.where(RAGGED, ranker, garbage.flip(0))
    )
    for before, after in zip(clean, spoilt, strict=True):
        assert (after[~RAGGED] == 0).all()
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_list_of_one_passage_has_nothing_to_distil(direction: str) -> None:
    mask = torch.tensor([[True, False, False]])
    scores = torch.randn(2, 1, 3)
    loss = lambda s, u: dynamic_listwise_distillation(s, u, direction, detach_teacher=False, mask=mask)  # noqa: E731
    assert loss(*scores).item() == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, *scores))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opposed_and_extreme_scores_stay_finite(direction: str, dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.0, 1000.0, -1000.0]], dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = dynamic_listwise_distillation(scores, -scores, direction)
    assert loss.dtype == torch.float32 and loss.item() == 2000.0
    for gradient in gradients(
        lambda s, u: dynamic_listwise_distillation(s, u, direction, detach_teacher=False), scores, -scores
    ):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"direction": "both"}, "direction is 'both', expected \"ranker_to_retriever\""),
        ({"reduction": "none"}, "reduction is 'none', expected \"batchmean\""),
        ({"ranker_temperature": 0.0}, "ranker_temperature=0.0: expected numbers above 0"),
        ({"ranker_scores": torch.zeros(2, 4)}, r"ranker_scores have shape \(2, 4\), expected \(2, 3\)"),
        ({"mask": torch.tensor([[True] * 3, [False] * 3])}, "mask is False in column 0 of row 1"),
    ],
)
def test_errors_say_what_was_found(changed: dict, message: str) -> None:
    arguments = {"retriever_scores": torch.zeros(2, 3), "ranker_scores": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        dynamic_listwise_distillation(**{**arguments, **changed})


# ---- Several positives; the pointwise loss -------------------------------------------------------------------------


def listwise_loop(scores: Tensor, mask: Tensor, positives: Tensor) -> float:
    total = 0.0
    for row in range(len(scores)):
        entries = [j for j in range(scores.shape[1]) if mask[row, j]]
        negatives = [scores[row, j].item() for j in entries if not positives[row, j]]
        relevant = [scores[row, j].item() for j in entries if positives[row, j]]
        total += sum(-math.log(softmax([score, *negatives])[0]) for score in relevant) / len(relevant)
    return total / len(scores)


def pointwise_loop(scores: Tensor, mask: Tensor, positives: Tensor) -> float:
    total = 0.0
    for row in range(len(scores)):
        entries = [j for j in range(scores.shape[1]) if mask[row, j]]
        for j in entries:
            relevance = 1 / (1 + math.exp(-scores[row, j].item()))
            total -= math.log(relevance if positives[row, j] else 1 - relevance) / len(entries)
    return total / len(scores)


RANKER_LOSSES = [(listwise_cross_entropy, listwise_loop), (pointwise_cross_entropy, pointwise_loop)]


@pytest.mark.parametrize(("loss", "loop"), RANKER_LOSSES)
@pytest.mark.parametrize("mask", [torch.ones_like(RAGGED), RAGGED])
def test_value_and_gradient_with_several_positives_are_those_of_the_loop(
    loss: Callable, loop: Callable, mask: Tensor
) -> None:
    scores, _ = two_models()
    assert loss(scores, mask, SEVERAL).item() == pytest.approx(loop(scores, mask, SEVERAL), rel=1e-12)
    (gradient,) = gradients(lambda s: loss(s, mask, SEVERAL), scores)
    expected = finite_differences(lambda s: loop(s, mask, SEVERAL), scores)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("loss", "loop"), RANKER_LOSSES)
def test_without_positives_column_0_is_the_one(loss: Callable, loop: Callable) -> None:
    scores, _ = two_models()
    first = torch.zeros_like(RAGGED)
    first[:, 0] = True
    for mask in (None, RAGGED):
        torch.testing.assert_close(loss(scores, mask), loss(scores, mask, first), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [listwise_cross_entropy, pointwise_cross_entropy])
def test_garbage_under_the_mask_and_extremes_are_finite(loss: Callable) -> None:
    scores = torch.where(RAGGED, 0.0, torch.tensor([0.0, math.nan, math.inf, -math.inf, 1e30]))
    for gap in (0.0, 1e4, -1e4):
        moved = scores + gap * SEVERAL
        (gradient,) = gradients(lambda s: loss(s, RAGGED, SEVERAL), moved)
        assert torch.isfinite(loss(moved, RAGGED, SEVERAL)) and torch.isfinite(gradient).all()
        assert (gradient[~RAGGED] == 0).all()


def test_a_list_of_positives_alone_has_nothing_to_rank() -> None:
    everything = torch.ones(1, 3, dtype=torch.bool)
    scores = torch.tensor([[3.0, -1.0, 0.5]])
    assert listwise_cross_entropy(scores, None, everything).item() == 0
    (gradient,) = gradients(lambda s: listwise_cross_entropy(s, None, everything), scores)
    assert (gradient == 0).all()


@pytest.mark.parametrize("loss", [listwise_cross_entropy, pointwise_cross_entropy])
def test_positives_that_do_not_fit_raise_an_error(loss: Callable) -> None:
    scores = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="positives have dtype torch.int64, expected torch.bool"):
        loss(scores, None, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"positives have shape \(2, 2\), expected \(2, 3\)"):
        loss(scores, None, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="positives are False in column 0 of row 1"):
        loss(scores, None, torch.tensor([[True, False, False], [False, True, False]]))
