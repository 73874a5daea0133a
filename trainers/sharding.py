"""Weights, gradients and optimizer states in shards, one for each process (FSDP2), for models too large for DDP."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from hf_ar2.cards.facts import ROLES
from hf_ar2.models.joint import JointModel
from hf_ar2.models.lora import has_adapters

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer


def check_sharding(trainer: JointTrainer) -> None:
    """Raise NotImplementedError if `shard_weights` does not work: another trainer, adapters, an old transformers."""
    if trainer.method not in (*ROLES, "ar2"):
        raise NotImplementedError(
            f"shard_weights: {type(trainer).__name__} is not supported, only RetrieverTrainer, RankerTrainer and "
            "AR2Trainer are"
        )
    if any(map(has_adapters, trainer.model.models.values())):
        raise NotImplementedError(
            "shard_weights: models with adapters (LoRA) are small enough for DDP; leave it out"
        )
    if not hasattr(trainer, "is_distributed_loading_by_transformers"):
        raise NotImplementedError(
            "shard_weights needs transformers 5.23 or newer: pip install -U transformers"
        )


def whole_copy(model: JointModel, trained: tuple[str, ...]) -> JointModel:
    """A copy that stays whole while `model` is sharded; a model that is not trained is shared, not copied.

    It encodes the corpus, for which processes make different numbers of forward passes, and is saved.
    """
    roles: dict[str, Any] = dict(model.models)
    return JointModel(**{role: copy.deepcopy(one) if role in trained else one for role, one in roles.items()})


def shard(model: JointModel, trained: tuple[str, ...], device: torch.device) -> None:
    """Shard the trained models in place, layer by layer; a layer is whole only while it is computed."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for role in trained:
        for network in [m for m in getattr(model, role).modules() if isinstance(m, PreTrainedModel)]:
            for layer in network.modules():
                if type(layer).__name__ in (network._no_split_modules or ()):
                    fully_shard(layer, mesh=mesh)
    others = [one for role, one in model.models.items() if role not in trained]
    fully_shard(model, mesh=mesh, ignored_params={weight for one in others for weight in one.parameters()})


def gather(model: JointModel, whole: JointModel) -> None:
    """Copy the weights of a sharded model into the whole one; every process calls this."""
    with torch.no_grad():
        for target, weight in zip(whole.parameters(), model.parameters(), strict=True):
            if isinstance(weight, DTensor):
                target.copy_(weight.full_tensor())


def scatter(whole: JointModel, model: JointModel) -> None:
    """Copy the weights of the whole model into the other, which may be sharded; every process calls this."""
    with torch.no_grad():
        for weight, target in zip(whole.parameters(), model.parameters(), strict=True):
            target.copy_(_like(weight.detach(), target))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state as one without shards has it, on the CPU; every process calls this."""

    def whole(value: Any) -> Any:
        value = value.full_tensor() if isinstance(value, DTensor) else value
        return value.cpu() if torch.is_tensor(value) else value

    state = optimizer.state_dict()
    of_weights = {
        number: {name: whole(value) for name, value in of_weight.items()}
        for number, of_weight in state["state"].items()
    }
    return state | {"state": of_weights}


def shard_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard an optimizer's state, which was loaded whole, like the weights that it belongs to."""
    for weight, of_weight in optimizer.state.items():
        for name, value in of_weight.items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                of_weight[name] = _like(value, weight)


def _like(value: Tensor, target: Tensor) -> Tensor:
    """The tensor, sharded like the target."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
