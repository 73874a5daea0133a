"""`hf-ar2 score`: training lists with a teacher's scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_ar2.augmentation import AugmentConfig, augment
from hf_ar2.augmentation.teacher import score_lists
from hf_ar2.collections import load_collection
from hf_ar2.command_line.open import loaded_model, quiet
from hf_ar2.command_line.options import given_settings
from hf_ar2.settings.score import ScoreConfig
from hf_ar2.settings.search import Settings
from hf_ar2.settings.text import EncodingConfig, names_of
from hf_ar2.training_lists.stored import OF_COLLECTION, lists_of, load_training_lists


def score(arguments: argparse.Namespace) -> int:
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
    print(f"In {out}: {len(scored):,} training lists with scores of {passages:,} passages, manifest.json")
    print(f"Next: train a retriever with train_lists=[{str(out)!r}], mine=False and distillation='kl'")
    return 0
