"""Gathering a tensor from all processes, with gradients that flow back to each process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather_with_gradient(tensor: Tensor) -> Tensor:
    """The tensors of all processes, concatenated in rank order; in a single process the tensor itself.

    The backward pass sums the gradients of all processes for this process's part. If every process averages a loss over
    its own queries against the gathered passages, and ``DistributedDataParallel`` averages gradients, the parameters
    get exactly the gradient of one process with the whole batch.

    Args:
        tensor: ``[n, ...]``, the same shape and dtype on every process, on the device the backend serves.

    Returns:
        ``[W * n, ...]``, rows ``r * n`` to ``(r + 1) * n`` from rank ``r``.

    Raises:
        ValueError: the shapes differ between the processes (raised on all of them).

    Example:
        >>> import torch
        >>> all_gather_with_gradient(torch.arange(3.0))
        tensor([0., 1., 2.])
    """
    if world_size() == 1:
        return tensor
    _check_same_shape(tensor)
    return _AllGather.apply(tensor)


def all_gather(tensor: Tensor) -> Tensor:
    """As :func:`all_gather_with_gradient`, without gradient and without a check of shapes."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    """Forward: all_gather; backward: all_reduce and the slice of this process."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy, because all_reduce works in place and autograd may need the original.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def _check_same_shape(tensor: Tensor) -> None:
    # The collective hangs or reads garbage if shapes differ. Dimensions and sizes are padded to one length to compare.
    padding = [0] * (8 - tensor.dim())
    shape = torch.tensor([[tensor.dim(), *tensor.shape, *padding]], device=tensor.device)
    shapes = all_gather(shape).tolist()
    if any(shape != shapes[0] for shape in shapes):
        found = ", ".join(f"rank {rank} {shape[1 : 1 + shape[0]]}" for rank, shape in enumerate(shapes))
        raise ValueError(
            f"gathered tensors must have the same shape on all processes, found {found}: give every process the same "
            "number of queries and of passages per query (drop an uneven last batch)"
        )
