"""The embeddings of a corpus on disk and the FAISS index over them, identified by a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from hf_ar2.encoding.batches import Encode, encode_rows
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.files import (
    DamagedFile,
    allocate,
    check_files,
    check_size,
    check_space,
    read_json,
    write_json,
    write_note,
    writing,
)
from hf_ar2.index.faiss_build import (
    faiss_bytes,
    fill_faiss_index,
    new_faiss_index,
    read_faiss_index,
    write_faiss_index,
)
from hf_ar2.index.search import FaissSearcher, TorchSearcher, query_matrix, uses_torch

if TYPE_CHECKING:
    import datasets

logger = logging.get_logger(__name__)

_FORMAT = 1
_IDS = "ids.json"
# Names that only this library uses, and those of a saved copy, which other programs may use too.
_OUR_FILES = re.compile(r"(embeddings-[0-9a-f]{16}\.npy|index-[0-9a-f]{16}\.faiss)(\.tmp)?")
_SAVED_FILES = {"embeddings": "embeddings.npy", "index": "index.faiss"}


class CorpusIndex:
    """Passage embeddings and an inner-product index over them, shared by all processes through memory maps.

    `CorpusIndex.build` makes it, `CorpusIndex.open` opens it again. The folder holds the embeddings
    (`embeddings-*.npy`), the FAISS index (`index-*.faiss`) and `meta.json`, which has their names and checksums and is
    written last, so that an interrupted build leaves no index. Building from other weights replaces the files;
    processes that have the old ones open can still use them. The disk must hold both until the new index is complete.

    Attributes:
        fingerprint: identifies what it was made from. factory: the FAISS factory string.
        embeddings: float32 or float16 memory map [N, d], read-only.
        faiss_index: the memory-mapped `faiss.Index` on the CPU; do not add to it.
        ntotal, dim: N and d.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "deep", "nets"]
        >>> tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        >>> store = TokenStore(np.array([5, 6, 6], np.int32), np.array([0, 2, 3]))
        >>> def count_deep_and_nets(inputs):
        ...     return (inputs["input_ids"][:, :, None] == torch.tensor([5, 6])).sum(1).float()
        >>> with TemporaryDirectory() as folder:
        ...     index = CorpusIndex.build(
        ...         count_deep_and_nets, InputBuilder(tokenizer, 8), store, folder, fingerprint="counts", dim=2,
        ...         show_progress=False,
        ...     )
        ...     scores, rows = index.search(np.array([[1.0, 0.5]]), k=2)
        >>> scores.tolist(), rows.tolist()
        ([[1.5, 0.5]], [[0, 1]])
    """

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        embeddings: np.ndarray,
        faiss_index: Any,
        device: str | torch.device = "cpu",
        search_parameters: str | None = None,
    ) -> None:
        self.folder = folder
        self.meta = meta
        self.fingerprint: str = meta["fingerprint"]
        self.factory: str = meta["factory"]
        self.embeddings = embeddings
        self.faiss_index = faiss_index
        self.ntotal, self.dim = embeddings.shape
        self.device = torch.device(device)
        self.search_parameters = search_parameters or meta["search_parameters"]
        self._searcher: FaissSearcher | TorchSearcher | None = None

    @classmethod
    def build(
        cls,
        encode: Encode,
        builder: InputBuilder,
        store: TokenStore,
        folder: str | Path,
        *,
        fingerprint: str,
        dim: int,
        factory: str = "Flat",
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        budget: int = 16384,
        search_parameters: str | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        barrier: Callable[[], None] = lambda: None,
        on_encoded: Callable[[float], None] = lambda seconds: None,
        encoded: Path | None = None,
        show_progress: bool = True,
    ) -> CorpusIndex:
        """Encode the corpus and index it, or open an index with the same fingerprint, factory and dtype.

        With several processes every rank calls this with the same arguments, `rank` apart. Each encodes its share into
        one file, which all must see (one machine, or a shared file system); rank 0 then builds the FAISS index.

        Args:
            encode, builder, budget, show_progress: as in `encode_rows`.
            store: the tokenised corpus, N passages.
            folder: of the index; an earlier index in it is replaced, other files are kept.
            fingerprint: identifies the weights, the pooling, the lengths and the data.
            dim: d of the embeddings.
            factory: FAISS factory string, such as "Flat" (exact), "IVF256,Flat", "HNSW32", "OPQ24,PQ24". If it needs
                training, it is trained on a seeded random sample of the passages.
            dtype: of the stored embeddings, "float32" or "float16"; FAISS gets float32 values of them.
            device: for encoding, and for searching later.
            search_parameters: such as "nprobe=16" or "efSearch=128", stored with the index.
            seed: of the training sample.
            rank, world_size, barrier: this process, the number of processes, and a function that waits for all.
            on_encoded: called on rank 0 with the seconds that encoding took, if the corpus had to be encoded.
            encoded: a .npy file with the embeddings [N, d] of this dtype, complete, on the same disk as the folder. It
                is moved there, and nothing is encoded.

        Raises:
            ValueError: an unknown factory or dtype, an empty corpus, too few passages to train the index, embeddings
                that are not finite, or an index.faiss or embeddings.npy in the folder that is not this library's.
            OSError: the disk has too little space, before anything is encoded.
        """
        wanted: dict[str, Any] = {"format": _FORMAT, "fingerprint": fingerprint, "factory": factory}
        wanted |= {"dtype": dtype, "dim": dim, "ntotal": len(store)}
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', found {dtype!r}")
        if len(store) == 0:
            raise ValueError("the corpus is empty: there is nothing to index")
        folder = Path(folder)
        if rank == 0:
            _forget_damaged(folder)
        barrier()
        found = _complete_meta(folder)
        if found is not None and all(found[name] == value for name, value in wanted.items()):
            return cls._open(folder, fingerprint, device, search_parameters)
        _check_no_foreign_files(folder)
        empty = new_faiss_index(factory, dim)  # a bad factory string fails before the corpus is encoded
        names = _file_names(wanted)
        barrier()  # every rank must read the folder before one changes it
        if encoded is not None:
            if rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                check_space(folder, faiss_bytes(empty, len(store)))
                os.replace(encoded, folder / names["embeddings"])
        elif found is None or found["files"]["embeddings"] != names["embeddings"]:
            path = folder / names["embeddings"]
            if rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)  # left by an interrupted build
                size = np.dtype(dtype).itemsize * len(store) * dim
                check_space(folder, size + faiss_bytes(empty, len(store)))
                new_array(path, dtype, (len(store), dim))
            barrier()
            embeddings = np.load(path, mmap_mode="r+")
            started = time.perf_counter()
            encode_rows(
                encode,
                builder,
                store,
                np.arange(len(store)),
                embeddings,
                budget=budget,
                device=device,
                rank=rank,
                world_size=world_size,
                description="Encoding the corpus",
                show_progress=show_progress and rank == 0,
            )
            embeddings.flush()
            barrier()
            if rank == 0:
                on_encoded(time.perf_counter() - started)
        if rank == 0:
            fill_faiss_index(empty, np.load(folder / names["embeddings"], mmap_mode="r"), seed)
            write_faiss_index(empty, folder / names["index"])
            old = _named_files(folder)
            _write_meta(folder, wanted | {"search_parameters": search_parameters, "files": names})
            _remove_old_files(folder, old, names)
        del empty  # frees the memory: the index is mapped from disk below
        barrier()
        return cls._open(folder, fingerprint, device)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        fingerprint: str | None = None,
        device: str | torch.device = "cpu",
        search_parameters: str | None = None,
    ) -> CorpusIndex:
        """Map an existing index.

        Args:
            folder: written by `build` or `save`.
            fingerprint: the expected one; None accepts any.
            device: for searching. search_parameters: instead of those stored with the index.

        Raises:
            FileNotFoundError: no index there. ValueError: another fingerprint, or damaged files.
        """
        return cls._open(Path(folder), fingerprint, device, search_parameters, verify=True)

    @classmethod
    def _open(
        cls,
        folder: Path,
        fingerprint: str | None,
        device: str | torch.device,
        search_parameters: str | None = None,
        verify: bool = False,
    ) -> CorpusIndex:
        """As `open`; the checksums are compared if `verify`, which of several processes one does."""
        while True:
            meta = read_meta(folder)
            if fingerprint is not None and meta["fingerprint"] != fingerprint:
                raise ValueError(
                    f"the index in {folder} was made from other weights, another tokenizer or another corpus: "
                    f"its fingerprint is {meta['fingerprint']}, expected {fingerprint}. Build it again with "
                    "CorpusIndex.build (hf-ar2 index), or open it with the model and corpus it was made from."
                )
            try:
                if verify:
                    _check_contents(folder, meta)
                else:
                    _check_sizes(folder, meta)
                embeddings = np.load(folder / meta["files"]["embeddings"], mmap_mode="r")
                faiss_index = read_faiss_index(folder / meta["files"]["index"])
            except (FileNotFoundError, ValueError):
                if read_meta(folder) == meta:
                    raise
                continue  # another process replaced it meanwhile
            if embeddings.shape != (meta["ntotal"], meta["dim"]) or faiss_index.ntotal != meta["ntotal"]:
                raise ValueError(
                    f"the index in {folder} is damaged: embeddings of shape {embeddings.shape} and a FAISS index "
                    f"of {faiss_index.ntotal} vectors, expected {meta['ntotal']} of {meta['dim']}. Build it again."
                )
            return cls(folder, meta, embeddings, faiss_index, device, search_parameters)

    def __len__(self) -> int:
        return self.ntotal

    def __repr__(self) -> str:
        return (
            f"CorpusIndex({self.ntotal:,} passages, d={self.dim}, {self.embeddings.dtype}, "
            f"factory={self.factory!r}, fingerprint={self.fingerprint!r})"
        )

    def search(self, queries: np.ndarray | torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k passages of highest inner product with each query.

        On a GPU that FAISS cannot use, `TorchSearcher` searches an index of the factory "Flat".

        Args:
            queries: [Q, d] of any float dtype. k: passages per query; may exceed N.

        Returns:
            scores float32 [Q, k] and passage rows int64 [Q, k], best first, the lower row first where scores are equal;
            padded with -inf and -1.

        Raises:
            ValueError: queries of another shape or not finite, k below 1, or above 2048 with FAISS on a GPU.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, found {k}")
        matrix = query_matrix(queries, self.dim)
        if self._searcher is None:
            self._searcher = (
                TorchSearcher(self.embeddings, self.device)
                if self.factory == "Flat" and uses_torch(self.device)
                else FaissSearcher(self.faiss_index, self.device, self.search_parameters)
            )
        return self._searcher.search(matrix, k)

    def release_device(self) -> None:
        """Free the GPU memory of the search; the next search allocates it again."""
        self._searcher = None

    def attach(self, corpus: datasets.Dataset, name: str = "embeddings") -> datasets.Dataset:
        """Make `corpus.search_batch(name, ...)`, `get_nearest_examples_batch`, `save_faiss_index` work on this index.

        Nothing is copied: the dataset refers to `faiss_index`. An index that it had under this name is replaced.
        Attach last: `select`, `filter` and `shuffle` fail on a dataset with an index, `map` drops it, and
        `remove_columns` or `with_format` copy it.

        Returns:
            the same dataset.

        Raises:
            ValueError: the corpus has another number of passages.
        """
        from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        if len(corpus) != self.ntotal:
            raise ValueError(
                f"the index holds {self.ntotal} passages, but the corpus to attach it to has {len(corpus)}: "
                "it was built from another corpus"
            )
        if name in corpus.list_indexes():
            corpus.drop_index(name)
        shown = not are_progress_bars_disabled()
        disable_progress_bars()  # of adding no vectors
        try:
            # An empty array: the vectors are in the index already, and datasets would add them again.
            corpus.add_faiss_index_from_external_arrays(
                np.empty((0, self.dim), np.float32), name, custom_index=self.faiss_index
            )
        finally:
            if shown:
                enable_progress_bars()
        return corpus

    def save(self, folder: str | Path) -> None:
        """Copy the index to another folder, as embeddings.npy, index.faiss and meta.json; `open` reads it.

        Raises:
            ValueError: the index's own folder, or one with an index.faiss or embeddings.npy that is not this library's.
        """
        folder = Path(folder)
        if folder.resolve() == self.folder.resolve():
            raise ValueError(f"{folder} is the folder of the index itself; name another to copy it to")
        _check_no_foreign_files(folder)
        names, old = _SAVED_FILES, _named_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)  # until the copy is complete
        # From the open maps: a rebuild may have removed their files.
        check_space(folder, self.embeddings.nbytes + faiss_bytes(self.faiss_index, self.ntotal))
        temporary = folder / f"{names['embeddings']}.tmp"
        with writing(temporary, self.embeddings.nbytes), open(temporary, "wb") as file:
            np.save(file, self.embeddings)
        check_size(temporary, self.embeddings.nbytes)
        os.replace(temporary, folder / names["embeddings"])
        write_faiss_index(self.faiss_index, folder / names["index"])
        _write_meta(folder, self.meta | {"files": names})
        _remove_old_files(folder, old, names)

    def save_ids(self, ids: Sequence[str]) -> None:
        """Write `ids.json`, the ids of the passages in their order, which other programs need with the FAISS file."""
        write_json(self.folder / _IDS, list(ids))
        self.meta["files"] = self.meta["files"] | {"ids": _IDS}
        _write_meta(self.folder, self.meta)


def new_array(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Write a .npy file of zeros to fill through a memory map; its space on the disk is reserved.

    Raises:
        OSError: the disk is full; no file is left.
    """
    try:
        with writing(path):
            np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape).flush()
        allocate(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _file_names(meta: dict[str, Any]) -> dict[str, str]:
    """Names that depend on the contents, so that a new index never overwrites one that is open."""

    def digest(*fields: str) -> str:
        return hashlib.sha256(json.dumps([meta[field] for field in fields]).encode("utf-8")).hexdigest()[:16]

    encoded = ("format", "fingerprint", "dtype", "dim", "ntotal")
    return {
        "embeddings": f"embeddings-{digest(*encoded)}.npy",
        "index": f"index-{digest(*encoded, 'factory')}.faiss",
    }


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    files = {kind: folder / name for kind, name in meta["files"].items()}
    sizes = {kind: path.stat().st_size for kind, path in files.items()}
    write_note(folder / "meta.json", meta | {"bytes": sizes}, files.values())


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta.json of an index; `files` has the names of its `embeddings` and `index`.

    Raises:
        FileNotFoundError: no index there. ValueError: a meta.json that is damaged, or not of this version.
    """
    path = folder / "meta.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no index: meta.json is missing. None was built there, or the build was interrupted; "
            "build it with CorpusIndex.build (hf-ar2 index)."
        )
    try:
        meta = read_json(path)
    except DamagedFile as error:
        raise DamagedFile(f"{error}: delete {folder} and build the index again") from error
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise ValueError(
            f"{path}: this version cannot read the index: found format {found}, expected {_FORMAT}. "
            f"Delete {folder} and build the index again."
        )
    return meta


def _check_contents(folder: Path, meta: dict[str, Any]) -> None:
    _check_sizes(folder, meta)
    check_files(folder, meta.get("checksums", {}), f"Delete {folder} and build the index again.")


def _forget_damaged(folder: Path) -> None:
    """Delete the files of an index if one is damaged, and say so: it is built again."""
    try:
        if (folder / "meta.json").is_file():
            _check_contents(folder, read_meta(folder))
    except ValueError as error:
        logger.warning(f"{error} It is built again now.")
        _remove_old_files(folder, _named_files(folder), {})


def _check_sizes(folder: Path, meta: dict[str, Any]) -> None:
    for kind, name in meta["files"].items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != meta["bytes"][kind]:
            raise DamagedFile(
                f"{path} is {'missing' if found is None else f'{found} bytes long'}, expected "
                f"{meta['bytes'][kind]} bytes: the index is damaged. Delete {folder} and build it again "
                "(hf-ar2 index)."
            )


def _complete_meta(folder: Path) -> dict[str, Any] | None:
    """The meta.json of the index in a folder; None if there is no index or it is damaged."""
    try:
        meta = read_meta(folder)
        _check_sizes(folder, meta)
    except (FileNotFoundError, ValueError):
        return None
    return meta


def _named_files(folder: Path) -> set[str]:
    """The files that a folder's meta.json names; it may be damaged."""
    try:
        return set(json.loads((folder / "meta.json").read_text(encoding="utf-8"))["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _check_no_foreign_files(folder: Path) -> None:
    """Raise if a folder has vectors or a FAISS file that no meta.json describes."""
    for name in set(_SAVED_FILES.values()) - _named_files(folder):
        if (folder / name).exists():
            raise ValueError(
                f"{folder}: found {name}, which no meta.json there names, so it is not this library's. Name another "
                "folder for the index (to use a FAISS file: `hf-ar2 tune-queries --index`), or delete "
                f"{name} if an interrupted copy left it"
            )


def _remove_old_files(folder: Path, old: set[str], names: dict[str, str]) -> None:
    """Remove the files of an earlier index or an interrupted build, and no others."""
    old = old & {*_SAVED_FILES.values(), _IDS}
    for path in folder.iterdir():
        if (path.name in old or _OUR_FILES.fullmatch(path.name)) and path.name not in names.values():
            path.unlink()
