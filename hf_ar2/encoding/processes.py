"""What the ranks of a distributed run need from each other outside the training step."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among its peers; one process alone when torch.distributed is not running."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device | str) -> Processes:
        """Read rank and world size from torch.distributed."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))
        return cls(0, 1, torch.device(device))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def combine(self, array: np.ndarray) -> np.ndarray:
        """Add up what every rank filled in (each its own share, zeros elsewhere); exact, since the rest is zero."""
        if self.world_size == 1:
            return array
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()


def end_processes() -> None:
    """Leave the process group, where there is one, at the end of a script.

    A process that exits with the group's threads running may abort, and one that holds a wrapped model longer than the
    group may wait forever: so trainers, which refer to themselves, are collected first.
    """
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
