"""Tokens and passwords are in nothing that is written."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import yaml
from conftest import make_tiny_collection, make_tiny_retriever, write_recipe

from hf_ar2.command_line import main as cli
from hf_ar2.recipes import run as script
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.report.page.page import page_data
from hf_ar2.report.page.run_folder import read_runs
from hf_ar2.settings.secrets import is_secret, without_secrets
from hf_ar2.trainers import AR2Config, RetrieverConfig

TOKEN = "hf_SECRETTOKEN"


@pytest.mark.parametrize(
    "name", ["hub_token", "token", "api-key", "API_KEY", "--warm-up.hub_token", "password"]
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["encode_tokens", "tokenizer", "max_steps", "--step_tokens", "secretary", 3, None]
)
def test_names_of_others(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    "value",
    [
        {"args": {"hub_token": TOKEN}, "stages": {"a": {"args": {"hub_token": TOKEN}}}},
        ["train", "r.yaml", "--hub_token", TOKEN, f"--warm.hub_token={TOKEN}"],
        f"hf-ar2 train r.yaml --hub_token {TOKEN} --api-key={TOKEN}",
        f"endpoint https://me:{TOKEN}@example.org/v1 and https://{TOKEN}@example.org",
        f"the Hub said: hf_{TOKEN}AbCdEfGhIjKlMnOpQrStUvWx",
    ],
)
def test_no_secret_is_left(value):
    assert TOKEN not in str(without_secrets(value))
    assert without_secrets(["--steps", 5, "a@b.org", "https://a.org/@x"]) == [
        "--steps",
        5,
        "a@b.org",
        "https://a.org/@x",
    ]


def test_the_arguments_of_a_trainer_print_no_token(tmp_path):
    for config in (RetrieverConfig, AR2Config):
        args = config(output_dir=str(tmp_path), hub_token=TOKEN, use_cpu=True)
        for shown in (repr(args), str(args), args.to_json_string(), str(args.to_sanitized_dict())):
            assert TOKEN not in shown
        assert args.hub_token == TOKEN


@pytest.mark.slow
def test_a_token_is_in_no_file_of_a_run(tmp_path, monkeypatch, capsys):
    make_tiny_retriever(tmp_path / "light")
    make_tiny_collection().save(tmp_path / "data")
    args = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "no",
        "eval_on_start": False,
    }
    args |= {
        "use_cpu": True,
        "bf16": False,
        "report_to": "tensorboard",
        "logging_steps": 1,
        "hub_token": TOKEN,
    }
    warm = {"trainer": "retriever", "retriever": "light", "args": {"hub_token": TOKEN}}
    rows = {"before": {"retriever": "light"}, "after": {"retriever": "warm"}}
    body = {
        "collection": str(tmp_path / "data"),
        "models": {"light": {"model": str(tmp_path / "light")}},
        "args": args,
        "stages": {"warm": warm},
        "evaluation": {
            "splits": ["test"],
            "metrics": ["mrr@10"],
            "depth": 20,
            "choose_on": None,
            "rerank_depth": 10,
            "rows": rows,
        },
    }
    recipe = write_recipe(tmp_path / "tiny.yaml", body)
    given = [
        str(recipe),
        "--output_dir",
        str(tmp_path / "run"),
        "--hub_token",
        TOKEN,
        f"--warm.hub_token={TOKEN}",
    ]
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "run" / "logs"))
    monkeypatch.setattr(sys, "argv", ["run.py", *given])
    script.main(given)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files) and any(
        "checkpoint-1" in str(path) for path in files
    )
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["command"].count("<hidden>") == 2
    assert cli.main(["card", str(tmp_path / "run")]) == 0
    assert TOKEN not in capsys.readouterr().out + str(sys.argv)
    # A run of an earlier version has it; its report does not.
    header = tmp_path / "run" / "recipe.yaml"
    header.write_text(yaml.safe_dump(yaml.safe_load(header.read_text()) | {"args": args}))
    data = page_data(read_runs([tmp_path / "run"]), make_tiny_collection())
    assert TOKEN.encode() not in pickle.dumps(data)


def test_another_token_is_the_same_stage(tmp_path):
    body = {
        "collection": "data",
        "models": {"light": {"model": "light"}},
        "stages": {"warm": {"trainer": "retriever", "retriever": "light"}},
    }
    path = write_recipe(tmp_path / "tiny.yaml", body)
    keys = {
        load_recipe(path, given).stage_key("warm")
        for given in ({}, {"hub_token": "a"}, {"warm.hub_token": "b"})
    }
    assert len(keys) == 1
