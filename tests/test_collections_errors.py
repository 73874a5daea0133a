"""What is wrong in a collection's files: each case with its message, and what skipping it leaves."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from hf_ar2.collections import CollectionError, load_collection
from hf_ar2.terminal import counted

# A folder of each format, small and right. A case below replaces one of its files.
QUESTION = {
    "question": "q",
    "answers": ["a"],
    "positive_ctxs": [{"passage_id": "1"}],
    "hard_negative_ctxs": [],
}
FORMATS: dict[str, dict[str, str]] = {
    "beir": {
        "corpus.jsonl": '{"_id": "1", "text": "one"}\n{"_id": "2", "text": "two"}\n',
        "queries.jsonl": '{"_id": "a", "text": "first"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\na\t1\t1\n",
    },
    "ms marco": {
        "collection.tsv": "1\tone\n2\ttwo\n",
        "queries.test.tsv": "a\tfirst\n",
        "qrels.test.tsv": "a\t0\t1\t1\n",
    },
    "dpr": {
        "psgs_w100.tsv": "id\ttext\ttitle\n1\tone\tOne\n2\ttwo\tTwo\n",
        "nq-train.json": json.dumps([QUESTION]),
        "nq-test.qa.csv": "first\t['x']\n",
    },
}


def folder_of(format: str, changes: dict[str, str | bytes | None], folder: Path) -> Path:
    for name, content in (FORMATS[format] | changes).items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def with_question(**changes) -> str:
    return json.dumps([QUESTION, QUESTION | changes], indent=None).replace("}, {", "},\n{")


# format, file, its content, the message after the folder's path
ALWAYS_ERRORS = [
    ("beir", "queries.jsonl", None, ": found no queries.jsonl or queries.jsonl.gz"),
    ("beir", "qrels/test.tsv", None, "/qrels: found no qrels; expected files such as test.tsv"),
    ("beir", "qrels/test.tsv", "query\tcorpus-id\tscore\na\t1\t1\n",
     "/qrels/test.tsv:1: found the columns ['query', 'corpus-id', 'score']; expected the header"),
    ("beir", "corpus.jsonl", b'{"_id": "1", "text": "one"}\n{"_id": "2", "text": "\xe9"}\n',
     "/corpus.jsonl:2: found bytes that are not UTF-8"),
    ("beir", "qrels/test.tsv.gz", gzip.compress(b"query-id\tcorpus-id\tscore\na\t1\t1\n", mtime=0),
     "/qrels/test.tsv.gz: found a second file of split 'test'"),
    ("ms marco", "queries.test.tsv", None, ": found no queries.<split>.tsv"),
    ("ms marco", "qrels.test.tsv", None, ": found no qrels.<split>.tsv"),
    ("ms marco", "collection.tsv", "1\ta\tb\tc\n", "/collection.tsv:1: found 4 tab-separated columns; expected 2"),
    ("dpr", "psgs_w100.tsv", "id\ttitle\ttext\n1\tOne\tone\n",
     "/psgs_w100.tsv:1: found the columns ['id', 'title', 'text']; expected the header ['id', 'text', 'title']"),
    ("dpr", "trivia-train.json", "[]", ": found nq-train.json, trivia-train.json; expected one file of train"),
    ("dpr", "nq-train.json", '[\n{"question": }\n]', "/nq-train.json:2: found invalid JSON (Expecting value)"),
    ("dpr", "nq-train.json", '[\n{"question": "a"}\n', "/nq-train.json:3: found the end of the file"),
    ("dpr", "nq-train.json", '{"question": "a"}', "/nq-train.json:1: found '{'; expected a list"),
]  # fmt: skip

# format, file, its content, the message after the folder's path, the cause to skip
SKIPPABLE_ERRORS = [
    # Malformed lines
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n{"_id": \n',
     "/corpus.jsonl:2: found invalid JSON", "malformed lines"),
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n["2", "two"]\n',
     "/corpus.jsonl:2: found a JSON list; expected one JSON object", "malformed lines"),
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n\n{"_id": "2", "txt": "two"}\n',
     "/corpus.jsonl:3: found the fields ['_id', 'title', 'txt']; expected a field 'text'", "malformed lines"),
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n{"_id": 2.5, "text": "two"}\n',
     "/corpus.jsonl:2: found '_id': 2.5; expected a field '_id' with a string or an integer", "malformed lines"),
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n{"_id": "2", "text": "\\ud800"}\n',
     "/corpus.jsonl:2: found invalid JSON", "malformed lines"),
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n{"_id": "", "text": "two"}\n',
     "/corpus.jsonl:2: found an empty passage id", "malformed lines"),
    ("beir", "queries.jsonl", '{"_id": "a", "text": "first"}\n{"_id": "b", "text": "x", "answers": "y"}\n',
     "/queries.jsonl:2: found answers 'y'; expected a list of strings", "malformed lines"),
    ("beir", "qrels/test.tsv", "query-id\tcorpus-id\tscore\na\t1\t1\na\t2\n",
     "/qrels/test.tsv:3: found 2 tab-separated columns; expected 3. The line is 'a\\t2'.", "malformed lines"),
    ("beir", "qrels/test.tsv", "query-id\tcorpus-id\tscore\na\t1\t1\na\t2\t0.5\n",
     "/qrels/test.tsv:3: found relevance '0.5'; expected a whole number", "malformed lines"),
    ("ms marco", "collection.tsv", "1\tone\n2 two\n",
     "/collection.tsv:2: found 1 tab-separated column; expected 2", "malformed lines"),
    ("ms marco", "queries.test.tsv", "a\tfirst\nb\tsecond\tthird\n",
     "/queries.test.tsv:2: found 3 tab-separated columns; expected 2", "malformed lines"),
    ("ms marco", "qrels.test.tsv", "a\t0\t1\t1\na\t2\t1\n",
     "/qrels.test.tsv:2: found 3 columns; expected 2 (query, passage) or 4", "malformed lines"),
    ("dpr", "psgs_w100.tsv", "id\ttext\ttitle\n1\tone\tOne\n2\ttwo\n",
     "/psgs_w100.tsv:3: found 2 tab-separated columns; expected 3: id, text, title", "malformed lines"),
    ("dpr", "psgs_w100.tsv", 'id\ttext\ttitle\n1\tone\tOne\n2\t"two\tTwo\n',
     "/psgs_w100.tsv:3: found 2 tab-separated columns (one continues over several lines; is its quote closed?)",
     "malformed lines"),
    ("dpr", "nq-train.json", with_question(question=None),
     "/nq-train.json:2: found question None; expected a field 'question' of type str", "malformed lines"),
    ("dpr", "nq-train.json", with_question(answers=[1]),
     "/nq-train.json:2: found answers [1]; expected a list of strings", "malformed lines"),
    ("dpr", "nq-train.json", with_question(positive_ctxs=[{"title": "x"}]),
     "/nq-train.json:2: found a context in positive_ctxs without an id", "malformed lines"),
    ("dpr", "nq-test.qa.csv", "first\t['x']\nsecond\t__import__('os').getcwd()\n",
     "/nq-test.qa.csv:2: found answers \"__import__('os').getcwd()\"; expected a Python list", "malformed lines"),
    # Ids and texts
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n{"_id": "2", "text": "x"}\n{"_id": "1", "text": "y"}\n',
     "/corpus.jsonl:3: found passage id '1' a second time (first in line 1)", "duplicate ids"),
    ("ms marco", "queries.test.tsv", "a\tfirst\na\tfirst\n",
     "queries.test.tsv:1); expected a unique id for each query", "duplicate ids"),
    ("beir", "corpus.jsonl", '{"_id": "1", "text": "one"}\n{"_id": "2", "title": "", "text": " \\n"}\n',
     "/corpus.jsonl:2: found passage '2' without title and text; expected a text", "empty passages"),
    ("ms marco", "collection.tsv", "1\tone\n2\t\n",
     "/collection.tsv:2: found passage '2' without title and text", "empty passages"),
    ("beir", "queries.jsonl", '{"_id": "a", "text": "first"}\n{"_id": "b", "text": ""}\n',
     "/queries.jsonl:2: found query 'b' without a text", "empty queries"),
    # Judgments
    ("beir", "qrels/test.tsv", "query-id\tcorpus-id\tscore\na\t1\t1\na\t9\t1\n",
     "/qrels/test.tsv:3: found passage id '9'; expected the id of a passage", "unknown passages in qrels"),
    ("ms marco", "qrels.test.tsv", "a\t0\t1\t1\nz\t0\t1\t1\n",
     "/qrels.test.tsv:2: found query id 'z'; expected the id of a query", "unknown queries in qrels"),
    ("ms marco", "qrels.test.tsv", "a\t1\na\t1\n",
     "/qrels.test.tsv:2: found a second judgment of passage '1' for query 'a'", "duplicate judgments"),
    ("dpr", "nq-train.json", with_question(positive_ctxs=[]),
     "/nq-train.json:2: found question 'train-1' without a positive context", "questions without a positive"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "file", "content", "message"), ALWAYS_ERRORS)
def test_what_is_wrong_in_any_case(format, file, content, message, tmp_path: Path):
    folder = folder_of(format, {file: content}, tmp_path)
    with pytest.raises(CollectionError) as error:
        load_collection(folder, skip=["malformed lines"])
    assert f"{folder}{message}" in str(error.value)


@pytest.mark.parametrize(("format", "file", "content", "message", "cause"), SKIPPABLE_ERRORS)
def test_what_is_wrong_is_named_with_its_line_or_skipped_and_counted(
    format, file, content, message, cause, tmp_path: Path, caplog
):
    folder = folder_of(format, {file: content}, tmp_path)
    with pytest.raises(CollectionError) as error:
        load_collection(folder)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{folder}/{file}:")
    assert f"pass skip=[{cause!r}]" in str(error.value), "the message says what to do"

    with caplog.at_level(logging.WARNING):
        collection = load_collection(folder, skip=[cause])
    assert collection.skipped == {cause: 1}
    assert f"skipped {counted(1, cause)}" in caplog.text
    assert [len(collection.judgments(split)) for split in collection.splits] == [1], "the rest is there"
    assert collection.corpus[0]["text"] == "one"


@pytest.mark.parametrize("format", FORMATS)
def test_the_folders_of_these_tests_are_right_before_a_case_changes_them(format, tmp_path: Path):
    assert load_collection(folder_of(format, {}, tmp_path)).skipped == {}


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path):
    whole = gzip.compress(FORMATS["beir"]["corpus.jsonl"].encode() * 50)
    folder = folder_of("beir", {"corpus.jsonl": None, "corpus.jsonl.gz": whole[: len(whole) // 2]}, tmp_path)
    with pytest.raises(CollectionError, match=r"corpus\.jsonl\.gz:\d+: found damaged gzip data"):
        load_collection(folder)


def test_judgments_of_a_skipped_passage_need_a_cause_of_their_own(tmp_path: Path):
    folder = folder_of("ms marco", {"collection.tsv": "1\t\n2\ttwo\n"}, tmp_path)
    with pytest.raises(CollectionError, match=r"qrels\.test\.tsv:1: found passage id '1'"):
        load_collection(folder, skip=["empty passages"])
    collection = load_collection(folder, skip=["empty passages", "unknown passages in qrels"])
    assert collection.skipped == {"empty passages": 1, "unknown passages in qrels": 1}


def test_one_query_id_with_two_texts_is_an_error(tmp_path: Path):
    folder = folder_of("ms marco", {"queries.dev.tsv": "a\tanother\n"}, tmp_path)
    with pytest.raises(
        CollectionError, match=r"found query id 'a' a second time \(first at .*queries.dev.tsv:1\)"
    ):
        load_collection(folder)


def test_a_failed_load_leaves_nothing_in_the_cache(tmp_path: Path):
    folder = folder_of("ms marco", {"collection.tsv": "1\tone\n2\t\n"}, tmp_path / "data")
    with pytest.raises(CollectionError):
        load_collection(folder, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
