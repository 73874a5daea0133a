"""Classification heads: a head of two labels becomes one of one logit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import nn
from transformers import AutoConfig
from transformers.utils.peft_utils import find_adapter_config_file

from hf_ar2.models.lora import adapter_base

logger = logging.getLogger(__name__)


def check_answers(ranker: CrossEncoder) -> None:
    """Raise ValueError if the two answers that a ranker's score compares, such as "yes" and "no", are the same token.

    That happens when the tokenizer knows neither.
    """
    for module in ranker.modules():
        if isinstance(module, LogitScore) and module.true_token_id == module.false_token_id:
            raise ValueError(
                f"the ranker's two answers are the same token (id {module.true_token_id}), so that every score is 0; "
                "expected a tokenizer with the tokens 'yes' and 'no', or modules with a LogitScore of other tokens"
            )


def saved_labels(model: str | Path, **options: Any) -> int | None:
    """The number of labels of a saved sequence classifier, or of the base of adapters; None without a classification
    head.

    `options` are those of `AutoConfig.from_pretrained`.
    """
    adapters = find_adapter_config_file(str(model), revision=options.get("revision"))
    if adapters is not None and (base := adapter_base(Path(adapters).parent)) is not None:
        return saved_labels(base, **{**options, "revision": None})
    config = AutoConfig.from_pretrained(model, **options)
    architecture = (config.architectures or [""])[0]
    return int(config.num_labels) if architecture.endswith("ForSequenceClassification") else None


def to_one_logit(ranker: CrossEncoder) -> None:
    """Replace a head of two labels by one whose logit is that of label 1 minus that of label 0, in place.

    The softmax probability of label 1 is the sigmoid of this difference, so passages keep their order. Published
    rankers with two labels (monoBERT, amberoad) have "relevant" as label 1. Other heads raise ValueError.
    """
    labels = ranker.num_labels
    transformer = ranker[0]
    if labels != 2 or not isinstance(transformer, Transformer) or len(ranker) != 1:
        raise ValueError(
            f"the ranker has {labels} labels, expected 1 (one relevance logit), or 2 (label 1: relevant)"
        )
    model = transformer.model
    heads = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 2
    ]
    if not heads:
        raise ValueError(
            f"the ranker has 2 labels, but {type(model).__name__} has no linear layer with 2 outputs"
        )
    old = model.get_submodule(heads[-1])
    assert isinstance(old, nn.Linear)
    like: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    new = nn.Linear(old.in_features, 1, old.bias is not None, **like)
    with torch.no_grad():
        new.weight.copy_(old.weight[1:] - old.weight[:1])
        if old.bias is not None:
            new.bias.copy_(old.bias[1:] - old.bias[:1])
    model.set_submodule(heads[-1], new)
    names = model.config.id2label
    model.config.num_labels = model.num_labels = 1
    logger.warning(
        f"the ranker has 2 labels; its score is the logit of label 1 ({names[1]!r}) minus that of label 0 "
        f"({names[0]!r})"
    )
