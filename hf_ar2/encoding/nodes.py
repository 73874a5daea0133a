"""Files that one rank wrote, copied to the machines that do not see its disk."""

from __future__ import annotations

import os
import secrets
import socket
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from hf_ar2.files import checksum, writing
from hf_ar2.folders import remove_leftovers
from hf_ar2.lock import check_free

if TYPE_CHECKING:
    from hf_ar2.encoding.processes import Processes

_BLOCK = 1 << 26  # bytes that are sent at a time, and that a rank holds


def copy_to_all(ranks: Processes, folder: Path, patterns: tuple[str, ...], source: int) -> None:
    """Make files and folders on every machine what they are on that of one rank, see `Processes.share`."""
    leaders = _leaders(ranks, folder, source)
    if not leaders:
        return
    names, sums = ranks.gather(_listed(folder, patterns) if ranks.rank == source else None)[source]
    lacking: set[str] = set()
    error: OSError | None = None
    if ranks.rank in leaders:
        own, own_sums = _listed(folder, patterns)
        lacking = {name for name in sums if own_sums.get(name) != sums[name]}
        try:
            _prepare(folder, own, names, sums, source)
        except OSError as found:
            error = found
    wanted = set[str]().union(*ranks.gather(lacking))
    _raise_first(ranks.gather(error))
    for name in filter(wanted.__contains__, names):
        if ranks.rank == source:
            _send(ranks, folder / name, sums[name])
            continue
        not_written = _receive(ranks, folder / name if name in lacking else None, sums[name], source)
        error = error or not_written
    _raise_first(ranks.gather(error))


def remove_leftovers_of_all(ranks: Processes, folder: Path) -> None:
    """Call `remove_leftovers` once on every disk, while rank 0 has the lock of the folder on its own."""
    leaders, error = _leaders(ranks, folder, 0), None
    try:
        if ranks.rank in leaders:
            check_free(folder)
        if ranks.rank in {0, *leaders}:
            remove_leftovers(folder)
    except OSError as found:
        error = found
    _raise_first(ranks.gather(error))


def _leaders(ranks: Processes, folder: Path, source: int) -> set[int]:
    """The lowest rank of each group that sees one disk, without the group of the source."""
    # The name is that of a leftover, because a process may be killed before it removes the file.
    mark, marked = folder / f".seen-{secrets.token_hex(8)}.partial", True
    if ranks.rank == source:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:  # nobody can have written there either
            marked = False
    name, marked = ranks.gather((mark.name, marked))[source]
    sees = ranks.gather(not marked or (folder / name).exists())
    blind = [rank for rank, seen in enumerate(sees) if not seen]
    leaders: set[int] = set()
    if blind:
        own, error = folder / f"{name}-{ranks.rank}", None
        if ranks.rank in blind:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                own.touch()
            except OSError as found:
                error = found
        _raise_first(ranks.gather(error))
        seen_by = [rank for rank in blind if (folder / f"{name}-{rank}").exists()]
        leaders = set(ranks.gather(seen_by[0] if ranks.rank in blind else source)) - {source}
        if ranks.rank in blind:
            own.unlink(missing_ok=True)
    if ranks.rank == source:
        mark.unlink(missing_ok=True)
    return leaders


def _listed(folder: Path, patterns: tuple[str, ...]) -> tuple[list[str], dict[str, tuple[int, str]]]:
    """Names of files and folders, in the order in which they were written, and the files' sizes and checksums."""
    found = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if any(fnmatch(parts[0], pattern) for pattern in patterns) and not any(p[0] == "." for p in parts):
            found.append((path.stat().st_mtime_ns, path.relative_to(folder).as_posix()))
    names = [name for _, name in sorted(found)]
    files = {name: folder / name for name in names if (folder / name).is_file()}
    return names, {name: (path.stat().st_size, checksum(path)) for name, path in files.items()}


def _prepare(
    folder: Path, own: list[str], names: list[str], files: dict[str, tuple[int, str]], source: int
) -> None:
    """Remove what the source does not have, and make the folders that it has.

    Raises:
        OSError: the source has nothing, and this machine has something.
    """
    if own and not names:
        raise OSError(
            f"{folder / own[0]} is on {socket.gethostname()}, and nothing like it on the machine of rank {source}. If "
            "the run began on this machine, start it as the first one (--machine_rank 0), else delete the folder here"
        )
    for name in sorted(set(own) - set(names), reverse=True):  # what is in a folder comes before it
        path = folder / name
        if not path.is_dir():
            path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()
    for name in names:
        (folder / name if name not in files else (folder / name).parent).mkdir(parents=True, exist_ok=True)


def _send(ranks: Processes, path: Path, described: tuple[int, str]) -> None:
    size, _ = described
    with path.open("rb") as file:
        for start in range(0, size, _BLOCK):
            block = file.read(min(_BLOCK, size - start)).ljust(min(_BLOCK, size - start), b"\0")
            dist.broadcast(torch.frombuffer(bytearray(block), dtype=torch.uint8).to(ranks.device), ranks.rank)


def _receive(ranks: Processes, path: Path | None, described: tuple[int, str], source: int) -> OSError | None:
    """Take part in sending a file, and write it unless `path` is None.

    An error is returned, because the blocks that follow must be taken, too.
    """
    size, expected = described
    error: OSError | None = None
    temporary = None if path is None else path.with_name(f".{path.name}.{os.getpid()}.partial")
    for start in range(0, max(size, 1), _BLOCK):
        block = torch.empty(min(_BLOCK, size - start), dtype=torch.uint8, device=ranks.device)
        if size:
            dist.broadcast(block, source)
        if temporary is not None and error is None:
            try:
                with writing(temporary), temporary.open("ab" if start else "wb") as file:
                    file.write(block.cpu().numpy().data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as found:
                error = found
    if path is None or temporary is None:
        return None
    if error is None and checksum(temporary) != expected:
        error = OSError(f"{path}: what arrived from rank {source} is not what it has; start again")
    if error is None:
        os.replace(temporary, path)
    else:
        temporary.unlink(missing_ok=True)
    return error


def _raise_first(errors: list[OSError | None]) -> None:
    """Raise the first error of any rank on all ranks, so that none waits for another."""
    for error in errors:
        if error is not None:
            raise error
