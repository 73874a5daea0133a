"""Indexes of one corpus by many encoders, named by fingerprint, so that nothing is encoded twice."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel

from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.files import read_json, write_json
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.meta import matching_meta
from hf_ar2.models.loading import similarity_of, tower, weights_fingerprint
from hf_ar2.models.lora import adapter_settings

_NAME = re.compile(r"[0-9a-f]{32}(-float16)?")
_LOG = "log.json"
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

    Dropout and the place it was loaded from do not matter, nor whether it is one of two towers (see `tower`).
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
    """32 hex digits for all that decides the contents of an index: weights, modules, dimensions, tokens, lengths,
    precision.

    Of two separate towers only that of the passages counts, so that training the other keeps the index valid.
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


def encoding_name(fingerprint: str, dtype: str = "float32") -> str:
    """The folder of an encoding: its fingerprint, followed by the dtype if that is not float32."""
    return fingerprint if dtype == "float32" else f"{fingerprint}-{dtype}"


class Encodings:
    """A folder of indexes, one folder per fingerprint.

    Another FAISS factory over the same embeddings replaces the FAISS file; the corpus is not encoded again. Only one
    process, or the ranks of one run, may use a folder at a time. It is created with the first index, and other files in
    it are kept.

    Attributes:
        kept: folders of single indexes elsewhere, which are opened if they fit.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.kept: Sequence[Path] = ()

    def index(
        self,
        encoders: Encoders,
        retriever: SentenceTransformer,
        inputs: RetrieverInputs,
        fingerprint: str,
        factory: str = "Flat",
        dtype: str = "float32",
        **options: Any,
    ) -> CorpusIndex:
        """The index with a fingerprint (see `index_fingerprint`): opened if it exists, else encoded and built.

        `factory`, `dtype` and `options` are those of `CorpusIndex.build`.
        """
        wanted = {"fingerprint": fingerprint, "factory": factory, "dtype": dtype}
        folder = next((kept for kept in self.kept if matching_meta(kept, wanted, verify=True)), None)
        if self.kept:
            folder = encoders.processes.of_first(folder)
        if folder is None:
            name = encoding_name(fingerprint, dtype)
            folder = self.folder / name
            options["on_encoded"] = lambda seconds: write_json(
                self.folder / _LOG, [*self.log(), {"encoding": name, "seconds": round(seconds, 3)}]
            )
        return encoders.build_index(retriever, inputs, folder, fingerprint, factory, dtype, **options)

    def remove(self, name: str) -> None:
        """Delete an encoding; processes that have it open can still use it."""
        # meta.json is deleted first, so that an interrupted deletion leaves no index rather than a damaged one.
        (self.folder / name / "meta.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def keep_only(self, names: Iterable[str]) -> None:
        """Delete every encoding that is not named."""
        kept = set(names)
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _NAME.fullmatch(path.name) and path.name not in kept:
                self.remove(path.name)

    def log(self) -> list[dict[str, Any]]:
        """An entry for each time the corpus was encoded: `encoding` (its name) and `seconds`."""
        return list(read_json(self.folder / _LOG, []))
