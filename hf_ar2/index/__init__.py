"""The tokenised corpus, its embeddings on disk, and the index over them."""

from hf_ar2.index.codebook import Codebook
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.encoding import encode_rows, token_budget_batches
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.index.search import TorchSearcher
from hf_ar2.index.tokens import InputBuilder, TokenStore, tokenize, tokenizer_fingerprint

__all__ = [
    "Codebook",
    "CorpusIndex",
    "FrozenIndex",
    "InputBuilder",
    "TokenStore",
    "TorchSearcher",
    "encode_rows",
    "token_budget_batches",
    "tokenize",
    "tokenizer_fingerprint",
]
