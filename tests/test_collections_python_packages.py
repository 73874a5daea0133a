"""Collections made of installed Python packages; one of the test's own stands in for numpy and the like."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from textwrap import indent

import pytest

from hf_ar2.collections import CollectionError, load_collection

BODY = "\n    total = 0\n    for value in values:\n        total += value\n    return total\n"

MODULE = '''
raise RuntimeError("this package must be read, not imported")

@decorated(option=1)
def kept(values, start=0):  # a comment
    """Add up all of the given values and
    return their total. More sentences are not used.

    Parameters
    ----------
    """
    # why
    total = start
    for value in values:
        total += value
    return total


class Holder:
    async def method(self, values):
        """Wait for every value of the holder to arrive."""
        for value in values:
            await value
        return None

if True:
    def conditional(values):
        """Multiply the values by what e.g. a caller wants, one by one"""
        result = []
        result.append(values)
        return result
'''


def function(name: str, docstring: str, body: str = BODY) -> str:
    return f'def {name}(values):\n    """{docstring}"""{body}\n'


def method(of: str, docstring: str) -> str:
    return f"class {of}:\n" + indent(function("j", docstring), "    ")


LEFT_OUT = {
    "sentences not of 5 to 30 words": function("a", "Only four words here."),
    "sentences that are not ASCII": function("b", "Compute the naïve total of all values."),
    "sentences with code marks": function("c", "Compute the total of `values` and return it.")
    + function("d", "Compute the total unless skip_first was given by someone."),
    "sentences that name the function": function("subtotal", "Compute the Subtotal of all the given values."),
    "bodies under 3 lines": function(
        "e", "Return the very first of the values.", "\n    # only\n    return values[0]\n"
    ),
    "functions without a docstring": "def f(values):\n    return sum(values)\n",
    "docstrings that share a line with code": 'def g(values): "Return the first of all given values."; return\n',
    "sentences of several functions": function("h", "Do the same as some other function.", BODY)
    + function("i", "do the same as some other function", BODY + "    pass\n"),
    "sources of several functions": method("A", "Give back the first thing of all.")
    + method("B", "Give back the second thing of all."),
    "names defined before": function("k", "Compute the first version of this total.")
    + function("k", "Compute the second version of this total.", BODY + "    pass\n"),
    "files that do not parse": "def broken(:\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """Writes a package `madeup_package` of the given modules and makes it importable."""

    def write(**modules: str) -> Path:
        root = tmp_path / "site" / "madeup_package"
        for name, source in ({"__init__": ""} | modules).items():
            path = root / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        return root

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return write


def test_passages_are_sources_without_docstrings_and_queries_first_sentences(package):
    package(module=MODULE)
    collection = load_collection("python-packages:madeup_package")
    assert "madeup_package.module" not in sys.modules and "madeup_package" not in sys.modules
    assert dict(zip(collection.queries["id"], collection.queries["text"], strict=True)) == {
        "q:madeup_package.module.kept": "Add up all of the given values and return their total",
        "q:madeup_package.module.Holder.method": "Wait for every value of the holder to arrive",
        "q:madeup_package.module.conditional": "Multiply the values by what e.g. a caller wants, one by one",
    }
    assert collection.corpus["title"][:] == ["", "", ""]
    assert collection.corpus[0] == {
        "id": "madeup_package.module.kept",
        "title": "",
        "text": "def kept(values, start=0):  # a comment\n    # why\n    total = start\n    for value in values:\n"
        "        total += value\n    return total",
    }
    assert collection.corpus[1]["text"].startswith(
        "async def method(self, values):\n    for value in values:"
    )


@pytest.mark.parametrize("cause", LEFT_OUT)
def test_what_is_left_out_is_counted(cause, package):
    package(module=MODULE.replace("raise", "#"), other=LEFT_OUT[cause])
    collection = load_collection("python-packages:madeup_package")
    several = {
        "sentences with code marks": 2,
        "sentences of several functions": 2,
        "sources of several functions": 2,
    }
    assert collection.skipped == {cause: several.get(cause, 1)}
    assert len(collection.corpus) == (4 if cause == "names defined before" else 3)


def test_tests_and_vendored_code_are_not_looked_at(package):
    modules = [
        "tests.test_it",
        "_vendor.lib",
        "externals.lib",
        "testing.tools",
        "conftest",
        "_lib.array_api_compat.x",
    ]
    extra = function("extra", "Compute what only other people need here.")
    package(module=MODULE, **dict.fromkeys(modules, extra))
    assert len(load_collection("python-packages:madeup_package").corpus) == 3


def test_splits_depend_on_the_name_alone_and_are_about_80_10_10(package):
    names = [f"function_{'x' * (i // 26)}{chr(97 + i % 26)}" for i in range(500)]
    source = "".join(
        function(name, f"Compute total number {i} of the values.", BODY + f"    {i}\n")
        for i, name in enumerate(names)
    )
    package(module=source)
    collection = load_collection("python-packages:madeup_package")
    sizes = {split: len(qrels) for split, qrels in collection.qrels.items()}
    assert sum(sizes.values()) == 500
    assert 360 < sizes["train"] < 440 and 30 < sizes["dev"] < 75 and 30 < sizes["test"] < 75
    assert load_collection("python-packages:madeup_package").fingerprint == collection.fingerprint
    package(module="\n".join(reversed(source.split("\n\n"))))
    moved = load_collection("python-packages:madeup_package")
    for split in ("train", "dev", "test"):
        assert sorted(moved.qrels[split]["passage_id"]) == sorted(collection.qrels[split]["passage_id"])


def test_a_distribution_may_have_another_name_than_its_package(package):
    root = package(module=MODULE)
    information = root.parent / "made_up-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    (information / "RECORD").write_text("madeup_package/__init__.py,,\nmadeup_package/module.py,,\n")
    by_distribution = load_collection("python-packages:made-up")
    assert by_distribution.name == "python-packages:made-up"
    assert by_distribution.fingerprint == load_collection("python-packages:madeup_package").fingerprint
    both = load_collection("python-packages:made-up, madeup_package")
    assert both.fingerprint == by_distribution.fingerprint, "nothing is read twice"


def test_a_single_module_is_a_package_too(package):
    root = package()
    (root.parent / "madeup_module.py").write_text(MODULE, encoding="utf-8")
    assert load_collection("python-packages:madeup_module").corpus["id"][0] == "madeup_module.kept"


def test_a_package_that_is_not_installed_is_an_error_that_says_how_to_install_it():
    with pytest.raises(
        CollectionError, match=r"'no-such-thing' is not installed here.*pip install no-such-thing"
    ):
        load_collection("python-packages:json,no-such-thing")


def test_packages_without_a_usable_docstring_are_an_error(package):
    package()
    with pytest.raises(CollectionError, match="found no function with a usable docstring"):
        load_collection("python-packages:madeup_package")
    with pytest.raises(CollectionError, match="found no package name"):
        load_collection("python-packages:")


def test_a_collection_of_packages_is_saved_as_a_beir_folder(package, tmp_path: Path):
    package(module=MODULE)
    collection = load_collection("python-packages:madeup_package")
    collection.save(tmp_path / "out")
    assert load_collection(tmp_path / "out").fingerprint == collection.fingerprint
