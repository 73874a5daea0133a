"""Files that are written completely or not at all, with checksums, and read with an error that names them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

_PIECE, _READ = 1 << 26, 1 << 20  # bytes that a thread hashes, and reads at a time
# In notes that were written before XXH3, which takes a thirtieth of the time.
_BLAKE2B = partial(hashlib.blake2b, digest_size=16)
# The checksums of this process, by algorithm, device, inode, size and time of change: a large file is read once.
_known: dict[tuple[Any, int, int, int, int], str] = {}
# How the libraries say that a file could not be written; most give no number and no name.
_NOT_WRITTEN = re.compile(
    r"os error (27|28|122)\b|[Ee]rrno (27|28|122)\b|No space left|File too large|quota|failed writing|write error|"
    r"Not enough free space|requested and \d+ written|unexpected pos|iostream error"
)


class DamagedFile(ValueError):
    """A file of a run, index or cache whose content is not what was written."""


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a UTF-8 file under a temporary name and rename it: an interruption leaves the old file or the new one.

    The file and its folder are flushed to the disk. The folder is created if it does not exist. The text may be given
    in parts.

    Raises:
        OSError: with the name of the file, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file with [`write_text`]."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1))


def write_note(
    path: Path,
    content: dict[str, Any],
    files: Iterable[Path] = (),
    known: Mapping[str, str] | None = None,
) -> None:
    """Write a JSON object with a checksum of itself, and `checksums` of files by their paths from its folder.

    Args:
        known: checksums of some of them, as other processes wrote them; these files are not read.
    """
    names = {Path(os.path.relpath(file, path.parent)).as_posix(): file for file in files}
    sums = {name: (known or {}).get(name) or checksum(file) for name, file in names.items()}
    content = json.loads(json.dumps(content | {"checksums": sums}))
    write_json(path, content | {"checksum": _checksum_of(content)})


def read_json(path: Path, missing: Any = None) -> Any:
    """The content of a JSON file; of a note (see `write_note`) without the checksum of itself.

    Args:
        missing: `{}` or `[]`, returned if the file does not exist; the file must hold the same type. Errors then advise
            to delete the file, because the command that wrote it writes it again. None: the file must exist.

    Raises:
        FileNotFoundError: if the file does not exist.
        DamagedFile: if it is not UTF-8, not JSON, of another type, or a note that was changed.
    """
    if missing is not None and not path.is_file():
        return missing
    advice = "" if missing is None else ". Delete it and run the command that made the run again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: not a complete JSON file ({error}){advice}") from error
    if isinstance(content, dict) and "checksum" in content:
        if content.pop("checksum") != _checksum_of(content):
            raise DamagedFile(f"{path}: this is not what was written there{advice}")
    if missing is not None and not isinstance(content, type(missing)):
        kind = "object" if isinstance(missing, dict) else "list"
        raise DamagedFile(f"{path}: expected a JSON {kind}, found {type(content).__name__}{advice}")
    return content


def check_files(folder: Path, checksums: Mapping[str, str], advice: str) -> None:
    """Compare files with the `checksums` of a note in this folder.

    Raises:
        DamagedFile: a file is missing, or has another content; the message ends with the advice.
    """
    for name, expected in checksums.items():
        path = Path(os.path.normpath(folder / name))
        if not path.is_file():
            raise DamagedFile(f"{path}: this file is missing. {advice}")
        if expected != checksum(path) and expected != checksum(path, _BLAKE2B):
            raise DamagedFile(f"{path}: the file is damaged or was replaced (another checksum). {advice}")


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, sorted, without hidden ones and README.md, which a person may edit."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return [path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)]


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def checksum(path: Path, algorithm: Callable[[], Any] = xxhash.xxh3_128) -> str:
    """32 hexadecimal digits of a file's content, hashed in pieces, on all cores; read once in a process.

    It finds damage and mistakes, not forgeries.
    """
    status = path.stat()
    key = (algorithm, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _known:
        starts = range(0, status.st_size, _PIECE)
        with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, len(starts)))) as threads:
            _known[key] = _digest(b"".join(threads.map(partial(_digest_of_piece, path, algorithm), starts)))
    return _known[key]


def _digest_of_piece(path: Path, algorithm: Callable[[], Any], start: int) -> bytes:
    digest, left = algorithm(), _PIECE
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(_READ, left))):
            digest.update(block)
            left -= len(block)
    return bytes(digest.digest())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _checksum_of(content: dict[str, Any]) -> str:
    return _digest(json.dumps(content, sort_keys=True).encode())


# ---- Full disks ------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Raise an error that names the file if the block cannot write it; libraries raise errors of many types.

    Args:
        path: the file or folder that is written.
        size: about how many bytes it needs; None: not known.

    Raises:
        OSError: with `errno` and the path.
    """
    try:
        yield
    except Exception as error:
        found = error.errno if isinstance(error, OSError) else None
        if (isinstance(error, OSError) and error.filename) or not (
            found in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) or _NOT_WRITTEN.search(str(error))
        ):
            raise
        number = re.search(r"(?:os error|[Ee]rrno) (\d+)", str(error))
        full = size is None or _free(path) < size
        code = found or (int(number[1]) if number else errno.ENOSPC if full else errno.EIO)
        raise _not_written(path, size, code) from error


def check_space(path: Path, size: int) -> None:
    """Raise OSError, with `errno` and the path, before anything is computed, if so many bytes do not fit there."""
    if _free(path) < size:
        raise _not_written(path, size, errno.ENOSPC)


def check_size(path: Path, size: int) -> None:
    """Raise OSError if a written file is shorter than its content: not every library reports a full disk."""
    if path.stat().st_size < size:
        raise _not_written(path, size, errno.ENOSPC)


def allocate(path: Path) -> None:
    """Reserve the disk space of a sparse file, because a full disk kills a process that writes to its memory map."""
    size = path.stat().st_size
    check_space(path, size)
    if hasattr(os, "posix_fallocate"):
        with writing(path, size), path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
                    raise


def _not_written(path: Path, size: int | None, code: int) -> OSError:
    needed = "" if size is None else f"about {_megabytes(size)} needed, "
    return OSError(code, f"{os.strerror(code)}: {needed}{_megabytes(_free(path))} free", str(path))


def _free(path: Path) -> int:
    there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    return shutil.disk_usage(there).free


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
