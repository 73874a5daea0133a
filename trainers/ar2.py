"""AR2: a retriever and a ranker play a minimax game (Zhang et al., ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers.utils import logging

from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.losses import (
    adversarial_loss,
    distillation_loss,
    in_batch_contrastive_loss,
    listwise_cross_entropy,
)
from hf_ar2.losses.list_scores import ListScores, contrastive_inputs, ranker_accuracy
from hf_ar2.settings.fields import setting
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.evaluation import Evaluation
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.phases import Phase, PhaseCycle

logger = logging.get_logger(__name__)

_DEFAULT_EPOCHS = JointConfig.__dataclass_fields__["num_train_epochs"].default


@dataclass
class AR2Config(JointConfig):
    """Settings of `AR2Trainer`; `JointConfig` has the rest. Paper values are those of its table 8.

    A round is a refresh of the index and the pool, `ranker_steps` steps of the ranker, then `retriever_steps` of the
    retriever (the released code's order). The whole run has `num_rounds` rounds.

    Example:
        >>> args = AR2Config(output_dir="runs/ar2", num_rounds=4, ranker_steps=50, retriever_steps=150)
        >>> args.num_train_epochs, args.adversarial_weight, args.ranker_learning_rate
        (4, 0.5, 1e-06)
    """

    ranker_learning_rate: float | None = setting(
        1e-6, "Peak learning rate of the ranker.", paper="AR2: 1e-6 (MS MARCO: 5e-7)", minimum=0
    )
    num_rounds: int = setting(
        10, "Rounds.", unit="rounds", paper="AR2: 10, in its README 16", checked_on_resume=False, minimum=1
    )
    retriever_steps: int = setting(
        1500, "Retriever steps per round.", unit="steps", paper="AR2: 1500", minimum=0
    )
    ranker_steps: int = setting(
        500,
        "Ranker steps per round. 0: the ranker is not trained.",
        unit="steps",
        paper="AR2: 500",
        minimum=0,
    )
    adversarial_weight: float = setting(
        0.5,
        "λ: the retriever's loss is λ · adversarial + (1 − λ) · distillation.",
        paper="AR2's README: 0.5, its author later 0.2 to 0.3, times a sum over the B queries of a device, which is "
        "λB / (λB + 1 − λ) here: 0.89, and 0.67 to 0.77, for B = 8",
    )
    adversarial_form: Literal["reference", "paper"] = setting(
        "reference", "reference: as the released code computes it; paper: equations 9, 10."
    )
    contrastive_weight: float = setting(
        0.0,
        "Weight of an added in-batch contrastive term on the same lists.",
        paper="AR2: 0 (it has none)",
        minimum=0,
    )

    teacher_gate: Literal["ahead", "off"] = setting(
        "ahead",
        "ahead: before every round, the ranker has to rank the evaluation queries better than the retriever does; "
        "while it does not, it trains on and the retriever's steps are contrastive. off: the ranker always teaches.",
        paper="AR2: off",
    )

    def __post_init__(self) -> None:
        if self.retriever_steps + self.ranker_steps == 0:
            raise ValueError("retriever_steps and ranker_steps are both 0: nothing to train")
        if self.num_train_epochs not in (self.num_rounds, _DEFAULT_EPOCHS):
            raise ValueError(
                f"num_train_epochs={self.num_train_epochs} contradicts num_rounds={self.num_rounds}: an epoch is a "
                "round here; set num_rounds alone"
            )
        if not 0 <= self.adversarial_weight <= 1:
            raise ValueError(f"adversarial_weight={self.adversarial_weight}: λ is between 0 and 1")
        if self.num_negatives < 1:
            raise ValueError(
                "num_negatives=0: both losses compare a positive with negatives; expected at least 1"
            )
        if self.num_positives > 1:
            raise ValueError(f"num_positives={self.num_positives}: AR2's losses take one positive in a list")
        if self.adversarial_form == "paper" and self.adversarial_weight == 1 and self.contrastive_weight == 0:
            logger.warning(
                "adversarial_form='paper' alone never raises a positive's score, so the retriever will get worse; "
                "set adversarial_weight below 1 or contrastive_weight above 0"
            )
        self.num_train_epochs = self.num_rounds
        super().__post_init__()


class AR2Trainer(JointTrainer):
    """Trains a retriever and a ranker against each other.

    Args:
        retriever: a name, folder or `SentenceTransformer`; better warmed up (`RetrieverTrainer`).
        ranker: a name, folder or `CrossEncoder`; better warmed up (`RankerTrainer`).
        collection: a `Collection` or what `load_collection` takes.
        loss: replaces the retriever's loss, λ · adversarial + (1 − λ) · distillation + contrastive, in steps
            in which the ranker teaches. The ranker's loss stays, and so does the contrastive loss of the rounds in
            which `teacher_gate` finds the ranker behind.
        args, sampler, compute_metrics, callbacks, optimizers: as in `JointTrainer`.

    Example:
        ```python
        from hf_ar2 import AR2Config, AR2Trainer

        trainer = AR2Trainer(
            "sentence-transformers/all-MiniLM-L6-v2",
            "cross-encoder/ms-marco-MiniLM-L6-v2",
            args=AR2Config(output_dir="runs/ar2", num_rounds=4, ranker_steps=50, retriever_steps=150),
            collection="BeIR/scifact",
        )
        trainer.train()  # resume_from_checkpoint=True continues exactly where it was
        trainer.save_model()  # runs/ar2/retriever and runs/ar2/ranker
        ```
    """

    args: AR2Config
    config_class = AR2Config
    method = "ar2"

    def make_evaluation(self) -> Evaluation:
        """The evaluation; `teacher_gate` needs one that can compare the two models."""
        evaluation = super().make_evaluation()
        if self.args.teacher_gate == "ahead":
            check_gate(evaluation)
        return evaluation

    @property
    def ranker_teaches(self) -> bool:
        """Whether the ranker teaches in this round."""
        return self.args.teacher_gate == "off" or bool(self.round_state.get("ranker_teaches", False))

    def begin_round(self) -> None:
        """Refresh, then compare the two models: a ranker that is not ahead of the retriever does not teach."""
        super().begin_round()
        number = self.current_round
        decided = self.round_state.get("round") == number  # a run resumed within the round
        if decided or self.args.teacher_gate == "off" or self.state.global_step >= self.total_steps:
            return
        metric, split = self.args.eval_metrics[0], self.args.eval_split
        values = self.evaluation.per_query()
        lead = paired_test(values["ranker"][metric], values["retriever"][metric])
        teaches = lead.difference > 0
        self.round_state |= {"round": number, "ranker_teaches": teaches}
        self.prepare_lists()
        self.log(
            {"gate/lead": lead.difference, "gate/p": lead.p_value, "gate/ranker_teaches": float(teaches)}
        )
        if self.is_world_process_zero():
            outcome = (
                "it teaches"
                if teaches
                else "it trains on and does not teach; the retriever trains on hard negatives. What helps: more ranker "
                "steps, lists that go from easy to hard (easy_share), starting the ranker from the retriever's trained "
                "encoder, or a larger ranker"
            )
            logger.warning(
                f"Round {number + 1}: the ranker is {lead.difference:+.3f} {metric} against the retriever on {split} "
                f"(p = {lead.p_value:.3f}, {lead.wins} queries better, {lead.losses} worse): {outcome}."
            )

    @property
    def phases(self) -> PhaseCycle:  # type: ignore[override]
        """The ranker's steps first, then the retriever's, which need pairs only while the ranker teaches."""
        args, taught = self.args, self.ranker_teaches
        inputs = ("queries", "passages", "pairs") if taught else ("queries", "passages")
        return PhaseCycle(
            Phase("ranker", ("ranker",), ("pairs",), args.ranker_steps, own_loss=False),
            Phase("retriever", ("retriever",), inputs, args.retriever_steps, "ranker", own_loss=taught),
        )

    @property
    def steps_per_round(self) -> int:
        """Ranker steps and retriever steps."""
        return self.args.ranker_steps + self.args.retriever_steps

    def phase_loss(self, phase: str, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The ranker's listwise cross-entropy, or the retriever's λ · adversarial + (1 − λ) · distillation."""
        args, student, teacher = self.args, scores.retriever_scores, scores.ranker_scores
        if phase == "ranker":
            assert teacher is not None
            return listwise_cross_entropy(teacher, scores.mask), {}
        if not self.ranker_teaches:
            loss = in_batch_contrastive_loss(**contrastive_inputs(scores))
            return loss, {"loss/contrastive": loss}
        assert student is not None and teacher is not None
        weight = args.adversarial_weight
        loss = student.new_zeros(())
        logs = {}
        if weight > 0:
            logs["loss/adversarial"] = adversarial_loss(
                student, teacher / args.ranker_temperature, form=args.adversarial_form, mask=scores.mask
            )
            loss = loss + weight * logs["loss/adversarial"]
        if weight < 1:
            logs["loss/distillation"] = distillation_loss(
                student, teacher, teacher_temperature=args.ranker_temperature, mask=scores.mask
            )
            loss = loss + (1 - weight) * logs["loss/distillation"]
        if args.contrastive_weight > 0:
            logs["loss/contrastive"] = in_batch_contrastive_loss(**contrastive_inputs(scores))
            loss = loss + args.contrastive_weight * logs["loss/contrastive"]
        return loss, logs

    def diagnostics(self, phase: str, scores: ListScores) -> dict[str, Tensor]:
        """How often the ranker puts the positive first, and the share of negatives that it scores above it."""
        ranker, negatives = scores.ranker_scores, scores.mask[:, 1:]
        if ranker is None:
            return {}
        if phase == "ranker":
            return {"ranker_accuracy": ranker_accuracy(scores)}
        deceived = ((ranker[:, 1:] > ranker[:, :1]) & negatives).float().sum() / negatives.sum()
        return {"teacher_accuracy": ranker_accuracy(scores), "pool/deceived": deceived}


def check_gate(evaluation: Evaluation) -> None:
    """Raise ValueError if there are no queries, or the ranker orders fewer passages than the metric needs."""
    args = evaluation.retrieval.args
    metric = args.eval_metrics[0]
    cutoff = parse_metric(metric)[1] or 1
    if len(evaluation.judgments) == 0:
        raise ValueError(
            f"teacher_gate='ahead' compares ranker and retriever on eval_split={args.eval_split!r}, which "
            f"{evaluation.retrieval.collection.name} does not have or which has no queries; name another split, or set "
            "teacher_gate='off'"
        )
    if cutoff > args.rerank_depth:
        raise ValueError(
            f"teacher_gate='ahead' compares {metric} of ranker and retriever, but the ranker orders "
            f"rerank_depth={args.rerank_depth} passages; raise rerank_depth to {cutoff}, name a smaller cutoff first "
            "in eval_metrics, or set teacher_gate='off'"
        )
