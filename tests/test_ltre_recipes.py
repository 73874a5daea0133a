"""LTRe through recipes and `hf-ar2 tune-queries`: compressed indexes as rows, an index that was there before."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import faiss
import pytest
from conftest import make_tiny_collection, make_tiny_retriever, with_passages, write_recipe
from sentence_transformers import SentenceTransformer

from hf_ar2.command_line import main as cli
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError, row_config
from hf_ar2.recipes.runner import run_recipe

SHORT = ["--max_passage_length", "32", "--bf16", "false", "--disable_tqdm", "true", "--ltre.list_depth", "10"]
# What is tuned is served, whatever eight queries of dev say of it.
SHORT += ["--evaluation.choose_on", "null"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """`data/`, a BEIR folder of 300 passages, and `tiny-retriever/`."""
    folder = tmp_path_factory.mktemp("home")
    make_tiny_retriever(folder / "tiny-retriever")
    with_passages(make_tiny_collection(), 300).save(folder / "data")
    return folder


def tune(home, *options):
    command = [
        sys.executable,
        "-m",
        "hf_ar2.command_line.main",
        "tune-queries",
        "tiny-retriever",
        "data",
        "--steps",
        "4",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *options, *SHORT], cwd=home, capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
def test_tuning_builds_an_index_and_reports_before_and_after(home):
    done = tune(home, "--output_dir", "plain")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "retriever: after over before" in done.stdout and "query_encoder/" in done.stdout
    assert SentenceTransformer(str(home / "plain" / "retriever")).encode_query(["otter"]).shape == (1, 32)


def evaluated_as_at_its_end(home, run, index, capsys, monkeypatch):
    """`evaluate RUN` gives the digits of the run's own evaluation, and `search RUN` its index."""
    monkeypatch.chdir(home)  # the recipe names the collection from there
    assert cli.main(["evaluate", run, "--output", f"{run}-again"]) == 0
    found = json.loads((home / f"{run}-again" / "metrics.json").read_text())
    assert found["test"] == json.loads((home / run / "metrics.json").read_text())["after"]["test"]
    assert cli.main(["search", run, "otter"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("the index that the run was evaluated with, ") == 2 and shown.count(index) == 2
    assert not (home / run / "index").exists(), "another index was built"


@pytest.mark.slow
def test_tuning_takes_an_index_that_is_there(home, tmp_path, capsys, monkeypatch):
    """Encoded by hand with sentence-transformers alone, as somebody else would have."""
    model = SentenceTransformer(str(home / "tiny-retriever"), device="cpu")
    rows = [json.loads(line) for line in (home / "data" / "corpus.jsonl").read_text().splitlines()][::-1]
    vectors = model.encode([f"{row['title']} {row['text']}".strip() for row in rows])
    index = faiss.index_factory(32, "SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "theirs.faiss"))
    (tmp_path / "ids.json").write_text(json.dumps([row["_id"] for row in rows]))
    done = tune(home, "--output_dir", "theirs", "--index", str(tmp_path / "theirs.faiss"))
    assert done.returncode == 0, done.stderr[-3000:]
    evaluated_as_at_its_end(home, "theirs", "theirs.faiss", capsys, monkeypatch)
    (tmp_path / "ids.json").write_text(json.dumps([row["_id"] for row in rows[::-1]]))
    done = tune(home, "--output_dir", "wrong", "--index", str(tmp_path / "theirs.faiss"))
    assert done.returncode != 0 and "its ids are in another" in done.stderr.replace("\n", " ")


@pytest.mark.slow
def test_tuning_trains_centroids_and_leaves_an_index_for_plain_faiss(home, capsys, monkeypatch):
    done = tune(home, "--output_dir", "jpq", "--factory", "PQ8", "--centroids")
    assert done.returncode == 0, done.stderr[-3000:]
    saved = faiss.read_index(str(home / "jpq" / "searched_index" / "index.faiss"))
    assert saved.ntotal == 300
    metrics = json.loads((home / "jpq" / "metrics.json").read_text())
    assert set(metrics) == {"before", "after"}
    evaluated_as_at_its_end(home, "jpq", "searched_index", capsys, monkeypatch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--index", "a", "--factory", "PQ8"], "give one of them"),
        (["--ids", "a"], "--ids requires --index"),
        (["--centroids"], "--factory OPQ48,PQ48 for example"),
    ],
)
def test_options_that_contradict_each_other(capsys, options, message):
    with pytest.raises(SystemExit):
        cli.main(["tune-queries", "model", "data", *options])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_names_the_exact_index_of_a_stage(home, tmp_path, capsys):
    """Nothing is kept of a Flat index, for its passages give it again: the row is searched exactly."""
    ltre = {"retriever": "ltre", "index": "ltre"}
    quick = {"eval_strategy": "no", "eval_on_start": False, "report_to": "none", "max_passage_length": 32}
    recipe = {
        "collection": str(home / "data"),
        "models": {"tiny": {"model": str(home / "tiny-retriever"), "dropout": 0.0}},
        "args": {**quick, "use_cpu": True, "bf16": False, "disable_tqdm": True},
        "stages": {
            "ltre": {"trainer": "ltre", "retriever": "tiny", "args": {"max_steps": 2, "list_depth": 10}}
        },
        "evaluation": {
            "splits": ["test"],
            "metrics": ["mrr@10"],
            "depth": 20,
            "rows": {"exact": {"retriever": "ltre"}, "named": ltre},
        },
    }
    write_recipe(tmp_path / "r.yaml", recipe)
    run = tmp_path / "run"
    run_recipe(load_recipe(tmp_path / "r.yaml", {"output_dir": str(run)}))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["named"] == metrics["exact"]
    assert cli.main(["search", str(run), "otter"]) == 0
    assert f"index in {run / 'index'}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stage_keeps_its_best_weights_on_dev(home, tmp_path, capsys):
    """With such a learning rate the retriever gets worse with every step after the first."""
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": False,
        "save_strategy": "best",
        "metric_for_best_model": "eval_retriever_mrr@10",
        "load_best_model_at_end": True,
        "save_only_model": True,
    }
    quick = {"report_to": "none", "max_passage_length": 32, "eval_metrics": ["mrr@10"]}
    recipe = {
        "collection": str(home / "data"),
        "models": {"tiny": {"model": str(home / "tiny-retriever"), "dropout": 0.0}},
        "args": {**quick, **best, "use_cpu": True, "bf16": False, "disable_tqdm": True},
        "stages": {
            "ltre": {
                "trainer": "ltre",
                "retriever": "tiny",
                "args": {"max_steps": 6, "list_depth": 10, "learning_rate": 0.3},
            }
        },
        "evaluation": {"splits": ["dev"], "report_split": "dev", "metrics": ["mrr@10"], "depth": 20},
    }
    recipe["evaluation"]["rows"] = {"LTRe": {"retriever": "ltre"}}
    run = tmp_path / "run"
    run_recipe(load_recipe(write_recipe(tmp_path / "r.yaml", recipe), {"output_dir": str(run)}))
    history = json.loads((run / "stages" / "ltre" / "trainer_state.json").read_text())["log_history"]
    values = [entry["eval_retriever_mrr@10"] for entry in history if "eval_retriever_mrr@10" in entry]
    served = json.loads((run / "metrics.json").read_text())["LTRe"]["dev"]["retriever"]["mrr@10"]
    assert len(values) == 6 and values[-1] < max(values) == pytest.approx(served)
    assert "Kept the weights of step" in capsys.readouterr().out
    assert not list((run / "stages" / "ltre").glob("checkpoint-*"))


def test_a_row_names_a_stages_index_where_that_is_kept(tmp_path):
    recipe = {
        "collection": "data",
        "models": {"tiny": {"model": "tiny-retriever"}},
        "stages": {
            "own": {"trainer": "ltre", "retriever": "tiny", "args": {"index_factory": "PQ8"}},
            "given": {
                "trainer": "ltre",
                "retriever": "tiny",
                "args": {"index": "a.faiss", "index_ids": "a.json"},
            },
        },
        "evaluation": {"rows": {stage: {"retriever": stage, "index": stage} for stage in ("own", "given")}},
    }
    loaded = load_recipe(write_recipe(tmp_path / "r.yaml", recipe))
    own, given = (row_config(loaded, row, tmp_path) for row in ("own", "given"))
    assert own.index == str(tmp_path / "stages" / "own" / "searched_index")
    assert (given.index, given.index_ids) == ("a.faiss", "a.json")


def test_an_ltre_stage_needs_no_ranker_and_a_row_names_a_stages_index(tmp_path):
    recipe = {
        "collection": "data",
        "models": {"tiny": {"model": "tiny-retriever"}},
        "stages": {"ltre": {"trainer": "ltre", "retriever": "tiny"}},
        "evaluation": {"rows": {"a": {"retriever": "ltre", "index": "ltre"}}},
    }
    path = write_recipe(tmp_path / "r.yaml", recipe)
    assert load_recipe(path).stage_args("ltre") == {"seed": 42}
    recipe["evaluation"]["rows"]["a"]["indx"] = "PQ8"
    write_recipe(path, recipe)
    with pytest.raises(RecipeError, match="unknown key 'indx'; did you mean 'index'"):
        load_recipe(path)
