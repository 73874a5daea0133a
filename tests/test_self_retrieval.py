"""Queries that are also passages, under the same id, as in ArguAna and Quora: neither own negatives nor own results."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from tiny_ar2 import settings_of

from hf_ar2.evaluation.hybrid import candidates_of_both
from hf_ar2.evaluation.own import deeper, without_own
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.models.loading import load_retriever
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings
from hf_ar2.trainers import LTReConfig, LTReTrainer, RetrieverConfig, RetrieverTrainer


@pytest.fixture(scope="module")
def duplicates(tiny_collection):
    """The tiny collection with its queries among the passages; the first one's own passage is relevant to it."""
    queries = tiny_collection.queries
    own = Dataset.from_dict(
        {"id": queries["id"][:], "title": [""] * len(queries), "text": queries["text"][:]}
    )
    features = tiny_collection.corpus.features
    corpus = concatenate_datasets([tiny_collection.corpus, own.cast(features)])
    judged = tiny_collection.qrels["train"]
    itself = {"query_id": [judged["query_id"][0]], "passage_id": [judged["query_id"][0]], "relevance": [1]}
    train = concatenate_datasets([judged, Dataset.from_dict(itself, features=judged.features)])
    return dataclasses.replace(
        tiny_collection, corpus=corpus, qrels={**tiny_collection.qrels, "train": train}
    )


def own_of(collection, query_rows):
    ids = {id: row for row, id in enumerate(collection.corpus["id"])}
    return np.array([ids[collection.queries["id"][int(row)]] for row in query_rows])


def test_which_queries_are_passages(tiny_collection, duplicates, caplog):
    assert (tiny_collection.own_rows == -1).all() and not caplog.text
    expected = own_of(duplicates, range(len(duplicates.queries)))
    relevant = duplicates.queries["id"][:].index(duplicates.qrels["train"]["query_id"][0])
    expected[relevant] = -1
    assert duplicates.own_rows.tolist() == expected.tolist()
    assert "39 of 40 queries are also passages, under the same id" in caplog.text


def test_a_ranking_without_the_query_itself():
    rows = np.array([[4, 7, 2], [7, 2, 4], [1, 2, -1]])
    scores = np.array([[3, 2, 1], [3, 2, 1], [3, 2, -np.inf]], np.float32)
    scores, rows = without_own(scores, rows, np.array([4, -1, 2]), depth=2)
    assert rows.tolist() == [[7, 2], [7, 2], [1, -1]]
    assert scores.tolist() == [[2, 1], [3, 2], [3, -np.inf]]
    assert deeper(np.array([-1, 4]), 2) == 3 and deeper(np.array([-1, -1]), 2) == 2


def test_bm25_does_not_find_the_query_itself():
    lexical = LexicalIndex.build(["red cat", "blue cat", "red dog"])
    nothing = np.full((1, 3), -1), np.full((1, 3), -np.inf, np.float32)
    both = partial(candidates_of_both, nothing[1], nothing[0], ["red cat"], lexical, np.zeros_like)
    assert set(both().rows[0]) - {-1} == {0, 1, 2}
    assert set(both(own_rows=np.array([0])).rows[0]) - {-1} == {1, 2}


@pytest.mark.parametrize("mine_with", ["retriever", "bm25"])
@pytest.mark.parametrize("eval_passages", [None, 30])
def test_mining_and_evaluation(models, tmp_path, duplicates, mine_with, eval_passages):
    trainer = RetrieverTrainer(
        str(models / "tiny-retriever"),
        args=RetrieverConfig(
            output_dir=str(tmp_path),
            **{**settings_of(RetrieverConfig), "mine_with": mine_with, "eval_passages": eval_passages},
        ),
        collection=duplicates,
    )
    retrieval = trainer.retrieval
    pool = retrieval.mine(0)
    own = duplicates.own_rows[pool.query_rows]
    assert not (pool.passage_rows == np.where(own < 0, -2, own)[:, None]).any()
    assert pool.dropped["query_itself"] > 0
    own = duplicates.own_rows[trainer.evaluation.judgments.query_rows]
    ranked = trainer.evaluation.rankings().rows["retriever"]
    assert not (ranked == own[:, None]).any()
    if eval_passages is None:
        assert (ranked >= 0).all(), "the lists are as long as ever"
    # In a batch, the query itself may be the positive of another query: it is no negative of its own query.
    lists = trainer.collator.lists
    assert (lists.known_positives[:, -1] == duplicates.own_rows[lists.pool.query_rows]).all()


def test_the_search_of_each_step(models, tmp_path, duplicates):
    trainer = LTReTrainer(
        str(models / "tiny-retriever"),
        args=LTReConfig(
            output_dir=str(tmp_path),
            **{**settings_of(LTReConfig), "num_negatives": 0, "list_depth": 8, "max_steps": 1},
        ),
        collection=duplicates,
    )
    seen = []
    of_lists = trainer.list_scores
    trainer.list_scores = lambda outputs, batch: seen.append(of_lists(outputs, batch)) or seen[-1]
    trainer.train()
    for scores in seen:
        own = duplicates.own_rows[scores.query_rows.numpy()]
        rows = np.where(scores.mask.numpy(), scores.passage_rows.numpy(), -3)
        assert not (rows == np.where(own < 0, -2, own)[:, None]).any()
        assert (rows[:, :8] >= 0).all()


def test_search_of_a_split(models, tmp_path, duplicates):
    system = SearchSystem(
        load_retriever(models / "tiny-retriever", device="cpu"),
        None,
        duplicates,
        Settings(lexical_weight=1.0, depth=20),
        tmp_path,
    )
    own = duplicates.own_rows[duplicates.judgments("test").query_rows]
    for rows, _ in system.rankings("test").values():
        assert rows.shape[1] == 20 and not (rows == own[:, None]).any()
