"""LTRe's loss: pairs of a relevant and another retrieved passage, weighted by the effect of swapping them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Weighting = Literal["lambda_mrr", "lambda_ndcg", "ranknet"]
WEIGHTINGS = ("lambda_mrr", "lambda_ndcg", "ranknet")


def retrieval_pairwise_loss(
    scores: Tensor,
    relevant: Tensor,
    weighting: Weighting = "lambda_mrr",
    cut: int = 200,
    mask: Tensor | None = None,
) -> Tensor:
    """Weighted pairwise logistic loss over retrieved lists.

    .. math:: L = \\frac{1}{B} \\sum_b \\frac{1}{|P_b| |N_b|} \\sum_{p \\in P_b} \\sum_{n \\in N_b}
              |v(r_p) - v(r_n)| \\log (1 + \\exp(s_n - s_p))

    with the relevant passages ``P_b`` and the others ``N_b`` of list b, and the rank ``r`` of a passage, its column +
    1. The value ``v`` of a rank r within ``cut`` is 1/r (``lambda_mrr``) or 1/log2(1 + r) (``lambda_ndcg``), beyond it
    0. ``ranknet`` gives all pairs the weight 1.

    For one relevant passage the weight is the change of MRR (or DCG) when the two are swapped. Positives that the
    search missed are appended to the list; with ``cut`` at the depth of the search they have the value 0.

    Args:
        scores: ``[B, L]``, any float dtype, divided by the temperature already, in the retrieved order.
        relevant: ``[B, L]`` bool, True = relevant.
        weighting: see above.
        cut: the last rank with a value; at least 1.
        mask: ``[B, L]`` bool, True = real entry. Masked entries keep their rank, are ignored, may hold any value, and
            get a gradient of exactly 0.

    Returns:
        Scalar, float32 (float64 for float64 scores), the mean over the B lists; a list without a pair counts as 0.

    Raises:
        ValueError: shapes that do not fit, an unknown weighting, or a ``cut`` below 1.
        TypeError: ``scores`` are not floating point, or ``relevant`` or ``mask`` are not bool.

    Source: LTRe (arXiv 2010.10469); ADORE (arXiv 2104.08051), whose released code (jingtaozhan/DRhard) sums each pair
    twice and divides by twice their number, and whose ``log(1 + exp)`` overflows for gaps above 88.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[2.0, 2.0, 1.0]])                       # the relevant passage came second
        >>> loss = retrieval_pairwise_loss(scores, torch.tensor([[False, True, False]]))
        >>> round(loss.item(), 4)                           # (1/2 log 2 + 1/6 log(1 + 1/e)) / 2
        0.1994
    """
    _check(scores, relevant, weighting, cut, mask)
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores if scores.dtype == torch.float64 else scores.float()
        real = torch.ones_like(relevant) if mask is None else mask
        scores = scores.masked_fill(~real, 0.0)
        positive, negative = relevant & real, ~relevant & real
        # The columns of the relevant entries of each list: [B, P].
        count = int(positive.sum(dim=1).max()) if len(positive) else 0
        columns = positive.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        pairs = positive.gather(1, columns)[:, :, None] & negative[:, None, :]
        losses = F.softplus(scores[:, None, :] - scores.gather(1, columns)[:, :, None])
        if weighting != "ranknet":
            values = _values(scores, weighting, cut)
            losses = losses * (values[columns][:, :, None] - values).abs()
        number = pairs.sum(dim=(1, 2))
        lists = losses.masked_fill(~pairs, 0.0).sum(dim=(1, 2)) / number.clamp(min=1)
        return lists.sum() / max(1, len(lists))


def _values(scores: Tensor, weighting: str, cut: int) -> Tensor:
    """The value of each rank, ``[L]``."""
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    values = 1 / ranks if weighting == "lambda_mrr" else 1 / torch.log2(1 + ranks)
    return values.masked_fill(ranks > cut, 0.0)


def _check(scores: Tensor, relevant: Tensor, weighting: str, cut: int, mask: Tensor | None) -> None:
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {list(scores.shape)}, expected [batch, list]")
    if not scores.is_floating_point():
        raise TypeError(f"scores are {scores.dtype}, expected a floating point dtype")
    for name, flags in (("relevant", relevant), ("mask", mask)):
        if flags is None:
            continue
        if flags.dtype != torch.bool:
            raise TypeError(f"{name} is {flags.dtype}, expected torch.bool")
        if flags.shape != scores.shape:
            raise ValueError(f"{name} has shape {list(flags.shape)}, expected {list(scores.shape)}")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}: expected one of {', '.join(WEIGHTINGS)}")
    if cut < 1:
        raise ValueError(f"cut={cut}: expected at least 1, else every weight is 0")
