"""Contrastive training of a retriever: the warm-up before AR2 and RocketQAv2, RocketQA, PAIR and STAR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.utils import logging

from hf_ar2.collections import Collection, Source
from hf_ar2.losses import (
    dynamic_listwise_distillation,
    in_batch_contrastive_loss,
    margin_mse_loss,
    pairwise_contrastive_loss,
    passage_centric_loss,
)
from hf_ar2.losses.list_scores import ListScores, contrastive_inputs
from hf_ar2.settings.fields import setting
from hf_ar2.terminal import counted
from hf_ar2.trainers.arguments import TrainerOptions
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.phases import Phase, PhaseCycle
from hf_ar2.training_lists.stored import OF_COLLECTION

logger = logging.get_logger(__name__)

DISTILLATIONS = ("none", "kl", "margin_mse")
CONTRASTIVE_LOSSES = {"softmax": in_batch_contrastive_loss, "pairwise": pairwise_contrastive_loss}


@dataclass
class RetrieverConfig(JointConfig):
    """Settings of `RetrieverTrainer`; `JointConfig` has the rest.

    With `num_negatives=0` (the default) a query's negatives are the other queries' passages, of all processes. With
    more, hard negatives are added: those of `train_lists` (RocketQA's denoised ones, or with `collection` the
    given ones), and with `mine` those the retriever finds itself; `refresh` says whether they are mined once (static,
    as in STAR) or every round, as in ANCE.

    Example:
        >>> args = RetrieverConfig(output_dir="runs/retriever", per_device_train_batch_size=32)
        >>> args.num_negatives, args.contrast
        (0, 'softmax')
    """

    learning_rate: float = setting(
        2e-5, "Peak learning rate.", paper="AR2: 1e-5 (README: 2e-5), on MS MARCO 1e-4", minimum=0
    )
    num_negatives: int = setting(
        0,
        "Hard negatives per query in addition to the in-batch ones.",
        unit="passages",
        paper="AR2's warm-up, RocketQA, PAIR, STAR: 1",
        minimum=0,
    )
    steps_per_round: int | None = setting(
        None,
        "Steps between two refreshes of index and negatives. None: one pass over the training lists.",
        unit="steps",
        minimum=1,
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
        0.0,
        "Weight α of the passage-centric loss; the other loss gets 1 - α.",
        paper="PAIR: 0.1, then 0",
        minimum=0,
        maximum=1,
    )
    passage_form: Literal["reference", "paper"] = setting(
        "reference",
        "What a positive passage is compared with in the passage-centric loss. reference: other queries and hard "
        "negatives, as PAIR's code; paper: the query's negative passages.",
    )

    distillation: Literal["none", "kl", "margin_mse"] = setting(
        "none",
        "Train towards the scores stored in train_lists, of any teacher, with mine=False: kl (KL divergence of the "
        "softmax over a list) or margin_mse (squared error of the margins to the positive). none: contrastive loss.",
        paper="RocketQAv2, AR2: kl, Hofstätter et al.: margin_mse",
    )
    teacher_temperature: float = setting(
        1.0, "Divides the stored teacher scores.", paper="RocketQAv2, Hofstätter et al.: 1", above=0
    )
    contrastive_weight: float = setting(
        0.0, "With distillation: weight of the contrastive loss that is added to it.", minimum=0
    )

    def __post_init__(self) -> None:
        self._check("distillation", self.distillation, DISTILLATIONS)
        self._check_distillation()
        if self.train_lists and self.num_negatives == 0:
            raise ValueError(
                "num_negatives=0 leaves the negatives of train_lists unused; expected at least 1"
            )
        if self.num_positives > 1:
            raise ValueError(
                f"num_positives={self.num_positives}: a contrastive loss has one positive per query"
            )
        super().__post_init__()

    @property
    def distils_stored_scores(self) -> bool:
        """Whether `distillation` is on."""
        return self.distillation != "none"

    def _check_distillation(self) -> None:
        if self.distils_stored_scores:
            if not self.train_lists or self.mine:
                raise ValueError(
                    f"distillation={self.distillation!r} learns from stored scores, which mined lists do not have: "
                    "name folders in train_lists and set mine=False"
                )
            if self.passage_weight and not self.contrastive_weight:
                raise ValueError(
                    f"passage_weight={self.passage_weight} is a part of the contrastive loss, which distillation "
                    "replaces; set contrastive_weight above 0"
                )
        elif self.contrastive_weight or self.teacher_temperature != 1:
            raise ValueError(
                "contrastive_weight and teacher_temperature belong to distillation: set it to kl or margin_mse"
            )


class RetrieverTrainer(JointTrainer):
    """Trains a retriever with the in-batch contrastive loss (DPR; AR2's G⁰), or as RocketQA, PAIR or STAR do.

    With `distillation` it learns from scores that were stored with the lists, see `hf-ar2 score`.

    Args:
        retriever: a name, folder or `SentenceTransformer`.
        collection: a `Collection` or what `load_collection` takes.
        loss: replaces the contrastive loss, the passage-centric one and the distillation.
        args, sampler, compute_metrics, callbacks, optimizers: as in `JointTrainer`.

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

    args: RetrieverConfig
    config_class = RetrieverConfig
    phases = PhaseCycle(Phase("retriever", trained=("retriever",), inputs=("queries", "passages")))
    method = "retriever"

    def __init__(
        self,
        retriever: SentenceTransformer | str | Path,
        args: RetrieverConfig,
        collection: Collection | Source,
        **options: Unpack[TrainerOptions],
    ) -> None:
        super().__init__(retriever, None, args, collection, **options)
        if self.collection.lists is not None and not args.train_lists:
            logger.warning_once(
                f"{self.collection.name} came with {counted(len(self.collection.lists), 'lists')} of negatives, which "
                f"are not used; to train on them set train_lists=[{OF_COLLECTION!r}], mine=False and num_negatives"
            )

    def phase_loss(self, phase: str, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The distillation from stored scores, or the contrastive loss, or their weighted sum."""
        args = self.args
        if not args.distils_stored_scores:
            return self._contrastive_loss(scores)
        student, teacher, divisor = scores.retriever_scores, scores.teacher_scores, args.teacher_temperature
        # The student's scores are already divided by their temperature.
        assert student is not None and teacher is not None
        if args.distillation == "margin_mse":
            distillation = margin_mse_loss(student, teacher, teacher_temperature=divisor, mask=scores.mask)
        else:
            distillation = dynamic_listwise_distillation(
                student, teacher, ranker_temperature=divisor, mask=scores.mask
            )
        logs = {"loss/distillation": distillation}
        if args.contrastive_weight == 0:
            return distillation, logs
        logs["loss/contrastive"], parts = self._contrastive_loss(scores)
        return distillation + args.contrastive_weight * logs["loss/contrastive"], logs | parts

    def _contrastive_loss(self, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of the queries and, with a weight, of the passages."""
        args = self.args
        inputs = contrastive_inputs(scores, args.cross_batch)
        loss = CONTRASTIVE_LOSSES[args.contrast](**inputs)
        if args.passage_weight == 0:
            return loss, {}
        other = passage_centric_loss(**inputs, query_rows=scores.query_rows, form=args.passage_form)
        logs = {"loss/query_centric": loss, "loss/passage_centric": other}
        return (1 - args.passage_weight) * loss + args.passage_weight * other, logs
