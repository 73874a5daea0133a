"""One optimizer for two models: parameter groups, and a learning rate schedule that counts each model's own steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hf_ar2.models.joint import JointModel
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.config_checks import schedule_kind
from hf_ar2.trainers.sharding import shard

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer


def parameter_groups(model: JointModel, args: JointConfig, decayed: set[str]) -> list[dict[str, Any]]:
    """AdamW groups: per model, its encoder and its ranking head, each with and without weight decay.

    A group has a `name` ("ranker/head/decay"), the `model` whose steps the schedule counts, and `lr`.
    """
    head = _head_names(model)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = name.split(".", 1)[0]
        part = "head" if name in head else "encoder"
        if owner == "codebook":  # the retriever's index: on its schedule, at a separate rate
            owner, part = "retriever", "centroids"
        decay = name in decayed and part != "centroids"
        key = f"{owner}/{part}/{'decay' if decay else 'plain'}"
        if key not in groups:
            groups[key] = {
                "name": key,
                "model": owner,
                "params": [],
                "lr": learning_rate(args, owner, part),
                "weight_decay": args.weight_decay if decay else 0.0,
            }
        groups[key]["params"].append(parameter)
    return list(groups.values())


def learning_rate(args: JointConfig, owner: str, part: str) -> float:
    """The peak learning rate of a part of a model."""
    rate = args.learning_rate
    if owner == "ranker" and args.ranker_learning_rate is not None:
        rate = args.ranker_learning_rate
    if part == "head" and args.head_learning_rate is not None:
        rate = args.head_learning_rate
    if part == "centroids":
        rate = getattr(args, "centroid_learning_rate", rate)
    return rate


def make_optimizer(trainer: JointTrainer) -> Optimizer:
    """The optimizer of all trained weights, in groups. Weights are sharded before, if they are to be."""
    if trainer.is_sharded:
        shard(trainer.model, trainer.trained, trainer.args.device)
        # transformers then leaves placement and the exchange of gradients to the model.
        trainer.is_distributed_loading_by_transformers = True
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    optimizer_class, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
    return optimizer_class(parameter_groups(trainer.model, trainer.args, decayed), **options)


def make_scheduler(trainer: JointTrainer, planned_steps: int) -> LambdaLR:
    """A learning rate schedule per group of the optimizer, each counting the steps of its own model.

    A run has `planned_steps`, or fewer where `patience` or the time ends it before.
    """
    optimizer, phases = trainer.optimizer, trainer.phases
    assert optimizer is not None

    def steps_before(model: str, step: int) -> int:
        return sum(phases.steps_before(name, step) for name in phases.names if model in phases[name].trained)

    def total_steps(model: str) -> int:
        return steps_before(model, min(planned_steps, trainer.total_steps))

    factors = [
        schedule(trainer.args, model, partial(steps_before, model), partial(total_steps, model))
        for model in [group["model"] for group in optimizer.param_groups]
    ]
    return LambdaLR(optimizer, factors)


def schedule(
    args: JointConfig, model: str, own_steps: Callable[[int], int], total_steps: Callable[[], int]
) -> Callable[[int], float]:
    """The factor on a model's peak learning rate, by global step.

    Args:
        own_steps: from a global step to the number of this model's steps before it.
        total_steps: returns this model's steps in the whole run, which may become fewer while it runs.
    """
    chosen, share = args.lr_scheduler_type, args.warmup_steps
    if model == "ranker":
        chosen = args.ranker_lr_scheduler_type or chosen
        share = share if args.ranker_warmup_steps is None else args.ranker_warmup_steps
    kind = schedule_kind(chosen)
    planned = total_steps()
    warmup = 0 if kind == "constant" else int(share) if share >= 1 else math.ceil(planned * share)

    def factor(step: int) -> float:
        done, total = own_steps(step), total_steps()
        if done < warmup:
            return done / max(1, warmup)
        if kind.startswith("constant"):
            return 1.0
        if kind == "warmup_stable_decay":
            decay = max(1, round(total * args.decay_share))
            return max(0.0, min(1.0, (total - done) / decay))
        left = max(0.0, (total - done) / max(1, total - warmup))
        return left if kind == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))

    return factor


def _head_names(model: JointModel) -> set[str]:
    """Parameters of the ranker outside its encoder."""
    if model.ranker is None:
        return set()
    transformer = model.ranker.model
    assert transformer is not None
    base = {id(p) for p in transformer.base_model.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if name.startswith("ranker.") and id(parameter) not in base
    }
