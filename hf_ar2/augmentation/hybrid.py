"""Builds training lists from a collection, a retriever and a ranker, and writes them to disk."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.augmentation.calibration import Calibration, fit_calibration
from hf_ar2.augmentation.confidence import ConfidenceMasks, log_shares, masks_by_margin, quantile_thresholds
from hf_ar2.augmentation.false_negatives import write_false_negatives
from hf_ar2.augmentation.labelled import LabelledCandidates, labelled_candidates
from hf_ar2.augmentation.lists import build_lists
from hf_ar2.augmentation.scored import score_candidates, scores_fingerprint
from hf_ar2.collections import Collection
from hf_ar2.collections.tables import arrow_column, content_hash, rows_of
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.augment import AugmentConfig
from hf_ar2.settings.search import Settings
from hf_ar2.training_lists.pool import passage_text_keys, shared_text_keys
from hf_ar2.training_lists.stored import TrainingLists, load_training_lists, read_queries, save_training_lists


def augment(
    collection: Collection,
    retriever: SentenceTransformer,
    ranker: CrossEncoder,
    folder: str | Path,
    args: AugmentConfig,
    *,
    names: dict[str, str] | None = None,
    work_folder: str | Path | None = None,
    index_folder: str | Path | None = None,
    index_dir: str | Path | None = None,
    batch_tokens: int | None = None,
) -> TrainingLists:
    """Retrieves, ranks and writes training lists with their manifest.

    Also writes `false_negatives.jsonl` (see `write_false_negatives`) and, if it calibrates, `calibration.json`. Scores
    are cached in blocks, so that an interrupted run resumes and a run with other thresholds takes seconds. With several
    processes every rank calls this.

    Args:
        collection: passages, queries and judgments.
        retriever, ranker: as returned by `load_retriever` and `load_ranker`.
        folder: for the lists; older ones are replaced.
        args: the settings.
        names: names of `retriever` and `ranker` for the manifest.
        work_folder: for tokens, index and scores; None: `work` in the folder.
        index_folder: an existing index of the collection; None: built in the work folder.
        index_dir: a folder of several indexes by fingerprint, instead of `index_folder`, see `Encodings`.
        batch_tokens: padded tokens of a batch; None: 2048 on a CPU, 65536 on a GPU.

    Returns:
        The lists, as all trainers read them.

    Raises:
        ValueError: a split has no positives, no list is left, or the ranker cannot be calibrated.

    Example:
        ```python
        from hf_ar2 import load_collection, load_ranker, load_retriever
        from hf_ar2.augmentation import AugmentConfig, augment

        lists = augment(
            load_collection("BeIR/scifact"),
            load_retriever("sentence-transformers/all-MiniLM-L6-v2"),
            load_ranker("cross-encoder/ms-marco-MiniLM-L6-v2"),
            "lists/scifact",
            AugmentConfig(thresholds="margin", depth=20),
        )
        ```
    """
    folder = Path(folder)
    work = Path(work_folder) if work_folder is not None else folder / "work"
    splits = [args.train_split] if args.calibrate is None else [args.train_split, args.calibrate]
    collection = collection.with_relevance_level(args.relevance_level, splits)
    unlabelled, queries_read = _unlabelled(collection, args)
    if unlabelled is not None:
        collection = collection.with_queries(unlabelled)
    settings = Settings().changed(asdict(args))
    system = SearchSystem(retriever, ranker, collection, settings, work, index_folder, index_dir=index_dir)
    if batch_tokens is not None:
        system.encoders = replace(system.encoders, budget=batch_tokens)
    text_keys = shared_text_keys(args.lazy_passage_texts(collection), system.encoders.processes)
    cache = work / "scores"
    found = {}
    if set(args.list_kinds) & {"undenoised", "denoised"}:
        found["labelled"] = labelled_candidates(system, args.train_split, args.depth, cache, text_keys)
    if unlabelled is not None:
        rows = rows_of(arrow_column(unlabelled, "id"), arrow_column(collection.queries, "id"))
        no_positives = np.zeros((len(rows), 0), dtype=np.int32)
        scored = score_candidates(system, rows, no_positives, args.depth, cache, "Unlabelled queries")
        no_labels = np.zeros(scored.rows.shape, dtype=bool)
        found["unlabelled"] = LabelledCandidates(scored, no_labels, no_labels, no_labels)
    calibration = _calibration(system, args, cache, text_keys)
    masks, thresholds = _confidence_masks(args, found, calibration)
    tables, counts = [], {}
    for kind in args.list_kinds:
        of = "unlabelled" if kind == "pseudo" else "labelled"
        table, counts[kind] = build_lists(kind, collection, found[of], masks.get(of), text_keys, args)
        tables.append(table)
    lists = datasets.concatenate_datasets(tables)
    if len(lists) == 0:
        raise ValueError(f"no list is left: {json.dumps(counts)}")
    manifest = _manifest(system, args, names or {}, thresholds, calibration, counts, queries_read)
    if system.encoders.processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("false_negatives.jsonl", "calibration.json"):
            (folder / old).unlink(missing_ok=True)
        if "labelled" in found:
            path = folder / "false_negatives.jsonl"
            manifest["false_negatives"] = write_false_negatives(path, collection, found["labelled"])
        if args.calibrate:
            calibration.save(folder / "calibration.json")
        new_queries = None
        if unlabelled is not None:
            listed = rows_of(arrow_column(unlabelled, "id"), arrow_column(lists, "query_id")) >= 0
            new_queries = unlabelled.select(np.flatnonzero(listed))
        save_training_lists(folder, lists, manifest, new_queries)
    system.encoders.processes.share(folder, "*")
    return load_training_lists(folder)


def _calibration(
    system: SearchSystem, args: AugmentConfig, cache: Path, text_keys: np.ndarray
) -> Calibration:
    """A calibration fitted on the passages retrieved for the split `calibrate`, or the identity."""
    if args.calibrate is None:
        return Calibration()
    collection = system.collection
    if args.train_split in collection.qrels:
        held_out, trained = (collection.judgments(s).query_rows for s in (args.calibrate, args.train_split))
        shared = np.intersect1d(held_out, trained)
        if len(shared):
            raise ValueError(
                f"calibrate={args.calibrate!r}: {len(shared)} of its queries are also in split {args.train_split!r}, "
                f"such as {collection.queries[int(shared[0])]['id']!r}; expected held-out queries"
            )
    candidates = labelled_candidates(system, args.calibrate, args.depth, cache, text_keys)
    pairs = candidates.not_positive | candidates.positive
    scores, relevant = candidates.scored.scores[pairs], candidates.positive[pairs]
    scored_by = scores_fingerprint(system, args.depth).encode()
    fingerprint = content_hash(scored_by, candidates.scored.rows, relevant)
    low, high = args.lines
    return fit_calibration(
        scores, relevant, irrelevant_below=low, relevant_above=high, fingerprint=fingerprint
    )


def _confidence_masks(
    args: AugmentConfig, found: dict[str, LabelledCandidates], calibration: Calibration
) -> tuple[dict[str, ConfidenceMasks], dict[str, float]]:
    """The masks for each set of queries, and the thresholds for the manifest."""
    if args.list_kinds == ("undenoised",):
        return {}, {}
    low, high = args.lines
    thresholds = {"irrelevant": low, "relevant": high}
    if args.thresholds == "quantile":
        scored = [(candidates.scored.scores, candidates.unlabelled) for candidates in found.values()]
        low, high = quantile_thresholds(scored, low, high)
        thresholds |= {"irrelevant_log_share": low, "relevant_log_share": high}
    masks: dict[str, ConfidenceMasks] = {}
    for name, candidates in found.items():
        scores = candidates.scored.scores
        if args.thresholds == "margin":
            irrelevant, relevant = masks_by_margin(scores, candidates.scored.positive_scores, low, high)
        else:
            is_quantile = args.thresholds == "quantile"
            values = log_shares(scores) if is_quantile else calibration.probabilities(scores)
            irrelevant, relevant = values < low, values > high
        # A label below the relevance level overrides the ranker.
        labelled = candidates.judged_irrelevant
        masks[name] = irrelevant | labelled, relevant & ~labelled
    return masks, thresholds


def _unlabelled(
    collection: Collection, args: AugmentConfig
) -> tuple[datasets.Dataset | None, dict[str, int]]:
    """The unlabelled queries of the file, and counts of the dropped ones by cause.

    A query with the text of a judged query is dropped: it has labels in the training split, or is an evaluation
    query in another split.
    """
    if args.unlabelled is None:
        return None, {}
    read = read_queries(args.unlabelled)
    texts = collection.queries["text"]
    judged = [collection.judgments(split).query_rows for split in collection.splits]
    judged += [np.asarray(rows) for rows in collection.answer_splits.values()]
    known = set(passage_text_keys(texts[int(row)] for rows in judged for row in rows).tolist())
    counts = {"read": len(read), "text of a judged query": 0, "text read before": 0}
    kept, seen = [], set()
    for row, key in enumerate(passage_text_keys(read["text"]).tolist()):
        if key in known or key in seen:
            counts["text of a judged query" if key in known else "text read before"] += 1
        else:
            seen.add(key)
            kept.append(row)
    if not kept:
        raise ValueError(f"{args.unlabelled}: found no unlabelled query: {json.dumps(counts)}")
    return read.select(kept), counts


def _manifest(
    system: SearchSystem,
    args: AugmentConfig,
    names: dict[str, str],
    thresholds: dict[str, float],
    calibration: Calibration,
    counts: dict[str, Any],
    queries_read: dict[str, int],
) -> dict[str, Any]:
    assert system.ranker is not None
    collection = system.collection
    models = {
        role: {"name": names.get(role), "weights": weights_fingerprint(model)}
        for role, model in {"retriever": system.retriever, "ranker": system.ranker}.items()
    }
    return {
        "written_by": f"hf-ar2 {version('hf-ar2')}",
        "collection": {
            "name": collection.name,
            "corpus_fingerprint": collection.corpus_fingerprint,
            "queries_fingerprint": collection.queries_fingerprint,
        },
        "models": models,
        "settings": asdict(args) | {"bf16": system.encoders.bf16},
        "index_fingerprint": system.fingerprint,
        "scores_fingerprint": scores_fingerprint(system, min(args.depth, len(collection.corpus))),
        "thresholds": {"kind": args.thresholds, **thresholds} if thresholds else None,
        "calibration": asdict(calibration) if args.calibrate else None,
        "unlabelled_queries": queries_read or None,
        "lists": counts,
    }
