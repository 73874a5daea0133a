"""The measured costs of encoding and training on this machine, by which the minutes of a run are divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_ar2.collections import Collection
from hf_ar2.evaluation.systems import evaluated_queries
from hf_ar2.recipes.choosing import people_asked
from hf_ar2.recipes.merging import SHARES
from hf_ar2.recipes.recipe import Recipe, stage_config
from hf_ar2.recipes.sampled import MOST_PASSAGES
from hf_ar2.trainers.retrieval import Retrieval, encoders_of
from hf_ar2.trainers.step_time import tokens_per_second, training_factor
from hf_ar2.training_lists.stored import OF_COLLECTION


@dataclass(frozen=True)
class Costs:
    """The costs of encoding and training on this machine, for this collection."""

    rate: float  # tokens per second that the first retriever encodes
    passages: int
    passage_tokens: float  # mean length after truncation, as the next two
    query_tokens: float
    pair_tokens: float
    dev_queries: int  # of the split that the served system is chosen on
    train_queries: int  # of the whole training split
    training: float  # seconds of training on a text, divided by those of encoding it
    from_people: bool = True  # whether people asked any of the dev queries; if not, merges are never dropped
    part_queries: int | None = None  # training queries of the part of the corpus, if a part is used

    @property
    def encoding(self) -> float:
        """Seconds to encode the corpus once."""
        return self.passages * self.passage_tokens / self.rate

    def ranking(self, depth: int) -> float:
        """Seconds to rank the first `depth` passages of every dev query."""
        return self.dev_queries * depth * self.pair_tokens / self.rate

    def merging(self) -> float:
        """Seconds to compare shares of the starting weights on a part of the corpus."""
        if not self.from_people:
            return 0.0
        part = min(self.passages, max(MOST_PASSAGES, self.passages // 2))
        return len(SHARES) * part * self.passage_tokens / self.rate

    def step(self, trainer: str, settings: dict[str, Any]) -> float:
        """Estimated seconds of a training step (in AR2, of the retriever), before one is measured."""
        lists = settings.get("per_device_train_batch_size", 8)
        entries = 1 + settings.get("num_negatives", 0 if trainer in ("retriever", "ltre") else 15)
        tokens = float(lists * self.query_tokens)
        if trainer in ("retriever", "ar2", "rocketqa-v2"):
            tokens += lists * entries * self.passage_tokens
        if trainer in ("ranker", "rocketqa-v2"):
            tokens += lists * entries * self.pair_tokens
        if trainer == "ar2":
            tokens += lists * entries * self.pair_tokens / self.training
        return self.training * tokens / self.rate

    def step_of(self, recipe: Recipe, stage: str) -> float:
        """Estimated seconds of a training step of a stage."""
        return self.step(recipe.stages[stage]["trainer"], recipe.stage_args(stage))

    def steps_of_epochs(self, recipe: Recipe, stage: str) -> float:
        """Steps in which a stage makes its `max_epochs` passes over its training queries; infinite without."""
        epochs, settings = recipe.stages[stage].get("max_epochs"), recipe.stage_args(stage)
        if not epochs:
            return math.inf
        part = self.part_queries if encodes(recipe, stage) else None
        queries = self.train_queries if part is None else part
        return math.ceil(epochs * queries / settings.get("per_device_train_batch_size", 8))


def measure_costs(
    recipe: Recipe,
    run: Path,
    collection: Collection,
    now: Callable[[], float],
    retriever: SentenceTransformer,
) -> Costs:
    """Measure the lengths of the texts, and the speed of encoding and training on a sample of them."""
    first = next(name for name, body in recipe.stages.items() if body["trainer"] != "augment")
    args = stage_config(recipe, first, run)
    retrieval = Retrieval(retriever.to(args.device), None, collection, args, encoders_of(args))
    inputs = retrieval.retriever_inputs
    assert inputs is not None
    passages = inputs.passage_builder.single_lengths(inputs.passage_store, np.arange(len(collection.corpus)))
    queries = inputs.query_builder.single_lengths(inputs.query_store, np.arange(len(collection.queries)))
    passage_tokens, query_tokens = float(np.mean(passages)), float(np.mean(queries))
    longest = args.max_pair_length or passage_tokens + query_tokens
    chosen_on = recipe.choose_on
    rate = tokens_per_second(retrieval, now)
    return Costs(
        rate=rate,
        passages=len(passages),
        passage_tokens=passage_tokens,
        query_tokens=query_tokens,
        pair_tokens=min(float(longest), passage_tokens + query_tokens),
        dev_queries=dev_queries_of(recipe, collection),
        train_queries=len(collection.judgments(args.train_split).positives()),
        training=training_factor(retrieval, rate, now),
        from_people=chosen_on not in collection.splits or people_asked(collection, chosen_on),
    )


def dev_queries_of(recipe: Recipe, collection: Collection) -> int:
    """Queries of the split that the served system is chosen on, 0 without one."""
    split = recipe.choose_on
    return len(evaluated_queries(collection, split)) if split in collection.splits else 0


def encodes(recipe: Recipe, stage: str) -> bool:
    """Whether a stage encodes passages to search them; in-batch, given and BM25's negatives need no encoding."""
    settings, trainer = recipe.stage_args(stage), recipe.stages[stage]["trainer"]
    if trainer != "retriever":
        return True
    if settings.get("mine") is False and OF_COLLECTION in (settings.get("train_lists") or ()):
        return False
    return settings.get("num_negatives", 0) > 0 and settings.get("mine_with", "retriever") == "retriever"
