"""Trainers are called like any other Hugging Face trainer, and take a loss, a sampler and metrics of one's own."""

from __future__ import annotations

import ast
import dataclasses
import logging
import multiprocessing
import pickle
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import python_blocks
from tiny_ar2 import SETTINGS, settings_of, without_dropout

import hf_ar2
from hf_ar2.losses import ListScores, in_batch_contrastive_loss, listwise_cross_entropy
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.recipes.checks import check_settings
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    LTReConfig,
    LTReTrainer,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
)
from hf_ar2.training_lists.draws import sample_negatives

GUIDE = Path(__file__).parents[1] / "recipes" / "CUSTOMISING.md"
QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def ar2(models, output, collection, settings=QUIET, **given):
    retriever = without_dropout(load_retriever(models / "tiny-retriever", device="cpu"))
    ranker = without_dropout(load_ranker(models / "tiny-ranker", device="cpu"))
    args = AR2Config(output_dir=str(output), **{**SETTINGS, **settings})
    return AR2Trainer(retriever, ranker, args, collection, **given)


def warm_up(models, output, collection, settings=QUIET, **given):
    args = RetrieverConfig(output_dir=str(output), **{**settings_of(RetrieverConfig), **settings})
    retriever = without_dropout(load_retriever(models / "tiny-retriever", device="cpu"))
    return RetrieverTrainer(retriever, args, collection, **given)


# ---- The signature --------------------------------------------------------------------------------------------------


def test_arguments_in_the_wrong_place_are_named(models, tmp_path, tiny_collection):
    retriever, ranker = models / "tiny-retriever", models / "tiny-ranker"
    args = AR2Config(output_dir=str(tmp_path), **SETTINGS)
    with pytest.raises(ValueError, match="retriever and ranker are swapped"):
        AR2Trainer(ranker, retriever, args, tiny_collection)
    with pytest.raises(TypeError, match="retriever is a CrossEncoder.*pass the retriever first"):
        AR2Trainer(load_ranker(ranker), load_retriever(retriever), args, tiny_collection)
    with pytest.raises(TypeError, match="args and collection are swapped"):
        AR2Trainer(retriever, ranker, tiny_collection, args)
    with pytest.raises(TypeError, match="args is a AR2Config, expected a RankerConfig"):
        RankerTrainer(retriever, ranker, args, tiny_collection)
    for keyword, instead in {
        "model": "pass the models as retriever and ranker",
        "train_dataset": "pass a collection; its split train_split",
        "eval_dataset": "pass a collection; its split eval_split",
        "processing_class": "each model has its own tokenizer",
        "data_collator": "pass sampler",
        "colour": "takes no argument 'colour'",
    }.items():
        with pytest.raises(TypeError, match=instead):
            AR2Trainer(retriever, ranker, args, tiny_collection, **{keyword: None})
    with pytest.raises(TypeError, match="its negatives are what the search finds"):
        LTReTrainer(
            retriever, LTReConfig(output_dir=str(tmp_path)), tiny_collection, sampler=sample_negatives
        )


def test_the_keywords_of_other_trainers_are_named_before_what_is_missing(models, tmp_path, tiny_collection):
    args = RetrieverConfig(output_dir=str(tmp_path))
    with pytest.raises(
        TypeError, match="RetrieverTrainer.. takes no argument 'model'; pass the models as retriever"
    ):
        RetrieverTrainer(model=models / "tiny-retriever", args=args, collection=tiny_collection)
    with pytest.raises(TypeError, match="no argument 'train_dataset'; pass a collection"):
        RetrieverTrainer(models / "tiny-retriever", args=args, train_dataset=tiny_collection)


def test_a_model_that_is_not_there_is_named(models, tmp_path, tiny_collection):
    args = AR2Config(output_dir=str(tmp_path), **SETTINGS)
    with pytest.raises(OSError, match="retriever 'models/retriver': found no such folder"):
        AR2Trainer("models/retriver", models / "tiny-ranker", args, tiny_collection)
    with pytest.raises(OSError, match="ranker 'models/rankr': found no such folder"):
        AR2Trainer(models / "tiny-retriever", "models/rankr", args, tiny_collection)


def test_evaluate_takes_the_name_of_another_split(models, tmp_path, tiny_collection):
    settings = {"eval_split": "dev", "eval_queries": 2, "eval_passages": 10, **QUIET}
    trainer = warm_up(models, tmp_path, tiny_collection, settings)
    test = trainer.evaluate("test")
    own = warm_up(models, tmp_path, tiny_collection, {**QUIET, "eval_split": "test"}).evaluate()
    assert {key.removeprefix("test"): value for key, value in test.items()} == {
        key.removeprefix("eval"): value for key, value in own.items()
    }
    assert trainer.evaluate("dev") == trainer.evaluate() and "eval_retriever_mrr@10" in trainer.evaluate()
    assert "final_retriever_mrr@10" in trainer.evaluate("test", metric_key_prefix="final")
    with pytest.raises(ValueError, match=r"measures eval_split='dev'; call evaluate\('test'\)"):
        trainer.evaluate(metric_key_prefix="test")
    with pytest.raises(ValueError, match="no split 'tset'; it has train, dev, test"):
        trainer.evaluate("tset")
    with pytest.raises(ValueError, match="the one whose name it is given .*; found a Dataset"):
        trainer.evaluate(tiny_collection.queries)


def test_a_loss_of_texts_and_an_unused_sampler_are_errors_at_once(models, tmp_path, tiny_collection):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    theirs = MultipleNegativesRankingLoss(SentenceTransformer(str(models / "tiny-retriever"), device="cpu"))
    for loss in (theirs, lambda scores, labels: scores.mean()):
        with pytest.raises(
            TypeError, match="cannot be called with scores alone .*a hf_ar2.losses.ListScores"
        ):
            warm_up(models, tmp_path, tiny_collection, loss=loss)
    with pytest.raises(TypeError, match="loss is a str"):
        warm_up(models, tmp_path, tiny_collection, loss="contrastive")
    with pytest.raises(ValueError, match="sampler would not be called with num_negatives=0"):
        warm_up(models, tmp_path, tiny_collection, {**QUIET, "num_negatives": 0}, sampler=sample_negatives)


def test_a_split_named_eval_is_not_taken_for_the_usual_prefix(models, tmp_path, tiny_collection):
    qrels = {**tiny_collection.qrels, "eval": tiny_collection.qrels["test"]}
    trainer = warm_up(models, tmp_path, dataclasses.replace(tiny_collection, qrels=qrels))
    assert "eval_retriever_mrr@10" in trainer.evaluate()  # of eval_split, dev, as in every training


def test_a_loss_of_ones_own_that_needs_negatives_says_so(models, tmp_path, tiny_collection):
    def margin(scores):
        return (scores.retriever_scores[:, 1:] - scores.retriever_scores[:, :1]).mean()

    trainer = warm_up(models, tmp_path, tiny_collection, {**QUIET, "num_negatives": 0}, loss=margin)
    with pytest.raises(ValueError, match=r"the loss is nan.*lists without negatives \(num_negatives=0\)"):
        trainer.train()


def test_what_has_no_meaning_here_says_what_to_call_instead(models, tmp_path, tiny_collection):
    trainer = warm_up(models, tmp_path, tiny_collection)
    with pytest.raises(NotImplementedError, match="call evaluate"):
        trainer.predict(tiny_collection.queries)
    with pytest.raises(NotImplementedError, match="call evaluate"):
        trainer.get_eval_dataloader()


def test_packages_are_attributes():
    assert hf_ar2.losses.ListScores is ListScores
    assert hf_ar2.trainers.AR2Trainer is AR2Trainer and callable(hf_ar2.evaluation.paired_test)


# ---- Worker processes -----------------------------------------------------------------------------------------------


@pytest.fixture(
    params=["fork", *(pytest.param(slow, marks=pytest.mark.slow) for slow in ("spawn", "forkserver"))]
)
def start_method(request):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def test_worker_processes_draw_the_lists_of_the_round(models, tmp_path, tiny_collection, start_method):
    """Both phases; under fork, where workers start quickly, in two rounds with a pool each."""
    rounds = 2 if start_method == "fork" else 1
    settings = {**QUIET, "num_rounds": rounds, "ranker_steps": 1, "retriever_steps": 2}
    plain = ar2(models, tmp_path / "plain", tiny_collection, settings)
    working = ar2(models, tmp_path / "working", tiny_collection, {**settings, "dataloader_num_workers": 2})
    for trainer in (plain, working):
        trainer.train()
        assert trainer.pool.round == rounds - 1
    assert losses(working) == losses(plain)


def test_the_collator_is_plain_data(models, tmp_path, tiny_collection):
    args = RankerConfig(output_dir=str(tmp_path), **settings_of(RankerConfig))
    trainer = RankerTrainer(models / "tiny-retriever", models / "tiny-ranker", args, tiny_collection)
    trainer.begin_round()
    content = pickle.dumps(trainer.collator)
    assert b"Trainer" not in content and b"torch" not in content
    expected, found = trainer.collator([0, 1, 2, 3]), pickle.loads(content)([0, 1, 2, 3])
    assert torch.equal(found["passage_rows"], expected["passage_rows"])


# ---- A loss, a sampler and metrics of one's own ---------------------------------------------------------------------


def test_a_loss_of_ones_own_gets_all_it_takes_to_write_the_built_in_one(models, tmp_path, tiny_collection):
    def contrastive(scores: ListScores):
        loss = in_batch_contrastive_loss(
            scores.query_embeddings,
            scores.passage_embeddings,
            temperature=scores.retriever_temperature,
            passage_rows=scores.passage_rows,
            known_positives=scores.known_positives,
            mask=scores.mask,
        )
        return loss, {"score": scores.retriever_scores[:, 0].mean()}

    plain = warm_up(models, tmp_path / "plain", tiny_collection)
    own = warm_up(models, tmp_path / "own", tiny_collection, loss=contrastive)
    for trainer in (plain, own):
        trainer.train()
    assert losses(own) == losses(plain)
    assert all("score" in entry for entry in own.state.log_history if "loss" in entry)


def test_in_ar2_it_replaces_the_retrievers_loss_in_its_phase(models, tmp_path, tiny_collection):
    calls = []

    def loss(scores: ListScores):
        calls.append(scores)
        assert scores.retriever_scores.shape == scores.ranker_scores.shape == scores.mask.shape
        assert not scores.ranker_scores.requires_grad
        return listwise_cross_entropy(scores.retriever_scores, scores.mask)

    settings = {**QUIET, "num_rounds": 1, "ranker_steps": 2, "retriever_steps": 3}
    trainer = ar2(models, tmp_path, tiny_collection, settings, loss=loss)
    trainer.train()
    assert len(calls) == 3
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert any("ranker_accuracy" in entry for entry in log) and any(
        "teacher_accuracy" in entry for entry in log
    )


def test_what_a_loss_returns_is_checked(models, tmp_path, tiny_collection):
    trainer = warm_up(models, tmp_path, tiny_collection, loss=lambda scores: scores.retriever_scores)
    with pytest.raises(TypeError, match=r"returned a tensor of shape \[4, 4\]; expected a scalar"):
        trainer.train()


def uniform(pool, indices, n, *, seed, positions):
    rows, _ = sample_negatives(pool, indices, n, seed=seed, positions=positions)
    return rows


def test_a_sampler_of_ones_own_draws_the_negatives(models, tmp_path, tiny_collection):
    plain = warm_up(models, tmp_path / "plain", tiny_collection)
    own = warm_up(models, tmp_path / "own", tiny_collection, sampler=uniform)
    for trainer in (plain, own):
        trainer.train()
    assert losses(own) == losses(plain)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda pool, indices, n, **_: pool.positive_rows[indices][:, [0] * n], "as a negative of a query"),
        (lambda pool, indices, n, **_: np.full((len(indices), n), 60), "the corpus has rows 0 to 59"),
        (
            lambda pool, indices, n, **_: np.zeros((len(indices), n + 1), int),
            r"expected rows of passages, int64 \(4, 3\)",
        ),
    ],
)
def test_what_a_sampler_draws_is_checked(models, tmp_path, tiny_collection, draw, message):
    with pytest.raises(ValueError, match=message):
        warm_up(models, tmp_path, tiny_collection, sampler=draw).train()


def test_a_checkpoint_records_whose_loss_and_sampler_it_has(models, tmp_path, tiny_collection):
    settings = {**QUIET, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    warm_up(models, tmp_path, tiny_collection, settings, sampler=uniform).train()
    with pytest.raises(ValueError, match=r"differs in own_sampler \(uniform there, None here\)"):
        warm_up(models, tmp_path, tiny_collection, settings).train(resume_from_checkpoint=True)


def test_filters_that_leave_no_candidates_are_named(models, tmp_path, tiny_collection, caplog):
    settings = {**QUIET, "num_negatives": 2, "max_steps": 1, "absolute_margin": 100.0}
    with caplog.at_level(logging.WARNING):
        warm_up(models, tmp_path, tiny_collection, settings).train()
    assert "no candidate is left for 24 of 24 training queries" in caplog.text
    assert "absolute_margin" in caplog.text


def test_metrics_of_ones_own_are_logged(models, tmp_path, tiny_collection):
    def metrics(rankings):
        first = [passages[0] for passages in rankings.passage_ids("pipeline")]
        assert len(first) == len(rankings.query_ids) == len(rankings.rows["retriever"])
        right = {f"p{int(query[1:]) - 100}" for query in rankings.query_ids}
        return {"first": float(np.mean([passage in right for passage in first]))}

    trainer = ar2(models, tmp_path, tiny_collection, {}, compute_metrics=metrics)
    found = trainer.evaluate()
    assert found["eval_first"] == trainer.state.log_history[-1]["eval_first"]
    assert "eval_pipeline_mrr@10" in found
    trainer.compute_metrics = lambda rankings: None
    with pytest.raises(TypeError, match="compute_metrics returned NoneType; expected a dict of floats"):
        trainer.evaluate()


# ---- The guide ------------------------------------------------------------------------------------------------------


def test_scripts_of_the_guide_are_short():
    """Ten lines at most after the imports; test_readme.py runs them."""
    blocks = list(python_blocks(GUIDE.read_text(encoding="utf-8")))
    assert len(blocks) == 5
    for _, code in blocks:
        last = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)][-1]
        lines = [line for line in code.splitlines()[last.end_lineno :] if line.strip()]
        assert len(lines) <= 10, code


@pytest.mark.parametrize(("guide", "stage"), [("CUSTOMISING.md", "warm-up"), ("METHODS.md", "distilled")])
def test_recipes_of_the_guides_are_valid(guide, stage, tmp_path):
    text = (GUIDE.parent / guide).read_text(encoding="utf-8")
    (block,) = re.findall(r"^ *```yaml\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "recipe.yaml").write_text(textwrap.dedent(block))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert stage in recipe.stages
    check_settings(recipe, tmp_path)
