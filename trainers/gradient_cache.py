"""Gradient caching: the gradients of a training step, in memory that does not grow with its lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_ar2.losses.gather import world_size
from hf_ar2.models.joint import Features, JointModel

_OUTPUTS = {"queries": "query_embeddings", "passages": "passage_embeddings", "pairs": "pair_scores"}
_BUCKET_BYTES = 1 << 25


class GradientCache(nn.Module):
    """Replaces the joint model in a training step, and keeps embeddings and scores instead of activations.

    `forward` encodes chunk by chunk without gradient and returns the results as leaves of a new graph. When the loss
    has been differentiated with respect to them, `backward` encodes every chunk again, with gradient and the same
    random numbers (dropout), and continues from the gradients of the leaves. Only one chunk's activations are in memory
    at a time, at the cost of a second forward pass.

    Under bf16 autocast the weights are converted for every chunk, and the gradients of chunks are added in float32; the
    plain step converts them once and adds in bf16.

    Args:
        model: gets the gradients; not inside `DistributedDataParallel`, which would wait for those of a forward pass.
            `average_gradients` replaces it.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (arXiv 2101.06983).
    """

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.model = model
        self._encoded: list[_Encoded] = []

    def forward(
        self,
        queries: dict[str, Any] | None = None,
        passages: dict[str, Any] | None = None,
        pairs: dict[str, Any] | None = None,
        teacher: Literal["ranker"] | None = None,
    ) -> dict[str, Tensor]:
        """As `JointModel.forward`, and in its order, so that the same random numbers are drawn."""
        outputs = {}
        for kind, inputs in (("queries", queries), ("passages", passages), ("pairs", pairs)):
            if inputs is None:
                continue
            encode = partial(self._encode, kind, teacher)
            states, parts = [], []
            for features in inputs["chunks"]:
                states.append(_generator_states(_device(features)))
                with torch.no_grad():
                    parts.append(encode(features))
            leaf = torch.cat(parts)
            if not (kind == "pairs" and teacher == "ranker"):
                leaf.requires_grad_()
                self._encoded.append(_Encoded(encode, inputs["chunks"], states, leaf))
            outputs[_OUTPUTS[kind]] = leaf[inputs["order"]]
        return outputs

    def backward(self) -> None:
        """Add the gradients of the parameters, from those of the outputs."""
        for encoded in self._encoded:
            encoded.backward()
        self._encoded.clear()

    def _encode(self, kind: str, teacher: str | None, features: Features) -> Tensor:
        rows = torch.arange(len(features["input_ids"]), device=_device(features))
        return self.model(**{kind: {"chunks": [features], "order": rows}}, teacher=teacher)[_OUTPUTS[kind]]


@dataclass(frozen=True)
class _Encoded:
    """The outputs of chunks, as a leaf, and what is needed to compute them again."""

    encode: Callable[[Features], Tensor]
    chunks: list[Features]
    states: list[list[Tensor]]
    leaf: Tensor

    def backward(self) -> None:
        if self.leaf.grad is None:
            return
        gradients = self.leaf.grad.split([len(features["input_ids"]) for features in self.chunks])
        for features, states, gradient in zip(self.chunks, self.states, gradients, strict=True):
            with _generators_at(states, _device(features)):
                output = self.encode(features)
            if output.requires_grad:  # a model, or a tower, may be frozen
                output.backward(gradient)


def average_gradients(parameters: Sequence[nn.Parameter], bucket_bytes: int = _BUCKET_BYTES) -> None:
    """Replace gradients by their means over all processes, as `DistributedDataParallel` does; one process: nothing.

    A parameter without gradient on all processes stays without; on some of them, it counts as 0 there.

    Args:
        parameters: the same on all processes, in the same order.
        bucket_bytes: what is sent at a time, and needed in addition to the gradients.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if world_size() == 1 or not parameters:
        return
    found = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    found = found.to(parameters[0].device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, anywhere in zip(parameters, found.tolist(), strict=True):
        if anywhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients, bucket_bytes):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(world_size())
        dist.all_reduce(flat)
        means = flat.split([gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Groups of successive gradients of one dtype, of at most `limit` bytes, or one gradient that is larger."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        size = sum(other.nbytes for other in bucket) + gradient.nbytes
        if bucket and (gradient.dtype != bucket[0].dtype or size > limit):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _device(features: Features) -> torch.device:
    return features["input_ids"].device


def _generator_states(device: torch.device) -> list[Tensor]:
    """States of the random generators that an encoding may use: the CPU's, and that of its device."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def _set_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])


@contextmanager
def _generators_at(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Run the block from these states, and leave the generators as they were."""
    before = _generator_states(device)
    _set_generators(states, device)
    try:
        yield
    finally:
        _set_generators(before, device)
