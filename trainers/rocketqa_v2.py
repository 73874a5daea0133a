"""RocketQAv2: retriever and ranker train together on the same lists (Ren et al., EMNLP 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers.utils import logging

from hf_ar2.losses import dynamic_listwise_distillation
from hf_ar2.losses.dynamic import PRESETS, entropy, kl_divergence
from hf_ar2.losses.list_scores import ListScores, ranker_accuracy
from hf_ar2.losses.listwise import masked_log_softmax
from hf_ar2.settings.fields import setting
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.phases import Phase, PhaseCycle
from hf_ar2.trainers.ranker import RANKER_LOSS_HELP, RANKER_LOSSES, ranker_loss

logger = logging.get_logger(__name__)

# In nats: about the entropy of a list with .999 of its mass on one passage.
_COLLAPSED = 0.01
# A smaller divergence of float32 distributions is a rounding error.
_NO_DIVERGENCE = 1e-6


@dataclass
class RocketQAv2Config(JointConfig):
    """Settings of `RocketQAv2Trainer`; `JointConfig` has the rest. Values are those of the paper and its code.

    A round is a pass over all lists: of mined ones, drawn again in every pass from each query's candidates, and of
    those of `train_lists`. Without `refresh` the candidates are mined once, before the first step, as in the paper.

    Example:
        >>> args = RocketQAv2Config(output_dir="runs/joint", num_negatives=7, mini_batch_size=16)
        >>> args.preset, args.refresh, args.distillation_weight
        ('reference', False, 1.0)
    """

    learning_rate: float = setting(
        1e-5,
        "Learning rate of the retriever, and of the ranker unless ranker_learning_rate is set.",
        paper="RocketQAv2: 1e-5",
        minimum=0,
    )
    lr_scheduler_type: str = setting(
        "constant", "Schedule of the learning rate.", paper="RocketQAv2's code: constant"
    )
    weight_decay: float = setting(
        0.01,
        "Weight decay of AdamW, not applied to biases and norms.",
        paper="RocketQAv2's code: 0.01",
        minimum=0,
    )
    refresh: bool = setting(
        False,
        "Encode, index and mine in every round. False: once, before the first round.",
        paper="RocketQAv2: False",
    )
    num_negatives: int = setting(
        31,
        "Negatives in a list.",
        unit="passages",
        paper="RocketQAv2: 127 on MS MARCO, 31 on Natural Questions, 7 in its ablations",
        minimum=0,
    )
    preset: Literal["reference", "paper"] = setting(
        "reference",
        "reference: KL of ranker to retriever, over the list's length, no gradient to the ranker, as the released code "
        "computes it; paper: KL of retriever to ranker, with gradient to both, mean over queries.",
    )
    distillation_weight: float = setting(
        1.0,
        "Weight of the distillation, next to the ranker's own loss. With `reference` no parameter gets both, so it "
        "hardly matters under AdamW; with `paper` the ranker gets both.",
        paper="RocketQAv2: 1",
        minimum=0,
    )
    ranker_loss: Literal["listwise", "pointwise"] = setting("listwise", RANKER_LOSS_HELP)
    ranker_frozen: bool = setting(
        False, "The ranker teaches but is not trained (static distillation).", paper="RocketQAv2: False"
    )

    def __post_init__(self) -> None:
        self._check("preset", self.preset, tuple(PRESETS))
        self._check("ranker_loss", self.ranker_loss, tuple(RANKER_LOSSES))
        if self.distillation_weight <= 0:
            raise ValueError(
                f"distillation_weight={self.distillation_weight}: it is the retriever's only loss; expected above 0"
            )
        if self.num_negatives < 1:
            raise ValueError("num_negatives=0: a distribution over one passage has nothing to distil")
        super().__post_init__()


class RocketQAv2Trainer(JointTrainer):
    """Trains a retriever and a ranker together: labels train the ranker, and the current ranker the retriever.

    Args:
        retriever: a name, folder or `SentenceTransformer`; better warmed up (`RetrieverTrainer`).
        ranker: a name, folder or `CrossEncoder`; better warmed up (`RankerTrainer`).
        collection: a `Collection` or what `load_collection` takes.
        loss: replaces the joint loss, which is distillation plus the ranker's cross-entropy.
        args, sampler, compute_metrics, callbacks, optimizers: as in `JointTrainer`.

    Example:
        ```python
        from hf_ar2 import RocketQAv2Config, RocketQAv2Trainer

        trainer = RocketQAv2Trainer(
            "sentence-transformers/all-MiniLM-L6-v2",
            "cross-encoder/ms-marco-MiniLM-L6-v2",
            args=RocketQAv2Config(output_dir="runs/joint", num_negatives=7, per_device_train_batch_size=4),
            collection="BeIR/scifact",
        )
        trainer.train()
        trainer.save_model()  # runs/joint/retriever and runs/joint/ranker
        ```
    """

    args: RocketQAv2Config
    config_class = RocketQAv2Config
    method = "rocketqa-v2"
    _warned: frozenset[str] = frozenset()

    @property
    def phases(self) -> PhaseCycle:  # type: ignore[override]
        """One phase; a ranker that is trained teaches with the scores it is trained on."""
        inputs = ("queries", "passages", "pairs")
        if self.args.ranker_frozen:
            return PhaseCycle(Phase("joint", ("retriever",), inputs, teacher="ranker"))
        return PhaseCycle(Phase("joint", ("ranker", "retriever"), inputs))

    def phase_loss(self, phase: str, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The distillation, times its weight, and the ranker's cross-entropy to the labels."""
        args = self.args
        assert scores.retriever_scores is not None and scores.ranker_scores is not None
        distillation = dynamic_listwise_distillation(
            scores.retriever_scores,
            scores.ranker_scores,
            ranker_temperature=args.ranker_temperature,
            mask=scores.mask,
            **PRESETS[args.preset],
        )
        logs = {"loss/distillation": distillation}
        loss = args.distillation_weight * distillation
        if not args.ranker_frozen:
            logs["loss/ranker"] = ranker_loss(scores, args.ranker_loss, args.num_positives > 1)
            loss = loss + logs["loss/ranker"]
        return loss, logs

    def diagnostics(self, phase: str, scores: ListScores) -> dict[str, Tensor]:
        """How far apart the two models' distributions are, and how often the ranker puts a positive first."""
        assert scores.retriever_scores is not None and scores.ranker_scores is not None
        ranker = scores.ranker_scores / self.args.ranker_temperature
        found = compared(scores.retriever_scores, ranker, scores.mask)
        return {"ranker_accuracy": ranker_accuracy(scores), **found}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `JointTrainer`; warns once if nothing is distilled, and once if the ranker has collapsed."""
        super().log(logs, start_time)
        entry = self.state.log_history[-1]
        if "kl_ranker_to_retriever" not in entry:
            return
        for name, message in (("kl", self._kl_problem(entry)), ("collapse", self._collapse(entry))):
            if message and name not in self._warned:
                self._warned |= {name}
                logger.warning(message)

    def _kl_problem(self, entry: dict[str, float]) -> str | None:
        values = (entry["kl_ranker_to_retriever"], entry["kl_retriever_to_ranker"])
        if not all(map(math.isfinite, values)):
            who = "retriever" if not math.isfinite(entry["entropy/retriever"]) else "ranker"
            return (
                f"The KL divergence of the two models is not a number (step {entry['step']}): the {who}'s scores are "
                "not finite. Likely causes: fp16 that overflows (bf16 does not), or a learning rate that is too high."
            )
        if max(values) > _NO_DIVERGENCE:
            return None
        if entry["list_length"] < 2:
            cause = f"lists hold {entry['list_length']:.1f} passages on average, so they have no negatives"
        elif entry["entropy/retriever"] > 0.999 * math.log(entry["list_length"]):
            cause = (
                "both softmaxes are flat; a temperature is far too high for the scores, or a head is constant"
            )
        else:
            cause = "both models give the same scores"
        return f"The KL divergence of the two models is 0 (step {entry['step']}), so nothing is distilled: {cause}."

    def _collapse(self, entry: dict[str, float]) -> str | None:
        if not entry["entropy/ranker"] < _COLLAPSED or entry["list_length"] < 2:
            return None
        solved = entry["ranker_accuracy"] > 0.99
        cause = (
            "its lists are too easy (it puts a positive first in nearly all): mine harder negatives, from a better "
            "retriever or with refresh=True"
            if solved
            else "its logits are too large for its temperature: raise ranker_temperature, or lower its learning rate"
        )
        return (
            f"The ranker's softmax has collapsed (step {entry['step']}): entropy {entry['entropy/ranker']:.4f} nats "
            f"over lists of {entry['list_length']:.0f}, so it teaches one passage as a hard label would. Likely cause: "
            f"{cause}."
        )


@torch.no_grad()
def compared(retriever: Tensor, ranker: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far apart two models' distributions over lists are: KL divergences, entropies (nats), top-1 agreement.

    `retriever` and `ranker` are scores `[B, L]` over their temperatures. Each value is a mean over the lists.
    """
    p, r = masked_log_softmax(retriever, mask), masked_log_softmax(ranker, mask)
    best = [scores.masked_fill(~mask, float("-inf")).argmax(dim=1) for scores in (retriever, ranker)]
    return {
        "kl_ranker_to_retriever": kl_divergence(r, p).mean(),
        "kl_retriever_to_ranker": kl_divergence(p, r).mean(),
        "entropy/retriever": entropy(p).mean(),
        "entropy/ranker": entropy(r).mean(),
        "agreement": (best[0] == best[1]).float().mean(),
        "list_length": mask.sum(dim=1).float().mean(),
    }
