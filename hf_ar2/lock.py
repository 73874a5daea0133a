"""A folder is written by one run at a time: a file in it says which."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = ".lock"
# Seconds between signs of life, and without one until a process that cannot be looked up counts as ended.
BEAT, SILENCE = 15.0, 180.0


class FolderInUse(OSError):
    """Another run writes to the folder."""


@contextmanager
def locked(folder: Path, beat: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the folder's lock during the block; a new folder is created, and removed again if it stays empty.

    The lock is a file that is created exclusively, so that it works on network file systems. That of a process that
    has ended is taken over. Whether a process of another machine has ended is only known by its lock, which it touches
    every `BEAT` seconds.

    Args:
        beat: called every `BEAT` seconds, too, in another thread.

    Raises:
        FolderInUse: another process holds it, or held it less than `SILENCE` seconds ago on another machine.
    """
    import psutil  # here, so that importing the package stays quick

    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    own = {"machine": _machine(), "process": os.getpid(), "started": psutil.Process().create_time()}
    text = json.dumps(own | {"since": time.strftime("%Y-%m-%d %H:%M:%S")})
    while not _create(path, text):
        _remove_dead(folder, path)
    over = threading.Event()

    def live() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(path)
                beat()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == text:
                path.unlink()
            if new:
                folder.rmdir()  # fails unless it is empty


def check_free(folder: Path) -> None:
    """Check that no process of this machine holds the folder's lock, quickly, before anything is loaded.

    A lock of another machine may be that of the same run, of which this machine is a part.

    Raises:
        FolderInUse: one holds it.
    """
    path = folder / LOCK
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        text = path.read_text(encoding="utf-8", errors="replace")
        holder = json.loads(text)
        here = isinstance(holder, dict) and holder.get("machine") == _machine()
        silent = time.time() - path.stat().st_mtime
        if here and _may_live(text, silent):
            raise FolderInUse(_who(folder, path, text, silent))


def _create(path: Path, text: str) -> bool:
    """Create the lock; False if there is one. If the disk is full, an OSError is raised and no lock is left."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError as error:
        path.unlink(missing_ok=True)  # an incomplete one would say nothing about its owner
        raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def _remove_dead(folder: Path, path: Path) -> None:
    """Remove the lock of a process that has ended; FolderInUse if it has not ended, or may not have."""
    with contextlib.suppress(FileNotFoundError):  # it has just been released
        text = path.read_text(encoding="utf-8", errors="replace")
        silent = _now(folder) - path.stat().st_mtime
        if _may_live(text, silent):
            raise FolderInUse(_who(folder, path, text, silent))
        # Of several that see a dead lock, one moves it away; another could move the lock of the first.
        dead = path.with_name(f"{LOCK}.{os.getpid()}.partial")
        os.rename(path, dead)
        if dead.read_text(encoding="utf-8", errors="replace") == text:
            dead.unlink()
        else:
            os.rename(dead, path)


def _may_live(text: str, silent: float) -> bool:
    import psutil

    with contextlib.suppress(ValueError, KeyError, TypeError):  # a lock that is just being written
        holder = json.loads(text)
        if holder["machine"] == _machine():
            with contextlib.suppress(psutil.AccessDenied):
                try:
                    return bool(abs(psutil.Process(holder["process"]).create_time() - holder["started"]) < 1)
                except psutil.NoSuchProcess:
                    return False
    return silent < SILENCE


def _who(folder: Path, path: Path, text: str, silent: float) -> str:
    holder: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        holder = json.loads(text)
    host, process, since = (holder.get(name, "?") for name in ("machine", "process", "since"))
    message = (
        f"{folder}: in use by another run (process {process} on {host[0]}, since {since}). Wait for it to end, or "
        "choose another output_dir"
    )
    if host != _machine():
        message += (
            f". It was last seen {max(0.0, silent):.0f} s ago; if it has ended, wait until that is {SILENCE:.0f} s, or "
            f"delete {path}"
        )
    return message


def _machine() -> list[str]:
    """The host, and the container on it: process ids mean something within them alone."""
    container = ""
    with contextlib.suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return [socket.gethostname(), container]


def machine_name() -> str:
    """8 hexadecimal digits that stand for the host and the container on it."""
    return hashlib.blake2b(json.dumps(_machine()).encode(), digest_size=4).hexdigest()


def _now(folder: Path) -> float:
    """The time by the clock that the folder's files are dated with, which may be another machine's."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=LOCK, suffix=".partial") as file:
        return os.stat(file.name).st_mtime
