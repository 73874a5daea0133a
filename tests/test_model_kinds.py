"""The kinds of models that can be trained, searched, saved and loaded elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tiny_models import DECODERS, SMALL, make_model, word_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ByT5Tokenizer,
    T5Config,
    T5EncoderModel,
)

from hf_ar2.collections import Collection
from hf_ar2.encoding.input_lengths import first_tokens
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.index.encoders import Encoders
from hf_ar2.models.joint import score_pairs
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.models.saved import read_ranker, read_retriever
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings
from hf_ar2.settings.text import TextConfig
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer

TEXTS = ["the brave otter guards a shell", "heron", "where does the lynx hide ?"]
LONG = " ".join(["otter"] * 200)
ENCODERS = Encoders(torch.device("cpu"), Processes.current("cpu"), budget=256, show_progress=False)


# ---- Layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "t5"])
@pytest.mark.parametrize("layers", [[0], [0, 2]])
def test_a_model_with_fewer_layers_is_loaded_as_it_was_saved(
    kind: str, layers: list[int], tmp_path: Path
) -> None:
    retriever = load_retriever(make_model(kind, tmp_path / kind), layers=layers, device="cpu")
    retriever.save_pretrained(str(tmp_path / "cut"))
    again = SentenceTransformer(str(tmp_path / "cut"), device="cpu")
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in retriever.parameters())
    np.testing.assert_allclose(again.encode(TEXTS), retriever.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("kind", ["modernbert", "t5"])
def test_layers_without_the_first_one_are_an_error_where_it_differs_from_the_others(
    kind: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"layers=\[1, 2\]: .*keep layer 0"):
        load_retriever(make_model(kind, tmp_path / kind), layers=[1, 2], device="cpu")


# ---- Lengths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "limit"), [("bert", 64), ("roberta", 38), ("xlm-roberta", 38), ("mpnet", 38)]
)
def test_a_text_is_as_long_as_the_model_has_positions(
    kind: str, limit: int, tmp_path: Path, tiny_collection: Collection
) -> None:
    positions = {} if kind == "bert" else {"max_position_embeddings": 40}
    folder = make_model(kind, tmp_path / kind, **positions)
    retriever = load_retriever(folder, similarity="dot", device="cpu")
    assert retriever.max_seq_length == limit
    assert retriever.encode(LONG).shape == (32,)
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path, TextConfig(max_passage_length=None))
    ours = ENCODERS.embed_passages(retriever, inputs, np.arange(3))
    np.testing.assert_allclose(ours, retriever.encode(tiny_collection.passage_texts()[:3]), atol=1e-5)


def test_a_length_beyond_the_positions_is_an_error(tmp_path: Path) -> None:
    folder = make_model("roberta", tmp_path / "roberta")
    assert load_retriever(folder, max_length=78, device="cpu").max_seq_length == 78
    for load in (load_retriever, load_ranker):
        with pytest.raises(ValueError, match="max_length=79: the model has positions for 78 tokens"):
            load(folder, max_length=79, device="cpu")
    # Rotary positions have no end.
    assert load_retriever(make_model("modernbert", tmp_path / "m"), max_length=200).max_seq_length == 200


# ---- Tokenizers written in Python -----------------------------------------------------------------------------------


def test_a_tokenizer_without_a_fast_backend(tmp_path: Path, tiny_collection: Collection) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "byt5")
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    retriever = load_retriever(tmp_path / "byt5", similarity="dot", max_length=40, device="cpu")
    assert not retriever.tokenizer.is_fast
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path, TextConfig(max_passage_length=None))
    rows = np.arange(5)
    passages = tiny_collection.passage_texts()[:5]
    expected = retriever.tokenizer(
        passages, truncation=True, max_length=40, padding=True, return_tensors="pt"
    )
    assert torch.equal(inputs.passages(rows)["input_ids"], expected["input_ids"])
    np.testing.assert_allclose(
        ENCODERS.embed_passages(retriever, inputs, rows), retriever.encode_document(passages), atol=1e-5
    )


def test_a_ranker_with_such_a_tokenizer_cuts_queries(tmp_path: Path, tiny_collection: Collection) -> None:
    """Constructing the system compares its inputs with those of `predict`; searching cuts the query once more."""
    torch.manual_seed(0)
    config = BertConfig(**{**SMALL, "vocab_size": 384}, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "byt5")
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    retriever = load_retriever(make_model("bert", tmp_path / "bert"), device="cpu")
    ranker = load_ranker(tmp_path / "byt5", prompts={"query": "ask: "}, max_length=120, device="cpu")
    assert not ranker.tokenizer.is_fast
    settings = Settings(max_query_length=16, max_pair_length=100, bf16=False)
    system = SearchSystem(retriever, ranker, tiny_collection, settings, tmp_path)
    query, longer = "does the otter hide", "does the otter hide the drum in the garden ?"
    assert first_tokens(longer, ranker.tokenizer, 16, "ask: ") == longer[:16]
    assert first_tokens("no", ranker.tokenizer, 16) == "no"
    assert first_tokens("naïve", ranker.tokenizer, 3) == "naï"  # its third token is half of a letter
    hits, same = system.search(query, 5), system.search(longer, 5)
    scores = {hit.passage_id: hit.ranker_score for hit in hits}
    found = {hit.passage_id: hit.ranker_score for hit in same}
    shared = scores.keys() & found.keys()
    assert shared and all(scores[id] == pytest.approx(found[id], abs=1e-6) for id in shared)


# ---- Weights in half precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_trained_in_float32(
    dtype: str, tmp_path: Path, tiny_collection: Collection
) -> None:
    folder = make_model("bert", tmp_path / "bert", dtype=dtype)
    half = getattr(torch, dtype)
    assert load_retriever(folder, device="cpu").dtype == half
    assert load_retriever(folder, dtype="float32", device="cpu").dtype == torch.float32
    assert load_ranker(load_ranker(folder, device="cpu"), dtype="float32").dtype == torch.float32
    for float32 in (True, False):
        args = RetrieverConfig(
            output_dir=str(tmp_path / "run"),
            float32_weights=float32,
            max_steps=1,
            eval_strategy="no",
            eval_on_start=False,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        trainer = RetrieverTrainer(folder, args=args, collection=tiny_collection)
        assert trainer.model.retriever.dtype == (torch.float32 if float32 else half)


def test_models_that_are_not_trained_keep_their_dtype(tmp_path: Path, tiny_collection: Collection) -> None:
    from hf_ar2.trainers import RankerConfig, RankerTrainer

    folder = make_model("bert", tmp_path / "bert", dtype="bfloat16")
    args = RankerConfig(output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True, bf16=False)
    model = RankerTrainer(folder, folder, args=args, collection=tiny_collection).model
    assert (model.retriever.dtype, model.ranker.dtype) == (torch.bfloat16, torch.float32)


# ---- Heads and modules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "qwen3"])
def test_two_labels_become_their_difference(kind: str, tmp_path: Path, tiny_collection: Collection) -> None:
    folder = make_model(kind, tmp_path / kind, "ForSequenceClassification", num_labels=2)
    pairs = [(TEXTS[2], text) for text in TEXTS]
    both = CrossEncoder(str(folder), device="cpu").predict(pairs)
    ranker = load_ranker(folder, device="cpu")
    np.testing.assert_allclose(ranker.predict(pairs), both[:, 1] - both[:, 0], atol=1e-6)
    ranker.save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_allclose(
        CrossEncoder(str(tmp_path / "saved"), device="cpu").predict(pairs), ranker.predict(pairs), atol=1e-6
    )


def test_three_labels_are_an_error(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "bert", "ForSequenceClassification", num_labels=3)
    with pytest.raises(ValueError, match="3 labels, expected 1"):
        load_ranker(folder, device="cpu")


@pytest.mark.parametrize("separate_towers", [False, True])
def test_the_dimension_is_that_of_the_last_module(separate_towers: bool, tmp_path: Path) -> None:
    encoder = Transformer(str(make_model("bert", tmp_path / "bert")))
    modules = {
        32: [Pooling(32), Normalize()],
        64: [Pooling(32, ("mean", "max"))],
        16: [Pooling(32), Dense(32, 16), Normalize()],
        24: [Pooling(32), Dense(32, 48), Dense(48, 24)],
    }
    for dimension, after in modules.items():
        retriever = SentenceTransformer(modules=[encoder, *after], device="cpu")
        retriever = load_retriever(retriever, separate_towers=separate_towers)
        retriever.save_pretrained(str(tmp_path / str(dimension)))
        assert retriever.encode("otter").shape == (dimension,)
        assert read_retriever(tmp_path / str(dimension)).dimension == dimension


def test_static_embeddings_are_a_clear_error() -> None:
    model = SentenceTransformer(
        modules=[StaticEmbedding(word_tokenizer("$A", "$A $B").backend_tokenizer, embedding_dim=8)],
        device="cpu",
    )
    with pytest.raises(ValueError, match="no transformer, only StaticEmbedding"):
        load_retriever(model)


# ---- Decoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_retrieves_with_its_last_token(
    kind: str, side: str, tmp_path: Path, tiny_collection: Collection
) -> None:
    retriever = load_retriever(
        make_model(kind, tmp_path / kind),
        pooling="lasttoken",
        similarity="dot",
        max_length=6,
        device="cpu",
        processor_kwargs={"padding_side": side},
    )
    tokenizer = retriever.tokenizer
    assert tokenizer.pad_token_id == retriever[0].config.pad_token_id != None  # noqa: E711
    assert tokenizer.padding_side == side
    # Llama has no padding token of its own and gets its end-of-text token.
    assert tokenizer.pad_token == ("</s>" if kind == "llama" else "<pad>")
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path, TextConfig(max_query_length=6))
    rows = np.array([0, 1, 2, 3])
    texts = [tiny_collection.passage_texts()[row] for row in rows]
    np.testing.assert_allclose(
        ENCODERS.embed_passages(retriever, inputs, rows), retriever.encode_document(texts), atol=1e-6
    )
    one_by_one = np.stack([retriever.encode_document(text) for text in texts])
    np.testing.assert_allclose(retriever.encode_document([*texts, "otter"])[:-1], one_by_one, atol=1e-5)
    if kind == "qwen3":  # its tokenizer ends every text, and does so after truncation as well
        assert (inputs.passages(rows)["input_ids"][:, -1] == tokenizer.eos_token_id).all()
    retriever.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(again.encode_document(texts), retriever.encode_document(texts), atol=1e-6)


def test_a_causal_language_model_pools_its_last_token_by_default(tmp_path: Path) -> None:
    folder = make_model("qwen3", tmp_path / "qwen3", "ForCausalLM")
    assert load_retriever(folder, device="cpu")[1].pooling_mode == "lasttoken"
    assert load_retriever(folder, pooling="mean", device="cpu")[1].pooling_mode == "mean"


def test_a_query_has_an_instruction(tmp_path: Path, tiny_collection: Collection) -> None:
    folder = make_model("qwen3", tmp_path / "qwen3", "ForCausalLM")
    retriever = load_retriever(folder, prompts={"query": "where is the : "}, device="cpu")
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path, TextConfig(max_query_length=32))
    ours = ENCODERS.embed_queries(retriever, inputs, np.arange(4))
    theirs = retriever.encode_query(tiny_collection.queries["text"][:4], normalize_embeddings=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForCausalLM"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_ranks(kind: str, head: str, tmp_path: Path, tiny_collection: Collection) -> None:
    """A classification head reads the last token; a causal language model compares "yes" with "no"."""
    ranker = load_ranker(make_model(kind, tmp_path / kind, head), max_length=40, device="cpu")
    assert ranker.num_labels == 1
    queries, passages = np.array([0, 0, 3]), np.array([1, 9, 4])
    inputs = RankerInputs(ranker, tiny_collection, tmp_path, TextConfig(max_pair_length=40))
    with torch.no_grad():
        ours = score_pairs(ranker.eval(), inputs.pairs(queries, passages))
    texts = tiny_collection.passage_texts()
    pairs = [(tiny_collection.queries["text"][q], texts[p]) for q, p in zip(queries, passages, strict=True)]
    np.testing.assert_allclose(ours, ranker.predict(pairs), atol=1e-6)
    np.testing.assert_allclose([ranker.predict(pair) for pair in pairs], ranker.predict(pairs), atol=1e-5)
    ranker.save_pretrained(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(again.predict(pairs), ranker.predict(pairs), atol=1e-6)
    assert read_ranker(tmp_path / "saved").max_length == 40


def test_a_language_model_without_yes_and_no_is_an_error(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "bert")
    tokenizer = load_retriever(folder, device="cpu").tokenizer
    folder = make_model("qwen3", tmp_path / "qwen3", "ForCausalLM")
    tokenizer.save_pretrained(folder)  # knows neither word
    with pytest.raises(ValueError, match="two answers are the same token"):
        load_ranker(folder, device="cpu")


# ---- Truncated embeddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate_towers", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_embeddings_are_cut_at_truncate_dim(
    similarity: str, separate_towers: bool, tmp_path: Path, tiny_collection: Collection
) -> None:
    folder = make_model("bert", tmp_path / "bert")
    retriever = load_retriever(
        folder, similarity=similarity, separate_towers=separate_towers, truncate_dim=8, device="cpu"
    )
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path)
    index = ENCODERS.build_index(retriever, inputs, tmp_path / "index", "now")
    texts = tiny_collection.passage_texts()
    theirs = retriever.encode_document(texts, normalize_embeddings=similarity == "cosine")
    assert index.embeddings.shape == (len(texts), 8)
    np.testing.assert_allclose(index.embeddings, theirs, atol=1e-6)
    retriever.save_pretrained(str(tmp_path / "saved"))
    assert read_retriever(tmp_path / "saved").dimension == 8
    again = load_retriever(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(again.encode_document(texts), retriever.encode_document(texts), atol=1e-6)
