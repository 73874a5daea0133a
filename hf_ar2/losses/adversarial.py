"""AR2's adversarial loss of the retriever, as the released code computes it and as the paper prints it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ar2.losses.listwise import checked_lists, masked_log_softmax


def adversarial_loss(
    retriever_scores: Tensor,
    ranker_scores: Tensor,
    form: Literal["reference", "paper"] = "reference",
    mask: Tensor | None = None,
) -> Tensor:
    """AR2's adversarial loss of the retriever. The ranker's scores are detached.

    With retriever scores ``s`` and ranker scores ``u``, both divided by their temperatures already:

    ``form="reference"``, the released code: cross-entropy of the retriever, over the whole list, to the unnormalised
    target ``w_i = softplus(u_i - u_0) = -log sigmoid(u_0 - u_i)``, so ``w_0 = log 2``:

    .. math:: L = -\\frac{1}{B} \\sum_b \\sum_{i \\ge 0} w_{bi} \\log \\mathrm{softmax}(s_b)_i, \\qquad
              \\partial L_b / \\partial s_j = p_j \\sum_i w_i - w_j

    Its minimiser is ``p`` proportional to ``w``: a second, softer distillation.

    ``form="paper"``, equations 9 and 10: the expected reward under a softmax over only the negatives,

    .. math:: L = \\frac{1}{B} \\sum_b \\hat J_b, \\quad \\hat J_b = \\sum_{i \\ge 1} p_{bi} r_{bi}, \\quad
              r_{bi} = \\log \\sigma(u_{b0} - u_{bi}), \\qquad
              \\partial \\hat J_b / \\partial s_j = p_j (r_j - \\hat J_b)

    The positive gets no gradient. Its minimiser puts all mass on the negative that the ranker scores highest, so it
    must be combined with a loss that trains the positive (``distillation_loss``). With one negative its gradient is 0.

    Both are means over queries. The released code sums the first over the batch but averages the distillation loss
    added to it, so with B queries per device its λ has the proportion of λB / (λB + 1 − λ) here: 0.5 at B = 8 that of
    0.89.

    Args:
        retriever_scores: ``[B, L]``, ``L >= 2``, any float dtype. Column 0 is the positive.
        ranker_scores: ``[B, L]``, raw logits over their temperature; no gradient flows into them.
        form: ``"reference"`` or ``"paper"``.
        mask: ``[B, L]`` bool, True = real entry; column 0 must be real. Masked entries get a gradient of exactly 0. A
            query whose negatives are all masked contributes 0 to the mean.

    Returns:
        Scalar, float32 (float64 for float64 scores), the mean over the ``B`` queries. Never negative for
        ``"reference"``, never positive for ``"paper"``.

    Raises:
        ValueError: ``form`` is unknown, the shapes do not fit, or a positive is masked.
        TypeError: scores are not floating point, or ``mask`` is not bool.

    Source: AR2 (arXiv 2110.03611), equations 9, 10 and 14; ``co_training_wiki_train.py`` of microsoft/AR2.

    Example:
        >>> import torch
        >>> retriever = torch.tensor([[1.0, 0.5, -0.5]], requires_grad=True)
        >>> ranker = torch.tensor([[2.0, 3.0, -4.0]])
        >>> adversarial_loss(retriever, ranker, form="paper").backward()
        >>> retriever.grad[0, 0].item()
        0.0
        >>> round(adversarial_loss(retriever, ranker, form="reference").item(), 4)
        1.874
    """
    if form not in ("reference", "paper"):
        raise ValueError(f'form is {form!r}, expected "reference" or "paper"')
    retriever, mask = checked_lists(retriever_scores, mask, name="retriever_scores")
    ranker, _ = checked_lists(ranker_scores.detach(), None, name="ranker_scores", like=retriever)
    with torch.autocast(retriever.device.type, enabled=False):
        if mask is not None:
            ranker = ranker.masked_fill(~mask, 0.0)
        if form == "reference":
            weights = F.softplus(ranker - ranker[:, :1])
            terms = -weights * masked_log_softmax(retriever, mask)
        else:
            negatives_mask = None if mask is None else mask[:, 1:]
            rewards = F.logsigmoid(ranker[:, :1] - ranker[:, 1:])
            terms = masked_log_softmax(retriever[:, 1:], negatives_mask).exp() * rewards
            if negatives_mask is not None:
                terms = terms.masked_fill(~negatives_mask, 0.0)
        return terms.sum(dim=1).mean()
