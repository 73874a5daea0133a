"""Contrastive training of a retriever: the warm-up before AR2, and the baseline it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_ar2.losses import in_batch_contrastive_loss
from hf_ar2.trainers.config import JointConfig, setting
from hf_ar2.trainers.joint import JointTrainer


@dataclass
class RetrieverConfig(JointConfig):
    """Settings of `RetrieverTrainer`; `JointConfig` has the rest.

    With `num_negatives=0` (the default) a query's negatives are the other queries' passages, of all processes. With
    more, hard negatives mined by the retriever itself stand beside them; `refresh` says whether they are mined once
    (static) or every round, as in ANCE.
    """

    learning_rate: float = setting(2e-5, "Peak learning rate. AR2: 1e-5 (README 2e-5), 1e-4 on MS MARCO.")
    num_negatives: int = setting(
        0, "Mined hard negatives per query beside the in-batch ones. AR2's warm-up: 1."
    )
    steps_per_round: int | None = setting(
        None, "Steps between two refreshes of index and negatives; None: one pass over the training queries."
    )
    rerank_depth: int = setting(0, "No ranker is evaluated here.")


class RetrieverTrainer(JointTrainer):
    """Trains a retriever with the in-batch contrastive loss (DPR; AR2's G⁰).

    Args:
        retriever: a name, folder or `SentenceTransformer`.
        args: settings.
        collection: a `Collection` or what `load_collection` takes.

    Example:
        ```python
        trainer = RetrieverTrainer("sentence-transformers/all-MiniLM-L6-v2", args=config, collection="BeIR/scifact")
        trainer.train()
        ```
    """

    trained = ("retriever",)

    def __init__(self, retriever: Any, args: RetrieverConfig, collection: Any, **kwargs: Any) -> None:
        super().__init__(args=args, collection=collection, retriever=retriever, **kwargs)
        self.args: RetrieverConfig

    @property
    def steps_per_round(self) -> int:
        """`steps_per_round` of the settings, or one pass over the training queries."""
        return self.args.steps_per_round or super().steps_per_round

    def needs(self, phase: str) -> tuple[str, ...]:
        """Queries and passages."""
        return ("queries", "passages")

    def phase_loss(
        self, phase: str, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the positive among all passages of the batch, on all processes."""
        return contrastive_loss(self, outputs, batch), {}


def contrastive_loss(trainer: JointTrainer, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """DPR's in-batch loss over a batch of lists, with the passages of all processes; a scalar."""
    mask = batch["mask"]
    return in_batch_contrastive_loss(
        outputs["query_embeddings"],
        outputs["passage_embeddings"].view(*mask.shape, -1),
        temperature=trainer.retriever_temperature,
        passage_rows=batch["passage_rows"],
        known_positives=batch["known_positives"],
        mask=mask,
        gather=trainer.encoders.processes.world_size > 1,
    )
