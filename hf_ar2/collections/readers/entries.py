"""Collects and checks queries and judgments while files are read, and makes datasets of them."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hf_ar2.collections.problems import Problems
from hf_ar2.collections.tables import QRELS_FEATURES, dataset_of, query_features, rows_of
from hf_ar2.whole_number import whole_number


def id_of(value: Any) -> str | None:
    """An id as a string; integers (of pandas, or of a table on the Hub) become their digits. None if it is neither."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


class Queries:
    """Collects the queries of one collection from any number of files."""

    def __init__(self, problems: Problems):
        self.problems = problems
        self._found: dict[str, tuple[str, list[str] | None, str, str | Path, int]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(
        self,
        id: str,
        text: str,
        file: str | Path,
        line: int,
        answers: list[str] | None = None,
        source: str | None = None,
    ) -> bool:
        """Adds a query, and returns whether it was added; a query repeated in another file is ignored.

        `answers` are texts that a relevant passage contains, `source` is as in `Collection.query_sources`. An empty id
        or text, and an id that was used before, are passed to `problems`.
        """
        if not id:
            self.problems.malformed(file, line, "an empty query id", "an id")
        elif not text.strip():
            self.problems.raise_or_skip("empty queries", file, line, f"query {id!r} without a text", "a text")
        elif id in self._found:
            other, _, _, where, at = self._found[id]
            if other != text or where == file:
                found = f"query id {id!r} a second time (first at {where}:{at})"
                self.problems.raise_or_skip("duplicate ids", file, line, found, "a unique id for each query")
        else:
            self._found[id] = (text, answers, source or "", file, line)
            return True
        return False

    def by_text(self, prefix: str) -> dict[str, str]:
        """Text -> id of the queries whose ids start with the prefix; the first id of equal texts."""
        ids: dict[str, str] = {}
        for id, (text, *_) in self._found.items():
            if id.startswith(prefix):
                ids.setdefault(text, id)
        return ids

    def dataset(self) -> datasets.Dataset:
        """The queries in the order they were added: `id`, `text`, and `answers` and `source` if any query has one."""
        texts, answers, sources = ([entry[place] for entry in self._found.values()] for place in range(3))
        columns: dict[str, list] = {"id": list(self._found), "text": texts}
        if any(found is not None for found in answers):
            columns["answers"] = [found or [] for found in answers]
        if any(sources):
            columns["source"] = sources
        return dataset_of(columns, query_features(columns))


class Qrels:
    """Collects the judgments of one split, and checks them against the collection."""

    def __init__(self, file: str | Path, problems: Problems):
        self.file = file
        self.problems = problems
        self.query_ids: list[str] = []
        self.passage_ids: list[str] = []
        self.relevance = array("i")
        self.lines = array("q")

    def add(self, query_id: str, passage_id: str, relevance: str | float | None, line: int) -> None:
        """Adds a judgment; a relevance that is not a whole number of 32 bits (1 or 1.0) is passed to `problems`."""
        try:
            self.relevance.append(whole_number(relevance))
        except (ValueError, OverflowError):
            found, expected = f"relevance {relevance!r}", "a whole number, 0 for not relevant"
            self.problems.malformed(self.file, line, found, expected)
            return
        self.query_ids.append(query_id)
        self.passage_ids.append(passage_id)
        self.lines.append(line)

    def dataset(self, known_queries: pa.ChunkedArray, known_passages: pa.ChunkedArray) -> datasets.Dataset:
        """The judgments as a dataset; those with unknown ids and repeated ones are passed to `problems`."""
        query_rows = rows_of(self.query_ids, known_queries)
        passage_rows = rows_of(self.passage_ids, known_passages)
        pairs = np.stack([query_rows, passage_rows], axis=1)
        _, first_rows = np.unique(pairs, axis=0, return_index=True)
        first = np.zeros(len(pairs), dtype=bool)
        first[first_rows] = True
        keep = (query_rows >= 0) & (passage_rows >= 0) & first
        for row in np.flatnonzero(~keep).tolist():
            query, passage = self.query_ids[row], self.passage_ids[row]
            if query_rows[row] < 0:
                cause, found = "unknown queries in qrels", f"query id {query!r}"
                expected = "the id of a query"
            elif passage_rows[row] < 0:
                cause, found = "unknown passages in qrels", f"passage id {passage!r}"
                expected = "the id of a passage"
            else:
                cause, expected = "duplicate judgments", "one judgment for each pair"
                found = f"a second judgment of passage {passage!r} for query {query!r}"
            self.problems.raise_or_skip(cause, self.file, self.lines[row], found, expected)
        columns: dict[str, Any] = {"query_id": self.query_ids, "passage_id": self.passage_ids}
        columns["relevance"] = np.array(self.relevance, dtype=np.int32)
        judged = dataset_of(columns, QRELS_FEATURES)
        return judged if keep.all() else judged.select(np.flatnonzero(keep))
