"""A trained retriever's weights averaged with those it started from: general search is kept, at some cost in-domain."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer

from hf_ar2.models.loading import has_separate_towers
from hf_ar2.settings.fields import setting
from hf_ar2.settings.text import EncodingConfig

# What is kept where the queries of dev cannot tell.
SHARE_UNMEASURED = 0.5
# Up to here more of the starting weights is taken where dev shows no difference.
SHARE_FREE = 0.3
# Of the metric on dev: as much may be lost by more than that. With few queries no difference is significant.
MOST_LOST = 0.02


@dataclass
class MergeConfig(EncodingConfig):
    """How much of the starting weights a merged retriever gets.

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
    eval_split: str = setting("dev", "Split of the qrels that `auto` measures on.")
    seed: int = setting(42, "Seed of the samples that `auto` measures on.")

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if self.share != "auto" and not (number and 0 <= float(self.share) <= 1):
            raise ValueError(f"share={self.share!r}: expected a number between 0 and 1, or 'auto'")


def check_mergeable(trained: SentenceTransformer, base: SentenceTransformer) -> None:
    """Refuse two retrievers whose weights cannot be averaged.

    Raises:
        ValueError: a tower each for queries and passages; another architecture, with the first parameter or buffer
            that differs.
    """
    if has_separate_towers(trained) or has_separate_towers(base):
        raise ValueError(
            "the retriever has a tower for queries and one for passages; expected one tower, so merge before LTRe and "
            "without separate_towers"
        )
    ours, theirs = (
        {name: tuple(weight.shape) for name, weight in model.named_parameters()} for model in (trained, base)
    )
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) == theirs.get(name):
            continue
        if name in ours and name in theirs:
            found = (
                f"has the shape {list(ours[name])} in the trained one and {list(theirs[name])} in the base"
            )
        else:
            found = f"is only in the {'trained one' if name in ours else 'base'}"
        raise ValueError(
            f"the retrievers have different architectures: parameter {name!r} {found}. Name the base that training "
            "started from"
        )
    buffers = dict(base.named_buffers())
    for name, buffer in trained.named_buffers():
        if name not in buffers or not torch.equal(buffer.cpu(), buffers[name].cpu()):
            raise ValueError(
                f"the retrievers have different architectures: buffer {name!r} differs. Name the base that training "
                "started from"
            )


def merge_retrievers(
    trained: SentenceTransformer, base: SentenceTransformer, share: float
) -> SentenceTransformer:
    """A retriever whose every weight is share · base + (1 - share) · trained, computed in float32.

    All else is the trained one's: tokenizer, pooling, prompts, similarity.

    Args:
        trained, base: one-tower retrievers of one architecture, on one device; both stay as they are.
        share: of the base, between 0 and 1; at 0 and 1 the weights are those of the one or the other, bit for bit.

    Raises:
        ValueError: see `check_mergeable`.
    """
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
