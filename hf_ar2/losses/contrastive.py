"""Contrastive losses of a retriever over in-batch, hard and cross-process negatives, in one softmax or in pairs."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_ar2.losses.gather import all_gather, all_gather_with_gradient, process_rank, world_size
from hf_ar2.losses.listwise import check_mask


def in_batch_contrastive_loss(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    *,
    temperature: float = 1.0,
    passage_rows: Tensor | None = None,
    known_positives: Tensor | None = None,
    mask: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Cross-entropy of each query's positive over all passages of the batch, optionally those of all processes.

    .. math:: L = -\\frac{1}{B} \\sum_b \\log \\frac{\\exp(q_b \\cdot d_{b0} / T)}
              {\\sum_{i \\in N_b} \\exp(q_b \\cdot d_i / T)}

    where ``N_b`` are all ``W * B * L`` passages of ``W`` processes, without masked entries and without false negatives
    of query b: other copies of its positive, and its known positives. These are recognised by row number. A true
    negative that occurs twice in the batch counts twice.

    Args:
        query_embeddings: ``[B, d]``, any float dtype; scores are dot products, so normalise for cosine.
        passage_embeddings: ``[B, L, d]``, ``L >= 1``. Column 0 is the query's positive, the others are hard negatives.
        temperature: scores are divided by it. 1 in the paper (raw dot products), about 0.05 when normalised.
        passage_rows: ``[B, L]`` int64, the rows of the passages in the corpus. Without it false negatives are not
            recognised.
        known_positives: ``[B, P]`` int64, rows of all judged positives of each query, padded with -1.
        mask: ``[B, L]`` bool, True = real entry; column 0 must be real.
        gather: also use the passages of all other processes as negatives, with gradient; B and L must be the same on
            all processes. The mean is over the local queries: averaged by ``DistributedDataParallel``, loss and
            gradients are those of the whole batch in one process.

    Returns:
        Scalar, float32 (float64 for float64 embeddings), the mean over the ``B`` local queries.

    Raises:
        ValueError: shapes do not fit, a positive is masked, ``temperature`` is not above 0, or
            ``known_positives`` comes without ``passage_rows``.
        TypeError: embeddings are not floating point, or ``mask`` is not bool.

    Source: DPR (arXiv 2004.04906), equation 2, the objective of AR2's warmed-up retriever; cross-batch
    negatives: RocketQA (arXiv 2010.08191).

    Example:
        >>> import torch
        >>> queries = torch.eye(2)
        >>> passages = torch.stack([torch.eye(2), torch.zeros(2, 2)], dim=1)        # a hard negative each
        >>> round(in_batch_contrastive_loss(queries, passages, temperature=0.5).item(), 4)
        0.3408
        >>> rows = torch.tensor([[7, 3], [8, 7]])       # query 0's positive is also query 1's hard negative
        >>> round(in_batch_contrastive_loss(queries, passages, temperature=0.5, passage_rows=rows).item(), 4)
        0.2901
    """
    scores, positive, excluded = batch_scores(
        query_embeddings, passage_embeddings, temperature, passage_rows, known_positives, mask, gather
    )
    with torch.autocast(scores.device.type, enabled=False):
        if excluded is not None:
            scores = scores.masked_fill(excluded, float("-inf"))
        return F.cross_entropy(scores, positive)


def pairwise_contrastive_loss(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    *,
    temperature: float = 1.0,
    passage_rows: Tensor | None = None,
    known_positives: Tensor | None = None,
    mask: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Mean two-way cross-entropy of each query's positive and every other passage of the batch.

    .. math:: L = \\frac{1}{\\sum_b |N_b|} \\sum_b \\sum_{i \\in N_b}
              \\log (1 + \\exp((q_b \\cdot d_i - q_b \\cdot d_{b0}) / T))

    where ``N_b`` are all passages of the batch without false negatives, as in :func:`in_batch_contrastive_loss`: the
    other queries' positives (random negatives), and the hard negatives of all queries. All pairs have the same weight,
    as in the released code (the paper weights hard against random ones), so in a batch of 256 with one hard negative
    each, 1 pair in 511 has a query's own hard negative.

    Args:
        query_embeddings, passage_embeddings, temperature, passage_rows, known_positives, mask: as in
            :func:`in_batch_contrastive_loss`.
        gather: also use the passages of all other processes, with gradient. The mean is over the pairs of all
            processes: averaged by ``DistributedDataParallel``, loss and gradients are those of the whole batch in one
            process.

    Returns:
        Scalar, float32 (float64 for float64 embeddings); 0 if there is no pair.

    Raises:
        ValueError, TypeError: as :func:`in_batch_contrastive_loss`.

    Source: STAR (arXiv 2104.08051); ``inbatch_train`` in ``model.py`` of jingtaozhan/DRhard.

    Example:
        >>> import torch
        >>> queries = torch.eye(2)
        >>> passages = torch.stack([torch.eye(2), torch.zeros(2, 2)], dim=1)        # a hard negative each
        >>> round(pairwise_contrastive_loss(queries, passages).item(), 4)           # log(1 + 1 / e), six times
        0.3133
    """
    scores, positive, excluded = batch_scores(
        query_embeddings, passage_embeddings, temperature, passage_rows, known_positives, mask, gather
    )
    with torch.autocast(scores.device.type, enabled=False):
        pairs = torch.ones_like(scores, dtype=torch.bool) if excluded is None else ~excluded
        pairs = pairs.scatter(1, positive[:, None], False)
        margins = scores - scores.gather(1, positive[:, None])
        total = F.softplus(margins).masked_fill(~pairs, 0.0).sum()
        count = pairs.sum().to(total.dtype)
        if gather and world_size() > 1:
            dist.all_reduce(count)
            total = total * world_size()
        return total / count.clamp(min=1)


def batch_scores(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    temperature: float,
    passage_rows: Tensor | None,
    known_positives: Tensor | None,
    mask: Tensor | None,
    gather: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores of each query with all ``N = W * B * L`` passages, with arguments as :func:`in_batch_contrastive_loss`.

    Returns:
        Scores over the temperature, float ``[B, N]``; the column of each query's own positive, int64 ``[B]``; and the
        other entries that must not count as negatives, bool ``[B, N]``, or None if there are none.
    """
    check_embeddings(query_embeddings, passage_embeddings, temperature, passage_rows, known_positives, mask)
    dtype = torch.promote_types(query_embeddings.dtype, torch.float32)
    with torch.autocast(query_embeddings.device.type, enabled=False):
        passages = passage_embeddings.to(dtype)
        if mask is not None:  # masked entries may be NaN, and 0 times NaN would reach the query's gradient
            passages = passages.masked_fill(~mask[:, :, None], 0.0)
        rows = passage_rows
        batch, list_size, dim = passages.shape
        first = torch.arange(batch, device=passages.device)
        if gather:
            first = first + process_rank() * batch
            passages = all_gather_with_gradient(passages)
            rows = None if rows is None else all_gather(rows)
            mask = None if mask is None else all_gather(mask)
        positive = first * list_size  # the column of each query's own positive
        scores = query_embeddings.to(dtype) @ passages.reshape(-1, dim).T / temperature
        return scores, positive, _false_negatives(positive, scores.shape, rows, known_positives, mask)


def _false_negatives(
    positive: Tensor,
    shape: torch.Size,
    rows: Tensor | None,
    known_positives: Tensor | None,
    mask: Tensor | None,
) -> Tensor | None:
    """Entries that must not count as negatives, bool ``[B, N]``; the query's own positive is never among them."""
    if rows is None and mask is None:
        return None
    excluded = torch.zeros(shape, dtype=torch.bool, device=positive.device)
    if mask is not None:
        excluded |= ~mask.reshape(1, -1)
    if rows is not None:
        rows = rows.reshape(-1)
        excluded |= rows == rows[positive][:, None]
        if known_positives is not None:
            excluded |= among(rows.expand(shape), known_positives)
    return excluded.scatter(1, positive[:, None], False)


def among(rows: Tensor, known: Tensor) -> Tensor:
    """Which of ``rows``, int64 ``[B, N]``, are in the same row of ``known``, int64 ``[B, P]`` padded with -1."""
    if known.shape[1] == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    # Binary search needs memory for [B, N] values, however many rows are known.
    known, rows = known.sort(dim=1).values.contiguous(), rows.contiguous()
    place = torch.searchsorted(known, rows).clamp(max=known.shape[1] - 1)
    return (known.gather(1, place) == rows) & (rows >= 0)


def check_embeddings(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    temperature: float,
    passage_rows: Tensor | None,
    known_positives: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Raise the errors of :func:`in_batch_contrastive_loss`."""
    for name, tensor in (("query_embeddings", query_embeddings), ("passage_embeddings", passage_embeddings)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} have dtype {tensor.dtype}, expected a floating-point dtype")
    if query_embeddings.dim() != 2 or query_embeddings.shape[0] == 0:
        raise ValueError(
            f"query_embeddings have shape {tuple(query_embeddings.shape)}, expected [queries, dim]"
        )
    batch, dim = query_embeddings.shape
    found = tuple(passage_embeddings.shape)
    if len(found) != 3 or found[0] != batch or found[1] < 1 or found[2] != dim:
        raise ValueError(
            f"passage_embeddings have shape {found}, expected [{batch}, 1 + hard negatives, {dim}] "
            f"to go with query_embeddings of shape {(batch, dim)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
    if passage_rows is not None and passage_rows.shape != passage_embeddings.shape[:2]:
        raise ValueError(f"passage_rows have shape {tuple(passage_rows.shape)}, expected {found[:2]}")
    if known_positives is not None:
        if passage_rows is None:
            raise ValueError("known_positives are compared to passage_rows, which are missing: pass both")
        if known_positives.dim() != 2 or known_positives.shape[0] != batch:
            shape = tuple(known_positives.shape)
            raise ValueError(
                f"known_positives have shape {shape}, expected [{batch}, positives], padded with -1"
            )
    if mask is not None:
        check_mask(mask, passage_embeddings.shape[:2])
