"""A check that an index holds the passage vectors of a given encoder."""

from __future__ import annotations

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.frozen import FrozenIndex

_PROBES = 64
# The share of the probes whose nearest vector in the index must be their own; by chance it is 1 in 64.
_MIN_RECOGNISED = 0.5


def check_fit(
    index: FrozenIndex, name: str, encoders: Encoders, retriever: SentenceTransformer, inputs: RetrieverInputs
) -> None:
    """Check that an index was made by this passage encoder, by encoding 64 passages again; `name` is for the message.

    Raises:
        ValueError: the dimensions differ, or for more than half of the passages the nearest of the 64 vectors decoded
            from the index is not the passage's own.
    """
    dim = retriever.get_embedding_dimension()
    if index.dim != dim:
        raise ValueError(
            f"{name}: vectors of {index.dim} dimensions, but the retriever's have {dim}. Give the index of this "
            "retriever"
        )
    rows = np.sort(np.random.default_rng(0).choice(index.ntotal, min(_PROBES, index.ntotal), replace=False))
    encoded = encoders.embed_passages(retriever, inputs, rows)
    decoded = index.vectors(rows).cpu().numpy()
    decoded /= np.maximum(np.linalg.norm(decoded, axis=1, keepdims=True), 1e-12)
    recognised = float(((encoded @ decoded.T).argmax(axis=1) == np.arange(len(rows))).mean())
    if recognised < _MIN_RECOGNISED:
        raise ValueError(
            f"{name}: of {len(rows)} passages that this retriever encoded, {recognised:.0%} are nearest to their own "
            "vectors in the index; it was made by another model, from other texts, or its ids are in another order. "
            "Give the index of this retriever and this collection"
        )
