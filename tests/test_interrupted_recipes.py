"""A recipe that is killed between any two of its files, or finds a damaged one, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_recipe

from hf_ar2 import files, lock
from hf_ar2.files import DamagedFile
from hf_ar2.lock import FolderInUse, locked
from hf_ar2.recipes.budget import Budget
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.runner import run_recipe

pytestmark = pytest.mark.slow

# The run is killed while it writes each of these, one after the other.
NOTES = ["plan.json", "recipe.yaml"]
NOTES += [
    f"stages/warm/{name}" for name in ("key.txt", "inputs.json", "length.json", "time.json", "done.json")
]
NOTES += [f"stages/ranker/{name}" for name in ("key.txt", "done.json")]
NOTES += [
    "evaluation/before/encoding.json",
    "evaluation/after/encoding.json",
    "evaluation/after/pipeline.json",
]
NOTES += ["chosen.json", "evaluation/before/key.json", "evaluation/after/key.json"]
NOTES += ["metrics.json"]


class Killed(BaseException):
    """Passes all handlers of errors."""


@pytest.fixture(scope="module")
def path(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two stages and two rows; the first stage is no whole number of rounds long."""
    args = {"per_device_train_batch_size": 4, "eval_strategy": "no", "eval_on_start": False, "save_steps": 2}
    args |= {"save_strategy": "steps", "max_passage_length": 32, "max_pair_length": 48, "disable_tqdm": True}
    args |= {"use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 1e-3}
    ranks = {"max_steps": 3, "num_negatives": 3, "pool_depth": 8}
    recipe = {
        "name": "tiny",
        "collection": str(home / "data"),
        "models": {"light": {"model": str(home / "retriever"), "max_length": 32}},
        "args": args,
        "stages": {
            "warm": {"trainer": "retriever", "retriever": "light", "max_epochs": 0.8},
            "ranker": {"trainer": "ranker", "retriever": "warm", "ranker": "warm", "args": ranks},
        },
        "evaluation": {
            "splits": ["dev", "test"],
            "metrics": ["mrr@10"],
            "depth": 20,
            "rerank_depth": 10,
            "rows": {"before": {"retriever": "light"}, "after": {"retriever": "warm", "ranker": "ranker"}},
        },
    }
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", recipe)


def recipe_into(path: Path, run: Path) -> Recipe:
    return load_recipe(path, {"output_dir": str(run)})


@pytest.fixture(scope="module")
def whole(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted."""
    return run_recipe(recipe_into(path, tmp_path_factory.mktemp("runs") / "whole"))


def outcome(run: Path) -> dict[str, Any]:
    """What a run has found, without times."""
    found: dict[str, Any] = {
        name: json.loads((run / name).read_text()) for name in ("metrics.json", "chosen.json")
    }
    for stage, model in (("warm", "retriever"), ("ranker", "ranker")):
        found[stage] = (run / "stages" / stage / model / "model.safetensors").read_bytes()
        found[f"{stage} steps"] = json.loads((run / "stages" / stage / "done.json").read_text())["steps"]
    found["runs"] = {file.name: file.read_text() for file in sorted((run / "runs").rglob("*.trec"))}
    found["served"] = sorted(file.name for file in run.iterdir())
    return found


def test_a_run_that_is_killed_while_it_writes_any_note_ends_like_one_that_is_not(
    path, whole, tmp_path, monkeypatch
):
    rename = os.replace
    monkeypatch.setattr(lock, "BEAT", 1e6)  # times are written here alone, where the kill can be seen
    for note in NOTES:
        with monkeypatch.context() as patched, pytest.raises(Killed, match=note):

            def kill(
                source: Any, target: Any, killed_at: Path = tmp_path / note, patched: Any = patched
            ) -> None:
                if Path(target) == killed_at:
                    patched.setattr(Budget, "write", lambda _: None)  # a killed process does nothing more
                    raise Killed(killed_at)
                rename(source, target)

            patched.setattr(os, "replace", kill)
            run_recipe(recipe_into(path, tmp_path))
    (tmp_path / ".retriever.partial").mkdir()
    run_recipe(recipe_into(path, tmp_path))
    assert outcome(tmp_path) == outcome(whole)
    assert not list(tmp_path.rglob(".*.partial*"))


def test_a_damaged_note_is_made_again_or_named_with_what_to_do(path, whole):
    expected = outcome(whole)
    notes = [whole / note for note in [*NOTES, "time.json"] if (whole / note).suffix in (".json", ".txt")]
    for note in notes:
        note.write_bytes(note.read_bytes()[: note.stat().st_size // 2])
        while True:
            try:
                run_recipe(recipe_into(path, whole))
                break
            except (DamagedFile, RecipeError) as error:
                assert "elete" in str(error) and "run the command" in str(error)
                named = Path(str(error).split(": ")[0])
                assert named in notes  # this one, or one that was damaged and not needed until now
                named.unlink()
        assert outcome(whole) == expected, note


def test_a_folder_in_which_a_run_is_under_way_is_left_alone(path, tmp_path):
    with locked(tmp_path), pytest.raises(FolderInUse, match="in use by another run"):
        run_recipe(recipe_into(path, tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_time_of_a_stage_is_that_of_all_its_attempts(path, tmp_path):
    files.write_json(tmp_path / "stages" / "warm" / "time.json", {"seconds": 1000.0})
    files.write_json(tmp_path / "time.json", {"seconds": 2000.0})
    run_recipe(recipe_into(path, tmp_path))
    done = json.loads((tmp_path / "stages" / "warm" / "done.json").read_text())
    assert (
        1000 < done["seconds"] < 1900 and json.loads((tmp_path / "time.json").read_text())["seconds"] > 2000
    )


def test_time_is_noted_while_a_stage_runs(tmp_path):
    budget = Budget(tmp_path, None)
    budget.stage = Budget(tmp_path / "stages" / "warm", None)
    time.sleep(0.01)
    budget.write()
    for note in ("time.json", "stages/warm/time.json"):
        assert json.loads((tmp_path / note).read_text())["seconds"] > 0
