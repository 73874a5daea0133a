"""Lexical search (BM25) over the passages of a collection; it needs no training."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import bm25s
import numpy as np
from transformers.utils import logging

from hf_ar2.files import DamagedFile, check_files, files_in, read_json, write_note, writing
from hf_ar2.folders import complete_folder
from hf_ar2.terminal import counted

logger = logging.get_logger(__name__)

# Scripts without spaces between words: Han, kana, and their extensions.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TERM = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+")
_FORMAT, _NOTE = "2", "checksums.json"


def _load(folder: Path) -> bm25s.BM25:
    return bm25s.BM25.load(str(folder), mmap=True, show_progress=False, allow_pickle=False)


def terms(text: str) -> list[str]:
    """The terms of a text: case-folded words; in Chinese and Japanese, characters and bigrams."""
    found: list[str] = []
    for term in _TERM.findall(text.casefold()):
        if re.match(f"[{UNSPACED}]", term):
            found += [*term, *(term[place : place + 2] for place in range(len(term) - 1))]
        else:
            found.append(term)
    return found


class LexicalIndex:
    """BM25 scores of passages for queries (Lucene's form, k1 = 1.2, b = 0.75), by the package bm25s.

    Args:
        model: a `bm25s.BM25` that has indexed the passages. passages: their number.

    Attributes:
        parts: rows from the first to before the last → the index of these alone, with its own word counts.
    """

    def __init__(self, model: bm25s.BM25, passages: int) -> None:
        self.model = model
        self.passages = passages
        self.parts: dict[tuple[int, int], LexicalIndex] = {}

    @classmethod
    def build(cls, texts: Iterable[str], show_progress: bool = False) -> LexicalIndex:
        """Index the texts of N passages; ValueError if no text contains a word."""
        tokens = [terms(text) for text in texts]
        if not any(tokens):
            raise ValueError(
                f"{counted(len(tokens), 'passages')} without a single word; lexical search needs text"
            )
        model = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        model.index(tokens, show_progress=show_progress, leave_progress=False)
        return cls(model, len(tokens))

    @classmethod
    def open_or_build(cls, texts: Sequence[str], folder: str | Path) -> LexicalIndex:
        """The index of these texts, opened from `folder/<hash of the texts>`, or built and saved there."""
        digest = hashlib.blake2b(_FORMAT.encode(), digest_size=12)
        for text in texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        place = Path(folder) / digest.hexdigest()
        try:
            if place.is_dir():
                check_files(
                    place, read_json(place / _NOTE)["checksums"], "Lexical search is indexed again now."
                )
                return cls(_load(place), len(texts))
        except (FileNotFoundError, DamagedFile) as error:
            logger.warning(str(error))
            shutil.rmtree(place, ignore_errors=True)
        index = cls.build(texts)
        with writing(place), complete_folder(place) as temporary:
            index.model.save(str(temporary), show_progress=False, allow_pickle=False)
            _load(temporary)  # raises if the end of a file was not written
            write_note(temporary / _NOTE, {}, files_in(temporary))
        return index

    @classmethod
    def of_members(
        cls, texts: Sequence[str], member_rows: np.ndarray, folder: str | Path | None = None
    ) -> LexicalIndex:
        """The index of all texts, and in `parts` that of each of several collections, see `Collection.member_rows`.

        They are stored in `folder`, if it is given.
        """
        build = cls.build if folder is None else partial(cls.open_or_build, folder=folder)
        index = build(texts)
        index.parts = {(start, stop): build(texts[start:stop]) for start, stop in member_rows.tolist()}
        return index

    def scores(
        self, queries: Sequence[str], rows: np.ndarray | None = None, ranges: np.ndarray | None = None
    ) -> np.ndarray:
        """BM25 scores, float32: `[Q, N]` of all passages, or `[Q, K]` of those at `rows` `[Q, K]` (-1: 0)."""
        width = self.passages if rows is None else rows.shape[1]
        out = np.zeros((len(queries), width), np.float32)
        for number, query in enumerate(queries):
            found = self._of(query, None if ranges is None else ranges[number])
            if found is not None:
                out[number] = found if rows is None else np.where(rows[number] >= 0, found[rows[number]], 0)
        return out

    def search(
        self, queries: Sequence[str], k: int, ranges: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best passages of each query: scores float32 `[Q, k]` and rows int64 `[Q, k]`, best first, padded with -1.

        A passage that shares no term with the query is not found. `ranges` are int64 `[Q, 2]`, the rows that each query
        searches: one of `parts`, or all.
        """
        k = min(k, self.passages)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for number, query in enumerate(queries):
            found = self._of(query, None if ranges is None else ranges[number])
            if found is None:
                continue
            # Passages that tie with the k-th are sorted, too, so that among equal scores the lower rows come first.
            best = np.flatnonzero((found >= np.partition(found, -k)[-k]) & (found > 0))
            best = best[np.lexsort((best, -found[best]))][:k]
            scores[number, : len(best)], rows[number, : len(best)] = found[best], best
        return scores, rows

    def _of(self, query: str, within: np.ndarray | None = None) -> np.ndarray | None:
        if within is not None and (part := self.parts.get((int(within[0]), int(within[1])))) is not None:
            found = part._of(query)
            return None if found is None else np.pad(found, (within[0], self.passages - within[1]))
        known = [self.model.vocab_dict[term] for term in terms(query) if term in self.model.vocab_dict]
        if not known:
            return None
        return np.asarray(self.model.get_scores_from_ids(known), np.float32)
