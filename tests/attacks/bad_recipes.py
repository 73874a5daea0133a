"""Runs recipes with bad values: each is one line that names the field, and nothing is trained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from attacks.bad_values import BAD_OVERRIDES, BAD_VALUES, recipe, with_value
from attacks.common import Tried, called, run_recipe
from conftest import write_recipe

# Path of a field → a value in the recipe, or a text on the command line.
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    *((path, with_value(path, value), []) for path in BAD_VALUES for value in BAD_VALUES[path]),
    *((key, recipe(), [f"--{key}={text}"]) for key in BAD_OVERRIDES for text in BAD_OVERRIDES[key]),
]


def bad_recipe(home: Path, number: int) -> Tried:
    """The case of this number, in a folder with `data/` and `tiny-retriever/`."""
    path, body, options = CASES[number]
    folder = home / f"bad-{number}"
    folder.mkdir()
    written = write_recipe(folder / "tiny.yaml", body)
    command = run_recipe(written, folder / "run", *options)

    def here() -> None:
        os.chdir(home)
        command()

    ended = called(here, folder / "log")
    if ended.code == 0:
        fault = "it ran"
    elif fault := ended.fault(path.split(".")[-1]):
        pass
    elif list(folder.rglob("*.safetensors")):
        fault = "something was trained"
    found = options or body_at(body, path)
    shutil.rmtree(folder)
    return Tried(1, [f"{path}, {found!r:.100}: {fault}"] if fault else [])


def body_at(body: Any, path: str) -> Any:
    """The value at a path of names with dots between them."""
    for name in path.split("."):
        body = body[name]
    return body
