"""Files that are written completely or not at all, and read with an error that names them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class DamagedFile(ValueError):
    """A file of a run, index or cache whose content is not what was written."""


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file under a temporary name and rename it: an interruption leaves the old file or the new one.

    The file and its folder are flushed to the disk. The folder is created if it does not exist.

    Raises:
        OSError: with the name of the file, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
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


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if the file does not exist.
        DamagedFile: if it is not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: not a complete JSON file ({error})") from error


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


def checksum(path: Path) -> str:
    """The BLAKE2b checksum of a file, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
