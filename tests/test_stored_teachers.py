"""A retriever learns from the scores that were stored with the lists, whoever gave them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_ar2 import settings_of, without_dropout

from hf_ar2.models.loading import load_retriever
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer
from hf_ar2.training_lists.stored import save_training_lists

QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "mine": False}
# query → {passage: the teacher's score}, the positive first. The second list is shorter.
TEACHER = {
    "q200": {"p100": 4.0, "p120": 1.5, "p121": -2.0},
    "q203": {"p103": -1.0, "p124": 0.5},
}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "lists", TEACHER)


def write(folder, teacher, scored=True):
    columns = {
        "query_id": list(teacher),
        "positive_ids": [list(scores)[:1] for scores in teacher.values()],
        "negative_ids": [list(scores)[1:] for scores in teacher.values()],
        "kind": ["undenoised"] * len(teacher),
    }
    if scored:
        columns["scores"] = [list(scores.values()) for scores in teacher.values()]
    save_training_lists(folder, Dataset.from_dict(columns), {})
    return str(folder)


def trainer_of(retriever, tmp_path, collection, **settings):
    args = RetrieverConfig(
        output_dir=str(tmp_path / "run"), **(settings_of(RetrieverConfig) | QUIET | settings)
    )
    return RetrieverTrainer(without_dropout(load_retriever(retriever)), args=args, collection=collection)


def kl_loop(student, teacher):
    p, q = (np.exp(scores - np.max(scores)) for scores in (np.array(teacher), np.array(student)))
    p, q = p / p.sum(), q / q.sum()
    return sum(t * math.log(t / s) for t, s in zip(p, q, strict=True))


def margin_mse_loop(student, teacher):
    margins = [(student[0] - s) - (teacher[0] - t) for s, t in zip(student[1:], teacher[1:], strict=True)]
    return sum(margin**2 for margin in margins) / len(margins)


@pytest.mark.parametrize(("form", "loop"), [("kl", kl_loop), ("margin_mse", margin_mse_loop)])
def test_the_loss_of_a_step_is_that_of_a_loop_over_the_texts(
    tiny_retriever_path, tmp_path, tiny_collection, folder, form, loop
):
    trainer = trainer_of(
        tiny_retriever_path,
        tmp_path,
        tiny_collection,
        train_lists=[folder],
        distillation=form,
        teacher_temperature=2.0,
        num_negatives=2,
    )
    batch = trainer.collator([0, 1])
    loss = trainer.compute_loss(trainer.model.eval(), trainer._prepare_inputs(batch))
    queries = dict(zip(tiny_collection.queries["id"], tiny_collection.queries["text"], strict=True))
    passages = dict(zip(tiny_collection.corpus["id"], tiny_collection.passage_texts(), strict=True))
    retriever = trainer.model.retriever
    expected = []
    for query, scores in TEACHER.items():
        embedding = retriever.encode_query(queries[query])
        student = retriever.encode_document([passages[id] for id in scores]) @ embedding
        student = student / trainer.retrieval.retriever_temperature
        expected.append(loop(student.astype(np.float64), [score / 2.0 for score in scores.values()]))
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("settings", [{"mini_batch_size": 2}, {"contrastive_weight": 0.5}])
def test_training_brings_the_retriever_nearer_to_the_teacher(
    tiny_retriever_path, tmp_path, tiny_collection, folder, settings
):
    trainer = trainer_of(
        tiny_retriever_path,
        tmp_path,
        tiny_collection,
        train_lists=[folder],
        distillation="kl",
        num_negatives=2,
        max_steps=12,
        **settings,
    )
    trainer.train()
    losses = [entry["loss/distillation"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    logged = trainer.state.log_history[0]
    assert ("loss/contrastive" in logged) == ("contrastive_weight" in settings)


def test_a_loss_of_ones_own_is_given_the_teachers_scores(
    tiny_retriever_path, tmp_path, tiny_collection, folder
):
    trainer = trainer_of(
        tiny_retriever_path, tmp_path, tiny_collection,
        train_lists=[folder], distillation="kl", num_negatives=2,
    )  # fmt: skip
    seen = []
    trainer.loss = lambda scores: seen.append(scores.teacher_scores) or scores.retriever_scores.sum()
    trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.collator([0, 1])))
    assert sorted(seen[0][:, 0].tolist()) == [-1.0, 4.0]
    assert sorted(seen[0].sum(dim=1).tolist()) == [-0.5, 3.5]  # 0 under the mask
    assert seen[0].dtype == torch.float32


def test_lists_without_scores_have_no_teacher(tiny_retriever_path, tmp_path, tiny_collection):
    bare = write(tmp_path / "bare", TEACHER, scored=False)
    given = {"train_lists": [bare], "num_negatives": 2}
    for settings in ({"distillation": "kl"}, {"sampler": "simans"}):
        with pytest.raises(ValueError, match="bare: a list of query 'q200' has no scores; .* hf-ar2 score"):
            trainer_of(tiny_retriever_path, tmp_path, tiny_collection, **settings, **given)
    assert trainer_of(tiny_retriever_path, tmp_path, tiny_collection, **given).stored is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distillation": "kl"}, "name folders in train_lists and set mine=False"),
        ({"distillation": "kl", "train_lists": ["lists"]}, "which mined lists do not have"),
        ({"distillation": "mse"}, "distillation='mse': expected one of none, kl, margin_mse"),
        ({"contrastive_weight": 1.0}, "belong to distillation"),
        ({"teacher_temperature": 0.0}, "belong to distillation"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        RetrieverConfig(output_dir=str(tmp_path), num_negatives=1, **settings)
