"""Folders of text as collections: headings or a file of questions as queries, and the messages about bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.readers.text_folder import load_text_folder
from hf_ar2.collections.readers.text_sections import grouped
from hf_ar2.command_line import main as cli

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


def test_headings_are_queries_that_passages_keep_for_search_and_lose_in_training(docs: Path) -> None:
    collection = load_collection("text:docs")
    assert collection.name == "docs"
    assert passages(collection) == {
        "bees.md:1": ("Bees", "They live in a hive."),
        "bees.md:2": ("Bees · How bees dance", "A bee that found food dances.\nThe dance says where."),
        "bees.md:3": ("Bees · Food · What bees eat", "Nectar and pollen."),
        "birds/owl.txt:1": ("Why owls see at night", "Their eyes are large."),
    }
    assert {id: title for id, (title, _) in passages(collection.for_training()).items()} == {
        "bees.md:1": "Bees",
        "bees.md:2": "Bees",
        "bees.md:3": "Bees · Food",
        "birds/owl.txt:1": "",
    }
    assert answers(collection) == {
        "How bees dance": {"bees.md:2"},
        "What bees eat": {"bees.md:3"},
        "Why owls see at night": {"birds/owl.txt:1"},
    }
    assert set(collection.queries["source"]) == {"heading"}
    assert collection.query_sources("test") == {"heading": 1}
    assert collection.skipped == {
        'headings of one word or general words, without a heading above that gives context ("Bees")': 1,
        'headings without text of their own ("Food")': 1,
    }


def test_no_query_stands_in_the_training_text_of_a_passage_that_answers_it(tmp_path: Path) -> None:
    text = "# How bees dance\n\nHow bees dance\n\nIn circles.\n\n## By night\n\nThey sleep.\n"
    collection = load_text_folder(write(tmp_path, {"bees.md": text}))
    assert passages(collection) == {
        "bees.md:1": ("How bees dance", "How bees dance\nIn circles."),
        "bees.md:2": ("How bees dance · By night", "They sleep."),
    }
    # The section below is no answer: in training it must not look like the best one.
    assert passages(collection.for_training()) == {
        "bees.md:1": ("", "In circles."),
        "bees.md:2": ("", "They sleep."),
    }


def test_general_headings_get_context(tmp_path: Path) -> None:
    files = {
        name: f"# {name}\n\n## Installation\n\nGet {name}.\n\n## Running the tests\n\nTest {name}.\n\n"
        f"## See also\n\nWhat {name} say.\n"
        for name in ("hive", "comb")
    }
    collection = load_text_folder(write(tmp_path, {f"{name}.md": text for name, text in files.items()}))
    assert answers(collection) == {
        f"{name} {asked}": {f"{name}.md:{number}"}
        for name in ("hive", "comb")
        for number, asked in ((1, "installation"), (2, "running the tests"))
    }
    assert collection.skipped['headings without a question ("See also", …)'] == 2


def test_what_nobody_would_ask_is_counted_and_asked_on_request(tmp_path: Path) -> None:
    headings = [
        "1.2.0 (2024-01-05)",
        "hive.open(path, mode)",
        "Notes",
        "a@hive.org is my address",
        "Keeping bees",
    ]
    sections = [f"## {heading}\n\nText {number}.\n" for number, heading in enumerate(headings)]
    sections.append("## A long story\n\n" + "\n\n".join(f"{n} " + "buzz " * 100 for n in range(6)))
    write(tmp_path, {"bees.md": "\n".join(sections), "CHANGELOG.md": "## Bees dance again\n\nFixed.\n"})
    collection = load_text_folder(tmp_path)
    assert set(answers(collection)) == {"Keeping bees"}
    assert collection.skipped == {
        'headings of change logs and licences ("Bees dance again")': 1,
        'headings of more than 5 passages ("A long story")': 1,
        'headings that are addresses ("a@hive.org is my address")': 1,
        'headings that are code: names, options and signatures ("hive.open(path, mode)")': 1,
        'headings that are version numbers and dates ("1.2.0 (2024-01-05)")': 1,
        'headings without a question ("Notes")': 1,
    }
    every = load_text_folder(tmp_path, all_headings=True)
    assert len(every.queries) == len(headings) + 2 and every.skipped == {}


def test_no_heading_that_many_files_share_makes_most_of_the_queries(tmp_path: Path) -> None:
    names = [f"hive{letter}" for letter in "abcdefghijklmnopqrst"]
    files = {
        f"{name}.md": f"# {name}\n\n## Options\n\nThose of {name}.\n\n## How {name} flies\n\nSo."
        for name in names
    }
    files = {path: text.replace("So.", f"As {path} says.") for path, text in files.items()}
    collection = load_text_folder(write(tmp_path, files))
    asked = list(answers(collection))
    assert sum(text.endswith("options") for text in asked) == 5
    assert sum(text.startswith("How ") for text in asked) == len(names)
    cause = 'headings that very many sections have, beyond 5 of each ("Options", …)'
    assert collection.skipped[cause] == len(names) - 5


def test_a_text_that_several_sections_have_answers_no_query(tmp_path: Path) -> None:
    files = {f"{name}.md": f"# How {name} fly\n\nWith wings.\n" for name in ("bees", "owls")}
    collection = load_text_folder(write(tmp_path, {**files, "ants.md": "# How ants walk\n\nWith legs.\n"}))
    assert set(answers(collection)) == {"How ants walk"} and len(collection.corpus) == 3


# --- files that are skipped


def test_a_bad_file_is_counted_by_name_and_the_others_are_read(docs: Path) -> None:
    bad: dict[str, str | bytes] = {
        f"latin{n}.md": "# caf\xe9 {n}\n\ncaf\xe9\n".encode("latin-1") for n in range(5)
    }
    bad |= {
        "wide.txt": "some text".encode("utf-16"),
        "empty.md": "",
        "blank.txt": " \n\n",
        "photo.txt": b"\x89PNG\0",
    }
    bad |= {
        "a.png": b"\x89",
        "b.png": b"\x89",
        "c.py": "x = 1",
        ".hidden.md": "# x y",
        "broken.txt.gz": b"\x1f\x8b",
    }
    bad |= {
        "copy.md": BEES,
        "lib.so.1": "no macros",
        "bees.html": "<h1>How bees dance</h1>A bee that found food.",
    }
    collection = load_text_folder(write(docs, bad))
    assert set(answers(collection)) == {"How bees dance", "What bees eat", "Why owls see at night"}
    counts = {cause: count for cause, count in collection.skipped.items() if "headings" not in cause}
    assert counts == {
        "HTML pages generated from another file of the folder (bees.html)": 1,
        "binary files (photo.txt)": 1,
        "empty files (blank.txt, empty.md)": 2,
        "files named like man pages without their macros (lib.so.1)": 1,
        "files that are not UTF-8 (latin0.md, latin1.md, latin2.md, …)": 6,
        "files that cannot be read (broken.txt.gz)": 1,
        "copies of another file (copy.md)": 1,
        "files with other endings: .png 2, .py 1": 3,
        "hidden files": 1,
    }


def test_endings_and_names_can_be_chosen(docs: Path) -> None:
    write(
        docs,
        {
            "README": "How to keep bees\n\nIn a hive.\n",
            "FAQ": "Do bees sleep?\n\nYes.\n",
            "x.log": "Bees\n\nflew.",
        },
    )
    assert {id.split(":")[0] for id in load_text_folder(docs).corpus["id"]} == {
        "FAQ",
        "README",
        "bees.md",
        "birds/owl.txt",
    }
    for endings, files in (
        ([".MD", "README"], {"README", "bees.md"}),
        ([".log", ".txt"], {"birds/owl.txt", "x.log"}),
    ):
        collection = load_collection("text:docs", endings=endings)
        assert {id.split(":")[0] for id in collection.corpus["id"]} == files
    with pytest.raises(CollectionError, match=r"endings: found '\*\.md'; expected endings such as \.md"):
        load_text_folder(docs, endings=["*.md"])
    with pytest.raises(
        CollectionError, match=r"found no text to read; skipped: 5 files with other endings: none 2"
    ):
        load_text_folder(docs, endings=[".rst"])


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
    assert passages(collection)["my%20notes/蜜蜂%20100%25.md:1"] == ("蜜蜂怎样跳舞", "找到食物的蜜蜂会跳舞。")
    assert passages(collection)["Été.txt:1"] == ("Où vont les abeilles", "À la ruche 🐝.")
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
        text = "\n\n".join(f"# What is bee {number}\n\nIt is {number}." for number in range(count))
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


def test_errors_about_bad_folders_say_what_to_do(docs: Path, tmp_path: Path) -> None:
    for name, files in {
        "latin": {"a.md": "# fine\n\ncaf\xe9\n".encode("latin-1")},
        "empty": {"a.md": "", "b.pdf": b"%PDF"},
        "plain": {"a.txt": "text without a heading.\n"},
    }.items():
        write(tmp_path / name, files)
    cases: dict[tuple[str, str | None], str] = {
        ("text:absent", None): r"text:absent: no such folder; expected one with text files: \.md, \.txt",
        ("text:latin", None): r"found no text to read; skipped: 1 file that is not UTF-8 \(a\.md\)",
        (
            "text:empty",
            None,
        ): r"skipped: 1 empty file \(a\.md\), 1 file with other endings: \.pdf 1\. Known formats are \.md",
        (
            "text:plain",
            None,
        ): r"found no query among the headings.* name it: --queries FILE, or .*--all-headings",
        ("text:docs", "absent.tsv"): r"queries: absent.tsv: no such file; expected one question per line",
        ("docs", None): r"a folder of text files is named text:docs",
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
    written = load_collection("out")
    assert written.splits == ["train", "dev", "test"]
    assert written.for_training() is written and written.query_sources("test") == {"": 1}, (
        "questions of people"
    )

    arguments = ["--endings", ".md,.rst", "--all-headings"]
    assert cli.main(["collection", "text:docs", "headings", *arguments]) == 0
    assert "1 file with other endings: .txt 1" in capsys.readouterr().out
    headings = load_collection("headings")
    assert set(headings.queries["text"]) == {"Bees", "How bees dance", "What bees eat"}
    assert (
        headings.for_training().fingerprint
        == load_collection("text:docs", endings=[".md"], all_headings=True).for_training().fingerprint
    )
