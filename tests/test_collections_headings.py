"""Headings as queries: which ones a person might ask, in which words, and with which context."""

from __future__ import annotations

import pytest

from hf_ar2.collections.readers.heading_words import (
    add_context,
    as_context,
    as_query,
    asks_nothing,
    gives_context,
    needs_context,
    reason_to_skip,
)


@pytest.mark.parametrize(
    "heading",
    [
        "1.26.0", "v2.0 - 2024-01-05", "Version 1.2 (released May 2020)", "Changes in GLib 2.43.2",
        "hive (1.2-3) unstable; urgency=low", "Unreleased", "os.path.join(a, b)", "$bee->fly( $to )", "--verbose",
        "class Bee(Insect)", "Function: beeFly", "hive_open", "hive.bee.fly", "jane@hive.org", "3.", "https://hive.org",
    ],
)  # fmt: skip
def test_nobody_asks(heading: str) -> None:
    assert reason_to_skip(heading)


@pytest.mark.parametrize(
    "heading",
    [
        "How bees dance", "2.1 Running the tests", "The os.path module", "Using hive_open()", "Upgrading to 2.0",
        "Python 3.8 support", "HTTP/2 support", "C++ style comments", "Options (common)", "蜜蜂怎样跳舞",
        "Où vont les abeilles",
    ],
)  # fmt: skip
def test_somebody_asks(heading: str) -> None:
    assert reason_to_skip(heading) is None and not asks_nothing(as_query(heading))


def test_what_headings_need() -> None:
    assert all(
        map(
            asks_nothing,
            ["Notes", "See also", "Table of contents", "Introduction", "Changes", "README for bees"],
        )
    )
    general = ["Examples", "Installation", "Return values", "Caching", "Getting started", "What is it?"]
    assert all(map(needs_context, general)) and not any(map(asks_nothing, general))
    assert not any(map(needs_context, ["How bees dance", "Caching of nectar", "蜜蜂怎样跳舞"]))
    assert all(map(gives_context, ["numpy", "git-rebase", "git remote add origin", "The bee book"]))
    assert not any(
        map(gives_context, ["", "1.2.3", "Options", "Introduction", "Everything There Is to Know of Bees"])
    )
    assert add_context("Examples", "git-rebase") == "git-rebase examples"
    assert add_context("The SSL modes", "curl") == "curl SSL modes"


@pytest.mark.parametrize(
    ("heading", "query"),
    [
        ("I", "I"), ("C", "C"), ("IO", "IO"), ("I/O", "I/O"), ("NumPy", "NumPy"), ("MS-DOS", "MS-DOS"), ("C#", "C#"),
        ("Where do I send bug reports?", "Where do I send bug reports?"), ("Is IT hard?", "Is IT hard?"),
        ("2. HOW DO I READ XML FILES?", "how do I read XML files?"), ("THE GNU C LIBRARY", "the GNU C library"),
        ("A quick tour", "A quick tour"), ("I/O ERRORS", "I/O errors"), ("UTF-8 SUPPORT", "UTF-8 support"),
        ("NOTES", "notes"),
    ],
)  # fmt: skip
def test_only_ordinary_words_lose_their_capitals(heading: str, query: str) -> None:
    assert as_query(heading) == query


def test_a_context_has_no_version_and_no_article() -> None:
    assert as_context("bee-fly @1.2.0") == "bee-fly" and as_context("Hive 2") == "Hive 2"
    assert add_context("I", "The Bee Book") == "Bee Book I"
