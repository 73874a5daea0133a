"""Candidates from a retriever with scores from a ranker, computed in blocks that are cached on disk."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from hf_ar2.collections.tables import content_hash
from hf_ar2.encoding.processes import Processes
from hf_ar2.evaluation.own import deeper, without_own
from hf_ar2.files import writing
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.progress import progress_bar
from hf_ar2.search.system import SearchSystem

logger = logging.get_logger(__name__)

# Queries per block; an interrupted run repeats at most one block.
_BLOCK = 128


@dataclass(frozen=True)
class ScoredCandidates:
    """The first n passages of Q queries, with the ranker's scores: float32, -inf under the padding."""

    query_rows: np.ndarray  # int64 [Q]
    rows: np.ndarray  # int32 [Q, n], the retriever's best first, -1 padded; may include labelled positives
    scores: np.ndarray  # [Q, n]
    positive_rows: np.ndarray  # int32 [Q, P], labelled positives, retrieved or not; -1 padded
    positive_scores: np.ndarray  # [Q, P]

    def __len__(self) -> int:
        return len(self.query_rows)


def scores_fingerprint(system: SearchSystem, depth: int) -> str:
    """32 hex digits of all that scores depend on, except the queries: models, passages, lengths, index, depth."""
    assert system.ranker is not None
    retriever, ranker = system.retriever_inputs, system.ranker_inputs
    lengths = (retriever.max_query_length, system.settings.max_query_length, ranker.max_pair_length, depth)
    parts = [
        system.fingerprint,
        f"{system.index.factory} {system.index.search_parameters} {system.index.embeddings.dtype}",
        weights_fingerprint(system.ranker),
        ranker.passage_store.fingerprint,
        repr((lengths, system.retriever.prompts, system.encoders.precision)),
    ]
    return content_hash(*(part.encode() for part in parts))


def score_candidates(
    system: SearchSystem,
    query_rows: np.ndarray,
    positive_rows: np.ndarray,
    depth: int,
    folder: str | Path,
    description: str = "Retrieving and ranking",
) -> ScoredCandidates:
    """Retrieves and ranks block by block; blocks on disk are reused.

    The file name of a block is a hash of its models, passages, settings and query texts, so that an interrupted run
    resumes and other settings do not get old scores. With several processes every rank calls this with the same folder.

    Args:
        query_rows: int64 `[Q]`.
        positive_rows: int `[Q, P]`, labelled positives, scored even if they are not retrieved; -1 padded.
        depth: n, passages retrieved per query; at most the size of the corpus.
        folder: for the blocks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    depth = min(depth, len(system.collection.corpus))
    fingerprint = scores_fingerprint(system, depth)
    texts = system.collection.queries["text"]
    processes = system.encoders.processes
    blocks = []
    with progress_bar(
        total=len(query_rows), description=description, unit="queries", show=system.encoders.progress
    ) as bar:
        for start in range(0, len(query_rows), _BLOCK):
            queries, positives = query_rows[start : start + _BLOCK], positive_rows[start : start + _BLOCK]
            block_texts = "\0".join(texts[int(row)] for row in queries)
            name = content_hash(fingerprint.encode(), block_texts.encode(), positives.astype(np.int32))
            score = partial(_score_block, system, queries, positives, depth)
            blocks.append(cached_block(folder / f"{name}.npz", processes, score))
            bar.update(len(queries))
    width = depth + positive_rows.shape[1]
    rows = np.concatenate([np.zeros((0, width), np.int32), *(block["rows"] for block in blocks)])
    scores = np.concatenate([np.zeros((0, width), np.float32), *(block["scores"] for block in blocks)])
    return ScoredCandidates(
        query_rows=np.asarray(query_rows, np.int64),
        rows=rows[:, :depth],
        scores=scores[:, :depth],
        positive_rows=rows[:, depth:],
        positive_scores=scores[:, depth:],
    )


def cached_block(
    path: Path, processes: Processes, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays of a block of results, from its file, or computed and written by the first process.

    The file is written completely or not at all. It holds its name and, as every .npz file, a checksum of each array.
    """
    block = processes.of_first(_read_block(path) if processes.is_first else None)
    if block is None:
        block = compute()
        if processes.is_first:
            new = path.with_name(f".{path.stem}.partial.npz")
            with writing(path, sum(array.nbytes for array in block.values())):
                content: dict[str, Any] = {**block, "block": np.array(path.stem)}
                np.savez(new, **content)
            os.replace(new, path)
        processes.barrier()
    return block


def _read_block(path: Path) -> dict[str, np.ndarray] | None:
    """None if there is no such file, or, with a warning, a damaged one."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as stored:
            block = dict(stored)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        logger.warning(f"{path}: damaged ({error}). It is computed again now.")
        return None
    if str(block.pop("block", "")) != path.stem:
        logger.warning(f"{path}: the block does not match the file's name. It is computed again now.")
        return None
    return block


def _score_block(
    system: SearchSystem, query_rows: np.ndarray, positive_rows: np.ndarray, depth: int
) -> dict[str, np.ndarray]:
    """`rows`: retrieved passages and positives side by side, int32 `[B, depth + P]`; `scores`: theirs, float32."""
    assert system.ranker is not None
    encoders = replace(system.encoders, show_progress=False)
    queries = encoders.embed_queries(system.retriever, system.retriever_inputs, query_rows)
    own_rows = system.collection.own_rows[query_rows]
    wide = min(deeper(own_rows, depth), system.index.ntotal)
    searched = encoders.search(system.index, queries, wide, system.collection.searched_rows(query_rows))
    retrieved = without_own(*searched, own_rows, depth)[1]
    rows = np.concatenate([retrieved, positive_rows], axis=1).astype(np.int32)
    # A retrieved positive is scored once, so that both of its columns have the same score.
    same = (positive_rows[:, :, None] == retrieved[:, None, :]) & (positive_rows >= 0)[:, :, None]
    repeated = np.concatenate([np.zeros(retrieved.shape, bool), same.any(axis=2)], axis=1)
    scores = encoders.rank(system.ranker, system.ranker_inputs, query_rows, np.where(repeated, -1, rows))
    entries, columns = np.nonzero(same.any(axis=2))
    scores[entries, depth + columns] = scores[entries, same.argmax(axis=2)[entries, columns]]
    return {"rows": rows, "scores": scores}
