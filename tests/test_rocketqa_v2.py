"""RocketQAv2's promises: both models train on the same lists, by losses one can write out; exact in every setting."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ar2 import QUIET, losses, make_trainer, moved, settings_of, snapshot, without_dropout
from two_processes import launch_two

from hf_ar2.models.joint import embed, score_pairs
from hf_ar2.models.loading import load_ranker
from hf_ar2.trainers import (
    AR2Config,
    RankerConfig,
    RankerTrainer,
    RocketQAv2Config,
)
from hf_ar2.trainers.rocketqa_v2 import compared
from hf_ar2.training_lists.list_sampler import ListSampler
from hf_ar2.training_lists.pool import CandidatePool

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
SETTINGS = {**settings_of(RocketQAv2Config), **QUIET, "num_train_epochs": 2}


def joint(models, output, collection, dropout=True, **settings):
    settings = {**SETTINGS, **settings}
    return make_trainer("rocketqa-v2", models, output, collection, dropout=dropout, **settings)


def used(names):
    """Mean pooling never reads BERT's own pooler."""
    return {name for name in names if not (name.startswith("retriever.") and ".pooler." in name)}


# ---- What a step computes ------------------------------------------------------------------------------------------


def scores_one_by_one(trainer, batch):
    """Scores [B, L] of retriever and ranker, each text and pair encoded by itself."""
    retriever, ranker = trainer.retrieval.retriever_inputs, trainer.retrieval.ranker_inputs
    queries = trainer.collator.lists.pool.query_rows[trainer.collator.lists.indices(np.arange(4))]
    both = []
    for query, passages in zip(queries, batch["passage_rows"].numpy(), strict=True):
        q = embed(trainer.model.retriever, retriever.queries(np.array([query])), "query")[0]
        row = [
            (
                q @ embed(trainer.model.retriever, retriever.passages(np.array([passage])), "document")[0],
                score_pairs(trainer.model.ranker, ranker.pairs(np.array([query]), np.array([passage])))[0],
            )
            for passage in passages
        ]
        both.append([torch.stack(scores) for scores in zip(*row, strict=True)])
    return [torch.stack(scores) for scores in zip(*both, strict=True)]


@pytest.mark.parametrize("settings", [{}, {"preset": "paper"}, {"ranker_loss": "pointwise"}])
def test_loss_and_gradients_are_those_written_out(models, tmp_path, tiny_collection, settings):
    weight = 3.0
    trainer = joint(
        models,
        tmp_path,
        tiny_collection,
        dropout=False,
        distillation_weight=weight,
        retriever_temperature=0.1,
        ranker_temperature=0.5,
        **settings,
    )
    trainer.begin_round()
    batch = trainer.collator([0, 1, 2, 3])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: p.grad for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()

    retriever, ranker = scores_one_by_one(trainer, batch)
    p = torch.softmax(retriever / 0.1, dim=1)
    r = torch.softmax(ranker / 0.5, dim=1)
    if settings.get("preset") == "paper":
        distillation = sum((p[i] * (p[i] / r[i]).log()).sum() for i in range(4)) / 4
    else:
        r = r.detach()
        distillation = sum((r[i] * (r[i] / p[i]).log()).sum() for i in range(4)) / (4 * 4)
    if settings.get("ranker_loss") == "pointwise":
        signs = torch.tensor([1.0, -1.0, -1.0, -1.0])
        supervised = -torch.log(torch.sigmoid(ranker * signs)).mean()
    else:
        supervised = -sum(torch.log_softmax(ranker[i], 0)[0] for i in range(4)) / 4
    expected = weight * distillation + supervised
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=name)
    assert sum(gradient is not None for gradient in found.values()) == len(used(found))


def test_both_models_train_in_every_step(models, tmp_path, tiny_collection):
    trainer = joint(models, tmp_path, tiny_collection, max_steps=1)
    before = snapshot(trainer)
    trainer.train()
    # The head's bias moves all scores of a list alike, which no listwise loss can feel.
    assert moved(trainer, before) | {"ranker.0.model.classifier.bias"} == used(before)


def test_a_frozen_ranker_teaches_without_dropout_and_stays(models, tmp_path, tiny_collection):
    trainer = joint(models, tmp_path, tiny_collection, ranker_frozen=True)
    before = snapshot(trainer)
    trainer.train()
    assert moved(trainer, before) == used(name for name in before if name.startswith("retriever."))

    trainer.model.train()
    batch = trainer.collator([0, 1, 2, 3])
    scores = [
        trainer.model(pairs=batch["pairs"], teacher=trainer.phases["joint"].teacher)["pair_scores"]
        for _ in "ab"
    ]
    assert torch.equal(*scores) and not scores[0].requires_grad


def test_the_ranker_teaches_from_the_scores_it_learns_on(models, tmp_path, tiny_collection):
    """One forward of the ranker per step, dropout and all: with equal scores its KL to itself would be 0."""
    trainer = joint(models, tmp_path, tiny_collection)
    trainer.begin_round()
    calls = []
    forward = trainer.model.forward
    trainer.model.forward = lambda **inputs: calls.append(inputs["teacher"]) or forward(**inputs)
    trainer.compute_loss(trainer.model, trainer.collator([0, 1, 2, 3]))
    assert calls == [None]


def test_training_brings_the_models_together(models, tmp_path, tiny_collection):
    trainer = joint(
        models, tmp_path, tiny_collection, num_train_epochs=20, retriever_temperature=0.05, logging_steps=20
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "agreement" in entry]
    assert log[-1]["loss/ranker"] < 0.7 * log[0]["loss/ranker"]
    assert log[-1]["agreement"] > log[0]["agreement"] + 0.2


# ---- Schedules -----------------------------------------------------------------------------------------------------


def test_the_rate_is_constant_unless_said_and_each_model_may_have_its_own(models, tmp_path, tiny_collection):
    def rates(name, **settings):
        trainer = joint(models, tmp_path / name, tiny_collection, max_steps=4, **settings)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "lr/ranker" in entry]
        return [e["lr/retriever"] for e in log], [e["lr/ranker"] for e in log]

    assert rates("same") == ([1e-3] * 4, [1e-3] * 4)
    retriever, ranker = rates(
        "own", ranker_learning_rate=1e-4, ranker_lr_scheduler_type="linear", ranker_warmup_steps=2
    )
    assert retriever == [1e-3] * 4
    np.testing.assert_allclose(ranker, [0, 0.5e-4, 1e-4, 0.5e-4])


def test_candidates_are_mined_once_unless_refreshed(models, tmp_path, tiny_collection):
    def rounds(**settings):
        trainer = joint(models, tmp_path / str(settings), tiny_collection, **settings)
        trainer.train()
        return trainer.pool.round, sum("pool/queries" in entry for entry in trainer.state.log_history)

    assert rounds() == (0, 1)
    assert rounds(refresh=True) == (1, 2)


# ---- The same run in other ways ------------------------------------------------------------------------------------


def test_accumulated_steps_equal_one_large_batch(models, tmp_path, tiny_collection):
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    curves = []
    for name, settings in {"whole": {}, "parts": parts}.items():
        trainer = joint(models, tmp_path / name, tiny_collection, dropout=False, preset="paper", **settings)
        trainer.train()
        curves.append(losses(trainer.state.log_history))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)


def run_script(models, output, *options, settings):
    command = [sys.executable, str(SCRIPT), str(models), str(output), "--trainer", "rocketqa-v2"]
    command += ["--settings", json.dumps({**SETTINGS, **settings}), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_two_processes_reach_the_losses_of_one(models, tmp_path, tiny_collection):
    one = joint(models, tmp_path / "one", tiny_collection, dropout=False)
    one.train()
    settings = json.dumps({**SETTINGS, "per_device_train_batch_size": 2})
    options = ["--trainer", "rocketqa-v2", "--settings", settings, "--no_dropout"]
    launch_two(SCRIPT, models, tmp_path / "two", *options)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["world_size"] == 2
    np.testing.assert_allclose(losses(two["log"]), losses(one.state.log_history), rtol=1e-4)
    names = ("kl_ranker_to_retriever", "entropy/ranker", "agreement", "loss/distillation")
    for name in names:
        curves = [[e[name] for e in log if name in e] for log in (two["log"], one.state.log_history)]
        assert len(curves[0]) == 12
        np.testing.assert_allclose(*curves, rtol=1e-3, err_msg=name)


def test_a_run_that_was_killed_ends_where_the_uninterrupted_one_does(models, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "refresh": True}
    whole = run_script(models, tmp_path / "whole", settings=settings)
    assert whole.returncode == 0, whole.stderr
    killed = run_script(models, tmp_path / "killed", "--kill_after", "9", settings=settings)
    assert killed.returncode == -signal.SIGKILL
    resumed = run_script(models, tmp_path / "killed", "--resume", settings=settings)
    assert resumed.returncode == 0, resumed.stderr
    expected, found = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    )
    assert found["weights"] == expected["weights"]
    assert losses(found["log"]) == losses(expected["log"])


# ---- What is logged and said ---------------------------------------------------------------------------------------


def test_the_comparison_of_two_models_is_that_of_a_loop():
    retriever = torch.tensor([[1.0, 0.0, -1.0], [2.0, 2.5, 0.0]])
    ranker = torch.tensor([[0.5, 1.0, 0.0], [0.0, 3.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = dict.fromkeys(compared(retriever, ranker, mask), 0.0)
    for i in range(2):
        p = torch.softmax(retriever[i][mask[i]], 0).tolist()
        r = torch.softmax(ranker[i][mask[i]], 0).tolist()
        for a, b in zip(p, r, strict=True):
            expected["kl_retriever_to_ranker"] += a * math.log(a / b) / 2
            expected["kl_ranker_to_retriever"] += b * math.log(b / a) / 2
            expected["entropy/retriever"] -= a * math.log(a) / 2
            expected["entropy/ranker"] -= b * math.log(b) / 2
        expected["agreement"] += (p.index(max(p)) == r.index(max(r))) / 2
        expected["list_length"] += len(p) / 2
    found = {name: value.item() for name, value in compared(retriever, ranker, mask).items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected["agreement"] == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ranker_temperature": 1e-5}, "The ranker's softmax has collapsed.*raise ranker_temperature"),
        ({"ranker_temperature": 1e6, "retriever_temperature": 1e6}, "is 0 .*both softmaxes are flat"),
        ({}, None),
    ],
)
def test_a_ranker_that_teaches_nothing_is_named_once(
    models, tmp_path, tiny_collection, caplog, settings, said
):
    trainer = joint(models, tmp_path, tiny_collection, **settings)
    trainer.train()
    messages = [r.message for r in caplog.records if r.name.endswith("rocketqa_v2")]
    if said is None:
        assert not messages
    else:
        (message,) = messages
        assert re.search(said, message)


def test_scores_that_are_not_finite_are_named_with_their_model(models, tmp_path, tiny_collection):
    trainer = joint(models, tmp_path, tiny_collection)
    with torch.no_grad():
        trainer.model.ranker.model.classifier.bias.fill_(math.nan)
    with pytest.raises(
        ValueError, match="step 1, joint: the loss is nan; the ranker's scores are not finite"
    ):
        trainer.train()


def test_what_cannot_work_raises_an_error_with_the_reason(tmp_path):
    for settings, message in [
        ({"preset": "code"}, "preset='code': expected one of reference, paper"),
        ({"ranker_loss": "pairwise"}, "ranker_loss='pairwise': expected one of listwise, pointwise"),
        ({"distillation_weight": 0.0}, "the retriever's only loss"),
        ({"num_negatives": 0}, "nothing to distil"),
        ({"num_positives": 0}, "num_positives: found 0, expected a whole number of at least 1"),
        ({"mine": False}, "name them in train_lists"),
        ({"ranker_lr_scheduler_type": "polynomial"}, "ranker_lr_scheduler_type='polynomial'"),
    ]:
        with pytest.raises(ValueError, match=message):
            RocketQAv2Config(output_dir=str(tmp_path), **settings)
    with pytest.raises(ValueError, match="AR2's losses take one positive"):
        AR2Config(output_dir=str(tmp_path), num_positives=2)
    with pytest.raises(ValueError, match="ranker_loss='pairwise'"):
        RankerConfig(output_dir=str(tmp_path), ranker_loss="pairwise")


# ---- Lists with several positives ----------------------------------------------------------------------------------


def pool_of(positives, candidates):
    rows = np.array(candidates, np.int32)
    return CandidatePool(
        query_rows=np.arange(len(rows), dtype=np.int64),
        passage_rows=rows,
        scores=np.zeros(rows.shape, np.float32),
        positive_rows=np.array(positives, np.int32),
        positive_scores=np.zeros((len(rows), len(positives[0])), np.float32),
    )


def test_lists_take_as_many_positives_as_there_are():
    pool = pool_of([[7, 8, 9], [5, -1, -1]], [[0, 1, 2], [0, 1, 2]])
    sampler = ListSampler(pool, corpus_size=10, num_negatives=2, seed=0, num_positives=2)
    lists = sampler(np.arange(200))
    many = lists.query_rows == 0
    assert many.sum() == 100
    assert lists.mask[many].all() and (lists.positives == [True, True, False, False])[many].all()
    # Every ordered pair of different positives, each about as often.
    pairs, counts = np.unique(lists.passage_rows[many, :2], axis=0, return_counts=True)
    assert [list(pair) for pair in pairs] == [[7, 8], [7, 9], [8, 7], [8, 9], [9, 7], [9, 8]]
    assert counts.min() > 5
    assert (lists.passage_rows[~many, :2] == [5, -1]).all()
    assert (lists.mask[~many] == [True, False, True, True]).all()
    assert (lists.positives[~many] == [True, False, False, False]).all()

    in_order = ListSampler(
        pool, corpus_size=10, num_negatives=2, seed=0, num_positives=3, first_positive=True
    )
    lists = in_order(np.arange(20))
    assert (lists.passage_rows[lists.query_rows == 0, :3] == [7, 8, 9]).all()


def test_the_first_positive_and_the_negatives_do_not_depend_on_how_many_there_are():
    pool = pool_of([[7, 8, 9], [5, 6, -1]], [[0, 1, 2], [0, 1, 2]])
    one, three = (
        ListSampler(pool, corpus_size=10, num_negatives=2, seed=4, num_positives=n)(np.arange(50))
        for n in (1, 3)
    )
    assert (one.passage_rows[:, 0] == three.passage_rows[:, 0]).all()
    assert (one.passage_rows[:, 1:] == three.passage_rows[:, 3:]).all()


@pytest.mark.parametrize("form", ["listwise", "pointwise"])
def test_a_ranker_learns_from_lists_with_several_positives(models, tmp_path, tiny_collection, form):
    """Each of two positives against the negatives, the other positive left out."""
    settings = settings_of(RankerConfig) | {"num_positives": 2, "ranker_loss": form, "easy_share": 0}
    args = RankerConfig(output_dir=str(tmp_path), **settings)
    trainer = RankerTrainer(
        models / "tiny-retriever",
        without_dropout(load_ranker(models / "tiny-ranker", device="cpu")),
        args=args,
        collection=tiny_collection,
    )
    trainer.collator.lists.pool = pool_of([[7, 8]] * 24, [[0, 1, 2]] * 24)
    trainer.collator.lists.known_positives = None
    batch = trainer.collator([0, 1, 2, 3])
    loss = trainer.compute_loss(trainer.model, batch).item()
    with torch.no_grad():
        scores = trainer.list_scores(trainer.model(pairs=batch["pairs"]), batch).ranker_scores
    assert scores.shape == (4, 5)
    negatives = scores[:, 2:].exp().sum(dim=1, keepdim=True)
    listwise = -(scores[:, :2].exp() / (scores[:, :2].exp() + negatives)).log().mean()
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    pointwise = -torch.sigmoid(scores * signs).log().mean()
    assert loss == pytest.approx({"listwise": listwise, "pointwise": pointwise}[form].item(), rel=1e-5)
