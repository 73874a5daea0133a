"""Lexical search, and retriever and BM25 together."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ar2.evaluation.hybrid import Candidates, candidates_of_both, fit_weight
from hf_ar2.index.lexical import LexicalIndex, terms

TEXTS = [
    "the brave otter hides a drum",
    "a heron watches the garden",
    "otters and drums, drums",
    "",
    "雨が降る庭",
]


def bm25_by_hand(texts, query, k1=1.2, b=0.75):
    """Lucene's BM25, a plain loop over documents and terms."""
    documents = [terms(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(texts))
    for term in terms(query):
        containing = sum(term in document for document in documents)
        weight = np.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        for number, document in enumerate(documents):
            count = document.count(term)
            scores[number] += weight * count / (count + k1 * (1 - b + b * len(document) / mean))
    return scores


@pytest.mark.parametrize("query", ["otter drum", "the the garden", "庭の雨", "unknown", ""])
def test_scores_are_those_of_a_plain_loop(query):
    index = LexicalIndex.build(TEXTS)
    np.testing.assert_allclose(index.scores([query])[0], bm25_by_hand(TEXTS, query), rtol=1e-5, atol=1e-6)


def test_search_finds_what_shares_a_word_in_falling_order(tmp_path):
    index = LexicalIndex.open_or_build(TEXTS, tmp_path)
    scores, rows = index.search(["the otter", "nothing of it"], k=4)
    assert rows[0].tolist() == [0, 1, -1, -1] and (np.diff(scores[0][:2]) < 0).all()
    assert rows[1].tolist() == [-1] * 4
    again = LexicalIndex.open_or_build(TEXTS, tmp_path)  # from the folder
    np.testing.assert_array_equal(again.scores(["the otter"]), index.scores(["the otter"]))
    LexicalIndex.open_or_build([*TEXTS, "another"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_texts_without_words_are_an_error():
    with pytest.raises(ValueError, match="2 passages without a single word"):
        LexicalIndex.build(["", "..."])


def test_candidates_are_those_of_both_with_the_scores_of_both():
    index = LexicalIndex.build(TEXTS)
    retriever = np.array([[0.1, 0.7, 0.3, 0.2, 0.4]], np.float32)
    rows = np.array([[1, 4]])
    both = candidates_of_both(
        np.take_along_axis(retriever, rows, axis=1),
        rows,
        ["the otter"],
        index,
        lambda passages: np.take_along_axis(retriever, np.maximum(passages, 0), axis=1),
    )
    assert both.rows.tolist() == [[1, 4, 0, -1]]  # 1 was found by both
    np.testing.assert_allclose(both.retriever[0][:3], [0.7, 0.4, 0.1])
    np.testing.assert_allclose(both.lexical[0][:3], index.scores(["the otter"])[0][[1, 4, 0]])
    scores, ranking = both.ranked(weight=0.0, temperature=0.05, depth=2)
    assert ranking.tolist() == [[1, 4]]  # without weight the retriever's order
    expected = (retriever[0] / 0.05 + 2.0 * index.scores(["the otter"])[0])[[1, 4, 0]]
    scores, ranking = both.ranked(weight=2.0, temperature=0.05, depth=3)
    assert ranking[0].tolist() == np.array([1, 4, 0])[np.argsort(-expected)].tolist()
    np.testing.assert_allclose(scores[0] / 0.05, np.sort(expected)[::-1], rtol=1e-5)


def test_the_fitted_weight_is_small_where_bm25_says_nothing_and_large_where_it_is_right():
    rng = np.random.default_rng(0)
    relevant = rng.integers(0, 10, 200)
    rows = np.tile(np.arange(10), (200, 1))

    def values(ranking):
        return 1 / (1 + (ranking == relevant[:, None]).argmax(axis=1))

    def with_signal(retriever, lexical):
        hit = (rows == relevant[:, None]).astype(np.float32)
        noise = rng.standard_normal((2, 200, 10)).astype(np.float32)
        return Candidates(rows, 0.05 * (retriever * hit + noise[0]), lexical * hit + noise[1])

    assert fit_weight(with_signal(3, 0), 0.05, values, 10) <= 0.1
    assert fit_weight(with_signal(0, 3), 0.05, values, 10) >= 1.5
    assert 0.3 <= fit_weight(with_signal(2, 2), 0.05, values, 10) <= 1.5
