"""Hashes of everything that determines the vectors of an encoder."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel

from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.models.loading import similarity_of, tower, weights_fingerprint
from hf_ar2.models.lora import adapter_settings

# Fields of a transformer's configuration that its last hidden state does not depend on in evaluation mode. All other
# fields are hashed: one too many costs an encoding, one too few would return the vectors of another model.
_IGNORED_FIELDS = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",  # each weight's own counts
    "torch_dtype",
    "transformers_version",
    "sentence_transformers",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "initializer_range",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
    "gradient_checkpointing",
}


def encoder_fingerprint(encoder: nn.Module) -> str:
    """32 hex digits that identify an encoder's vectors in evaluation mode: weights, modules, configuration.

    They do not depend on dropout, on where the encoder was loaded from, or on whether it is one of two towers.

    Args:
        encoder: a `SentenceTransformer`, or the result of `tower`.
    """
    # Renumber the children: their names depend on modules that were removed before them.
    kept = [child for child in encoder.children() if "dropout" not in type(child).__name__.lower()]
    modules = nn.Sequential(*kept)
    configs = [_plain(module.config) for module in modules.modules() if isinstance(module, PreTrainedModel)]
    content: list[Any] = [weights_fingerprint(modules), [repr(child) for child in modules], configs]
    if adapters := adapter_settings(modules):
        content.append(adapters)
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _plain(config: Any) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in config.to_dict().items()
        if name not in _IGNORED_FIELDS and "dropout" not in name
    }


def index_fingerprint(retriever: SentenceTransformer, inputs: RetrieverInputs, precision: str) -> str:
    """32 hex digits that identify the contents of an index: weights, modules, dimensions, tokens, lengths, and
    `Encoders.precision`.

    Of two separate towers only that of the passages is read, so that training the other keeps the index valid.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        encoder_fingerprint(tower(retriever, "document")),
        similarity_of(retriever),
        inputs.passage_store.fingerprint,
        str(inputs.max_passage_length),
        precision,
        *([] if retriever.truncate_dim is None else [f"truncate_dim {retriever.truncate_dim}"]),
    ):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
