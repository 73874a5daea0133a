"""PAIR's and STAR's losses against float64 loops, exact over processes, and as settings of the retriever's trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny_ar2 import QUIET, losses, make_trainer, without_dropout
from torch import Tensor
from two_processes import in_two_processes, launch_two

from hf_ar2.losses import in_batch_contrastive_loss, pairwise_contrastive_loss, passage_centric_loss
from hf_ar2.models.loading import load_retriever
from hf_ar2.trainers import RetrieverConfig
from hf_ar2.training_lists.stored import save_training_lists

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
TEMPERATURE = 0.5


def batch() -> dict[str, Tensor]:
    """Four queries with two hard negatives each.

    Queries 0 and 2 share a positive, the positive of 1 is known to be relevant to 2, and 1 and 3 are the same query
    with two positives. There are a known positive among another query's hard negatives, and a masked entry.
    """
    generator = torch.Generator().manual_seed(3)
    return {
        "query_embeddings": torch.randn(4, 8, generator=generator, dtype=torch.float64),
        "passage_embeddings": torch.randn(4, 3, 8, generator=generator, dtype=torch.float64),
        "passage_rows": torch.tensor([[10, 11, 20], [20, 12, -1], [10, 13, 11], [30, 20, 14]]),
        "known_positives": torch.tensor([[10, 13, -1], [20, -1, -1], [10, 31, 20], [30, -1, -1]]),
        "query_rows": torch.tensor([5, 6, 7, 6]),
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool(),
    }


def negatives_of(b: int, rest: dict[str, Tensor]) -> list[tuple[int, int]]:
    """Where the passages stand that are negatives of query b, one looked at after the other."""
    rows, known = rest["passage_rows"].tolist(), rest["known_positives"].tolist()
    return [
        (other, column)
        for other in range(4)
        for column in range(3)
        if rest["mask"][other, column] and rows[other][column] not in (rows[b][0], *known[b])
    ]


def passage_centric_loop(
    query_embeddings: Tensor, passage_embeddings: Tensor, form: str, **rest: Tensor
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    positives = rest["passage_rows"][:, 0].tolist()
    for b in range(4):
        anchor = passage_embeddings[b, 0]
        others = [passage_embeddings[place] for place in negatives_of(b, rest)]
        if form == "reference":
            others = [passage_embeddings[i, j] for i, j in negatives_of(b, rest) if j > 0]
            for other in range(4):
                relevant = positives[b] in (positives[other], *rest["known_positives"][other].tolist())
                if not relevant and rest["query_rows"][other] != rest["query_rows"][b]:
                    others.append(query_embeddings[other])
        own = anchor @ query_embeddings[b] / TEMPERATURE
        scores = torch.stack([own, *(anchor @ other / TEMPERATURE for other in others)])
        total = total - own + torch.logsumexp(scores, 0)
    return total / 4


def pairwise_loop(query_embeddings: Tensor, passage_embeddings: Tensor, **rest: Tensor) -> Tensor:
    losses = []
    for b in range(4):
        for place in negatives_of(b, rest):
            pair = torch.stack([passage_embeddings[b, 0], passage_embeddings[place]])
            scores = pair @ query_embeddings[b] / TEMPERATURE
            losses.append(-torch.log_softmax(scores, 0)[0])
    return torch.stack(losses).mean()


def pairwise(query_rows: Tensor | None = None, **given: Tensor) -> Tensor:
    return pairwise_contrastive_loss(**given)


LOSSES: dict[str, tuple[Callable, Callable]] = {
    "reference": (
        partial(passage_centric_loss, form="reference"),
        partial(passage_centric_loop, form="reference"),
    ),
    "paper": (partial(passage_centric_loss, form="paper"), partial(passage_centric_loop, form="paper")),
    "pairwise": (pairwise, pairwise_loop),
}


def value_and_gradients(loss: Callable, **given: Tensor) -> list[Tensor]:
    names = ("query_embeddings", "passage_embeddings")
    leaves = {name: given[name].clone().requires_grad_() for name in names}
    value = loss(**given | leaves)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves.values())]


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_loop(name):
    loss, loop = LOSSES[name]
    found = value_and_gradients(partial(loss, temperature=TEMPERATURE), **batch())
    expected = value_and_gradients(loop, **batch())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert found[1].abs().min() > 0, "every query must be in it, or this test shows less than it says"


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_under_the_mask_counts_for_nothing(name):
    loss, _ = LOSSES[name]
    expected = loss(**batch())
    passages = batch()["passage_embeddings"]
    passages[1, 2] = math.nan
    value, queries, gradient = value_and_gradients(loss, **batch() | {"passage_embeddings": passages})
    torch.testing.assert_close(value, expected)
    assert torch.isfinite(queries).all() and (gradient[1, 2] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_scores_stay_finite_and_float32(name):
    loss, _ = LOSSES[name]
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    passages = torch.tensor([[[0.5, 0.0], [1000.0, 0.0]], [[0.0, 0.5], [0.0, 1000.0]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(query_embeddings=queries, passage_embeddings=passages)
    value.backward()
    assert value.dtype == torch.float32 and value > 100
    assert torch.isfinite(queries.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_query_alone_has_nothing_to_stand_against(name):
    loss, _ = LOSSES[name]
    value, *gradients = value_and_gradients(
        loss, query_embeddings=torch.ones(1, 2), passage_embeddings=torch.ones(1, 1, 2)
    )
    assert value == 0 and all((gradient == 0).all() for gradient in gradients)


def test_the_two_forms_differ_in_what_the_passages_are_held_against():
    """Reference: other queries, but no positives; paper: the other way round."""
    given = batch() | {"passage_rows": None, "known_positives": None, "query_rows": None, "mask": None}
    given = {name: value for name, value in given.items() if value is not None}
    passages = given.pop("passage_embeddings")[:, :1]  # no hard negatives
    positives, queries = passages[:, 0], given["query_embeddings"]
    own = (positives * queries).sum(1)
    others = torch.eye(4, dtype=torch.bool)
    against_queries = positives @ queries.T
    against_positives = torch.where(others, own, positives @ positives.T)
    for form, scores in (("reference", against_queries), ("paper", against_positives)):
        expected = (torch.logsumexp(scores, 1) - own).mean()
        found = passage_centric_loss(**given, passage_embeddings=passages, form=form)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"passage_embeddings": torch.zeros(4, 8)}, r"passage_embeddings have shape \(4, 8\)"),
        ({"query_rows": torch.zeros(3).long()}, r"query_rows have shape \(3,\), expected \(4,\)"),
        ({"passage_rows": None}, "known_positives are compared to passage_rows"),
        ({"form": "code"}, "form is 'code'"),
    ],
)
def test_errors_say_what_was_found(changed, message):
    with pytest.raises(ValueError, match=message):
        passage_centric_loss(**batch() | changed)


# ---- Two processes -------------------------------------------------------------------------------------------------


def loss_and_gradient(name: str, given: dict[str, Tensor]) -> list[Tensor]:
    """The loss of a small encoder, and its gradient in the encoder's weights."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    encoded = {
        "query_embeddings": given["query_embeddings"] @ weight,
        "passage_embeddings": torch.tanh(given["passage_embeddings"] @ weight),
    }
    loss = LOSSES[name][0](**given | encoded, temperature=TEMPERATURE, gather=True)
    loss.backward()
    return [loss.detach(), weight.grad]


def one_of_two_processes(rank: int, folder: str) -> None:
    found = {}
    half = {key: tensor[2 * rank : 2 * rank + 2] for key, tensor in batch().items()}
    for name in LOSSES:
        for key, tensor in zip(("loss", "gradient"), loss_and_gradient(name, half), strict=True):
            dist.all_reduce(tensor)
            found[f"{name}-{key}"] = tensor.numpy() / 2  # the average that DistributedDataParallel takes
    np.savez(f"{folder}/{rank}.npz", **found)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """The processes hold unequally many pairs, so that a mean of their means would be another number."""
    in_two_processes(one_of_two_processes, tmp_path)
    for name in LOSSES:
        loss, gradient = loss_and_gradient(name, batch())
        for rank in range(2):
            found = np.load(tmp_path / f"{rank}.npz")
            np.testing.assert_allclose(found[f"{name}-loss"], loss.numpy(), rtol=1e-12)
            np.testing.assert_allclose(found[f"{name}-gradient"], gradient.numpy(), rtol=1e-10, atol=1e-12)


# ---- The trainer ---------------------------------------------------------------------------------------------------


SETTINGS = {**QUIET, "num_train_epochs": 2, "num_negatives": 1}


def trained(models, output, collection, **settings):
    settings = {**SETTINGS, **settings}
    trainer = make_trainer("retriever", models, output, collection, dropout=False, **settings)
    trainer.train()
    return trainer


def test_pair_weighs_the_two_losses_and_moves_every_parameter(models, tmp_path, tiny_collection):
    before = dict(load_retriever(models / "tiny-retriever", device="cpu").named_parameters())
    trainer = trained(models, tmp_path, tiny_collection, passage_weight=0.1)
    entry = next(entry for entry in trainer.state.log_history if "loss/passage_centric" in entry)
    expected = 0.9 * entry["loss/query_centric"] + 0.1 * entry["loss/passage_centric"]
    assert entry["loss"] == pytest.approx(expected, rel=1e-4)
    unmoved = {n for n, p in trainer.model.retriever.named_parameters() if torch.equal(p, before[n])}
    assert all(".pooler." in name for name in unmoved)


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"contrast": "softmax"}, in_batch_contrastive_loss),
        ({"contrast": "pairwise"}, pairwise_contrastive_loss),
        ({"passage_weight": 1.0, "passage_form": "paper"}, partial(passage_centric_loss, form="paper")),
    ],
)
def test_each_setting_trains_on_the_loss_it_names(models, tmp_path, tiny_collection, settings, loss):
    trainer = trained(models, tmp_path, tiny_collection, max_steps=1, **settings)
    lists = trainer.collator(list(range(4)))
    fresh = without_dropout(load_retriever(models / "tiny-retriever", device="cpu"))
    texts, queries = tiny_collection.corpus["text"], tiny_collection.queries["text"]
    titles = tiny_collection.corpus["title"]
    rows = lists["passage_rows"]
    expected = loss(
        torch.tensor(fresh.encode([queries[row] for row in lists["query_rows"].tolist()])),
        torch.tensor(
            fresh.encode([f"{titles[row]} {texts[row]}".strip() for row in rows.reshape(-1).tolist()])
        ).view(*rows.shape, -1),
        temperature=0.05,
        passage_rows=rows,
        known_positives=lists["known_positives"],
    )
    assert losses(trainer.state.log_history)[0] == pytest.approx(expected.item(), rel=1e-4)


def test_negatives_come_from_stored_lists_where_nothing_is_mined(models, tmp_path, tiny_collection):
    ids = tiny_collection.corpus["id"]
    queries = tiny_collection.queries["id"]
    judged = tiny_collection.judgments("train").positives()
    negatives = {}
    columns = {name: [] for name in ("query_id", "positive_ids", "negative_ids", "kind")}
    for query, passage in zip(judged.query_rows.tolist(), judged.passage_rows.tolist(), strict=True):
        negatives[query] = [(passage + 1) % 60, (passage + 2) % 60]
        columns["query_id"].append(queries[query])
        columns["positive_ids"].append([ids[passage]])
        columns["negative_ids"].append([ids[row] for row in negatives[query]])
        columns["kind"].append("denoised")
    for role in ("positive", "negative"):
        columns[f"{role}_scores"] = [[0.5] * len(listed) for listed in columns[f"{role}_ids"]]
    save_training_lists(tmp_path / "lists", datasets.Dataset.from_dict(columns), {})
    settings = {"train_lists": [str(tmp_path / "lists")], "mine": False}
    trainer = trained(models, tmp_path / "run", tiny_collection, **settings)
    assert not (tmp_path / "run" / "index").exists(), "nothing had to be encoded"
    seen = trainer.collator(list(range(24)))
    for query, negative in zip(seen["query_rows"].tolist(), seen["passage_rows"][:, 1].tolist(), strict=True):
        assert negative in negatives[query]


@pytest.mark.slow
def test_two_processes_reach_the_losses_of_one(models, tmp_path, tiny_collection):
    settings = {name: value for name, value in SETTINGS.items() if name != "output_dir"}
    settings |= {"passage_weight": 0.3, "contrast": "pairwise", "matryoshka_dims": [16]}
    one = trained(models, tmp_path / "one", tiny_collection, **settings)
    settings |= {"per_device_train_batch_size": 2}
    options = ["--trainer", "retriever", "--settings", json.dumps(settings)]
    launch_two(SCRIPT, models, tmp_path / "two", "--no_dropout", *options)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["world_size"] == 2
    np.testing.assert_allclose(losses(two["log"]), losses(one.state.log_history), rtol=1e-4)


def test_what_cannot_be_meant_raises_an_error(tmp_path):
    for settings, message in (
        ({"passage_weight": 1.5}, "passage_weight: found 1.5, expected a number of at least 0"),
        ({"passage_form": "code"}, "expected one of reference, paper"),
        ({"contrast": "triplet"}, "expected one of softmax, pairwise"),
        ({"train_lists": ["lists"]}, "num_negatives=0 leaves the negatives of train_lists unused"),
        ({"num_positives": 2}, "num_positives=2: a contrastive loss has one positive per query"),
    ):
        with pytest.raises(ValueError, match=message):
            RetrieverConfig(output_dir=str(tmp_path), **settings)
