"""Passages that must not be negatives: known positives, copies of their text, and passages that score too high."""

from __future__ import annotations

import numpy as np

# Queries filtered at a time, to bound the temporary arrays.
_CHUNK = 16384


def drop_known(
    scores: np.ndarray,
    rows: np.ndarray,
    known: dict[str, tuple[np.ndarray, np.ndarray]],
    offsets: np.ndarray,
    suspect: dict[str, np.ndarray],
    depth: int,
    range_min: int = 0,
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Scores and rows ``[Q, depth]`` that no filter drops, moved to the left, and the number dropped per cause.

    ``known`` is cause -> (values ``[Q, K']``, the values to drop, per query as in the CSR ``offsets``); ``suspect`` is
    cause -> passages to drop, bool ``[Q, K']``. The first ``range_min`` of the remaining ones are dropped as well.
    """
    dropped: dict[str, int] = {}
    kept_rows = np.full((len(rows), depth), -1, dtype=np.int32)
    kept_scores = np.full((len(rows), depth), -np.inf, dtype=np.float32)
    for start in range(0, len(rows), _CHUNK):
        chunk = slice(start, min(start + _CHUNK, len(rows)))
        keep = rows[chunk] >= 0
        bounds = offsets[chunk.start : chunk.stop + 1]
        hits = {cause: among(values[chunk], of, bounds) for cause, (values, of) in known.items()}
        hits |= {cause: hit[chunk] for cause, hit in suspect.items()}
        for cause, hit in hits.items():
            dropped[cause] = dropped.get(cause, 0) + int((keep & hit).sum())
            keep &= ~hit
        places = np.cumsum(keep, axis=1) - 1 - range_min
        if range_min:
            dropped["range_min"] = dropped.get("range_min", 0) + int((keep & (places < 0)).sum())
        query, column = np.nonzero(keep & (places >= 0) & (places < depth))
        kept_rows[start + query, places[query, column]] = rows[chunk][query, column]
        kept_scores[start + query, places[query, column]] = scores[chunk][query, column]
    return kept_scores, kept_rows, dropped


def scored_too_high(
    scores: np.ndarray,
    positive_rows: np.ndarray,
    positive_scores: np.ndarray | None,
    *,
    absolute_margin: float | None,
    relative_margin: float | None,
    max_score: float | None,
) -> dict[str, np.ndarray]:
    """The passages ``[Q, K']`` that may be unlabelled positives by each filter given, see `build_pool` for its
    arguments.
    """
    margins = {"absolute_margin": absolute_margin, "relative_margin": relative_margin}
    margins = {name: margin for name, margin in margins.items() if margin is not None}
    limits: dict[str, np.ndarray | float] = {}
    if margins:
        if positive_scores is None:
            raise ValueError(
                f"{next(iter(margins))} compares with the positives' scores; expected positive_scores, found None"
            )
        known = positive_rows >= 0
        mean = np.where(known, positive_scores, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        # |mean| keeps the limit below a positive whose score is negative.
        units = {"absolute_margin": 1.0, "relative_margin": np.abs(mean)}
        limits |= {name: (mean - margin * units[name])[:, None] for name, margin in margins.items()}
    if max_score is not None:
        limits["max_score"] = max_score
    return {name: np.asarray(scores > limit) for name, limit in limits.items()}


def among(values: np.ndarray, known: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether ``values[i, j]`` is one of ``known[offsets[i]:offsets[i + 1]]``; bool, the shape of values."""
    # Query and value become one integer, so that one sorted array serves all queries.
    known = known[offsets[0] : offsets[-1]]
    width = int(max(values.max(initial=0), known.max())) + 1
    pairs = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * width + known.astype(np.int64)
    pairs.sort()
    wanted = np.arange(len(values))[:, None] * width + values.astype(np.int64)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return (pairs[place] == wanted) & (values >= 0)


def text_groups(
    text_keys: np.ndarray, rows: np.ndarray, positive_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the positives' texts, of ``rows`` (-1: not the text of a positive) and of the positives."""
    highest = int(max(rows.max(initial=-1), positive_rows.max(initial=-1)))
    if highest >= len(text_keys):
        raise ValueError(f"text_keys has {len(text_keys)} entries, but passage row {highest} occurs")
    keys, numbers = np.unique(text_keys[positive_rows], return_inverse=True)
    group_of_row = np.searchsorted(keys, text_keys).astype(np.int32)
    group_of_row[keys[np.minimum(group_of_row, len(keys) - 1)] != text_keys] = -1
    return np.where(rows >= 0, group_of_row[rows], -1), numbers
