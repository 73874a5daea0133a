"""Encoding in length-sorted batches gives what encoding row by row gives."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import BertTokenizer

from hf_ar2.encoding.batches import encode_rows, token_budget_batches
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.processes import Processes
from hf_ar2.encoding.tokens import TokenStore

WORDS = [f"w{i}" for i in range(50)]


def tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)})


def random_store(count: int, seed: int = 0, longest: int = 40) -> TokenStore:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenStore(rng.integers(5, 5 + len(WORDS), offsets[-1]).astype(np.int32), offsets)


class BagEncoder:
    """The sum of the token embeddings, padding left out: equal for any padding. Remembers its batches."""

    def __init__(self, dim: int = 8, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(5 + len(WORDS), dim, generator=generator, dtype=torch.float64)
        self.dtype = dtype
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self.shapes.append(tuple(inputs["input_ids"].shape))
        sums = (self.table[inputs["input_ids"]] * inputs["attention_mask"][:, :, None]).sum(1)
        return sums.to(self.dtype)


@pytest.mark.parametrize("max_rows", [None, 7])
def test_batches_hold_every_row_once_within_the_budget(max_rows):
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    batches = token_budget_batches(lengths, budget=500, max_rows=max_rows)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= 500
        assert max_rows is None or len(batch) <= max_rows
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    # little is wasted on padding: rows of one batch are of similar length
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.15 * lengths.sum()


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own():
    batches = token_budget_batches(np.array([3, 50, 40, 3]), budget=10)
    assert [batch.tolist() for batch in batches] == [[1], [2], [0, 3]]
    assert token_budget_batches(np.array([], np.int64), budget=10) == []
    for wrong in ({"budget": 0}, {"budget": 5, "max_rows": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            token_budget_batches(np.array([1]), **wrong)


@pytest.mark.parametrize("stored", [np.float32, np.float16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_are_encoded_into_their_places(stored, computed):
    store, builder = random_store(300), InputBuilder(tokenizer(), 20)
    rows = np.random.default_rng(1).permutation(300)[:200]
    out = np.full((200, 8), np.nan, stored)
    encode = BagEncoder(dtype=computed)
    encode_rows(encode, builder, store, rows, out, budget=256, show_progress=False)
    expected = encode(builder.single(store, rows)).float().numpy().astype(stored)
    assert np.array_equal(out, expected)
    assert all(count * width <= 256 for count, width in encode.shapes[:-1])


def test_ranks_share_the_batches_evenly():
    store, builder = random_store(2000), InputBuilder(tokenizer(), 40)
    whole, shared = np.zeros((2000, 8), np.float32), np.zeros((2000, 8), np.float32)
    alone = BagEncoder()
    encode_rows(alone, builder, store, range(2000), whole, budget=1000, show_progress=False)
    tokens, shapes = [], []
    for rank in range(3):
        encode = BagEncoder()
        encode_rows(
            encode,
            builder,
            store,
            range(2000),
            shared,
            budget=1000,
            rank=rank,
            world_size=3,
            show_progress=False,
        )
        tokens.append(sum(count * width for count, width in encode.shapes))
        shapes += encode.shapes
    assert np.array_equal(shared, whole)
    assert sorted(shapes) == sorted(alone.shapes)  # the same batches, hence the same rounding
    assert max(tokens) - min(tokens) <= 1000


def test_a_rank_leaves_the_others_rows_alone():
    store, builder = random_store(100), InputBuilder(tokenizer(), 40)
    out = np.full((100, 8), -7, np.float32)
    encode_rows(
        BagEncoder(), builder, store, range(100), out, budget=200, rank=1, world_size=2, show_progress=False
    )
    batches = token_budget_batches(builder.single_lengths(store, range(100)), 200)
    others = np.concatenate(batches[0::2])
    assert (out[others] == -7).all() and (out[np.concatenate(batches[1::2])] != -7).any(axis=1).all()


def test_encoding_takes_no_gradient():
    store, builder = random_store(5), InputBuilder(tokenizer(), 40)
    bag = torch.nn.EmbeddingBag(60, 4)
    out = np.empty((5, 4), np.float32)
    encode_rows(lambda inputs: bag(inputs["input_ids"]), builder, store, range(5), out, show_progress=False)
    assert bag.weight.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_name_the_row(value):
    store, builder = random_store(50, longest=5), InputBuilder(tokenizer(), 40)
    bad = next(row for row in range(50) if store.lengths[row] == 1)

    def encode(inputs):
        embeddings = torch.ones(len(inputs["input_ids"]), 8)
        embeddings[inputs["attention_mask"].sum(1) == 3, 5] = value
        return embeddings

    other = next(row for row in range(50) if store.lengths[row] == 4)
    with pytest.raises(
        ValueError, match=f"the embedding of row {bad} has values that are not finite"
    ) as error:
        encode_rows(encode, builder, store, [other, bad], np.empty((2, 8), np.float32), show_progress=False)
    assert "Check the weights for NaN" in str(error.value)


def test_embeddings_beyond_float16_raise_an_error():
    store, builder = random_store(3), InputBuilder(tokenizer(), 40)
    out = np.empty((3, 2), np.float16)
    with pytest.raises(ValueError, match="row 0 has values that are not finite in float16"):
        encode_rows(
            lambda inputs: torch.full((len(inputs["input_ids"]), 2), 7e4),
            builder,
            store,
            [0, 0, 0],
            out,
            show_progress=False,
        )


def test_wrong_shapes_raise_an_error():
    store, builder = random_store(3), InputBuilder(tokenizer(), 40)
    with pytest.raises(ValueError, match=r"out must be \[3, d\]; found shape \(2, 8\)"):
        encode_rows(BagEncoder(), builder, store, range(3), np.empty((2, 8), np.float32), show_progress=False)
    with pytest.raises(ValueError, match=r"embeddings of shape \(3, 8\), expected \(3, 4\)"):
        encode_rows(BagEncoder(), builder, store, range(3), np.empty((3, 4), np.float32), show_progress=False)


def test_progress_counts_tokens(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # elsewhere there is no bar
    store, builder = random_store(100), InputBuilder(tokenizer(), 40)
    total = builder.single_lengths(store, range(100)).sum()
    encode_rows(BagEncoder(), builder, store, range(100), np.empty((100, 8), np.float32), budget=100)
    shown = capsys.readouterr().err
    assert "Encoding" in shown and "tok/s" in shown and f"{total / 1000:.2f}k/{total / 1000:.2f}k" in shown


def wait_for_a_rank_that_is_late(rank: int, store: str) -> None:
    timeout = timedelta(seconds=2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    if rank == 0:
        with pytest.raises(RuntimeError, match="Ranks? 1 failed"):
            Processes.current("cpu").barrier()
    else:
        time.sleep(4)
    os._exit(0)


@pytest.mark.slow
def test_a_time_out_names_the_missing_rank(tmp_path):
    torch.multiprocessing.spawn(wait_for_a_rank_that_is_late, args=(str(tmp_path / "store"),), nprocs=2)
