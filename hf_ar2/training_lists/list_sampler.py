"""Draws training lists: a positive and sampled negatives for each query of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hf_ar2.training_lists.draws import (
    draw_members,
    sample_more_positive_columns,
    sample_negatives,
    sample_positive_columns,
    sample_random_passages,
)
from hf_ar2.training_lists.pool import CandidatePool

_SEED_STEP = 1_000_003


class NegativeSampler(Protocol):
    """A custom sampler, which says which candidates of the pool become the negatives of a list.

    The draw must depend only on its arguments, so that a resumed run, or one with several processes, draws the same
    lists. It can be a function of a module; worker processes get a copy of it.
    """

    def __call__(
        self, pool: CandidatePool, indices: np.ndarray, n: int, *, seed: int, positions: np.ndarray
    ) -> np.ndarray:
        """Draw negatives.

        Args:
            pool: the candidates.
            indices: int64 `[B]`, the pool entry of each list.
            n: negatives in a list.
            seed: of the run and phase.
            positions: int64 `[B]`, the number of each list in the run; with the seed it decides the draw.

        Returns:
            Rows in the corpus, int64 `[B, n]`; -1 pads.
        """
        ...


@dataclass(frozen=True)
class Lists:
    """The training lists of a batch.

    Attributes:
        query_rows: int64 `[B]`.
        passage_rows: int64 `[B, L]`; positives, then negatives; column 0 is a positive; -1 under a False mask.
        mask, positives: bool `[B, L]`.
        known_positives: int64 `[B, P]`, padded with -1.
        scores: float32 `[B, L]`, the pool's scores of the passages, 0 under a False mask; None: not requested.
    """

    query_rows: np.ndarray
    passage_rows: np.ndarray
    mask: np.ndarray
    positives: np.ndarray
    known_positives: np.ndarray
    scores: np.ndarray | None = None


@dataclass
class ListSampler:
    """Draws lists as a pure function of seed and position, so that a resumed run needs no saved state.

    Position p is the p-th list of a training phase. Every pass is a new permutation of the queries.

    Args:
        pool: candidates of the training queries; replaced at every refresh. A query may have several entries.
        corpus_size: passages in the corpus, for random negatives.
        sampler: a name, or a `NegativeSampler`; see `JointConfig` for it and for settings that are not listed here.
        hard_share: from positions to the share of negatives from the pool; the others, and those missing from a short
            pool, are drawn from the corpus. None: all from the pool; missing ones are masked.
        num_positives: most positives in a list; missing ones are masked.
        known_positives: int `[Q, P]`, all known positives of each pool entry, padded with -1; None: those of the pool.
        with_scores: whether lists have the pool's scores.
        member_rows: int64 `[M, 2]`, the corpus rows of each of several collections, see `Collection.member_rows`. The
            lists of a step are then of one of them, random negatives included.
        member_weights: float64 `[M]`, how often each is drawn, times the number of its pool entries.
        lists_per_step: lists of one optimizer step, over all processes.
    """

    pool: CandidatePool
    corpus_size: int
    num_negatives: int
    seed: int
    sampler: str | NegativeSampler = "uniform"
    simans_a: float = 0.5
    simans_b: float = 0.0
    first_positive: bool = False
    hard_share: Callable[[np.ndarray], np.ndarray | None] | None = None
    num_positives: int = 1
    known_positives: np.ndarray | None = None
    with_scores: bool = False
    member_rows: np.ndarray | None = None
    member_weights: np.ndarray | None = None
    lists_per_step: int = 1
    # The pool for which the entries of each collection were found, and these entries.
    _grouped: tuple[CandidatePool, list[np.ndarray]] | None = field(default=None, init=False, repr=False)

    def indices(self, positions: np.ndarray, stream: int = 0) -> np.ndarray:
        """The pool entries of these positions, int64 `[B]`."""
        if self.member_rows is None or self.member_weights is None:
            return self._passes(np.arange(len(self.pool)), positions, stream)
        entries = self._entries_of_members(self.member_rows)
        steps = positions // self.lists_per_step
        shares = self.member_weights * [len(of_member) for of_member in entries]
        drawn = draw_members(shares, int(steps.max(initial=0)) + 1, seed=self.seed, stream=stream)
        out = np.empty(len(positions), np.int64)
        for step in np.unique(steps):
            chosen, member = steps == step, int(drawn[step])
            before = np.count_nonzero(drawn[:step] == member) * self.lists_per_step
            own_positions = before + positions[chosen] % self.lists_per_step
            out[chosen] = self._passes(entries[member], own_positions, stream, member)
        return out

    def _entries_of_members(self, member_rows: np.ndarray) -> list[np.ndarray]:
        """The pool entries of each collection, found once for each pool."""
        if self._grouped is None or self._grouped[0] is not self.pool:
            members = np.searchsorted(member_rows[:, 1], self.pool.positive_rows[:, 0], side="right")
            self._grouped = self.pool, [np.flatnonzero(members == one) for one in range(len(member_rows))]
        return self._grouped[1]

    def _passes(self, entries: np.ndarray, positions: np.ndarray, *stream: int) -> np.ndarray:
        """The entry at each position, where every pass over the entries is a new permutation of them."""
        passes = positions // len(entries)
        out = np.empty(len(positions), np.int64)
        for number in np.unique(passes):
            order = np.random.default_rng((self.seed, *stream, int(number))).permutation(len(entries))
            chosen = passes == number
            out[chosen] = entries[order[positions[chosen] % len(entries)]]
        return out

    def __call__(self, positions: np.ndarray, stream: int = 0) -> Lists:
        """The lists at these positions `[B]`; each phase draws from its own stream."""
        indices = self.indices(positions, stream)
        draw: dict[str, Any] = {"seed": self.seed + _SEED_STEP * stream, "positions": positions}
        columns = sample_positive_columns(self.pool, indices, first=self.first_positive, **draw)
        known = self.pool.positive_rows if self.known_positives is None else self.known_positives
        known = np.asarray(known[indices], np.int64)
        positives = self._positives(indices, columns, draw)
        negatives, mask = self._negatives(indices, columns, known, draw)
        rows = np.concatenate([positives, negatives], axis=1)
        return Lists(
            query_rows=np.asarray(self.pool.query_rows[indices], np.int64),
            passage_rows=rows,
            mask=np.concatenate([positives >= 0, mask], axis=1),
            positives=np.concatenate([positives >= 0, np.zeros_like(mask)], axis=1),
            known_positives=known,
            scores=self._scores(indices, rows) if self.with_scores else None,
        )

    def _scores(self, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The pool's scores of passages `[B, L]` of these entries, float32; 0 for row -1."""
        pool = self.pool
        known = np.concatenate([pool.positive_rows[indices], pool.passage_rows[indices]], axis=1)
        known_scores = np.concatenate([pool.positive_scores[indices], pool.scores[indices]], axis=1)
        scores = np.zeros(rows.shape, np.float32)
        for column, wanted in enumerate(rows.T):
            hits = known == wanted[:, None]
            unknown = wanted[~hits.any(axis=1) & (wanted >= 0)]
            if len(unknown):
                raise ValueError(
                    f"the sampler drew row {unknown[0]}, which is not among the candidates of its list and so has no "
                    "teacher score; draw from pool.passage_rows"
                )
            place = hits.argmax(axis=1)
            scores[:, column] = np.where(wanted >= 0, known_scores[np.arange(len(rows)), place], 0)
        return scores

    def _positives(self, indices: np.ndarray, columns: np.ndarray, draw: dict[str, Any]) -> np.ndarray:
        """Rows int64 `[B, num_positives]`, the one in `columns` first, padded with -1."""
        count = self.num_positives - 1
        more = sample_more_positive_columns(
            self.pool, indices, columns, count, first=self.first_positive, **draw
        )
        chosen = np.concatenate([columns[:, None], more], axis=1)
        own = np.asarray(self.pool.positive_rows[indices], np.int64)
        return np.where(chosen >= 0, np.take_along_axis(own, np.maximum(chosen, 0), axis=1), -1)

    def _negatives(
        self, indices: np.ndarray, columns: np.ndarray, known: np.ndarray, draw: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.sampler, str):
            hard, mask = sample_negatives(
                self.pool,
                indices,
                self.num_negatives,
                sampler=self.sampler,
                simans_a=self.simans_a,
                simans_b=self.simans_b,
                positive_columns=columns,
                **draw,
            )
        else:
            hard = np.array(self.sampler(self.pool, indices, self.num_negatives, **draw))
            self._check_drawn(hard, known)
            mask = hard >= 0
        share = self.hard_share(draw["positions"]) if self.hard_share is not None else None
        if share is None or self.num_negatives == 0:
            return hard, mask
        keep = np.rint(share * self.num_negatives).astype(np.int64)
        hard[np.arange(self.num_negatives) >= keep[:, None]] = -1
        random = self._random(indices, np.concatenate([known, hard], axis=1), **draw)
        negatives = np.where(hard >= 0, hard, random)
        return negatives, negatives >= 0

    def _random(
        self, indices: np.ndarray, exclude: np.ndarray, seed: int, positions: np.ndarray
    ) -> np.ndarray:
        """Random passages int64 `[B, num_negatives]` of the list's own collection, without `exclude` `[B, P]`."""
        ranges = np.array([[0, self.corpus_size]]) if self.member_rows is None else self.member_rows
        members = np.searchsorted(ranges[:, 1], self.pool.positive_rows[indices, 0], side="right")
        random = np.empty((len(indices), self.num_negatives), np.int64)
        for member in np.unique(members):
            own, (first, last) = members == member, ranges[member].tolist()
            inside = (exclude[own] >= first) & (exclude[own] < last)
            drawn = sample_random_passages(
                last - first,
                self.num_negatives,
                seed=seed,
                positions=positions[own],
                exclude=np.where(inside, exclude[own] - first, -1),
            )
            random[own] = np.where(drawn >= 0, drawn + first, -1)
        return random

    def _check_drawn(self, drawn: np.ndarray, known: np.ndarray) -> None:
        """Raise ValueError if a custom sampler drew what cannot be a negative."""
        expected = (len(known), self.num_negatives)
        if drawn.shape != expected or drawn.dtype.kind not in "iu":
            raise ValueError(
                f"the sampler returned {drawn.dtype} {drawn.shape}; expected rows of passages, int64 {expected}"
            )
        if drawn.max(initial=-1) >= self.corpus_size:
            raise ValueError(
                f"the sampler drew row {drawn.max()}; the corpus has rows 0 to {self.corpus_size - 1}"
            )
        positive = (drawn[:, :, None] == known[:, None, :]).any(axis=2) & (drawn >= 0)
        if positive.any():
            raise ValueError(
                f"the sampler drew row {drawn[positive][0]} as a negative of a query it is relevant to; draw from "
                "pool.passage_rows, which holds no positives"
            )
