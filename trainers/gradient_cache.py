"""Gradient caching: the gradients of a training step, in memory that does not grow with its lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from sentence_transformers.base.losses.gradcache import RandContext
from torch import Tensor, nn

from hf_ar2.losses.gather import world_size
from hf_ar2.models.joint import Features, JointModel

_OUTPUTS = {"queries": "query_embeddings", "passages": "passage_embeddings", "pairs": "pair_scores"}
_BUCKET_BYTES = 1 << 25


class GradientCache(nn.Module):
    """Replaces the joint model in a training step, and keeps embeddings and scores instead of activations.

    `forward` encodes chunk by chunk without gradient and returns the results as leaves of a new graph. After the
    backward pass of the loss, `backward` encodes every chunk again, with gradient and the same random numbers
    (dropout), and continues from the gradients of the leaves. Only one chunk's activations are in memory at a time, at
    the cost of a second forward pass. Under bf16 autocast gradients of chunks are added in float32, those of a plain
    step in bf16.

    Args:
        model: not wrapped in `DistributedDataParallel`, which `average_gradients` replaces.

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
                states.append(RandContext(*features.values()))
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
        rows = torch.arange(len(features["input_ids"]), device=features["input_ids"].device)
        return self.model(**{kind: {"chunks": [features], "order": rows}}, teacher=teacher)[_OUTPUTS[kind]]


@dataclass(frozen=True)
class _Encoded:
    """The outputs of chunks, as a leaf, and the inputs and random states to compute them again."""

    encode: Callable[[Features], Tensor]
    chunks: list[Features]
    states: list[RandContext]
    leaf: Tensor

    def backward(self) -> None:
        if self.leaf.grad is None:
            return
        gradients = self.leaf.grad.split([len(features["input_ids"]) for features in self.chunks])
        for features, state, gradient in zip(self.chunks, self.states, gradients, strict=True):
            with state:
                output = self.encode(features)
            if output.requires_grad:  # a model, or a tower, may be frozen
                output.backward(gradient)


def average_gradients(parameters: Sequence[nn.Parameter], bucket_bytes: int = _BUCKET_BYTES) -> None:
    """Replace gradients by their means over all processes, as `DistributedDataParallel` does.

    A parameter without gradient on all processes keeps none; if only some processes have one, it is 0 on the others.

    Args:
        parameters: in the same order on all processes.
        bucket_bytes: how much is sent at a time, and needed in addition to the gradients.
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
