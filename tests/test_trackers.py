"""TensorBoard, Weights & Biases and trackio are sent the same names and values by the trainers.

Proven here: transformers' own callbacks for the three, chosen by `report_to`, run through AR2 training; what
TensorBoard wrote is read back from its event files. In place of `wandb` and `trackio`, which start processes of
their own, stand modules that keep what they are sent: that the real ones store and show it is not proven here. (Once,
by hand, the same training was logged by wandb 0.31.0 offline and trackio 0.43.0, and both held these names.)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_ar2 import SETTINGS

from hf_ar2.collections import Collection
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import AR2Config, AR2Trainer

# What the callbacks call; `sent` is for the test.
WANDB = """
class Run:
    summary = {}
    def _label(self, **about): pass
class Config(dict):
    def update(self, values, allow_val_change): super().update(values)
run, config, sent = None, Config(), []
def init(**options):
    global run
    run = Run()
def define_metric(*names, **options): pass
def termwarn(*texts, **options): pass
def log(values): sent.append(values)
"""
TRACKIO = """
from contextvars import ContextVar
from types import SimpleNamespace
class Config(dict):
    def update(self, values, allow_val_change): super().update(values)
config, sent = Config(), []
context_vars = SimpleNamespace(current_space_id=ContextVar("space", default=None))
def init(**options): pass
def log(values): sent.append(values)
def finish(): pass
"""
# Sums over a run, which Weights & Biases and trackio are not sent as curves.
OF_THE_WHOLE_RUN = {
    f"train/{name}"
    for name in (
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_loss",
        "total_flos",
    )
}


@pytest.fixture
def trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The modules `wandb` and `trackio`, as they will be imported."""
    files = {
        "wandb/__init__.py": WANDB,
        "wandb/sdk/__init__.py": "",
        "wandb/sdk/lib/__init__.py": "",
        "wandb/sdk/lib/config_util.py": "class ConfigError(Exception): pass",
        "trackio/__init__.py": TRACKIO,
    }
    for name, text in files.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    ours = [name for name in sys.modules if name.split(".")[0] in ("wandb", "trackio")]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield {name: importlib.import_module(name) for name in ("wandb", "trackio")}
    for name in [name for name in sys.modules if name.split(".")[0] in ("wandb", "trackio")]:
        del sys.modules[name]


def curves(sent: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Name → step → value, as they were sent."""
    found: dict[str, dict[int, float]] = {}
    for values in sent:
        step = values["train/global_step"]
        for name, value in values.items():
            if name != "train/global_step":
                assert type(value) in (int, float), f"{name} is {value!r}, which TensorBoard drops"
                found.setdefault(name, {})[step] = value
    return found


def tensorboard_curves(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]
    }


@pytest.mark.slow
def test_the_three_are_sent_the_same(
    tmp_path: Path,
    trackers: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tiny_retriever_path: Path,
    tiny_ranker_path: Path,
    tiny_collection: Collection,
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    settings = SETTINGS | {"report_to": ["tensorboard", "wandb", "trackio"], "save_strategy": "no"}
    trainer = AR2Trainer(
        load_retriever(str(tiny_retriever_path), device="cpu"),
        load_ranker(str(tiny_ranker_path), device="cpu"),
        args=AR2Config(output_dir=str(tmp_path / "run"), **settings),
        collection=tiny_collection,
    )
    trainer.train()

    wandb, trackio = (curves(trackers[name].sent) for name in ("wandb", "trackio"))
    tensorboard = tensorboard_curves(tmp_path / "events")
    assert wandb == trackio
    assert set(tensorboard) - OF_THE_WHOLE_RUN == set(wandb)
    for name, by_step in wandb.items():
        assert tensorboard[name] == pytest.approx(by_step, rel=1e-5, nan_ok=True), (
            name
        )  # float32 in its files
    # What people look for, each once; a phase is logged in its own steps.
    assert {
        "train/loss",
        "train/loss/ranker",
        "train/loss/retriever",
        "train/loss/adversarial",
        "train/loss/distillation",
        "train/lr/retriever",
        "train/lr/ranker",
        "train/ranker_accuracy",
        "train/pool/outscored",
        "train/epoch",
        "eval/retriever_mrr@10",
        "eval/pipeline_mrr@10",
    } <= set(wandb)
    assert len(wandb["train/loss"]) == 14 and len(wandb["eval/retriever_mrr@10"]) == 3


def test_nothing_is_sent_to_anyone_unasked(tmp_path: Path, trackers: dict[str, Any]) -> None:
    assert AR2Config(output_dir=str(tmp_path)).report_to == []
