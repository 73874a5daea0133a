"""Texts to model inputs: tokens stored once, length-sorted batches, processes."""

from hf_ar2.encoding.batches import encode_rows, token_budget_batches
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.tokens import TokenStore, tokenize, tokenizer_fingerprint
from hf_ar2.settings.text import TextConfig

__all__ = [
    "InputBuilder",
    "RankerInputs",
    "RetrieverInputs",
    "TextConfig",
    "TokenStore",
    "encode_rows",
    "token_budget_batches",
    "tokenize",
    "tokenizer_fingerprint",
]
