"""An index that stays fixed while the query encoder is trained, with the passage vectors that the loss needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from hf_ar2.collections.tables import content_hash
from hf_ar2.files import check_files, checksum, read_json, write_json, write_note
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.faiss_build import import_faiss, read_faiss_index, write_faiss_index
from hf_ar2.index.meta import read_meta
from hf_ar2.index.search import NO_RANGES, FaissSearcher, TorchSearcher, query_matrix, uses_torch
from hf_ar2.index.shards import Shards
from hf_ar2.terminal import counted

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_ar2.encoding.inputs import RetrieverInputs
    from hf_ar2.index.encoders import Encoders

Vectors = Literal["exact", "index"]
INDEX_FILE, IDS_FILE, ABOUT_FILE = "index.faiss", "ids.json", "index.json"
# Passages that `check_fit` encodes.
_PROBES = 64
# The share of the probes whose nearest vector in the index must be their own; by chance it is 1 in 64.
_MIN_RECOGNISED = 0.5


class FrozenIndex:
    """Search over a whole corpus, and the vectors of the passages found, by corpus row.

    It is not an `nn.Module`: checkpoints hold its fingerprint, not its passages.

    Args:
        faiss_index: an inner-product index.
        fingerprint: identifies passages, encoder and factory.
        embeddings: float32 or float16 `[N, d]`, the indexed vectors in corpus order; None: the index decodes its own.
        corpus_rows: int64 `[N]`, the corpus row of each position of the index; None: they are the same.
        vectors: "exact" returns `embeddings`; "index" returns the vectors decoded from the index, which its scores are
            computed from.
        device: of the vectors and of the search. On a GPU that FAISS cannot use, `TorchSearcher` searches an exact
            index (`IndexFlat`); every other type is searched on the CPU.
        search_parameters: such as "nprobe=16" or "efSearch=128".

    Attributes:
        ntotal, dim: N and d.

    Raises:
        ValueError: an index with L2 distances or with its own ids, or `vectors="exact"` for a compressed index
            without embeddings.

    Example:
        >>> index = import_faiss().IndexFlatIP(2)
        >>> index.add(np.eye(2, dtype=np.float32))
        >>> frozen = FrozenIndex(index, "unit vectors", np.eye(2, dtype=np.float32))
        >>> scores, rows = frozen.search(np.array([[0.5, 2.0]]), k=2)
        >>> scores.tolist(), rows.tolist(), frozen.vectors(rows[:, :1]).tolist()
        ([[2.0, 0.5]], [[1, 0]], [[[0.0, 1.0]]])
    """

    def __init__(
        self,
        faiss_index: Any,
        fingerprint: str,
        embeddings: np.ndarray | Shards | None = None,
        corpus_rows: np.ndarray | None = None,
        vectors: Vectors = "exact",
        device: str | torch.device = "cpu",
        search_parameters: str | None = None,
    ) -> None:
        faiss = import_faiss()
        if faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(
                "the index compares by L2 distance, expected inner products (METRIC_INNER_PRODUCT)"
            )
        if isinstance(faiss_index, faiss.IndexIDMap):
            raise ValueError(
                "the index numbers its passages itself (IndexIDMap); expected positions and a file of ids in that order"
            )
        self.faiss_index = faiss_index
        self.fingerprint = fingerprint
        self.embeddings = embeddings
        self.corpus_rows = corpus_rows
        self.vectors_are = vectors
        self.device = torch.device(device)
        self.ntotal, self.dim = faiss_index.ntotal, faiss_index.d
        uncompressed = isinstance(faiss_index, faiss.IndexFlat | faiss.IndexHNSWFlat | faiss.IndexIVFFlat)
        if vectors == "exact" and embeddings is None and not uncompressed:
            raise ValueError(
                f"vectors='exact': a {type(faiss_index).__name__} keeps only compressed vectors; use vectors='index', "
                "the vectors that are searched when the model is served"
            )
        self._positions: np.ndarray | None = None
        if corpus_rows is not None:
            self._positions = np.empty(len(corpus_rows), np.int64)
            self._positions[corpus_rows] = np.arange(len(corpus_rows))
        self._searcher: FaissSearcher | TorchSearcher
        if isinstance(faiss_index, faiss.IndexFlat) and uses_torch(device):
            stored = embeddings if corpus_rows is None else None
            if stored is None:
                stored = _stored_vectors(faiss_index)
            self._searcher = TorchSearcher(stored, device)
        else:
            self._searcher = FaissSearcher(faiss_index, device, search_parameters)
        if self._decodes and (lists := faiss.try_extract_index_ivf(faiss_index)) is not None:
            lists.make_direct_map()  # needed to look up passages by number

    @classmethod
    def from_corpus_index(cls, index: CorpusIndex, writable: bool = False, **options: Any) -> FrozenIndex:
        """From an index that this library built.

        Args:
            writable: read the FAISS index into memory, for centroids that will change.
            options: `vectors`, `device` and `search_parameters`.
        """
        loaded = index.faiss_index
        if writable:
            loaded = import_faiss().read_index(str(index.folder / index.meta["files"]["index"]))
        fingerprint = f"{index.fingerprint}:{index.factory}:{index.embeddings.dtype}"
        return cls(loaded, fingerprint, index.embeddings, **options)

    @classmethod
    def from_files(
        cls,
        path: str | Path,
        corpus_ids: Sequence[str],
        ids: str | Path | None = None,
        writable: bool = False,
        **options: Any,
    ) -> FrozenIndex:
        """From a FAISS file, and the ids of its passages in the order they were added.

        Args:
            path: the FAISS file, or a folder: one that `hf-ar2 index` wrote, or with `index.faiss` and `ids.json`.
            corpus_ids: the ids of the corpus, by row.
            ids: a JSON list of ids, or a text file with one per line; None: `ids.json` next to the FAISS file.
            writable, options: as in `from_corpus_index`; `vectors` is "index" by default.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the ids are not exactly those of the corpus, or a file is not what was written in its folder.
        """
        path = Path(path)
        path = path / _index_file(path) if path.is_dir() else path
        ids = Path(ids) if ids is not None else path.with_name(IDS_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such FAISS index")
        if not ids.is_file():
            raise FileNotFoundError(
                f"{ids}: no such file; expected the ids of the index's passages in its order, as a JSON list or one "
                "per line"
            )
        _check_checksums(path, ids)
        faiss_index = import_faiss().read_index(str(path)) if writable else read_faiss_index(path)
        rows = _rows_of_ids(_read_ids(ids), corpus_ids, ids, faiss_index.ntotal, path)
        in_order = bool((rows == np.arange(len(rows))).all())
        return cls(
            faiss_index,
            content_hash(checksum(path).encode(), checksum(ids).encode()),
            corpus_rows=None if in_order else rows,
            **{"vectors": "index", **options},
        )

    def search(
        self, queries: np.ndarray | Tensor, k: int, within: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query `[Q, d]`.

        Args:
            within: the rows of an exact index in corpus order that are searched, from the first to before the last;
                None: all.

        Returns:
            scores float32 `[Q, k]` and corpus rows int64 `[Q, k]`, best first; -inf and -1 where there are no more.
        """
        if within is not None and self.corpus_rows is not None:
            raise ValueError(f"an index in another order {NO_RANGES}")
        scores, positions = self._searcher.search(query_matrix(queries, self.dim), k, within)
        if self.corpus_rows is None:
            return scores, positions
        return scores, np.where(positions >= 0, self.corpus_rows[positions], -1)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """The positions of corpus rows (none negative) in the index."""
        return rows if self._positions is None else self._positions[rows]

    def vectors(self, rows: np.ndarray) -> Tensor:
        """Vectors float32 `[..., d]` of corpus rows int64 `[...]`, on the device; for -1 the vector of row 0."""
        wanted = np.maximum(rows, 0)
        if isinstance(self._searcher, TorchSearcher) and self._searcher.stored is not None:
            stored = self._searcher.stored
            return stored[torch.from_numpy(self.positions(wanted)).to(stored.device)].float()
        if not self._decodes:
            assert self.embeddings is not None
            return torch.from_numpy(np.asarray(self.embeddings[wanted], np.float32)).to(self.device)
        unique, places = np.unique(self.positions(wanted), return_inverse=True)
        decoded = self.faiss_index.reconstruct_batch(unique)
        return torch.from_numpy(decoded[places].reshape(*rows.shape, -1)).to(self.device)

    def save(
        self, folder: str | Path, corpus_ids: Sequence[str], about: dict[str, Any] | None = None
    ) -> None:
        """Write `index.faiss` (which FAISS reads), `ids.json` in its order, and its description `index.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_faiss_index(self.faiss_index, folder / INDEX_FILE)
        ids = list(corpus_ids)
        if self.corpus_rows is not None:
            ids = [ids[row] for row in self.corpus_rows]
        write_json(folder / IDS_FILE, ids)
        described = {"passages": self.ntotal, "dimension": self.dim, "type": type(self.faiss_index).__name__}
        about = described | {"made_from": self.fingerprint} | (about or {})
        write_note(folder / ABOUT_FILE, about, [folder / INDEX_FILE, folder / IDS_FILE])

    @property
    def _decodes(self) -> bool:
        return self.vectors_are == "index" or self.embeddings is None


def check_fit(
    index: FrozenIndex, name: str, encoders: Encoders, retriever: SentenceTransformer, inputs: RetrieverInputs
) -> None:
    """Check that this passage encoder made an index, by encoding 64 passages again; `name` is for the message.

    Raises:
        ValueError: the dimensions differ, or fewer than half of the passages are nearest to their own vector, decoded
            from the index, among those of all 64.
    """
    dim = retriever.get_embedding_dimension()
    if index.dim != dim:
        raise ValueError(
            f"{name}: vectors of {index.dim} dimensions, but the retriever's have {dim}. Use the index of this "
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
            "Use the index of this retriever and this collection"
        )


def _stored_vectors(index: Any) -> np.ndarray:
    """The vectors of an `IndexFlat`, float32 `[N, d]`: a view, so the index must stay alive."""
    found: np.ndarray = import_faiss().rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return found.reshape(index.ntotal, index.d)


def _index_file(folder: Path) -> str:
    """The name of the FAISS file in a folder; the meta.json of a `CorpusIndex` has it."""
    if not (folder / "meta.json").is_file():
        return INDEX_FILE
    name = read_meta(folder)["files"].get("index")
    if name is None:
        raise ValueError(
            f"{folder}: several processes built this index, without a FAISS file. `hf-ar2 index --out {folder}` with "
            "the same model and collection writes it; nothing is encoded again"
        )
    return str(name)


def _read_ids(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
        return [line for line in text.split("\n") if line.strip()]
    try:
        ids = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(ids, list) or not all(isinstance(id, str | int) for id in ids):
        raise ValueError(f"{path}: expected a JSON list of passage ids, which are strings or integers")
    return list(map(str, ids))


def _rows_of_ids(
    ids: list[str], corpus_ids: Sequence[str], ids_path: Path, ntotal: int, index_path: Path
) -> np.ndarray:
    """The corpus row of each position of the index, int64 `[N]`."""
    if len(ids) != ntotal:
        raise ValueError(
            f"{ids_path}: {counted(len(ids), 'ids')}, but {index_path} holds {counted(ntotal, 'passages')}"
        )
    known = {id: row for row, id in enumerate(corpus_ids)}
    unknown = [id for id in ids if id not in known]
    if unknown or len(ids) != len(known) or len(set(ids)) != len(ids):
        found = f"{len(ids):,} ids ({len(set(ids)):,} of them different)"
        what = f"the id {unknown[0]!r} is not in the corpus" if unknown else found
        raise ValueError(
            f"{ids_path}: {what}; expected each of the corpus's {len(known):,} ids once, in the order of the index"
        )
    return np.array([known[id] for id in ids], np.int64)


def _check_checksums(*paths: Path) -> None:
    """Compare files with their checksums in the `index.json` or `meta.json` next to them, where there is one."""
    for path in paths:
        for note in (path.with_name(ABOUT_FILE), path.with_name("meta.json")):
            known = read_json(note) if note.is_file() else {}
            known = known.get("checksums", {}) if isinstance(known, dict) else {}
            named = {path.name: known[path.name]} if path.name in known else {}
            check_files(path.parent, named, "Copy the index again, or build it again (hf-ar2 index).")
