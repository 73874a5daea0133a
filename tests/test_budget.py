"""How the minutes of a run are divided, and what a run with minutes does."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_recipe
from sentence_transformers import SentenceTransformer

from hf_ar2 import RetrieverConfig
from hf_ar2.collections.questions import question_id, write_judged
from hf_ar2.command_line.launch import find_recipe
from hf_ar2.command_line.main import main as cli_main
from hf_ar2.index.encodings import Encodings
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.recipes.budget import Budget, make_plan, more_time, overheads, without
from hf_ar2.recipes.costs import Costs
from hf_ar2.recipes.lengths import Length
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.planning import few_steps, plan_identity, time_after, without_useless_stages, working_part
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.run import main
from hf_ar2.settings.text import TextConfig
from hf_ar2.trainers.retrieval import Retrieval, encoders_of
from hf_ar2.trainers.step_time import training_factor

COSTS = Costs(
    rate=7000,
    passages=2650,
    passage_tokens=125,
    query_tokens=14,
    pair_tokens=139,
    dev_queries=300,
    train_queries=600,
    training=4.0,
)


@pytest.fixture
def recipe():
    return load_recipe(find_recipe("own-corpus"))


def test_all_seconds_are_divided(recipe):
    costs = dataclasses.replace(COSTS, train_queries=60_000)
    for seconds in (300.0, 1200.0, 3600.0, 36000.0):
        plan = make_plan(recipe, seconds, costs)
        assert sum(plan.training.values()) + sum(plan.overhead.values()) == pytest.approx(seconds)
        assert set(plan.training) | set(plan.dropped) <= set(recipe.stages)
        assert all(value > 0 for stage, value in plan.training.items() if stage != "merged")


def test_no_stage_gets_more_time_than_its_passes_need(recipe):
    spent = [sum(make_plan(recipe, seconds, COSTS).training.values()) for seconds in (7200.0, 36000.0)]
    assert spent[0] == spent[1] < 7200  # 600 queries: every stage makes all of its passes
    assert "More minutes would change nothing" in more_time(recipe, 7200.0, COSTS)
    # 4 passes in batches of 64: what the warm-up does not need is for the others.
    plan, unbounded = (make_plan(stages, 1200.0, COSTS) for stages in (recipe, without_bounds(recipe)))
    assert plan.training["warm-up"] == pytest.approx(
        38 * COSTS.step("retriever", recipe.stage_args("warm-up"))
    )
    assert plan.training["warm-up"] < unbounded.training["warm-up"]
    assert plan.training["hard-negatives"] > unbounded.training["hard-negatives"]
    assert sum(plan.training.values()) + sum(plan.overhead.values()) == pytest.approx(1200.0)


def without_bounds(recipe):
    """A recipe whose stages train as long as there is time."""
    recipe = copy.deepcopy(recipe)
    for body in recipe.stages.values():
        body.pop("max_epochs", None)
    return recipe


def test_a_part_of_the_corpus_has_fewer_queries_to_pass(recipe):
    costs = dataclasses.replace(COSTS, train_queries=60_000, part_queries=600)
    assert costs.steps_of_epochs(recipe, "warm-up") == 3750  # trains on all
    assert costs.steps_of_epochs(recipe, "hard-negatives") == 150  # searches the part


def test_a_plan_that_hardly_trains_says_how_many_minutes_would(recipe):
    slow = dataclasses.replace(COSTS, rate=150.0, passages=20, dev_queries=0, train_queries=60_000)
    warning = few_steps(make_plan(recipe, 300.0, slow), slow)
    assert re.search(r"about 1 step of warm-up, .* --minutes \d+ would be enough for about 20\.", warning)
    minutes = int(re.search(r"--minutes (\d+)", warning)[1])
    assert few_steps(make_plan(recipe, minutes * 60.0, slow), slow) == ""
    assert few_steps(make_plan(recipe, 300.0, COSTS), COSTS) == ""


def test_what_encodes_the_whole_corpus_after_the_minutes_is_announced(recipe):
    costs = dataclasses.replace(COSTS, passages=600)
    said = time_after(make_plan(recipe, 1200.0, costs), costs, 10_000)
    assert "up to 3 models encode all 10,000 passages for test: up to 9 more minutes" in said
    assert time_after(make_plan(recipe, 1200.0, COSTS), COSTS, COSTS.passages) == ""
    recipe.evaluation["splits"] = ["dev"]
    assert time_after(make_plan(recipe, 1200.0, costs), costs, 10_000) == "" and recipe.report_split == "dev"


def test_what_headings_cannot_choose_is_not_trained(recipe, tiny_collection):
    heading = ["heading"] * len(tiny_collection.queries)
    headings = dataclasses.replace(
        tiny_collection, queries=tiny_collection.queries.add_column("source", heading)
    )
    less, why = without_useless_stages(recipe, headings)
    assert list(less.stages) == ["warm-up", "hard-negatives", "ranker", "ar2", "merged"]
    assert less.rows["merged"] == {"retriever": "merged", "ranker": "ar2"}
    assert why.startswith("Without ltre: people asked none of the queries of dev")
    assert without_useless_stages(recipe, tiny_collection) == (recipe, "")
    recipe.evaluation["choose_on"] = None  # the last row is served, whatever it is
    assert without_useless_stages(recipe, headings) == (recipe, "")


def test_more_time_drops_no_more_stages(recipe):
    stages = [len(make_plan(recipe, seconds, COSTS).recipe.stages) for seconds in range(200, 4000, 200)]
    assert stages == sorted(stages) and stages[0] < stages[-1] == len(recipe.stages)


def test_a_stage_waits_for_passes_over_the_training_queries(recipe):
    few, many = (dataclasses.replace(COSTS, train_queries=queries) for queries in (600, 600_000))
    assert "ltre" in make_plan(recipe, 1200.0, few).training
    assert "the earlier stages have time for 0.0 passes" in make_plan(recipe, 1200.0, many).dropped["ltre"]


def test_what_is_dropped_leaves_a_recipe_that_can_be_run(recipe, tmp_path):
    for stage in recipe.stages:
        less = without(recipe, stage)
        body = {key: copy.deepcopy(value) for key, value in vars(less).items() if key != "output_dir"}
        load_recipe(write_recipe(tmp_path / "less.yaml", body))  # checks that every source is there
        assert stage not in less.stages
        if stage == "ranker":
            assert "ar2" not in less.stages  # which needs one
        if stage == "ltre":  # its row hands its ranker on
            assert less.evaluation["rows"]["merged"] == {"retriever": "merged", "ranker": "ar2"}


def test_the_corpus_is_encoded_once_for_every_set_of_weights(recipe):
    encodings = {
        stage: round(seconds / COSTS.encoding, 3)
        for stage, seconds in overheads(recipe, COSTS).items()
        if stage not in ("ar2", "merged", "")
    }
    # The warm-up's for hard negatives, then theirs for the ranker's lists, then the merged retriever's for LTRe.
    assert encodings == {"warm-up": 0.0, "hard-negatives": 1.0, "ranker": 1.0, "ltre": 1.0}


def test_too_little_time_says_how_much_is_needed(recipe):
    with pytest.raises(RecipeError, match=r"take about 1\.6 minutes here, and 1\.0 of the minutes are left"):
        make_plan(recipe, 60.0, COSTS)


def test_what_another_hour_would_go_into_names_what_was_left_out(recipe):
    assert "ranker" in more_time(recipe, 300.0, COSTS) and "not trained in this run" in more_time(
        recipe, 300.0, COSTS
    )


def test_a_budget_counts_earlier_attempts(tmp_path):
    (tmp_path / "time.json").write_text(json.dumps({"seconds": 100.0}))
    budget = Budget(tmp_path, 300.0, "wall")
    assert 100.0 <= budget.spent < 101.0


def test_a_closed_budget_counts_nothing_more(tmp_path):
    budget = Budget(tmp_path, 300.0, "processor")
    budget.close()
    closed = (tmp_path / "time.json").read_text()
    sum(range(1_000_000))
    budget.write()  # as the lock of the run folder does every few seconds
    assert (tmp_path / "time.json").read_text() == closed


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("minutes", "0", "minutes: found 0, expected a number above 0"),
        ("minutes", "soon", "minutes: found 'soon'"),
        ("clock", "sun", "clock: found 'sun', expected one of wall, processor"),
    ],
)
def test_wrong_values_are_named(key, value, expected):
    with pytest.raises(RecipeError, match=expected):
        load_recipe(find_recipe("own-corpus"), {key: value})


@pytest.fixture
def path(home: Path, tmp_path: Path) -> Path:
    """A recipe of four stages over the tiny collection."""
    recipe = {
        "name": "tiny",
        "collection": str(home / "data"),
        "models": {"base": {"model": str(home / "retriever"), "dropout": 0.0}},
        "args": {
            "max_passage_length": 32,
            "max_pair_length": 48,
            "report_to": "none",
            "save_strategy": "no",
            "eval_strategy": "steps",
            "eval_steps": 5,
            "eval_on_start": False,
            "patience": 2,
            "eval_metrics": ["mrr@10"],
            "eval_depth": 20,
            "rerank_depth": 10,
            "bf16": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "lr_scheduler_type": "warmup_stable_decay",
            "per_device_train_batch_size": 4,
        },
        "stages": {
            "hard": {
                "trainer": "retriever",
                "retriever": "base",
                "share": 2,
                "max_epochs": 3,
                "args": {"num_negatives": 2, "pool_depth": 5},
            },
            "ranker": {
                "trainer": "ranker",
                "retriever": "hard",
                "ranker": "hard",
                "max_epochs": 3,
                "args": {"num_negatives": 3, "pool_depth": 5},
            },
            "ar2": {
                "trainer": "ar2",
                "retriever": "hard",
                "ranker": "ranker",
                "max_epochs": 1,
                "args": {
                    "num_negatives": 2,
                    "pool_depth": 5,
                    "num_rounds": 1,
                    "ranker_steps": 1,
                    "retriever_steps": 4,
                    "eval_strategy": "no",
                    "patience": None,
                },
            },
            "ltre": {
                "trainer": "ltre",
                "retriever": "ar2",
                "max_epochs": 2,
                "args": {"list_depth": 10, "eval_strategy": "no", "patience": None},
            },
        },
        "evaluation": {
            "splits": ["dev", "test"],
            "metrics": ["mrr@10", "ndcg@10"],
            "depth": 20,
            "rerank_depth": 10,
            "lexical": True,
            "rows": {
                "zero-shot": {"retriever": "base"},
                "hard": {"retriever": "hard"},
                "LTRe": {"retriever": "ltre", "ranker": "ar2"},
            },
        },
    }
    return write_recipe(tmp_path / "tiny.yaml", recipe)


@pytest.mark.slow
def test_a_run_with_minutes_ends_with_a_system_a_plan_and_its_times(path, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [str(path), "--output_dir", str(run), "--minutes", "5", "--clock", "processor"]
    main(arguments)
    said = capsys.readouterr().out
    assert "BM25" in said and "with BM25" in said and "More minutes would change nothing" in said
    assert (run / "lexical").is_dir() and (run / "runs").is_dir()
    lengths = {
        stage: json.loads((run / "stages" / stage / "length.json").read_text()) for stage in ("hard", "ltre")
    }
    assert lengths["hard"]["steps"] == 18 and "3 passes over 24 queries" in lengths["hard"]["why"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"BM25", "zero-shot", "hard", "LTRe"}
    assert set(metrics["LTRe"]["test"]) == {"retriever", "hybrid", "ranker", "pipeline"}
    chosen = json.loads((run / "chosen.json").read_text())
    assert chosen["dev"][f"{chosen['row']} {chosen['system']}"]["n"] == 8

    # The same command again: nothing is trained, the same is chosen.
    main(arguments)
    assert "done before" in capsys.readouterr().out
    assert json.loads((run / "chosen.json").read_text()) == chosen


@pytest.mark.slow
def test_without_minutes_the_passes_bound_a_stage(path, tmp_path):
    run = tmp_path / "run"
    main([str(path), "--output_dir", str(run), "--evaluation.rows", "{hard: {retriever: hard}}"])
    steps = {
        stage: json.loads((run / "stages" / stage / "done.json").read_text())["steps"]
        for stage in ("hard", "ranker", "ar2", "ltre")
    }
    assert steps["hard"] <= 18 and steps["ranker"] <= 18 and steps["ltre"] == 12 and steps["ar2"] <= 8


def test_without_time_for_evaluations_the_best_weights_are_chosen_at_the_end(tmp_path):
    best = {
        "save_strategy": "best",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_retriever_mrr@10",
    }

    def found(steps, **settings):
        args = RetrieverConfig(
            output_dir=str(tmp_path), eval_strategy="steps", eval_steps=20, patience=4, **settings
        )
        evaluation = SimpleNamespace(judgments=range(300))
        trainer = SimpleNamespace(
            args=args, evaluation=evaluation, trained=("retriever",), method="retriever"
        )
        return Length(None, Budget(tmp_path, None), COSTS)._evaluations(trainer, steps, seconds=2.0)

    # An evaluation encodes 48 seconds long, so one in 240 steps is a tenth of the time.
    assert found(960) == found(960, **best) == {"eval_steps": 240}
    assert found(950) == {"eval_strategy": "no", "patience": None}
    assert found(950, **best) == {"eval_steps": 950, "patience": None}


def test_a_part_of_the_corpus_is_what_its_queries_are_about(tiny_collection):
    part = working_part(tiny_collection, 30, "train", "dev", seed=0, texts=TextConfig())
    assert len(part.corpus) <= 30 and part.splits == ["train", "dev"]
    assert len(part.judgments("dev")) >= 2 and len(part.judgments("train")) >= 5
    inside = set(part.corpus["id"])
    for split in part.splits:
        kept = set(part.qrels[split]["query_id"])
        table = tiny_collection.qrels[split]
        for query, passage in zip(table["query_id"], table["passage_id"], strict=True):
            assert query not in kept or passage in inside  # no kept query has lost a relevant passage
    again = working_part(tiny_collection, 30, "train", "dev", seed=0, texts=TextConfig())
    assert again.fingerprint == part.fingerprint != tiny_collection.fingerprint
    assert (
        len(working_part(tiny_collection, 200, "train", "dev", seed=0, texts=TextConfig()).judgments("dev"))
        == 8
    )


@pytest.mark.slow
def test_with_a_part_the_run_chooses_there_and_measures_the_rest_on_all(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_ar2.recipes.planning.part_size", lambda costs, seconds: 30)
    run = tmp_path / "run"
    arguments = [str(path), "--output_dir", str(run), "--minutes", "5", "--clock", "processor"]
    main(arguments)
    said = capsys.readouterr().out
    assert "They represent all 60 passages" in said
    chosen, metrics = (json.loads((run / name).read_text()) for name in ("chosen.json", "metrics.json"))
    assert all(found["n"] < 8 for found in chosen["dev"].values())
    measured = {row for row, splits in metrics.items() if "test" in splits}
    assert measured == {"BM25", "zero-shot", chosen["row"], chosen["retriever_row"]}
    left = [row for row in json.loads((run / "plan.json").read_text())["rows"] if row not in measured]
    assert ("Not evaluated on test" in said) == bool(left) and all(
        row in said.split("Not evaluated")[-1] for row in left
    )
    assert cli_main(["evaluate", str(run)]) == 0  # the served system, on the whole corpus
    assert "8 queries, 60 passages" in capsys.readouterr().out
    times = {file: file.stat().st_mtime_ns for file in (run / "runs" / "zero-shot").iterdir()}
    main(arguments)
    assert {file: file.stat().st_mtime_ns for file in (run / "runs" / "zero-shot").iterdir()} == times
    assert json.loads((run / "chosen.json").read_text()) == chosen
    assert cli_main(["report", str(run)]) == 0 and cli_main(["compare", str(run)]) == 0

    # So do real questions, without encoding the whole corpus for the other rows.
    asked, encoded = tmp_path / "asked.txt", len(Encodings(run / "encodings").log())
    asked.write_text("where does the falcon hide ?\n")
    write_judged(asked, {question_id("where does the falcon hide ?"): {"p100": 1}})
    main([*arguments, "--questions", str(asked)])
    metrics = json.loads((run / "metrics.json").read_text())
    assert {row for row, splits in metrics.items() if "questions" in splits} == measured
    again = [entry["encoding"] for entry in Encodings(run / "encodings").log()[encoded:]]
    assert len(again) == len(set(again)) <= 2, (
        "at most one for each of these rows, and none for what is served"
    )

    # Another choice is made from the same plan, as the run advises where training did not help.
    main([*arguments, "--evaluation.choose_on", "null", "--evaluation.splits", "[dev]"])
    again = json.loads((run / "chosen.json").read_text())
    assert (
        again["split"] is None
        and again["row"] == list(json.loads((run / "plan.json").read_text())["rows"])[-1]
    )


def test_a_plan_is_for_stages_and_minutes_not_for_the_choice(recipe):
    other = [copy.deepcopy(recipe) for _ in range(4)]
    other[0].evaluation |= {"choose_on": None, "splits": ["dev"]}
    other[1].minutes = 5.0
    other[2].evaluation["rerank_depth"] = 5
    other[3].stages["ltre"]["share"] = 2
    same = [plan_identity(changed) == plan_identity(recipe) for changed in other]
    assert same == [True, False, False, False]


def test_what_training_costs_is_measured_without_training(tiny_retriever_path, tiny_collection, tmp_path):
    retriever = SentenceTransformer(str(tiny_retriever_path))
    before = weights_fingerprint(retriever)
    args = RetrieverConfig(output_dir=str(tmp_path), bf16=False)
    retrieval = Retrieval(retriever, None, tiny_collection, args, encoders_of(args))
    ticks = itertools.count()  # every look at the clock is a second later
    factor = training_factor(retrieval, rate=1000.0, clock=lambda: float(next(ticks)))
    inputs = retrieval.retriever_inputs
    rows = np.arange(min(16, len(tiny_collection.corpus)))
    tokens = inputs.passage_builder.single_lengths(inputs.passage_store, rows).sum()
    assert factor == pytest.approx(1000.0 / tokens)  # a second for these tokens
    assert weights_fingerprint(retriever) == before
    assert all(parameter.grad is None for parameter in retriever.parameters())
