"""Which system a run serves: chosen on dev, from run files, whatever the order of the rows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import write_recipe

from hf_ar2.cards.card import model_card
from hf_ar2.cards.facts import served_row, training_of_run
from hf_ar2.collections import Collection, load_collection
from hf_ar2.command_line import main as cli
from hf_ar2.evaluation import read_run, write_run
from hf_ar2.evaluation.runs import run_file
from hf_ar2.evaluation.systems import evaluated_queries, rankings_of_systems
from hf_ar2.evaluation.weights import Blend, fit_blend
from hf_ar2.recipes.checks import check_evaluation
from hf_ar2.recipes.choosing import choose
from hf_ar2.recipes.evaluation import choose_from_runs, per_query
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.search.runs import settings_of_run
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

# Ranks of the one relevant passage of the eight dev queries.
SECOND = [2] * 8
FIRST_OF = {number: [1] * number + [2] * (8 - number) for number in range(9)}
Ranks = Mapping[str, Mapping[str, Sequence[int]]]


def chosen_of(folder: Path, collection: Collection, ranks: Ranks, **settings: Any) -> dict[str, Any]:
    """What is chosen of rows with these dev ranks; the row `zero-shot` is of a model that no stage trained."""
    rows: dict[str, Any] = {}
    for row, systems in ranks.items():
        rows[row] = {"retriever": "light" if row == "zero-shot" else row}
        if len(systems) > 1:
            rows[row]["ranker"] = "d0"
    recipe = Recipe(
        "mine",
        "tiny",
        models={"light": {"model": "some/model"}},
        stages={row: {"trainer": "retriever"} for row in [*ranks, "d0"] if row != "zero-shot"},
        evaluation={"rows": rows, "metrics": ["mrr@10"], **settings},
    )
    queries = evaluated_queries(collection, "dev")
    judgments, total = collection.judgments("dev"), len(collection.corpus)
    ids = np.asarray(collection.queries["id"], object)[queries].tolist()
    for row, systems in ranks.items():
        for system, of_queries in systems.items():
            relevant = judgments.passage_rows[judgments.offsets[:-1]]
            found = (relevant[:, None] + 1 + np.arange(20)) % total
            found[np.arange(len(found)), np.array(of_queries) - 1] = relevant
            scores = np.tile(-np.arange(20.0), (len(found), 1))
            path = run_file(folder, row, "dev", system)
            write_run(path, ids, list(collection.corpus["id"]), found, scores)
    choose_from_runs(recipe, folder, collection)
    return json.loads((folder / "chosen.json").read_text())


def with_ranker(retriever: Sequence[int], pipeline: Sequence[int], ranker: Sequence[int]) -> dict[str, Any]:
    return {"retriever": retriever, "pipeline": pipeline, "ranker": ranker}


@pytest.mark.parametrize(
    ("ranks", "served", "said"),
    [
        # Better on 4 of 8 queries: p = 2 / 2^4 = .125, enough for a retriever; on 3 it is .25.
        (
            {"zero-shot": {"retriever": SECOND}, "g0": {"retriever": FIRST_OF[4]}},
            ("g0", "retriever"),
            "g0 (retriever): dev MRR@10 .750, +.250 over zero-shot (p = .125).",
        ),
        (
            {"zero-shot": {"retriever": SECOND}, "g0": {"retriever": FIRST_OF[3]}},
            ("zero-shot", "retriever"),
            "zero-shot (retriever): dev MRR@10 .500; the best trained retriever, g0 retriever, is not clearly better "
            "than zero-shot retriever (+.188, p = .250; needed: p < 0.2).",
        ),
        # A training that hurts.
        (
            {"zero-shot": {"retriever": FIRST_OF[8]}, "g0": {"retriever": SECOND}},
            ("zero-shot", "retriever"),
            "(-.500, p = .008; needed: p < 0.2).",
        ),
        # A later stage that hurts; rows in any order.
        (
            {
                "zero-shot": {"retriever": SECOND},
                "good": {"retriever": FIRST_OF[7]},
                "hurt": {"retriever": FIRST_OF[5]},
            },
            ("good", "retriever"),
            "good (retriever): dev MRR@10 .938, +.438 over zero-shot (p = .016).",
        ),
        # Of equal rows the earlier.
        (
            {"a": {"retriever": FIRST_OF[4]}, "b": {"retriever": FIRST_OF[4]}},
            ("a", "retriever"),
            "a (retriever): dev MRR@10 .750.",
        ),
        # Systems with a ranker need p < .05: better on 6 queries (.031) is enough, on 5 (.063) it is not.
        (
            {"zero-shot": {"retriever": [4] * 8}, "g0": with_ranker(SECOND, FIRST_OF[6], SECOND)},
            ("g0", "pipeline"),
            "g0 (pipeline, weight 1.0 over the first 20): dev MRR@10 .875, +.375 over its retriever (p = .031), +.625 "
            "over zero-shot.",
        ),
        (
            {"g0": with_ranker(SECOND, FIRST_OF[5], SECOND)},
            ("g0", "retriever"),
            "g0 (retriever): dev MRR@10 .500; the best system with a ranker, g0 pipeline, is not clearly better than "
            "g0 retriever (+.312, p = .062; needed: p < 0.05).",
        ),
        (
            {"g0": with_ranker(SECOND, FIRST_OF[6], FIRST_OF[8])},
            ("g0", "ranker"),
            "g0 (ranker alone over the first 20): dev MRR@10 1.000, +.500 over its retriever (p = .008).",
        ),
        # The retriever trained without success, its ranker with it.
        (
            {"zero-shot": {"retriever": SECOND}, "g0": with_ranker(FIRST_OF[2], FIRST_OF[7], SECOND)},
            ("g0", "pipeline"),
            "+.438 over zero-shot (p = .016).",
        ),
    ],
)
def test_a_simpler_system_is_served_unless_another_is_clearly_better(
    ranks: Ranks, served: tuple[str, str], said: str, tmp_path: Path, tiny_collection: Collection
) -> None:
    chosen = chosen_of(tmp_path, tiny_collection, ranks)
    assert (chosen["row"], chosen["system"]) == served
    assert chosen["reason"].endswith(said), chosen["reason"]
    untrained = served[0] == "zero-shot"
    assert ("choose_on null" in chosen["advice"]) == untrained
    best = max(ranks, key=lambda row: np.mean(1 / np.array(ranks[row]["retriever"])))
    assert chosen["retriever_row"] == best
    assert chosen["dev"][" ".join(served)]["n"] == 8


@pytest.mark.parametrize(("first", "best"), [(3, "g0"), (4, "zero-shot")])
def test_an_untrained_retriever_is_best_alone_if_it_is_clearly_better(first: int, best: str) -> None:
    rows = {"zero-shot": {"retriever": "light"}, "g0": {"retriever": "g0"}}
    stages = {"g0": {"trainer": "retriever"}}
    recipe = Recipe("mine", "tiny", models={"light": {}}, stages=stages, evaluation={"rows": rows})
    # g0 is served for its hybrid; alone it is worse on three or four queries, p = .25 and .125.
    ranks = {"zero-shot": (FIRST_OF[first], SECOND), "g0": (SECOND, FIRST_OF[8])}
    values = {
        row: {"retriever": 1 / np.array(retriever), "hybrid": 1 / np.array(hybrid)}
        for row, (retriever, hybrid) in ranks.items()
    }
    chosen = choose(recipe, values, {})
    assert (chosen["row"], chosen["system"]) == ("g0", "hybrid")
    assert chosen["retriever_row"] == best


def test_of_headings_only_a_merged_model_is_served_and_the_run_says_so() -> None:
    models = {"zero-shot": "light", "warm-up": "warm-up", "merged": "merged"}
    stages = {
        "warm-up": {"trainer": "retriever", "retriever": "light"},
        "merged": {"trainer": "merge", "retriever": "warm-up"},
    }
    rows = {row: {"retriever": model} for row, model in models.items()}
    recipe = Recipe("mine", "tiny", models={"light": {}}, stages=stages, evaluation={"rows": rows})
    ranks = {"zero-shot": SECOND, "warm-up": FIRST_OF[8], "merged": FIRST_OF[6]}
    values = {row: {"retriever": 1 / np.array(found)} for row, found in ranks.items()}
    chosen = choose(recipe, values, {}, from_people=False)
    assert (chosen["row"], chosen["excluded"], chosen["retriever_row"]) == ("merged", ["warm-up"], "merged")
    assert chosen["reason"].endswith(
        "People asked none of the queries of dev, so only models that are merged with the starting one, and that one "
        "itself, are served: not warm-up."
    )
    by_people = choose(recipe, values, {})
    assert (by_people["row"], by_people["excluded"]) == ("warm-up", [])
    assert "People asked" not in by_people["reason"]


def test_bm25_may_find_fewer_passages_than_a_metric_looks_at(
    tmp_path: Path, tiny_collection: Collection
) -> None:
    judgments, ids = tiny_collection.judgments("dev"), list(tiny_collection.corpus["id"])
    queries = list(tiny_collection.queries.select(judgments.query_rows)["id"])
    found = np.stack([judgments.of(place)[0][:1] for place in range(len(judgments))])  # one passage each
    for row, metrics in (
        ("BM25", {"mrr@10", "recall@100"}),
        ("cut", set()),
    ):  # another row's list is cut off there
        write_run(run_file(tmp_path, row, "dev", "retriever"), queries, ids, found, np.ones(found.shape))
        values = per_query(tmp_path, row, "dev", "retriever", tiny_collection, ["mrr@10", "recall@100"])
        assert values is not None and set(values) == metrics
        assert all((of_metric > 0).all() for of_metric in values.values())


def test_without_a_choice_the_last_row_is_served(tmp_path: Path, tiny_collection: Collection) -> None:
    ranks = {"zero-shot": {"retriever": FIRST_OF[8]}, "g0": with_ranker(SECOND, SECOND, SECOND)}
    chosen = chosen_of(tmp_path, tiny_collection, ranks, choose_on=None)
    assert (chosen["row"], chosen["system"], chosen["weight"], chosen["depth"]) == ("g0", "pipeline", 1.0, 20)
    assert chosen["reason"] == (
        "g0 (pipeline, weight 1.0 over the first 20), the last row: evaluation.choose_on is null, so nothing was "
        "chosen and the pipeline's weight is 1."
    )
    without_dev = dataclasses.replace(
        tiny_collection, qrels={name: tiny_collection.qrels[name] for name in ("train", "test")}
    )
    recipe = Recipe("mine", "tiny", evaluation={"rows": {"a": {"retriever": "x"}}, "splits": ["test"]})
    choose_from_runs(recipe, tmp_path, without_dev)
    assert "a (retriever), the last row: tiny has no split dev" in (tmp_path / "chosen.json").read_text()


def test_a_split_to_choose_on_that_does_not_exist_is_an_error(tiny_collection) -> None:
    settings = {"rows": {"a": {"retriever": "x"}}, "depth": 100, "choose_on": "devel"}
    with pytest.raises(
        RecipeError, match="evaluation.choose_on: tiny has no split 'devel'; it has train, dev, test"
    ):
        check_evaluation(Recipe("mine", "tiny", evaluation=settings), tiny_collection)


# --- the weight


def lists(collection: Collection, seed: int, lift: float, ranker_lift: float, noise: float) -> tuple:
    """Scores, rows and ranker scores of the 24 training queries; lifts are of the relevant passage."""
    rng = np.random.default_rng(seed)
    judgments, total = collection.judgments("train"), len(collection.corpus)
    relevant = judgments.passage_rows[judgments.offsets[:-1]]
    rows = (relevant[:, None] + np.arange(20)) % total
    scores = rng.normal(0, 1, rows.shape).astype(np.float32)
    scores[:, 0] += lift
    ranker = rng.normal(0, noise, rows.shape).astype(np.float32)
    ranker[:, 0] += ranker_lift
    order = np.argsort(-scores, axis=1)
    return tuple(np.take_along_axis(part, order, axis=1) for part in (scores, rows, ranker))


def test_a_good_ranker_weighs_more_than_a_bad_one(tiny_collection: Collection) -> None:
    good = fit_blend(*lists(tiny_collection, 0, 0.5, 4.0, 1.0), tiny_collection, "train", "mrr@10", 1.0)
    bad = fit_blend(*lists(tiny_collection, 0, 3.0, 0.0, 4.0), tiny_collection, "train", "mrr@10", 1.0)
    assert bad.weight < 0.5 < good.weight


def test_what_makes_no_difference_leaves_weight_and_depth_as_they_are(tiny_collection: Collection) -> None:
    found = lists(tiny_collection, 0, 0.5, 4.0, 1.0)
    assert fit_blend(*found, tiny_collection, "train", "recall@20", 1.0) == Blend()


def test_a_ranker_that_errs_at_lower_ranks_reorders_fewer_passages(tiny_collection: Collection) -> None:
    scores, rows, ranker = lists(tiny_collection, 1, 2.0, 0.0, 0.1)
    relevant = tiny_collection.judgments("train").passage_rows
    ranker[rows == relevant[:, None]] = 3.0
    ranker[:, 10:] += 50.0  # a passage that the retriever has low looks best to it, whatever the weight
    blend = fit_blend(scores, rows, ranker, tiny_collection, "train", "mrr@10", 1.0)
    assert blend.depth in (5, 10)


def test_answers_give_the_weight_that_judgments_give(tiny_collection: Collection) -> None:
    """A split that is known by its answers alone, each in the one relevant passage."""
    judgments = tiny_collection.judgments("train")
    marked = tiny_collection.corpus.map(
        lambda row, number: {"text": f"{row['text']} key{number}"}, with_indices=True
    )
    relevant = dict(zip(judgments.query_rows.tolist(), judgments.passage_rows.tolist(), strict=True))
    answers = [[f"key{relevant.get(row, -1)}"] for row in range(len(tiny_collection.queries))]
    answered = dataclasses.replace(
        tiny_collection,
        corpus=marked,
        queries=tiny_collection.queries.add_column("answers", answers),
        qrels={},
        answer_splits={"train": judgments.query_rows},
    )
    found = lists(tiny_collection, 3, 2.0, 1.0, 3.0)
    of_judgments = fit_blend(*found, tiny_collection, "train", "mrr@10", 1.0)
    assert fit_blend(*found, answered, "train", "mrr@10", 1.0) == of_judgments


def test_weight_0_is_the_retriever_and_a_large_one_the_ranker(tiny_collection: Collection) -> None:
    scores, rows, ranker = lists(tiny_collection, 2, 1.0, 1.0, 1.0)
    for depth in (5, 20):
        systems = rankings_of_systems(scores, rows, ranker, 0.05, weight=0.0, depth=depth)
        assert np.array_equal(systems["pipeline"][0], rows)
    large = rankings_of_systems(scores.astype(float), rows, ranker.astype(float), 1.0, weight=1e6)
    assert np.array_equal(large["pipeline"][0], large["ranker"][0])
    half = rankings_of_systems(scores, rows, ranker, 1.0, weight=0.5, depth=7)["pipeline"]
    assert np.array_equal(half[0][:, 7:], rows[:, 7:]) and (np.diff(half[1], axis=1) <= 0).all()
    padded = rankings_of_systems(
        np.array([[1.0, -np.inf]]), np.array([[3, -1]]), np.array([[0.5, -np.inf]]), 1.0, weight=0.0
    )
    assert padded["pipeline"][0].tolist() == [[3, -1]] and not np.isnan(padded["pipeline"][1]).any()


# --- a recipe


def run_of(home: Path, folder: Path, collection: str = "data", **settings: Any) -> Path:
    """The run folder of a recipe that trains nothing and evaluates two rows."""
    recipe = {
        "name": "tiny",
        "collection": str(home / collection),
        "models": {"light": {"model": str(home / "retriever")}, "heavy": {"model": str(home / "ranker")}},
        "args": {"use_cpu": True, "bf16": False, "disable_tqdm": True, "max_passage_length": 32},
        "evaluation": {
            "splits": ["test"],
            "metrics": ["mrr@10", "recall@20"],
            "depth": 20,
            "rerank_depth": 10,
            "rows": {"zero-shot": {"retriever": "light"}, "both": {"retriever": "light", "ranker": "heavy"}},
            **settings,
        },
    }
    path = write_recipe(folder.with_suffix(".yaml"), recipe)
    return run_recipe(load_recipe(path, {"output_dir": str(folder)}))


def files_of(run: Path) -> dict[str, str]:
    paths = [*run.glob("runs/*/*.trec"), run / "chosen.json", run / "metrics.json", run / "significance.json"]
    return {path.relative_to(run).as_posix(): path.read_text() for path in paths}


@pytest.mark.slow
def test_a_resumed_evaluation_chooses_what_an_uninterrupted_one_does(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(home, tmp_path / "run")
    printed = " ".join(capsys.readouterr().out.split())
    chosen = json.loads((run / "chosen.json").read_text())
    # A ranker that was never trained is not better, and dev is evaluated though the recipe lists test alone.
    assert (chosen["row"], chosen["system"], chosen["split"]) == ("zero-shot", "retriever", "dev")
    assert f"Served: {chosen['reason']}" in printed and "zero-shot (served)" in printed
    assert (run / "retriever").is_dir() and not (run / "ranker").exists()
    blend = json.loads((run / "evaluation" / "both" / "pipeline.json").read_text())
    assert blend["fitted_on"] == "dev"
    ids = load_collection(home / "data").queries["id"], load_collection(home / "data").corpus["id"]
    whole, stored = (
        files_of(run),
        {
            system: read_run(run_file(run, "both", "test", system), *ids)
            for system in ("retriever", "ranker", "pipeline")
        },
    )
    # The stored pipeline is the fitted one.
    ranked = np.empty((8, 10), np.float32)
    for query, (rows, scores) in enumerate(
        zip(stored["ranker"].passage_rows, stored["ranker"].scores, strict=True)
    ):
        of_row = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        ranked[query] = [of_row[row] for row in stored["retriever"].passage_rows[query, :10].tolist()]
    retrieved = stored["retriever"].scores, stored["retriever"].passage_rows
    again = rankings_of_systems(*retrieved, ranked, 0.05, weight=blend["weight"], depth=blend["depth"])
    assert np.array_equal(again["pipeline"][0], stored["pipeline"].passage_rows)

    (run / "chosen.json").unlink()
    for part in ("runs", "evaluation"):
        shutil.rmtree(run / part / "both")
    run_of(home, tmp_path / "run")
    assert files_of(run) == whole


@pytest.mark.slow
def test_a_fixed_weight_is_taken_as_it_is(home: Path, tmp_path: Path) -> None:
    run = run_of(home, tmp_path / "run", pipeline_weight=0)
    for split in ("dev", "test"):
        systems = [
            [line.split()[:4] for line in run_file(run, "both", split, system).read_text().splitlines()]
            for system in ("retriever", "pipeline")
        ]
        assert systems[0] == systems[1], "the ranker counts nothing"
    assert json.loads((run / "evaluation" / "both" / "pipeline.json").read_text())["fitted_on"] is None
    # A row that has lost its ranker keeps no runs of it to choose from.
    run_of(home, tmp_path / "run", rows={"zero-shot": {"retriever": "light"}, "both": {"retriever": "light"}})
    assert [path.name for path in sorted((run / "runs" / "both").iterdir())] == [
        "dev.retriever.trec",
        "test.retriever.trec",
    ]


@pytest.mark.slow
def test_a_collection_without_dev_serves_the_last_row_and_says_so(
    home: Path, tmp_path: Path, tiny_collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    qrels = {"train": tiny_collection.qrels["train"].select([0]), "test": tiny_collection.qrels["test"]}
    dataclasses.replace(tiny_collection, qrels=qrels).save(home / "no-dev")
    run = run_of(home, tmp_path / "run", "no-dev")
    chosen = json.loads((run / "chosen.json").read_text())
    assert (chosen["row"], chosen["system"], chosen["weight"], chosen["split"]) == (
        "both",
        "pipeline",
        1.0,
        None,
    )
    assert (run / "ranker").is_dir()
    said = " ".join(capsys.readouterr().out.split())
    assert "has no split dev, so nothing was chosen and the pipeline's weight is 1." in said


# --- what uses it


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A run folder of three rows, as training leaves it; `serve` says which is served."""
    folder = tmp_path / "mine"
    shutil.copytree(home / "retriever", folder / "retriever")
    shutil.copytree(home / "ranker", folder / "ranker")
    recipe = {
        "name": "mine",
        "collection": str(home / "data"),
        "models": {"light": {"model": str(home / "retriever")}},
        "args": {"bf16": False},
        "stages": {
            "g0": {"trainer": "retriever", "retriever": "light"},
            "d0": {"trainer": "ranker", "retriever": "g0", "ranker": "g0"},
            "ar2": {"trainer": "ar2", "retriever": "g0", "ranker": "d0"},
        },
        "evaluation": {
            "metrics": ["mrr@10"],
            "depth": 30,
            "rerank_depth": 10,
            "rows": {
                "zero-shot": {"retriever": "light"},
                "warm-up": {"retriever": "g0", "ranker": "d0", "index_factory": "HNSW8"},
                "AR2": {"retriever": "ar2", "ranker": "ar2"},
            },
        },
    }
    write_recipe(folder / "recipe.yaml", recipe)
    values = {"retriever": {"mrr@10": 0.5}, "ranker": {"mrr@10": 0.4}, "pipeline": {"mrr@10": 0.7}}
    metrics = {row: {"test": values} for row in ("warm-up", "AR2")}
    metrics["AR2"] = {"test": {system: {"mrr@10": 0.1} for system in values}}
    (folder / "metrics.json").write_text(
        json.dumps({"zero-shot": {"test": {"retriever": {"mrr@10": 0.3}}}} | metrics)
    )
    (folder / "significance.json").write_text(
        json.dumps({"metric": "mrr@10", "tests": {"AR2": {"test": {}}}})
    )
    serve(folder, "warm-up", "pipeline", 0.3, 5)
    return folder


def serve(run: Path, row: str, system: str, weight: float | None = None, depth: int | None = None) -> None:
    chosen = {"row": row, "system": system, "weight": weight, "depth": depth, "split": "dev"}
    (run / "chosen.json").write_text(json.dumps({**chosen, "reason": f"{row} ({system}): dev MRR@10 .700."}))


def recipe_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "recipe.yaml").read_text())


@pytest.mark.parametrize(
    ("system", "weight", "depth"), [("pipeline", 0.3, 5), ("pipeline", 5.0, 10), ("ranker", None, 10)]
)
def test_search_finds_what_evaluate_measures(
    system: str,
    weight: float | None,
    depth: int,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(run, "warm-up", system, weight, depth)
    assert cli.main(["evaluate", str(run), "--output", str(tmp_path / "out")]) == 0
    collection = load_collection(recipe_of(run)["collection"])
    ids = list(collection.queries["id"]), list(collection.corpus["id"])
    stored = {name: read_run(tmp_path / "out" / f"test.{name}.trec", *ids) for name in ("retriever", system)}
    query = int(stored[system].query_rows[0])
    capsys.readouterr()
    assert cli.main(["search", str(run), "-k", "12", collection.queries["text"][query]]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("rank"))
    hits = [line.split() for line in lines[start + 2 :: 2]]
    best = stored[system].passage_rows[0, :depth].tolist()
    rest = [row for row in stored["retriever"].passage_rows[0].tolist() if row not in best]
    assert [hit[-1] for hit in hits] == [ids[1][row] for row in (best + rest)[:12]]
    assert [hit[1] == "–" for hit in hits] == [number >= depth for number in range(12)]


def test_other_models_than_the_served_ones_are_used_alike(run: Path, home: Path, tmp_path: Path) -> None:
    """Another ranker gets weight 1, and a depth that is named is the pipeline's."""
    outputs = {}
    for name, options in {
        "own": ["--rerank_depth", "10"],
        "other": ["--ranker", str(home / "ranker")],
        "one": [],
    }.items():
        if name == "one":
            serve(run, "warm-up", "pipeline", 1.0, None)
        assert cli.main(["evaluate", str(run), "--output", str(tmp_path / name), *options]) == 0
        outputs[name] = (tmp_path / name / "test.pipeline.trec").read_text()
    assert outputs["other"] == outputs["one"] != outputs["own"]
    settings = Settings().changed({"weight": 0.3, "pipeline_depth": 5})
    assert settings.changed({"rerank_depth": 20}).pipeline_depth is None
    assert settings.changed({"depth": 20}).pipeline_depth == 5


def test_a_run_without_a_choice_serves_its_last_row(run: Path) -> None:
    assert served_row(run, recipe_of(run)) == {"retriever": "g0", "ranker": "d0", "index_factory": "HNSW8"}
    assert settings_of_run(recipe_of(run), run).index_factory == "HNSW8"
    serve(run, "warm-up", "retriever")
    assert served_row(run, recipe_of(run)) == {"retriever": "g0", "index_factory": "HNSW8"}
    (run / "chosen.json").unlink()
    assert served_row(run, recipe_of(run)) == {"retriever": "ar2", "ranker": "ar2"}
    serve(run, "other", "pipeline")
    with pytest.raises(ValueError, match="serves row 'other', but recipe.yaml has zero-shot, warm-up, AR2"):
        served_row(run, recipe_of(run))


def test_cards_are_of_the_served_row(run: Path) -> None:
    training = training_of_run(run, recipe_of(run), "ranker")
    assert training.last.name == "d0" and training.served == "warm-up"
    card = " ".join(model_card(training, run / "ranker").split())
    assert "The rows of warm-up are this model" in card and "Chosen to be served: warm-up (pipeline)" in card
    assert "times a weight (0.3 in warm-up, over the first 5 passages)" in card
    assert "value: 0.4" in card and "value: 0.1" not in card, "the figures of the Hub"
    serve(run, "warm-up", "retriever")
    with pytest.raises(ValueError, match="the run serves no ranker .* row warm-up .* It has: retriever"):
        training_of_run(run, recipe_of(run), "ranker")


@pytest.mark.parametrize("command", ["card", "push"])
def test_a_model_that_was_not_trained_is_not_published(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(run, "zero-shot", "retriever")
    assert cli.main([command, str(run), *(["me/mine"] if command == "push" else [])]) == 1
    said = capsys.readouterr().err
    assert "the row it serves (zero-shot)" in said and "--evaluation.choose_on null" in said
    assert "Served: zero-shot (retriever): dev MRR@10 .700." in said


def test_the_server_answers_in_the_order_of_what_is_served(run: Path, home: Path, tmp_path: Path) -> None:
    import hf_ar2

    collection = load_collection(home / "data")
    query = collection.queries["text"][0]
    orders = {}
    for system in ("pipeline", "ranker"):
        serve(run, "warm-up", system, 0.0 if system == "pipeline" else None, 10)
        searched = SearchSystem(
            hf_ar2.load_retriever(str(run / "retriever"), device="cpu"),
            hf_ar2.load_ranker(str(run / "ranker"), device="cpu"),
            collection,
            settings_of_run(recipe_of(run), run),
            tmp_path / "work",
        )
        orders[system] = searched.search(query, 10)
    assert [hit.retrieved_rank for hit in orders["pipeline"]] == list(range(1, 11)), "weight 0"
    scores = [hit.ranker_score for hit in orders["ranker"]]
    assert scores == sorted(scores, reverse=True) and {hit.passage_id for hit in orders["ranker"]} == {
        hit.passage_id for hit in orders["pipeline"]
    }


def test_the_first_metric_chooses_unless_another_is_named() -> None:
    assert Recipe("mine", "data", evaluation={"metrics": ["a", "b"], "test_metric": "b"}).test_metric == "b"
