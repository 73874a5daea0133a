"""Reads parameters that PaddlePaddle wrote, without PaddlePaddle and without unpickling anything."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

# VarType.Type of Paddle's framework.proto
_DTYPES = {0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1"}
_DATA_TYPE, _DIMS = 1, 2  # fields of TensorDesc

CONVERT = (
    'python -c "import numpy, paddle; '
    "numpy.savez('{out}', **{{name: numpy.asarray(value) for name, value in paddle.load('{file}').items()}})\""
)


def read_paddle(source: str | Path) -> dict[str, np.ndarray]:
    """Parameter name -> array.

    Args:
        source: a folder with one file for each parameter, named as the parameter (what `fluid.io.save_params`
            writes and RocketQA published), or a `.npz` file.

    Raises:
        ValueError: a pickle (`.pdparams`), which could run any code when it is read; or a file that is not a
            whole tensor.
        OSError: there is nothing there.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not files:
            raise ValueError(f"{path}: found no file in it; expected one for each parameter")
        return {file.name: read_tensor(file) for file in files}
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix != ".npz":
        command = CONVERT.format(file=path, out=path.with_suffix(".npz").name)
        raise ValueError(
            f"{path}: found a file that is no .npz; Paddle's .pdparams are pickles, which may run any code when they "
            "are read, and are not opened here. Expected a folder with a file for each parameter, or .npz. Where "
            f"Paddle is installed, and if you trust the file, convert it:\n  {command}"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as arrays ({error}); write it again with numpy.savez"
        ) from error


def read_tensor(file: Path) -> np.ndarray:
    """One tensor as Paddle's `save` operator serialises it.

    A version (uint32, 0); the number of levels of detail (uint64), each with its size in bytes (uint64) and its
    data; the tensor's version (uint32, 0); the length (int32) of a TensorDesc, a protocol buffer with the type of the
    data and the dimensions; the data, little-endian, row by row.

    Raises:
        ValueError: the file is anything else.
    """
    raw = file.read_bytes()
    try:
        version, levels = struct.unpack_from("<IQ", raw)
        at = 12
        for _ in range(levels if version == 0 and levels < 8 else 0):
            at += 8 + struct.unpack_from("<Q", raw, at)[0]
        tensor_version, length = struct.unpack_from("<Ii", raw, at)
        data_type, shape = _description(raw[at + 8 : at + 8 + length])
        dtype = np.dtype(_DTYPES[data_type])
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError(_not_a_tensor(file, f"a header that does not fit ({error!r})")) from error
    start = at + 8 + length
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if version or tensor_version or levels >= 8 or len(raw) - start != expected:
        raise ValueError(
            _not_a_tensor(
                file, f"versions {version} and {tensor_version}, {len(raw) - start} bytes for {dtype} {shape}"
            )
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


def write_tensor(file: Path, array: np.ndarray) -> None:
    """The inverse of `read_tensor`, for tests and for going back to Paddle.

    Raises:
        ValueError: a type of number that Paddle does not have.
    """
    types = {np.dtype(name): number for number, name in _DTYPES.items()}
    if array.dtype not in types:
        raise ValueError(f"{file}: found {array.dtype}; expected one of {', '.join(map(str, types))}")
    description = bytes([_DATA_TYPE << 3, types[array.dtype]])
    for size in array.shape:
        description += bytes([_DIMS << 3]) + _as_varint(size)
    head = struct.pack("<IQIi", 0, 0, 0, len(description))
    file.write_bytes(head + description + np.ascontiguousarray(array).tobytes())


def _not_a_tensor(file: Path, found: str) -> str:
    return (
        f"{file}: found {found}; expected one tensor as Paddle's save operator writes it. Is it a whole file, "
        "and one for each parameter? Move files that are no parameters out of the folder"
    )


def _description(raw: bytes) -> tuple[int, tuple[int, ...]]:
    """Type and dimensions of a TensorDesc."""
    data_type, dims, at = -1, [], 0
    while at < len(raw):
        key, at = _varint(raw, at)
        field, wire = key >> 3, key & 7
        if wire == 2 and field == _DIMS:  # dimensions in one piece
            length, at = _varint(raw, at)
            end = at + length
            while at < end:
                value, at = _varint(raw, at)
                dims.append(value)
            continue
        if wire != 0:
            raise IndexError(f"field {field} of wire type {wire}")
        value, at = _varint(raw, at)
        if field == _DATA_TYPE:
            data_type = value
        elif field == _DIMS:
            dims.append(value)
    return data_type, tuple(dims)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A protocol buffer's integer, and where it ends."""
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _as_varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
