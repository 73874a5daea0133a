"""Inputs built here equal those of sentence-transformers, or constructing a trainer fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny_retriever, make_tiny_tokenizer, write_recipe
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from hf_ar2.collections import Collection
from hf_ar2.command_line.main import main
from hf_ar2.encoding import RankerInputs, RetrieverInputs, probe
from hf_ar2.encoding.length_limits import query_truncation_warning, truncations
from hf_ar2.encoding.probe import check_inputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.encoders import Encoders
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.models.saved import read_retriever
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings
from hf_ar2.settings.text import TextConfig
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer
from hf_ar2.training_lists.stored import load_training_lists

ROWS = np.arange(12)
ENCODERS = Encoders(torch.device("cpu"), Processes.current("cpu"), show_progress=False)
CHAT = (
    "{% for m in messages if m.role == 'system' %}{{ m.content }} {% endfor %}"
    "raven : {% for m in messages if m.role == 'query' %}{{ m.content }}{% endfor %} "
    "otter : {% for m in messages if m.role == 'document' %}{{ m.content }}{% endfor %} where ?"
)


def embeddings(retriever: SentenceTransformer, collection: Collection, cache: Path, texts: TextConfig) -> Any:
    """What an index and a search hold: of queries and of passages."""
    inputs = RetrieverInputs(retriever, collection, cache, texts, show_progress=False)
    return (
        ENCODERS.embed_queries(retriever, inputs, ROWS),
        ENCODERS.embed_passages(retriever, inputs, ROWS),
    )


def saved_embeddings(folder: Path, collection: Collection, texts: TextConfig) -> Any:
    """What sentence-transformers makes of the saved model."""
    model = SentenceTransformer(str(folder), device="cpu")
    return (
        model.encode_query(list(collection.queries["text"][:12]), normalize_embeddings=True),
        model.encode_document(texts.passage_texts(collection)[:12], normalize_embeddings=True),
    )


@pytest.mark.parametrize(
    ("stored", "given", "query", "document"),
    [
        ({"query": "what ", "passage": "the "}, None, "what ", "the "),
        ({"query": "what ", "corpus": "the "}, None, "what ", "the "),
        ({"query": "what ", "document": "a ", "passage": "the "}, None, "what ", "a "),
        ({"query": "what "}, None, "what ", ""),
        ({}, {"query": "what ", "passage": "the "}, "what ", "the "),
        ({"document": "a "}, {"passage": "the "}, "", "the "),
        ({"query": "what ", "document": "a "}, {"query": "where "}, "where ", "a "),
    ],
)
def test_a_saved_model_has_its_prompts_where_others_look_for_them(
    stored: dict[str, str],
    given: dict[str, str] | None,
    query: str,
    document: str,
    tmp_path: Path,
    tiny_collection: Collection,
) -> None:
    folder = make_tiny_retriever(tmp_path / "tiny")
    config = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**config, "prompts": stored}))
    retriever = load_retriever(folder, prompts=given, device="cpu")
    texts = TextConfig(max_passage_length=64)
    check_inputs(retriever, None, tiny_collection, texts)
    retriever.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    expected = {task: text for task, text in (("query", query), ("document", document)) if text}
    found = read_retriever(tmp_path / "saved").prompts
    assert {task: found[task] for task in ("query", "document") if task in found} == expected
    ours = embeddings(retriever, tiny_collection, tmp_path / "cache", texts)
    for mine, theirs in zip(ours, saved_embeddings(tmp_path / "saved", tiny_collection, texts), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("prompts", ["query: ", {"query": 3}, {"doc": "passage: "}])
def test_prompts_that_nothing_reads_are_an_error(prompts: Any, tiny_retriever_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts: "):
        load_retriever(tiny_retriever_path, prompts=prompts, device="cpu")


@pytest.mark.parametrize("pooling", ["mean", "lasttoken", "max"])
def test_a_pooling_may_leave_out_the_prompt(
    pooling: str, tmp_path: Path, tiny_retriever_path: Path, tiny_collection: Collection
) -> None:
    transformer: Any = SentenceTransformer(str(tiny_retriever_path), device="cpu")[0]
    retriever = SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode=pooling, include_prompt=False)],
        prompts={"query": "what is ", "document": "the "},
        similarity_fn_name="cosine",
        device="cpu",
    )
    texts = TextConfig(max_passage_length=64)
    retriever.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    assert not read_retriever(tmp_path / "saved").plain  # AutoModel alone does not leave it out
    ours = embeddings(load_retriever(retriever), tiny_collection, tmp_path / "cache", texts)
    for mine, theirs in zip(ours, saved_embeddings(tmp_path / "saved", tiny_collection, texts), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    check_inputs(retriever, None, tiny_collection, texts)


def test_vectors_may_be_cut_to_fewer_dimensions(
    tmp_path: Path, tiny_retriever_path: Path, tiny_collection: Collection
) -> None:
    retriever = load_retriever(tiny_retriever_path, truncate_dim=8, device="cpu")
    check_inputs(retriever, None, tiny_collection, TextConfig())
    retriever.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    ours = embeddings(retriever, tiny_collection, tmp_path / "cache", TextConfig())
    for mine, theirs in zip(
        ours, saved_embeddings(tmp_path / "saved", tiny_collection, TextConfig()), strict=True
    ):
        assert mine.shape == (12, 8)
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def chat_ranker(folder: Path) -> CrossEncoder:
    """A causal language model that reads a pair through a chat template, as Qwen3-Reranker does."""
    torch.manual_seed(0)
    words = [*make_tiny_tokenizer().get_vocab(), "yes", "no", ":"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=96,
        chat_template=CHAT,
    )
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), **size, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    score = LogitScore(words.index("yes"), words.index("no"))
    return CrossEncoder(
        modules=[Transformer(str(folder), transformer_task="text-generation"), score],
        activation_fn=torch.nn.Identity(),
        device="cpu",
    )


@pytest.mark.parametrize("prompt", ["", "what does "])
@pytest.mark.parametrize("kind", ["encoder", "chat"])
@pytest.mark.parametrize("length", [20, 64])
def test_a_ranker_reads_what_predict_reads(
    prompt: str, kind: str, length: int, tmp_path: Path, tiny_ranker_path: Path, tiny_collection: Collection
) -> None:
    if kind == "chat":
        ranker = chat_ranker(tmp_path / "chat")
    else:
        ranker = CrossEncoder(str(tiny_ranker_path), device="cpu")
    ranker = load_ranker(ranker, prompts={"query": prompt} if prompt else None)
    texts = TextConfig(max_query_length=32, max_pair_length=length)
    inputs = RankerInputs(ranker, tiny_collection, tmp_path / "cache", texts, show_progress=False)
    scores = ENCODERS.rank(ranker, inputs, ROWS, ROWS[:, None])[:, 0]
    pairs = list(zip(tiny_collection.queries["text"][:12], tiny_collection.passage_texts()[:12], strict=True))
    options = {"processing_kwargs": {"text": {"max_length": inputs.max_pair_length, "truncation": True}}}
    np.testing.assert_allclose(scores, ranker.predict(pairs, **options), atol=1e-5)
    lengths = inputs.pairs(ROWS, ROWS)["attention_mask"].sum(1).numpy()
    np.testing.assert_array_equal(inputs.pair_lengths(ROWS, ROWS), lengths)
    check_inputs(None, ranker, tiny_collection, texts)
    ranker.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    saved = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(scores, saved.predict(pairs, **options), atol=1e-5)


def test_a_search_uses_prompts_of_both_models(
    tmp_path: Path, tiny_retriever_path: Path, tiny_ranker_path: Path, tiny_collection: Collection
) -> None:
    retriever = load_retriever(
        tiny_retriever_path, prompts={"query": "what ", "passage": "the "}, device="cpu"
    )
    ranker = load_ranker(tiny_ranker_path, prompts={"query": "where "}, device="cpu")
    settings = Settings(max_query_length=5, rerank_depth=5, bf16=False)
    system = SearchSystem(retriever, ranker, tiny_collection, settings, tmp_path)
    query = tiny_collection.judgments("test").query_rows[:1]
    hits = system.search(tiny_collection.queries[int(query[0])]["text"], k=5)
    rankings = system.rankings("test")
    assert {hit.passage_id for hit in hits} == set(
        tiny_collection.corpus[rankings["retriever"][0][0][:5].tolist()]["id"]
    )
    scores = ENCODERS.rank(
        ranker,
        system.ranker_inputs,
        query,
        np.array([[tiny_collection.corpus["id"].index(hits[0].passage_id)]]),
    )
    np.testing.assert_allclose(hits[0].ranker_score, scores[0, 0], atol=1e-5)


def test_lengths_are_those_of_the_text(tmp_path: Path, tiny_collection: Collection) -> None:
    folder = make_tiny_retriever(tmp_path / "tiny")  # reads 64 tokens
    texts = TextConfig(max_query_length=10, max_passage_length=12)
    shares = []
    for name, prompts in (("without", None), ("with", {"query": "where does the ", "document": "the "})):
        retriever = load_retriever(folder, prompts=prompts, device="cpu")
        inputs = RetrieverInputs(retriever, tiny_collection, tmp_path / name, texts, show_progress=False)
        shares.append([cut.share for cut in truncations(inputs)])
        added = (3, 1) if prompts else (0, 0)
        assert (inputs.max_query_length, inputs.max_passage_length) == (10 + added[0], 12 + added[1])
    assert shares[0] == shares[1]
    # Up to the model's own limit, and what no longer fits is reported.
    long = load_retriever(folder, prompts={"query": "where " * 55}, device="cpu")
    inputs = RetrieverInputs(long, tiny_collection, tmp_path / "long", texts, show_progress=False)
    assert inputs.max_query_length == 64
    assert "% of queries" in (query_truncation_warning(truncations(inputs)) or "")
    full = load_retriever(folder, prompts={"query": "where " * 62}, device="cpu")
    with pytest.raises(ValueError, match=r"takes 62 tokens.* no space for text within 64"):
        RetrieverInputs(full, tiny_collection, tmp_path / "full", texts, show_progress=False)


def test_a_model_without_a_limit_needs_a_setting(
    tmp_path: Path, tiny_retriever_path: Path, tiny_collection: Collection
) -> None:
    retriever = load_retriever(tiny_retriever_path, device="cpu")
    retriever.max_seq_length = 10**30
    unlimited = TextConfig(max_passage_length=None)
    with pytest.raises(ValueError, match="set max_passage_length"):
        RetrieverInputs(retriever, tiny_collection, tmp_path, unlimited, show_progress=False)
    limited = TextConfig(max_passage_length=9)
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path, limited, show_progress=False)
    assert inputs.passages(ROWS)["input_ids"].shape[1] == 9


def test_a_passage_template_joins_title_and_text(tmp_path: Path, tiny_collection: Collection) -> None:
    texts = TextConfig(passage_template="otter : {title} | raven : {text}")
    joined = texts.passage_texts(tiny_collection)
    corpus = tiny_collection.corpus
    assert joined == [f"otter : {row['title']} | raven : {row['text']}" for row in corpus]
    assert joined == [texts.passage_text(row["title"], row["text"]) for row in corpus]
    retriever = load_retriever(make_tiny_retriever(tmp_path / "tiny"), device="cpu")
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path / "cache", texts, show_progress=False)
    expected = retriever.tokenizer(joined[:12], padding=True, return_tensors="pt")["input_ids"]
    assert torch.equal(inputs.passages(ROWS)["input_ids"], expected)
    plain = RetrieverInputs(retriever, tiny_collection, tmp_path / "cache", show_progress=False)
    assert plain.passage_store.fingerprint != inputs.passage_store.fingerprint


@pytest.mark.parametrize(
    "template", ["", "{title}", "{text} {body}", "{text", "{}", "{text.real.x}", "{0}{text}"]
)
def test_a_template_without_the_text_is_an_error(template: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"passage_template=.*expected a text with \{text\}"):
        RetrieverConfig(output_dir=str(tmp_path), passage_template=template, report_to="none")


def test_a_recipe_takes_prompts(tmp_path: Path) -> None:
    recipe = {
        "collection": "x",
        "models": {"e5": {"model": "some/model", "prompts": {"query": "query: "}}},
        "stages": {"warm": {"trainer": "retriever", "retriever": "e5"}},
    }
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    given = {"models.e5.prompts.document": "passage: "}
    assert load_recipe(path, given).models["e5"]["prompts"] == {"query": "query: ", "document": "passage: "}
    given = {"models.e5.prompts": "{query: 'q: '}", "passage_template": "title: {title} | text: {text}"}
    read = load_recipe(path, given | {"args.title_separator": " [SEP] "})
    assert read.models["e5"]["prompts"] == {"query": "q: "}
    assert read.texts.passage_template == "title: {title} | text: {text}"
    assert read.texts.title_separator == " [SEP] "
    assert load_recipe(path, {"title_separator": "' - '"}).texts.title_separator == " - "
    for wrong, match in (
        ({"models.e5.prompts": "'query: '"}, "models.e5.prompts: found 'query: ', expected a mapping"),
        ({"passage_template": "title"}, "args: passage_template='title'"),
    ):
        with pytest.raises(RecipeError, match=match):
            load_recipe(path, wrong)


# ---- The check at construction --------------------------------------------------------------------------------------


def test_a_trainer_rejects_a_model_whose_inputs_differ(
    tmp_path: Path, tiny_retriever_path: Path, tiny_collection: Collection
) -> None:
    args = RetrieverConfig(output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True)
    # A chat template around every text
    retriever = load_retriever(tiny_retriever_path, device="cpu")
    transformer: Any = retriever[0]
    transformer.tokenizer.chat_template = "otter {{ messages[0].content }} raven"
    transformer.modality_config["message"] = {**transformer.modality_config["text"], "format": "flat"}
    with pytest.raises(ValueError, match=r"encode_query.*token ids here.*sentence-transformers: .*'message'"):
        RetrieverTrainer(retriever, args=args, collection=tiny_collection)
    # Vectors that only `encode_document` changes
    retriever = load_retriever(tiny_retriever_path, device="cpu")
    encode = retriever.encode_document
    retriever.encode_document = lambda texts, **options: 2 * encode(texts, **options)
    with pytest.raises(ValueError, match=r"encode_document for '.*' give \[.*\] here, and \["):
        RetrieverTrainer(retriever, args=args, collection=tiny_collection)
    with pytest.raises(ValueError, match="encode_document"):
        SearchSystem(retriever, None, tiny_collection, Settings(), tmp_path / "search")
    assert not (tmp_path / "run" / "cache").exists()


def test_a_model_is_checked_once_and_left_as_it_is(
    tiny_retriever_path: Path,
    tiny_ranker_path: Path,
    tiny_collection: Collection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retriever = load_retriever(tiny_retriever_path, device="cpu")
    ranker = load_ranker(tiny_ranker_path, device="cpu")
    retriever.train()
    modes = [module.training for module in (*retriever.modules(), *ranker.modules())]
    state = torch.get_rng_state()
    check_inputs(retriever, ranker, tiny_collection, TextConfig())
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in (*retriever.modules(), *ranker.modules())]
    monkeypatch.setattr(probe, "_probe_collection", lambda *_: pytest.fail("checked again"))
    check_inputs(retriever, ranker, tiny_collection, replace(TextConfig()))


@pytest.mark.slow
def test_prompts_of_the_command_line_are_those_of_a_saved_model(
    tmp_path: Path, tiny_retriever_path: Path, tiny_ranker_path: Path, tiny_collection: Collection
) -> None:
    """`encode`, `index`, `evaluate` and `score` give the same with saved prompts and with those of the command."""
    tiny_collection.save(tmp_path / "data")
    prompts = {"query": "what ", "document": "the "}
    saved = {"retriever": tmp_path / "retriever", "ranker": tmp_path / "ranker"}
    load_retriever(tiny_retriever_path, prompts=prompts, device="cpu").save_pretrained(
        str(saved["retriever"])
    )
    load_ranker(tiny_ranker_path, prompts={"query": "where "}, device="cpu").save_pretrained(
        str(saved["ranker"])
    )
    bare = {"retriever": tiny_retriever_path, "ranker": tiny_ranker_path}
    data, texts = str(tmp_path / "data"), ["--query_prompt", "what ", "--passage_prompt", "the "]
    options = [*texts, "--ranker_prompt", "where "]
    found: dict[str, Any] = {}
    for name, named, given in (("saved", saved, []), ("given", bare, options), ("without", bare, [])):
        out, encoding = tmp_path / name, given[:4]
        pair = ["--retriever", str(named["retriever"]), "--ranker", str(named["ranker"])]
        assert main(["encode", str(named["retriever"]), data, str(out / "vectors"), *encoding]) == 0
        assert main(["index", str(named["retriever"]), data, str(out / "index"), *encoding]) == 0
        assert main(["evaluate", *pair, "--collection", data, "--output", str(out), *given]) == 0
        assert main(["score", data, *pair, "--output", str(out / "lists"), "--depth", "4", *given]) == 0
        found[name] = (
            np.load(out / "vectors" / "embeddings.npy"),
            CorpusIndex.open(out / "index", device="cpu").embeddings,
            [line.split()[4] for line in (out / "test.retriever.trec").read_text().splitlines()],
            [line.split()[4] for line in (out / "test.ranker.trec").read_text().splitlines()],
            np.concatenate(load_training_lists(out / "lists").dataset["positive_scores"]),
        )
    for given, expected, without in zip(
        *(found[name] for name in ("given", "saved", "without")), strict=True
    ):
        np.testing.assert_allclose(np.asarray(given, float), np.asarray(expected, float), atol=1e-6)
        # The scores of a ranker without training hardly differ between pairs.
        assert np.abs(np.asarray(given, float) - np.asarray(without, float)).max() > 5e-6
