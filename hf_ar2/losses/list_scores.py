"""The input of a custom loss: the scores of a batch of lists, with their masks and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_ar2.losses.gather import world_size


@dataclass(frozen=True)
class ListScores:
    """Scores of a batch of B lists with L passages each. Column 0 is a positive; losses compute in float32.

    Attributes:
        mask: bool `[B, L]`, True = real entry.
        positives: bool `[B, L]`, True = relevant.
        query_rows: int64 `[B]`, rows of the queries in the collection.
        passage_rows: int64 `[B, L]`, rows of the passages in the corpus; masked ones may be -1.
        known_positives: int64 `[B, P]`, rows of all passages known to be relevant to each query, and of the query
            itself if it is a passage, padded with -1.
        retriever_scores: float32 `[B, L]`, divided by `retriever_temperature`; None where the step runs no retriever.
        ranker_scores: float32 `[B, L]`, logits, 0 under the mask; None where the step runs no ranker.
        query_embeddings: float32 `[B, d]`; None where the step runs no retriever.
        passage_embeddings: float32 `[B, L, d]`; None where the step has none.
        retriever_temperature: what the retriever's scores were divided by.
        teacher_scores: float32 `[B, L]`, the scores stored with `train_lists`, 0 under the mask; None where the trainer
            does not distil them.

    Example:
        >>> import torch
        >>> from hf_ar2.losses import distillation_loss
        >>> scores = ListScores(
        ...     mask=torch.ones(1, 2, dtype=torch.bool), positives=torch.tensor([[True, False]]),
        ...     query_rows=torch.tensor([4]), passage_rows=torch.tensor([[7, 2]]), known_positives=torch.tensor([[7]]),
        ...     retriever_scores=torch.tensor([[1.0, 0.0]]), ranker_scores=torch.tensor([[3.0, 0.0]]),
        ... )
        >>> round(distillation_loss(scores.retriever_scores, scores.ranker_scores, mask=scores.mask).item(), 4)
        0.3607
    """

    mask: Tensor
    positives: Tensor
    query_rows: Tensor
    passage_rows: Tensor
    known_positives: Tensor
    retriever_scores: Tensor | None = None
    ranker_scores: Tensor | None = None
    query_embeddings: Tensor | None = None
    passage_embeddings: Tensor | None = None
    retriever_temperature: float = 1.0
    teacher_scores: Tensor | None = None


ListLoss = Callable[[ListScores], "Tensor | tuple[Tensor, dict[str, Tensor]]"]


def call_loss(loss: ListLoss, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
    """Call a custom loss; returns the loss, a scalar, and further values to log, by name.

    Raises:
        TypeError: it returned neither a scalar tensor nor a tuple of one and a dict.
    """
    result = loss(scores)
    value, logs = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(value, Tensor) or value.dim() != 0 or not isinstance(logs, dict):
        name = getattr(loss, "__name__", type(loss).__name__)
        found = (
            f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        )
        raise TypeError(
            f"loss {name} returned {found}; expected a scalar tensor, or a tuple of one and a dict of logs"
        )
    return value, logs


def contrastive_inputs(scores: ListScores, cross_batch: bool = True) -> dict[str, Any]:
    """The keyword arguments of every contrastive loss; with `cross_batch`, passages of all processes are negatives."""
    return {
        "query_embeddings": scores.query_embeddings,
        "passage_embeddings": scores.passage_embeddings,
        "temperature": scores.retriever_temperature,
        "passage_rows": scores.passage_rows,
        "known_positives": scores.known_positives,
        "mask": scores.mask,
        "gather": cross_batch and world_size() > 1,
    }


def ranker_accuracy(scores: ListScores) -> Tensor:
    """The share of lists in which the ranker puts a positive first."""
    assert scores.ranker_scores is not None
    best = scores.ranker_scores.masked_fill(~scores.mask, float("-inf")).argmax(dim=1, keepdim=True)
    return scores.positives.gather(1, best).float().mean()
