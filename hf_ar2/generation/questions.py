"""From what a model wrote to queries of a collection: each once, and kept where it finds its passage again."""

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
from hf_ar2.collections.tables import QRELS_FEATURES, arrow_column, dataset_of
from hf_ar2.generation.prompts import question_in
from hf_ar2.generation.store import ReplyStore, store_key
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

MIN_WORDS = 3
EMPTY, SHORT, DUPLICATE, LOST = "empty", "too short", "duplicate", "not found again"
_TO_FIND = "generated"

# The row of a passage, and a question that it answers.
Pair = tuple[int, str]


class Writer(Protocol):
    """What writes questions: a model, or an endpoint."""

    name: str
    prompt: str
    count: int
    seed: int

    def batches(self, passages: Sequence[str]) -> list[np.ndarray]:
        """Places of the passages that are written for together."""

    def write(self, batch: int, passages: Sequence[str]) -> list[list[str]]:
        """Replies for each passage of a batch."""

    def close(self) -> None:
        """Free what it holds."""


def sample(total: int, limit: int, seed: int) -> np.ndarray:
    """Rows of at most `limit` of so many passages, ascending."""
    rows = np.arange(total)
    return rows if total <= limit else np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def write_replies(
    writer: Writer,
    ids: Sequence[str],
    passages: Sequence[str],
    store: ReplyStore,
    show_progress: bool = True,
) -> list[list[str]]:
    """Replies for each passage, those that the store lacks written now, batch by batch.

    Args:
        ids, passages: of the passages.
        show_progress: a bar of passages, on which those of the store count as done before.
    """
    written_by: dict[str, str | int] = {
        "model": writer.name,
        "prompt": writer.prompt,
        "count": writer.count,
        "seed": writer.seed,
    }
    keys = [store_key(id, text, written_by) for id, text in zip(ids, passages, strict=True)]
    done = sum(key in store.replies for key in keys)
    if done == len(keys):
        return [store.replies[key] for key in keys]
    bar = tqdm(
        total=len(keys), initial=done, desc="Writing questions", unit="passage", disable=not show_progress
    )
    with bar:
        for number, batch in enumerate(writer.batches(passages)):
            missing = [place for place in batch.tolist() if keys[place] not in store.replies]
            if not missing:
                continue
            found = writer.write(number, [passages[place] for place in batch])
            replies = dict(zip(batch.tolist(), found, strict=True))
            store.add((keys[place], ids[place], replies[place]) for place in missing)
            bar.update(len(missing))
    return [store.replies[key] for key in keys]


def sifted(replies: Mapping[int, Sequence[str]], known: Iterable[str]) -> tuple[list[Pair], Counter[str]]:
    """The questions in replies, each once, and how many were dropped for which cause.

    Args:
        replies: passage row -> what was written for it.
        known: questions that are there already.
    """
    seen = {normalised(text) for text in known}
    pairs, dropped = [], Counter[str]()
    for row, texts in replies.items():
        for question in map(question_in, texts):
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


def find_again(
    collection: Collection, pairs: Sequence[Pair], retriever: SentenceTransformer, depth: int, work: Path
) -> np.ndarray:
    """Which questions find their passage among the first results of a retriever: bool `[N]`.

    Args:
        collection: whose passages are searched, all of them.
        retriever: what searches.
        depth: how many results are looked at.
        work: a folder for tokens and index.
    """
    asked = datasets.Dataset.from_dict(
        {"id": [f"{number}" for number in range(len(pairs))], "text": [text for _, text in pairs]}
    )
    alone = Collection(collection.name, collection.corpus, asked, {}, {}, {_TO_FIND: np.arange(len(pairs))})
    settings = Settings.of_models().changed({"depth": depth})
    found, _ = SearchSystem(retriever, None, alone, settings, work).rankings(_TO_FIND)["retriever"]
    return (found == np.array([row for row, _ in pairs])[:, None]).any(axis=1)


def with_generated(collection: Collection, pairs: Sequence[Pair], source: str) -> Collection:
    """The collection with questions as queries, whose column `source` says where they come from.

    Where the collection has a split dev or test, they join train: what is measured stays what people asked. Else a hash
    of the passage's id puts 80 % of the passages into train, 10 % into dev and 10 % into test; of three or more, each
    gets one.

    Args:
        pairs: passage rows and questions.
        source: such as `generated:MODEL`.
    """
    passage_ids = arrow_column(collection.corpus, "id").take([row for row, _ in pairs]).to_pylist()
    texts = [text for _, text in pairs]
    ids = [_query_id(id, text) for id, text in zip(passage_ids, texts, strict=True)]
    extra = datasets.Dataset.from_dict({"id": ids, "text": texts, "source": [source] * len(ids)})
    extended = collection.with_queries(extra)
    measured = {"dev", "test"} & {*collection.qrels, *collection.answer_splits}
    splits = dict.fromkeys(passage_ids, "train") if measured else _splits(passage_ids)
    qrels = dict(collection.qrels)
    for split in dict.fromkeys(splits.values()):
        places = [place for place, id in enumerate(passage_ids) if splits[id] == split]
        columns = {
            "query_id": [ids[place] for place in places],
            "passage_id": [passage_ids[place] for place in places],
            "relevance": [1] * len(places),
        }
        new = dataset_of(columns, QRELS_FEATURES)
        if split in qrels:
            own = qrels[split].select_columns(list(QRELS_FEATURES))
            own = own if own.features == QRELS_FEATURES else own.cast(QRELS_FEATURES)
            new = datasets.concatenate_datasets([own, new])
        qrels[split] = new
    return Collection(
        collection.name,
        collection.corpus,
        extended.queries,
        qrels,
        collection.skipped,
        collection.answer_splits,
    )


def _query_id(passage_id: str, text: str) -> str:
    return f"{passage_id}:{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _splits(ids: Iterable[str]) -> dict[str, str]:
    """Passage id -> split; one that would be empty gets the passage with the smallest hash of the largest split."""
    hashes = {id: int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") for id in ids}
    splits = {id: _tenths(number % 10) for id, number in sorted(hashes.items(), key=lambda item: item[1])}
    for split in ("train", "dev", "test"):
        if split not in splits.values() and len(splits) >= 3:
            largest = Counter(splits.values()).most_common(1)[0][0]
            splits[next(id for id in splits if splits[id] == largest)] = split
    return splits


def _tenths(tenth: int) -> str:
    return "train" if tenth < 8 else "dev" if tenth == 8 else "test"
