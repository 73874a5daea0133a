"""Recipes: checked field by field, run stage by stage, each stage once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import make_tiny_ranker, make_tiny_retriever
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.recipes.recipe import RecipeError, load_recipe
from hf_ar2.recipes.run import parse_arguments
from hf_ar2.recipes.runner import run_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
QUICK = {
    "per_device_train_batch_size": 4,
    "eval_strategy": "no",
    "eval_on_start": False,
    "disable_tqdm": True,
}


def tiny_recipe(folder, collection) -> dict:
    """A recipe in three stages over tiny models and the tiny collection."""
    make_tiny_retriever(folder / "tiny-retriever")
    make_tiny_ranker(folder / "tiny-ranker")
    collection.save(folder / "data")
    return {
        "name": "tiny",
        "collection": str(folder / "data"),
        "seed": 3,
        "models": {"light": {"model": str(folder / "tiny-retriever"), "max_length": 32, "dropout": 0.0}},
        "args": {**QUICK, "max_passage_length": 32, "max_pair_length": 48, "use_cpu": True, "bf16": False},
        "stages": {
            "retriever": {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 4}},
            "ranker": {
                "trainer": "ranker",
                "retriever": "retriever",
                "ranker": {"from": "retriever", "max_length": 48},
                "args": {"max_steps": 3, "num_negatives": 3, "pool_depth": 8},
            },
            "ar2": {
                "trainer": "ar2",
                "retriever": "retriever",
                "ranker": "ranker",
                "args": {
                    "num_rounds": 2,
                    "ranker_steps": 1,
                    "retriever_steps": 2,
                    "num_negatives": 3,
                    "pool_depth": 8,
                    "eval_strategy": "epoch",
                    "eval_depth": 20,
                    "rerank_depth": 5,
                    "eval_metrics": ["mrr@10"],
                },
            },
        },
        "evaluation": {
            "splits": ["dev", "test"],
            "metrics": ["mrr@10", "ndcg@10", "recall@20"],
            "depth": 20,
            "rerank_depth": 10,
            "rows": {
                "zero-shot": {"retriever": "light"},
                "warm-up": {"retriever": "retriever", "ranker": "ranker"},
                "AR2": {"retriever": "ar2", "ranker": "ar2"},
            },
        },
    }


@pytest.fixture(scope="module")
def body(tmp_path_factory, tiny_collection):
    return tiny_recipe(tmp_path_factory.mktemp("recipe"), tiny_collection)


def write(path: Path, body: dict) -> Path:
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


def changed(body: dict, path: str, value: object) -> dict:
    copy = json.loads(json.dumps(body))
    place = copy
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return copy


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_sound(path):
    recipe = load_recipe(path)
    assert recipe.stages and recipe.evaluation["rows"]


def test_a_recipe_runs_to_its_table_and_is_not_run_twice(body, tmp_path, capsys):
    path = write(tmp_path / "tiny.yaml", body)
    run = tmp_path / "run"
    recipe = load_recipe(path, {"output_dir": str(run)})
    run_recipe(recipe, str(path))
    printed = capsys.readouterr().out
    assert "zero-shot" in printed and "AR2 over warm-up" in printed and "hf-ar2 search" in printed

    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"zero-shot", "warm-up", "AR2"}
    assert set(metrics["AR2"]["test"]) == {"retriever", "ranker", "pipeline"}
    assert set(metrics["AR2"]["test"]["retriever"]) == {"mrr@10", "ndcg@10", "recall@20"}
    for name in (
        "recipe.yaml",
        "environment.json",
        "significance.json",
        "report.png",
        "runs/AR2/test.pipeline.trec",
    ):
        assert (run / name).is_file(), name
    SentenceTransformer(str(run / "retriever"))
    CrossEncoder(str(run / "ranker"))

    before = (run / "stages" / "ar2" / "done.json").stat().st_mtime_ns
    run_recipe(load_recipe(path, {"output_dir": str(run)}), str(path))
    assert (run / "stages" / "ar2" / "done.json").stat().st_mtime_ns == before
    assert "done before" in capsys.readouterr().out

    with pytest.raises(RecipeError, match="other settings"):
        run_recipe(load_recipe(path, {"output_dir": str(run), "retriever.max_steps": "5"}), str(path))


def test_an_unknown_key_is_named_with_the_nearest_one(body, tmp_path):
    cases = {
        "colection": ("x", "unknown key 'colection'; did you mean 'collection'"),
        "args.max_pasage_length": (3, "did you mean 'max_passage_length'"),
        "stages.ar2.args.num_negative": (3, "did you mean 'num_negatives'"),
        "stages.ar2.trainer": ("ar3", "expected one of retriever, ranker, ar2"),
        "stages.ar2.ranker": ("rankr", "no model or earlier stage; did you mean 'ranker'"),
        "models.light.layer": ([0], "did you mean 'layers'"),
        "evaluation.rerank": (3, "did you mean 'rerank_depth'"),
    }
    for path, (value, message) in cases.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe(write(tmp_path / "wrong.yaml", changed(body, path, value)))


def test_command_line_values_override_fields_settings_and_stages(body, tmp_path):
    path = write(tmp_path / "tiny.yaml", body)
    name, overrides = parse_arguments(
        [
            str(path),
            "--seed",
            "7",
            "--ar2.num_rounds=3",
            "--learning_rate",
            "1e-3",
            "--evaluation.depth",
            "15",
        ]
    )
    recipe = load_recipe(name, overrides)
    assert recipe.seed == 7 and recipe.stage_args("ar2")["num_rounds"] == 3
    assert recipe.stage_args("retriever")["learning_rate"] == 1e-3 and recipe.evaluation["depth"] == 15
    assert recipe.stage_key("retriever") != load_recipe(path).stage_key("retriever")
    with pytest.raises(RecipeError, match="did you mean 'num_rounds'"):
        load_recipe(path, {"num_round": "3"})
    with pytest.raises(RecipeError, match="'arr2' is no stage; did you mean 'ar2'"):
        load_recipe(path, {"arr2.num_rounds": "3"})
    with pytest.raises(RecipeError, match="a value is missing"):
        parse_arguments([str(path), "--seed"])
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
