"""Turns the replies of a model into queries: distinct questions that retrieve their passage."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from hf_ar2.collections import Collection
from hf_ar2.collections.questions import normalised
from hf_ar2.collections.readers.text_sections import words_in
from hf_ar2.collections.splits import hash_of, nonempty_splits
from hf_ar2.collections.tables import QRELS_FEATURES, arrow_column, relevant_qrels
from hf_ar2.generation.prompts import extract_question
from hf_ar2.generation.store import ReplyStore, store_key
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

MIN_WORDS = 3
EMPTY, SHORT, DUPLICATE, NOT_RETRIEVED = "empty", "too short", "duplicate", "do not retrieve their passage"
_SPLIT = "generated"

# The row of a passage and a question that it answers.
Pair = tuple[int, str]


class Writer(Protocol):
    """A model or an endpoint that writes questions."""

    name: str
    prompt: str
    count: int
    seed: int

    def batches(self, passages: Sequence[str]) -> list[np.ndarray]:
        """Indices of the passages of each batch."""

    def write(self, batch: int, passages: Sequence[str]) -> list[list[str]]:
        """Replies for each passage of a batch."""


def sample(total: int, limit: int, seed: int) -> np.ndarray:
    """Rows of at most `limit` out of `total` passages, ascending."""
    rows = np.arange(total)
    return rows if total <= limit else np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def write_replies(
    writer: Writer, ids: Sequence[str], passages: Sequence[str], store: ReplyStore
) -> list[list[str]]:
    """Replies for each passage, by its id and text; missing ones are written and stored, batch by batch."""
    written_by: dict[str, str | int] = {"model": writer.name, "prompt": writer.prompt}
    written_by |= {"count": writer.count, "seed": writer.seed}
    keys = [store_key(id, text, written_by) for id, text in zip(ids, passages, strict=True)]
    done = sum(key in store.replies for key in keys)
    if done == len(keys):
        return [store.replies[key] for key in keys]
    with tqdm(total=len(keys), initial=done, desc="Writing questions", unit="passage") as bar:
        for number, batch in enumerate(writer.batches(passages)):
            missing = [place for place in batch.tolist() if keys[place] not in store.replies]
            if not missing:
                continue
            found = writer.write(number, [passages[place] for place in batch])
            replies = dict(zip(batch.tolist(), found, strict=True))
            store.add((keys[place], ids[place], replies[place]) for place in missing)
            bar.update(len(missing))
    return [store.replies[key] for key in keys]


def select_questions(
    replies: Mapping[int, Sequence[str]], known: Iterable[str]
) -> tuple[list[Pair], Counter[str]]:
    """The distinct questions in replies (passage row -> replies), and the number of dropped ones by cause.

    Questions that are `known` count as duplicates.
    """
    seen = {normalised(text) for text in known}
    pairs, dropped = [], Counter[str]()
    for row, texts in replies.items():
        for question in map(extract_question, texts):
            if not question:
                dropped[EMPTY] += 1
            elif words_in(question) < MIN_WORDS:
                dropped[SHORT] += 1
            elif normalised(question) in seen:
                dropped[DUPLICATE] += 1
            else:
                seen.add(normalised(question))
                pairs.append((row, question))
    return pairs, dropped


def retrieves_passage(
    collection: Collection, pairs: Sequence[Pair], retriever: SentenceTransformer, depth: int, work: Path
) -> np.ndarray:
    """Which questions retrieve their passage among the first `depth` results: bool `[N]`."""
    ids, texts = [str(number) for number in range(len(pairs))], [text for _, text in pairs]
    queries = datasets.Dataset.from_dict({"id": ids, "text": texts})
    unjudged = Collection(
        collection.name, collection.corpus, queries, {}, {}, {_SPLIT: np.arange(len(pairs))}
    )
    settings = Settings.of_models().changed({"depth": depth})
    found, _ = SearchSystem(retriever, None, unjudged, settings, work).rankings(_SPLIT)["retriever"]
    return (found == np.array([row for row, _ in pairs])[:, None]).any(axis=1)


def with_generated(collection: Collection, pairs: Sequence[Pair], source: str) -> Collection:
    """The collection with questions from a source, such as `generated:MODEL`, as additional queries.

    If the collection has a split dev or test, all are added to train, so that only original queries are evaluated on.
    Otherwise a hash of the passage's id puts 80 % of the passages into train, 10 % into dev and 10 % into test; with
    three or more passages no split is empty.
    """
    passage_ids = arrow_column(collection.corpus, "id").take([row for row, _ in pairs]).to_pylist()
    texts = [text for _, text in pairs]
    hashes = [hashlib.blake2b(text.encode(), digest_size=4).hexdigest() for text in texts]
    ids = [f"{id}:{digest}" for id, digest in zip(passage_ids, hashes, strict=True)]
    extra = datasets.Dataset.from_dict({"id": ids, "text": texts, "source": [source] * len(ids)})
    extended = collection.with_queries(extra)
    measured = {"dev", "test"} & {*collection.qrels, *collection.answer_splits}
    if measured:
        splits = dict.fromkeys(passage_ids, "train")
    else:
        splits = nonempty_splits({id: id for id in sorted(set(passage_ids), key=hash_of)})
    qrels = dict(collection.qrels)
    for split in dict.fromkeys(splits.values()):
        places = [place for place, id in enumerate(passage_ids) if splits[id] == split]
        new = relevant_qrels([ids[place] for place in places], [passage_ids[place] for place in places])
        if split in qrels:
            own = qrels[split].select_columns(list(QRELS_FEATURES))
            own = own if own.features == QRELS_FEATURES else own.cast(QRELS_FEATURES)
            new = datasets.concatenate_datasets([own, new])
        qrels[split] = new
    return collection.with_same_corpus(queries=extended.queries, qrels=qrels)
