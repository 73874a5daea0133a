"""Headings that are queries: passages keep them where they are searched, and are read without them in training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from hf_ar2.collections import Collection, CollectionError, load_collection

PASSAGES = [
    {"id": "a", "title": "Bees · How bees dance", "text": "How bees dance\nIn circles."},
    {"id": "b", "title": "Owls", "text": "They see at night."},
]


def collection() -> Collection:
    """Two queries, of which one is a heading that its passage repeats; the other passage hides nothing."""
    hiding = [{"training_title": "Bees", "training_text": "In circles."}]
    hiding += [{"training_title": "Owls", "training_text": "They see at night."}]
    return Collection(
        name="tiny",
        corpus=Dataset.from_list(
            [passage | hidden for passage, hidden in zip(PASSAGES, hiding, strict=True)]
        ),
        queries=Dataset.from_dict(
            {"id": ["q", "r"], "text": ["How bees dance", "what do owls do?"], "source": ["heading", ""]}
        ),
        qrels={
            "test": Dataset.from_dict({"query_id": ["q", "r"], "passage_id": ["a", "b"], "relevance": [1, 1]})
        },
    )


def test_training_reads_passages_without_the_headings_that_are_queries() -> None:
    whole = collection()
    read = whole.for_training()
    assert read.corpus.to_list() == [{"id": "a", "title": "Bees", "text": "In circles."}, PASSAGES[1]]
    assert read.queries is whole.queries and read.splits == whole.splits
    assert read.judgments("test").passage_rows.tolist() == whole.judgments("test").passage_rows.tolist()
    assert read.for_training() is read, "nothing is hidden any more"
    assert read.fingerprint != whole.fingerprint


def test_fingerprints_tell_what_is_searched_from_what_is_trained_on() -> None:
    whole = collection()
    plain = replace(whole, corpus=whole.corpus.select_columns(["id", "title", "text"]))
    assert plain.for_training() is plain
    assert plain.corpus_fingerprint == whole.corpus_fingerprint, "an index of these texts fits both"
    assert plain.fingerprint != whole.fingerprint, "a run on one is no run on the other"


def test_a_folder_keeps_both_readings_and_says_only_what_differs(tmp_path: Path) -> None:
    whole = collection()
    whole.save(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/corpus.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "_id": "a",
        "title": "Bees · How bees dance",
        "text": "How bees dance\nIn circles.",
        "training_title": "Bees",
        "training_text": "In circles.",
    }
    assert set(lines[1]) == {"_id", "title", "text"}
    for cache_dir in (
        None,
        tmp_path / "cache",
        tmp_path / "cache",
    ):  # read, written to the cache, taken from it
        again = load_collection(tmp_path / "out", cache_dir=cache_dir)
        assert again.corpus.to_list() == whole.corpus.to_list()
        assert again.fingerprint == whole.fingerprint
        assert again.for_training().fingerprint == whole.for_training().fingerprint
        assert again.query_sources("test") == {"": 1, "heading": 1}


def test_a_folder_without_such_fields_has_no_such_columns(tmp_path: Path) -> None:
    whole = collection()
    columns = ["id", "title", "text"]
    plain = replace(
        whole,
        corpus=whole.corpus.select_columns(columns),
        queries=whole.queries.select_columns(["id", "text"]),
    )
    plain.save(tmp_path)
    again = load_collection(tmp_path, cache_dir=tmp_path / "cache")
    assert again.corpus.column_names == columns and again.queries.column_names == ["id", "text"]
    assert again.query_sources("test") == {"": 2}


def test_queries_that_are_added_are_peoples(tmp_path: Path) -> None:
    more = Dataset.from_dict({"id": ["s"], "text": ["do owls dance?"]})
    assert collection().with_queries(more).queries["source"][:] == ["heading", "", ""]


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("corpus.jsonl", "training_title", 7, "corpus.jsonl:1: found 'training_title': 7; expected a field"),
        ("queries.jsonl", "source", 7, "queries.jsonl:1: found source 7; expected a string"),
        (
            "corpus.jsonl",
            "training_text",
            " ",
            "corpus.jsonl:1: found passage 'a' with an empty training_title",
        ),
    ],
)
def test_a_wrong_field_is_named(file: str, field: str, value: object, message: str, tmp_path: Path) -> None:
    collection().save(tmp_path)
    first, *others = (tmp_path / file).read_text().splitlines()
    changed = (
        json.loads(first) | ({"training_title": ""} if field == "training_text" else {}) | {field: value}
    )
    (tmp_path / file).write_text("\n".join([json.dumps(changed), *others]))
    with pytest.raises(CollectionError) as error:
        load_collection(tmp_path)
    assert message in str(error.value)


def test_both_columns_belong_together() -> None:
    whole = collection()
    with pytest.raises(CollectionError, match="'training_text'.* is missing"):
        replace(whole, corpus=whole.corpus.remove_columns("training_text"))
