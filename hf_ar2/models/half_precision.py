"""A copy of a model for inference on a CPU, with weights in bf16."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_ar2.models.lora import adapter_settings

Model = TypeVar("Model", bound=nn.Module)


def bf16_copy(model: Model) -> Model:
    """A copy in evaluation mode with float32 weights in bf16, 2 bytes each.

    Buffers, such as the frequencies of rotary positions, keep their precision; weights of another dtype are shared with
    the model. On a CPU with AMX the copy is for running only: its linear layers have packed weights.
    """
    weights: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
        if weight.dtype == torch.float32
        else weight
        for weight in model.parameters()
    }
    made = {id(new) for old, new in weights.items() if id(new) != old}
    copied = copy.deepcopy(model, weights).eval()
    if torch.cpu._is_amx_tile_supported() and not adapter_settings(model):
        for parent in list(copied.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and id(child.weight) in made:
                    setattr(parent, name, _PackedLinear(child))
    return copied


class _PackedLinear(nn.Module):
    """A linear layer whose weight is in the order of oneDNN, as `torch.compile` runs it: the same results.

    `nn.Linear` reorders the weight for every batch, and writes the bias before it adds the product.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Any:
        return torch.ops.mkldnn._linear_pointwise(inputs.contiguous(), self.weight, self.bias, "none", [], "")
