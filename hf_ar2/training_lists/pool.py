"""Candidate pools: for each training query the passages that the retriever ranks highest, without its positives.

A pool is built once per round from the retriever's search results and stored as memory-mapped arrays.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ar2.files import check_files, check_size, read_json, write_note, writing
from hf_ar2.folders import complete_folder
from hf_ar2.training_lists.filters import drop_known, scored_too_high, text_groups

if TYPE_CHECKING:
    from hf_ar2.collections.judgments import Judgments
    from hf_ar2.encoding.processes import Processes

_ARRAYS = {
    "query_rows": np.dtype(np.int64),
    "passage_rows": np.dtype(np.int32),
    "scores": np.dtype(np.float32),
    "positive_rows": np.dtype(np.int32),
    "positive_scores": np.dtype(np.float32),
}
_FORMAT = 1
_TEXTS_PER_BLOCK = 65_536


@dataclass(eq=False)
class CandidatePool:
    """Candidates of Q training queries, at most K each, best first; samplers address them by entry, 0 to Q - 1.

    Attributes:
        query_rows: int64 ``[Q]``, rows in the collection's queries.
        passage_rows: int32 ``[Q, K]``, rows in the corpus; -1 pads.
        scores: float32 ``[Q, K]``, the retriever's scores (not divided by a temperature); -inf under padding.
        positive_rows: int32 ``[Q, P]``, the query's positives; -1 pads.
        positive_scores: float32 ``[Q, P]``, their scores; -inf under padding, nan if they were not given.
        dropped: cause -> number of retrieved passages that were dropped.
        round: number of the round whose retriever searched.
        fingerprint: of the inputs.

    Example:
        >>> import tempfile
        >>> pool = CandidatePool(
        ...     query_rows=np.array([4, 9]),
        ...     passage_rows=np.array([[7, 2], [5, -1]], np.int32),
        ...     scores=np.array([[0.8, 0.5], [0.4, -np.inf]], np.float32),
        ...     positive_rows=np.array([[1], [3]], np.int32),
        ...     positive_scores=np.array([[0.9], [0.3]], np.float32),
        ... )
        >>> len(pool), pool.depth
        (2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pool.save(Path(folder, "pool"))
        ...     CandidatePool.open(Path(folder, "pool")).passage_rows.tolist()
        [[7, 2], [5, -1]]
    """

    query_rows: np.ndarray
    passage_rows: np.ndarray
    scores: np.ndarray
    positive_rows: np.ndarray
    positive_scores: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)
    round: int = 0
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.query_rows)

    @property
    def depth(self) -> int:
        """K, the largest number of candidates of a query."""
        return int(self.passage_rows.shape[1])

    def save(self, folder: str | Path) -> None:
        """Write ``folder`` (one .npy file per array and meta.json), replacing an existing pool."""
        size = sum(getattr(self, name).nbytes for name in _ARRAYS)
        with writing(Path(folder), size), complete_folder(Path(folder), replace=True) as temporary:
            files = {name: temporary / f"{name}.npy" for name in _ARRAYS}
            for name, path in files.items():
                np.save(path, getattr(self, name), allow_pickle=False)
                check_size(path, getattr(self, name).nbytes)
            meta = {
                "format": _FORMAT,
                "fingerprint": self.fingerprint,
                "round": self.round,
                "dropped": self.dropped,
                "shapes": {name: list(getattr(self, name).shape) for name in _ARRAYS},
            }
            write_note(temporary / "meta.json", meta, files.values())

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str | None = None) -> CandidatePool:
        """Open a saved pool; its arrays are read-only memory maps, shared by all processes that open it.

        Args:
            folder: written by :meth:`save`.
            fingerprint: the expected one; None accepts any.

        Raises:
            FileNotFoundError: there is no pool in ``folder``.
            ValueError: another fingerprint or format, or a damaged file.
        """
        folder = Path(folder)
        path = folder / "meta.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, so {folder} is not a candidate pool; build it")
        meta: dict[str, Any] = read_json(path)
        if meta.get("format") != _FORMAT:
            raise ValueError(
                f"{path}: field format is {meta.get('format')!r}, expected {_FORMAT}; build the pool again"
            )
        if fingerprint is not None and meta["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path}: the pool has the fingerprint {meta['fingerprint']}, expected {fingerprint}: it was made with "
                "another retriever, data or settings; delete the folder and build the pool again"
            )
        check_files(folder, meta.get("checksums", {}), f"Delete {folder} and build the pool again.")
        arrays = {}
        for name, dtype in _ARRAYS.items():
            shape = tuple(meta["shapes"][name])
            # An empty file cannot be mapped.
            array = np.load(folder / f"{name}.npy", mmap_mode=None if 0 in shape else "r", allow_pickle=False)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{folder / name}.npy: {array.dtype} {array.shape}, expected {dtype} {shape}; "
                    "build the pool again"
                )
            arrays[name] = array
        return cls(**arrays, dropped=meta["dropped"], round=meta["round"], fingerprint=meta["fingerprint"])


def build_pool(
    retrieved_scores: np.ndarray,
    retrieved_rows: np.ndarray,
    judgments: Judgments,
    *,
    depth: int,
    positive_scores: np.ndarray | None = None,
    text_keys: np.ndarray | None = None,
    answer_hits: np.ndarray | None = None,
    own_rows: np.ndarray | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    range_min: int = 0,
    folder: str | Path | None = None,
    round: int = 0,
    fingerprint: str = "",
) -> CandidatePool:
    """Filter the retriever's search results into a pool of candidates.

    Passages are dropped, and counted under the first of these causes that applies: ``positive`` (judged relevant to the
    query), ``duplicate_of_positive`` (has the text of one of its positives), ``query_itself``, ``contains_answer``,
    ``absolute_margin``, ``relative_margin``, ``max_score``, ``range_min``. The first ``depth`` of the others are kept,
    so search deeper than ``depth`` by the number of passages that the filters may drop.

    The last four have the names of sentence-transformers' ``mine_hard_negatives`` and drop what may be relevant but
    unlabelled (NV-Retriever, arXiv 2407.15831). The positive's score is the mean over the query's
    positives.

    Args:
        retrieved_scores: float ``[Q, K']``, best first.
        retrieved_rows: int ``[Q, K']``, rows in the corpus; -1 pads.
        judgments: of the same queries in the same order; those with relevance 0 are ignored.
        depth: most candidates per query (AR2: 100); with 0 the pool holds only positives.
        positive_scores: float ``[Q, P]``, the retriever's scores of :func:`padded_positives`, retrieved or not. The
            SimANS sampler, the margins and the margin statistics need them.
        text_keys: int64 ``[N]``, :func:`passage_text_keys` of the corpus; enables the duplicate filter.
        answer_hits: bool ``[Q, K']``, whether the retrieved passage contains an answer; enables that filter.
        own_rows: int64 ``[Q]``, the passage that is the query itself, -1 for none, see ``Collection.own_rows``.
        absolute_margin: drops passages that score above the positive's score minus this, in units of score
            (TopK-MarginPos). Needs ``positive_scores``.
        relative_margin: drops passages that score above (1 - margin) times the positive's score: above s - margin * |s|
            (TopK-PercPos). Needs ``positive_scores``.
        max_score: drops passages that score above it (TopK-Abs).
        range_min: drops this many of the passages that are left, from the top (TopK shifted by N).
        folder: where to save the pool; None keeps it in memory.
        round, fingerprint: stored with the pool.

    Returns:
        The pool; with a folder, as opened from there.

    Raises:
        ValueError: shapes that do not fit each other, a query without a positive, rows outside the corpus.

    Example:
        >>> from hf_ar2.collections.judgments import Judgments
        >>> judgments = Judgments(query_rows=np.array([0]), offsets=np.array([0, 1]),
        ...     passage_rows=np.array([7]), relevance=np.array([1], dtype=np.int32))
        >>> pool = build_pool(np.array([[0.9, 0.8, 0.3]]), np.array([[4, 7, 2]]), judgments, depth=3)
        >>> pool.passage_rows.tolist(), pool.dropped
        ([[4, 2, -1]], {'positive': 1})
    """
    scores, rows = np.asarray(retrieved_scores), np.asarray(retrieved_rows)
    positives = judgments.positives()
    _check(scores, rows, positives, depth, answer_hits)
    positive_rows = padded_positives(positives)
    known = {"positive": (rows, positives.passage_rows)}
    if text_keys is not None:
        known["duplicate_of_positive"] = text_groups(text_keys, rows, positives.passage_rows)
    suspect = {}
    if own_rows is not None and (own_rows >= 0).any():
        suspect["query_itself"] = rows == own_rows[:, None]
    if answer_hits is not None:
        suspect["contains_answer"] = answer_hits
    suspect |= scored_too_high(
        scores,
        positive_rows,
        positive_scores,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        max_score=max_score,
    )
    offsets = positives.offsets
    kept_scores, kept_rows, dropped = drop_known(scores, rows, known, offsets, suspect, depth, range_min)
    pool = CandidatePool(
        query_rows=np.asarray(positives.query_rows, dtype=np.int64),
        passage_rows=kept_rows,
        scores=kept_scores,
        positive_rows=positive_rows,
        positive_scores=_padded_scores(positive_scores, positive_rows),
        dropped=dropped,
        round=round,
        fingerprint=fingerprint,
    )
    if folder is None:
        return pool
    pool.save(folder)
    return CandidatePool.open(folder, fingerprint)


def concatenate_pools(pools: Sequence[CandidatePool]) -> CandidatePool:
    """One pool, in memory, with the entries of all (at least one); candidates and positives are padded to the widest.

    A query may have several entries. Scores of different models are not comparable between entries, which no sampler
    needs. ``dropped`` is the sum, ``round`` the highest, the fingerprint a hash of all.
    """
    if not pools:
        raise ValueError("concatenate_pools: found no pool; expected at least one")
    dropped: Counter[str] = Counter()
    for pool in pools:
        dropped.update(pool.dropped)
    fingerprints = "\0".join(pool.fingerprint for pool in pools)
    return CandidatePool(
        query_rows=np.concatenate([np.asarray(pool.query_rows) for pool in pools]),
        passage_rows=_concatenate_padded([pool.passage_rows for pool in pools], np.int32(-1)),
        scores=_concatenate_padded([pool.scores for pool in pools], np.float32(-np.inf)),
        positive_rows=_concatenate_padded([pool.positive_rows for pool in pools], np.int32(-1)),
        positive_scores=_concatenate_padded([pool.positive_scores for pool in pools], np.float32(-np.inf)),
        dropped=dict(dropped),
        round=max(pool.round for pool in pools),
        fingerprint=hashlib.blake2b(fingerprints.encode(), digest_size=16).hexdigest(),
    )


def padded_positives(judgments: Judgments) -> np.ndarray:
    """The positives of Q queries, at least one each, as one array: int32 ``[Q, P]``, in their order; -1 pads."""
    positives = judgments.positives()
    counts = np.diff(positives.offsets)
    padded = np.full((len(counts), int(counts.max(initial=0))), -1, dtype=np.int32)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = positives.passage_rows
    return padded


def passage_text_keys(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit hash of each text, int64 ``[N]``, equal for texts that differ only in case and white space."""
    plain = (" ".join(text.casefold().split()).encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in plain)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def shared_text_keys(texts: Sequence[str], ranks: Processes) -> np.ndarray:
    """As `passage_text_keys`, on every rank; each hashes its share of the texts."""
    keys, own = np.zeros(len(texts), np.int64), ranks.part_of(len(texts))
    for start in range(own.start, own.stop, _TEXTS_PER_BLOCK):
        block = slice(start, min(start + _TEXTS_PER_BLOCK, own.stop))
        keys[block] = passage_text_keys(texts[block])
    return ranks.combine(keys)


def pool_statistics(pool: CandidatePool) -> dict[str, float]:
    """The size and the difficulty of a pool; means over scores leave out queries with an empty pool.

    Returns:
        - ``queries``: their number; ``candidates``: mean number of candidates per query.
        - ``short_pools``, ``empty_pools``: queries with fewer candidates than the depth, and with none.
        - ``dropped/CAUSE``: retrieved passages dropped for each cause, see :func:`build_pool`.
        - ``top_score``: mean score of the first candidate.

        and, if the pool has the positives' scores (of several positives the best one counts):

        - ``positive_score``: mean score of the positive.
        - ``top_margin``: mean of positive minus first candidate, in units of score; less is harder.
        - ``outscored``: share of queries whose first candidate scores above the positive.
    """
    lengths = (np.asarray(pool.passage_rows) >= 0).sum(axis=1)
    filled = lengths > 0
    statistics = {
        "queries": float(len(pool)),
        "candidates": float(lengths.mean()),
        "short_pools": float((lengths < pool.depth).sum()),
        "empty_pools": float((~filled).sum()),
        **{f"dropped/{cause}": float(count) for cause, count in pool.dropped.items()},
    }
    if not filled.any():
        return statistics
    top = np.asarray(pool.scores[:, 0], dtype=np.float64)[filled]
    statistics["top_score"] = float(top.mean())
    positive = np.asarray(pool.positive_scores, dtype=np.float64).max(axis=1)[filled]
    if not np.isnan(positive).any():
        statistics["positive_score"] = float(positive.mean())
        statistics["top_margin"] = float((positive - top).mean())
        statistics["outscored"] = float((top > positive).mean())
    return statistics


def _concatenate_padded(arrays: Sequence[np.ndarray], padding: np.generic) -> np.ndarray:
    """Arrays ``[Q_i, K_i]`` concatenated along the first axis, padded on the right to the widest."""
    width = max(array.shape[1] for array in arrays)
    stacked = np.full((sum(map(len, arrays)), width), padding, dtype=padding.dtype)
    start = 0
    for array in arrays:
        stacked[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return stacked


def _padded_scores(positive_scores: np.ndarray | None, positive_rows: np.ndarray) -> np.ndarray:
    if positive_scores is None:
        return np.where(positive_rows >= 0, np.float32(np.nan), np.float32(-np.inf))
    scores = np.asarray(positive_scores, dtype=np.float32)
    if scores.shape != positive_rows.shape:
        raise ValueError(
            f"positive_scores has shape {scores.shape}, the padded positives {positive_rows.shape}; "
            "score padded_positives(judgments)"
        )
    unscored = np.argwhere(~np.isfinite(scores) & (positive_rows >= 0))
    if len(unscored):
        query, column = unscored[0]
        raise ValueError(f"positive_scores[{query}, {column}] is {scores[query, column]}; expected a number")
    return np.where(positive_rows >= 0, scores, np.float32(-np.inf))


def _check(
    scores: np.ndarray, rows: np.ndarray, positives: Judgments, depth: int, answer_hits: np.ndarray | None
) -> None:
    if rows.ndim != 2 or scores.shape != rows.shape:
        raise ValueError(f"retrieved_rows is {rows.shape}, retrieved_scores {scores.shape}; expected [Q, K']")
    if len(positives) != len(rows):
        raise ValueError(
            f"{len(positives)} queries have a positive, but {len(rows)} queries were searched; "
            "search the queries of judgments.positives()"
        )
    if not len(rows) or depth < 0:
        raise ValueError(f"{len(rows)} queries and depth {depth}; expected a query, and a depth of 0 or more")
    if answer_hits is not None and (answer_hits.shape != rows.shape or answer_hits.dtype != bool):
        raise ValueError(
            f"answer_hits is {answer_hits.dtype} {answer_hits.shape}; expected bool {rows.shape}"
        )
    if rows.max(initial=-1) > np.iinfo(np.int32).max:
        raise ValueError(f"passage row {rows.max()} does not fit int32; a pool holds rows below 2^31")
