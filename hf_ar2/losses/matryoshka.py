"""Matryoshka training: the loss of an embedding's first dimensions as well, so that it can be cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ar2.losses.list_scores import ListScores

Loss = Callable[[ListScores], tuple[Tensor, dict[str, Tensor]]]


def cut_embeddings(scores: ListScores, dim: int, *, normalise: bool) -> ListScores:
    """The scores of embeddings `[B, d]` and `[B, L, d]` that are cut to their first `dim` dimensions.

    With `normalise`, cut embeddings get unit length again, as cosine similarity needs.
    """
    queries, passages = scores.query_embeddings, scores.passage_embeddings
    assert queries is not None and passages is not None
    if dim == queries.shape[-1]:
        return scores
    queries, passages = queries[..., :dim], passages[..., :dim]
    if normalise:
        queries, passages = F.normalize(queries, dim=-1), F.normalize(passages, dim=-1)
    products = torch.einsum("bd,bld->bl", queries, passages) / scores.retriever_temperature
    return replace(scores, query_embeddings=queries, passage_embeddings=passages, retriever_scores=products)


def matryoshka_loss(
    loss: Loss, scores: ListScores, dims: Sequence[int] | None, *, normalise: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of a loss over the widths `dims` and the full one, all with the same weight.

    sentence-transformers' `MatryoshkaLoss` is the sum over the widths, that is, this mean times their number.

    Args:
        loss: from scores to a scalar and what to log.
        scores, normalise: as in `cut_embeddings`.
        dims: widths, each at most the full one. Without any, and where there are no embeddings (a step of the ranker),
            the result is that of `loss`.

    Returns:
        The mean, and the means of what `loss` logs, with the loss of every cut width as `loss/at_<dim>`.

    Source: Matryoshka Representation Learning (Kusupati et al., NeurIPS 2022, arXiv 2205.13147), equation 1.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[3.0, 4.0, 0.0]])
        >>> scores = ListScores(
        ...     mask=torch.ones(1, 1, dtype=torch.bool), positives=torch.ones(1, 1, dtype=torch.bool),
        ...     query_rows=torch.tensor([0]), passage_rows=torch.tensor([[0]]), known_positives=torch.tensor([[0]]),
        ...     query_embeddings=embeddings, passage_embeddings=embeddings[:, None],
        ...     retriever_scores=torch.tensor([[25.0]]),
        ... )
        >>> matryoshka_loss(lambda s: (s.retriever_scores.mean(), {}), scores, [1], normalise=False)[0].item()
        17.0
    """
    if not dims or scores.query_embeddings is None or scores.passage_embeddings is None:
        return loss(scores)
    full = scores.query_embeddings.shape[-1]
    widths = sorted({*dims, full}, reverse=True)
    found = [loss(cut_embeddings(scores, dim, normalise=normalise)) for dim in widths]
    means = {name: torch.stack([logs[name] for _, logs in found]).mean() for name in found[0][1]}
    cut = {f"loss/at_{dim}": value for dim, (value, _) in zip(widths, found, strict=True) if dim < full}
    return torch.stack([value for value, _ in found]).mean(), means | cut
