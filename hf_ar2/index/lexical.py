"""Lexical search (BM25) over the passages of a collection; it needs no training."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np
from transformers.utils import logging

from hf_ar2.files import DamagedFile, check_files, files_in, read_json, write_note, writing
from hf_ar2.folders import complete_folder

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
        model: a `bm25s.BM25` that has indexed the passages.
        passages: their number.
    """

    def __init__(self, model: bm25s.BM25, passages: int) -> None:
        self.model = model
        self.passages = passages

    @classmethod
    def build(cls, texts: Iterable[str], show_progress: bool = False) -> LexicalIndex:
        """Index the texts of N passages.

        Raises:
            ValueError: no text contains a word.
        """
        tokens = [terms(text) for text in texts]
        if not any(tokens):
            raise ValueError(f"{len(tokens)} passages without a single word; lexical search needs text")
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

    def scores(self, queries: Sequence[str], rows: np.ndarray | None = None) -> np.ndarray:
        """BM25 scores, float32: `[Q, N]` of all passages, or `[Q, K]` of those at `rows` `[Q, K]` (-1: 0)."""
        width = self.passages if rows is None else rows.shape[1]
        out = np.zeros((len(queries), width), np.float32)
        for number, query in enumerate(queries):
            found = self._of(query)
            if found is not None:
                out[number] = found if rows is None else np.where(rows[number] >= 0, found[rows[number]], 0)
        return out

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best passages of each query: scores float32 `[Q, k]` and rows int64 `[Q, k]`, best first, -1 padded.

        A passage that shares no term with the query is not found.
        """
        k = min(k, self.passages)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for number, query in enumerate(queries):
            found = self._of(query)
            if found is None:
                continue
            best = np.argpartition(-found, k - 1)[:k]
            best = best[np.lexsort((best, -found[best]))]
            best = best[found[best] > 0]
            scores[number, : len(best)], rows[number, : len(best)] = found[best], best
        return scores, rows

    def _of(self, query: str) -> np.ndarray | None:
        known = [self.model.vocab_dict[term] for term in terms(query) if term in self.model.vocab_dict]
        if not known:
            return None
        return np.asarray(self.model.get_scores_from_ids(known), np.float32)
