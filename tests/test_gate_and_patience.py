"""What evaluations decide during training: whether the ranker teaches, and when a run ends."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_ar2 import QUIET, make_trainer, settings_of
from transformers import TrainerCallback

from hf_ar2.collections.judgments import Judgments
from hf_ar2.trainers import (
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
)
from hf_ar2.trainers.callbacks import TimeLimit
from hf_ar2.trainers.checkpoints import fingerprints
from hf_ar2.trainers.schedule import schedule
from hf_ar2.training_lists.pool import build_pool

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
GATED = {"teacher_gate": "ahead", "rerank_depth": 10}


def ar2(models, output, collection, **settings):
    return make_trainer("ar2", models, output, collection, dropout=False, **{**GATED, **settings})


def with_ranker_at(trainer, *values):
    """The trainer, with a ranker whose MRR@10 on every dev query is the next of the values, beside a retriever's .5."""
    count, left = len(trainer.evaluation.judgments), list(values)

    def per_query():
        ranker = left.pop(0)
        return {"retriever": {"mrr@10": np.full(count, 0.5)}, "ranker": {"mrr@10": np.full(count, ranker)}}

    trainer.evaluation.per_query = per_query
    return trainer


def test_a_ranker_that_is_behind_does_not_teach_until_it_is_ahead(models, tmp_path, tiny_collection):
    trainer = with_ranker_at(ar2(models, tmp_path, tiny_collection, num_rounds=3, **QUIET), 0.4, 0.5, 0.6)
    trainer.train()
    log = trainer.state.log_history
    gates = [(entry["gate/lead"], entry["gate/ranker_teaches"]) for entry in log if "gate/lead" in entry]
    assert gates == [(pytest.approx(-0.1), 0.0), (0.0, 0.0), (pytest.approx(0.1), 1.0)]
    taught = ["loss/distillation" in entry for entry in log if "loss/retriever" in entry]
    assert taught == [False] * 8 + [True] * 4
    ranker_steps = [entry for entry in log if "loss/ranker" in entry]
    assert len(ranker_steps) == 9  # it trains on in every round


def test_an_open_gate_is_no_gate_and_a_closed_one_trains_on_hard_negatives(models, tmp_path, tiny_collection):
    def weights(name, *values, **settings):
        trainer = with_ranker_at(
            ar2(models, tmp_path / name, tiny_collection, num_rounds=1, **QUIET, **settings), *values
        )
        trainer.train()
        return fingerprints(trainer.model)

    open_gate = weights("open", 0.6)
    assert open_gate == weights("off", teacher_gate="off")
    closed = weights("closed", 0.4)
    assert closed["ranker"] == open_gate["ranker"] and closed["retriever"] != open_gate["retriever"]
    # λ = 1 in the paper's form has no gradient on a positive; the closed gate leaves only the contrastive loss.
    assert closed == weights("closed too", 0.4, adversarial_weight=1.0, contrastive_weight=3.0)


def test_the_gate_asks_the_models_themselves(models, tmp_path, tiny_collection):
    trainer = ar2(models, tmp_path, tiny_collection)
    trainer.train()
    log = trainer.state.log_history
    evaluations = [entry for entry in log if "eval_ranker_mrr@10" in entry]
    gates = [entry["gate/lead"] for entry in log if "gate/lead" in entry]
    leads = [entry["eval_ranker_mrr@10"] - entry["eval_retriever_mrr@10"] for entry in evaluations]
    assert len(gates) == 2
    np.testing.assert_allclose(gates, leads[:2], atol=1e-9)


def test_a_gate_that_cannot_compare_says_what_to_change(models, tmp_path, tiny_collection):
    with pytest.raises(ValueError, match="orders rerank_depth=5 passages; raise rerank_depth to 10"):
        ar2(models, tmp_path, tiny_collection, rerank_depth=5)
    train_only = dataclasses.replace(
        tiny_collection, qrels={name: rows for name, rows in tiny_collection.qrels.items() if name != "dev"}
    )
    with pytest.raises(ValueError, match="set teacher_gate='off'"):
        ar2(models, tmp_path, train_only, **QUIET)


def run_script(models, output, trainer, settings, *options):
    command = [sys.executable, str(SCRIPT), str(models), str(output), "--trainer", trainer]
    command += ["--settings", json.dumps({"save_strategy": "steps", "save_steps": 2, **settings}), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("trainer", "killed_after", "settings"),
    [
        ("ar2", 11, {"teacher_gate": "ahead", "rerank_depth": 10}),
        (
            "retriever",
            9,
            {
                "max_steps": 40,
                "patience": 3,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "lr_scheduler_type": "warmup_stable_decay",
                "decay_share": 0.5,
                "eval_passages": 20,
                "num_negatives": 2,
                "relative_margin": 0.05,
                "learning_rate": 0.3,  # nothing is learnt at this rate, so that the run ends early
            },
        ),
    ],
)
def test_what_evaluations_decided_survives_a_kill(models, tmp_path, trainer, killed_after, settings):
    whole = run_script(models, tmp_path / "whole", trainer, settings)
    assert whole.returncode == 0, whole.stderr
    killed = run_script(models, tmp_path / "killed", trainer, settings, "--kill_after", str(killed_after))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run_script(models, tmp_path / "killed", trainer, settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    expected, found = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    )
    assert found["weights"] == expected["weights"]
    if "patience" in settings:
        steps = [entry["step"] for entry in expected["log"]]
        assert killed_after < max(steps) < 40


def test_patience_ends_a_run_after_the_decay(models, tmp_path, tiny_collection):
    args = RetrieverConfig(
        output_dir=str(tmp_path),
        **settings_of(RetrieverConfig)
        | {
            "num_negatives": 0,
            "max_steps": 60,
            "patience": 2,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "lr_scheduler_type": "warmup_stable_decay",
            "decay_share": 0.25,
            "save_strategy": "no",
        },
    )
    trainer = RetrieverTrainer(models / "tiny-retriever", args=args, collection=tiny_collection)
    values = iter([0.2, 0.3, 0.3, 0.1, 0.9])
    trainer.evaluation.metrics = lambda: {"retriever_mrr@10": next(values)}
    trainer.train()
    # Evaluations at 0 (not counted), 3, 6 and 9: the best is at 3, then two in a row are not above it.
    rates = {e["step"]: e["lr/retriever"] for e in trainer.state.log_history if "lr/retriever" in e}
    assert trainer.state.global_step == 12 and max(rates) == 12  # 9 steps are three quarters of 12
    np.testing.assert_allclose([rates[step] for step in range(9, 13)], [1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])


def timed(models, folder, collection, seconds_per_step, seconds, estimate, **settings):
    """A trainer whose steps take so many seconds, on a clock that counts nothing else."""
    args = RetrieverConfig(
        output_dir=str(folder),
        **settings_of(RetrieverConfig)
        | {
            "num_negatives": 0,
            "max_steps": 60,
            "eval_strategy": "no",
            "lr_scheduler_type": "warmup_stable_decay",
            "decay_share": 0.25,
            **settings,
        },
    )
    trainer = RetrieverTrainer(models / "tiny-retriever", args=args, collection=collection)

    def clock():
        return trainer.state.global_step * seconds_per_step

    trainer.add_callback(TimeLimit(trainer, clock, seconds, estimate))
    return trainer


@pytest.mark.parametrize(
    ("seconds_per_step", "estimate", "steps"), [(2.0, 5, 20), (2.0, 50, 20), (0.1, 20, 60)]
)
def test_a_run_takes_the_steps_that_fit_into_its_time(
    models, tmp_path, tiny_collection, seconds_per_step, estimate, steps
):
    limits = {"save_strategy": "no"}
    trainer = timed(models, tmp_path, tiny_collection, seconds_per_step, 40.0, estimate, **limits)
    trainer.train()
    rates = [e["lr/retriever"] for e in trainer.state.log_history if "lr/retriever" in e]
    assert trainer.state.global_step == len(rates) == steps
    decay = round(0.25 * steps)
    np.testing.assert_allclose(rates[-decay:], [1e-3 * (decay - i) / decay for i in range(decay)])
    assert rates[-decay - 1] == 1e-3


def test_a_schedule_without_hold_ends_in_time_too(models, tmp_path, tiny_collection):
    linear = {"save_strategy": "no", "lr_scheduler_type": "linear"}
    trainer = timed(models, tmp_path, tiny_collection, 2.0, 42.0, 5, **linear)
    trainer.train()
    assert trainer.state.global_step == 21  # a step at which the estimate would be due


def test_a_run_with_a_time_limit_that_is_resumed_ends_as_one_that_is_not(models, tmp_path, tiny_collection):
    saved = {"save_strategy": "steps", "save_steps": 4}
    whole = timed(models, tmp_path / "whole", tiny_collection, 2.0, 40.0, 12, **saved)
    whole.train()
    first = timed(models, tmp_path / "resumed", tiny_collection, 2.0, 40.0, 12, **saved)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 8

    first.add_callback(Stop())
    first.train()
    resumed = timed(models, tmp_path / "resumed", tiny_collection, 2.0, 40.0 - 16.0, 3, **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-8"))
    assert resumed.state.global_step == whole.state.global_step == 20
    assert fingerprints(resumed.model) == fingerprints(whole.model)


@pytest.mark.parametrize(
    ("values", "kept"),
    [((0.5, 0.4, 0.3), 0), ((0.1, 0.4, 0.3), 5), ((0.1, 0.2, 0.3), 7)],
    ids=["the start", "between", "the last step"],
)
def test_the_start_and_the_last_step_can_be_the_best(models, tmp_path, tiny_collection, capsys, values, kept):
    best = {
        "max_steps": 7,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_strategy": "best",
        "metric_for_best_model": "eval_retriever_mrr@10",
        "load_best_model_at_end": True,
        "save_only_model": True,
        "save_total_limit": 1,
    }
    args = RetrieverConfig(output_dir=str(tmp_path), **settings_of(RetrieverConfig) | best)
    trainer = RetrieverTrainer(models / "tiny-retriever", args=args, collection=tiny_collection)
    evaluated, left = [], list(values)

    def metrics():
        evaluated.append((trainer.state.global_step, fingerprints(trainer.model)))
        return {"retriever_mrr@10": left.pop(0)}

    trainer.evaluation.metrics = metrics
    trainer.train()
    assert [step for step, _ in evaluated] == [0, 5, 7]
    assert fingerprints(trainer.model) == dict(evaluated)[kept]
    assert len(set(map(str, dict(evaluated).values()))) == 3
    said = {0: "Kept the weights it started with", 5: "Kept the weights of step 5"}
    assert said.get(kept, "") in capsys.readouterr().out


def test_a_run_continues_from_the_checkpoint_of_its_start(models, tmp_path, tiny_collection):
    best = {
        "max_steps": 6,
        "num_negatives": 2,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "save_strategy": "best",
        "metric_for_best_model": "eval_retriever_mrr@10",
    }
    args = RetrieverConfig(output_dir=str(tmp_path), **settings_of(RetrieverConfig) | best)

    def trained(resume):
        trainer = RetrieverTrainer(models / "tiny-retriever", args=args, collection=tiny_collection)
        trainer.evaluation.metrics = lambda: {"retriever_mrr@10": 1 / (1 + trainer.state.global_step)}
        trainer.train(resume_from_checkpoint=resume)
        return fingerprints(trainer.model)

    uninterrupted = trained(None)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-0"]
    assert trained(True) == uninterrupted


def test_warmup_stable_decay_by_hand():
    args = RetrieverConfig(
        output_dir="unused", lr_scheduler_type="warmup_stable_decay", warmup_steps=2, decay_share=0.4
    )
    factor = schedule(args, "retriever", own_steps=lambda step: step, total_steps=lambda: 10)
    assert [factor(step) for step in range(11)] == [0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_candidates_too_close_to_the_positive_are_dropped():
    judgments = Judgments.from_triples([0, 0, 1], [7, 8, 9], [1, 1, 1])
    scores = np.array([[0.9, 0.74, 0.66, 0.5], [-0.4, -0.46, -0.5, -0.7]])
    rows = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    positive_scores = np.array([[0.8, 0.6], [-0.45, 0.0]], np.float32)
    pool = build_pool(scores, rows, judgments, depth=3, positive_scores=positive_scores, relative_margin=0.05)
    # The first query's limit is .95 of the mean .7; the second's is 5 % below -.45.
    assert pool.passage_rows.tolist() == [[3, 4, -1], [3, 4, -1]]
    assert pool.dropped == {"positive": 0, "relative_margin": 4}
    with pytest.raises(ValueError, match="expected positive_scores"):
        build_pool(scores, rows, judgments, depth=3, relative_margin=0.05)


def test_evaluating_on_enough_passages_equals_the_whole_corpus(models, tmp_path, tiny_collection):
    def metrics(name, limit):
        args = RankerConfig(output_dir=str(tmp_path / name), **settings_of(RankerConfig), eval_passages=limit)
        trainer = RankerTrainer(
            models / "tiny-retriever", models / "tiny-ranker", args=args, collection=tiny_collection
        )
        return trainer.evaluate(), trainer.evaluation

    whole, _ = metrics("whole", None)
    few, _ = metrics("few", 59)
    assert few == pytest.approx(whole)  # what ranks within the first 20 of a query is among the 59
    tight, evaluation = metrics("tight", 1)
    positives = evaluation.judgments.positives().passage_rows
    assert evaluation._rows.tolist() == sorted(positives.tolist())
    assert tight["eval_retriever_mrr@10"] >= whole["eval_retriever_mrr@10"]
