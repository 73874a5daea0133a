"""Warm-up of a ranker on what a retriever finds, from easy lists to hard ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from hf_ar2.losses import listwise_cross_entropy, pointwise_cross_entropy
from hf_ar2.settings.fields import setting
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.joint import JointTrainer

RANKER_LOSSES = {"listwise": listwise_cross_entropy, "pointwise": pointwise_cross_entropy}
RANKER_LOSS_HELP = (
    "The ranker's loss: listwise cross-entropy (AR2, RocketQAv2), or pointwise binary cross-entropy (RocketQA), whose "
    "scores may be compared across queries."
)


@dataclass
class RankerConfig(JointConfig):
    """Settings of `RankerTrainer`; `JointConfig` has the rest.

    A fresh head on hard negatives alone may never leave the loss of guessing. So lists begin with random passages and
    get hard ones over the first `easy_share` of the run, and the head learns faster than the encoder.

    Example:
        >>> args = RankerConfig(output_dir="runs/ranker", learning_rate=1e-4, head_learning_rate=1e-3)
        >>> args.easy_share, args.ranker_loss
        (0.5, 'listwise')
    """

    learning_rate: float = setting(
        1e-5, "Peak learning rate of the ranker. MiniLM models need 1e-4.", paper="AR2: 1e-5"
    )
    easy_share: float = setting(
        0.5, "Share of the run in which lists go from random to mined negatives. 0: mined from the start."
    )
    ranker_loss: Literal["listwise", "pointwise"] = setting("listwise", RANKER_LOSS_HELP)

    def __post_init__(self) -> None:
        self._check("ranker_loss", self.ranker_loss, tuple(RANKER_LOSSES))
        if self.num_negatives < 1:
            raise ValueError(
                f"num_negatives={self.num_negatives}: a list needs at least one negative to rank"
            )
        if not 0 <= self.easy_share <= 1:
            raise ValueError(f"easy_share={self.easy_share}: expected a share between 0 and 1")
        super().__post_init__()


class RankerTrainer(JointTrainer):
    """Trains a ranker by cross-entropy over lists mined with a frozen retriever (AR2's D⁰), or over stored ones.

    Args:
        ranker: a name, folder or `CrossEncoder`.
        retriever: mines the lists and the dev candidates; it is not changed.
        args: settings.
        collection: a `Collection` or what `load_collection` takes.

    Example:
        ```python
        from hf_ar2 import RankerConfig, RankerTrainer

        trainer = RankerTrainer(
            "sentence-transformers/all-MiniLM-L6-v2",  # gets a fresh head
            "sentence-transformers/all-MiniLM-L6-v2",  # finds the lists
            args=RankerConfig(output_dir="runs/ranker", learning_rate=1e-4, head_learning_rate=1e-3, num_negatives=7),
            collection="BeIR/scifact",
        )
        trainer.train()
        trainer.save_model()  # runs/ranker/ranker
        ```
    """

    trained = ("ranker",)
    method = "ranker"

    def __init__(
        self, ranker: Any, retriever: Any, args: RankerConfig, collection: Any, **kwargs: Any
    ) -> None:
        super().__init__(args=args, collection=collection, retriever=retriever, ranker=ranker, **kwargs)
        self.args: RankerConfig

    def needs(self, phase: str) -> tuple[str, ...]:
        """Pairs alone."""
        return ("pairs",)

    def hard_share_of(self, progress: np.ndarray) -> np.ndarray | None:
        """From none to all over the first `easy_share` of the run."""
        if self.args.easy_share == 0:
            return None
        return np.minimum(1.0, progress / self.args.easy_share)

    def phase_loss(
        self, phase: str, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the positives in their list."""
        return ranker_loss(self, outputs, batch, self.args.ranker_loss)


def ranker_loss(
    trainer: JointTrainer,
    outputs: dict[str, Tensor],
    batch: dict[str, Any],
    form: Literal["listwise", "pointwise"] = "listwise",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The ranker's loss on labels (listwise: L_φ of AR2, the ranker's side of equation 5; L_sup of RocketQAv2), and the
    share of lists that a positive leads.
    """
    mask, positives = batch["mask"], batch["positives"]
    scores = trainer.ranker_scores(outputs, mask)
    best = scores.detach().masked_fill(~mask, float("-inf")).argmax(dim=1, keepdim=True)
    accuracy = positives.gather(1, best).float().mean()
    # One positive per list takes the plainer sum, which ranks it against every other entry just the same.
    several = positives if trainer.args.num_positives > 1 else None
    return RANKER_LOSSES[form](scores, mask, several), {"ranker_accuracy": accuracy}
