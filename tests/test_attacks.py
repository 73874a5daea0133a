"""`make attack` counts as a failure what is one; the attacks themselves are in tests/attacks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from attacks.bad_recipes import CASES, bad_recipe
from attacks.common import Ended, called, difference, outcome

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def test_what_differs_from_the_uninterrupted_run_and_what_is_left_over(tmp_path: Path) -> None:
    for name in ("metrics.json", "stages/warm/retriever/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = outcome(tmp_path)
    assert len(expected) == 2 and difference(tmp_path, expected) == ""
    for name in (".lock", "stages/.metrics.json.7.partial", "stages/.warm-x.partial.old"):
        (tmp_path / name).write_text("")
        assert difference(tmp_path, expected) == f"left over: {name}"
        (tmp_path / name).unlink()
    (tmp_path / "metrics.json").write_text("{}")
    assert difference(tmp_path, expected) == "not as in the uninterrupted run: metrics.json"


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (Ended(1, "recipe: a/b: no space", "…"), ""),
        (Ended(1, "recipe: no space", "…"), "does not name a/b"),
        (Ended(1, "recipe: a/b\nand more", "…"), "no message of one line"),
        (Ended(1, "", "…"), "no message of one line"),
        (Ended(1, "recipe: a/b", "Traceback (most recent call last)"), "a traceback"),
        (Ended(-7, "", ""), "ended by signal 7"),
    ],
)
def test_an_error_is_one_line_that_names_the_file(ended: Ended, fault: str) -> None:
    found = ended.fault("a/b")
    assert fault in found if fault else not found


def test_how_a_child_ended(tmp_path: Path) -> None:
    ended = called(lambda: print("said") or sys.exit("recipe: message"), tmp_path / "log")
    assert (ended.code, ended.message, ended.printed) == (1, "recipe: message", "recipe: messagesaid\n")
    assert called(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path / "log").code == -9
    assert "Traceback" in called(lambda: 1 / 0, tmp_path / "log").fault()


def test_a_recipe_with_a_bad_value(home: Path) -> None:
    tried = bad_recipe(home, 0)
    assert tried.count == 1 and not tried.failed and len(CASES) > 400
