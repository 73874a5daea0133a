"""STAR's contrastive loss: each query's positive is compared with one passage of the batch at a time."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_ar2.losses.contrastive import batch_scores
from hf_ar2.losses.gather import world_size


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
