"""Reads parameters that PaddlePaddle wrote, without PaddlePaddle and without unpickling anything."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# VarType.Type of Paddle's framework.proto
DTYPES = {0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1"}

CONVERT = (
    'python -c "import numpy, paddle; '
    "numpy.savez('{out}', **{{name: numpy.asarray(value) for name, value in paddle.load('{file}').items()}})\""
)


def read_paddle(source: str | Path) -> dict[str, Tensor]:
    """Parameter name -> value, as float32.

    The source is a folder with one file per parameter, named after it (what `fluid.io.save_params` writes and RocketQA
    published), or a `.npz` file. ValueError for a pickle (`.pdparams`), which may run code when it is loaded.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not files:
            raise ValueError(f"{path}: the folder is empty; expected one file per parameter")
        return {file.name: _as_torch(read_tensor(file)) for file in files}
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix != ".npz":
        command = CONVERT.format(file=path, out=path.with_suffix(".npz").name)
        raise ValueError(
            f"{path}: expected a folder with one file per parameter, or a .npz file. Paddle's .pdparams files are "
            "pickles, which may run code when they are loaded, and are not read here. If you trust the file, convert "
            f"it where Paddle is installed:\n  {command}"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _as_torch(arrays[name]) for name in arrays.files}
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as arrays ({error}); write it with numpy.savez") from error


def _as_torch(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def read_tensor(file: Path) -> np.ndarray:
    """Reads one tensor as Paddle's `save` operator serialises it.

    A version (uint32, 0); the number of levels of detail (uint64), each with its size in bytes (uint64) and its
    data; the version of the tensor (uint32, 0); the length (int32) of a TensorDesc, a protocol buffer with the data
    type and the dimensions; the data, little-endian, in row-major order. ValueError for another layout.
    """
    raw = file.read_bytes()
    try:
        version, levels = struct.unpack_from("<IQ", raw)
        at = 12
        for _ in range(levels if version == 0 and levels < 8 else 0):
            at += 8 + struct.unpack_from("<Q", raw, at)[0]
        tensor_version, length = struct.unpack_from("<Ii", raw, at)
        start = at + 8 + length
        data_type, shape = _tensor_desc(raw[at + 8 : start])
        dtype = np.dtype(DTYPES[data_type])
    except (struct.error, StopIteration, KeyError) as error:
        raise ValueError(_not_a_tensor(file, f"a header that does not match ({error!r})")) from error
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if version or tensor_version or levels >= 8 or len(raw) - start != expected:
        found = f"versions {version} and {tensor_version}, {len(raw) - start} bytes for {dtype} {shape}"
        raise ValueError(_not_a_tensor(file, found))
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


def _not_a_tensor(file: Path, found: str) -> str:
    return (
        f"{file}: found {found}; expected one tensor as Paddle's save operator writes it. Check that the file is "
        "complete, and move files that are not parameters out of the folder"
    )


def _tensor_desc(raw: bytes) -> tuple[int, tuple[int, ...]]:
    """Data type and dimensions of a TensorDesc; the dimensions may be packed."""
    data_type, dims, stream = -1, [], iter(raw)
    for key in stream:
        if key == 0x08:  # field 1, one integer
            data_type = _varint(stream)
        elif key == 0x10:  # field 2, one integer
            dims.append(_varint(stream))
        elif key == 0x12:  # field 2, packed integers
            packed = iter(bytes(islice(stream, _varint(stream))))
            dims += [_varint(chain([first], packed)) for first in packed]
        else:
            raise KeyError(key)
    return data_type, tuple(dims)


def _varint(stream: Iterator[int]) -> int:
    """An integer of a protocol buffer: seven bits per byte, the lowest first."""
    value = shift = 0
    while True:
        byte = next(stream)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7
