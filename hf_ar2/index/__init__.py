"""Embeddings of a corpus on disk, and the FAISS index over them."""

from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.frozen import FrozenIndex

__all__ = [
    "CorpusIndex",
    "FrozenIndex",
]
