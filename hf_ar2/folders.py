"""Folders that are written completely or not at all, and temporary ones."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_ar2.lock import machine_name

_OLD = ".old"
_TEMPORARY = re.compile(r"hf-ar2-([0-9a-f]{8})-(\d+)-[^-]+")  # machine and process


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


@contextmanager
def temporary_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """A new folder, which is removed when the block ends; those of killed processes are removed before.

    Args:
        parent: where it is made; None: the system's folder for temporary files.
    """
    parent = Path(parent or tempfile.gettempdir())
    remove_abandoned(parent)
    prefix = f"hf-ar2-{machine_name()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders of this user, in a folder, whose process was one of this machine and has ended."""
    import psutil  # here, so that importing the package stays quick

    for folder in parent.glob("hf-ar2-*"):
        with contextlib.suppress(OSError):  # another process has just removed it
            status = folder.lstat()
            named = _TEMPORARY.fullmatch(folder.name)
            if named is None or not stat.S_ISDIR(status.st_mode):
                continue
            own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if own and named[1] == machine_name() and not psutil.pid_exists(int(named[2])):
                shutil.rmtree(folder, ignore_errors=True)
