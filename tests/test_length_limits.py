"""What is cut at the length limits is what the tokenizer cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny_ranker, make_tiny_retriever

from hf_ar2.collections import Collection
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.length_limits import (
    Truncation,
    passage_length_advice,
    query_truncation_warning,
    truncation_line,
    truncations,
)
from hf_ar2.models.limits import position_count
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.settings.text import TextConfig
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer


@pytest.mark.parametrize(("queries", "passages", "pairs"), [(6, 12, 20), (64, 64, 64), (7, 8, 9)])
def test_the_shares_are_those_of_the_texts_that_the_tokenizer_cuts(
    queries: int, passages: int, pairs: int, tmp_path: Path, tiny_collection: Collection
) -> None:
    retriever = load_retriever(str(make_tiny_retriever(tmp_path / "retriever")), device="cpu")
    ranker = load_ranker(str(make_tiny_ranker(tmp_path / "ranker")), device="cpu")
    texts = TextConfig(max_query_length=queries, max_passage_length=passages, max_pair_length=pairs)
    cache = tmp_path / "cache"
    cuts = truncations(
        RetrieverInputs(retriever, tiny_collection, cache, texts, show_progress=False),
        RankerInputs(ranker, tiny_collection, cache, texts, show_progress=False),
        positives := tiny_collection.judgments("train").positives(),
    )

    def count(*texts: str) -> int:
        return len(retriever.tokenizer(*texts)["input_ids"])

    texts = tiny_collection.queries["text"], tiny_collection.passage_texts(" ")
    longer = [
        np.mean([count(text) > limit for text in of])
        for of, limit in zip(texts, (queries, passages), strict=True)
    ]
    of_pairs = zip(
        np.repeat(positives.query_rows, np.diff(positives.offsets)), positives.passage_rows, strict=True
    )
    both = np.mean([count(texts[0][int(q)], texts[1][int(p)]) > pairs for q, p in of_pairs])
    found = {cut.what: (cut.share, cut.limit) for cut in cuts}
    assert found["queries"] == (longer[0], queries) and found["passages"] == (longer[1], passages)
    if count(max(texts[0], key=count)) <= queries:  # a query that was cut makes its pairs shorter
        assert found["pairs"] == (both, pairs)


@pytest.mark.slow
def test_a_training_says_what_is_cut_and_warns_of_queries(
    tmp_path: Path,
    tiny_collection: Collection,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = str(make_tiny_retriever(tmp_path / "tiny"))
    settings = {"max_steps": 1, "eval_strategy": "no", "eval_on_start": False, "report_to": "none"}
    for length, warns in ((64, False), (4, True)):
        config = RetrieverConfig(str(tmp_path), **settings, max_query_length=length, use_cpu=True, bf16=False)
        trainer = RetrieverTrainer(model, args=config, collection=tiny_collection)
        trainer.train()
        said = capsys.readouterr().out
        assert said.startswith("Truncated: ") and f" of queries ({length} tokens)" in said
        assert ("Raise max_query_length" in caplog.text) == warns


def test_small_shares_are_not_rounded_away() -> None:
    cuts = [
        Truncation("passages", 0.125, 128),
        Truncation("queries", 0.00001, 32),
        Truncation("pairs", 0.0, 160),
    ]
    said = " ".join(truncation_line(cuts).split())
    assert said.endswith(
        "12 % of passages (128 tokens), 0.1 % of queries (32 tokens), 0 % of pairs (160 tokens)"
    )
    assert query_truncation_warning(cuts) is None
    assert query_truncation_warning([Truncation("queries", 0.051, 32)]) is not None


def test_the_advice_names_the_length_that_reads_nearly_all_passages(
    tmp_path: Path, tiny_collection: Collection
) -> None:
    retriever = load_retriever(str(make_tiny_retriever(tmp_path / "retriever")), device="cpu")
    counts = sorted(map(len, retriever.tokenizer(tiny_collection.passage_texts(" "))["input_ids"]))
    cuts = [Truncation("passages", 0.3, 8)]

    def advice(shares: list[Truncation] = cuts) -> str:
        said = passage_length_advice(shares, retriever, tiny_collection, TextConfig(max_passage_length=8))
        assert all(len(line) <= 80 for line in (said or "").split("\n"))
        return " ".join((said or "").split())

    needed = counts[57]  # of 60
    said = f"95 % of the passages have at most {needed} tokens: --max_passage_length {needed} "
    assert advice() == said + "reads them whole"
    assert not advice([Truncation("passages", 0.04, 8), Truncation("queries", 0.5, 8)])
    positions = position_count(retriever)
    retriever.max_seq_length = needed - 1
    assert advice() == said + f"and the model's max_length {needed} read them whole"
    limit = needed - 1
    table = retriever[0].model.embeddings.position_embeddings
    table.num_embeddings = limit
    assert positions and advice().endswith(
        f"the model reads at most {limit}; divide the passages or use a model that reads more"
    )
