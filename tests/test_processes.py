"""Runs in one process and in several, and with another number of them after one was killed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from two_processes import launch, launched

from hf_ar2.training_lists.pool import CandidatePool

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
SETTINGS = {"index_factory": "Flat", "filter_answers": True, "save_strategy": "steps", "save_steps": 4}


def options(processes: int) -> list[str]:
    """Eight lists a step in all, without dropout, whose random numbers differ by process."""
    settings = json.dumps({**SETTINGS, "per_device_train_batch_size": 8 // processes})
    return ["--no_dropout", "--answers", "--settings", settings]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def values(found: dict, name: str) -> list[float]:
    return [entry[name] for entry in found["log"] if name in entry]


def assert_same(folder: Path, expected: Path) -> None:
    """The pools and metrics are equal, losses up to rounding."""
    found, of_one = result(folder), result(expected)
    np.testing.assert_allclose(values(found, "loss"), values(of_one, "loss"), rtol=1e-4)
    for metric in ("eval_retriever_mrr@10", "eval_pipeline_mrr@10", "pool/dropped/contains_answer"):
        assert len(values(of_one, metric)) >= 2 and values(found, metric) == values(of_one, metric)
    pools = [CandidatePool.open(place / "pool") for place in (folder, expected)]
    assert np.array_equal(pools[0].passage_rows, pools[1].passage_rows)
    np.testing.assert_allclose(pools[0].scores, pools[1].scores, rtol=1e-4)
    assert pools[0].dropped == pools[1].dropped and pools[0].dropped["contains_answer"] > 0


@pytest.fixture(scope="module")
def one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AR2 with two refreshes in one process."""
    folder = tmp_path_factory.mktemp("one")
    launch(1, SCRIPT, models, folder, *options(1))
    return folder


def test_four_processes_find_what_one_does(one: Path, models: Path, tmp_path: Path) -> None:
    launch(4, SCRIPT, models, tmp_path, *options(4))
    assert result(tmp_path)["world_size"] == 4
    assert_same(tmp_path, one)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4)])
def test_a_run_continues_with_another_number_of_processes(
    before: int, after: int, one: Path, models: Path, tmp_path: Path
) -> None:
    kill = ["--kill_after", "10", "--killed_rank", str(before - 1)]
    done = launched(before, SCRIPT, models, tmp_path, *options(before), *kill)
    assert done.returncode != 0 and "Signal 9 (SIGKILL)" in done.stderr  # the other ones have ended, too
    assert not (tmp_path / "result.json").exists()
    launch(after, SCRIPT, models, tmp_path, *options(after), "--resume")
    assert result(tmp_path)["world_size"] == after
    assert_same(tmp_path, one)
