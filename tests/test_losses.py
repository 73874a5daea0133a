"""Losses against float64 loops written from the papers, closed-form gradients, masks and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from two_processes import in_two_processes

from hf_ar2.losses import (
    adversarial_loss,
    all_gather_with_gradient,
    distillation_loss,
    in_batch_contrastive_loss,
    listwise_cross_entropy,
    margin_mse_loss,
)

# Each loss as a function of the scores that get a gradient and of a second model's scores, beside its loop.
LOSSES: dict[str, tuple[Callable, Callable]] = {}


def loss_with_loop(name: str, loss: Callable) -> Callable:
    def note(loop: Callable) -> Callable:
        LOSSES[name] = (loss, loop)
        return loop

    return note


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    exponentials = [math.exp(score - top) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


@loss_with_loop("listwise", lambda scores, other, mask=None: listwise_cross_entropy(scores, mask))
def listwise_loop(scores: list[float], other: list[float]) -> float:
    return -math.log(softmax(scores)[0])


@loss_with_loop(
    "distillation",
    lambda scores, other, mask=None: distillation_loss(scores, other, 0.5, 2.0, mask),
)
def distillation_loop(scores: list[float], other: list[float]) -> float:
    student = softmax([score / 0.5 for score in scores])
    teacher = softmax([score / 2.0 for score in other])
    return -sum(t * math.log(s) for s, t in zip(student, teacher, strict=True))


@loss_with_loop(
    "margin_mse",
    lambda scores, other, mask=None: margin_mse_loss(scores, other, 0.5, 2.0, mask),
)
def margin_mse_loop(scores: list[float], other: list[float]) -> float:
    squares = [
        ((scores[0] - s) / 0.5 - (other[0] - t) / 2.0) ** 2
        for s, t in zip(scores[1:], other[1:], strict=True)
    ]
    return sum(squares) / len(squares)


@loss_with_loop("reference", lambda scores, other, mask=None: adversarial_loss(scores, other, mask=mask))
def reference_loop(scores: list[float], other: list[float]) -> float:
    p = softmax(scores)
    r = [math.log(1 / (1 + math.exp(u - other[0]))) for u in other]
    return sum(r_i * math.log(p_i) for r_i, p_i in zip(r, p, strict=True))


@loss_with_loop("paper", lambda scores, other, mask=None: adversarial_loss(scores, other, "paper", mask))
def paper_loop(scores: list[float], other: list[float]) -> float:
    p = softmax(scores[1:])
    r = [math.log(1 / (1 + math.exp(u - other[0]))) for u in other[1:]]
    return sum(p_i * r_i for p_i, r_i in zip(p, r, strict=True))


def mean_over_queries(loop: Callable, scores: Tensor, other: Tensor, mask: Tensor | None = None) -> float:
    total = 0.0
    for row in range(len(scores)):
        real = torch.ones_like(scores[row], dtype=torch.bool) if mask is None else mask[row]
        total += loop(scores[row][real].tolist(), other[row][real].tolist())
    return total / len(scores)


def random_lists(queries: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, queries, length, generator=generator, dtype=torch.float64) * 3
    return draw[0], draw[1]


def gradient_of(loss: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    scores = scores.detach().clone().requires_grad_()
    loss(scores).backward()
    return scores.grad


def finite_differences(value: Callable[[Tensor], float], scores: Tensor, step: float = 1e-6) -> Tensor:
    gradient = torch.zeros_like(scores)
    for index in np.ndindex(*scores.shape):
        up, down = scores.clone(), scores.clone()
        up[index] += step
        down[index] -= step
        gradient[index] = (value(up) - value(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("length", [2, 5, 16])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_loop(name: str, length: int) -> None:
    loss, loop = LOSSES[name]
    scores, other = random_lists(queries=4, length=length)
    assert loss(scores, other).item() == pytest.approx(mean_over_queries(loop, scores, other), rel=1e-12)
    assert loss(scores.float(), other.float()).item() == pytest.approx(
        mean_over_queries(loop, scores, other), rel=1e-5, abs=1e-6
    )
    expected = finite_differences(lambda moved: mean_over_queries(loop, moved, other), scores)
    torch.testing.assert_close(gradient_of(lambda s: loss(s, other), scores), expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_leaves_the_shorter_list(name: str) -> None:
    loss, loop = LOSSES[name]
    scores, other = random_lists(queries=3, length=6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]], dtype=torch.bool)
    garbage = torch.tensor([math.nan, math.inf, -math.inf, 1e30, 0.0, -7.0], dtype=torch.float64)
    scores, other = torch.where(mask, scores, garbage), torch.where(mask, other, garbage.flip(0))

    expected = mean_over_queries(loop, scores, other, mask)
    assert loss(scores, other, mask).item() == pytest.approx(expected, rel=1e-12)

    gradient = gradient_of(lambda s: loss(s, other, mask), scores)
    assert (gradient[~mask] == 0).all()
    for row in range(3):
        real = mask[row]
        short = gradient_of(
            lambda s, r=row, m=real: loss(s, other[r : r + 1, m]), scores[row : row + 1, real]
        )
        torch.testing.assert_close(gradient[row, real], short[0] / 3, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_query_without_negatives_contributes_zero_and_counts(name: str) -> None:
    loss, _ = LOSSES[name]
    scores, other = random_lists(queries=2, length=4)
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    assert loss(scores, other, mask).item() == pytest.approx(
        loss(scores[:1], other[:1]).item() / 2, rel=1e-12
    )
    gradient = gradient_of(lambda s: loss(s, other, mask), scores)
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [1000.0, -1000.0])
def test_extreme_gaps_stay_finite(name: str, dtype: torch.dtype, gap: float) -> None:
    loss, _ = LOSSES[name]
    scores = torch.tensor([[0.0, gap, 0.0], [0.0, gap, -gap]], dtype=dtype)
    for other in (scores, -scores, torch.zeros_like(scores)):
        assert torch.isfinite(loss(scores, other))
        assert torch.isfinite(gradient_of(lambda s, o=other: loss(s, o), scores)).all()


def test_extreme_values_are_the_limits() -> None:
    fooled = torch.tensor([[0.0, 1000.0]])
    assert listwise_cross_entropy(fooled).item() == 1000.0
    assert listwise_cross_entropy(-fooled).item() == 0.0
    # The ranker is fooled by 1000 and the retriever sees nothing: softplus(1000) log 2, and log 2 squared.
    flat = torch.zeros(1, 2)
    assert adversarial_loss(flat, fooled).item() == pytest.approx(1000 * math.log(2) + math.log(2) ** 2)
    assert adversarial_loss(flat, fooled, "paper").item() == -1000.0


def test_closed_form_gradient_of_the_reference_form() -> None:
    scores, other = random_lists(queries=3, length=7)
    weights = torch.log1p(torch.exp(other - other[:, :1]))
    assert weights[:, 0].tolist() == pytest.approx([math.log(2)] * 3)
    p = torch.softmax(scores, dim=1)
    expected = (-weights + p * weights.sum(dim=1, keepdim=True)) / 3
    torch.testing.assert_close(gradient_of(lambda s: adversarial_loss(s, other), scores), expected)


def test_closed_form_gradient_of_the_paper_form() -> None:
    scores, other = random_lists(queries=3, length=7)
    p = torch.softmax(scores[:, 1:], dim=1)
    r = torch.log(torch.sigmoid(other[:, :1] - other[:, 1:]))
    j = (p * r).sum(dim=1, keepdim=True)
    gradient = gradient_of(lambda s: adversarial_loss(s, other, "paper"), scores)
    torch.testing.assert_close(gradient[:, 1:], p * (r - j) / 3)
    assert (gradient[:, 0] == 0).all()


def test_the_paper_form_cannot_learn_from_a_single_negative() -> None:
    scores, other = random_lists(queries=3, length=2)
    assert (gradient_of(lambda s: adversarial_loss(s, other, "paper"), scores) == 0).all()


def test_the_reference_form_is_lowest_at_the_normalised_weights() -> None:
    _, other = random_lists(queries=1, length=5)
    weights = torch.log1p(torch.exp(other - other[:, :1]))
    at_minimum = gradient_of(lambda s: adversarial_loss(s, other), weights.log())
    torch.testing.assert_close(at_minimum, torch.zeros_like(at_minimum), atol=1e-12, rtol=0)


def test_closed_form_gradient_of_distillation() -> None:
    student, teacher = random_lists(queries=3, length=7)
    expected = (torch.softmax(student / 0.05, 1) - torch.softmax(teacher / 2, 1)) / 0.05 / 3
    gradient = gradient_of(lambda s: distillation_loss(s, teacher, 0.05, 2.0), student)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("loss", [adversarial_loss, distillation_loss])
def test_no_gradient_reaches_the_ranker(loss: Callable) -> None:
    retriever, ranker = (scores.requires_grad_() for scores in random_lists(queries=2, length=4))
    loss(retriever, ranker).backward()
    assert retriever.grad is not None
    assert ranker.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_scores_are_computed_in_float32_whatever_the_autocast(name: str) -> None:
    loss, _ = LOSSES[name]
    scores, other = (scores.bfloat16() for scores in random_lists(queries=4, length=5))
    expected = loss(scores.float(), other.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(scores, other)
    assert found.dtype == torch.float32
    assert found.item() == expected.item()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: listwise_cross_entropy(torch.zeros(4)), ValueError, r"scores have shape \(4,\)"),
        (lambda: listwise_cross_entropy(torch.zeros(4, 1)), ValueError, r"shape \(4, 1\).*one negative"),
        (lambda: listwise_cross_entropy(torch.zeros(0, 3)), ValueError, r"shape \(0, 3\).*one query"),
        (lambda: listwise_cross_entropy(torch.zeros(4, 3).long()), TypeError, "dtype torch.int64"),
        (
            lambda: listwise_cross_entropy(torch.zeros(4, 3), torch.ones(4, 2).bool()),
            ValueError,
            r"mask has shape \(4, 2\), expected \(4, 3\)",
        ),
        (
            lambda: listwise_cross_entropy(torch.zeros(4, 3), torch.ones(4, 3)),
            TypeError,
            "mask has dtype torch.float32, expected torch.bool",
        ),
        (
            lambda: listwise_cross_entropy(torch.zeros(2, 2), torch.tensor([[True, True], [False, True]])),
            ValueError,
            "column 0 of row 1",
        ),
        (
            lambda: adversarial_loss(torch.zeros(4, 3), torch.zeros(4, 2)),
            ValueError,
            r"ranker_scores have shape \(4, 2\), expected \(4, 3\)",
        ),
        (
            lambda: adversarial_loss(torch.zeros(4, 3), torch.zeros(4, 3), "code"),
            ValueError,
            "form is 'code'",
        ),
        (
            lambda: distillation_loss(torch.zeros(4, 3), torch.zeros(4, 3), 0.0),
            ValueError,
            "student_temperature=0.0",
        ),
    ],
)
def test_errors_say_what_was_found(call: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# In-batch contrastive loss


def contrastive_loop(
    queries: Tensor,
    passages: Tensor,
    temperature: float,
    rows: list[list[int]],
    known: list[list[int]],
    mask: list[list[bool]],
) -> Tensor:
    """DPR's equation 2 over everything in the batch that is no false negative, one query after the other."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(queries)):
        positive = queries[b] @ passages[b, 0] / temperature
        denominator = [positive]
        for other in range(len(passages)):
            for column in range(passages.shape[1]):
                row = rows[other][column]
                own = (other, column) == (b, 0)
                if not own and mask[other][column] and row != rows[b][0] and row not in known[b]:
                    denominator.append(queries[b] @ passages[other, column] / temperature)
        total = total - positive + torch.logsumexp(torch.stack(denominator), 0)
    return total / len(queries)


def contrastive_batch() -> dict[str, Tensor]:
    """Four queries with two hard negatives each: a shared positive, a known positive among the negatives of
    another query, hard negatives that are another query's positive, and a masked entry."""
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    passages = torch.randn(4, 3, 8, generator=generator, dtype=torch.float64)
    return {
        "query_embeddings": queries,
        "passage_embeddings": passages,
        "passage_rows": torch.tensor([[10, 11, 20], [20, 12, -1], [10, 13, 11], [30, 20, 14]]),
        "known_positives": torch.tensor([[10, 13, -1], [20, -1, -1], [10, 31, 20], [30, -1, -1]]),
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool(),
    }


def test_contrastive_value_and_gradient_are_those_of_the_loop() -> None:
    batch = contrastive_batch()
    lists = [batch[name].tolist() for name in ("passage_rows", "known_positives", "mask")]
    gradients = []
    for loss in (
        lambda q, p: in_batch_contrastive_loss(
            **batch | {"query_embeddings": q, "passage_embeddings": p}, temperature=0.5
        ),
        lambda q, p: contrastive_loop(q, p, 0.5, *lists),
    ):
        queries = batch["query_embeddings"].clone().requires_grad_()
        passages = batch["passage_embeddings"].clone().requires_grad_()
        value = loss(queries, passages)
        value.backward()
        gradients.append((value.detach(), queries.grad, passages.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert (gradients[0][2][1, 2] == 0).all()


def test_contrastive_without_rows_counts_every_other_passage() -> None:
    batch = contrastive_batch()
    queries, passages = batch["query_embeddings"], batch["passage_embeddings"]
    scores = queries @ passages.reshape(12, 8).T
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 3, 6, 9]))
    torch.testing.assert_close(in_batch_contrastive_loss(queries, passages), expected)


def test_contrastive_ignores_what_stands_under_the_mask() -> None:
    batch = contrastive_batch()
    expected = in_batch_contrastive_loss(**batch)
    passages = batch["passage_embeddings"].clone()
    passages[1, 2] = math.nan
    queries = batch["query_embeddings"].clone().requires_grad_()
    value = in_batch_contrastive_loss(
        **batch | {"query_embeddings": queries, "passage_embeddings": passages.requires_grad_()}
    )
    value.backward()
    torch.testing.assert_close(value, expected)
    assert torch.isfinite(queries.grad).all()
    assert (passages.grad[1, 2] == 0).all()


def test_contrastive_with_extreme_scores_is_finite_and_float32() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    passages = torch.tensor([[[0.0, 0.0], [1000.0, 0.0]], [[0.0, 1000.0], [0.0, -1000.0]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = in_batch_contrastive_loss(queries, passages)
    assert loss.dtype == torch.float32
    assert loss.item() == 500.0
    loss.backward()
    assert torch.isfinite(queries.grad).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"passage_embeddings": torch.zeros(3, 3, 8)}, r"shape \(3, 3, 8\), expected \[4, .*, 8\]"),
        ({"passage_embeddings": torch.zeros(4, 8)}, r"passage_embeddings have shape \(4, 8\)"),
        ({"query_embeddings": torch.zeros(8)}, r"query_embeddings have shape \(8,\)"),
        ({"passage_rows": torch.zeros(4, 2).long()}, r"passage_rows have shape \(4, 2\), expected \(4, 3\)"),
        ({"passage_rows": None}, "known_positives are compared to passage_rows"),
        ({"known_positives": torch.zeros(3, 1).long()}, r"known_positives have shape \(3, 1\)"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_contrastive_errors_say_what_was_found(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_batch_contrastive_loss(**contrastive_batch() | changed)


# Two processes


class Encoder(torch.nn.Module):
    """Encodes queries and passages in one forward, as DistributedDataParallel wants it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(8, 8, generator=generator, dtype=torch.float64))

    def forward(self, queries: Tensor, passages: Tensor) -> tuple[Tensor, Tensor]:
        return queries @ self.weight, torch.tanh(passages @ self.weight)


def loss_and_gradient(
    model: torch.nn.Module, batch: dict[str, Tensor], gather: bool
) -> tuple[Tensor, Tensor]:
    queries, passages = model(batch["query_embeddings"], batch["passage_embeddings"])
    encoded = {"query_embeddings": queries, "passage_embeddings": passages}
    loss = in_batch_contrastive_loss(**batch | encoded, temperature=0.5, gather=gather)
    loss.backward()
    return loss.detach(), next(model.parameters()).grad


def one_of_two_processes(rank: int, folder: str) -> None:
    assert dist.get_world_size() == 2
    model = torch.nn.parallel.DistributedDataParallel(Encoder())
    half = {name: tensor[2 * rank : 2 * rank + 2] for name, tensor in contrastive_batch().items()}
    loss, gradient = loss_and_gradient(model, half, gather=True)
    del model  # what outlives its process group may wait for it forever
    dist.all_reduce(loss)
    np.savez(f"{folder}/{rank}.npz", loss=loss.numpy() / 2, gradient=gradient.numpy())
    with pytest.raises(ValueError, match=r"rank 0 \[1, 3\], rank 1 \[2, 3\]"):
        all_gather_with_gradient(torch.zeros(1 + rank, 3))


@pytest.mark.slow
def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Hard negatives, a mask, and a shared positive whose copies lie in different processes."""
    in_two_processes(one_of_two_processes, tmp_path)
    loss, gradient = loss_and_gradient(Encoder(), contrastive_batch(), gather=True)
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_allclose(found["loss"], loss.numpy(), rtol=1e-13)
        np.testing.assert_allclose(found["gradient"], gradient.numpy(), rtol=1e-11, atol=1e-13)
    apart = [
        loss_and_gradient(
            Encoder(), {k: v[start : start + 2] for k, v in contrastive_batch().items()}, False
        )[0]
        for start in (0, 2)
    ]
    assert abs(sum(apart) / 2 - loss) > 0.1, (
        "without gathering the loss must differ, or this test shows nothing"
    )
