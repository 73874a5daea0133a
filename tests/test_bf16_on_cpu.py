"""bf16 on a CPU: models encode with a copy of their weights, and train with attention of our own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import KINDS as ALL_KINDS
from tiny_models import make_model

from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.index import encoders as encoders_module
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.encodings import index_fingerprint
from hf_ar2.models.bf16_on_cpu import bf16_copy, train_fast_in_bf16
from hf_ar2.models.joint import embed
from hf_ar2.models.loading import load_ranker, load_retriever, weights_fingerprint
from hf_ar2.settings.text import TextConfig

KINDS = ["bert", "modernbert", "t5", "qwen3"]


def encoders_in(bf16: bool) -> Encoders:
    return Encoders(torch.device("cpu"), Processes.current("cpu"), bf16, budget=256, show_progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_in_bf16_gives_float32_vectors_and_scores_close_to_those_in_float32(
    kind, tmp_path, tiny_collection
):
    folder = make_model(kind, tmp_path / kind)
    retriever = load_retriever(folder, pooling="mean", similarity="cosine", device="cpu").train()
    texts = TextConfig(max_passage_length=32)
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path / "cache", texts, show_progress=False)
    before, rows = weights_fingerprint(retriever), np.arange(30)
    full, half = (encoders_in(bf16).embed_passages(retriever, inputs, rows) for bf16 in (False, True))
    assert half.dtype == np.float32 and not np.array_equal(half, full)
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)
    assert (full * half).sum(axis=1).min() > 0.999
    assert weights_fingerprint(retriever) == before and retriever.training

    if kind != "t5":  # which has no classifier
        ranker = load_ranker(folder, max_length=48, device="cpu")
        pairs = RankerInputs(ranker, tiny_collection, tmp_path / "cache", show_progress=False)
        scores = [
            encoders_in(bf16).rank(ranker, pairs, rows[:3], rows[:6].reshape(3, 2)) for bf16 in (False, True)
        ]
        np.testing.assert_allclose(*scores, atol=0.02)


def test_the_copy_keeps_buffers_and_shares_weights_that_are_not_float32(tmp_path):
    retriever = load_retriever(make_model("qwen3", tmp_path / "qwen3"), device="cpu")
    model = retriever[0].model
    model.norm.half()
    copied = bf16_copy(retriever)[0].model
    assert copied.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert copied.rotary_emb.inv_freq.dtype == torch.float32
    assert copied.norm.weight is model.norm.weight


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_give_the_same_vectors(kind, tmp_path, monkeypatch):
    if not torch.cpu._is_amx_tile_supported():
        pytest.skip("weights are packed on a CPU with AMX")
    retriever = load_retriever(make_model(kind, tmp_path / kind), pooling="mean", device="cpu")
    texts = retriever.tokenizer(["deep nets", "a calm otter"], padding=True, return_tensors="pt")
    features = {name: texts[name] for name in ("input_ids", "attention_mask")}
    packed = bf16_copy(retriever)
    assert "PackedLinear" in repr(packed[0].model)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with torch.inference_mode():
        torch.testing.assert_close(
            embed(packed, features, "query"),
            embed(bf16_copy(retriever), features, "query"),
            rtol=0,
            atol=2e-3,
        )


def test_a_pass_over_the_corpus_copies_the_weights_once(
    tmp_path, tiny_collection, tiny_retriever_path, monkeypatch
):
    copies = []
    monkeypatch.setattr(
        encoders_module, "bf16_copy", lambda model: copies.append(model) or copy.deepcopy(model)
    )
    retriever = load_retriever(tiny_retriever_path, device="cpu")
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path / "cache", show_progress=False)
    index = encoders_in(True).build_index(retriever, inputs, tmp_path / "index", "now")
    assert index.ntotal > 30 and copies == [retriever]
    encoders_in(True).build_index(retriever, inputs, tmp_path / "index", "now")  # there already
    assert copies == [retriever]


def test_indexes_of_different_precision_have_different_names(tmp_path, tiny_collection, tiny_retriever_path):
    retriever = load_retriever(tiny_retriever_path, device="cpu")
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path / "cache", show_progress=False)
    on_gpu = Encoders(torch.device("cuda"), Processes.current("cpu"), bf16=True)
    names = {
        index_fingerprint(retriever, inputs, encoders.precision)
        for encoders in (encoders_in(False), encoders_in(True), on_gpu)
    }
    assert len(names) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_attention_for_training_equals_that_of_torch(kind, tmp_path):
    without_dropout = {"dropout_rate": 0.0} if kind == "t5" else {}
    folder = make_model(kind, tmp_path / kind, **without_dropout)
    retriever = load_retriever(folder, pooling="mean", dropout=0.0, device="cpu")
    fast = copy.deepcopy(retriever)
    train_fast_in_bf16(fast, torch.device("cpu"), bf16=True)
    texts = ["deep nets", "a calm otter sees the quiet heron and the lynx", "x"]
    features = retriever.tokenizer(texts, padding=True, return_tensors="pt")
    features = {name: features[name] for name in ("input_ids", "attention_mask")}
    for training in (False, True):
        found = []
        for model in (retriever, fast):
            model.train(training).zero_grad()
            embeddings = embed(model, features, "document")
            embeddings[:, ::3].sum().backward()
            found.append((embeddings, [p.grad for p in model.parameters() if p.grad is not None]))
        (expected, gradients), (embeddings, own) = found
        if training:
            torch.testing.assert_close(embeddings, expected)
            torch.testing.assert_close(own, gradients, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(embeddings, expected)


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_training_under_autocast_has_the_gradients_of_float32_up_to_rounding(kind, tmp_path):
    without_dropout = {"dropout_rate": 0.0} if kind == "t5" else {}
    folder = make_model(kind, tmp_path / kind, **without_dropout)
    retriever = load_retriever(folder, pooling="mean", dropout=0.0, device="cpu").train()
    fast = copy.deepcopy(retriever)
    train_fast_in_bf16(fast, torch.device("cpu"), bf16=True)
    texts = ["deep nets", "a calm otter sees the quiet heron and the lynx", "x"]
    features = retriever.tokenizer(texts, padding=True, return_tensors="pt")
    features = {name: features[name] for name in ("input_ids", "attention_mask")}
    found = []
    for model, bf16 in ((retriever, False), (fast, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            embeddings = embed(model, features, "document")
        embeddings[:, ::3].sum().backward()
        weights = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in weights)
        found.append((embeddings, torch.cat([gradient.flatten() for gradient in weights])))
    (expected, gradients), (embeddings, own) = found
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=0.03)
    assert torch.nn.functional.cosine_similarity(own, gradients, dim=0) > 0.999


def test_sums_between_layers_are_in_bf16_under_autocast_only(tmp_path):
    retriever = load_retriever(make_model("bert", tmp_path / "bert"), dropout=0.0, device="cpu").train()
    for _ in range(2):  # the second call changes nothing
        train_fast_in_bf16(retriever, torch.device("cpu"), bf16=True)
    transformer = retriever[0].model
    assert [len(m._forward_hooks) for m in transformer.modules() if isinstance(m, torch.nn.Embedding)] == [
        1
    ] * 3
    tokens = torch.tensor([[2, 7, 8, 3]])
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            assert transformer(tokens).last_hidden_state.dtype == dtype


def test_attention_for_training_draws_dropout(tmp_path):
    retriever = load_retriever(make_model("bert", tmp_path / "bert"), dropout=0.5, device="cpu").train()
    train_fast_in_bf16(retriever, torch.device("cpu"), bf16=True)
    features = {
        "input_ids": torch.tensor([[2, 7, 8, 3]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.int64),
    }
    torch.manual_seed(0)
    first, second = embed(retriever, features, "query"), embed(retriever, features, "query")
    torch.manual_seed(0)
    assert torch.equal(first, embed(retriever, features, "query")) and not torch.equal(first, second)
