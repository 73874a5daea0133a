"""Candidate pools: for each training query the passages its retriever ranks highest, without its positives.

A pool is built once per round from the retriever's search results, kept as memory-mapped arrays, and read by
the samplers of :mod:`hf_ar2.training_lists.draws`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ar2.training_lists.filters import drop_known, text_groups

if TYPE_CHECKING:
    from hf_ar2.collections.judgments import Judgments

_ARRAYS = {
    "query_rows": np.dtype(np.int64),
    "passage_rows": np.dtype(np.int32),
    "scores": np.dtype(np.float32),
    "positive_rows": np.dtype(np.int32),
    "positive_scores": np.dtype(np.float32),
}
_FORMAT = 1


@dataclass(eq=False)
class CandidatePool:
    """Candidates of Q training queries, at most K each, best first.

    Entry i of every array belongs to the i-th training query; samplers take such places, not query rows.

    Attributes:
        query_rows: int64 ``[Q]``, rows in the collection's queries.
        passage_rows: int32 ``[Q, K]``, rows in the corpus; -1 pads short pools on the right.
        scores: float32 ``[Q, K]``, the retriever's scores (not divided by a temperature); -inf under padding.
        positive_rows: int32 ``[Q, P]``, the query's positives; -1 pads.
        positive_scores: float32 ``[Q, P]``, their scores; -inf under padding, nan where they were not given.
        dropped: cause -> number of retrieved passages left out.
        round: number of the round whose retriever searched.
        fingerprint: of what the pool was made from.

    Example:
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
        """K, the most candidates a query has room for."""
        return int(self.passage_rows.shape[1])

    def save(self, folder: str | Path) -> None:
        """Writes ``folder`` (one .npy file per array and meta.json), replacing a pool that is there.

        Everything goes to a temporary folder first, so ``folder`` is never half written.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name in _ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name), allow_pickle=False)
            meta = {
                "format": _FORMAT,
                "fingerprint": self.fingerprint,
                "round": self.round,
                "dropped": self.dropped,
                "shapes": {name: list(getattr(self, name).shape) for name in _ARRAYS},
            }
            (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
            temporary.chmod(0o755)
            # A folder cannot be renamed over one that holds files: the old one steps aside first.
            aside = temporary.with_name(temporary.name + ".old")
            if folder.exists():
                os.replace(folder, aside)
            os.replace(temporary, folder)
            shutil.rmtree(aside, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str | None = None) -> CandidatePool:
        """Opens a saved pool; its arrays are read-only memory maps, shared by all processes that open it.

        Args:
            folder: where :meth:`save` wrote it.
            fingerprint: what the pool has to be made from; None takes any.

        Raises:
            FileNotFoundError: there is no complete pool in ``folder``.
            ValueError: another fingerprint or format, or an array that does not fit meta.json.
        """
        folder = Path(folder)
        path = folder / "meta.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file, so {folder} holds no complete candidate pool; build it"
            )
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if meta.get("format") != _FORMAT:
            raise ValueError(
                f"{path}: field format is {meta.get('format')!r}, expected {_FORMAT}; build the pool again"
            )
        if fingerprint is not None and meta["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path}: the pool was made from {meta['fingerprint']}, expected {fingerprint}: its "
                "retriever, data or settings are others; delete the folder and build the pool again"
            )
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
    relative_margin: float | None = None,
    folder: str | Path | None = None,
    round: int = 0,
    fingerprint: str = "",
) -> CandidatePool:
    """Filters the retriever's search results into a pool of candidates.

    Left out, and counted under the first cause that holds, in this order: ``positive`` (judged relevant to
    the query), ``duplicate_of_positive`` (has the text of one of its positives), ``contains_answer``,
    ``within_margin`` (scores too close to the positives, see ``relative_margin``). What is left keeps its
    order, and its first ``depth`` are kept. Search deeper than ``depth``, by the number of passages the filters
    may take.

    Args:
        retrieved_scores: float ``[Q, K']``, best first.
        retrieved_rows: int ``[Q, K']``, rows in the corpus; -1 pads.
        judgments: of the same queries in the same order; those with relevance 0 are ignored.
        depth: most candidates kept per query (AR2: 100); with 0 the pool holds positives alone.
        positive_scores: float ``[Q, P]``, the retriever's scores of :func:`padded_positives`; a positive need
            not be among what was retrieved. Needed by the SimANS sampler and the margin statistics.
        text_keys: int64 ``[N]``, :func:`passage_text_keys` of the corpus; turns the duplicate filter on.
        answer_hits: bool ``[Q, K']``, whether the retrieved passage contains an answer; turns that filter on.
        relative_margin: drops what scores above (1 - margin) times the mean score of the query's positives: it may be
            relevant and unlabelled (NV-Retriever, arXiv 2407.15831). Needs ``positive_scores``.
        folder: where to write the pool; without one it stays in memory.
        round, fingerprint: kept with the pool.

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
    suspect = {} if answer_hits is None else {"contains_answer": answer_hits}
    if relative_margin is not None:
        suspect["within_margin"] = _within_margin(scores, positive_rows, positive_scores, relative_margin)
    kept_scores, kept_rows, dropped = drop_known(scores, rows, known, positives.offsets, suspect, depth)
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
    """One pool with the entries of all, in their order; candidates and positives are padded to the widest.

    A query may have several entries. Scores are kept as they are: where the pools' scores come from different
    models they are not comparable between entries, which no sampler asks of them.

    Args:
        pools: at least one; over one collection.

    Returns:
        The pool, in memory; ``dropped`` is summed, ``round`` the highest, the fingerprint that of all in order.

    Raises:
        ValueError: no pool.
    """
    if not pools:
        raise ValueError("concatenate_pools: found no pool; expected at least one")
    dropped: dict[str, int] = {}
    for pool in pools:
        for cause, count in pool.dropped.items():
            dropped[cause] = dropped.get(cause, 0) + count
    return CandidatePool(
        query_rows=np.concatenate([np.asarray(pool.query_rows) for pool in pools]),
        passage_rows=_side_by_side([pool.passage_rows for pool in pools], np.int32(-1)),
        scores=_side_by_side([pool.scores for pool in pools], np.float32(-np.inf)),
        positive_rows=_side_by_side([pool.positive_rows for pool in pools], np.int32(-1)),
        positive_scores=_side_by_side([pool.positive_scores for pool in pools], np.float32(-np.inf)),
        dropped=dropped,
        round=max(pool.round for pool in pools),
        fingerprint=hashlib.blake2b(
            "\0".join(pool.fingerprint for pool in pools).encode(), digest_size=16
        ).hexdigest(),
    )


def padded_positives(judgments: Judgments) -> np.ndarray:
    """The positives of each query side by side.

    Args:
        judgments: Q queries, each with at least one positive.

    Returns:
        int32 ``[Q, P]``, in the judgments' order; -1 pads.
    """
    positives = judgments.positives()
    counts = np.diff(positives.offsets)
    padded = np.full((len(counts), int(counts.max(initial=0))), -1, dtype=np.int32)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = positives.passage_rows
    return padded


def passage_text_keys(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit content hash per text, equal for texts that differ in case and white space alone.

    Args:
        texts: N passages, for example ``collection.passage_texts()``.

    Returns:
        int64 ``[N]``: BLAKE2b of the case-folded text with runs of white space as one blank.
    """
    digests = b"".join(
        hashlib.blake2b(
            " ".join(text.casefold().split()).encode("utf-8", "surrogatepass"), digest_size=8
        ).digest()
        for text in texts
    )
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def pool_statistics(pool: CandidatePool) -> dict[str, float]:
    """How large and how hard a pool is.

    Returns:
        - ``queries``: their number; ``candidates``: mean number of candidates per query.
        - ``short_pools``, ``empty_pools``: queries with fewer candidates than the depth, and with none.
        - ``top_score``: mean score of the first candidate.

        and, where the pool has the positives' scores (of several positives the best one counts):

        - ``positive_score``: mean score of the positive.
        - ``top_margin``: mean of positive minus first candidate, in units of score; less is harder.
        - ``outscored``: share of queries whose first candidate scores above the positive.

        Means over scores and the share leave out queries with an empty pool.
    """
    lengths = (np.asarray(pool.passage_rows) >= 0).sum(axis=1)
    filled = lengths > 0
    statistics = {
        "queries": float(len(pool)),
        "candidates": float(lengths.mean()),
        "short_pools": float((lengths < pool.depth).sum()),
        "empty_pools": float((~filled).sum()),
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


def _side_by_side(arrays: Sequence[np.ndarray], padding: np.generic) -> np.ndarray:
    """Arrays ``[Q_i, K_i]`` under each other, padded on the right to the widest."""
    width = max(array.shape[1] for array in arrays)
    stacked = np.full((sum(map(len, arrays)), width), padding, dtype=padding.dtype)
    start = 0
    for array in arrays:
        stacked[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return stacked


def _within_margin(
    scores: np.ndarray, positive_rows: np.ndarray, positive_scores: np.ndarray | None, margin: float
) -> np.ndarray:
    if positive_scores is None:
        raise ValueError(
            "relative_margin compares with the positives' scores; expected positive_scores, found None"
        )
    known = positive_rows >= 0
    mean = np.where(known, positive_scores, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    # |mean| keeps the limit below a positive whose score is negative.
    return np.asarray(scores > (mean - margin * np.abs(mean))[:, None])


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
