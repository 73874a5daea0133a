"""Every trainer takes training lists from folders, beside the lists it mines or instead of them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_ar2 import settings_of

from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
    RocketQAv2Config,
    RocketQAv2Trainer,
)
from hf_ar2.training_lists.stored import save_training_lists

QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}


@pytest.fixture(scope="module")
def models(tiny_retriever_path, tiny_ranker_path):
    return {"retriever": tiny_retriever_path, "ranker": tiny_ranker_path}


def write(folder, lists, extra=None):
    """`lists`: (query id, positive ids, negative ids, kind)."""
    columns = {
        "query_id": [query for query, *_ in lists],
        "positive_ids": [positives for _, positives, *_ in lists],
        "negative_ids": [negatives for _, _, negatives, _ in lists],
        "positive_scores": [[2.0] * len(positives) for _, positives, *_ in lists],
        "negative_scores": [[-1.0] * len(negatives) for _, _, negatives, _ in lists],
        "kind": [kind for *_, kind in lists],
    }
    queries = None if extra is None else Dataset.from_dict({"id": list(extra), "text": list(extra.values())})
    save_training_lists(folder, Dataset.from_dict(columns), {}, queries)
    return str(folder)


# q200's judged positive is p100. The second list has another one, which the ranker was sure of.
LISTS = [
    ("q200", ["p100"], ["p120", "p121", "p122"], "undenoised"),
    ("q200", ["p140", "p141"], ["p123"], "denoised"),
    ("asked", ["p142"], ["p124", "p125"], "pseudo"),
]
ASKED = {"asked": "where does the otter hide ?"}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "lists", LISTS, ASKED)


def joint(models, tmp_path, collection, **settings):
    args = RocketQAv2Config(
        output_dir=str(tmp_path / "run"), **(settings_of(RocketQAv2Config) | QUIET | settings)
    )
    return RocketQAv2Trainer(models["retriever"], models["ranker"], args=args, collection=collection)


def ids(dataset, rows):
    """Ids of rows, those under the mask left out."""
    known = list(dataset["id"])
    return [known[row] for row in rows if row >= 0]


def drawn(trainer, count):
    """Lists by id: (query, passages, known positives)."""
    lists = trainer.collator.lists(np.arange(count))
    corpus = trainer.collection.corpus
    queries = ids(trainer.collection.queries, lists.query_rows)
    passages = [ids(corpus, rows) for rows in lists.passage_rows]
    return list(zip(queries, passages, [ids(corpus, rows) for rows in lists.known_positives], strict=True))


def test_stored_lists_alone_are_drawn_as_they_are_written(models, tmp_path, tiny_collection, folder):
    trainer = joint(models, tmp_path, tiny_collection, train_lists=[folder], mine=False, num_positives=2)
    assert trainer.steps_per_round == 1  # three lists, four to a step
    for query, passages, known in drawn(trainer, 3):
        if query == "asked":
            assert passages[0] == "p142" and sorted(passages[1:]) == ["p124", "p125"]
            assert known == ["p142"]
        elif "p123" in passages:
            assert sorted(passages) == ["p123", "p140", "p141"]
            # A judged positive is known beside the list's own, so that no batch takes it for a negative.
            assert sorted(known) == ["p100", "p140", "p141"]
        else:
            assert passages[0] == "p100" and sorted(passages[1:]) == ["p120", "p121", "p122"]
    assert sorted(query for query, *_ in drawn(trainer, 3)) == ["asked", "q200", "q200"]


def test_mined_lists_stand_beside_the_stored_ones(models, tmp_path, tiny_collection, folder):
    trainer = joint(models, tmp_path, tiny_collection, train_lists=[folder])
    trainer.begin_round()
    lists = drawn(trainer, 27)
    queries = [query for query, *_ in lists]
    assert len(set(queries)) == 25 and queries.count("q200") == 3 and queries.count("asked") == 1
    assert trainer.steps_per_round == 7
    mined = [passages for query, passages, _ in lists if query not in ("q200", "asked")]
    assert len(mined) == 23 and all(len(passages) == 4 for passages in mined)


def test_only_the_kinds_that_were_asked_for_are_taken(models, tmp_path, tiny_collection, folder):
    trainer = joint(
        models, tmp_path, tiny_collection, train_lists=[folder], mine=False, train_list_kinds=["denoised"]
    )
    ((query, passages, _),) = drawn(trainer, 1)
    assert query == "q200" and passages[-1] == "p123" and len(trainer.collator.lists.pool) == 1
    lone = write(tmp_path / "lone", LISTS[:1])
    with pytest.raises(ValueError, match="no list of the kinds"):
        joint(models, tmp_path, tiny_collection, train_lists=[lone], train_list_kinds=["pseudo"])


@pytest.mark.slow
@pytest.mark.parametrize("mine", [True, False])
def test_every_trainer_takes_them(models, tmp_path, tiny_collection, folder, mine):
    settings = QUIET | {"train_lists": [folder], "mine": mine, "max_steps": 8, "num_negatives": 2}

    def args(config, **own):
        return config(output_dir=str(tmp_path / config.__name__), **(settings_of(config) | settings | own))

    both = models["retriever"], models["ranker"]
    trainers = [
        RetrieverTrainer(both[0], args=args(RetrieverConfig), collection=tiny_collection),
        RankerTrainer(*both, args=args(RankerConfig), collection=tiny_collection),
        AR2Trainer(*both, args=args(AR2Config), collection=tiny_collection),
        RocketQAv2Trainer(*both, args=args(RocketQAv2Config), collection=tiny_collection),
    ]
    for trainer in trainers:
        trainer.train()
        assert trainer.state.global_step == 8
        assert len(trainer.collator.lists.pool) == (27 if mine else 3)
        assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
        assert (trainer.pool is not None) == mine


def test_a_short_list_is_filled_with_random_passages_where_a_ranker_warms_up(
    models, tmp_path, tiny_collection, folder
):
    """None of them a known positive of the query, judged or stored."""
    args = RankerConfig(
        output_dir=str(tmp_path / "run"),
        **(settings_of(RankerConfig) | {"train_lists": [folder], "mine": False, "num_negatives": 50}),
    )
    trainer = RankerTrainer(models["retriever"], models["ranker"], args=args, collection=tiny_collection)
    for _, passages, known in drawn(trainer, 3):
        assert len(set(passages)) == 51
        assert not set(passages[1:]) & set(known)


def test_a_judged_positive_raises_an_error_as_a_negative(models, tmp_path, tiny_collection):
    wrong = write(tmp_path / "wrong", [("q201", ["p140"], ["p120", "p101"], "denoised")])
    with pytest.raises(ValueError, match="wrong: a list of query 'q201' has passage 'p101' as a negative"):
        joint(models, tmp_path, tiny_collection, train_lists=[wrong])


def test_lists_of_evaluated_queries_are_named(models, tmp_path, tiny_collection, caplog, folder):
    leaking = write(tmp_path / "leaking", [("q225", ["p125"], ["p120"], "undenoised")])
    with caplog.at_level(logging.WARNING):
        joint(models, tmp_path, tiny_collection, train_lists=[folder])
        assert not caplog.records
        joint(models, tmp_path, tiny_collection, train_lists=[folder, leaking])
    assert "1 of the stored lists are of queries of eval_split='dev'" in caplog.text


@pytest.mark.slow
def test_a_run_resumes_with_the_lists_it_began_with(models, tmp_path, tiny_collection, folder):
    settings = {"train_lists": [folder], "save_strategy": "steps", "save_steps": 4, "logging_steps": 2}

    def run(name, resume=False, **changed):
        trainer = joint(models, tmp_path / name, tiny_collection, **{**settings, "max_steps": 9, **changed})
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("a")
    run("b", max_steps=8, lr_scheduler_type="constant")
    resumed = run("b", resume=True)
    for expected, found in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, found)
    with pytest.raises(ValueError, match="trained on other lists than those train_lists has now"):
        run("b", resume=True, train_lists=[write(tmp_path / "other", LISTS[:2])])
    with pytest.raises(ValueError, match="trained on other lists"):
        run("b", resume=True, train_lists=None)


def test_simans_does_not_weigh_two_models_scores_by_one_scale(tmp_path):
    with pytest.raises(ValueError, match="mined lists hold the retriever's and stored ones the ranker's"):
        RetrieverConfig(
            output_dir=str(tmp_path),
            train_lists=["lists"],
            sampler="simans",
            num_negatives=1,
            use_cpu=True,
            bf16=False,
        )
