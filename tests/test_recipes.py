"""Recipes: checked field by field, run stage by stage, each stage once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_recipe
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.command_line import main as cli
from hf_ar2.recipes import runner, study
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import CONFIGS, RecipeError
from hf_ar2.recipes.run import parse_arguments
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.search.runs import read_finished_recipe
from hf_ar2.training_lists.stored import load_training_lists

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
QUICK = {
    "per_device_train_batch_size": 4,
    "eval_strategy": "no",
    "eval_on_start": False,
    "disable_tqdm": True,
}


def tiny_recipe(home: Path) -> dict:
    """A recipe in three stages over the tiny models and the tiny collection."""
    return {
        "name": "tiny",
        "collection": str(home / "data"),
        "seed": 3,
        "models": {"light": {"model": str(home / "retriever"), "max_length": 32, "dropout": 0.0}},
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
                    "teacher_gate": "off",
                    "eval_metrics": ["mrr@10"],
                },
            },
        },
        "evaluation": {
            "splits": ["dev", "test"],
            "metrics": ["mrr@10", "ndcg@10", "recall@20"],
            "depth": 20,
            "rerank_depth": 10,
            "choose_on": None,  # serve the last row; tests/test_choosing.py is about the choice
            "rows": {
                "zero-shot": {"retriever": "light"},
                "warm-up": {"retriever": "retriever", "ranker": "ranker"},
                "AR2": {"retriever": "ar2", "ranker": "ar2"},
            },
        },
    }


@pytest.fixture(scope="module")
def body(home):
    return tiny_recipe(home)


def changed(body: dict, path: str, value: object) -> dict:
    copy = json.loads(json.dumps(body))
    place = copy
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return copy


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_is_valid(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.stages and recipe.evaluation["rows"]
    for stage, body in recipe.stages.items():
        settings = recipe.stage_args(stage)
        if body["trainer"] not in ("augment", "merge"):
            settings |= {"output_dir": str(tmp_path), "use_cpu": True}
        if body.get("lists"):
            settings["train_lists"] = body["lists"]
        CONFIGS[body["trainer"]](**settings)  # raises if settings do not fit each other


@pytest.mark.slow
def test_a_recipe_runs_to_its_table_and_is_not_run_twice(body, tmp_path, capsys):
    path = write_recipe(tmp_path / "tiny.yaml", body)
    run = tmp_path / "run"
    recipe = load_recipe(path, {"output_dir": str(run)})
    run_recipe(recipe)
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
    card = (run / "ranker" / "README.md").read_text(encoding="utf-8")
    assert "such as `retriever`. Trained with [AR2]" in " ".join(card.split())
    assert "AR2: pipeline" in card and "ranker_steps" in card and "60 passages, 24 training queries" in card

    before = (run / "stages" / "ar2" / "done.json").stat().st_mtime_ns
    run_recipe(load_recipe(path, {"output_dir": str(run)}))
    assert (run / "stages" / "ar2" / "done.json").stat().st_mtime_ns == before
    assert "done before" in capsys.readouterr().out

    header = (run / "recipe.yaml").read_text()
    message = "retriever: this stage was run with other settings: max_steps=5 instead of "
    with pytest.raises(RecipeError, match=message):
        run_recipe(load_recipe(path, {"output_dir": str(run), "retriever.max_steps": "5"}))
    assert (run / "recipe.yaml").read_text() == header  # what is there still says how it was made


@pytest.mark.slow
def test_the_run_has_the_models_of_the_last_row_and_no_earlier_ones(body, tmp_path, capsys):
    ranker = str(Path(body["models"]["light"]["model"]).with_name("ranker"))
    rows = {"both": {"retriever": "retriever", "ranker": {"from": "heavy", "max_length": 40}}}
    recipe = {
        **body,
        "models": {**body["models"], "heavy": {"model": ranker}},
        "stages": {"retriever": body["stages"]["retriever"]},
        "evaluation": {**body["evaluation"], "splits": ["test"], "rows": rows},
    }
    run = tmp_path / "run"

    def evaluated(rows: dict) -> None:
        recipe["evaluation"]["rows"] = rows
        run_recipe(load_recipe(write_recipe(tmp_path / "tiny.yaml", recipe), {"output_dir": str(run)}))

    evaluated(rows)  # a ranker that no stage trained
    saved, pairs = (
        CrossEncoder(str(run / "ranker"), device="cpu"),
        [("otter", "heron"), ("raven", "a lantern")],
    )
    assert saved.max_seq_length == 40 and not (run / "ranker" / "README.md").exists()
    capsys.readouterr()
    assert cli.main(["card", str(run), "--markdown"]) == 0
    assert capsys.readouterr().out.count("library_name:") == 1, (
        "a card of the retriever, which the run trained"
    )
    assert saved.predict(pairs).tolist() == CrossEncoder(ranker, device="cpu").predict(pairs).tolist()
    trained = SentenceTransformer(str(run / "retriever"), device="cpu").encode(["otter"])
    assert np.array_equal(
        trained, SentenceTransformer(str(run / "stages/retriever/retriever"), device="cpu").encode(["otter"])
    )

    evaluated({"zero-shot": {"retriever": "light"}})
    assert not (run / "ranker").exists()
    assert not np.array_equal(
        SentenceTransformer(str(run / "retriever"), device="cpu").encode(["otter"]), trained
    )
    assert read_finished_recipe(run)["evaluation"]["rows"] == {"zero-shot": {"retriever": "light"}}

    evaluated({})
    with pytest.raises(FileNotFoundError, match="has no evaluation.rows.*stages/retriever/retriever"):
        read_finished_recipe(run)
    (run / "stages" / "retriever" / "done.json").unlink()
    with pytest.raises(FileNotFoundError, match="is not finished"):
        read_finished_recipe(run)


@pytest.mark.slow
def test_with_a_rerank_depth_of_0_retrievers_are_alone(body, tmp_path, capsys):
    """Not in the table, not on the report page, not among the run files, even where one was evaluated before."""
    ranker = str(Path(body["models"]["light"]["model"]).with_name("ranker"))
    rows = {"before": {"retriever": "light"}, "both": {"retriever": "light", "ranker": "heavy"}}
    recipe = {**body, "models": {**body["models"], "heavy": {"model": ranker}}, "stages": {}}
    recipe["evaluation"] = {**body["evaluation"], "splits": ["test"], "rows": rows}
    run = tmp_path / "run"
    tables = {}
    for depth in (5, 0):
        overrides = {"output_dir": str(run), "evaluation.rerank_depth": str(depth)}
        run_recipe(load_recipe(write_recipe(tmp_path / "tiny.yaml", recipe), overrides))
        tables[depth] = capsys.readouterr().out
        assert (run / "runs" / "both" / "test.pipeline.trec").is_file() == (depth > 0)
    assert "pipeline MRR@10" in tables[5] and "pipeline MRR@10" not in tables[0]
    assert set(json.loads((run / "metrics.json").read_text())["both"]["test"]) == {"retriever"}
    assert cli.main(["report", str(run)]) == 0 and cli.main(["compare", str(run)]) == 0
    assert "pipeline" not in capsys.readouterr().out
    with pytest.raises(RecipeError, match="evaluation.rerank_depth: found -1, expected a whole number"):
        run_recipe(load_recipe(tmp_path / "tiny.yaml", {**overrides, "evaluation.rerank_depth": "-1"}))


def test_an_unknown_key_is_named_with_the_nearest_one(body, tmp_path):
    cases = {
        "colection": ("x", "unknown key 'colection'; did you mean 'collection'"),
        "args.max_pasage_length": (3, "did you mean 'max_passage_length'"),
        "stages.ar2.args.num_negative": (3, "did you mean 'num_negatives'"),
        "stages.ar2.trainer": ("ar3", "expected one of retriever, ranker, ar2, rocketqa-v2, ltre, augment"),
        "stages.ar2.ranker": ("rankr", "not a model or an earlier stage; did you mean 'ranker'"),
        "models.light.layer": ([0], "did you mean 'layers'"),
        "evaluation.rerank": (3, "did you mean 'rerank_depth'"),
        "evaluation.rows": ({"warm up": {"retriever": "light"}}, "white space in the row's"),
    }
    for path, (value, message) in cases.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe(write_recipe(tmp_path / "wrong.yaml", changed(body, path, value)))


def test_a_setting_that_no_stage_has_raises_an_error(body, tmp_path):
    path = write_recipe(tmp_path / "tiny.yaml", body)
    message = "args.list_depth: no stage of this recipe has this setting, which is one of trainer ltre; leave it out"
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, {"list_depth": "5"})
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path / "wrong.yaml", changed(body, "args.list_depth", 5)))
    message = "trainer 'retriever' has no setting 'adversarial_weight', which is one of trainer ar2"
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, {"retriever.adversarial_weight": "0.2"})
    assert load_recipe(path, {"index_dtype": "float16"}).args["index_dtype"] == "float16"  # of rows, too


def test_a_key_that_comes_twice_raises_an_error(tmp_path):
    text = "name: tiny\ncollection: data\nseed: 1\nargs:\n  bf16: false\nseed: 2\n"
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"twice.yaml: .*the key 'seed' comes twice, in lines 3 and 6"):
        load_recipe(tmp_path / "twice.yaml")
    (tmp_path / "merged.yaml").write_text(
        "collection: data\nmodels:\n  a: &a {model: x, layers: [0]}\n  b: {<<: *a, layers: [1]}\n"
    )
    assert load_recipe(tmp_path / "merged.yaml").models["b"] == {"model": "x", "layers": [1]}


def test_a_model_that_is_not_there_raises_an_error_before_anything_is_trained(body, tmp_path):
    stages = changed(body, "stages.ranker.ranker", "heavy")  # the second stage
    stages["models"]["heavy"] = {"model": "rankr"}
    recipe = load_recipe(write_recipe(tmp_path / "wrong.yaml", stages))
    recipe.output_dir = str(tmp_path / "run")
    with pytest.raises(RecipeError, match="models.heavy.model: rankr: found no such folder here, and"):
        run_recipe(recipe)
    assert not (tmp_path / "run").exists()


def test_command_line_values_override_fields_settings_and_stages(body, tmp_path):
    path = write_recipe(tmp_path / "tiny.yaml", body)
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
    with pytest.raises(RecipeError, match="'arr2' is not a stage; did you mean 'ar2'"):
        load_recipe(path, {"arr2.num_rounds": "3"})
    with pytest.raises(RecipeError, match="a value is missing"):
        parse_arguments([str(path), "--seed"])
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1,two"], "--seeds 1,two: expected different whole numbers"),
        (["--seeds", "1,1"], "--seeds 1,1: expected different whole numbers"),
        (["--seed", "7"], "--seed 7: a study has several; expected --seeds 1,2,3"),
        (["--against", "AR3"], "--against AR3: no such row; the recipe has zero-shot, warm-up, AR2"),
    ],
)
def test_a_study_with_wrong_seeds_runs_nothing(body, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(study, "run_seed", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(SystemExit, match=message):
        study.main([str(write_recipe(tmp_path / "tiny.yaml", body)), *options])


# ---- Stages that write training lists ------------------------------------------------------------------------------


def rocketqa_recipe(home: Path, collection) -> dict:
    """RocketQA's four steps over tiny models, the tiny collection, a third of it as queries without labels."""
    body = tiny_recipe(home)
    with open(home / "unlabelled.jsonl", "w") as stream:
        for number, text in enumerate(collection.corpus["text"][:60:3]):
            print(json.dumps({"_id": f"u{number}", "text": text.replace("the ", "which ", 1)}), file=stream)
    lists = {"depth": 10, "thresholds": "quantile", "irrelevant": 0.7, "relevant": 0.8}
    start = {"trainer": "retriever", "retriever": "light"}
    augment = {"trainer": "augment", "ranker": "ranker"}
    args = {"max_steps": 4, "mine": False, "num_negatives": 2}
    body["stages"] = {
        "retriever-0": {**start, "args": {"max_steps": 4}},
        "ranker": {
            "trainer": "ranker",
            "retriever": "retriever-0",
            "ranker": {"from": "retriever-0", "max_length": 48},
            "args": {"max_steps": 3, "num_negatives": 3, "pool_depth": 8, "ranker_loss": "pointwise"},
        },
        "denoised": {**augment, "retriever": "retriever-0", "args": {**lists, "kinds": ["denoised"]}},
        "retriever-1": {**start, "lists": ["denoised"], "args": args},
        "pseudo": {
            **augment,
            "retriever": "retriever-1",
            "args": {**lists, "kinds": ["pseudo"], "unlabelled": str(home / "unlabelled.jsonl")},
        },
        "retriever-2": {**start, "lists": ["denoised", "pseudo"], "args": args},
    }
    body["evaluation"]["splits"] = ["test"]
    body["evaluation"]["rows"] = {
        "step-1": {"retriever": "retriever-0", "ranker": "ranker"},
        "step-3": {"retriever": "retriever-1", "ranker": "ranker"},
        "step-4": {"retriever": "retriever-2", "ranker": "ranker"},
    }
    return body


@pytest.fixture(scope="module")
def rocketqa(home, tiny_collection):
    return rocketqa_recipe(home, tiny_collection)


def weights(run: Path, stage: str) -> dict:
    return dict(
        SentenceTransformer(str(run / "stages" / stage / "retriever"), device="cpu").named_parameters()
    )


@pytest.mark.slow
def test_four_steps_of_rocketqa_run_and_continue_where_they_stopped(rocketqa, tmp_path, capsys, monkeypatch):
    path = write_recipe(tmp_path / "rocketqa.yaml", rocketqa)
    whole, stopped = (
        load_recipe(path, {"output_dir": str(tmp_path / name)}) for name in ("whole", "stopped")
    )
    run_recipe(whole)
    assert "step-4 over step-3" in capsys.readouterr().out
    run = tmp_path / "whole"
    denoised, pseudo = (
        load_training_lists(run / "stages" / name / "lists") for name in ("denoised", "pseudo")
    )
    assert set(denoised.dataset["kind"]) == {"denoised"} and set(pseudo.dataset["kind"]) == {"pseudo"}
    assert all(id.startswith("u") for id in pseudo.dataset["query_id"])
    assert pseudo.manifest["models"]["retriever"]["name"] == "retriever-1"
    # The fourth step sees what the third does not.
    assert any(
        not other.equal(weight)
        for other, weight in zip(
            weights(run, "retriever-1").values(), weights(run, "retriever-2").values(), strict=True
        )
    )

    train = runner.train

    def stop_at_the_last(recipe, stage, *rest):
        if stage == "retriever-2":
            raise KeyboardInterrupt
        return train(recipe, stage, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "train", stop_at_the_last)
        run_recipe(stopped)
    capsys.readouterr()
    run_recipe(stopped)
    printed = capsys.readouterr().out
    assert printed.count("done before") == 5
    for name, weight in weights(run, "retriever-2").items():
        assert weights(tmp_path / "stopped", "retriever-2")[name].equal(weight), name


def test_lists_are_taken_from_earlier_stages_that_write_them(rocketqa, tmp_path):
    cases = {
        "stages.retriever-1.lists": (["denoisd"], "no earlier stage that augments; did you mean 'denoised'"),
        "stages.retriever-0.lists": (
            ["denoised"],
            "'denoised' is no earlier stage that augments; there is none",
        ),
        "stages.pseudo.lists": (["denoised"], "writes lists and takes none"),
        "stages.retriever-2.lists": ("denoised", "expected a list"),
        "stages.retriever-1.retriever": ("denoised", "'denoised' is not a model or an earlier stage"),
        "stages.denoised.args.thresholds": ("absolute", "need probabilities of relevance"),
        "stages.denoised.args.deep": (5, "did you mean 'depth'"),
    }
    for path, (value, message) in cases.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe(write_recipe(tmp_path / "wrong.yaml", changed(rocketqa, path, value)))


def test_other_lists_make_another_stage(rocketqa, tmp_path):
    path = write_recipe(tmp_path / "rocketqa.yaml", rocketqa)
    before, after = load_recipe(path), load_recipe(path, {"denoised.depth": "11"})
    differ = [stage for stage in rocketqa["stages"] if before.stage_key(stage) != after.stage_key(stage)]
    assert differ == ["denoised", "retriever-1", "pseudo", "retriever-2"]


def test_a_missing_file_of_queries_is_found_before_anything_is_trained(rocketqa, tmp_path):
    path = write_recipe(tmp_path / "rocketqa.yaml", rocketqa)
    recipe = load_recipe(path, {"output_dir": str(tmp_path / "run"), "pseudo.unlabelled": "absent.jsonl"})
    with pytest.raises(RecipeError, match=r"stages.pseudo.args.unlabelled: absent.jsonl: no such file"):
        run_recipe(recipe)
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"splits": ["dev"], "report_split": "test"},
            "evaluation.report_split: found 'test', expected one of the splits dev",
        ),
        ({"splits": ["valid"]}, "evaluation: data has no split 'valid'; it has train, dev, test"),
        ({"metrics": ["mrr10"]}, "evaluation: unknown metric 'mrr10'"),
        ({"metrics": ["mrr@10", "recall@50"]}, "recall@50 cannot be computed from the 20 passages"),
        ({"test_metric": "recall@10"}, "test_metric: found 'recall@10', expected one of the metrics mrr@10,"),
    ],
)
def test_an_impossible_evaluation_is_an_error_before_anything_is_trained(body, tmp_path, settings, message):
    path = write_recipe(tmp_path / "r.yaml", {**body, "evaluation": {**body["evaluation"], **settings}})
    with pytest.raises(RecipeError, match=message):
        run_recipe(load_recipe(path, {"output_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.slow
def test_rocketqa_v2_trains_both_models_on_the_lists_of_a_stage(rocketqa, tmp_path, capsys):
    body = json.loads(json.dumps(rocketqa))
    steps = {name: body["stages"][name] for name in ("retriever-0", "ranker", "denoised")}
    steps["denoised"]["args"]["kinds"] = ["undenoised", "denoised"]
    steps["joint"] = {
        "trainer": "rocketqa-v2",
        "retriever": "retriever-0",
        "ranker": "ranker",
        "lists": ["denoised"],
        "args": {"mine": False, "max_steps": 3, "num_negatives": 3, "mini_batch_size": 4},
    }
    rows = {"RocketQAv2": {"retriever": "joint", "ranker": "joint"}}
    body |= {"stages": steps, "evaluation": body["evaluation"] | {"rows": rows}}
    path = write_recipe(tmp_path / "v2.yaml", body)
    run_recipe(load_recipe(path, {"output_dir": str(tmp_path / "run")}))
    assert "RocketQAv2" in capsys.readouterr().out
    log = json.loads((tmp_path / "run" / "stages" / "joint" / "trainer_state.json").read_text())
    assert log["global_step"] == 3
    CrossEncoder(str(tmp_path / "run" / "ranker"))
