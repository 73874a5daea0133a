"""Likely false negatives: unlabelled passages that a ranker scores above the labelled positives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_ar2.augmentation.confidence import log_shares
from hf_ar2.augmentation.labelled import LabelledCandidates
from hf_ar2.collections import Collection
from hf_ar2.collections.lines import write_lines


@dataclass(frozen=True)
class Suspect:
    """An unlabelled passage that may be relevant.

    Attributes:
        query_id, passage_id: the pair.
        score: the ranker's logit.
        share: its softmax probability among the query's retrieved passages, between 0 and 1.
        retriever_rank: from 1.
        positive_id, positive_score: the labelled passage of the query with the highest score.

    Example:
        >>> suspect = Suspect("q1", "d7", 4.5, 0.93, retriever_rank=2, positive_id="d3", positive_score=1.5)
        >>> suspect.score - suspect.positive_score
        3.0
    """

    query_id: str
    passage_id: str
    score: float
    share: float
    retriever_rank: int
    positive_id: str
    positive_score: float


def write_false_negatives(
    path: str | Path, collection: Collection, candidates: LabelledCandidates
) -> dict[str, int]:
    """Writes the suspects as JSON lines, the largest share first, and returns the numbers for the manifest.

    A suspect is retrieved, not labelled, not a duplicate of a positive, and scored above every labelled positive of its
    query. They are sorted by share and not by margin, because the largest margins mostly come from positives that the
    ranker misjudges, with many suspects each.
    """
    scored = candidates.scored
    best = scored.positive_scores.argmax(axis=1)
    positive_rows = np.take_along_axis(scored.positive_rows, best[:, None], axis=1)[:, 0]
    positive_scores = np.take_along_axis(scored.positive_scores, best[:, None], axis=1)
    entries, places = np.nonzero(candidates.unlabelled & (scored.scores > positive_scores))
    shares = np.exp(log_shares(scored.scores))[entries, places]
    order = np.argsort(-shares, kind="stable")
    query_ids, passage_ids = collection.queries["id"][:], collection.corpus["id"][:]
    suspects = (
        Suspect(
            query_id=query_ids[int(scored.query_rows[entry])],
            passage_id=passage_ids[int(scored.rows[entry, place])],
            score=float(scored.scores[entry, place]),
            share=float(share),
            retriever_rank=int(place) + 1,
            positive_id=passage_ids[int(positive_rows[entry])],
            positive_score=float(positive_scores[entry, 0]),
        )
        for entry, place, share in zip(entries[order], places[order], shares[order], strict=True)
    )
    write_lines(Path(path), (json.dumps(vars(suspect), ensure_ascii=False) for suspect in suspects))
    return {"passages": len(entries), "queries": len(np.unique(entries)), "of_queries": len(scored)}


def read_false_negatives(path: str | Path) -> list[Suspect]:
    """Reads what `write_false_negatives` wrote.

    Example:
        >>> import tempfile
        >>> suspect = Suspect("q1", "d7", 4.5, 0.93, retriever_rank=2, positive_id="d3", positive_score=1.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "false_negatives.jsonl").write_text(json.dumps(vars(suspect)))
        ...     read_false_negatives(Path(folder, "false_negatives.jsonl")) == [suspect]
        True
    """
    with open(path, encoding="utf-8") as stream:
        return [Suspect(**json.loads(line)) for line in stream]
