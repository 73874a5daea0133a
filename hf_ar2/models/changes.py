"""Changes that loading makes to a model: layers, dropout, pooling, normalisation and padding token."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn
from transformers import PreTrainedModel

from hf_ar2.terminal import counted

POOLINGS = ("cls", "mean", "lasttoken")


def keep_layers(model: nn.Module, layers: list[int]) -> None:
    """Remove all layers but these (zero-based, ascending) from every transformer inside `model`, in place.

    Raises:
        ValueError: an index outside the model; no list of layers in the model; or a layer that could not be saved in
        its
            new place, such as ModernBERT's second layer as the first one.
    """
    for transformer in [module for module in model.modules() if isinstance(module, Transformer)]:
        _keep_layers_of(transformer.model, layers)


def _keep_layers_of(backbone: PreTrainedModel, layers: list[int]) -> None:
    config = backbone.config.get_text_config()
    count = config.num_hidden_layers
    stacks = [
        (parent, name)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        # A list within a layer, such as T5's `layer`, has another length.
        if isinstance(child, nn.ModuleList)
        and name in ("layer", "layers", "block", "h")
        and len(child) == count
    ]
    if not stacks:
        raise ValueError(
            f"layers={layers}: no list of {counted(count, 'layers')} found in {type(backbone).__name__}"
        )
    if layers != sorted(set(layers)) or not layers or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(f"layers={layers}: expected ascending indices between 0 and {count - 1}")
    for parent, name in stacks:
        kept = nn.ModuleList(getattr(parent, name)[i] for i in layers)
        for number, layer in enumerate(kept):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    vars(module)["layer_idx"] = number
        setattr(parent, name, kept)
    # Settings of each layer, such as layer_types.
    per_layer = {
        key: [value[i] for i in layers]
        for key, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == count and key != "architectures"
    }
    for key, value in per_layer.items():
        setattr(config, key, value)
    config.num_hidden_layers = len(layers)
    with torch.device("meta"):
        saved = type(backbone)(backbone.config).state_dict()
    ours = backbone.state_dict()
    different = {name for name in saved.keys() | ours.keys() if _shape(saved, name) != _shape(ours, name)}
    if different:
        raise ValueError(
            f"layers={layers}: {type(backbone).__name__} has other parameters in a layer's new place "
            f"({min(different)!r}), so the model could not be loaded again; keep layer 0"
        )


def _shape(state: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the probability of every dropout of a model, in place; ValueError if it is outside [0, 1).

    On a CPU dropout takes a fifth of a small model's training time; short fine-tuning does as well without it.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"dropout={probability}: expected a probability below 1")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            vars(module)["attention_dropout"] = probability


def replace_pooling(retriever: SentenceTransformer, pooling: str) -> None:
    """Replace the pooling of every tower by one of `POOLINGS`, in place; ValueError if there is none to replace."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r}: expected one of {', '.join(POOLINGS)}")
    found = False
    for parent in list(retriever.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Pooling):
                new = Pooling(child.embedding_dimension, pooling, include_prompt=child.include_prompt)
                setattr(parent, name, new)
                found = True
    if not found:
        raise ValueError(f"pooling={pooling!r}: the retriever has no pooling that could be replaced")


def drop_normalisation(retriever: SentenceTransformer) -> None:
    """Remove a final normalisation, in place."""
    names = [name for name, child in retriever.named_children() if isinstance(child, Normalize)]
    for name in names:
        delattr(retriever, name)
    if any(isinstance(module, Normalize) for module in retriever.modules()):
        raise ValueError("similarity='dot': the model normalises its embeddings inside a tower")


def is_decoder(transformer: Transformer) -> bool:
    """Whether each token attends to earlier tokens only."""
    return any(getattr(module, "is_causal", False) is True for module in transformer.model.modules())


def set_padding_token(model: SentenceTransformer | CrossEncoder) -> None:
    """Give a model without a padding token its end-of-text token as one, in the tokenizer and in the config.

    A classification head of a decoder finds the last token of a text by the config's padding token. A tokenizer with
    neither token raises ValueError.
    """
    for transformer in [module for module in model.modules() if isinstance(module, Transformer)]:
        tokenizer: Any = transformer.tokenizer
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    f"{type(tokenizer).__name__} has neither a padding token nor an end-of-text token; set "
                    "tokenizer.pad_token and save the tokenizer again"
                )
            tokenizer.pad_token = tokenizer.eos_token
        config = transformer.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None or is_decoder(transformer):
            config.pad_token_id = tokenizer.pad_token_id
