"""Folders that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OLD = ".old"


@contextmanager
def complete_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `folder` when the block ends without an error.

    Args:
        folder: its parent is created.
        replace: replace an existing `folder`; else keep it, if another process wrote it in the meantime.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private; other users may share the folder
        if replace and folder.exists():
            # A folder cannot be renamed to one that has files, so the old one is moved away first.
            old = temporary.with_name(f"{temporary.name}{_OLD}")
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


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of killed writers, anywhere in a folder that nobody else writes.

    A folder that was moved away, and not yet replaced, is moved back.
    """
    for old in folder.rglob(f".*.partial{_OLD}"):
        replaced = old.with_name(old.name[1:].rpartition("-")[0])
        if not replaced.exists():
            os.replace(old, replaced)
    for left in list(folder.rglob(".*.partial*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
