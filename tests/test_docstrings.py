"""Everything public says what it is, what users import comes with an example, and the examples run.

Examples in the form of a session (`>>>`) are run by test_doctests.py; here run those in the form of a script.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from examples import answer_hub_names, python_blocks, run_block

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("hf_ar2", "trainers", "recipes")
    for path in (ROOT / package).rglob("*.py")
    if path.parent.name != "ir_metrics"  # `evaluate` has its own form of documentation
)
PACKAGES = [
    "hf_ar2",
    "hf_ar2.augmentation",
    "hf_ar2.collections",
    "hf_ar2.encoding",
    "hf_ar2.evaluation",
    "hf_ar2.importing",
    "hf_ar2.index",
    "hf_ar2.losses",
    "hf_ar2.models",
    "hf_ar2.report.page",
    "hf_ar2.search",
    "hf_ar2.trainers",
    "hf_ar2.training_lists",
]
EXPORTS = [
    (package, name)
    for package in PACKAGES
    for name in importlib.import_module(package).__all__
    if name != "__version__"
]


def documented(file: str) -> dict[str, str | None]:
    """Public classes, functions, methods and properties of a file, and their docstrings."""
    found: dict[str, str | None] = {}

    def visit(nodes: list[ast.stmt], inside: str) -> None:
        for node in nodes:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found[inside + node.name] = ast.get_docstring(node, clean=False)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{inside}{node.name}.")

    visit(ast.parse((ROOT / file).read_text(encoding="utf-8")).body, "")
    return found


SCRIPTS = [
    pytest.param(code, id=f"{file}:{name}")
    for file in FILES
    for name, text in documented(file).items()
    for _, code in python_blocks(text or "")
]


@pytest.mark.parametrize("file", FILES)
def test_public_names_say_what_they_are(file: str) -> None:
    assert [name for name, text in documented(file).items() if not text] == []


@pytest.mark.parametrize(("package", "name"), EXPORTS)
def test_what_users_import_has_an_example(package: str, name: str) -> None:
    value: Any = getattr(importlib.import_module(package), name)
    if callable(value):
        assert "Example:" in (inspect.getdoc(value) or ""), f"{value.__module__}.{name} shows no use of it"


@pytest.mark.slow
@pytest.mark.parametrize("code", SCRIPTS)
def test_example_scripts_run(
    code: str, tmp_path, monkeypatch, tiny_retriever_path, tiny_ranker_path, tiny_collection
) -> None:
    monkeypatch.chdir(tmp_path)
    answer_hub_names(monkeypatch, tiny_retriever_path, tiny_ranker_path, tiny_collection)
    run_block(code, "example")
