"""A corpus encoded by a process of its own: the run is that with refreshes between steps, and no process is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from test_async_refresh import ASYNC, SCRIPT, SHORT, assert_equal_runs, make, trained, values
from tiny_ar2 import settings_of
from transformers import TrainerCallback
from two_processes import launch_two

from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer
from hf_ar2.trainers.async_refresh import Refresh

pytestmark = pytest.mark.slow

ELSEWHERE = {**ASYNC, "refresh_device": "cpu"}


class At(TrainerCallback):
    """Calls a function once a step is done."""

    def __init__(self, step: int, function: Any) -> None:
        self.step, self.function = step, function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.function()


class Local(torch.nn.Module):
    """A module that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("a Local stays here")


def encoding_processes(of: psutil.Process) -> list[psutil.Process]:
    return [child for child in of.children() if "hf_ar2.index.background" in " ".join(child.cmdline())]


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert not encoding_processes(psutil.Process())


@pytest.fixture
def only_elsewhere(monkeypatch):
    """The training process encodes no part of a refresh."""

    def encode(self: Refresh, upto: int) -> None:
        raise AssertionError("encoded between steps")

    return lambda: monkeypatch.setattr(Refresh, "_encode", encode)


@pytest.mark.parametrize("evaluates", [{}, {"eval_strategy": "steps", "eval_steps": 1, "eval_passages": 30}])
def test_it_is_the_run_with_refreshes_between_steps(
    models, tmp_path, tiny_collection, only_elsewhere, evaluates
):
    between = trained(models, tmp_path / "between", tiny_collection, **ASYNC, **evaluates)
    only_elsewhere()
    found = trained(models, tmp_path / "elsewhere", tiny_collection, **ELSEWHERE, **evaluates)
    assert_equal_runs(found, between)
    assert values(found, "pool/age") == [1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 3, 4, 5]
    assert len(values(found, "refresh_share")) == 15
    assert not list(tmp_path.glob("*/index/*.npy"))


def test_a_staleness_of_0_is_the_synchronous_run(models, tmp_path, tiny_collection, only_elsewhere):
    synchronous = trained(models, tmp_path / "sync", tiny_collection, bf16=True)
    only_elsewhere()
    settings = {**ELSEWHERE, "max_staleness": 0, "bf16": True}
    assert_equal_runs(trained(models, tmp_path / "async", tiny_collection, **settings), synchronous)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(models, tmp_path, tiny_collection):
    saves = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 20, "logging_steps": 4}
    whole = trained(models, tmp_path / "whole", tiny_collection, **saves, **ELSEWHERE)
    # While the corpus is encoded, elsewhere and, in the run that continues, between the steps; and after the swap.
    for step, settings in ((7, ELSEWHERE), (7, ASYNC), (8, ELSEWHERE)):
        folder = tmp_path / f"{step}-{len(settings)}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = make(models, folder, tiny_collection, **saves, **settings)
        resumed.train(resume_from_checkpoint=True)
        assert_equal_runs(resumed, whole)


def test_two_processes_share_one_that_encodes(models, tmp_path):
    settings = {**SHORT, **ASYNC, "num_negatives": 3, "mine": True, "per_device_train_batch_size": 2}
    results = []
    for name, more in (("between", {}), ("elsewhere", {"refresh_device": "cpu"})):
        options = ["--trainer", "retriever", "--settings", json.dumps({**settings, **more})]
        launch_two(SCRIPT, models, tmp_path / name, *options)
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    between, elsewhere = results
    assert elsewhere["weights"] == between["weights"]
    assert [entry.get("loss") for entry in elsewhere["log"]] == [
        entry.get("loss") for entry in between["log"]
    ]


@pytest.mark.parametrize("step", [2, 6])  # where it waits, and while it encodes
def test_its_death_ends_the_run(models, tmp_path, tiny_collection, step):
    trainer = make(models, tmp_path, tiny_collection, **ELSEWHERE)
    trainer.add_callback(At(step, lambda: encoding_processes(psutil.Process())[0].kill()))
    with pytest.raises(RuntimeError, match="the process that encodes the corpus on cpu was ended by SIGKILL"):
        trainer.train()
    assert step <= trainer.state.global_step <= 8
    trainer.remove_callback(At)
    trainer.train()  # with another one


def test_an_error_of_it_ends_the_run(models, tmp_path, tiny_collection, monkeypatch):
    here = types.ModuleType("only_here")
    here.OnlyHere = type("OnlyHere", (torch.nn.Module,), {"__module__": "only_here"})
    monkeypatch.setitem(sys.modules, "only_here", here)
    trainer = make(models, tmp_path, tiny_collection, **ELSEWHERE)
    trainer.model.retriever.more = here.OnlyHere()
    with pytest.raises(RuntimeError, match="on cpu failed: ModuleNotFoundError: No module named 'only_here'"):
        trainer.train()
    trainer.model.retriever.more = Local()
    with pytest.raises(
        ValueError, match="the retriever cannot be sent to the process that encodes on cpu: a Lo"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_interrupted_run_leaves_no_process(models, tmp_path, tiny_collection):
    def interrupt() -> None:
        raise KeyboardInterrupt

    trainer = make(models, tmp_path, tiny_collection, **ELSEWHERE)
    trainer.add_callback(At(6, interrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not encoding_processes(psutil.Process())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_the_process_that_trains(models, tmp_path, sent):
    settings = {**SHORT, **ELSEWHERE, "num_negatives": 3, "mine": True, "num_train_epochs": 10_000}
    options = ["--trainer", "retriever", "--settings", json.dumps(settings)]
    command = [sys.executable, SCRIPT, models, tmp_path, *options]
    log = tmp_path / "log.txt"
    # A job in the background of a shell ignores Ctrl-C, and so would what it starts.
    reset = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with log.open("w") as output:
        training = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, preexec_fn=reset
        )
    try:
        until = time.monotonic() + 120
        while not (found := encoding_processes(psutil.Process(training.pid))):
            assert training.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        while not list(tmp_path.glob("index/snapshot-*.npy")) and time.monotonic() < until:
            time.sleep(0.01)
        os.killpg(training.pid, sent)  # as Ctrl-C in a terminal does
        training.wait(30)
    finally:
        training.kill()
        training.wait()
    psutil.wait_procs(found, timeout=30)
    assert not any(process.is_running() for process in found)
    shown = log.read_text()
    assert shown.count("Traceback") <= 1 and "background.py" not in shown


def test_other_gpus_than_the_first_are_not_trained_on(models, tmp_path, tiny_collection):
    args = RetrieverConfig(output_dir=str(tmp_path), **{**settings_of(RetrieverConfig), **ELSEWHERE})
    args._n_gpu = 2
    trainer = RetrieverTrainer(models / "tiny-retriever", args, tiny_collection)
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 4


def test_devices_that_cannot_encode_are_errors(models, tmp_path, tiny_collection):
    with pytest.raises(
        ValueError, match="refresh_device='cpu' encodes while training goes on, but refresh_mode"
    ):
        RetrieverConfig(output_dir=str(tmp_path), refresh_device="cpu")
    for device, message in (
        ("gpu 1", "refresh_device='gpu 1': expected a device of torch, such as 'cuda:1'"),
        (
            "cuda:1",
            "training is on cpu, and another kind of device rounds differently; expected a cpu device",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make(models, tmp_path, tiny_collection, **{**ASYNC, "refresh_device": device})
