"""Folders that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `folder` when the block ends without an error.

    Args:
        folder: its parent is created.
        replace: replace an existing `folder`; else keep it, if another process wrote it in the meantime.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private; other users may share the folder
        if replace and folder.exists():
            # A folder cannot be renamed to one that has files, so the old one is moved away first.
            old = temporary.with_name(f"{temporary.name}.old")
            os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                os.replace(temporary, folder)
            except OSError:
                if replace or not folder.exists():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
