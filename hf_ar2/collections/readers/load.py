"""Opens a collection of any known format."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.joined import join_collections, sources_of
from hf_ar2.collections.lines import find_file
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.readers.beir import load_beir
from hf_ar2.collections.readers.beir_tables import load_beir_from_hub, load_beir_parquet, parquet_files
from hf_ar2.collections.readers.dpr import load_dpr
from hf_ar2.collections.readers.ir_datasets import load_ir_datasets
from hf_ar2.collections.readers.ms_marco import CORPUS_FILES, load_ms_marco
from hf_ar2.collections.readers.pairs import FORMATS, Source, is_saved, load_pairs, pair_files
from hf_ar2.collections.readers.python_packages import load_python_packages
from hf_ar2.collections.readers.text_folder import load_text_folder
from hf_ar2.collections.splits import hash_of

logger = logging.getLogger(__name__)

PYTHON_PACKAGES = "python-packages:"
TEXT_FOLDER = "text:"
IR_DATASETS = "ir_datasets:"


def load_collection(
    source: Source,
    *,
    name: str | None = None,
    cache_dir: str | Path | None = None,
    skip: Iterable[str] = (),
    max_passages: int | None = None,
    titles: str | Path | None = None,
    positives: str | None = None,
    hard_negatives: bool | None = None,
    queries: str | Path | None = None,
    endings: Sequence[str] | None = None,
    headings: bool | None = None,
    all_headings: bool = False,
    dev_share: float = 0.2,
) -> Collection:
    """Opens a collection with the reader for its format.

    ====================================================  ===============================================
    source                                                reader
    ====================================================  ===============================================
    `python-packages:numpy,pandas`                        `load_python_packages`: installed Python packages
    `text:notes`                                          `load_text_folder`: a folder of documentation
    `ir_datasets:beir/scifact`                            `load_ir_datasets`: needs the package ir_datasets
    a folder with `corpus.jsonl`                          `load_beir`
    a folder with `corpus.parquet` (or `corpus/`)         `load_beir_parquet`
    a folder with `collection.tsv` (or `para.txt`)        `load_ms_marco`
    a folder with `psgs_w100.tsv`                         `load_dpr`: Natural Questions, TriviaQA
    a folder or file of parquet, JSON lines or csv        `load_pairs`: pairs, triplets, scored lists
    a `datasets.Dataset`, or a dict of split -> Dataset   `load_pairs`
    anything else, such as `BeIR/scifact`                 `load_beir_from_hub`, or else `load_pairs`
    a Hub id with a configuration, `ID:NAME`              `load_pairs`
    a list of sources, or a mapping name -> source        `join_collections`
    ====================================================  ===============================================

    Args:
        source: See the table; files may be gzipped. Several sources may also be one text, as on the command line:
            `{nq: data/nq, squad: {path: data/squad, weight: 2}}`. Only `skip`, `cache_dir`, `max_passages` and
            `dev_share` can be given for several sources, and apply to each.
        name: The collection's name; by default the folder's, the package list, or the last part of the Hub id.
        cache_dir: Folder for the memory-mapped corpus of a large collection (see `read_corpus`), or for downloads
            from the Hub.
        skip: Kinds of invalid entries, out of `SKIPPABLE`, to skip and count in `Collection.skipped`.
        max_passages: Keeps this many passages, to try things out: all judged ones, then the first of the others.
        titles: MS MARCO only, see `load_ms_marco`.
        positives, hard_negatives: DPR only, see `load_dpr`.
        queries, endings, headings, all_headings: Text files only, see `load_text_folder`.
        dev_share: A collection with a split `train` and without `dev` (BEIR's SciFact) gets this share of the
            queries of `train` as `dev`, with a warning; 0 changes nothing.

    Raises:
        CollectionError: The format of the source is unknown, an option is not for this format, or an entry is
            invalid; the message names the file and line.

    Example:
        >>> collection = load_collection("python-packages:json")
        >>> collection.splits
        ['train', 'dev', 'test']
    """
    given: dict[str, Any] = {
        "titles": titles,
        "positives": positives,
        "hard_negatives": hard_negatives,
        "queries": queries,
        "endings": endings,
        "headings": headings,
        "all_headings": all_headings or None,
    }
    options = {option: value for option, value in given.items() if value is not None}

    def check(place: str | Path, form: str, *accepted: str) -> None:
        for option in options:
            if option not in accepted:
                raise CollectionError(f"{option}: found a value for {place}, which is {form}; expected none")

    skip = Problems(skip).skip
    if (several := sources_of(source)) is not None:
        check("several sources", "a list")
        each: dict[str, Any] = {"cache_dir": cache_dir, "skip": skip, "max_passages": max_passages}
        parts = {
            part: found
            if isinstance(found, Collection)
            else load_collection(found, dev_share=dev_share, **each)
            for part, (found, _) in several.items()
        }
        return join_collections(parts, {part: weight for part, (_, weight) in several.items()}, name)
    text, folder = str(source), Path(source) if isinstance(source, str | Path) else Path()
    if not isinstance(source, str | Path):
        check("the dataset", "in memory")
        collection = load_pairs(source, name=name, skip=skip)
    elif text.startswith(PYTHON_PACKAGES):
        check(source, "Python packages")
        collection = load_python_packages(text.removeprefix(PYTHON_PACKAGES).split(","), name=name)
    elif text.startswith(TEXT_FOLDER):
        check(source, "a folder of text", "queries", "endings", "headings", "all_headings")
        collection = load_text_folder(text.removeprefix(TEXT_FOLDER), name=name, **options)
    elif text.startswith(IR_DATASETS):
        check(source, "of ir_datasets")
        collection = load_ir_datasets(text.removeprefix(IR_DATASETS), name=name, skip=skip)
    elif folder.is_dir() and find_file(folder, "corpus.jsonl"):
        check(source, "a BEIR folder")
        collection = load_beir(folder, name=name, cache_dir=cache_dir, skip=skip)
    elif folder.is_dir() and parquet_files(folder, "corpus"):
        check(source, "a BEIR folder")
        collection = load_beir_parquet(folder, name=name, skip=skip)
    elif folder.is_dir() and find_file(folder, *CORPUS_FILES):
        check(source, "an MS MARCO folder", "titles")
        collection = load_ms_marco(folder, name=name, cache_dir=cache_dir, skip=skip, **options)
    elif folder.is_dir() and find_file(folder, "psgs_w100.tsv"):
        check(source, "a DPR folder", "positives", "hard_negatives")
        collection = load_dpr(folder, name=name, cache_dir=cache_dir, skip=skip, **options)
    elif folder.is_file() or (folder.is_dir() and (is_saved(folder) or pair_files(folder))):
        check(source, "a dataset of pairs")
        collection = load_pairs(source, name=name, skip=skip)
    elif folder.exists() or not _may_be_hub_id(source):
        found = "a folder without any of these files" if folder.is_dir() else "no such folder"
        raise CollectionError(
            f"{source}: found {found}; expected a folder with corpus.jsonl or corpus.parquet (BEIR), "
            f"{' or '.join(CORPUS_FILES)} (MS MARCO) or psgs_w100.tsv (DPR), plain or gzipped, or pairs of texts "
            f"(a file or folder of {', '.join(FORMATS)}); a folder of text files is named {TEXT_FOLDER}{source}"
        )
    else:
        check(source, "a Hub id")
        collection = _load_from_hub(text, name=name, cache_dir=cache_dir, skip=skip)
    collection = with_dev_split(collection, dev_share)
    return collection if max_passages is None else with_fewer_passages(collection, max_passages)


def _load_from_hub(source: str, **options: Any) -> Collection:
    if ":" not in source:
        try:
            return load_beir_from_hub(source, **options)
        except ValueError as error:
            # datasets raises this for a repository without a configuration `corpus`.
            if isinstance(error, CollectionError) or "'corpus'" not in str(error):
                raise
    return load_pairs(source, **options)


def with_dev_split(collection: Collection, share: float) -> Collection:
    """Move a share of the queries of `train` to a new split `dev`, chosen by a hash of their ids.

    A collection that has a split `dev`, or fewer than two queries in `train`, is returned unchanged.
    """
    if not 0 <= share < 1:
        raise CollectionError(f"dev_share: found {share}; expected at least 0 and less than 1")
    have = {*collection.splits, *collection.answer_splits}
    if not share or "train" not in have or "dev" in have:
        return collection
    table = collection.qrels["train"]
    ids, of_row = np.unique(np.asarray(table["query_id"][:], object).astype(str), return_inverse=True)
    if len(ids) < 2:
        return collection
    places = np.array([hash_of(id) for id in ids])
    chosen = np.zeros(len(ids), bool)
    chosen[np.argsort(places, kind="stable")[: max(1, round(share * len(ids)))]] = True
    parts = {
        name: table.select(np.flatnonzero(chosen[of_row] == wanted))
        for name, wanted in (("train", False), ("dev", True))
    }
    others = sorted(have - {"train", "test"})
    logger.warning(
        f"{collection.name} has no split dev: {chosen.sum()} of the {len(ids)} queries of train are now dev, chosen by "
        "a hash of their ids (dev_share=0 keeps all in train)"
        + (f". To use one of its splits {', '.join(others)} instead, name it dev" if others else "")
    )
    return replace(collection, qrels={**collection.qrels, **parts})


def with_fewer_passages(collection: Collection, max_passages: int) -> Collection:
    """The collection with at most this many passages: all judged ones, then the first others."""
    of_splits = [collection.judgments(split).passage_rows for split in collection.splits]
    judged = np.unique(np.concatenate(of_splits)) if of_splits else np.zeros(0, np.int64)
    if len(judged) > max_passages:
        raise CollectionError(
            f"max_passages: found {max_passages}; expected at least {len(judged)}, the judged passages of "
            f"{collection.name!r}"
        )
    if len(collection.corpus) <= max_passages:
        return collection
    others = np.setdiff1d(np.arange(len(collection.corpus)), judged, assume_unique=True)
    rows = np.sort(np.concatenate([judged, others[: max_passages - len(judged)]]))
    return replace(collection, corpus=collection.corpus.select(rows))


def _may_be_hub_id(source: str | Path) -> bool:
    parts = str(source).split("/")
    return isinstance(source, str) and len(parts) <= 2 and all(parts) and parts[0] not in (".", "..", "~")
