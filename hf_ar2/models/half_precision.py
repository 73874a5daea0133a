"""A copy of a model for inference, with weights in bf16."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def bf16_copy(model: Model) -> Model:
    """A copy in evaluation mode with float32 weights in bf16, 2 bytes each.

    Buffers, such as the frequencies of rotary positions, keep their precision; weights of another dtype are shared with
    the model.
    """
    weights: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
        if weight.dtype == torch.float32
        else weight
        for weight in model.parameters()
    }
    return copy.deepcopy(model, weights).eval()
