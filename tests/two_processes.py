"""Runs a function or a script in two processes on this machine."""

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
    torch.multiprocessing.spawn(_one_of_two, args=(function, str(folder)), nprocs=2)


def _one_of_two(rank: int, function: Callable[[int, str], None], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    function(rank, folder)
    leave()


def launch_two(script: str | Path, *arguments: str | Path) -> str:
    """Run a script in two processes with `accelerate launch`; returns its standard output, and fails if it fails."""
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = ["-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    done = subprocess.run([sys.executable, *launch, script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def leave() -> None:
    """End this process as a success, once both are done.

    Without the interpreter's own shutdown: there, torch's threads have aborted a process whose work was done.
    """
    if dist.is_initialized():
        dist.barrier()
    end_processes()
    os._exit(0)
