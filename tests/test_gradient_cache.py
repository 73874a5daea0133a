"""Gradient caching: every trainer's losses and gradients are those of the plain step, in chunks of a few rows."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import AutocastKwargs
from tiny_ar2 import TRAINERS, settings_of, without_dropout
from transformers import TrainerCallback
from two_processes import in_two_processes, launch_two

from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import RankerConfig, RankerTrainer
from hf_ar2.trainers.gradient_cache import average_gradients

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
ROWS = 3
KINDS = TRAINERS | {"ranker": (RankerTrainer, RankerConfig)}
# Without a learning rate the weights stay, so that the gradients of every step can be compared. Each micro-batch
# holds lists of 6, so that all but the queries come in several chunks.
SETTINGS = {
    "num_negatives": 5,
    "learning_rate": 0.0,
    "max_steps": 4,
    "max_grad_norm": 0.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "eval_on_start": False,
}
AR2_STEPS = {"ranker_learning_rate": 0.0, "num_rounds": 1, "ranker_steps": 2, "retriever_steps": 2}


class Recorder(TrainerCallback):
    """Keeps the gradients every optimizer step is about to use, by parameter; None where there is none."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.steps: list[dict] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.steps.append(gradients(self.trainer))


def gradients(trainer):
    return {
        name: None if p.grad is None else p.grad.detach().clone()
        for name, p in trainer.model.named_parameters()
    }


@pytest.fixture
def make(models, tmp_path, tiny_collection):
    """Makes a trainer of a kind, cached or plain, with the same chunks."""

    def trainer(kind, cached, retriever=None, **settings):
        cls, config = KINDS[kind]
        given = settings_of(config) | {"max_passage_length": 32} | SETTINGS
        given |= (AR2_STEPS if kind == "ar2" else {"ranker_learning_rate": 0.0}) | settings
        made = cls(
            retriever or load_retriever(models / "tiny-retriever", device="cpu"),
            load_ranker(models / "tiny-ranker", device="cpu"),
            args=config(
                output_dir=str(tmp_path / f"{kind}-{cached}"),
                mini_batch_size=ROWS if cached else None,
                **given,
            ),
            collection=tiny_collection,
        )
        made.collator.mini_batch_size = ROWS
        made.recorder = Recorder(made)
        made.add_callback(made.recorder)
        return made

    return trainer


def train(*trainers):
    """Each from the same state of the random generators."""
    for trainer in trainers:
        torch.manual_seed(5)
        trainer.train()


def take_step(trainer, batch):
    """The loss of a step outside a run; it leaves its gradients."""
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(5)
    return float(trainer.training_step(trainer.model, batch))


def losses(log):
    return [entry["loss"] for entry in log if "loss" in entry]


def assert_same_steps(found, expected, rtol=1e-5):
    """Losses to 1e-5, and gradients: of the same parameters, and as vectors of a step closer than `rtol`."""
    np.testing.assert_allclose(losses(found.state.log_history), losses(expected.state.log_history), rtol=1e-5)
    assert len(found.recorder.steps) == len(expected.recorder.steps) > 0
    for mine, plain in zip(found.recorder.steps, expected.recorder.steps, strict=True):
        assert_same_gradients(mine, plain, rtol)


def assert_same_gradients(mine, plain, rtol=1e-5):
    there = [name for name, gradient in plain.items() if gradient is not None]
    assert there == [name for name, gradient in mine.items() if gradient is not None]
    assert distance(mine, plain) < rtol


def distance(mine, plain):
    """Length of the difference of two steps' gradients over the length of the second."""
    there = [name for name, gradient in plain.items() if gradient is not None]
    a, b = (torch.cat([side[name].reshape(-1) for name in there]).double() for side in (mine, plain))
    assert b.norm() > 0
    return float((a - b).norm() / b.norm())


# ---- One process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("retriever", {}),
        ("ranker", {}),
        ("retriever", {"matryoshka_dims": [16, 4]}),
        ("ar2", {"contrastive_weight": 0.5}),
        ("rocketqa-v2", {}),
        ("rocketqa-v2", {"preset": "paper"}),
        ("rocketqa-v2", {"ranker_frozen": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_losses_and_gradients_are_those_of_the_plain_step_with_dropout(make, kind, settings):
    plain, cached = make(kind, False, **settings), make(kind, True, **settings)
    train(plain, cached)
    assert_same_steps(cached, plain)


def test_dropout_is_on_and_drawn_again_as_it_was(make, monkeypatch):
    plain, careless = make("rocketqa-v2", False), make("rocketqa-v2", True)
    train(plain)
    monkeypatch.setattr("hf_ar2.trainers.gradient_cache.RandContext", lambda *tensors: nullcontext())
    train(careless)
    assert distance(careless.recorder.steps[0], plain.recorder.steps[0]) > 0.1


def test_no_more_rows_than_asked_for_go_through_a_model_and_each_text_goes_twice(make):
    trainer = make("rocketqa-v2", True, max_steps=1)
    seen = {"retriever": [], "ranker": []}

    def note(name):
        def hook(module, inputs):
            seen[name].append((len(inputs[0]["input_ids"]), torch.is_grad_enabled()))

        return hook

    trainer.begin_round()
    trainer.model.retriever.register_forward_pre_hook(note("retriever"))
    trainer.model.ranker.register_forward_pre_hook(note("ranker"))
    batch = trainer.collator([0, 1, 2, 3])
    texts = {
        "retriever": 4 + len(batch["passage_rows"].unique()),
        "ranker": batch["passage_rows"].numel(),
    }
    take_step(trainer, batch)
    for name, passes in seen.items():
        assert max(rows for rows, _ in passes) == ROWS
        for with_gradient in (False, True):
            assert sum(rows for rows, on in passes if on is with_gradient) == texts[name]


def test_accumulated_and_clipped_gradients_are_those_of_the_plain_step(make):
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.01,
        "max_steps": 3,
        "matryoshka_dims": [16, 4],
    }
    plain, cached = make("rocketqa-v2", False, **settings), make("rocketqa-v2", True, **settings)
    train(plain, cached)
    assert_same_steps(cached, plain)
    norms = [
        [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        for trainer in (cached, plain)
    ]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
    assert min(norms[1]) > 0.01  # so that there was something to clip


def test_under_bf16_gradients_are_those_of_the_plain_step_up_to_how_it_adds_them_up(make):
    plain, cached = make("rocketqa-v2", False, bf16=True), make("rocketqa-v2", True, bf16=True)
    exact = make("rocketqa-v2", False, bf16=True)
    # Without the cache of converted weights the plain step, too, adds the gradients of its chunks up in float32.
    exact.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    train(plain, cached, exact)
    assert_same_steps(cached, exact)
    assert_same_steps(cached, plain, rtol=0.02)
    rounding = distance(plain.recorder.steps[0], exact.recorder.steps[0])
    assert rounding > 1e-5, "bf16 was off, or this test shows nothing"


def test_gradients_are_scaled_once_for_fp16(make):
    steps = []
    for cached in (False, True):
        trainer = make("rocketqa-v2", cached)
        trainer.begin_round()
        batch = trainer.collator([0, 1, 2, 3])
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        steps.append((take_step(trainer, batch), gradients(trainer)))
    assert steps[1][0] == pytest.approx(steps[0][0], rel=1e-5)
    assert_same_gradients(steps[1][1], steps[0][1])


def test_a_frozen_tower_gets_no_gradient(make, models):
    steps = []
    for cached in (False, True):
        retriever = load_retriever(models / "tiny-retriever", separate_towers=True, device="cpu")
        for name, parameter in retriever.named_parameters():
            parameter.requires_grad_("sub_modules.query" in name)
        trainer = make("retriever", cached, retriever=retriever, max_steps=1)
        train(trainer)
        steps.append(trainer.recorder.steps[0])
    assert_same_gradients(steps[1], steps[0])


# ---- Two processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "parts"),
    [
        # In-batch negatives of both processes; whose passages they are is settled within a micro-batch.
        ("retriever", {"max_steps": 6}, 1),
        # One model at a time; gradients are averaged once the micro-batches are added up.
        ("ar2", {**AR2_STEPS, "num_rounds": 2, "ranker_learning_rate": 1e-3, "max_steps": -1}, 2),
        # Both models in every step.
        ("rocketqa-v2", {"ranker_learning_rate": 1e-3, "max_steps": 4}, 1),
    ],
    ids=["retriever", "ar2-accumulated", "rocketqa-v2"],
)
def test_two_processes_take_the_steps_of_one(models, tmp_path, make, kind, settings, parts):
    # With a learning rate, so that a wrong step shows in those after it.
    settings = SETTINGS | {"learning_rate": 1e-3, "max_grad_norm": 1.0} | settings
    one = make(kind, True, **settings)
    without_dropout(one.model)
    one.train()
    settings |= {"per_device_train_batch_size": 2 // parts, "gradient_accumulation_steps": parts}
    options = ["--trainer", kind, "--settings", json.dumps(settings | {"mini_batch_size": ROWS})]
    launch_two(SCRIPT, models, tmp_path / "two", "--no_dropout", *options)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["world_size"] == 2
    for name in ("loss", "grad_norm"):
        found, expected = (
            [entry[name] for entry in log if name in entry] for log in (two["log"], one.state.log_history)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def one_of_two_ranks(rank: int, folder: str) -> None:
    everywhere, here_or_there, nowhere = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    double = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    everywhere.grad = torch.arange(6.0).view(3, 2).t() * (1 + 2 * rank)  # not contiguous
    double.grad = torch.full((2,), 1.0 + rank, dtype=torch.float64)
    if rank == 0:
        here_or_there.grad = torch.ones(2, 3)
    average_gradients([everywhere, here_or_there, frozen, nowhere, double], bucket_bytes=30)
    torch.testing.assert_close(everywhere.grad, 2 * torch.arange(6.0).view(3, 2).t())
    torch.testing.assert_close(here_or_there.grad, torch.full((2, 3), 0.5))
    torch.testing.assert_close(double.grad, torch.full((2,), 1.5, dtype=torch.float64))
    assert nowhere.grad is None and frozen.grad is None


def test_averages_count_a_missing_gradient_as_zero_and_leave_out_what_has_none_anywhere(tmp_path):
    in_two_processes(one_of_two_ranks, tmp_path)
