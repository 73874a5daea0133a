"""Refreshes between steps: when the pool changes, what it is made of, and that neither kill nor evaluation matters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ar2 import QUIET, make_trainer, settings_of, without_dropout
from transformers import TrainerCallback
from two_processes import launch_two

from hf_ar2.collections import Collection
from hf_ar2.trainers import (
    AR2Config,
    JointConfig,
    LTReConfig,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
    RocketQAv2Config,
)
from hf_ar2.trainers.lists import ListCollator

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tiny_ar2.py")

# Three rounds of five steps. In batches of 128 tokens the corpus takes about a dozen of them.
SHORT = {**QUIET, "steps_per_round": 5, "num_train_epochs": 3, "encode_tokens": 128}
# The second and the third pool come three steps after their weights.
ASYNC = {"refresh_mode": "async", "max_staleness": 3}


class Watch(TrainerCallback):
    """Keeps the pool and the retriever's weights after every step."""

    trainer: RetrieverTrainer

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:  # after every step, and after its share of the refresh
            self.pools.append(self.trainer.pool)
            self.weights.append(weights_of(self.trainer))


def make(models: Path, output: Path, collection: Collection, **settings: Any) -> RetrieverTrainer:
    return make_trainer("retriever", models, output, collection, **{**SHORT, **settings})


def trained(models: Path, output: Path, collection: Collection, **settings: Any) -> RetrieverTrainer:
    trainer = make(models, output, collection, **settings)
    trainer.train()
    return trainer


def weights_of(trainer: RetrieverTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.retriever.state_dict().items()}


def assert_equal_runs(found: RetrieverTrainer, expected: RetrieverTrainer) -> None:
    """Same weights and same log, apart from times."""
    ours, theirs = weights_of(found), weights_of(expected)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    logs = [
        [
            {name: value for name, value in entry.items() if name not in ("refresh_share", "pool/age")}
            for entry in trainer.state.log_history
            if "train_runtime" not in entry and not any(name.startswith("eval_") for name in entry)
        ]
        for trainer in (found, expected)
    ]
    assert logs[0] == logs[1]


def values(trainer: RetrieverTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("evaluates", [{}, {"eval_strategy": "epoch"}])
def test_a_staleness_of_0_is_the_synchronous_run(models, tmp_path, tiny_collection, evaluates):
    synchronous = trained(models, tmp_path / "sync", tiny_collection, **evaluates)
    stale = trained(
        models, tmp_path / "async", tiny_collection, refresh_mode="async", max_staleness=0, **evaluates
    )
    assert_equal_runs(stale, synchronous)


def test_the_pool_changes_that_many_steps_after_the_weights_it_is_of(
    models, tmp_path, tiny_collection, monkeypatch
):
    drawn_from: list[int] = []
    draw = ListCollator.__call__

    def noted(self: ListCollator, positions: list[int]) -> dict[str, Any]:
        drawn_from.append(self.lists.pool.round)
        return draw(self, positions)

    monkeypatch.setattr(ListCollator, "__call__", noted)
    trainer = make(models, tmp_path / "run", tiny_collection, **ASYNC)
    watch = Watch()
    watch.trainer = trainer
    trainer.add_callback(watch)
    trainer.train()
    assert drawn_from == [0] * 8 + [1] * 5 + [2] * 2  # no step takes a batch that the loader had prepared
    assert [pool.round for pool in watch.pools] == [0] * 7 + [1] * 5 + [2] * 3
    assert values(trainer, "pool/age") == [1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 3, 4, 5]
    assert all(0 < share < 1 for share in values(trainer, "refresh_share"))
    assert not list(tmp_path.glob("run/index/*.npy"))

    # The weights after step 5 find the same candidates.
    fresh = make(models, tmp_path / "fresh", tiny_collection)
    fresh.model.retriever.load_state_dict(watch.weights[4])
    expected = fresh.retrieval.mine(1)
    pool = watch.pools[7]
    assert pool.fingerprint == expected.fingerprint
    assert np.array_equal(pool.passage_rows, expected.passage_rows)
    assert np.array_equal(pool.scores, expected.scores)
    assert not np.array_equal(pool.passage_rows, watch.pools[6].passage_rows)


@pytest.mark.parametrize("where", ["corpus", "eval_passages"])
def test_evaluations_leave_a_refresh_in_flight_alone(models, tmp_path, tiny_collection, where):
    evaluates = {"eval_strategy": "steps", "eval_steps": 1}
    if where == "eval_passages":
        evaluates["eval_passages"] = 30
    alone = trained(models, tmp_path / "alone", tiny_collection, **ASYNC)
    evaluated = trained(models, tmp_path / "evaluated", tiny_collection, **ASYNC, **evaluates)
    assert len(values(evaluated, "eval_retriever_mrr@10")) == 15
    assert_equal_runs(evaluated, alone)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(models, tmp_path, tiny_collection):
    saves = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 20, "logging_steps": 4, **ASYNC}
    whole = trained(models, tmp_path / "whole", tiny_collection, **saves)
    # Before the snapshot, with a part of it encoded, and after the swap.
    for step in (5, 7, 8):
        checkpoint = f"checkpoint-{step}"
        shutil.copytree(tmp_path / "whole" / checkpoint, tmp_path / f"{step}" / checkpoint)
        in_flight = (tmp_path / "whole" / checkpoint / "snapshot.pt").is_file()
        assert in_flight == (step == 7)
        resumed = make(models, tmp_path / f"{step}", tiny_collection, **saves)
        resumed.train(resume_from_checkpoint=True)
        assert_equal_runs(resumed, whole)


def test_a_round_is_the_longest_staleness(models, tmp_path, tiny_collection):
    trainer = trained(models, tmp_path, tiny_collection, refresh_mode="async", max_staleness=100)
    # The pool of the third round would come after the last step, so it is not made.
    assert values(trainer, "pool/age") == [*range(1, 10), 5, *range(6, 11)]


@pytest.mark.parametrize("name", ["ar2", "rocketqa-v2"])
def test_trainers_of_two_models_refresh_between_steps(models, tmp_path, tiny_collection, name):
    settings = {} if name == "ar2" else {"num_train_epochs": 2, "refresh": True}
    trainer = make_trainer(name, models, tmp_path, tiny_collection, **QUIET, **ASYNC, **settings)
    trainer.train()
    steps = trainer.steps_per_round
    assert values(trainer, "pool/age") == [*range(1, steps + 3), *range(3, steps + 1)]


def test_it_learns(models, tmp_path, tiny_collection):
    trainer = make(models, tmp_path, tiny_collection, **{**ASYNC, "num_train_epochs": 8})
    before = trainer.evaluate()["eval_retriever_mrr@10"]
    trainer.train()
    assert trainer.evaluate()["eval_retriever_mrr@10"] > before + 0.1


def test_two_processes_find_the_pools_of_one(models, tmp_path, tiny_collection):
    one = make(models, tmp_path / "one", tiny_collection, **ASYNC)
    without_dropout(one.model)
    one.train()
    settings = {**SHORT, **ASYNC, "per_device_train_batch_size": 2}
    options = ["--trainer", "retriever", "--no_dropout", "--settings", json.dumps(settings)]
    launch_two(SCRIPT, models, tmp_path / "two", *options)
    log = json.loads((tmp_path / "two" / "result.json").read_text())["log"]
    for name in ("loss", "pool/age", "pool/top_score"):
        found = [entry[name] for entry in log if name in entry]
        np.testing.assert_allclose(found, values(one, name), rtol=1e-4)


def test_settings_that_have_nothing_to_refresh_are_errors(models, tmp_path, tiny_collection):
    def settings(config: type[JointConfig], **given: Any) -> JointConfig:
        return config(output_dir=str(tmp_path), **given)

    with pytest.raises(ValueError, match="'async' needs max_staleness"):
        settings(AR2Config, refresh_mode="async")
    with pytest.raises(ValueError, match="'sync' has none"):
        settings(AR2Config, max_staleness=3)
    for config, given in [
        (RetrieverConfig, {}),  # no hard negatives
        (RocketQAv2Config, {}),  # mines once
        (AR2Config, {"mine_with": "bm25"}),
        (AR2Config, {"mine": False, "train_lists": ["folder"]}),
    ]:
        with pytest.raises(ValueError, match="needs negatives that the retriever mines in every round"):
            settings(config, **ASYNC, **given)
    with pytest.raises(ValueError, match="LTRe's index stays as it is"):
        settings(LTReConfig, **ASYNC)
    args = RankerConfig(output_dir=str(tmp_path), **settings_of(RankerConfig), **ASYNC)
    with pytest.raises(ValueError, match="RankerTrainer does not train the retriever"):
        RankerTrainer(models / "tiny-retriever", models / "tiny-ranker", args, tiny_collection)
