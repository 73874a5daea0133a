"""Embeddings of a corpus on disk, and the FAISS index over them."""

from hf_ar2.index.codebook import Codebook
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.index.search import TorchSearcher

__all__ = [
    "Codebook",
    "CorpusIndex",
    "FrozenIndex",
    "TorchSearcher",
]
