"""Losses on score tensors: a positive in column 0, negatives after it, an optional mask of real entries.

All compute in float32 and in log space, under autocast too, and return a scalar, by default the mean over the queries
of the batch. They import only torch.
"""

from __future__ import annotations

from hf_ar2.losses.adversarial import adversarial_loss
from hf_ar2.losses.contrastive import in_batch_contrastive_loss, pairwise_contrastive_loss
from hf_ar2.losses.dynamic import dynamic_listwise_distillation
from hf_ar2.losses.gather import all_gather_with_gradient
from hf_ar2.losses.list_scores import ListScores
from hf_ar2.losses.listwise import (
    distillation_loss,
    listwise_cross_entropy,
    margin_mse_loss,
    pointwise_cross_entropy,
)
from hf_ar2.losses.matryoshka import matryoshka_loss
from hf_ar2.losses.passage_centric import passage_centric_loss
from hf_ar2.losses.retrieval import retrieval_pairwise_loss

__all__ = [
    "ListScores",
    "adversarial_loss",
    "all_gather_with_gradient",
    "distillation_loss",
    "dynamic_listwise_distillation",
    "in_batch_contrastive_loss",
    "listwise_cross_entropy",
    "margin_mse_loss",
    "matryoshka_loss",
    "pairwise_contrastive_loss",
    "passage_centric_loss",
    "pointwise_cross_entropy",
    "retrieval_pairwise_loss",
]
