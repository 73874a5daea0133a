"""How long a text may be, by the limit saved with a model and by its positions, and how wide an embedding is."""

from __future__ import annotations

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import nn

_POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")


def set_length_limit(model: SentenceTransformer | CrossEncoder, max_length: int | None) -> None:
    """Set the longest text of a model in tokens, special tokens included (None: the saved limit).

    A saved limit that exceeds the model's positions is lowered; such a `max_length` raises ValueError.
    """
    positions = position_count(model)
    if max_length is not None and positions is not None and max_length > positions:
        raise ValueError(
            f"max_length={max_length}: the model has positions for {positions} tokens; expected at most that"
        )
    if max_length is not None:
        model.max_seq_length = max_length
    elif positions is not None and (model.max_seq_length or positions + 1) > positions:
        model.max_seq_length = positions


def set_truncate_dim(retriever: SentenceTransformer, truncate_dim: int) -> None:
    """Cut a retriever's embeddings to their first dimensions, also when saved; ValueError for a number beyond them."""
    retriever.truncate_dim = None
    full = retriever.get_embedding_dimension()
    if type(truncate_dim) is not int or not 1 <= truncate_dim <= (full or truncate_dim):
        raise ValueError(
            f"truncate_dim={truncate_dim!r}: the retriever's embeddings have {full} dimensions; expected a whole "
            "number from 1 to that"
        )
    retriever.truncate_dim = truncate_dim


def position_count(model: nn.Module) -> int | None:
    """The tokens for which a model has learned absolute positions; None if it has no table of positions.

    RoBERTa and its relatives number positions from the padding token's id + 1, so that 514 positions hold 512 tokens.
    """
    counts = []
    for transformer in [module for module in model.modules() if isinstance(module, Transformer)]:
        for module in transformer.model.modules():
            for name in _POSITION_TABLES:
                table = getattr(module, name, None)
                if isinstance(table, nn.Embedding):
                    padding = getattr(module, "padding_idx", None)
                    first = padding + 1 if isinstance(padding, int) else getattr(table, "offset", 0)
                    counts.append(table.num_embeddings - int(first))
    return min(counts, default=None)
