"""Runs recipes on full disks: one line names the file, and with space again the same command ends as ever."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from pathlib import Path

from attacks.common import RECIPES, Ended, Tried, called, difference, run_recipe

# Bytes: of the largest file, and of a disk. The runs need about 1 MB a file and 10 MB in all.
_FILES, _DISKS = (100, 500_000), (200_000, 6_000_000)


def can_mount(home: Path) -> bool:
    """Whether this process may mount a file system."""
    (home / "mounted").mkdir(exist_ok=True)
    return _mount(home / "mounted", "size=1m") and _unmount(home / "mounted")


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _unmount(folder: Path) -> bool:
    return subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0


class FullDisks:
    """Runs of every recipe in turn, whose uninterrupted results are known.

    Args:
        home: with the recipes, see `make_home`.
        expected: recipe → its `outcome`.
    """

    def __init__(self, home: Path, expected: dict[str, dict[str, str]]) -> None:
        self.home, self.expected = home, expected

    def file_size(self, number: int) -> Tried:
        """No file may be larger than a random size."""
        name, size = self._case(number, _FILES)
        run = self.home / f"size-{number}"
        command = run_recipe(self.home / f"{name}.yaml", run)

        def limited() -> None:
            # What is printed goes through a pipe, for which there is no limit.
            printing = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
            assert printing.stdin is not None
            for number in (1, 2):
                os.dup2(printing.stdin.fileno(), number)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                command()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        log = self.home / f"size-{number}.log"
        fault = self._fault(name, run, called(limited, log), log)
        shutil.rmtree(run, ignore_errors=True)
        return Tried(1, [f"{name}, files of {size:,} bytes: {fault}"] if fault else [])

    def disk_size(self, number: int) -> Tried:
        """The run folder is on a disk of a random size."""
        name, size = self._case(number, _DISKS)
        disk, log = self.home / f"disk-{number}", self.home / f"disk-{number}.log"
        disk.mkdir()
        assert _mount(disk, f"size={size}")
        try:
            ended = called(run_recipe(self.home / f"{name}.yaml", disk / "run"), log)
            assert _mount(disk, "remount,size=200m")
            fault = self._fault(name, disk / "run", ended, log)
        finally:
            _unmount(disk)
        return Tried(1, [f"{name}, a disk of {size:,} bytes: {fault}"] if fault else [])

    def _case(self, number: int, sizes: tuple[int, int]) -> tuple[str, int]:
        ratio = sizes[1] / sizes[0]
        return list(RECIPES)[number % len(RECIPES)], int(sizes[0] * ratio ** random.Random(number).random())

    def _fault(self, name: str, run: Path, ended: Ended, log: Path) -> str:
        if ended.code and (fault := ended.fault(str(run))):
            return fault
        again = called(run_recipe(self.home / f"{name}.yaml", run), log)
        if again.code:
            return f"with space again: {again.message or again.printed[-300:]}; before: {ended.message}"
        return difference(run, self.expected[name])
