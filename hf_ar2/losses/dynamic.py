"""RocketQAv2's dynamic listwise distillation between a ranker and a retriever that are trained together."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from hf_ar2.losses.listwise import check_temperatures, checked_lists, masked_log_softmax

# Arguments of `dynamic_listwise_distillation` for the released code and for the paper. The paper's equation 4 sums over
# queries while its supervised loss is a mean, which would give the divergence N times the weight in a batch of N; the
# preset takes the mean of both.
PRESETS: dict[str, dict[str, Any]] = {
    "reference": {"direction": "ranker_to_retriever", "detach_teacher": True, "reduction": "mean"},
    "paper": {"direction": "retriever_to_ranker", "detach_teacher": False, "reduction": "batchmean"},
}


def dynamic_listwise_distillation(
    retriever_scores: Tensor,
    ranker_scores: Tensor,
    direction: Literal["ranker_to_retriever", "retriever_to_ranker"] = "ranker_to_retriever",
    detach_teacher: bool = True,
    retriever_temperature: float = 1.0,
    ranker_temperature: float = 1.0,
    reduction: Literal["batchmean", "mean", "sum"] = "batchmean",
    mask: Tensor | None = None,
) -> Tensor:
    """KL divergence between the distributions of the ranker and the retriever over each list.

    With ``p = softmax(s / T_s)`` of the retriever and ``r = softmax(u / T_u)`` of the ranker, per query

    .. math:: \\mathrm{KL}(r \\| p) = \\sum_i r_i \\log (r_i / p_i) \\quad \\text{(ranker_to_retriever)}, \\qquad
              \\mathrm{KL}(p \\| r) = \\sum_i p_i \\log (p_i / r_i) \\quad \\text{(retriever_to_ranker)}

    and the gradients, for temperatures of 1 (else divided by that side's temperature):

    =======================  =======================  ========================
    direction                in ``s``                 in ``u``, not detached
    =======================  =======================  ========================
    ``ranker_to_retriever``  ``p - r``                ``r (log(r / p) - KL)``
    ``retriever_to_ranker``  ``p (log(p / r) - KL)``  ``r - p``
    =======================  =======================  ========================

    The paper has KL(p ‖ r), trains both models with it, and sums over queries. The released code has KL(r ‖ p) divided
    by the length of the list, without a gradient to the ranker, which learns only from labels.
    ``hf_ar2.losses.dynamic.PRESETS`` has both, as arguments of this function.

    Args:
        retriever_scores: ``[B, L]``, ``L >= 2``, any float dtype. Column 0 is a positive.
        ranker_scores: ``[B, L]``, any float dtype, of the same lists.
        direction: see above.
        detach_teacher: no gradient flows into the ranker's scores, in either direction.
        retriever_temperature: the retriever's scores are divided by it. 1 in the paper (raw dot products); normalised
            embeddings need about 0.05.
        ranker_temperature: the ranker's scores are divided by it. 1 in the paper.
        reduction: ``"batchmean"``: mean over queries; ``"mean"``: mean over queries of the divergence divided by the
            length of the list; ``"sum"``: sum over queries.
        mask: ``[B, L]`` bool, True = real entry; column 0 must be real. Masked entries are ignored and get a gradient
            of exactly 0. A query whose negatives are all masked contributes 0.

    Returns:
        Scalar, float32 (float64 for float64 scores), not negative up to rounding.

    Raises:
        ValueError: an unknown direction or reduction, shapes that do not fit, a masked column 0, or a temperature that
            is not above 0.
        TypeError: scores are not floating point, or ``mask`` is not bool.

    Source: RocketQAv2 (arXiv 2110.07367), equations 2 to 4; ``model/src/finetune/joint_encoder.py`` of
    PaddlePaddle/RocketQA.

    Example:
        >>> import torch
        >>> retriever = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> ranker = torch.tensor([[3.0, 0.0]], requires_grad=True)
        >>> loss = dynamic_listwise_distillation(retriever, ranker)
        >>> round(loss.item(), 4)
        0.1698
        >>> loss.backward()
        >>> retriever.grad.tolist()[0][0] < 0, ranker.grad
        (True, None)
        >>> round(dynamic_listwise_distillation(retriever, ranker, **PRESETS["paper"]).item(), 4)
        0.2732
    """
    if direction not in ("ranker_to_retriever", "retriever_to_ranker"):
        raise ValueError(
            f'direction is {direction!r}, expected "ranker_to_retriever" or "retriever_to_ranker"'
        )
    if reduction not in ("batchmean", "mean", "sum"):
        raise ValueError(f'reduction is {reduction!r}, expected "batchmean", "mean" or "sum"')
    check_temperatures(retriever_temperature=retriever_temperature, ranker_temperature=ranker_temperature)
    retriever, mask = checked_lists(retriever_scores, mask, name="retriever_scores")
    ranker = ranker_scores.detach() if detach_teacher else ranker_scores
    ranker, _ = checked_lists(ranker, None, name="ranker_scores", like=retriever)
    with torch.autocast(retriever.device.type, enabled=False):
        p = masked_log_softmax(retriever / retriever_temperature, mask)
        r = masked_log_softmax(ranker / ranker_temperature, mask)
        of, to = (r, p) if direction == "ranker_to_retriever" else (p, r)
        divergence = kl_divergence(of, to)
        if reduction == "mean":
            lengths = retriever.shape[1] if mask is None else mask.sum(dim=1)
            divergence = divergence / lengths
        return divergence.sum() if reduction == "sum" else divergence.mean()


def kl_divergence(of: Tensor, to: Tensor) -> Tensor:
    """KL(of ‖ to) of each list, float ``[B]``, from log-probabilities of `masked_log_softmax`."""
    # Masked entries are 0 in both and add exp(0) * 0.
    return (of.exp() * (of - to)).sum(dim=1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of each list in nats, float ``[B]``, from log-probabilities of `masked_log_softmax`."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)
