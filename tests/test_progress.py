"""Progress without a terminal, line by line, and what a trainer prints of its log."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from conftest import make_tiny_retriever

from hf_ar2 import progress
from hf_ar2.collections import Collection
from hf_ar2.evaluation.tables import NAN_NOTE
from hf_ar2.progress import format_duration, progress_bar
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer
from hf_ar2.trainers.log_lines import log_lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds on the clock of bars, to be set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_last_line", float("-inf"))
    return now


def test_without_a_terminal_a_line_is_printed_every_30_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(total=3400, description="Encoding passages", unit="texts") as bar:
        bar._time = lambda: clock[0]
        bar.start_t = bar.last_print_t = clock[0]
        for _ in range(34):
            clock[0] += 2.5
            bar.update(100)
    shown = capsys.readouterr().err
    assert shown.splitlines() == [
        "Encoding passages: 35 % (1,200/3,400 texts), 55 s left",
        "Encoding passages: 71 % (2,400/3,400 texts), 25 s left",
    ]
    assert "\r" not in shown and shown.isascii()


def test_what_is_done_sooner_prints_nothing_and_bars_share_the_time(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty bars of ten seconds each, which would be forty lines and more."""
    for _ in range(20):
        with progress_bar(total=10, description="Queries", unit="texts") as bar:
            for _ in range(10):
                clock[0] += 1
                bar.update()
                bar.refresh()
    assert capsys.readouterr().err == ""
    assert list(progress_bar(range(3))) == [0, 1, 2] and capsys.readouterr().err == ""


def test_what_is_not_shown_is_not_counted_either(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=3, show=False) as bar:
        bar.update(3)
        assert bar.disable
    assert capsys.readouterr().err == ""


def test_a_duration_has_at_most_two_units() -> None:
    shown = {0.4: "0 s", 59.6: "1 min", 250: "4 min 10 s", 3599.7: "1 h", 3900: "1 h 5 min", 90_000: "25 h"}
    assert {seconds: format_duration(seconds) for seconds in shown} == shown


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(total=2, description="Queries", unit="texts") as bar:
        bar.update(2)
    shown = capsys.readouterr().err
    assert "\r" in shown and "Queries: 100%" in shown


# ---- What a trainer prints -----------------------------------------------------------------------------------------


def test_lines_of_a_log_keep_to_80_columns_and_lose_nothing_telling() -> None:
    logs = {
        "loss": 0.55,
        "grad_norm": 3.2,
        "learning_rate": 1e-5,
        "loss/adversarial": 0.4,
        "loss/distillation": 0.25,
        "loss/ranker": 0.7,
        "loss/retriever": 0.41,
        "pool/deceived": 0.25,
        "ranker_accuracy": 0.8333,
        "teacher_accuracy": 0.75,
        "lr/retriever": 1e-5,
        "lr/ranker": 5e-7,
        "my_own": 12345.6,
        "epoch": 1.2,
    }
    lines = log_lines(logs, 120, 4000, phases=("ranker", "retriever"), left=4000)
    assert lines == [
        "step  120/4000  round 1.20  retriever  .410  ranker  .700  advers.  .400",
        "                distill.  .250  acc.  .833  teacher acc.  .750  deceived  .250",
        "                lr 1.0e-5  ranker lr 5.0e-7  my_own 12,346  1 h 7 min left",
    ]
    of_one = log_lines({**logs, "loss/ranker": 0.7}, 1, 10, phases=("retriever",))
    assert "loss  .550" in of_one[0] and " retriever " not in of_one[0]


def test_what_is_no_number_has_a_note() -> None:
    lines = log_lines({"loss": float("nan"), "epoch": 0.5}, 1, 10)
    assert lines == ["step  1/10  round 0.50  loss NaN", " " * 12 + NAN_NOTE]


def test_an_evaluation_has_a_line_for_each_system() -> None:
    metrics = {"mrr@10": 0.512, "ndcg@10": 0.55, "recall@100": 1.0}
    logs = {
        f"eval_{system}_{name}": value
        for system in ("retriever", "pipeline")
        for name, value in metrics.items()
    }
    assert log_lines({**logs, "epoch": 2.0}, 400, 400, eval_split="dev") == [
        "step 400/400  dev: retriever  mrr@10  .512  ndcg@10  .550  recall@100     1",
        "                   pipeline   mrr@10  .512  ndcg@10  .550  recall@100     1",
    ]


def test_a_step_of_two_models_is_no_evaluation() -> None:
    logs = {
        "loss": 1.2,
        "loss/joint": 1.2,
        "loss/ranker": 0.7,
        "loss/distillation": 0.5,
        "kl_ranker_to_retriever": 0.31,
        "kl_retriever_to_ranker": 0.4,
        "entropy/retriever": 1.0,
        "entropy/ranker": 0.8,
        "agreement": 0.5,
        "list_length": 8.0,
    }
    assert log_lines(logs, 20, 20, phases=("joint",)) == [
        "step 20/20  loss 1.200  ranker  .700  distill.  .500  KL  .310  agree  .500",
        "            entropy  .800",
    ]


@pytest.fixture
def trainer(tmp_path: Path, tiny_collection: Collection) -> RetrieverTrainer:
    """Eight steps, each with an entry, and two evaluations."""
    settings = {
        "max_passage_length": 32,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "max_steps": 8,
    }
    evaluation = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "eval_metrics": ["mrr@10"],
        "eval_on_start": False,
    }
    config = RetrieverConfig(
        str(tmp_path / "run"), **settings, **evaluation, use_cpu=True, bf16=False, report_to="none"
    )
    return RetrieverTrainer(
        str(make_tiny_retriever(tmp_path / "tiny")), args=config, collection=tiny_collection
    )


@pytest.mark.slow
def test_without_a_terminal_a_short_training_prints_little_and_logs_everything(
    trainer: RetrieverTrainer, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.train()
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step") and "loss" in line] == ["1/8", "8/8"]
    assert [line.split()[1] for line in lines if "dev: retriever" in line] == ["4/8", "8/8"]
    assert lines[-1].startswith("8 steps in ") and max(map(len, lines)) <= 80
    assert not any(ours in printed.err for ours in ("Training", "Tokenising", "Encoding", "queries"))
    assert sum("loss" in entry for entry in trainer.state.log_history) == 8, "trackers are sent every entry"


@pytest.mark.slow
def test_on_a_terminal_every_entry_is_printed_above_a_bar_unless_that_is_disabled(
    trainer: RetrieverTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    trainer.train()
    printed = capsys.readouterr()
    assert sum(line.startswith("step") and "loss" in line for line in printed.out.splitlines()) == 8
    assert "Training: 100%" in printed.err and "8/8" in printed.err
    trainer.args.disable_tqdm = True
    trainer.train()
    printed = capsys.readouterr()
    assert "8/8" in printed.out and "Training" not in printed.err
