"""What is installed is what is in the repository, and imports between the packages point one way."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# `hf_ar2/trainers` and `hf_ar2/recipes` are links to the folders at the top.
FOLDERS = {
    "hf_ar2": ROOT / "hf_ar2",
    "hf_ar2.trainers": ROOT / "trainers",
    "hf_ar2.recipes": ROOT / "recipes",
}
# Modules that any package may import; they import the standard library, psutil and tqdm alone.
LEAVES = {"hf_ar2.folders", "hf_ar2.files", "hf_ar2.lock", "hf_ar2.progress", "hf_ar2.terminal"}


def modules_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports_of(path: Path) -> set[str]:
    """Dotted names a module imports anywhere, outside `if TYPE_CHECKING:`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the package"
            found.add(node.module)
    return found


def test_every_folder_with_code_is_named_in_pyproject() -> None:
    found = set()
    for package, folder in FOLDERS.items():
        for path in modules_in(folder):
            found.add(".".join([package, *path.parent.relative_to(folder).parts]))
    assert found == set(SETTINGS["tool"]["setuptools"]["packages"])


def test_editors_follow_an_editable_install() -> None:
    """They read paths from .pth files, but run no import hooks."""
    assert not [finder for finder in sys.meta_path if "__editable___hf_ar2" in str(finder)]


@pytest.mark.slow
@pytest.mark.parametrize("package", FOLDERS)
def test_the_folders_at_the_top_are_importable_as_subpackages(package: str, tmp_path: Path) -> None:
    code = f"import importlib; print(importlib.import_module({package!r}).__path__[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(path.samefile(done.stdout.strip()) for path in FOLDERS.values())


def test_losses_import_torch_alone_and_metrics_numpy_alone() -> None:
    for path in modules_in(ROOT / "hf_ar2" / "losses"):
        outside = {
            name
            for name in imports_of(path)
            if name.split(".")[0] not in {"torch", *sys.stdlib_module_names} and name[:13] != "hf_ar2.losses"
        }
        assert not outside, f"{path} imports {outside}"
    metrics = imports_of(ROOT / "hf_ar2" / "evaluation" / "metrics.py")
    outside = {name.split(".")[0] for name in metrics} - {"numpy", "hf_ar2"} - sys.stdlib_module_names
    assert not outside, f"metrics.py imports {outside}"


def test_dependencies_point_one_way() -> None:
    """recipes -> trainers -> the other packages, and no circles among them, type annotations apart.

    An `__init__` re-exports names of the packages inside it; those imports do not count.
    """
    packages = {
        ".".join([package, *path.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for path in modules_in(folder)
    }
    arrows: dict[str, set[str]] = {package: set() for package in packages}
    for package, folder in FOLDERS.items():
        for path in modules_in(folder):
            own = ".".join([package, *path.parent.relative_to(folder).parts])
            for name in imports_of(path) - LEAVES:
                parts = name.split(".")
                prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
                target = next((prefix for prefix in prefixes if prefix in packages), own)
                if target != own and not (path.name == "__init__.py" and target.startswith(own + ".")):
                    arrows[own].add(target)
    for package, targets in arrows.items():
        if package != "hf_ar2.recipes":
            assert "hf_ar2.recipes" not in targets, f"{package} imports hf_ar2.recipes"
            assert package == "hf_ar2.trainers" or "hf_ar2.trainers" not in targets, package
    assert list(TopologicalSorter(arrows).static_order())  # raises CycleError where there is a circle


@pytest.mark.slow
def test_the_package_imports_quickly_and_without_torch() -> None:
    """Names are handed on lazily, so that `hf-ar2 --help` need not wait for torch."""
    code = "import sys, hf_ar2; print([m for m in ('torch', 'transformers', 'faiss') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_another_choice_of_what_is_installed_installs_again(tmp_path):
    def steps(*arguments: str) -> str:
        command = ["make", "--dry-run", "install", f"VENV={tmp_path}", "PYTHON=python3", *arguments]
        own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout

    *_, stamp = steps("EXTRAS=cpu", "TORCH=torch").strip().splitlines()
    subprocess.run(stamp, shell=True, check=True)  # as a finished installation leaves it
    assert "pip install" not in steps("EXTRAS=cpu", "TORCH=torch")
    for other in (["EXTRAS=dev", "TORCH=torch"], ["EXTRAS=cpu", "TORCH=torch==2.13.0"]):
        assert "pip install" in steps(*other), other
    constraints = "CONSTRAINTS=tests/constraints-lowest.txt"
    assert "-c tests/constraints-lowest.txt" in steps("EXTRAS=cpu", "TORCH=torch", constraints)
