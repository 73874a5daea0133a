"""bf16 on a CPU: attention and activations for training, and a copy with weights in bf16 for inference."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from hf_ar2.models.lora import adapter_settings

Model = TypeVar("Model", bound=nn.Module)
_NAME = "bf16_on_cpu"


def train_fast_in_bf16(model: nn.Module, device: torch.device, bf16: bool | None) -> None:
    """Make training under bf16 autocast on a CPU faster, with equal results up to rounding; elsewhere do nothing.

    torch's fused attention, whose backward pass takes several times as long as its forward pass, is replaced. The sums
    between the layers are kept in bf16; autocast alone would convert them to float32 and back in every layer.
    Checkpoints do not record the choice.
    """
    if device.type != "cpu" or not bf16:
        return
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation == "sdpa":
            module.set_attn_implementation(_NAME)
            for embedding in module.modules():
                if isinstance(embedding, nn.Embedding):
                    embedding.register_forward_hook(_in_bf16)


def _in_bf16(embedding: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The output of a table of embeddings in the precision of autocast; gradients are still summed in float32."""
    return output.bfloat16() if torch.is_autocast_enabled("cpu") else output


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`, which is called in evaluation mode."""
    if not module.training or any(
        kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache")
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    groups, (length, width) = getattr(module, "num_key_value_groups", 1), query.shape[2:]
    if attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        attention_mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril()
    if torch.is_autocast_enabled("cpu"):  # a norm of queries and keys leaves them in float32
        query, key, value = (states.bfloat16() for states in (query, key, value))
    # Autocast would compute the softmax in float32 and keep its input and output for the backward pass; torch's softmax
    # of bf16 computes in float32 as well and rounds once.
    with torch.autocast(query.device.type, enabled=False):
        query = query * (width**-0.5 if scaling is None else scaling)
        scores = query @ repeat_kv(key, groups).transpose(2, 3)
        if attention_mask is not None:
            # Filling the scores would take as long again in the backward pass.
            if attention_mask.dtype == torch.bool:
                hidden = torch.zeros_like(attention_mask, dtype=scores.dtype)
                attention_mask = hidden.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
            scores += attention_mask.to(scores.dtype)
        shares = nn.functional.dropout(scores.softmax(-1), dropout)
        return (shares @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


# ---- Inference ------------------------------------------------------------------------------------------------------


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
