"""The benchmark against sentence-transformers: keeping to the budget, reading both sides, and the tables."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny_collection

from hf_ar2.collections import Collection
from hf_ar2.evaluation.runs import run_file, write_run
from hf_ar2.evaluation.systems import evaluated_queries

sys.path.insert(0, str(Path(__file__).with_name("benchmarks")))

import against_sentence_transformers as against
from comparison import Outcome, compared, describe, summarise
from processor_budget import Allowance, Budget, affordable
from rival import Rival, Rules, reranked


class FakeClock:
    now = 1.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_books_its_parts() -> None:
    clock = FakeClock()
    budget = Budget(60, clock)
    for seconds in (5, 7):
        with budget.part("mining"):
            clock.now += seconds
    clock.now += 1
    assert budget.parts == {"mining": 12}
    assert (budget.spent, budget.left) == (14, 46)  # the clock stood at 1 when the budget was made


@pytest.mark.parametrize("step", [0.3, 1.0, 4.0])
def test_training_ends_within_half_a_step_of_its_allowance(step: float) -> None:
    clock = FakeClock()
    allowance = Allowance(Budget(100, clock), seconds=20)
    factors = []
    ended = False
    while not ended:
        factors.append(allowance.factor())
        clock.now += step
        ended = allowance.step_done()
    assert abs(allowance.steps * step - 20) <= step / 2 + 1e-9
    peak = int(np.argmax(factors))
    assert factors == sorted(factors[:peak]) + sorted(factors[peak:], reverse=True)  # it rises, then it falls
    assert 0 < factors[-1] < 2 * step / 20


def test_what_is_affordable_is_bounded_by_what_there_is_and_what_is_needed() -> None:
    assert affordable(100, seconds_each=0.5, seconds=20) == 40
    assert affordable(30, seconds_each=0.5, seconds=20) == 30
    assert affordable(100, seconds_each=0.5, seconds=20, at_least=60) == 60


def test_reranking_reorders_the_head_alone() -> None:
    scores, rows = np.array([[0.9, 0.8, 0.7, 0.6]]), np.array([[4, 3, 2, 1]])
    logits = np.array([[0.0, 5.0, 9.0]])
    assert reranked(scores, rows, logits, None).tolist() == [[2, 3, 4, 1]]
    assert reranked(scores, rows, logits, 0.1).tolist() == [[4, 3, 2, 1]]
    assert reranked(scores, rows, logits[:, :0], None).tolist() == rows.tolist()


def outcome(side: str, values: list[float], seed: int = 1, **other: object) -> Outcome:
    return Outcome(
        side=side,
        collection="tiny",
        minutes=2.0,
        seed=seed,
        model="base",
        queries=["a", "b", "c"],
        seconds={"spent": 119.0, "total": 150.0},
        values={"retriever": {"mrr@10": values}},
        **other,  # type: ignore[arg-type]
    )


def test_values_are_averaged_over_seeds_before_the_test() -> None:
    ours = [outcome("ours", [1.0, 0.5, 0.0], seed=1), outcome("ours", [0.0, 0.5, 1.0], seed=2)]
    theirs = [outcome("theirs", [0.5, 0.5, 0.5], seed=1), outcome("theirs", [0.5, 0.5, 0.5], seed=2)]
    _, _, test = compared(ours, theirs, "retriever", "mrr@10")
    assert test is not None and (test.difference, test.ties) == (0.0, 3)


def test_a_summary_has_a_line_per_system_and_names_what_does_not_match(tmp_path: Path) -> None:
    ours, theirs = outcome("ours", [1.0, 1.0, 1.0]), outcome("theirs", [0.5, 0.5, 0.5])
    ours.save(tmp_path)
    assert Outcome.load(tmp_path / "ours.json") == ours
    table = summarise([ours, theirs])
    assert "| tiny | 2 | 1 | retriever | 1.000 | 0.500 | +0.500 (p = .250) |" in table
    assert "119 (150)" in table
    assert describe(ours, theirs).count("processor seconds") >= 3
    with pytest.raises(ValueError, match="each seed once per side"):
        summarise([ours, outcome("theirs", [0.5, 0.5, 0.5], seed=2)])
    theirs.queries = ["a", "b", "d"]
    with pytest.raises(ValueError, match="other test queries"):
        summarise([ours, theirs])


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(collection="data/tiny", minutes=2.5, seed=3, model="base", output=folder)


def test_our_side_is_read_from_its_run_folder(tmp_path: Path, tiny_collection: Collection) -> None:
    queries = evaluated_queries(tiny_collection, "test")
    ids = np.asarray(tiny_collection.queries["id"], object)[queries].tolist()
    judgments = tiny_collection.judgments("test")
    positives = np.array([judgments.of(i)[0][0] for i in range(len(queries))])
    others = (positives + 1) % len(tiny_collection.corpus)

    def launch(command: list[str]) -> int:
        """What the recipe leaves behind: the chosen pipeline is right for every query, its retriever is second."""
        told = dict(zip(command[3::2], command[4::2], strict=True))
        run = Path(told["--output_dir"])
        assert (told["--minutes"], told["--clock"], told["--seed"]) == ("2.5", "processor", "3")
        chosen = {"row": "AR2", "system": "pipeline", "weight": 0.5, "depth": 10, "retriever_row": "warm-up"}
        for row, system, first in (("warm-up", "retriever", others), ("AR2", "pipeline", positives)):
            second = positives if first is others else others
            rest = [
                [row for row in range(20) if row not in pair][:10] for pair in zip(first, second, strict=True)
            ]
            rows = np.concatenate([np.stack([first, second], axis=1), rest], axis=1)
            path = run_file(run, row, "test", system)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_run(path, ids, tiny_collection.corpus["id"], rows, -np.arange(12.0) + np.zeros(rows.shape))
        (run / "stages/ar2").mkdir(parents=True)
        (run / "stages/ar2/done.json").write_text('{"seconds": 42}')
        (run / "time.json").write_text('{"seconds": 140, "clock": "processor"}')
        (run / "chosen.json").write_text(json.dumps(chosen))
        return 0

    found = against.run_ours(options(tmp_path), tiny_collection, launch)
    assert found.queries == ids
    assert found.seconds["spent"] == 140
    assert found.facts["seconds by stage, by the wall clock"] == {"ar2": 42}
    assert set(found.values["system"]["mrr@10"]) == {1.0}
    judged_second = [row in set(judgments.of(i)[0].tolist()) for i, row in enumerate(others)]
    assert found.values["retriever"]["mrr@10"] == [1.0 if judged else 0.5 for judged in judged_second]
    assert "zero-shot" not in found.values


def test_a_failed_recipe_ends_the_benchmark(tmp_path: Path, tiny_collection: Collection) -> None:
    with pytest.raises(SystemExit, match="exit code 3"):
        against.run_ours(options(tmp_path), tiny_collection, lambda command: 3)


class Ticking:
    """A clock that moves when it is read, so that the tests do not depend on how fast they run."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.02
        return self.now


def tiny_rival(model: Path, **rules: int) -> Rival:
    small = Rules(
        warmup_batch=4, hard_batch=4, ranker_negatives=3, passage_length=32, pair_length=48, **rules
    )
    return Rival(make_tiny_collection(), str(model), Budget(6, Ticking()), seed=1, bf16=False, rules=small)


@pytest.mark.slow
def test_the_rival_goes_through_all_of_its_parts(tiny_retriever_path: Path) -> None:
    rival = tiny_rival(tiny_retriever_path, ranker_least_steps=1)
    rival.train()
    assert {"zero-shot", "warm-up", "hard negatives", "retrieve and re-rank"} <= set(rival.dev)
    assert rival.best.dev == max(rival.dev[name] for name in ("zero-shot", "warm-up", "hard negatives"))
    assert rival.dev["retrieve and re-rank"] >= rival.dev["retriever on the same queries"]
    assert min(rival.facts[f"{part} steps"] for part in ("warm-up", "hard negatives", "ranker")) > 0
    found = rival.rankings("test")
    assert {rows.shape[0] for rows in found.values()} == {len(rival.collection.judgments("test"))}
    assert np.array_equal(np.sort(found["system"], axis=1), np.sort(found["retriever"], axis=1))


@pytest.mark.slow
def test_a_rival_without_the_time_for_a_ranker_trains_none(tiny_retriever_path: Path) -> None:
    rival = tiny_rival(tiny_retriever_path, ranker_least_steps=10**9)
    rival.train()
    assert "ranker" not in rival.budget.parts and rival.depth == 0
    assert rival.budget.spent == pytest.approx(6, rel=0.2)
    found = rival.rankings("test")
    assert np.array_equal(found["system"], found["retriever"])
