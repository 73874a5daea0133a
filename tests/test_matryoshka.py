"""Matryoshka training: against plain loops, against sentence-transformers, and in every trainer of a retriever."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from test_gradient_cache import KINDS
from tiny_ar2 import settings_of, without_dropout

from hf_ar2.cards.papers import papers_of
from hf_ar2.losses import (
    ListScores,
    adversarial_loss,
    distillation_loss,
    in_batch_contrastive_loss,
    margin_mse_loss,
    matryoshka_loss,
    pairwise_contrastive_loss,
)
from hf_ar2.losses.list_scores import contrastive_inputs
from hf_ar2.losses.matryoshka import cut_embeddings
from hf_ar2.models.joint import embed
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import LTReConfig, RetrieverConfig

DIMS = [5, 2]
QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "max_grad_norm": 0.0}
LOSSES = {
    "contrastive": lambda scores: in_batch_contrastive_loss(**contrastive_inputs(scores)),
    "pairwise": lambda scores: pairwise_contrastive_loss(**contrastive_inputs(scores)),
    "kl": lambda scores: distillation_loss(scores.retriever_scores, scores.ranker_scores, mask=scores.mask),
    "margin_mse": lambda scores: margin_mse_loss(
        scores.retriever_scores, scores.ranker_scores, mask=scores.mask
    ),
    "adversarial": lambda scores: adversarial_loss(
        scores.retriever_scores, scores.ranker_scores, mask=scores.mask
    ),
}


def lists(queries, passages, temperature=0.5):
    """Lists of one positive and one hard negative, all of them different passages, the last one under the mask."""
    rows = torch.arange(passages.shape[0] * 2).view(-1, 2)
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[-1, -1] = False
    return ListScores(
        mask=mask,
        positives=torch.tensor([True, False]).expand(rows.shape),
        query_rows=rows[:, 0],
        passage_rows=rows,
        known_positives=rows[:, :1],
        retriever_scores=torch.einsum("bd,bld->bl", queries, passages) / temperature,
        ranker_scores=torch.linspace(-1, 2, rows.numel(), dtype=torch.float64).view(rows.shape),
        query_embeddings=queries,
        passage_embeddings=passages,
        retriever_temperature=temperature,
    )


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_a_loop_over_the_widths(name, normalise):
    generator = torch.Generator().manual_seed(1)
    raw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 8), (4, 2, 8))]
    found, expected = [], []
    leaves = [tensor.clone().requires_grad_() for tensor in raw]
    loss, _ = matryoshka_loss(lambda s: (LOSSES[name](s), {}), lists(*leaves), DIMS, normalise=normalise)
    loss.backward()
    found = [loss.detach(), *(leaf.grad for leaf in leaves)]

    leaves = [tensor.clone().requires_grad_() for tensor in raw]
    total = torch.zeros((), dtype=torch.float64)
    for width in (8, 5, 2):
        cut = [leaf[..., :width] for leaf in leaves]
        if normalise and width < 8:
            cut = [tensor / tensor.norm(dim=-1, keepdim=True) for tensor in cut]
        total = total + LOSSES[name](lists(*cut)) / 3
    total.backward()
    expected = [total.detach(), *(leaf.grad for leaf in leaves)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert found[1][:-1].abs().min() > 0  # the last list has one passage


@pytest.mark.parametrize("columns", [1, 2])
def test_it_is_sentence_transformers_loss_over_the_number_of_widths(models, columns):
    """MatryoshkaLoss(MultipleNegativesRankingLoss) sums the widths; value and gradient of every parameter."""
    texts = ["the calm lynx", "the brave otter", "a quiet heron", "the eager crane"]
    others = ["drum in the attic", "shell near the valley", "lantern at dawn", "mirror in the castle"]
    hard = ["apple", "basket at night", "candle while it rains", "feather on the island"]
    results = []
    for theirs in (False, True):
        model = without_dropout(load_retriever(models / "tiny-retriever", device="cpu")).train()
        features = [model.preprocess(part) for part in (texts, others, hard)[: columns + 1]]
        if theirs:
            inner = MultipleNegativesRankingLoss(model, scale=20.0)
            loss = MatryoshkaLoss(model, inner, [32, 16, 8])(features, torch.zeros(4)) / 3
        else:
            queries, *passages = [embed(model, part, "query") for part in features]
            rows = torch.arange(4 * columns).view(4, columns)
            scores = ListScores(
                mask=torch.ones_like(rows, dtype=torch.bool),
                positives=torch.zeros_like(rows, dtype=torch.bool),
                query_rows=torch.arange(4),
                passage_rows=rows,
                known_positives=rows[:, :1],
                query_embeddings=queries,
                passage_embeddings=torch.stack(passages, dim=1),
                retriever_temperature=0.05,
            )
            loss, _ = matryoshka_loss(
                lambda s: (LOSSES["contrastive"](s), {}), scores, [16, 8], normalise=True
            )
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-4, atol=1e-5)


def trainer_of(kind, models, output, collection, **settings):
    trainer_class, config = KINDS[kind]
    given = {**settings_of(config), **QUIET, **settings}
    given |= {"num_negatives": 0} if kind == "ltre" else {}
    given |= {"num_rounds": 1, "ranker_steps": 1, "retriever_steps": 1} if kind == "ar2" else {"max_steps": 1}
    return trainer_class(
        without_dropout(load_retriever(models / "tiny-retriever", device="cpu")),
        without_dropout(load_ranker(models / "tiny-ranker", device="cpu")),
        args=config(output_dir=str(output), **given),
        collection=collection,
    )


@pytest.mark.parametrize("kind", ["retriever", "ar2", "rocketqa-v2", "ltre"])
def test_every_trainer_takes_the_mean_over_the_widths_in_one_pass_of_the_encoder(
    kind, models, tmp_path, tiny_collection, monkeypatch
):
    trainer = trainer_of(kind, models, tmp_path, tiny_collection, matryoshka_dims=[16, 8])
    passes, seen = [], []
    trainer.model.retriever.register_forward_hook(lambda *_: passes.append(1))
    original = trainer.list_scores

    def list_scores(outputs, batch):
        seen.append((len(passes), original(outputs, batch)))
        return seen[-1][1]

    monkeypatch.setattr(trainer, "list_scores", list_scores)
    trainer.train()
    count, scores = seen[-1]
    assert len(passes) == count, "the encoder runs once, before the losses"
    phase = trainer.phases.names[-1]
    expected = [
        trainer.phase_loss(phase, cut_embeddings(scores, dim, normalise=True))[0].item()
        for dim in (32, 16, 8)
    ]
    entry = next(e for e in reversed(trainer.state.log_history) if f"loss/{phase}" in e)
    assert entry[f"loss/{phase}"] == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert [entry["loss/at_16"], entry["loss/at_8"]] == pytest.approx(expected[1:], rel=1e-5)
    if kind == "rocketqa-v2":
        terms = entry["loss/distillation"] + entry["loss/ranker"]
        assert terms == pytest.approx(entry["loss/joint"], rel=1e-5)


@pytest.mark.slow
def test_it_teaches_the_first_dimensions(models, tmp_path, tiny_collection):
    values = []
    for dims in (None, [4]):
        trainer = trainer_of(
            "retriever", models, tmp_path / str(dims), tiny_collection, matryoshka_dims=dims, num_negatives=0
        )
        trainer.args.max_steps = 40
        trainer.train()
        trainer.model.retriever.truncate_dim = 4
        values.append(trainer.evaluate()["eval_retriever_mrr@10"])
    assert values[1] > values[0]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        *(
            (dims, "matryoshka_dims=.*expected a list of different whole numbers above 0")
            for dims in ([], [8, 8], [0])
        ),
        *(
            (dims, "matryoshka_dims: found .*expected a list of whole numbers, or None")
            for dims in ([8.0], "8", [True])
        ),
    ],
)
def test_widths_that_cannot_be_meant_are_named(dims, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RetrieverConfig(output_dir=str(tmp_path), matryoshka_dims=dims)


def test_a_width_beyond_the_model_is_an_error_before_training(models, tmp_path, tiny_collection):
    with pytest.raises(ValueError, match="embeddings have 32 dimensions; leave 64 out"):
        trainer_of("retriever", models, tmp_path, tiny_collection, matryoshka_dims=[64, 16])
    with pytest.raises(ValueError, match="cannot be combined with train_centroids=True"):
        LTReConfig(output_dir=str(tmp_path), index_factory="PQ8", train_centroids=True, matryoshka_dims=[16])
    ranker = trainer_of("ranker", models, tmp_path, tiny_collection, matryoshka_dims=[64])
    assert ranker.args.matryoshka_dims == [64]  # of the recipe's retrievers; the ranker's trainer trains none


def test_a_card_names_the_paper():
    assert papers_of("ltre", {"matryoshka_dims": [8]})[-1].arxiv == "2205.13147"
