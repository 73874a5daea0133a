"""Relevance judgments by row number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Judgments:
    """Judged passages per query, as a sparse matrix in compressed rows (CSR).

    Attributes:
        query_rows: int64 `[Q]`, rows of the collection's queries, ascending, each with at least one judgment.
        offsets: int64 `[Q + 1]`; the judgments of query `i` are entries `offsets[i]` to `offsets[i + 1]`.
        passage_rows: int64 `[J]`, rows of the corpus, ascending within a query.
        relevance: int32 `[J]`, the judged grade.
        level: the lowest grade that is relevant.

    Example:
        >>> judgments = Judgments.from_triples([4, 0, 4], [7, 2, 1], [1, 1, 0])
        >>> judgments.query_rows
        array([0, 4])
        >>> judgments.of(1)
        (array([1, 7]), array([0, 1], dtype=int32))
        >>> judgments.positives().of(1)
        (array([7]), array([1], dtype=int32))
    """

    query_rows: np.ndarray
    offsets: np.ndarray
    passage_rows: np.ndarray
    relevance: np.ndarray
    level: int = 1

    @classmethod
    def from_triples(cls, query_rows: ArrayLike, passage_rows: ArrayLike, relevance: ArrayLike) -> Judgments:
        """Judgments from arrays `[J]` of query row, passage row and relevance, in any order.

        Raises:
            ValueError: The arrays differ in length, a relevance is not a whole number, or a passage is judged twice
                for a query.
        """
        queries = np.asarray(query_rows, dtype=np.int64)
        passages = np.asarray(passage_rows, dtype=np.int64)
        given = np.asarray(relevance)
        grades = given.astype(np.int32)
        if given.dtype.kind == "f" and (given != grades).any():
            found = given[given != grades].flat[0]
            raise ValueError(f"relevance {found}: expected a whole number, the grade of a passage")
        shapes = queries.shape, passages.shape, grades.shape
        if len(set(shapes)) > 1 or queries.ndim != 1:
            raise ValueError(f"expected three arrays of the same length, found shapes {shapes}")
        order = np.lexsort((passages, queries))
        queries, passages, grades = queries[order], passages[order], grades[order]
        twice = np.flatnonzero((queries[1:] == queries[:-1]) & (passages[1:] == passages[:-1]))
        if len(twice):
            passage, query = passages[twice[0]], queries[twice[0]]
            raise ValueError(f"passage row {passage} is judged more than once for query row {query}")
        rows, starts = np.unique(queries, return_index=True)
        return cls(rows, np.append(starts, len(queries)).astype(np.int64), passages, grades)

    def __len__(self) -> int:
        """The number of judged queries, Q."""
        return len(self.query_rows)

    def of(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Passage rows and relevance of the i-th judged query (whose row is `query_rows[i]`)."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.passage_rows[part], self.relevance[part]

    def positives(self) -> Judgments:
        """The judgments of at least `level`, of the queries that have any."""
        relevant = self.relevance >= self.level
        offsets = np.append(0, np.cumsum(relevant))[self.offsets]
        some = np.diff(offsets) > 0
        return Judgments(
            self.query_rows[some],
            np.append(offsets[:-1][some], offsets[-1]),
            self.passage_rows[relevant],
            self.relevance[relevant],
            self.level,
        )

    def take(self, indices: ArrayLike) -> Judgments:
        """The judgments of a subset of the judged queries.

        Args:
            indices: Positions in `query_rows`, ascending and distinct, or a bool mask `[Q]`.

        Raises:
            ValueError: The positions do not ascend.
        """
        places = np.asarray(indices)
        if places.dtype == bool:
            if places.shape != (len(self),):
                raise ValueError(f"expected a mask of shape {(len(self),)}, found {places.shape}")
            places = np.flatnonzero(places)
        places = places.astype(np.int64)
        if np.any(np.diff(places) <= 0):
            raise ValueError("expected ascending and distinct indices; sort them with numpy.unique")
        lengths = np.diff(self.offsets)[places]
        offsets = np.append(0, np.cumsum(lengths))
        # The index of each entry: its offset within its query, added to where that query started.
        entries = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][places] - offsets[:-1], lengths)
        return Judgments(
            self.query_rows[places], offsets, self.passage_rows[entries], self.relevance[entries], self.level
        )
