"""Any encoder these classes load works, and our inputs give what their own `encode` and `predict` give."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny_models import make_model

from hf_ar2.collections import Collection
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.index.encoders import Encoders
from hf_ar2.models.joint import JointModel, embed, save_models, score_pairs
from hf_ar2.models.loading import (
    has_separate_towers,
    load_ranker,
    load_retriever,
    resolve_model_name,
    weights_fingerprint,
)
from hf_ar2.settings.text import TextConfig


@pytest.mark.parametrize("kind", ["bert", "ernie", "roberta", "modernbert"])
def test_stored_tokens_give_what_encode_and_predict_give(kind, tmp_path, tiny_collection):
    folder = make_model(kind, tmp_path / kind)
    retriever = load_retriever(folder, pooling="cls", similarity="dot", max_length=24, device="cpu")
    ranker = load_ranker(folder, max_length=32, device="cpu")
    encoders = Encoders(torch.device("cpu"), Processes.current("cpu"), budget=256, show_progress=False)

    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path / "cache", TextConfig(max_query_length=24))
    rows = np.array([3, 0, 17])
    texts = [tiny_collection.queries["text"][row] for row in rows]
    ours = encoders.embed_queries(retriever, inputs, rows)
    np.testing.assert_allclose(ours, retriever.encode_query(texts), atol=1e-5)
    index = encoders.build_index(retriever, inputs, tmp_path / "index", "now")
    passages = tiny_collection.passage_texts()
    np.testing.assert_allclose(index.embeddings, retriever.encode_document(passages), atol=1e-5)

    pairs = RankerInputs(ranker, tiny_collection, tmp_path / "cache")
    candidates = np.array([[5, 1, -1], [2, 9, 4], [0, 7, 8]])
    scores = encoders.rank(ranker, pairs, rows, candidates)
    assert scores[0, 2] == -np.inf
    expected = ranker.predict([(texts[1], passages[row]) for row in candidates[1]])
    np.testing.assert_allclose(scores[1], expected, atol=1e-5)

    model = JointModel(retriever, ranker)
    save_models(model, tmp_path / "saved")
    again = SentenceTransformer(str(tmp_path / "saved" / "retriever"), device="cpu")
    np.testing.assert_allclose(again.encode_query(texts), retriever.encode_query(texts), atol=1e-6)
    assert again.similarity_fn_name == "dot"
    pair = [(texts[0], passages[0])]
    np.testing.assert_allclose(
        CrossEncoder(str(tmp_path / "saved" / "ranker"), device="cpu").predict(pair),
        ranker.predict(pair),
        atol=1e-6,
    )


def test_chunks_are_put_back_in_order(tmp_path, tiny_collection, tiny_retriever_path, tiny_ranker_path):
    retriever, ranker = load_retriever(tiny_retriever_path), load_ranker(tiny_ranker_path)
    model = JointModel(retriever, ranker).eval()
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path)
    pairs = RankerInputs(ranker, tiny_collection, tmp_path)
    rows = np.array([9, 2, 9, 30, 41])
    chunks = inputs.passage_chunks(rows, budget=40)
    assert len(chunks["chunks"]) > 1
    assert sum(len(chunk["input_ids"]) for chunk in chunks["chunks"]) == 4  # row 9 is encoded once
    with torch.no_grad():
        out = model(passages=chunks, pairs=pairs.pair_chunks(rows % 40, rows, budget=40))
        alone = embed(retriever, inputs.passages(rows), "document")
        scores = score_pairs(ranker, pairs.pairs(rows % 40, rows))
    np.testing.assert_allclose(out["passage_embeddings"], alone, atol=1e-6)
    np.testing.assert_allclose(out["pair_scores"], scores, atol=1e-6)


@pytest.mark.parametrize("max_query_length", [8, 13, 16, 32])
def test_every_pair_is_cut_as_the_tokenizer_cuts_it(tmp_path, tiny_ranker_path, max_query_length):
    """13 tokens have room in a pair of 16: queries below, at and above it, and above what passages are stored at."""
    texts = [" ".join(["otter"] * length) for length in range(1, 40)]
    rows = [{"id": f"p{number}", "title": "", "text": text} for number, text in enumerate(texts)]
    queries = [{"id": f"q{number}", "text": text} for number, text in enumerate(texts)]
    collection = Collection("lengths", Dataset.from_list(rows), Dataset.from_list(queries), {}, {})
    ranker = load_ranker(tiny_ranker_path, device="cpu")
    inputs = RankerInputs(
        ranker,
        collection,
        tmp_path,
        TextConfig(max_query_length=max_query_length, max_pair_length=16),
        show_progress=False,
    )
    query_rows, passage_rows = (grid.reshape(-1) for grid in np.meshgrid(np.arange(39), np.arange(39)))
    found = inputs.pairs(query_rows, passage_rows)
    expected = ranker.tokenizer(
        [" ".join(texts[row].split()[:max_query_length]) for row in query_rows],
        [texts[row] for row in passage_rows],
        truncation="longest_first",
        max_length=16,
        padding=True,
        return_tensors="pt",
    )
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_teacher_scores_without_gradient_or_dropout(tmp_path, tiny_collection, tiny_ranker_path):
    ranker = load_ranker(tiny_ranker_path)
    model = JointModel(ranker=ranker).train()
    pairs = RankerInputs(ranker, tiny_collection, tmp_path).pair_chunks(
        np.arange(6), np.arange(6), budget=1000
    )
    first, second = (model(pairs=pairs, teacher="ranker")["pair_scores"] for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert ranker.training and model(pairs=pairs)["pair_scores"].requires_grad


def test_layers_dropout_and_towers(tmp_path, tiny_retriever_path):
    folder = make_model("bert", tmp_path / "bert")
    light = load_retriever(folder, layers=[0, 2], dropout=0.0)
    assert len(light[0].model.encoder.layer) == 2
    assert all(m.p == 0 for m in light.modules() if isinstance(m, torch.nn.Dropout))
    light.save_pretrained(str(tmp_path / "light"))
    assert weights_fingerprint(load_retriever(tmp_path / "light")) == weights_fingerprint(light)
    with pytest.raises(ValueError, match=r"layers=\[0, 9\]: expected ascending indices between 0 and 2"):
        load_retriever(folder, layers=[0, 9])

    towers = load_retriever(folder, separate_towers=True, pooling="cls", similarity="dot")
    assert has_separate_towers(towers)
    towers.save_pretrained(str(tmp_path / "towers"))
    assert has_separate_towers(load_retriever(tmp_path / "towers"))
    with pytest.raises(ValueError, match="separate_towers=False"):
        load_retriever(tmp_path / "towers", separate_towers=False)


def test_what_cannot_be_loaded_is_said_plainly(tmp_path):
    folder = make_model("bert", tmp_path / "bert")
    with pytest.raises(ValueError, match="pooling='max': expected one of cls, mean, lasttoken"):
        load_retriever(folder, pooling="max")
    with pytest.raises(ValueError, match="similarity='euclidean': expected one of cosine, dot"):
        load_retriever(folder, similarity="euclidean")
    with pytest.raises(ValueError, match="'no_such_package' is not installed"):
        resolve_model_name("package:no_such_package/model")
    with pytest.raises(ValueError, match="neither config.json nor modules.json"):
        resolve_model_name("package:hf_ar2/losses")
    with pytest.raises(ValueError, match="JointModel needs"):
        JointModel()
    with pytest.raises(ValueError, match="3 labels, expected 1"):
        load_ranker(CrossEncoder(str(folder), num_labels=3))
    with pytest.raises(ValueError, match="dtype='half': expected one of float32, bfloat16, float16"):
        load_retriever(folder, dtype="half")
    with pytest.raises(ValueError, match="revision='main': the model is loaded already"):
        load_retriever(load_retriever(folder, device="cpu"), revision="main")


def test_a_ranker_says_where_older_sentence_transformers_look_that_it_gives_logits(
    tmp_path, tiny_ranker_path
):
    load_ranker(tiny_ranker_path, device="cpu").save_pretrained(str(tmp_path))
    said = json.loads((tmp_path / "config.json").read_text())["sentence_transformers"]
    assert said == {"activation_fn": "torch.nn.modules.linear.Identity"}
