"""Losses over lists: cross-entropy to labels and to a teacher's distribution, and MarginMSE to a teacher's scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def listwise_cross_entropy(
    scores: Tensor, mask: Tensor | None = None, positives: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the positive over its list, the training loss of the ranker.

    .. math:: L = -\\frac{1}{B} \\sum_b \\log \\frac{\\exp s_{b0}}{\\sum_i \\exp s_{bi}}

    With several positives ``P_b`` in a list, each is compared with only the negatives ``N_b``, and the list's loss is
    the mean over its positives:

    .. math:: L = -\\frac{1}{B} \\sum_b \\frac{1}{|P_b|} \\sum_{i \\in P_b}
              \\log \\frac{\\exp s_{bi}}{\\exp s_{bi} + \\sum_{j \\in N_b} \\exp s_{bj}}

    Args:
        scores: ``[B, L]``, ``L >= 2``, any float dtype, divided by the temperature already. Column 0 is a positive.
        mask: ``[B, L]`` bool, True = real entry; column 0 must be real. Masked entries are ignored, may hold any value,
            and get a gradient of exactly 0. A query whose negatives are all masked contributes 0 to the mean.
        positives: ``[B, L]`` bool, True = positive; column 0 must be one. None: only column 0.

    Returns:
        Scalar, float32 (float64 for float64 scores), the mean over the ``B`` queries.

    Raises:
        ValueError: the shapes do not fit, a positive is masked, or column 0 is not a positive.
        TypeError: ``scores`` are not floating point, or ``mask`` or ``positives`` are not bool.

    Source: AR2 (arXiv 2110.03611): the ranker maximises ``log p_phi(d+ | q; D)`` of equation 5. RocketQAv2 (arXiv
    2110.07367), equation 5, with denoised positives in addition to the labelled one.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 9.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> round(listwise_cross_entropy(scores, mask).item(), 4)
        0.4663
        >>> positives = torch.tensor([[True, True, False]])
        >>> round(listwise_cross_entropy(scores[:1], positives=positives).item(), 4)    # 2 against 0, 0 against 0
        0.41
    """
    scores, mask = checked_lists(scores, mask)
    with torch.autocast(scores.device.type, enabled=False):
        if positives is None:
            return -masked_log_softmax(scores, mask)[:, 0].mean()
        positives = checked_positives(positives, mask, scores.shape)
        negatives = ~positives if mask is None else ~positives & mask
        # With a finite fill value, loss and gradient of a list without negatives are 0, not NaN.
        against = scores.masked_fill(~negatives, torch.finfo(scores.dtype).min).logsumexp(dim=1, keepdim=True)
        margins = (scores - against).masked_fill(~positives, 0.0)
        losses = -F.logsigmoid(margins).masked_fill(~positives, 0.0)
        return (losses.sum(dim=1) / positives.sum(dim=1)).mean()


def pointwise_cross_entropy(
    scores: Tensor, mask: Tensor | None = None, positives: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of every entry, the pointwise training loss of a ranker.

    .. math:: L = -\\frac{1}{B} \\sum_b \\frac{1}{L_b} \\sum_i
              \\left[ y_{bi} \\log \\sigma(s_{bi}) + (1 - y_{bi}) \\log \\sigma(-s_{bi}) \\right]

    Unlike a listwise ranker's scores, these are logits of relevance, whose sigmoids are comparable across queries;
    their level depends on the share of positives in the lists.

    Args:
        scores: ``[B, L]``, ``L >= 2``, any float dtype.
        mask, positives: as in :func:`listwise_cross_entropy`; ``L_b`` are the real entries of a list.

    Returns:
        Scalar, float32 (float64 for float64 scores), the mean over the ``B`` queries.

    Raises:
        ValueError, TypeError: as :func:`listwise_cross_entropy`.

    Source: the ranker of RocketQA (arXiv 2010.08191), whose two-class softmax this is with one logit, and the pointwise
    ranker of RocketQAv2's ablation (arXiv 2110.07367).

    Example:
        >>> import torch
        >>> round(pointwise_cross_entropy(torch.tensor([[2.0, -1.0]])).item(), 4)
        0.2201
    """
    scores, mask = checked_lists(scores, mask)
    with torch.autocast(scores.device.type, enabled=False):
        if positives is None:
            positives = torch.zeros_like(scores, dtype=torch.bool)
            positives[:, 0] = True
        positives = checked_positives(positives, mask, scores.shape)
        if mask is None:
            mask = torch.ones_like(positives)
        scores = scores.masked_fill(~mask, 0.0)
        losses = -F.logsigmoid(torch.where(positives, scores, -scores)).masked_fill(~mask, 0.0)
        return (losses.sum(dim=1) / mask.sum(dim=1)).mean()


def distillation_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the student to the teacher's distribution over the list; the teacher is detached.

    .. math:: L = -\\frac{1}{B} \\sum_b \\sum_i \\mathrm{softmax}(t_b / T_t)_i
              \\log \\mathrm{softmax}(s_b / T_s)_i

    Its gradient in the student is that of the forward KL divergence KL(teacher || student), and
    ``(softmax(s / T_s) - softmax(t / T_t)) / (T_s B)``: there is no factor ``T^2``.

    Args:
        student_scores: ``[B, L]``, ``L >= 2``, any float dtype. Column 0 is the positive.
        teacher_scores: ``[B, L]``; no gradient flows into them.
        student_temperature: the student's scores are divided by it. 1 in the paper (raw dot products); normalised
            embeddings need about 0.05.
        teacher_temperature: the teacher's scores are divided by it; above 1 flattens the target. 1 in the paper.
        mask: ``[B, L]`` bool, True = real entry, for both lists; as in :func:`listwise_cross_entropy`.

    Returns:
        Scalar, float32 (float64 for float64 scores), the mean over the ``B`` queries.

    Raises:
        ValueError: the shapes do not fit, a positive is masked, or a temperature is not above 0.
        TypeError: scores are not floating point, or ``mask`` is not bool.

    Source: AR2 (arXiv 2110.03611), equation 12, the regulariser ``J_R = H(p_phi, p_theta)``, teacher first.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[3.0, 0.0, 0.0]])
        >>> agreeing, opposed = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])
        >>> distillation_loss(agreeing, teacher).item() < distillation_loss(opposed, teacher).item()
        True
    """
    check_temperatures(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    student, teacher, mask = _checked_models(student_scores, teacher_scores, mask)
    with torch.autocast(student.device.type, enabled=False):
        target = masked_log_softmax(teacher / teacher_temperature, mask).exp()
        cross_entropy = -(target * masked_log_softmax(student / student_temperature, mask))
        if mask is not None:
            cross_entropy = cross_entropy.masked_fill(~mask, 0.0)
        return cross_entropy.sum(dim=1).mean()


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
        mask: ``[B, L]`` bool, True = real entry, for both lists; as in :func:`listwise_cross_entropy`.

    Returns:
        Scalar, float32 (float64 for float64 scores), the mean over the ``B`` queries.

    Raises:
        ValueError, TypeError: as :func:`distillation_loss`.

    Source: Hofstätter et al. (arXiv 2010.02666), equation 2, with one negative per query.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[4.0, 1.0, 4.0]])
        >>> margin_mse_loss(student, teacher).item()    # margins 1 and .5 against 3 and 0
        2.125
    """
    check_temperatures(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    student, teacher, mask = _checked_models(student_scores, teacher_scores, mask)
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


def masked_log_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Log-softmax over the real entries of each row, and 0 at masked ones.

    A row without real entries gives zeros and zero gradients, not NaN.
    """
    if mask is None:
        return torch.log_softmax(scores, dim=1)
    filled = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.log_softmax(filled, dim=1).masked_fill(~mask, 0.0)


def checked_lists(
    scores: Tensor, mask: Tensor | None, name: str = "scores", like: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The scores in float32 (float64 is kept) and the mask, checked as :func:`listwise_cross_entropy` says."""
    if not scores.is_floating_point():
        raise TypeError(f"{name} have dtype {scores.dtype}, expected a floating-point dtype")
    if scores.dim() != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise ValueError(
            f"{name} have shape {tuple(scores.shape)}, expected [queries, 1 + negatives], "
            "with at least one query and one negative"
        )
    if like is not None and scores.shape != like.shape:
        found, expected = tuple(scores.shape), tuple(like.shape)
        raise ValueError(f"{name} have shape {found}, expected {expected} as the other model's")
    if mask is not None:
        check_mask(mask, scores.shape)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)), mask


def _checked_models(
    student: Tensor, teacher: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The scores of both models and the mask, as `checked_lists` returns them; the teacher's are detached."""
    student, mask = checked_lists(student, mask, name="student_scores")
    teacher, _ = checked_lists(teacher.detach(), None, name="teacher_scores", like=student)
    return student, teacher, mask


def check_temperatures(**temperatures: float) -> None:
    """Raise ValueError unless all are above 0."""
    if not all(value > 0 for value in temperatures.values()):
        found = ", ".join(f"{name}={value}" for name, value in temperatures.items())
        raise ValueError(f"{found}: expected numbers above 0")


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raise if a mask has another shape or dtype, or masks column 0."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}, expected torch.bool (True = real entry)")
    if mask.shape != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {tuple(shape)} as the lists")
    if not bool(mask[:, 0].all()):
        row = int((~mask[:, 0]).nonzero()[0])
        raise ValueError(f"mask is False in column 0 of row {row}: a list's positive must be a real entry")


def checked_positives(positives: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor:
    """The positives that are not masked; raises if column 0 is not positive, or shape or dtype are wrong."""
    if positives.dtype != torch.bool:
        raise TypeError(f"positives have dtype {positives.dtype}, expected torch.bool (True = positive)")
    if positives.shape != shape:
        raise ValueError(
            f"positives have shape {tuple(positives.shape)}, expected {tuple(shape)} as the lists"
        )
    if not bool(positives[:, 0].all()):
        row = int((~positives[:, 0]).nonzero()[0])
        raise ValueError(f"positives are False in column 0 of row {row}: a list begins with a positive")
    return positives if mask is None else positives & mask
