"""Embeddings in several files, one for each process that encoded: written, checked, and read as one matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.encoding.batches import Encode, encode_rows, word_sums
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.processes import Processes
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.files import allocate, checksum, writing
from hf_ar2.index.meta import check_sizes, file_name, shard_kinds

_ROWS_PER_BLOCK = 65_536


class Shards:
    """Arrays `[n, d]` of one dtype below each other, which are read as one matrix `[N, d]`; nothing is copied.

    Memory maps stay on the disk: only the rows that are read take memory.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)]).tolist()
        self.shape = (self.starts[-1], self.parts[0].shape[1])
        self.dtype = self.parts[0].dtype
        self.nbytes = sum(part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """A copy of the rows of a slice, or of rows int64 `[...]`, none negative: `[..., d]`."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()}: expected 0 to {len(self) - 1}")
        out = np.empty((*wanted.shape, self.shape[1]), self.dtype)
        for start, part in zip(self.starts, self.parts, strict=False):
            here = (wanted >= start) & (wanted < start + len(part))
            out[here] = part[wanted[here] - start]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def between(self, start: int, stop: int) -> Shards:
        """The rows from `start` to before `stop`, not copied."""
        pairs = zip(self.starts, self.parts, strict=False)
        return Shards([part[max(start - first, 0) : max(stop - first, 0)] for first, part in pairs])


def new_array(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Write a .npy file of zeros to fill through a memory map; OSError, and no file, if the disk is full."""
    try:
        with writing(path):
            np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape).flush()
        allocate(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def copy_array(array: np.ndarray | Shards, path: Path) -> None:
    """Write an array `[N, d]` as a .npy file, complete or not at all; OSError if the disk is full."""
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(temporary, array.nbytes):
        new_array(temporary, array.dtype.name, array.shape)
        copy = np.load(temporary, mmap_mode="r+")
        for start in range(0, len(array), _ROWS_PER_BLOCK):
            copy[start : start + _ROWS_PER_BLOCK] = array[start : start + _ROWS_PER_BLOCK]
        copy.flush()
    os.replace(temporary, path)


def encode_file(
    path: Path,
    dtype: str,
    dim: int,
    rows: slice,
    encode: Encode,
    builder: InputBuilder,
    store: TokenStore,
    **options: Any,
) -> np.ndarray:
    """Encode rows of a corpus into a .npy file `[R, dim]`, and flush it; a file of this name is replaced.

    Args:
        options: of `encode_rows`.

    Returns:
        uint64 `[R]`: `word_sums` of what was written.
    """
    path.unlink(missing_ok=True)  # left by an interrupted build
    new_array(path, dtype, (rows.stop - rows.start, dim))
    out = np.load(path, mmap_mode="r+")
    sums = encode_rows(encode, builder, store, np.arange(rows.start, rows.stop), out, **options)
    out.flush()
    return sums


def encode_shard(
    folder: Path,
    meta: dict[str, Any],
    encode: Encode,
    builder: InputBuilder,
    store: TokenStore,
    ranks: Processes,
    **options: Any,
) -> dict[str, Any]:
    """Encode this process's share of the rows of a corpus into a separate file; returns what `all_shards` reads.

    `meta` has `dtype` and `dim` and names the file, see `file_name`; `options` are those of `encode_rows`.
    """
    path, rows = folder / file_name(meta, ranks.rank, ranks.world_size), ranks.part_of(len(store))
    sums = encode_file(path, meta["dtype"], meta["dim"], rows, encode, builder, store, **options)
    written, missing = np.load(path, mmap_mode="r"), []
    for first in range(0, len(written), _ROWS_PER_BLOCK):
        block = slice(first, first + _ROWS_PER_BLOCK)
        missing += (rows.start + first + np.flatnonzero(word_sums(written[block]) != sums[block])).tolist()
    return describe_shard(path, rows, missing)


def describe_shard(path: Path, rows: slice, missing: Sequence[int] = ()) -> dict[str, Any]:
    """A description of a file with the embeddings of these rows; the file system lost the `missing` ones."""
    size = path.stat().st_size
    place = {"name": path.name, "rows": (rows.start, rows.stop), "missing": missing}
    return place | {"bytes": size, "checksum": checksum(path)}


def all_shards(folder: Path, shard: dict[str, Any], ranks: Processes) -> dict[str, Any]:
    """What `meta.json` says of the files of all processes, once each process sees them; OSError if rows were lost."""
    shards = ranks.gather(shard)
    for other in shards:
        if missing := other["missing"]:
            start, stop = other["rows"]
            raise OSError(
                f"{folder / other['name']}: {len(missing):,} of the embeddings of rows {start} to {stop - 1} were "
                f"written and are not in the file, the first is that of row {missing[0]}. The file system lost them: "
                "check it, or name another folder, and start again."
            )
    by_kind = dict(zip(shard_kinds({"rows": shards}), shards, strict=True))
    found = {
        "files": {kind: other["name"] for kind, other in by_kind.items()},
        "bytes": {kind: other["bytes"] for kind, other in by_kind.items()},
        "rows": [other["rows"] for other in shards],
        "checksums": {other["name"]: other["checksum"] for other in shards},
    }
    for rank, other in enumerate(shards):
        ranks.share(folder, other["name"], source=rank)
    check_sizes(folder, found)
    return found
