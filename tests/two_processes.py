"""Runs a function or a script in two or more processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from hf_ar2.encoding.processes import end_processes


def in_two_processes(function: Callable[[int, str], None], folder: Path) -> None:
    """Call `function(rank, folder)` in two processes that share a group; what either raises is raised here."""
    in_processes(2, function, folder)


def in_processes(number: int, function: Callable[[int, str], None], folder: Path) -> None:
    """As `in_two_processes`, in any number of them."""
    torch.multiprocessing.spawn(_one_of, args=(number, function, str(folder)), nprocs=number)


def _one_of(rank: int, number: int, function: Callable[[int, str], None], folder: str) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=number)
    function(rank, folder)
    leave()


def launch_two(script: str | Path, *arguments: str | Path) -> str:
    """Run a script in two processes with `accelerate launch`; returns its standard output, and fails if it fails."""
    return launch(2, script, *arguments)


def launch(number: int, script: str | Path, *arguments: str | Path) -> str:
    """As `launch_two`, in any number of processes."""
    done = launched(number, script, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launched(number: int, script: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """As `launch`; also what failed is returned."""
    options = (
        f"--multi_gpu --num_processes {number} --num_machines 1 --mixed_precision no --dynamo_backend no"
    )
    command = ["-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    if number == 1:
        command = []
    return subprocess.run([sys.executable, *command, script, *arguments], capture_output=True, text=True)


def leave() -> None:
    """End this process as a success, once both are done.

    Without the interpreter's own shutdown: there, torch's threads have aborted a process whose work was done.
    """
    if dist.is_initialized():
        dist.barrier()
    end_processes()
    os._exit(0)
