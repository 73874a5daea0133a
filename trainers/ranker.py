"""Warm-up of a ranker on lists that a retriever mines, from easy to hard ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from hf_ar2.losses import listwise_cross_entropy, pointwise_cross_entropy
from hf_ar2.losses.list_scores import ListScores, ranker_accuracy
from hf_ar2.settings.fields import setting
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.phases import Phase, PhaseCycle

RANKER_LOSSES = {"listwise": listwise_cross_entropy, "pointwise": pointwise_cross_entropy}
RANKER_LOSS_HELP = (
    "The ranker's loss: listwise cross-entropy (AR2, RocketQAv2), or pointwise binary cross-entropy (RocketQA), whose "
    "scores may be compared across queries."
)


@dataclass
class RankerConfig(JointConfig):
    """Settings of `RankerTrainer`; `JointConfig` has the rest.

    With hard negatives only, the loss of a new head may stay at that of guessing. So lists begin with random passages
    and get hard ones over the first `easy_share` of the run, and the head learns faster than the encoder.

    Example:
        >>> args = RankerConfig(output_dir="runs/ranker", learning_rate=1e-4, head_learning_rate=1e-3)
        >>> args.easy_share, args.ranker_loss
        (0.5, 'listwise')
    """

    learning_rate: float = setting(
        1e-5, "Peak learning rate of the ranker. MiniLM models need 1e-4.", paper="AR2: 1e-5", minimum=0
    )
    easy_share: float = setting(
        0.5,
        "Share of the run in which lists go from random to mined negatives. 0: mined from the start.",
        minimum=0,
        maximum=1,
    )
    ranker_loss: Literal["listwise", "pointwise"] = setting("listwise", RANKER_LOSS_HELP)

    def __post_init__(self) -> None:
        self._check("ranker_loss", self.ranker_loss, tuple(RANKER_LOSSES))
        if self.num_negatives < 1:
            raise ValueError(
                f"num_negatives={self.num_negatives}: a list needs at least one negative to rank"
            )
        super().__post_init__()


class RankerTrainer(JointTrainer):
    """Trains a ranker by cross-entropy over lists mined with a frozen retriever (AR2's D⁰), or over stored ones.

    Args:
        retriever: mines the lists and the candidates of the evaluation; it is not changed.
        ranker: a name, folder or `CrossEncoder`.
        collection: a `Collection` or what `load_collection` takes.
        loss: replaces the cross-entropy; `ListScores.retriever_scores` is None, because the retriever does not run.
        args, sampler, compute_metrics, callbacks, optimizers: as in `JointTrainer`.

    Example:
        ```python
        from hf_ar2 import RankerConfig, RankerTrainer

        trainer = RankerTrainer(
            "sentence-transformers/all-MiniLM-L6-v2",  # finds the lists
            "sentence-transformers/all-MiniLM-L6-v2",  # gets a fresh head
            args=RankerConfig(output_dir="runs/ranker", learning_rate=1e-4, head_learning_rate=1e-3, num_negatives=7),
            collection="BeIR/scifact",
        )
        trainer.train()
        trainer.save_model()  # runs/ranker/ranker
        ```
    """

    args: RankerConfig
    config_class = RankerConfig
    phases = PhaseCycle(Phase("ranker", trained=("ranker",), inputs=("pairs",)))
    method = "ranker"

    def hard_share(self) -> EasyToHard | None:
        """From none to all over the first `easy_share` of the run."""
        if self.args.easy_share == 0:
            return None
        return EasyToHard(self.planned_steps * self.global_batch, self.args.easy_share)

    def phase_loss(self, phase: str, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the positives in their list."""
        return ranker_loss(scores, self.args.ranker_loss, self.args.num_positives > 1), {}

    def diagnostics(self, phase: str, scores: ListScores) -> dict[str, Tensor]:
        """The share of lists that a positive leads."""
        return {"ranker_accuracy": ranker_accuracy(scores)}


@dataclass(frozen=True)
class EasyToHard:
    """The share of negatives from the pool, by position; it rises from 0 to 1 over `easy_share` of the run's lists."""

    lists: int
    easy_share: float

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return np.minimum(1.0, positions / self.lists / self.easy_share)


def ranker_loss(
    scores: ListScores, form: Literal["listwise", "pointwise"] = "listwise", several: bool = False
) -> Tensor:
    """The ranker's loss on labels (listwise: L_φ of AR2, the ranker's side of equation 5; L_sup of RocketQAv2).

    `several` says whether lists may have several positives; with one, the two forms are equal.
    """
    assert scores.ranker_scores is not None
    return RANKER_LOSSES[form](scores.ranker_scores, scores.mask, scores.positives if several else None)
