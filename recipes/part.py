"""The part of a large corpus that a short run trains and chooses on, so that encoding leaves time for training."""

from __future__ import annotations

import dataclasses

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.recipes.costs import Costs
from hf_ar2.recipes.recipe import Recipe
from hf_ar2.settings.text import TextConfig

# If encoding the whole corpus takes more than the share WHOLE of the time, a part is used whose encoding takes PART.
WHOLE, PART = 0.1, 0.06
# The smallest part; fewer passages cannot show which retriever is better.
FEWEST = 500
# First passages of BM25 that are added with a dev query: they are easily confused with its relevant ones.
_NEAR_DEV = 5
# Largest share of a part for dev queries with their passages.
_DEV_SHARE = 0.4


def part_size(costs: Costs, seconds: float) -> int | None:
    """Passages of the part; None if there is time to encode the whole corpus."""
    if costs.encoding <= WHOLE * seconds:
        return None
    return max(FEWEST, int(PART * seconds * costs.rate / costs.passage_tokens))


def part_of(recipe: Recipe, collection: Collection, size: int | None) -> Collection:
    """The part of a collection that a recipe trains and chooses on, of about `size` passages; None: all of it."""
    if size is None:
        return collection
    train = recipe.args.get("train_split", "train")
    dev = recipe.choose_on if recipe.choose_on in collection.qrels else None
    return working_part(collection, size, train, dev, recipe.seed, recipe.texts)


def working_part(
    collection: Collection, size: int, train: str, dev: str | None, seed: int, texts: TextConfig
) -> Collection:
    """A part of a collection with about `size` passages: those that dev and training queries are about.

    Dev queries are taken in random order, each with its relevant passages and the first ones of BM25, until they fill
    two fifths of the part; then training queries with their relevant passages. Only queries are kept whose relevant
    passages are all in the part. One dev query is taken even if it adds more than `size` passages.
    """
    rng = np.random.default_rng(seed)
    rows: set[int] = set()
    if dev is not None:
        judgments = collection.judgments(dev).positives()
        questions = list(collection.queries.select(judgments.query_rows)["text"])
        lexical = LexicalIndex.of_members(texts.passage_texts(collection), collection.member_rows)
        _, nearby = lexical.search(questions, _NEAR_DEV, collection.searched_rows(judgments.query_rows))
        for place in rng.permutation(len(judgments)):
            added = {*judgments.of(place)[0].tolist(), *nearby[place][nearby[place] >= 0].tolist()}
            if rows and len(rows | added) > _DEV_SHARE * size:
                break
            rows |= added
    judgments = collection.judgments(train).positives()
    for place in rng.permutation(len(judgments)):
        added = set(judgments.of(place)[0].tolist())
        if len(rows | added) > size:
            break
        rows |= added
    kept = np.sort(np.fromiter(rows, np.int64))
    inside = set(np.asarray(collection.corpus["id"], object)[kept].tolist())
    qrels = {}
    for split in dict.fromkeys([train, *([dev, *collection.by_member(dev).values()] if dev else [])]):
        table = collection.qrels[split]
        judged = list(zip(table["query_id"], table["passage_id"], table["relevance"], strict=True))
        partial = {query for query, passage, grade in judged if grade > 0 and passage not in inside}
        complete = [passage in inside and query not in partial for query, passage, _ in judged]
        qrels[split] = table.select(np.flatnonzero(complete))
    corpus = collection.select_passages(kept)
    return dataclasses.replace(collection, corpus=corpus, qrels=qrels, answer_splits={})
