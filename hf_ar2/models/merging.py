"""Averaging a trained retriever's weights with its starting weights (WiSE-FT), to keep its general search quality."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer

from hf_ar2.models.loading import has_separate_towers
from hf_ar2.models.lora import merge_adapters
from hf_ar2.settings.fields import LARGEST_SEED, check_values, setting
from hf_ar2.settings.text import EncodingConfig

# The share where the dev queries cannot decide.
DEFAULT_SHARE = 0.5
# Up to this share the largest one without a significant difference on dev is taken.
MAX_FREE_SHARE = 0.3
# A larger share may lose at most this much of the metric on dev: with few queries no difference is significant.
MAX_LOSS = 0.02


@dataclass
class MergeConfig(EncodingConfig):
    """The share of the starting weights in a merged retriever.

    Raises:
        ValueError: a share that is neither `auto` nor a number between 0 and 1.
    """

    base: str | None = setting(
        None, "Name of a model of the recipe. None: the model that the retriever was first trained from."
    )
    share: float | str = setting(
        "auto",
        "Share of the base's weights, from 0 (the trained retriever) to 1 (the base), or auto: see `choose_share`.",
    )
    eval_split: str = setting("dev", "Split of the qrels that `auto` measures on.", minimum=1)
    seed: int = setting(42, "Seed of the samples that `auto` measures on.", minimum=0, maximum=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_values(self)
        self.check_passage_template()
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if self.share != "auto" and not (number and 0 <= float(self.share) <= 1):
            raise ValueError(f"share={self.share!r}: expected a number between 0 and 1, or 'auto'")


def check_mergeable(trained: SentenceTransformer, base: SentenceTransformer) -> None:
    """Raise ValueError if two retrievers have two towers or different architectures; the message names what differs."""
    if has_separate_towers(trained) or has_separate_towers(base):
        raise ValueError(
            "the retriever has a tower for queries and one for passages; expected one tower: merge before LTRe and "
            "without separate_towers"
        )
    advice = "Name the base that training started from"
    ours, theirs = (
        {name: list(weight.shape) for name, weight in model.named_parameters()} for model in (trained, base)
    )
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) == theirs.get(name):
            continue
        found = f"is only in the {'trained one' if name in ours else 'base'}"
        if name in ours and name in theirs:
            found = f"has the shape {ours[name]} in the trained one and {theirs[name]} in the base"
        raise ValueError(f"the retrievers have different architectures: parameter {name!r} {found}. {advice}")
    buffers = dict(base.named_buffers())
    for name, buffer in trained.named_buffers():
        if name not in buffers or not torch.equal(buffer.cpu(), buffers[name].cpu()):
            raise ValueError(
                f"the retrievers have different architectures: buffer {name!r} differs. {advice}"
            )


def merge_retrievers(
    trained: SentenceTransformer, base: SentenceTransformer, share: float
) -> SentenceTransformer:
    """A retriever with the weights share · base + (1 - share) · trained, computed in float32, see `check_mergeable`.

    Tokenizer, pooling, prompts and similarity are those of the trained one. Neither is changed, and adapters (LoRA) are
    merged into the weights first. At shares of 0 and 1 the weights are exactly those of one of them.
    """
    trained, base = merge_adapters(trained), merge_adapters(base)
    check_mergeable(trained, base)
    merged = copy.deepcopy(trained)
    starting = dict(base.named_parameters())
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            if share == 1:
                weight.copy_(starting[name])
            elif share != 0:
                weight.copy_(share * starting[name].float() + (1 - share) * weight.float())
    return merged
