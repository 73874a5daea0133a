"""Contrastive training of a retriever: the warm-up before AR2 and RocketQAv2, RocketQA, PAIR and STAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hf_ar2.losses import in_batch_contrastive_loss, pairwise_contrastive_loss, passage_centric_loss
from hf_ar2.settings.fields import setting
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.joint import JointTrainer

CONTRASTIVE_LOSSES = {"softmax": in_batch_contrastive_loss, "pairwise": pairwise_contrastive_loss}


@dataclass
class RetrieverConfig(JointConfig):
    """Settings of `RetrieverTrainer`; `JointConfig` has the rest.

    With `num_negatives=0` (the default) a query's negatives are the other queries' passages, of all processes. With
    more, hard negatives stand beside them: those of `train_lists` (RocketQA's denoised ones), and with `mine` those the
    retriever finds itself; `refresh` says whether they are mined once (static, as in STAR) or every round, as in ANCE.

    Example:
        >>> args = RetrieverConfig(output_dir="runs/retriever", per_device_train_batch_size=32)
        >>> args.num_negatives, args.contrast
        (0, 'softmax')
    """

    learning_rate: float = setting(
        2e-5, "Peak learning rate.", paper="AR2: 1e-5 (README: 2e-5), on MS MARCO 1e-4"
    )
    num_negatives: int = setting(
        0,
        "Hard negatives per query beside the in-batch ones.",
        unit="passages",
        paper="AR2's warm-up, RocketQA, PAIR, STAR: 1",
        minimum=0,
    )
    steps_per_round: int | None = setting(
        None,
        "Steps between two refreshes of index and negatives. None: one pass over the training lists.",
        unit="steps",
    )
    rerank_depth: int = setting(
        0, "No ranker is evaluated here.", unit="passages", minimum=0, checked_on_resume=False
    )
    contrast: Literal["softmax", "pairwise"] = setting(
        "softmax",
        "How a positive is compared with the passages of the batch: in one softmax with all, or in a softmax of two "
        "with each.",
        paper="DPR, RocketQA, PAIR: softmax, STAR: pairwise",
    )
    cross_batch: bool = setting(
        True,
        "Negatives are the passages of all processes. False: only those of the same process.",
        paper="RocketQA: True",
    )
    passage_weight: float = setting(
        0.0, "Weight α of the passage-centric loss; the other loss gets 1 - α.", paper="PAIR: 0.1, then 0"
    )
    passage_form: Literal["reference", "paper"] = setting(
        "reference",
        "What a positive passage is compared with in the passage-centric loss. reference: other queries and hard "
        "negatives, as PAIR's code; paper: the query's negative passages.",
    )

    def __post_init__(self) -> None:
        self._check("contrast", self.contrast, tuple(CONTRASTIVE_LOSSES))
        self._check("passage_form", self.passage_form, ("reference", "paper"))
        if not 0 <= self.passage_weight <= 1:
            raise ValueError(f"passage_weight={self.passage_weight}: expected a weight between 0 and 1")
        if self.train_lists and self.num_negatives == 0:
            raise ValueError(
                "num_negatives=0 leaves the negatives of train_lists unused; expected at least 1"
            )
        if self.num_positives > 1:
            raise ValueError(
                f"num_positives={self.num_positives}: a contrastive loss has one positive per query"
            )
        super().__post_init__()


class RetrieverTrainer(JointTrainer):
    """Trains a retriever with the in-batch contrastive loss (DPR; AR2's G⁰), or as RocketQA, PAIR or STAR do.

    Args:
        retriever: a name, folder or `SentenceTransformer`.
        args: settings.
        collection: a `Collection` or what `load_collection` takes.

    Example:
        ```python
        from hf_ar2 import RetrieverConfig, RetrieverTrainer

        trainer = RetrieverTrainer(
            "sentence-transformers/all-MiniLM-L6-v2",
            args=RetrieverConfig(output_dir="runs/retriever", per_device_train_batch_size=32),
            collection="BeIR/scifact",
        )
        trainer.train()
        trainer.save_model()  # runs/retriever/retriever
        ```
    """

    trained = ("retriever",)
    method = "retriever"

    def __init__(self, retriever: Any, args: RetrieverConfig, collection: Any, **kwargs: Any) -> None:
        super().__init__(args=args, collection=collection, retriever=retriever, **kwargs)
        self.args: RetrieverConfig

    @property
    def steps_per_round(self) -> int:
        """`steps_per_round` of the settings, or one pass over the training lists."""
        return self.args.steps_per_round or super().steps_per_round

    def needs(self, phase: str) -> tuple[str, ...]:
        """Queries and passages."""
        return ("queries", "passages")

    def phase_loss(
        self, phase: str, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of the queries and, with a weight, of the passages."""
        args = self.args
        loss = contrastive_loss(self, outputs, batch, args.contrast, args.cross_batch)
        if args.passage_weight == 0:
            return loss, {}
        logs = {
            "loss/query_centric": loss,
            "loss/passage_centric": passage_centric_loss(
                **contrasted(self, outputs, batch, args.cross_batch),
                query_rows=batch["query_rows"],
                form=args.passage_form,
            ),
        }
        weight = args.passage_weight
        return (1 - weight) * logs["loss/query_centric"] + weight * logs["loss/passage_centric"], logs


def contrastive_loss(
    trainer: JointTrainer,
    outputs: dict[str, Tensor],
    batch: dict[str, Any],
    contrast: Literal["softmax", "pairwise"] = "softmax",
    cross_batch: bool = True,
) -> Tensor:
    """In-batch loss over a batch of lists, with the passages of all processes if asked; a scalar."""
    return CONTRASTIVE_LOSSES[contrast](**contrasted(trainer, outputs, batch, cross_batch))


def contrasted(
    trainer: JointTrainer, outputs: dict[str, Tensor], batch: dict[str, Any], cross_batch: bool
) -> dict[str, Any]:
    """What every contrastive loss takes, as keywords."""
    mask = batch["mask"]
    return {
        "query_embeddings": outputs["query_embeddings"],
        "passage_embeddings": outputs["passage_embeddings"].view(*mask.shape, -1),
        "temperature": trainer.retriever_temperature,
        "passage_rows": batch["passage_rows"],
        "known_positives": batch["known_positives"],
        "mask": mask,
        "gather": cross_batch and trainer.encoders.processes.world_size > 1,
    }
