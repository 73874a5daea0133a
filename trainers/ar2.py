"""AR2: a retriever and a ranker play a minimax game (Zhang et al., ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import logging

from hf_ar2.losses import adversarial_loss, distillation_loss
from hf_ar2.settings.fields import setting
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.gate import GATES, check_gate, ranker_lead
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.ranker import ranker_loss
from hf_ar2.trainers.retriever import contrastive_loss

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
        1e-6, "Peak learning rate of the ranker.", paper="AR2: 1e-6 (MS MARCO: 5e-7)"
    )
    num_rounds: int = setting(
        10, "Rounds.", unit="rounds", paper="AR2: 10, in its README 16", checked_on_resume=False
    )
    retriever_steps: int = setting(1500, "Retriever steps per round.", unit="steps", paper="AR2: 1500")
    ranker_steps: int = setting(
        500, "Ranker steps per round. 0: the ranker is not trained.", unit="steps", paper="AR2: 500"
    )
    adversarial_weight: float = setting(
        0.5,
        "λ: the retriever's loss is λ · adversarial + (1 − λ) · distillation.",
        paper="AR2's README: 0.5 on a sum over the per-device batch, so λB there is λ/(1 − λ) · B here; its author "
        "later advised 0.2 to 0.3",
    )
    adversarial_form: Literal["reference", "paper"] = setting(
        "reference", "reference: as the released code computes it; paper: equations 9, 10."
    )
    contrastive_weight: float = setting(
        0.0, "Weight of an added in-batch contrastive term on the same lists.", paper="AR2: 0 (it has none)"
    )

    teacher_gate: Literal["ahead", "off"] = setting(
        "ahead",
        "ahead: before every round, the ranker has to rank the evaluation queries better than the retriever does; "
        "while it does not, it trains on and the retriever's steps are contrastive. off: the ranker always teaches.",
        paper="AR2: off",
    )

    def __post_init__(self) -> None:
        if self.num_rounds < 1 or self.retriever_steps < 0 or self.ranker_steps < 0:
            raise ValueError("num_rounds has to be at least 1, retriever_steps and ranker_steps at least 0")
        if self.retriever_steps + self.ranker_steps == 0:
            raise ValueError("retriever_steps and ranker_steps are both 0: nothing to train")
        if self.num_train_epochs not in (self.num_rounds, _DEFAULT_EPOCHS):
            raise ValueError(
                f"num_train_epochs={self.num_train_epochs} contradicts num_rounds={self.num_rounds}: an epoch is a "
                "round here; set num_rounds alone"
            )
        if self.contrastive_weight < 0:
            raise ValueError(f"contrastive_weight={self.contrastive_weight}: expected 0 or more")
        if not 0 <= self.adversarial_weight <= 1:
            raise ValueError(f"adversarial_weight={self.adversarial_weight}: λ is between 0 and 1")
        if self.num_negatives < 1:
            raise ValueError("num_negatives=0: the game is played over lists with negatives")
        if self.num_positives > 1:
            raise ValueError(f"num_positives={self.num_positives}: AR2's losses know one positive in a list")
        self._check("adversarial_form", self.adversarial_form, ("reference", "paper"))
        if self.teacher_gate is False:  # YAML reads a bare off so
            self.teacher_gate = "off"
        self._check("teacher_gate", self.teacher_gate, GATES)
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
        args: settings.
        collection: a `Collection` or what `load_collection` takes.

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

    trained = ("ranker", "retriever")
    method = "ar2"

    def __init__(self, retriever: Any, ranker: Any, args: AR2Config, collection: Any, **kwargs: Any) -> None:
        super().__init__(args=args, collection=collection, retriever=retriever, ranker=ranker, **kwargs)
        self.args: AR2Config
        if args.teacher_gate == "ahead":
            check_gate(args, self.retrieval)

    @property
    def ranker_teaches(self) -> bool:
        """Whether the ranker teaches in this round."""
        return self.args.teacher_gate == "off" or bool(self.round_state.get("ranker_teaches", False))

    def begin_round(self) -> None:
        """Refresh, then compare the two models: a ranker that is not ahead of the retriever does not teach."""
        super().begin_round()
        number = self.current_round
        if (
            self.args.teacher_gate == "off"
            or self.state.global_step >= self.total_steps
            or self.round_state.get("round") == number  # a run resumed within the round
        ):
            return
        lead = ranker_lead(self.retrieval)
        teaches = lead.difference > 0
        self.round_state |= {"round": number, "ranker_teaches": teaches}
        self.log(
            {"gate/lead": lead.difference, "gate/p": lead.p_value, "gate/ranker_teaches": float(teaches)}
        )
        if self.is_world_process_zero():
            metric, split = self.args.eval_metrics[0], self.args.eval_split
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
    def steps_per_round(self) -> int:
        """Ranker steps, then retriever steps."""
        return self.args.ranker_steps + self.args.retriever_steps

    def phase(self, step: int) -> str:
        """The ranker's turn first, in every round."""
        return "ranker" if step % self.steps_per_round < self.args.ranker_steps else "retriever"

    def phase_steps(self, phase: str, step: int) -> int:
        """Steps of the phase before `step`."""
        rounds, rest = divmod(step, self.steps_per_round)
        ranker = rounds * self.args.ranker_steps + min(rest, self.args.ranker_steps)
        return ranker if phase == "ranker" else step - ranker

    def needs(self, phase: str) -> tuple[str, ...]:
        """The ranker's step reads pairs; the retriever's reads queries and passages, and pairs where it is taught."""
        if phase == "ranker":
            return ("pairs",)
        return ("queries", "passages", "pairs") if self.ranker_teaches else ("queries", "passages")

    def teacher(self, phase: str) -> str | None:
        """The ranker teaches in the retriever's phase."""
        return "ranker" if phase == "retriever" else None

    def phase_loss(
        self, phase: str, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The ranker's listwise cross-entropy, or the retriever's λ · adversarial + (1 − λ) · distillation."""
        if phase == "ranker":
            return ranker_loss(self, outputs, batch)
        if not self.ranker_teaches:
            loss = contrastive_loss(self, outputs, batch)
            return loss, {"loss/contrastive": loss}
        args, mask = self.args, batch["mask"]
        student = self.retriever_scores(outputs, mask)
        teacher = self.ranker_scores(outputs, mask)
        weight = args.adversarial_weight
        loss = student.new_zeros(())
        logs = {}
        if weight > 0:
            logs["loss/adversarial"] = adversarial_loss(
                student, teacher / args.ranker_temperature, form=args.adversarial_form, mask=mask
            )
            loss = loss + weight * logs["loss/adversarial"]
        if weight < 1:
            logs["loss/distillation"] = distillation_loss(
                student, teacher, teacher_temperature=args.ranker_temperature, mask=mask
            )
            loss = loss + (1 - weight) * logs["loss/distillation"]
        if args.contrastive_weight > 0:
            logs["loss/contrastive"] = contrastive_loss(self, outputs, batch)
            loss = loss + args.contrastive_weight * logs["loss/contrastive"]
        with torch.no_grad():
            masked = teacher.masked_fill(~mask, float("-inf"))
            logs["teacher_accuracy"] = (masked.argmax(dim=1) == 0).float().mean()
            logs["pool/deceived"] = ((teacher[:, 1:] > teacher[:, :1]) & mask[:, 1:]).float().sum() / mask[
                :, 1:
            ].sum()
        return loss, logs
