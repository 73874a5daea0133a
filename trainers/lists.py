"""Training lists: which queries a step sees, and which passages stand beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.training_lists.list_sampler import ListSampler


class Positions(Dataset):
    """A data set whose items are positions; the collator turns a batch of them into lists."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> int:
        return position


class RoundSampler(Sampler[int]):
    """Yields the positions of the current round, in order.

    Args:
        length: lists per round (a multiple of the global batch).
        current_round: read when an epoch begins, so that a resumed run continues where it was.
    """

    def __init__(self, length: int, current_round: Callable[[], int]) -> None:
        self.length = length
        self.current_round = current_round

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        start = self.current_round() * self.length
        return iter(range(start, start + self.length))


@dataclass
class ListCollator:
    """Turns positions into what one forward pass needs.

    Args:
        lists: draws the lists.
        phases: names of the phases.
        phase_positions: from positions of the run to the phase of their step and positions within that phase.
        needs: from a phase to which of "queries", "passages", "pairs" its step encodes.
        step_tokens: padded tokens of a chunk.
        mini_batch_size: rows of a chunk; None: as many as the tokens allow.
    """

    lists: ListSampler
    phases: tuple[str, ...]
    phase_positions: Callable[[np.ndarray], tuple[str, np.ndarray]]
    needs: Callable[[str], tuple[str, ...]]
    retriever_inputs: RetrieverInputs | None
    ranker_inputs: RankerInputs | None
    step_tokens: int
    mini_batch_size: int | None = None

    def __call__(self, positions: list[int]) -> dict[str, Any]:
        phase, own = self.phase_positions(np.asarray(positions, np.int64))
        lists = self.lists(own, self.phases.index(phase))
        batch: dict[str, Any] = {
            "phase": phase,
            "mask": torch.from_numpy(lists.mask),
            "positives": torch.from_numpy(lists.positives),
            "passage_rows": torch.from_numpy(lists.passage_rows),
            "known_positives": torch.from_numpy(lists.known_positives),
            "query_rows": torch.from_numpy(lists.query_rows),
        }
        needs = self.needs(phase)
        limits = (self.step_tokens, self.mini_batch_size)
        # Under the mask stands the list's first positive: already encoded, so that it costs nothing.
        rows = np.where(lists.mask, lists.passage_rows, lists.passage_rows[:, :1])
        if "queries" in needs:
            assert self.retriever_inputs is not None
            batch["queries"] = self.retriever_inputs.query_chunks(lists.query_rows, *limits)
        if "passages" in needs:
            assert self.retriever_inputs is not None
            batch["passages"] = self.retriever_inputs.passage_chunks(rows.reshape(-1), *limits)
        if "pairs" in needs:
            assert self.ranker_inputs is not None
            cells = np.flatnonzero(lists.mask.reshape(-1))
            queries = np.repeat(lists.query_rows, rows.shape[1])
            batch["pairs"] = self.ranker_inputs.pair_chunks(queries[cells], rows.reshape(-1)[cells], *limits)
        return batch
