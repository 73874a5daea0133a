"""Attention for training in bf16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "bf16_on_cpu"


def use_fast_attention(model: nn.Module, device: torch.device, bf16: bool | None) -> None:
    """Replace torch's fused attention by one that trains faster in bf16 on a CPU, to the same results up to rounding.

    Nothing changes on another device or in another precision. torch's backward pass takes several times as long as its
    forward pass. Checkpoints do not record the choice.
    """
    if device.type != "cpu" or not bf16:
        return
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation == "sdpa":
            module.set_attn_implementation(_NAME)


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
    # Autocast would compute the softmax in float32 and keep its input and output for the backward pass; torch's softmax
    # of bf16 computes in float32 as well and rounds once.
    with torch.autocast(query.device.type, enabled=False):
        query = query * (width**-0.5 if scaling is None else scaling)
        scores = query @ repeat_kv(key, groups).transpose(2, 3)
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
        elif attention_mask is not None:
            scores = scores + attention_mask.to(scores.dtype)
        shares = nn.functional.dropout(scores.softmax(-1), dropout)
        return (shares @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
