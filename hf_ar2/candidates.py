"""Candidate pools: for each training query the passages its retriever ranks highest, without its positives.

A pool is built once per round from the retriever's search results, kept as memory-mapped arrays, and read by
the samplers of :mod:`hf_ar2.sampling`, which are handed on from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ar2.sampling import sample_negatives as sample_negatives
from hf_ar2.sampling import sample_positive_columns as sample_positive_columns
from hf_ar2.sampling import sample_random_passages as sample_random_passages

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
# Queries filtered at a time: bounds the temporary arrays, whatever the size of the training set.
_CHUNK = 16384


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
    folder: str | Path | None = None,
    round: int = 0,
    fingerprint: str = "",
) -> CandidatePool:
    """Filters the retriever's search results into a pool of candidates.

    Left out, and counted under the first cause that holds, in this order: ``positive`` (judged relevant to
    the query), ``duplicate_of_positive`` (has the text of one of its positives), ``contains_answer``. What is
    left keeps its order, and its first ``depth`` are kept. Search deeper than ``depth``, by the number of
    passages the filters may take.

    Args:
        retrieved_scores: float ``[Q, K']``, best first.
        retrieved_rows: int ``[Q, K']``, rows in the corpus; -1 pads.
        judgments: of the same queries in the same order; those with relevance 0 are ignored.
        depth: most candidates kept per query (AR2: 100); with 0 the pool holds positives alone.
        positive_scores: float ``[Q, P]``, the retriever's scores of :func:`padded_positives`; a positive need
            not be among what was retrieved. Needed by the SimANS sampler and the margin statistics.
        text_keys: int64 ``[N]``, :func:`passage_text_keys` of the corpus; turns the duplicate filter on.
        answer_hits: bool ``[Q, K']``, whether the retrieved passage contains an answer; turns that filter on.
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
        known["duplicate_of_positive"] = _text_groups(text_keys, rows, positives.passage_rows)
    kept_scores, kept_rows, dropped = _filtered(scores, rows, known, positives.offsets, answer_hits, depth)
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


def padded_positives(judgments: Judgments) -> np.ndarray:
    """The positives of each query side by side.

    Args:
        judgments: Q queries, each with at least one positive.

    Returns:
        int32 ``[Q, P]``, in the judgments' order; -1 pads.

    Example:
        >>> from hf_ar2.collections.judgments import Judgments
        >>> padded_positives(Judgments(query_rows=np.array([0, 1]), offsets=np.array([0, 1, 3]),
        ...     passage_rows=np.array([7, 2, 9]), relevance=np.array([1, 1, 1], dtype=np.int32))).tolist()
        [[7, -1], [2, 9]]
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

    Example:
        >>> keys = passage_text_keys(["A  cat\\nsat", "a cat sat", "a dog sat"])
        >>> bool(keys[0] == keys[1]), bool(keys[1] == keys[2])
        (True, False)
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

    Example:
        >>> pool = CandidatePool(
        ...     query_rows=np.array([0]), passage_rows=np.array([[5, -1]], dtype=np.int32),
        ...     scores=np.array([[0.75, -np.inf]], dtype=np.float32),
        ...     positive_rows=np.array([[8]], dtype=np.int32),
        ...     positive_scores=np.array([[0.5]], dtype=np.float32))
        >>> statistics = pool_statistics(pool)
        >>> statistics["top_margin"], statistics["outscored"], statistics["short_pools"]
        (-0.25, 1.0, 1.0)
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


def _filtered(
    scores: np.ndarray,
    rows: np.ndarray,
    known: dict[str, tuple[np.ndarray, np.ndarray]],
    offsets: np.ndarray,
    answer_hits: np.ndarray | None,
    depth: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Scores and rows that no filter takes, moved to the left and cut at ``depth``; counts of what was taken.

    ``known`` is cause -> (values ``[Q, K']``, values to drop, per query as in the CSR ``offsets``).
    """
    dropped: dict[str, int] = {}
    kept_rows = np.full((len(rows), depth), -1, dtype=np.int32)
    kept_scores = np.full((len(rows), depth), -np.inf, dtype=np.float32)
    for start in range(0, len(rows), _CHUNK):
        chunk = slice(start, min(start + _CHUNK, len(rows)))
        keep = rows[chunk] >= 0
        bounds = offsets[chunk.start : chunk.stop + 1]
        hits = {cause: _among(values[chunk], of, bounds) for cause, (values, of) in known.items()}
        if answer_hits is not None:
            hits["contains_answer"] = answer_hits[chunk]
        for cause, hit in hits.items():
            dropped[cause] = dropped.get(cause, 0) + int((keep & hit).sum())
            keep &= ~hit
        places = np.cumsum(keep, axis=1) - 1
        query, column = np.nonzero(keep & (places < depth))
        kept_rows[start + query, places[query, column]] = rows[chunk][query, column]
        kept_scores[start + query, places[query, column]] = scores[chunk][query, column]
    return kept_scores, kept_rows, dropped


def _among(values: np.ndarray, known: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether ``values[i, j]`` is one of ``known[offsets[i]:offsets[i + 1]]``; bool, the shape of values.

    Query and value become one integer, so that all queries are looked up in one sorted array.
    """
    known = known[offsets[0] : offsets[-1]]
    width = int(max(values.max(initial=0), known.max())) + 1
    pairs = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * width + known.astype(np.int64)
    pairs.sort()
    wanted = np.arange(len(values))[:, None] * width + values.astype(np.int64)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return (pairs[place] == wanted) & (values >= 0)


def _text_groups(
    text_keys: np.ndarray, rows: np.ndarray, positive_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the positives' texts; returns those of ``rows`` (-1: no positive's) and of the positives."""
    highest = int(max(rows.max(initial=-1), positive_rows.max(initial=-1)))
    if highest >= len(text_keys):
        raise ValueError(f"text_keys has {len(text_keys)} entries, but passage row {highest} occurs")
    keys, numbers = np.unique(text_keys[positive_rows], return_inverse=True)
    group_of_row = np.searchsorted(keys, text_keys).astype(np.int32)
    group_of_row[keys[np.minimum(group_of_row, len(keys) - 1)] != text_keys] = -1
    return np.where(rows >= 0, group_of_row[rows], -1), numbers


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
