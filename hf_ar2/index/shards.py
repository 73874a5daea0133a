"""Embeddings in several files, one for each process that encoded: written, checked, and read as one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.encoding.batches import Encode, encode_rows
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.files import allocate, checksum, writing

_ROWS_PER_BLOCK = 65_536


class Shards:
    """Arrays `[n, d]` of one dtype below each other, which are read as one matrix `[N, d]`; nothing is copied.

    Memory maps stay on the disk: only the rows that are read take memory.

    Example:
        >>> shards = Shards([np.zeros((2, 1)), np.ones((3, 1))])
        >>> shards.shape, shards[np.array([4, 0])].tolist(), shards[1:3].tolist(), shards.between(1, 3).shape
        ((5, 1), [[1.0], [0.0]], [[0.0], [1.0]], (2, 1))
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


def share_of(rank: int, world_size: int, total: int) -> tuple[int, int]:
    """The rows from which and before which a process encodes and searches: all about the same number.

    Example:
        >>> [share_of(rank, 3, 10) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    return total * rank // world_size, total * (rank + 1) // world_size


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


def encode_shard(
    path: Path,
    rows: tuple[int, int],
    encode: Encode,
    builder: InputBuilder,
    store: TokenStore,
    dtype: str,
    dim: int,
    **options: Any,
) -> dict[str, Any]:
    """Encode the rows from `rows[0]` to before `rows[1]` into a file that no other process writes.

    Args:
        options: of `encode_rows`.

    Returns:
        `bytes` and `checksum` of the file, and the rows that are `missing` in it, which were written and lost.
    """
    start, stop = rows
    path.unlink(missing_ok=True)  # left by an interrupted build
    new_array(path, dtype, (stop - start, dim))
    out = np.load(path, mmap_mode="r+")
    out[:] = np.nan  # no embedding is NaN: what is still NaN in the end was not written
    encode_rows(encode, builder, store, np.arange(start, stop), out, **options)
    out.flush()
    del out
    written, missing = np.load(path, mmap_mode="r"), []
    for first in range(0, len(written), _ROWS_PER_BLOCK):
        lost = np.isnan(written[first : first + _ROWS_PER_BLOCK]).any(axis=1)
        missing += (start + first + np.flatnonzero(lost)).tolist()
    return {"bytes": path.stat().st_size, "checksum": checksum(path), "missing": missing}
