"""`hf-ar2 augment` and `hf-ar2 score`: training lists denoised, or scored, by a ranker."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import Any

import datasets

from hf_ar2.augmentation import AugmentConfig, Suspect, augment, read_false_negatives
from hf_ar2.augmentation.teacher import score_lists
from hf_ar2.cards.facts import ROLES
from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.tables import arrow_column, rows_of
from hf_ar2.command_line.open import loaded_model, opened_system, quiet
from hf_ar2.command_line.options import given_settings
from hf_ar2.command_line.show import ordinal
from hf_ar2.evaluation.tables import format_table
from hf_ar2.settings.augment import ScoreConfig
from hf_ar2.settings.search import Settings
from hf_ar2.settings.text import EncodingConfig, names_of
from hf_ar2.terminal import counted, visible
from hf_ar2.training_lists.stored import OF_COLLECTION, TrainingLists, lists_of, load_training_lists

_SUSPECTS_SHOWN = 3
_CHARACTERS = 400  # of a passage


def augment_lists(arguments: argparse.Namespace) -> None:
    """Write training lists, and print what was kept and dropped, and which labels may be missing."""
    out = Path(arguments.output)
    with opened_system(arguments, for_training=True) as system:
        of_run = {name: getattr(system.settings, name) for name in names_of(EncodingConfig)}
        args = AugmentConfig(**of_run | given_settings(arguments, AugmentConfig))
        if system.ranker is None:
            raise ValueError(
                f"{arguments.run} serves no ranker to score the passages; name one with --ranker, such as "
                f"{arguments.run}/stages/STAGE/ranker"
            )
        names = {role: getattr(arguments, role) or str(Path(arguments.run) / role) for role in ROLES}
        models = system.retriever, system.ranker
        lists = augment(system.collection, *models, out, args, names=names, index_folder=arguments.index)
        print(summary(lists))
        audited = "false_negatives" in lists.manifest
        if arguments.audit and audited:
            width = shutil.get_terminal_size((100, 24)).columns
            print(f"\n{audit(lists, system.collection, arguments.audit, width)}")
    further = ", false_negatives.jsonl" if audited else ""
    print(f"\nIn {out}: {counted(len(lists), 'training lists')}, manifest.json{further}")
    print(f"Next: train on them with train_lists=[{str(out)!r}]")


def summary(lists: TrainingLists) -> str:
    """The counts of a manifest as text: lists and passages of each kind, kept and dropped."""
    manifest = lists.manifest
    parts = [_thresholds_line(manifest)]
    if manifest["unlabelled_queries"]:
        counts = [f"{count:,} {cause}" for cause, count in manifest["unlabelled_queries"].items()]
        parts.append("unlabelled queries: " + ", ".join(counts))
    kinds = manifest["lists"]
    rows: list[list[Any]] = [["lists", *(of["lists"] for of in kinds.values())]]
    for cause in next(iter(kinds.values()))["dropped_lists"]:
        rows.append([f"  dropped: {cause}", *(of["dropped_lists"][cause] for of in kinds.values())])
    for name in ("retrieved", "negatives", "added_positives"):
        rows.append([name.replace("_", " "), *(of[name] for of in kinds.values())])
    for cause in dict.fromkeys(cause for of in kinds.values() for cause in of["dropped_passages"]):
        rows.append([f"  dropped: {cause}", *(of["dropped_passages"].get(cause) for of in kinds.values())])
    parts.append(format_table(rows, ["", *kinds]))
    return "\n\n".join(part for part in parts if part)


def _thresholds_line(manifest: dict[str, Any]) -> str:
    lines, fitted = manifest["thresholds"], manifest["calibration"]
    if lines is None:
        return ""
    said = f"{lines['kind']} thresholds: irrelevant {lines['irrelevant']:g}, relevant {lines['relevant']:g}"
    if fitted is None:
        return said
    report = fitted["report"]
    return (
        f"{said}; calibrated on {counted(report['pairs'], 'pairs')} ({report['relevant']:,} labelled relevant): "
        f"temperature {fitted['temperature']:.3g}, bias {fitted['bias']:.3g}, log loss "
        f"{report['log_loss_before']:.3f} → {report['log_loss']:.3f}\nof those pairs "
        f"{report['above']:,} are above, {report['relevant_above']:.1%} of them labelled relevant; "
        f"{report['below']:,} are below, {report['relevant_below']:.2%} of them so"
    )


def audit(lists: TrainingLists, collection: Collection, count: int, width: int) -> str:
    """The most likely false negatives: unlabelled passages that score above all labelled ones.

    Shows the `count` queries with the largest shares, with at most three passages each; `width` is in columns.
    """
    total = lists.manifest["false_negatives"]
    heading = textwrap.fill(
        f"False negatives? {total['passages']:,} unlabelled passages of {total['queries']:,} of "
        f"{total['of_queries']:,} queries score above every labelled one.",
        width,
    )
    by_query: dict[str, list[Suspect]] = {}
    for suspect in read_false_negatives(lists.folder / "false_negatives.jsonl"):
        by_query.setdefault(suspect.query_id, []).append(suspect)
    shown = dict(list(by_query.items())[:count])
    queries = _texts(collection.queries, list(shown))
    blocks = [heading]
    for query_id, of_query in shown.items():
        first = of_query[0]
        passages = [(first.positive_id, f"{first.positive_score:.2f}, labelled")]
        for suspect in of_query[:_SUSPECTS_SHOWN]:
            place = f"share {suspect.share:.0%}, retrieved {ordinal(suspect.retriever_rank)}"
            passages.append((suspect.passage_id, f"{suspect.score:.2f}, {place}"))
        texts = _texts(collection.corpus, [id for id, _ in passages])
        number = f"{len(of_query)} such passage{'s' if len(of_query) > 1 else ''}"
        lines = [textwrap.fill(f"{visible(query_id)} ({number}): {queries[query_id]}", width)]
        for id, said in passages:
            text = textwrap.shorten(f"{said}, {visible(id)}: {texts[id]}", _CHARACTERS, placeholder=" …")
            lines.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="      "))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _texts(table: datasets.Dataset, ids: list[str]) -> dict[str, str]:
    """Id → text of these rows, after the title if there is one."""
    found = table[rows_of(ids, arrow_column(table, "id")).tolist()]
    titles = found.get("title", [""] * len(ids))
    return {
        id: visible(" · ".join(part for part in (title, text) if part))
        for id, title, text in zip(ids, titles, found["text"], strict=True)
    }


def score(arguments: argparse.Namespace) -> None:
    """Score the lists of a folder, or those that a retriever finds, and write them."""
    limits = Settings.of_models()
    of_models = {name: getattr(limits, name) for name in names_of(EncodingConfig)}
    args = ScoreConfig(**of_models | given_settings(arguments, ScoreConfig))
    named = arguments.lists
    lists = load_training_lists(named) if named and named != OF_COLLECTION else None
    quiet()
    collection = load_collection(arguments.collection).for_training()
    if named == OF_COLLECTION:
        lists = lists_of(collection, args.train_split)
    ranker = loaded_model(arguments, "ranker", arguments.ranker)
    out = Path(arguments.output)
    if lists is not None:
        scored = score_lists(lists, collection, ranker, out, args, name=arguments.ranker)
    else:
        retriever = loaded_model(arguments, "retriever", arguments.retriever)
        shared = {name: getattr(args, name) for name in (*names_of(EncodingConfig), "train_split", "depth")}
        scored = augment(
            collection,
            retriever,
            ranker,
            out,
            AugmentConfig(kinds=["undenoised"], **shared),
            names={"retriever": arguments.retriever, "ranker": arguments.ranker},
            batch_tokens=args.batch_tokens,
        )
    passages = sum(len(ids) for role in ("positive", "negative") for ids in scored.dataset[f"{role}_ids"])
    written = counted(len(scored), "training lists")
    print(f"In {out}: {written} with scores of {counted(passages, 'passages')}, manifest.json")
    print(f"Next: train a retriever with train_lists=[{str(out)!r}], mine=False and distillation='kl'")
