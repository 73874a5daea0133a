"""Texts to model inputs: tokens stored once, length-sorted batches, processes."""

from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.settings.text import TextConfig

__all__ = [
    "RankerInputs",
    "RetrieverInputs",
    "TextConfig",
]
