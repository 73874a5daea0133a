"""Recipes on machines that do not see each other's disks: two processes, with a run folder each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from attacks.common import RECIPES, difference, make_home, outcome
from conftest import write_recipe
from two_processes import launch_two

from hf_ar2.recipes import run as script

pytestmark = pytest.mark.slow

OWN = Path(__file__).with_name("own_disk_recipe.py")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_home(folder)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_finds_the_same_with_a_disk_for_each_process(name: str, home: Path, tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    launch_two(script.__file__, home / f"{name}.yaml", "--output_dir", shared)
    printed = launch_two(OWN, home / f"{name}.yaml", own)
    assert printed.count("hf-ar2 search") == 1
    expected = outcome(shared)
    assert any(path.startswith("stages/") for path in expected) and "metrics.json" in expected
    assert not difference(own / "disk-0", expected)
    for stage in RECIPES[name][0]:  # what the next stages read is on both disks
        done = [(own / disk / "stages" / stage / "done.json").read_text() for disk in ("disk-0", "disk-1")]
        assert done[0] == done[1]
    for disk in ("disk-0", "disk-1"):
        assert not list((own / disk / "encodings").glob("*/"))  # none is left

    if name == "rocketqa-v2":  # A machine is replaced, and the last stage is missing: the run is completed.
        shutil.rmtree(own / "disk-1")
        shutil.rmtree(own / "disk-0" / "stages" / "both")
        launch_two(OWN, home / f"{name}.yaml", own)
        assert not difference(own / "disk-0", expected)


def test_processes_take_the_decisions_of_the_first_one(home: Path, tmp_path: Path) -> None:
    """How many steps fit into the minutes is measured, and each machine has its own speed."""
    body = yaml.safe_load((home / "ar2.yaml").read_text())
    for stage in body["stages"].values():
        stage["max_epochs"] = 2
    recipe = write_recipe(tmp_path / "short.yaml", body)
    launch_two(OWN, recipe, tmp_path, "--minutes", "5", "--clock", "processor")
    for file in ("plan.json", "stages/warm/length.json", "stages/ar2/length.json", "chosen.json"):
        first, second = (json.loads((tmp_path / disk / file).read_text()) for disk in ("disk-0", "disk-1"))
        assert first == second
