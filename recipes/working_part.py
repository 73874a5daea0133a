"""The part of a large corpus that a run with few minutes trains and chooses on: encoding must not take them all."""

from __future__ import annotations

import dataclasses

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.recipes.budget import Costs

# Encoding the whole corpus may take this share of the time; where it takes more, a part of it stands for the whole,
# whose encoding takes the other share.
WHOLE, PART = 0.12, 0.08
# Fewer passages would tell retrievers apart on nothing.
FEWEST = 500
# Of BM25's first passages, how many go with a dev query: they are what is easily taken for its positive.
_BESIDE_DEV = 5
# Dev queries at most, where the part has no room for more.
_DEV_SHARE = 0.4


def part_size(costs: Costs, seconds: float) -> int | None:
    """Passages of the part; None where the whole corpus can be encoded."""
    if costs.encoding <= WHOLE * seconds:
        return None
    return max(FEWEST, int(PART * seconds * costs.rate / costs.passage_tokens))


def working_part(
    collection: Collection, size: int, train: str, dev: str | None, seed: int, title_separator: str
) -> Collection:
    """A collection of about `size` passages: what dev queries are about, then what training queries are about.

    Dev queries come in a random order, each with its relevant passages and the first ones that BM25 finds, until they
    fill most of the part; then training queries with their relevant passages. The qrels keep the queries all of whose
    relevant passages are in the part.

    Args:
        size: passages, at least as many as one query of each split brings.
        train, dev: names of the splits; dev None: none is chosen on.
        seed: of the order.
        title_separator: text between a passage's title and its text.
    """
    rng = np.random.default_rng(seed)
    rows: set[int] = set()
    if dev is not None:
        judgments = collection.judgments(dev).positives()
        texts = list(collection.queries.select(judgments.query_rows)["text"])
        lexical = LexicalIndex.build(collection.passage_texts(title_separator))
        _, beside = lexical.search(texts, _BESIDE_DEV)
        for place in rng.permutation(len(judgments)):
            start, stop = judgments.offsets[place], judgments.offsets[place + 1]
            brought = {
                *judgments.passage_rows[start:stop].tolist(),
                *beside[place][beside[place] >= 0].tolist(),
            }
            if rows and len(rows | brought) > _DEV_SHARE * size:
                break
            rows |= brought
    judgments = collection.judgments(train).positives()
    for place in rng.permutation(len(judgments)):
        brought = set(
            judgments.passage_rows[judgments.offsets[place] : judgments.offsets[place + 1]].tolist()
        )
        if len(rows | brought) > size:
            break
        rows |= brought
    kept = np.sort(np.fromiter(rows, np.int64))
    inside = set(np.asarray(collection.corpus["id"], object)[kept].tolist())
    qrels = {}
    for split in dict.fromkeys([train, *([dev] if dev else [])]):
        table = collection.qrels[split]
        relevant = [
            (query, passage)
            for query, passage, grade in zip(
                table["query_id"], table["passage_id"], table["relevance"], strict=True
            )
            if grade > 0
        ]
        partial = {query for query, passage in relevant if passage not in inside}
        qrels[split] = table.select(
            [
                row
                for row, (query, passage) in enumerate(
                    zip(table["query_id"], table["passage_id"], strict=True)
                )
                if passage in inside and query not in partial
            ]
        )
    return dataclasses.replace(
        collection, corpus=collection.corpus.select(kept), qrels=qrels, answer_splits={}
    )
