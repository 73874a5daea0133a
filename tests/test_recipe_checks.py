"""Errors in a recipe that show before anything is trained, and the hashes of what a run read."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from conftest import make_tiny_collection, make_tiny_retriever, write_recipe
from two_processes import launch_two

from hf_ar2.files import read_json, write_json
from hf_ar2.recipes import run as script
from hf_ar2.recipes import runner
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.runner import run_recipe

QUICK = {
    "per_device_train_batch_size": 4,
    "max_passage_length": 32,
    "num_negatives": 3,  # which rows do not have
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


@pytest.fixture
def recipe(tmp_path):
    """The path of a recipe of two stages, beside its `data` and `tiny-retriever`."""
    make_tiny_retriever(tmp_path / "tiny-retriever")
    make_tiny_collection().save(tmp_path / "data")
    body = {
        "name": "tiny",
        "collection": str(tmp_path / "data"),
        "models": {"light": {"model": str(tmp_path / "tiny-retriever"), "dropout": 0.0}},
        "args": QUICK,
        "stages": {
            "warm-up": {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 2}},
            "joint": {
                "trainer": "ar2",
                "retriever": "warm-up",
                "ranker": "warm-up",
                "args": {"num_rounds": 1, "ranker_steps": 1, "retriever_steps": 1, "pool_depth": 8},
            },
            "compressed": {
                "trainer": "ltre",
                "retriever": "warm-up",
                "args": {"max_steps": 1, "list_depth": 8, "num_negatives": 0},
            },
        },
        "evaluation": {
            "splits": ["test"],
            "metrics": ["mrr@10"],
            "depth": 20,
            "rows": {
                "before": {"retriever": "light"},
                "after": {
                    "retriever": "warm-up",
                    "index_factory": "HNSW8",
                    "search_parameters": "efSearch=32",
                },
            },
        },
    }
    return write_recipe(tmp_path / "tiny.yaml", body)


def started(path, *overrides):
    """What `hf-ar2 train` starts."""
    script.main([str(path), "--output_dir", str(path.parent / "run"), *overrides])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("joint.adversarial_weight", "2", "stages.joint.args: adversarial_weight=2: λ is between 0 and 1"),
        ("joint.matryoshka_dims", "[64]", "joint.args: matryoshka_dims=.* embeddings have 32 dimensions"),
        ("joint.matryoshka_dims", "[0]", "joint.args: matryoshka_dims=.*expected a list of different whole"),
        ("joint.num_rounds", "two", "stages.joint.args.num_rounds: found 'two', expected a whole number"),
        ("joint.refresh", "maybe", "stages.joint.args.refresh: found 'maybe', expected true or false"),
        ("joint.eval_strategy", "epoch", "stages.joint.args: .* recall@100 needs 100 passages"),
        ("joint.train_split", "trian", "joint.args.train_split: data has no judgments of a split 'trian'"),
        (
            "compressed.train_centroids",
            "true",
            "compressed.args: train_centroids=True .*index_factory='Flat'",
        ),
        ("compressed.index_factory", "PQ7", "stages.compressed.args: FAISS cannot make .* 'PQ7'"),
        (
            "compressed.search_parameters",
            "nprobe=4",
            "compressed.args: search_parameters 'nprobe=4' do not fit",
        ),
        ("compressed.index", "absent.faiss", "stages.compressed.args.index: absent.faiss: no such file"),
        ("evaluation.rows.after.search_parameters", "nprobe=4", "evaluation.rows.after: search_parameters"),
        ("evaluation.rows.after.index", "absent.faiss", "rows.after.index: absent.faiss: no such file"),
        (
            "evaluation.rows.before.index",
            "warm-up",
            r"rows.before.index: stage 'warm-up' leaves no index \(trainer 'retriever'\); .* 'ltre' \(compressed\)",
        ),
    ],
)
def test_errors_of_later_stages_show_before_the_first(recipe, key, value, message):
    override = [f"--{key}", value]
    if key.endswith("eval_strategy"):
        override += ["--joint.eval_depth", "20"]
    with pytest.raises(SystemExit, match=f"^recipe: .*{message}"):
        started(recipe, *override)
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("corpus.jsonl", '"_id": "p100"', '"_id": "p 100"', "passage id 'p 100' is empty or has white space"),
        ("corpus.jsonl", '"_id": "p100"', '"_id": "p\u3000100"', "passage id .* is empty or has white space"),
        ("queries.jsonl", '"_id": "q200"', '"_id": "q\u00a0200"', "query id .* is empty or has white space"),
        (
            "qrels/test.tsv",
            None,
            "",
            "evaluation: split 'test' of data has no relevant passage in its 0 judged",
        ),
        ("qrels/train.tsv", None, "", "args.train_split: split 'train' of data has no relevant passage"),
    ],
)
def test_data_that_cannot_be_evaluated_shows_before_the_first_stage(recipe, file, old, new, message):
    data = recipe.parent / "data"
    path = data / file
    if old is None:
        path.write_text(path.read_text().split("\n")[0] + "\n")
    else:
        path.write_text(path.read_text().replace(old, new))
        for qrels in data.glob("qrels/*.tsv"):
            ids = json.loads(f"[{old[7:]}, {new[7:]}]")
            qrels.write_text(qrels.read_text().replace(*ids))
    with pytest.raises(SystemExit, match=f"^recipe: .*{message}"):
        started(recipe)
    assert not (recipe.parent / "run").exists()


def test_an_error_that_the_user_can_fix_is_one_line_unless_a_traceback_is_wanted(recipe, monkeypatch):
    with pytest.raises(SystemExit, match="^recipe: .*absent"):
        started(recipe, "--collection", str(recipe.parent / "absent"))
    with pytest.raises(SystemExit, match="^recipe: .*no-such-model"):
        started(recipe, "--models.light.model", str(recipe.parent / "no-such-model"))
    monkeypatch.setenv("HF_AR2_TRACEBACK", "1")
    with pytest.raises(ValueError, match="absent"):
        started(recipe, "--collection", str(recipe.parent / "absent"))


# ---- Hashes of what a run read --------------------------------------------------------------------------------------


@pytest.fixture
def done(recipe):
    """The recipe, run without its last two stages, which nothing here is about."""
    body = yaml.safe_load(recipe.read_text())
    body["stages"] = {"warm-up": body["stages"]["warm-up"]}
    started(write_recipe(recipe, body))
    return recipe


@pytest.mark.slow
def test_changed_inputs_are_an_error(done, capsys):
    run, data = done.parent / "run", done.parent / "data"
    started(done)
    assert "done before" in capsys.readouterr().out
    header = (run / "environment.json").stat().st_mtime_ns

    weights = done.parent / "tiny-retriever" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(SystemExit, match=r"warm-up: the contents of models.light have changed since"):
        started(done)
    weights.write_bytes(kept)

    corpus = (data / "corpus.jsonl").read_text()
    (data / "corpus.jsonl").write_text(corpus.replace("otter", "weasel"))
    with pytest.raises(
        SystemExit, match=rf"warm-up: the contents of collection \({data}\) have changed since"
    ):
        started(done)
    assert (run / "environment.json").stat().st_mtime_ns == header  # nothing was touched

    shutil.rmtree(run / "stages" / "warm-up")
    before = (run / "runs" / "before" / "test.retriever.trec").read_text()
    started(done)
    assert (
        run / "runs" / "before" / "test.retriever.trec"
    ).read_text() != before  # evaluated again, without a stage


@pytest.mark.slow
def test_a_run_without_hashes_of_its_inputs_is_continued(done, capsys):
    """Runs of earlier versions have none; a study reads and continues them."""
    run = done.parent / "run"
    (run / "stages" / "warm-up" / "inputs.json").unlink()
    for key in (run / "evaluation").glob("*/key.json"):
        write_json(key, read_json(key)["of"][:3])
    found = run / "runs" / "before" / "test.retriever.trec"
    written_at = found.stat().st_mtime_ns
    (done.parent / "data" / "corpus.jsonl").write_text(
        (done.parent / "data" / "corpus.jsonl").read_text().replace("otter", "weasel")
    )
    capsys.readouterr()
    started(done)
    assert "done before" in capsys.readouterr().out and found.stat().st_mtime_ns == written_at


@pytest.mark.slow
def test_a_split_of_one_query_is_measured_and_not_tested(done):
    qrels = done.parent / "data" / "qrels" / "test.tsv"
    qrels.write_text("".join(qrels.read_text().splitlines(keepends=True)[:2]))
    run = done.parent / "one"
    run_recipe(load_recipe(done, {"output_dir": str(run)}))
    assert set(json.loads((run / "metrics.json").read_text())) == {"before", "after"}
    assert json.loads((run / "significance.json").read_text())["tests"]["after"]["test"] == {}


def test_ctrl_c_in_a_stage_exits_as_a_shell_expects(recipe, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_stage", interrupted)
    with pytest.raises(SystemExit) as ended:
        started(recipe)
    assert ended.value.code == 130


# ---- Two processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_in_two_processes_measures_what_one_does(done):
    """Half of the lists each, the same steps, and one folder that is written once."""
    two = done.parent / "two"
    options = ["--output_dir", two, "--per_device_train_batch_size", "2"]
    printed = launch_two(script.__file__, done, *options)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    assert printed.count("[1/1] warm-up") == 1 and printed.count("hf-ar2 search") == 1
    assert_equal_runs(two, done.parent / "run")


@pytest.mark.slow
def test_a_recipe_on_two_machines_measures_what_one_does(done):
    """Two launches on this machine, with a process each; the folder is on a disk that both see."""
    two = done.parent / "two-machines"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_ar2.command_line.main", "train", str(done), "--output_dir", str(two)]
    command += f"--per_device_train_batch_size 2 --num_machines 2 --main_process_port {port}".split()
    command += ["--main_process_ip", "127.0.0.1", "--machine_rank"]
    # No GPU is shown to them, so that each has one process.
    options = {"env": os.environ | {"CUDA_VISIBLE_DEVICES": ""}, "stdout": subprocess.PIPE, "text": True}
    launches = [subprocess.Popen([*command, str(rank)], **options) for rank in (0, 1)]
    printed = [launch.communicate()[0] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0]
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    assert "hf-ar2 search" in printed[0] and "hf-ar2 search" not in printed[1]
    assert_equal_runs(two, done.parent / "run")


@pytest.mark.slow
def test_a_stage_continues_with_another_number_of_processes(done, capsys):
    """With the lists of a step that it began with, and the same command but for the processes."""
    run, options = done.parent / "fewer", ["--per_device_train_batch_size", "2", "--save_strategy", "steps"]
    options += ["--save_steps", "1", "--output_dir", str(run)]
    launch_two(script.__file__, done, *options)
    folder = run / "stages" / "warm-up"
    for written in (folder / "done.json", run / "evaluation", run / "runs", run / "metrics.json"):
        shutil.rmtree(written) if written.is_dir() else written.unlink()
    shutil.rmtree(folder / "checkpoint-2")
    with pytest.raises(
        RecipeError, match="began with 4 lists in a step, which 3 processes cannot share evenly"
    ):
        runner.keep_lists_of_step(SimpleNamespace(gradient_accumulation_steps=1, world_size=3), 4, "warm-up")
    script.main([str(done), *options])
    assert "continues from checkpoint-1" in capsys.readouterr().out
    assert json.loads((run / "environment.json").read_text())["processes"] == 1
    assert_equal_runs(run, done.parent / "run")


def assert_equal_runs(two, one):
    found, expected = (json.loads((run / "metrics.json").read_text()) for run in (two, one))
    assert found == expected
    logs = [json.loads((run / "stages/warm-up/trainer_state.json").read_text()) for run in (one, two)]
    losses = [[entry["loss"] for entry in log["log_history"] if "loss" in entry] for log in logs]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-4)
