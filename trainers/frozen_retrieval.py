"""Retrieval for LTRe: one index for the whole run, and lists completed with the relevant passages it missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.frozen import FrozenIndex, check_fit
from hf_ar2.trainers.retrieval import Retrieval

if TYPE_CHECKING:
    from hf_ar2.trainers.ltre import LTReConfig


class FrozenRetrieval(Retrieval):
    """Retrieval from one index, built or opened once."""

    args: LTReConfig
    whole_index = True
    _frozen: FrozenIndex | None = None

    def refresh(self) -> Any:
        """The index; encoded and built, or opened and checked, on first use."""
        if self._frozen is None:
            args = self.args
            options: dict[str, Any] = {
                "vectors": args.vectors,
                "device": self.encoders.device,
                "search_parameters": args.search_parameters,
                "writable": args.train_centroids,
            }
            if args.index is None:
                built = super().refresh()
                assert isinstance(built, CorpusIndex)
                self._frozen = FrozenIndex.from_corpus_index(built, **options)
            else:
                ids = self.collection.corpus["id"][:]
                self._frozen = FrozenIndex.from_files(args.index, ids, args.index_ids, **options)
                assert self.retriever is not None and self.retriever_inputs is not None
                check_fit(self._frozen, args.index, self.encoders, self.retriever, self.retriever_inputs)
        return self._frozen

    def duplicates(self, rows: np.ndarray, known: np.ndarray, relevant: np.ndarray) -> np.ndarray:
        """Which of the passages `rows` `[B, L]` have the text of a relevant one without being judged relevant, bool
        `[B, L]`.
        """
        keys = self._duplicate_keys()
        if keys is None:
            return np.zeros_like(relevant)
        same = keys[rows][:, :, None] == keys[known][:, None, :]
        return (same & (known >= 0)[:, None, :]).any(axis=2) & ~relevant


def with_missed(
    found: np.ndarray, known: np.ndarray, only_if_none: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Retrieved lists, followed by the relevant passages that they lack.

    Args:
        found: int64 `[B, k]`, best first. known: int64 `[B, P]`, the relevant passages. Both are padded with -1.
        only_if_none: append them only to lists without a relevant passage.

    Returns:
        rows int64 `[B, k + P]`, padded with -1, and relevant bool `[B, k + P]`.
    """
    same = (found[:, :, None] == known[:, None, :]) & (known >= 0)[:, None, :]
    missed = np.where(same.any(axis=1), -1, known)
    if only_if_none:
        missed[same.any(axis=(1, 2))] = -1
    # Move them to the front, in their order, so that their ranks are as small as possible.
    missed = np.take_along_axis(missed, np.argsort(missed < 0, axis=1, kind="stable"), axis=1)
    rows = np.concatenate([found, missed], axis=1)
    return rows, np.concatenate([same.any(axis=2), missed >= 0], axis=1)
