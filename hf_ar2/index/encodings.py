"""Indexes of one corpus by many encoders, named by fingerprint, so that nothing is encoded twice."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.files import read_json, write_json
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.meta import is_index

_NAME = re.compile(r"[0-9a-f]{32}(-float16)?")
_LOG = "log.json"


def encoding_name(fingerprint: str, dtype: str = "float32") -> str:
    """The folder of an encoding: its fingerprint, followed by the dtype if that is not float32."""
    return fingerprint if dtype == "float32" else f"{fingerprint}-{dtype}"


class Encodings:
    """A folder of indexes, one folder per fingerprint.

    Another FAISS factory over the same embeddings replaces the FAISS file; the corpus is not encoded again. Only one
    process, or the ranks of one run, may use a folder at a time.

    Args:
        folder: created when the first index is built. Other files in it are kept.

    Attributes:
        kept: folders of single indexes elsewhere, which are opened if they are what is wanted.
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

        Args:
            factory, dtype, options: of `CorpusIndex.build`.
        """
        wanted = {"fingerprint": fingerprint, "factory": factory, "dtype": dtype}
        folder = next((folder for folder in self.kept if is_index(folder, wanted)), None)
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
