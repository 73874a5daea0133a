"""What decides the vectors of an encoder, as a hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel

from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.models.loading import similarity_of, tower, weights_fingerprint

# Of a transformer's configuration, what its last hidden state does not depend on outside training. What is not listed
# counts: a field too many in the hash costs an encoding, a field too few would give the vectors of another model.
_NO_BEARING = {
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
    """32 hex digits of what decides an encoder's vectors in evaluation mode: weights, modules, configuration.

    Dropout does not count, nor where the encoder was loaded from, nor whether it stands alone or is a tower of a
    retriever with two.

    Args:
        encoder: a `SentenceTransformer`, or what `tower` returns.
    """
    # Numbered anew: the names of a module's children depend on what was removed before them.
    modules = nn.Sequential(*(child for child in encoder.children() if "dropout" not in _kind(child).lower()))
    configs = [_plain(module.config) for module in modules.modules() if isinstance(module, PreTrainedModel)]
    content = [weights_fingerprint(modules), [repr(child) for child in modules], configs]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _plain(config: Any) -> dict[str, str]:
    """The fields of a configuration that count, as text."""
    return {
        name: str(value)
        for name, value in config.to_dict().items()
        if name not in _NO_BEARING and "dropout" not in name
    }


def index_fingerprint(retriever: SentenceTransformer, inputs: RetrieverInputs, bf16: bool) -> str:
    """What an index is made from: weights, modules, tokens, lengths, precision; 32 hex digits.

    Of a retriever with separate towers only the passages' counts, so that training the other one leaves it valid.
    Neither dropout counts nor where the retriever was loaded from: saved and loaded again, it finds its index.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        encoder_fingerprint(tower(retriever, "document")),
        similarity_of(retriever),
        inputs.passage_store.fingerprint,
        str(inputs.max_passage_length),
        str(bf16),
    ):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
