"""Folders of text as collections: headings or a file of questions as queries, and what is told of bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_ar2 import cli
from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.text_folder import load_text_folder
from hf_ar2.collections.text_sections import grouped, read_sections

BEES = """\
# Bees

They live in a hive.

## How bees dance

A bee that found food dances.

The dance says where.

## Food

### What bees eat

Nectar and pollen.
"""


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of text in a folder, in the folder the test runs in."""
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "docs",
        {"bees.md": BEES, "birds/owl.txt": "Why owls see at night\n\nTheir eyes are large.\n"},
    )
    return tmp_path / "docs"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def passages(collection: Collection) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["title"], row["text"]) for row in collection.corpus}


def answers(collection: Collection) -> dict[str, set[str]]:
    """Query text -> ids of its relevant passages."""
    texts = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))
    found: dict[str, set[str]] = {}
    for qrels in collection.qrels.values():
        for row in qrels:
            assert row["relevance"] == 1
            found.setdefault(texts[row["query_id"]], set()).add(row["passage_id"])
    return found


# --- headings as queries


def test_without_questions_every_heading_is_one_and_its_passages_do_not_contain_it(docs: Path) -> None:
    collection = load_collection("text:docs")
    assert collection.name == "docs"
    assert passages(collection) == {
        "bees.md:1": ("Bees", "They live in a hive."),
        "bees.md:2": ("Bees", "A bee that found food dances.\nThe dance says where."),
        "bees.md:3": ("Bees · Food", "Nectar and pollen."),
        "birds/owl.txt:1": ("", "Their eyes are large."),
    }
    assert answers(collection) == {
        "How bees dance": {"bees.md:2"},
        "What bees eat": {"bees.md:3"},
        "Why owls see at night": {"birds/owl.txt:1"},
    }
    assert collection.skipped == {"headings not of 2 to 30 words": 2}, "Bees, Food"


def test_headings_that_say_little_are_counted(docs: Path) -> None:
    more = "# How Bees Dance\n\nAs I said.\n\n## A heading alone\n\n## " + "very " * 30 + "long\n\nText.\n"
    write(
        docs,
        {"more.md": more, "empty.md": "", "blank.txt": " \n\n", "photo.png": b"\x89", ".hidden.md": "# x y"},
    )
    collection = load_text_folder(docs)
    assert set(answers(collection)) == {"What bees eat", "Why owls see at night"}
    assert collection.skipped == {
        "files that do not end in .md or .txt": 1,
        "files without text": 2,
        "headings not of 2 to 30 words": 3,
        "headings of several sections": 2,
        "headings without text": 1,
        "hidden files": 1,
    }
    assert passages(collection)["more.md:1"] == ("How Bees Dance", "As I said."), (
        "no query: the title keeps it"
    )


def test_markdown_is_read_as_it_is_meant(tmp_path: Path) -> None:
    text = """\
---
title: "All about ants"
date: 2024-01-01
# no heading
---
Intro.

Ants and rain
-------------

They hide.

- a list
---

```python
# no heading, code
```

All about ants
==============

   ## Closed heading ##
Text right after it.
Two lines, so that
---
is a rule here
"""
    write(tmp_path, {"ants.md": text.replace("\n", "\r\n")})
    sections = read_sections(tmp_path / "ants.md")
    assert [(section.heading, section.above, section.line) for section in sections] == [
        ("", (), 1),
        ("All about ants", (), 2),
        ("Ants and rain", ("All about ants",), 8),
        ("All about ants", (), 20),
        ("Closed heading", ("All about ants",), 23),
    ]
    assert sections[1].paragraphs == ["Intro."]
    assert sections[2].paragraphs == ["They hide.", "- a list ---", "```python # no heading, code ```"]
    assert sections[4].paragraphs == ["Text right after it. Two lines, so that --- is a rule here"]
    collection = load_text_folder(tmp_path)
    assert collection.skipped == {"headings without text": 1, "lines of front matter": 2}


@pytest.mark.parametrize(
    ("text", "heading"),
    [
        ("How owls hunt\n\nAt night.\n", "How owls hunt"),
        ("How do owls hunt?\n\nAt night.\n", "How do owls hunt?"),
        ("Owls hunt.\n\nAt night.\n", ""),
        ("Owls hunt\nat night.\n", ""),
        ("How owls hunt", ""),
    ],
)
def test_the_first_line_of_a_text_file_may_be_its_heading(text: str, heading: str, tmp_path: Path) -> None:
    [section] = read_sections(write(tmp_path, {"owl.txt": text}) / "owl.txt")
    assert section.heading == heading
    assert " ".join([section.heading, *section.paragraphs]).split() == text.split(), "nothing is lost"


# --- passages


def test_passages_have_about_a_hundred_words_and_lose_none() -> None:
    paragraph = " ".join(f"Sentence {number} has exactly six words." for number in range(40))
    run_on = " ".join(["word"] * 260)
    found = grouped(["short one", "short two", paragraph, run_on])
    assert found[0].startswith("short one\nshort two\nSentence 0 has")
    assert all(len(text.split()) <= 100 for text in found)
    assert all(text.endswith(".") for text in found[:2]), "divided at the ends of sentences"
    assert " ".join(found).split() == ["short", "one", "short", "two", *paragraph.split(), *run_on.split()]


def test_chinese_is_divided_by_characters() -> None:
    text = "找到食物的蜜蜂会跳舞。" * 30  # 330 characters and stops, no space
    found = grouped([text])
    assert "".join(found) == text
    assert [len(part) for part in found] == [99, 99, 99, 33], "nine sentences of ten characters and a stop"
    assert found[0].endswith("。")


def test_other_scripts_names_with_spaces_and_marks_at_the_beginning(docs: Path, tmp_path: Path) -> None:
    write(
        docs,
        {
            "my notes/蜜蜂 100%.md": "# 蜜蜂怎样跳舞\n\n找到食物的蜜蜂会跳舞。\n",
            "Été.txt": "\ufeffOù vont les abeilles\r\n\r\nÀ la ruche 🐝.\r\n",
        },
    )
    collection = load_text_folder(docs)
    assert passages(collection)["my%20notes/蜜蜂%20100%25.md:1"] == ("", "找到食物的蜜蜂会跳舞。")
    assert passages(collection)["Été.txt:1"] == ("", "À la ruche 🐝.")
    assert {"蜜蜂怎样跳舞", "Où vont les abeilles"} <= set(answers(collection))
    for column in (collection.corpus["id"], collection.queries["id"]):
        assert not any(set(" \t") & set(id) for id in column), "run files could not hold them"
    collection.save(tmp_path / "out")
    assert load_collection(tmp_path / "out").fingerprint == collection.fingerprint


# --- questions


def test_questions_name_the_file_or_the_section_that_answers_them(docs: Path) -> None:
    lines = [
        "where do bees live?\tbees.md",
        "",
        "what does the dance say?\tbees.md#How bees dance",
        "what is there to eat?\t./bees.md # Food",
        "can owls see in the dark?\tbirds/owl.txt",
        "what do animals eat?\tbees.md#What bees eat",
        "what do animals eat?\tbirds/owl.txt",
    ]
    # Also where the file lies among the text.
    write(docs, {"questions.txt": "\n".join(lines)})
    collection = load_collection("text:docs", queries=docs / "questions.txt")
    assert answers(collection) == {
        "where do bees live?": {"bees.md:1", "bees.md:2", "bees.md:3"},
        "what does the dance say?": {"bees.md:2"},
        "what is there to eat?": {"bees.md:3"},
        "can owls see in the dark?": {"birds/owl.txt:1"},
        "what do animals eat?": {"bees.md:3", "birds/owl.txt:1"},
    }
    titles = {id: title for id, (title, _) in passages(collection).items()}
    assert titles == {
        "bees.md:1": "Bees",
        "bees.md:2": "Bees · How bees dance",
        "bees.md:3": "Bees · Food · What bees eat",
        "birds/owl.txt:1": "Why owls see at night",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("where do bees live?", "found 'where do bees live?'; expected a question, a tab, and the file"),
        ("\tbees.md", "expected a question, a tab, and the file"),
        ("where?\t", "expected a question, a tab, and the file"),
        (
            "where?\tbess.md",
            "found the file 'bess.md'; expected one of the 2 text files in docs, such as 'bees.md'",
        ),
        ("where?\t../bees.md", "found the file '../bees.md'; expected one of"),
        (
            "where?\tbees.md#Foods",
            "found no text in 'bees.md#Foods'; headings with text there: Bees, How bees",
        ),
        ("first?\tbees.md#Bees", "found the question of line 1 with the same answer again"),
    ],
)
def test_a_wrong_line_is_named(docs: Path, line: str, message: str) -> None:
    write(docs.parent, {"questions.tsv": f"first?\tbees.md\n\n{line}\n"})
    with pytest.raises(CollectionError) as error:
        load_collection("text:docs", queries="questions.tsv")
    assert str(error.value).startswith("questions.tsv:3: ") and message in str(error.value)


# --- splits


def test_a_query_stays_in_its_split_and_none_is_empty(tmp_path: Path) -> None:
    def splits(count: int) -> dict[str, str]:
        text = "\n\n".join(f"# What is number {number}\n\nIt is {number}." for number in range(count))
        collection = load_text_folder(write(tmp_path / str(count), {"numbers.md": text}))
        of_ids = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))
        return {of_ids[row["query_id"]]: split for split, qrels in collection.qrels.items() for row in qrels}

    many, more = splits(200), splits(300)
    counts = [list(many.values()).count(split) for split in ("train", "dev", "test")]
    assert sum(counts) == 200 and counts[0] in range(145, 176) and min(counts[1:]) in range(8, 33)
    assert all(more[text] == split for text, split in many.items())
    for count in range(3, 12):
        assert set(splits(count).values()) == {"train", "dev", "test"}, count


# --- what is refused


def test_bad_folders_and_files_are_told_with_what_to_do(docs: Path, tmp_path: Path) -> None:
    for name, files in {
        "latin": {"a.txt": "fine\n", "b.md": "# fine\n\ncaf\xe9\n".encode("latin-1")},
        "utf16": {"a.txt": "some text".encode("utf-16")},
        "empty": {"a.md": "", "b.pdf": b"%PDF"},
        "plain": {"a.txt": "text without a heading.\n"},
    }.items():
        write(tmp_path / name, files)
    cases: dict[tuple[str, str | None], str] = {
        ("text:absent", None): "text:absent: no such folder; expected one with .md or .txt files",
        ("text:latin", None): r"latin/b.md:3: found bytes that are not UTF-8",
        ("text:utf16", None): r"utf16/a.txt:1: found bytes that are not UTF-8",
        (
            "text:empty",
            None,
        ): r"found no text in 1 files that end in .md or .txt; left out: .*'files without text': 1",
        ("text:plain", None): r"found no query among the headings; .* name it: --queries FILE",
        ("text:docs", "absent.tsv"): r"queries: absent.tsv: no such file; expected one question a line",
        ("docs", None): r"a folder of .md and .txt files is named text:docs",
    }
    for (source, queries), message in cases.items():
        with pytest.raises(CollectionError, match=message):
            load_collection(source, queries=queries)
    with pytest.raises(CollectionError, match="queries: found a value for python-packages:json, which is"):
        load_collection("python-packages:json", queries="q.tsv")


def test_the_command_writes_a_folder_that_recipes_take(
    docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        docs.parent,
        {"questions.tsv": "where do bees live?\tbees.md\nand owls?\tbirds/owl.txt\nwho?\tbees.md\n"},
    )
    assert cli.main(["collection", "text:docs", "out", "--queries", "questions.tsv"]) == 0
    shown = capsys.readouterr().out
    assert "Collection 'docs': 4 passages, 3 queries" in shown and "--collection out" in shown
    assert load_collection("out").splits == ["train", "dev", "test"]
