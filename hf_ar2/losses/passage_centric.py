"""PAIR's passage-centric loss: a positive passage must be closer to its query than to other passages."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ar2.losses.contrastive import among, batch_scores, check_embeddings
from hf_ar2.losses.gather import all_gather, all_gather_with_gradient, world_size


def passage_centric_loss(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    *,
    form: Literal["reference", "paper"] = "reference",
    temperature: float = 1.0,
    passage_rows: Tensor | None = None,
    known_positives: Tensor | None = None,
    query_rows: Tensor | None = None,
    mask: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Cross-entropy of each positive passage's own query over that query and other texts of the batch.

    .. math:: L = -\\frac{1}{B} \\sum_b \\log \\frac{\\exp(d_{b0} \\cdot q_b / T)}
              {\\exp(d_{b0} \\cdot q_b / T) + \\sum_{x \\in X_b} \\exp(d_{b0} \\cdot x / T)}

    ``form="paper"``: ``X_b`` are the negative passages of query b, as in `in_batch_contrastive_loss`: other queries'
    positives and all hard negatives. The paper defines the loss for one list; using the batch's other passages is our
    reading.

    ``form="reference"``, the released code: ``X_b`` are the other *queries* and all hard negatives, but no positive
    passage of another query.

    Both exclude false negatives: copies of the positive and known positives of query b, and in the second form copies
    of query b and queries for which the passage is known to be relevant. PAIR trains its first stage on ``(1 - α) *
    query-centric + α * passage-centric`` with α = 0.1, its second on the query-centric loss.

    Args:
        query_embeddings: ``[B, d]``, any float dtype; one encoder for queries and passages in the paper.
        passage_embeddings: ``[B, L, d]``, ``L >= 1``. Column 0 is the query's positive, the others are hard negatives.
        form: ``"reference"`` or ``"paper"``.
        temperature, passage_rows, known_positives, mask: as in :func:`in_batch_contrastive_loss`.
        query_rows: ``[B]`` int64, the queries' rows, to recognise copies of a query.
        gather: also use the queries and passages of all other processes, as in :func:`in_batch_contrastive_loss`.

    Returns:
        Scalar, float32 (float64 for float64 embeddings), the mean over the ``B`` local positives.

    Raises:
        ValueError: as :func:`in_batch_contrastive_loss`; an unknown form, or ``query_rows`` of another shape.
        TypeError: as :func:`in_batch_contrastive_loss`.

    Source: PAIR (Findings of ACL 2021, arXiv 2108.06027), section 4; ``finetune/dual_encoder.py`` of its released code.

    Example:
        >>> import torch
        >>> queries, positives = torch.eye(3)[:2], torch.eye(3)[:2]
        >>> passages = torch.stack([positives, torch.eye(3)[[2, 2]]], dim=1)     # orthogonal to everything else
        >>> round(passage_centric_loss(queries, passages, form="paper").item(), 4)    # log(1 + 3 / e)
        0.7437
        >>> passages[:, 1] = positives                       # a hard negative equal to the positive
        >>> passage_centric_loss(queries, passages, form="paper").item() > 0.9
        True
    """
    if form not in ("reference", "paper"):
        raise ValueError(f'form is {form!r}, expected "reference" or "paper"')
    if query_rows is not None and query_rows.shape != query_embeddings.shape[:1]:
        found, expected = tuple(query_rows.shape), tuple(query_embeddings.shape[:1])
        raise ValueError(f"query_rows have shape {found}, expected {expected}, one for each query")
    check_embeddings(query_embeddings, passage_embeddings, temperature, passage_rows, known_positives, mask)
    scores, place, excluded = batch_scores(
        passage_embeddings[:, 0], passage_embeddings, temperature, passage_rows, known_positives, mask, gather
    )
    with torch.autocast(scores.device.type, enabled=False):
        queries = query_embeddings.to(scores.dtype)
        positives = passage_embeddings[:, 0].to(scores.dtype)
        own = (positives * queries).sum(dim=1, keepdim=True) / temperature
        # The query of a positive, the target, takes the place of the positive itself.
        scores = scores.scatter(1, place[:, None], own)
        if excluded is None:
            excluded = torch.zeros_like(scores, dtype=torch.bool)
        if form == "reference":
            list_size = passage_embeddings.shape[1]
            excluded = excluded | (torch.arange(scores.shape[1], device=scores.device) % list_size == 0)
            excluded = excluded.scatter(1, place[:, None], False)
            everyone = all_gather_with_gradient(queries) if gather else queries
            scores = torch.cat([scores, positives @ everyone.T / temperature], dim=1)
            own_queries = _own_queries(place // list_size, passage_rows, known_positives, query_rows, gather)
            excluded = torch.cat([excluded, own_queries], dim=1)
        return F.cross_entropy(scores.masked_fill(excluded, float("-inf")), place)


def _own_queries(
    first: Tensor,
    passage_rows: Tensor | None,
    known_positives: Tensor | None,
    query_rows: Tensor | None,
    gather: bool,
) -> Tensor:
    """The queries for which a positive is relevant, which must not be its negatives: bool ``[B, W * B]``.

    ``first`` is the position of each positive's query among those of all processes, int64 ``[B]``.
    """

    def all_of(tensor: Tensor) -> Tensor:
        return all_gather(tensor) if gather else tensor

    batch = len(first)
    own = torch.arange(batch * (world_size() if gather else 1), device=first.device) == first[:, None]
    if query_rows is not None:
        own = own | (all_of(query_rows) == query_rows[:, None])
    if passage_rows is not None:
        positives = passage_rows[:, 0].contiguous()
        own = own | (all_of(positives) == positives[:, None])
        if known_positives is not None:
            known = all_of(known_positives)
            own = own | among(positives.expand(len(known), batch), known).T
    return own
