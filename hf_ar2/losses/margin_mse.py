"""MarginMSE: the student learns the differences of a teacher's scores."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_ar2.losses.listwise import check_temperatures, checked_lists


def margin_mse_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Squared error of the margins between the positive and each negative; the teacher is detached.

    .. math:: L = \\frac{1}{B} \\sum_b \\frac{1}{|N_b|} \\sum_{i \\in N_b}
              \\left( \\frac{s_{b0} - s_{bi}}{T_s} - \\frac{t_{b0} - t_{bi}}{T_t} \\right)^2

    where ``N_b`` are the negatives of query b. Unlike a softmax, the margins keep the teacher's scale: choose the
    temperatures so that the student can reach it (cosine similarities differ by 2 at most).

    Args:
        student_scores: ``[B, L]``, ``L >= 2``, any float dtype. Column 0 is the positive.
        teacher_scores: ``[B, L]``; no gradient flows into them.
        student_temperature, teacher_temperature: the scores are divided by them. 1 in the paper (raw dot products, raw
            logits).
        mask: ``[B, L]`` bool, True = real entry; column 0 must be real. Masked entries are ignored, may hold any value,
            and get a gradient of exactly 0. A query whose negatives are all masked contributes 0 to the mean.

    Returns:
        Scalar, float32 (float64 for float64 scores), the mean over the ``B`` queries.

    Raises:
        ValueError: the shapes do not fit, a positive is masked, or a temperature is not above 0.
        TypeError: scores are not floating point, or ``mask`` is not bool.

    Source: Hofstätter et al. (arXiv 2010.02666), equation 2, with one negative per query.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[4.0, 1.0, 4.0]])
        >>> margin_mse_loss(student, teacher).item()    # margins 1 and .5 against 3 and 0
        2.125
    """
    check_temperatures(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    student, mask = checked_lists(student_scores, mask, name="student_scores")
    teacher, _ = checked_lists(teacher_scores.detach(), None, name="teacher_scores", like=student)
    with torch.autocast(student.device.type, enabled=False):
        if mask is not None:
            student, teacher = student.masked_fill(~mask, 0.0), teacher.masked_fill(~mask, 0.0)
        margins = (student[:, :1] - student[:, 1:]) / student_temperature
        errors = (margins - (teacher[:, :1] - teacher[:, 1:]) / teacher_temperature).square()
        if mask is None:
            return errors.mean()
        negatives = mask[:, 1:]
        counts = negatives.sum(dim=1).clamp(min=1)
        return (errors.masked_fill(~negatives, 0.0).sum(dim=1) / counts).mean()
