"""From a collection and two models to training lists on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.augmentation.calibration import Calibration, fit_calibration
from hf_ar2.augmentation.confidence import (
    Sure,
    quantile_lines,
    sure_by_margin,
    sure_by_probability,
    sure_by_share,
)
from hf_ar2.augmentation.false_negatives import write_false_negatives
from hf_ar2.augmentation.known import Known, labelled_candidates
from hf_ar2.augmentation.lists import build_lists
from hf_ar2.augmentation.scored import score_candidates, scores_fingerprint
from hf_ar2.collections import Collection
from hf_ar2.collections.tables import arrow_column, content_hash, rows_of
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.augment import AugmentConfig
from hf_ar2.settings.search import Settings
from hf_ar2.training_lists.pool import passage_text_keys
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
) -> TrainingLists:
    """Retrieves, ranks and writes training lists with their manifest.

    Beside the lists it writes `false_negatives.jsonl` (see `write_false_negatives`) and, where it calibrates,
    `calibration.json`. Scores are kept in blocks: a killed run goes on where it was, and other thresholds take seconds.
    Under several processes every rank calls this.

    Args:
        collection: passages, queries and judgments.
        retriever, ranker: models as `load_retriever` and `load_ranker` return them.
        folder: to write; older lists in it are replaced.
        args: what is made, and how.
        names: what `retriever` and `ranker` are called in the manifest.
        work_folder: keeps tokens, index and scores; None: `work` in the folder.
        index_folder: an index of the collection that is there already; None: in the work folder.
        index_dir: instead of one index, a folder of many by fingerprint, see `Encodings`.

    Returns:
        The lists, as every trainer reads them.

    Raises:
        ValueError: a split without positives, nothing left to write, a ranker that cannot be calibrated.

    Example:
        ```python
        from hf_ar2 import load_collection, load_ranker, load_retriever
        from hf_ar2.augmentation import AugmentConfig, augment, read_false_negatives

        lists = augment(
            load_collection("BeIR/scifact"),
            load_retriever("sentence-transformers/all-MiniLM-L6-v2"),
            load_ranker("cross-encoder/ms-marco-MiniLM-L6-v2"),
            "lists/scifact",
            AugmentConfig(thresholds="margin", depth=20),
        )
        print(len(lists), lists.manifest["lists"])
        print(read_false_negatives("lists/scifact/false_negatives.jsonl")[:3])
        ```
    """
    folder = Path(folder)
    work = Path(work_folder) if work_folder is not None else folder / "work"
    unlabelled, queries_read = _unlabelled(collection, args)
    if unlabelled is not None:
        collection = collection.with_queries(unlabelled)
    settings = Settings().changed(asdict(args))
    system = SearchSystem(retriever, ranker, collection, settings, work, index_folder, index_dir=index_dir)
    text_keys = passage_text_keys(collection.passage_texts(args.title_separator))
    found = {}
    if set(args.list_kinds) & {"undenoised", "denoised"}:
        found["labelled"] = labelled_candidates(
            system, args.train_split, args.depth, work / "scores", text_keys
        )
    if unlabelled is not None:
        rows = rows_of(arrow_column(unlabelled, "id"), arrow_column(collection.queries, "id"))
        none = np.zeros((len(rows), 0), dtype=np.int32)
        scored = score_candidates(system, rows, none, args.depth, work / "scores", "Unlabelled queries")
        nothing = np.zeros(scored.rows.shape, dtype=bool)
        found["unlabelled"] = Known(scored, nothing, nothing, nothing)
    calibration = _calibration(system, args, work, text_keys)
    sure, lines = _sure(args, found, calibration)
    tables, counts = [], {}
    for kind in args.list_kinds:
        of = "unlabelled" if kind == "pseudo" else "labelled"
        table, counts[kind] = build_lists(
            kind, collection, found[of], sure.get(of), text_keys, args.added_positives,
            args.stored_negatives, args.seed,
        )  # fmt: skip
        tables.append(table)
    lists = datasets.concatenate_datasets(tables)
    if len(lists) == 0:
        raise ValueError(f"no list is left to write: {json.dumps(counts)}")
    manifest = _manifest(system, args, names or {}, lines, calibration, counts, queries_read)
    if system.encoders.processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("false_negatives.jsonl", "calibration.json"):
            (folder / old).unlink(missing_ok=True)
        if "labelled" in found:
            path = folder / "false_negatives.jsonl"
            manifest["false_negatives"] = write_false_negatives(path, collection, found["labelled"])
        if args.calibrate:
            calibration.save(folder / "calibration.json")
        save_training_lists(folder, lists, manifest, _new_queries(unlabelled, lists))
    system.encoders.processes.barrier()
    return load_training_lists(folder)


def _calibration(system: SearchSystem, args: AugmentConfig, work: Path, text_keys: np.ndarray) -> Calibration:
    """The identity, or what is fitted on the passages retrieved for the split `calibrate`."""
    if args.calibrate is None:
        return Calibration()
    collection = system.collection
    if args.train_split in collection.qrels:
        held_out, trained = (collection.judgments(s).query_rows for s in (args.calibrate, args.train_split))
        shared = np.intersect1d(held_out, trained)
        if len(shared):
            raise ValueError(
                f"calibrate={args.calibrate!r}: {len(shared)} of its queries are in split {args.train_split!r} too, "
                f"{collection.queries[int(shared[0])]['id']!r} for one; expected held-out queries"
            )
    known = labelled_candidates(system, args.calibrate, args.depth, work / "scores", text_keys)
    pairs = known.free | known.positive
    scores, relevant = known.scored.scores[pairs], known.positive[pairs]
    made_from = scores_fingerprint(system, args.depth).encode()
    low, high = args.lines
    return fit_calibration(
        scores,
        relevant,
        irrelevant_below=low,
        relevant_above=high,
        fingerprint=content_hash(made_from, known.scored.rows, relevant),
    )


def _sure(
    args: AugmentConfig, found: dict[str, Known], calibration: Calibration
) -> tuple[dict[str, Sure], dict[str, float]]:
    """Where the ranker is sure, for each set of queries, and the lines that were drawn."""
    if args.list_kinds == ("undenoised",):
        return {}, {}
    low, high = args.lines
    lines = {"irrelevant": low, "relevant": high}
    sure: dict[str, Sure] = {}
    if args.thresholds == "quantile":
        first, last = quantile_lines([(k.scored.scores, k.unlabelled) for k in found.values()], low, high)
        lines |= {"irrelevant_log_share": first, "relevant_log_share": last}
    for name, known in found.items():
        scores = known.scored.scores
        if args.thresholds == "quantile":
            irrelevant, relevant = sure_by_share(scores, first, last)
        elif args.thresholds == "margin":
            irrelevant, relevant = sure_by_margin(scores, known.scored.positive_scores, low, high)
        else:
            irrelevant, relevant = sure_by_probability(scores, calibration, low, high)
        # A person's grade 0 outweighs the ranker.
        sure[name] = irrelevant | known.judged_irrelevant, relevant & ~known.judged_irrelevant
    return sure, lines


def _unlabelled(
    collection: Collection, args: AugmentConfig
) -> tuple[datasets.Dataset | None, dict[str, int]]:
    """The queries of the file that nobody judged, and how many were left out for which cause.

    A query with the text of a judged one, of whatever split, is left out: of the training split it has labels, of
    another one it would let a model train on what it is measured by.
    """
    if args.unlabelled is None:
        return None, {}
    read = read_queries(args.unlabelled)
    texts = collection.queries["text"]
    known = set(passage_text_keys(texts[int(row)] for row in _judged_queries(collection)).tolist())
    counts = {"read": len(read), "text of a judged query": 0, "text read before": 0}
    kept, seen = [], set()
    for row, key in enumerate(passage_text_keys(read["text"]).tolist()):
        if key in known or key in seen:
            counts["text of a judged query" if key in known else "text read before"] += 1
        else:
            seen.add(key)
            kept.append(row)
    if not kept:
        raise ValueError(f"{args.unlabelled}: no unlabelled query is left: {json.dumps(counts)}")
    return read.select(kept), counts


def _judged_queries(collection: Collection) -> Iterator[int]:
    for split in collection.splits:
        yield from collection.judgments(split).query_rows.tolist()
    for rows in collection.answer_splits.values():
        yield from np.asarray(rows).tolist()


def _new_queries(unlabelled: datasets.Dataset | None, lists: datasets.Dataset) -> datasets.Dataset | None:
    """The unlabelled queries that have a list."""
    if unlabelled is None:
        return None
    listed = rows_of(arrow_column(unlabelled, "id"), arrow_column(lists, "query_id"))
    return unlabelled.select(np.flatnonzero(listed >= 0))


def _manifest(
    system: SearchSystem,
    args: AugmentConfig,
    names: dict[str, str],
    lines: dict[str, float],
    calibration: Calibration,
    counts: dict[str, Any],
    queries_read: dict[str, int],
) -> dict[str, Any]:
    assert system.ranker is not None
    collection = system.collection
    models = {"retriever": system.retriever, "ranker": system.ranker}
    return {
        "written_by": f"hf-ar2 {version('hf-ar2')}",
        "collection": {
            "name": collection.name,
            "corpus_fingerprint": collection.corpus_fingerprint,
            "queries_fingerprint": collection.queries_fingerprint,
        },
        "models": {
            role: {"name": names.get(role), "weights": weights_fingerprint(model)}
            for role, model in models.items()
        },
        "settings": asdict(args) | {"bf16": system.encoders.bf16},
        "index_fingerprint": system.fingerprint,
        "scores_fingerprint": scores_fingerprint(system, min(args.depth, len(collection.corpus))),
        "thresholds": {"kind": args.thresholds, **lines} if lines else None,
        "calibration": asdict(calibration) if args.calibrate else None,
        "unlabelled_queries": queries_read or None,
        "lists": counts,
    }
