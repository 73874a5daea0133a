"""The embeddings of a corpus on disk and the FAISS index over them, identified by a fingerprint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hf_ar2.encoding.batches import Encode
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.processes import Processes, share_of
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.files import check_space, write_json
from hf_ar2.index.faiss_build import (
    faiss_bytes,
    fill_faiss_index,
    new_faiss_index,
    read_faiss_index,
    write_faiss_index,
)
from hf_ar2.index.meta import (
    ENCODED,
    FORMAT,
    IDS,
    SAVED_FILES,
    check_contents,
    check_no_foreign_files,
    check_sizes,
    file_name,
    forget_damaged,
    matching_meta,
    named_files,
    open_shards,
    read_meta,
    remove_old_files,
    shard_kinds,
    write_meta,
)
from hf_ar2.index.search import (
    NO_RANGES,
    FaissSearcher,
    FlatSearcher,
    TorchSearcher,
    query_matrix,
    uses_torch,
)
from hf_ar2.index.shards import Shards, all_shards, copy_array, describe_shard, encode_shard
from hf_ar2.terminal import counted


class CorpusIndex:
    """Passage embeddings and an inner-product index over them, shared by all processes through memory maps.

    `CorpusIndex.build` makes it, `CorpusIndex.open` opens it again. The folder holds the embeddings
    (`embeddings-*.npy`), the FAISS index (`index-*.faiss`) and `meta.json`, which has their names and checksums and is
    written last, so that an interrupted build leaves no index. Building from other weights replaces the files;
    processes that have the old ones open can still use them. The disk must hold both until the new index is complete.

    Each of n processes encodes N/n successive rows into a separate file (`embeddings-*.RANK-of-n.npy`). An index of
    the factory "Flat" that n > 1 processes build has no FAISS file: each searches its own rows for all queries, see
    `search`. Then each process holds only its N/n rows: on a CPU a memory map, whose pages the system may drop, and
    N/n·d·2 bytes on a GPU (N/n·d·4 more for float32 embeddings, if they fit). Any number of processes can open it.

    Attributes:
        fingerprint: identifies what it was made from. factory: the FAISS factory string.
        embeddings: float32 or float16 `[N, d]`, read-only: a memory map, or `Shards`, which several maps are read
            through.
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
        shards: Sequence[np.ndarray],
        faiss_index: Any = None,
        device: str | torch.device = "cpu",
        search_parameters: str | None = None,
    ) -> None:
        self.folder = folder
        self.meta = meta
        self.fingerprint: str = meta["fingerprint"]
        self.factory: str = meta["factory"]
        self._shards = Shards(shards)
        self.embeddings = shards[0] if len(shards) == 1 else self._shards
        self._faiss_index = faiss_index
        self.ntotal, self.dim = self._shards.shape
        self.device = torch.device(device)
        self.search_parameters = search_parameters or meta["search_parameters"]
        self._searcher: FaissSearcher | FlatSearcher | TorchSearcher | None = None
        self._searched: tuple[int, int] | None = None

    @property
    def faiss_index(self) -> Any:
        """The memory-mapped `faiss.Index`; without a FAISS file it is made on first use, in N·d·4 bytes of memory."""
        if self._faiss_index is None:
            self._faiss_index = new_faiss_index(self.factory, self.dim)
            fill_faiss_index(self._faiss_index, self._shards, seed=0)
        return self._faiss_index

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
        processes: Processes | None = None,
        whole: bool = False,
        on_encoded: Callable[[float], None] = lambda seconds: None,
        encoded: Path | None = None,
        show_progress: bool = True,
    ) -> CorpusIndex:
        """Encode the corpus and index it, or open an index with the same fingerprint, factory and dtype.

        With several processes every rank calls this with the same arguments. Each encodes its share of the rows into
        its own file, which is copied to machines that do not see it. Rank 0 builds the FAISS index, where there is one,
        and writes `meta.json` with what the ranks report of their files. An existing index is one that rank 0 finds.

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
            processes: the ranks that share the work; None: this process alone.
            whole: write a FAISS file over all rows in any case. One process always does, and a factory other than
                "Flat" needs it.
            on_encoded: called on rank 0 with the seconds that encoding took, if the corpus had to be encoded.
            encoded: a .npy file with the embeddings of this dtype of the rank's rows (see `share_of`), complete, on the
                same disk as the folder. It is moved there, and nothing is encoded.

        Raises:
            ValueError: an unknown factory or dtype, an empty corpus, too few passages to train the index, embeddings
                that are not finite, an index.faiss or embeddings.npy in the folder that this library did not write.
            OSError: the disk has too little space, before anything is encoded; the file system lost rows.
        """
        wanted: dict[str, Any] = {"format": FORMAT, "fingerprint": fingerprint, "factory": factory}
        wanted |= {"dtype": dtype, "dim": dim, "ntotal": len(store)}
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', found {dtype!r}")
        if len(store) == 0:
            raise ValueError("the corpus is empty: there is nothing to index")
        folder = Path(folder)
        ranks = processes or Processes(0, 1, torch.device("cpu"))
        whole = whole or ranks.world_size == 1 or factory != "Flat"
        found = None
        if ranks.is_first:
            forget_damaged(folder)
            found = matching_meta(folder, {name: wanted[name] for name in ENCODED}, verify=False)
        found = ranks.of_first(found)
        if found is not None:
            ranks.share(folder, "meta.json", *found["files"].values())
            if found["factory"] == factory and ("index" in found["files"] or not whole):
                return cls.open(folder, fingerprint, device, search_parameters, verify=False)
        check_no_foreign_files(folder)
        empty = new_faiss_index(factory, dim)  # a bad factory string fails before the corpus is encoded
        ranks.barrier()  # every rank must read the folder before one changes it
        if encoded is not None:
            found = None
        if found is None or ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            size = faiss_bytes(empty, len(store)) if whole and ranks.is_first else 0
            if found is None and encoded is None:
                size += np.dtype(dtype).itemsize * len(store) * dim
            check_space(folder, size)
        if found is None:
            ranks.barrier()
            started = time.perf_counter()
            if encoded is not None:
                path = folder / file_name(wanted, ranks.rank, ranks.world_size)
                os.replace(encoded, path)
                shard = describe_shard(path, ranks.part_of(len(store)))
            else:
                shard = encode_shard(
                    folder,
                    wanted,
                    encode,
                    builder,
                    store,
                    ranks,
                    budget=budget,
                    device=device,
                    description="Encoding the corpus",
                    show_progress=show_progress and ranks.is_first,
                )
            found = all_shards(folder, shard, ranks)
            if ranks.is_first and encoded is None:
                on_encoded(time.perf_counter() - started)
        if ranks.is_first:
            files = {kind: found["files"][kind] for kind in shard_kinds(found)}
            if whole:
                files["index"] = file_name(wanted)
                fill_faiss_index(empty, Shards(open_shards(folder, found)), seed)
                write_faiss_index(empty, folder / files["index"])
            old = named_files(folder)
            meta = {"search_parameters": search_parameters, "files": files, "rows": found["rows"]}
            write_meta(folder, wanted | meta, found.get("checksums"))
            remove_old_files(folder, old, files)
        del empty  # frees the memory: the index is mapped from disk below
        ranks.share(folder, "meta.json", "embeddings-*.npy", "index-*.faiss")
        return cls.open(folder, fingerprint, device, verify=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        fingerprint: str | None = None,
        device: str | torch.device = "cpu",
        search_parameters: str | None = None,
        verify: bool = True,
    ) -> CorpusIndex:
        """Map an existing index.

        Args:
            folder: written by `build` or `save`.
            fingerprint: the expected one; None accepts any.
            device: for searching. search_parameters: instead of those stored with the index.
            verify: compare the checksums of the files, which one of several processes does.

        Raises:
            FileNotFoundError: no index there. ValueError: another fingerprint, or damaged files.
        """
        folder = Path(folder)
        while True:
            meta = read_meta(folder)
            if fingerprint is not None and meta["fingerprint"] != fingerprint:
                raise ValueError(
                    f"the index in {folder} was made from other weights, another tokenizer or another corpus: "
                    f"its fingerprint is {meta['fingerprint']}, expected {fingerprint}. Build it again with "
                    "CorpusIndex.build (hf-ar2 index), or open it with the model and corpus it was made from."
                )
            try:
                (check_contents if verify else check_sizes)(folder, meta)
                shards = open_shards(folder, meta)
                name = meta["files"].get("index")
                faiss_index = None if name is None else read_faiss_index(folder / name)
            except (FileNotFoundError, ValueError):
                if read_meta(folder) == meta:
                    raise
                continue  # another process replaced it meanwhile
            if faiss_index is not None and faiss_index.ntotal != meta["ntotal"]:
                raise ValueError(
                    f"the index in {folder} is damaged: a FAISS index of {faiss_index.ntotal} vectors, expected "
                    f"{meta['ntotal']}. Build it again."
                )
            return cls(folder, meta, shards, faiss_index, device, search_parameters)

    def __len__(self) -> int:
        return self.ntotal

    def __repr__(self) -> str:
        return (
            f"CorpusIndex({counted(self.ntotal, 'passages')}, d={self.dim}, {self.embeddings.dtype}, "
            f"factory={self.factory!r}, fingerprint={self.fingerprint!r})"
        )

    def search(
        self,
        queries: np.ndarray | torch.Tensor,
        k: int,
        rank: int = 0,
        world_size: int = 1,
        within: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k passages of highest inner product with each query.

        On a GPU that FAISS cannot use, `TorchSearcher` searches an index of the factory "Flat".

        Args:
            queries: [Q, d] of any float dtype. k: passages per query; may exceed N.
            rank, world_size: search only this share of the rows of an index of the factory "Flat", see `share_of`;
                `Encoders.search` merges what all ranks find.
            within: the rows of an index of the factory "Flat" that are searched, from the first to before the last;
                None: all.

        Returns:
            scores float32 [Q, k] and passage rows int64 [Q, k], best first, the lower row first where scores are equal;
            padded with -inf and -1.

        Raises:
            ValueError: queries of another shape or not finite, k below 1, or above 2048 with FAISS on a GPU.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, found {k}")
        if within is not None and self.factory != "Flat":
            raise ValueError(f"factory {self.factory!r}: such an index {NO_RANGES}")
        matrix = query_matrix(queries, self.dim)
        first, last = within or (0, self.ntotal)
        start, stop = share_of(rank, world_size, last - first)
        share = first + start, first + stop
        if self._searcher is None or self._searched != share:
            self._searcher, self._searched = self._new_searcher(*share), share
        scores, rows = self._searcher.search(matrix, k)
        if share[0]:
            rows[rows >= 0] += share[0]
        return scores, rows

    def _new_searcher(self, start: int, stop: int) -> FaissSearcher | FlatSearcher | TorchSearcher:
        part = stop - start < self.ntotal
        in_torch = self.factory == "Flat" and uses_torch(self.device)
        if self._faiss_index is not None and not part and not in_torch:
            return FaissSearcher(self._faiss_index, self.device, self.search_parameters)
        if self.factory != "Flat":
            raise ValueError(
                f"factory {self.factory!r}: only an index of the factory 'Flat' is searched in shares"
            )
        embeddings = self._shards.between(start, stop) if part else self.embeddings
        if self.device.type == "cuda" and stop > start:
            return TorchSearcher(embeddings, self.device)
        return FlatSearcher(embeddings)

    def release_device(self) -> None:
        """Free the GPU memory of the search; the next search allocates it again."""
        self._searcher = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def attach(self, corpus: Dataset, name: str = "embeddings") -> Dataset:
        """Make `corpus.search_batch(name, ...)`, `get_nearest_examples_batch`, `save_faiss_index` work on this index.

        Nothing is copied: the dataset, which is returned, refers to `faiss_index`. An index of this name is replaced.
        Attach last: `select`, `filter` and `shuffle` fail on a dataset with an index, `map` drops it, and
        `remove_columns` or `with_format` copy it.

        Raises:
            ValueError: the corpus has another number of passages.
        """
        if len(corpus) != self.ntotal:
            raise ValueError(
                f"the index holds {counted(self.ntotal, 'passages')}, but the corpus to attach it to has "
                f"{len(corpus)}: it was built from another corpus"
            )
        if name in corpus.list_indexes():
            corpus.drop_index(name)
        shown = not are_progress_bars_disabled()
        disable_progress_bars()  # of adding no vectors
        try:
            # An empty array: the vectors are in the index already, and datasets would add them again.
            empty = np.empty((0, self.dim), np.float32)
            corpus.add_faiss_index_from_external_arrays(empty, name, custom_index=self.faiss_index)
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
        check_no_foreign_files(folder)
        names, old = SAVED_FILES, named_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)  # until the copy is complete
        # Copied from the open maps, because a rebuild may have removed their files.
        check_space(folder, self.embeddings.nbytes + faiss_bytes(self.faiss_index, self.ntotal))
        copy_array(self.embeddings, folder / names["embeddings"])
        write_faiss_index(self.faiss_index, folder / names["index"])
        write_meta(folder, self.meta | {"files": names, "rows": [[0, self.ntotal]]})
        remove_old_files(folder, old, names)

    def save_ids(self, ids: Sequence[str]) -> None:
        """Write `ids.json`, the ids of the passages in their order, which other programs need with the FAISS file."""
        write_json(self.folder / IDS, list(ids))
        self.meta["files"] = self.meta["files"] | {"ids": IDS}
        write_meta(self.folder, self.meta)
