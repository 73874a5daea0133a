"""Checks that an index holds the passage vectors of a given encoder."""

from __future__ import annotations

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.frozen import FrozenIndex

_PROBES = 64


# Of the probes, which ones' vectors in the index are nearest to what the model makes of them; 1 in 64 by luck.
_LEAST_RECOGNISED = 0.5


def check_fit(
    index: FrozenIndex, name: str, encoders: Encoders, retriever: SentenceTransformer, inputs: RetrieverInputs
) -> None:
    """Refuse an index that the passage encoder has not made: what it decodes is compared with what is encoded.

    Args:
        name: what the message calls the index.

    Raises:
        ValueError: vectors of another dimension, or of fewer than half of 64 passages near to what the encoder says.
    """
    dim = retriever.get_embedding_dimension()
    if index.dim != dim:
        raise ValueError(
            f"{name}: vectors of {index.dim} dimensions, but the retriever's have {dim}. Name the index of this "
            "retriever"
        )
    rows = np.sort(np.random.default_rng(0).choice(index.ntotal, min(_PROBES, index.ntotal), replace=False))
    encoded = encoders.embed_passages(retriever, inputs, rows)
    decoded = index.vectors(rows).cpu().numpy()
    decoded /= np.maximum(np.linalg.norm(decoded, axis=1, keepdims=True), 1e-12)
    recognised = float(((encoded @ decoded.T).argmax(axis=1) == np.arange(len(rows))).mean())
    if recognised < _LEAST_RECOGNISED:
        raise ValueError(
            f"{name}: of {len(rows)} passages that this retriever encoded, {recognised:.0%} are nearest to their own "
            "vectors in the index; it was made by another model, of other texts, or its ids are in another order. "
            "Name the index of this retriever and this collection"
        )
