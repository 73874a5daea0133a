"""Communication between the ranks of a distributed run outside the training step."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hf_ar2.encoding.nodes import copy_to_all, remove_leftovers_of_all
from hf_ar2.folders import remove_leftovers


@dataclass(frozen=True)
class Processes:
    """This process in a distributed run; rank 0 of 1 if torch.distributed is not initialised."""

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

    def part_of(self, total: int) -> slice:
        """This rank's share of so many rows, see `share_of`."""
        return slice(*share_of(self.rank, self.world_size, total))

    def barrier(self) -> None:
        """Wait for all ranks; the time-out of gloo names those that are missing."""
        if self.world_size == 1:
            return
        if dist.get_backend() == dist.Backend.GLOO:
            dist.monitored_barrier(wait_all_ranks=True)
        else:
            dist.barrier()

    def combine(self, array: np.ndarray) -> np.ndarray:
        """The sum over ranks of arrays in which each rank filled its own share and left zeros elsewhere."""
        if self.world_size == 1:
            return array
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank; they are pickled, so they should be small."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def of_first(self, value: Any) -> Any:
        """The value of rank 0, which may be the only one that has it; pickled, so it should be small."""
        if self.world_size == 1:
            return value
        values = [value if self.is_first else None]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def share(self, folder: Path, *names: str, source: int = 0) -> None:
        """Wait for all ranks; then files and folders that one rank wrote are the same on every machine.

        Where all ranks see one folder, that is all. Else the rank's machine sends what another one lacks, in blocks of
        64 MiB, compares checksums, and removes there what it does not have itself. Hidden files stay as they are.

        Args:
            folder: need not have the same path on all ranks.
            names: in the folder; patterns as of a shell, such as `"checkpoint-*"`.
            source: the rank that wrote them.

        Raises:
            OSError: on every rank, if one cannot write; or if `source` has nothing of these names, and another machine
                has.
        """
        if self.world_size > 1:
            self.barrier()
            copy_to_all(self, folder, names, source)

    def remove_leftovers(self, folder: Path) -> None:
        """Remove what killed writers left in a folder, on every machine; rank 0 holds its lock.

        Raises:
            FolderInUse: on every rank, if another run writes to the folder of one machine.
        """
        if self.world_size > 1:
            remove_leftovers_of_all(self, folder)
        else:
            remove_leftovers(folder)

    def gather_arrays(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks, by rank; all have one shape and dtype."""
        if self.world_size == 1:
            return [array]
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor)
        return [part.cpu().numpy() for part in gathered]


def share_of(rank: int, world_size: int, total: int) -> tuple[int, int]:
    """The rows from which and before which a process works: all about the same number.

    Example:
        >>> [share_of(rank, 3, 10) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    return total * rank // world_size, total * (rank + 1) // world_size


def end_processes() -> None:
    """Destroy the process group, if there is one, at the end of a script.

    A process that exits while the group's threads run may abort, and one that holds a wrapped model longer than the
    group may hang, so trainers (which refer to themselves) are garbage-collected first.
    """
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
