"""Training lists: what is written is what is read, as a pool it is what the ids say, and what is wrong is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from hf_ar2.collections import Collection, CollectionError
from hf_ar2.files import read_json, write_json
from hf_ar2.training_lists.draws import sample_negatives
from hf_ar2.training_lists.pool import CandidatePool, concatenate_pools
from hf_ar2.training_lists.stored import TrainingLists, load_training_lists, read_queries, save_training_lists

LISTS: dict[str, list[Any]] = {
    "query_id": ["q200", "q200", "q203"],
    "positive_ids": [["p100"], ["p100", "p104"], ["p103"]],
    "negative_ids": [["p101", "p102"], ["p107"], ["p100", "p101", "p109"]],
    "positive_scores": [[3.0], [3.0, 2.5], [1.0]],
    "negative_scores": [[0.5, -1.0], [-4.0], [0.25, 0.0, -2.0]],
    "kind": ["undenoised", "denoised", "undenoised"],
}


def changed(column: str, row: int, value: Any) -> Dataset:
    columns = {name: list(values) for name, values in LISTS.items()}
    columns[column][row] = value
    return Dataset.from_dict(columns)


@pytest.fixture
def lists(tmp_path: Path) -> TrainingLists:
    return save_training_lists(tmp_path / "lists", Dataset.from_dict(LISTS), {"seed": 3})


def test_what_is_written_is_read(lists: TrainingLists, tmp_path: Path) -> None:
    again = load_training_lists(tmp_path / "lists")
    assert again.dataset.to_dict() == LISTS
    assert again.manifest["seed"] == 3 and again.manifest["fingerprint"] == again.fingerprint
    assert again.queries is None

    other = save_training_lists(tmp_path / "lists", changed("kind", 0, "pseudo"), {})
    assert other.dataset["kind"][0] == "pseudo" and other.fingerprint != again.fingerprint
    parts = [Dataset.from_dict({name: values[i : i + 1] for name, values in LISTS.items()}) for i in range(3)]
    in_chunks = save_training_lists(tmp_path / "chunks", concatenate_datasets(parts), {})
    assert in_chunks.fingerprint == again.fingerprint


def test_a_pool_has_an_entry_per_list(lists: TrainingLists, tiny_collection: Collection) -> None:
    pool = lists.to_pool(tiny_collection)
    queries, passages = list(tiny_collection.queries["id"]), list(tiny_collection.corpus["id"])
    assert [queries[row] for row in pool.query_rows] == LISTS["query_id"]
    for entry in range(3):
        named = [passages[row] for row in pool.passage_rows[entry] if row >= 0]
        assert named == LISTS["negative_ids"][entry]
        assert [passages[row] for row in pool.positive_rows[entry] if row >= 0] == LISTS["positive_ids"][
            entry
        ]
    assert pool.scores.tolist() == [[0.5, -1.0, -np.inf], [-4.0, -np.inf, -np.inf], [0.25, 0.0, -2.0]]
    assert pool.positive_scores.tolist() == [[3.0, -np.inf], [3.0, 2.5], [1.0, -np.inf]]
    rows, mask = sample_negatives(pool, np.array([1]), 2, seed=0, positions=np.array([0]))
    assert [passages[row] for row in rows[mask]] == ["p107"]

    denoised = lists.to_pool(tiny_collection, kinds=["denoised"])
    assert len(denoised) == 1 and denoised.fingerprint != pool.fingerprint
    assert len(lists.to_pool(tiny_collection, kinds=["pseudo"])) == 0


def test_concatenated_pools_pad_and_sum(lists: TrainingLists, tiny_collection: Collection) -> None:
    one, two = (lists.to_pool(tiny_collection, [kind]) for kind in ("denoised", "undenoised"))
    mined = CandidatePool(**{name: getattr(two, name) for name in two.__dataclass_fields__} | {"round": 4})
    mined.dropped = {"positive": 3}
    one.dropped = {"positive": 1, "unsure": 2}
    both = concatenate_pools([one, mined])
    assert len(both) == 3 and both.depth == 3 and both.round == 4
    assert both.dropped == {"positive": 4, "unsure": 2}
    assert both.passage_rows[0, 1:].tolist() == [-1, -1] and both.scores[0, 1] == -np.inf
    np.testing.assert_array_equal(both.positive_rows[:1], one.positive_rows)
    np.testing.assert_array_equal(both.scores[1:], two.scores)
    assert {name: getattr(both, name).dtype for name in ("query_rows", "passage_rows", "scores")} == {
        "query_rows": np.int64,
        "passage_rows": np.int32,
        "scores": np.float32,
    }
    assert both.fingerprint != concatenate_pools([mined, one]).fingerprint
    with pytest.raises(ValueError, match="found no pool"):
        concatenate_pools([])


def of_one_column(lists: dict[str, list[Any]], scores: list[list[float]] | None) -> Dataset:
    """The lists with one column of scores, or with none."""
    kept = {name: column for name, column in lists.items() if not name.endswith("_scores")}
    return Dataset.from_dict(kept if scores is None else kept | {"scores": scores})


def test_one_column_of_scores_is_split_into_positives_and_negatives(tmp_path: Path) -> None:
    scores = [
        of_positives + of_negatives
        for of_positives, of_negatives in zip(LISTS["positive_scores"], LISTS["negative_scores"], strict=True)
    ]
    lists = save_training_lists(tmp_path, of_one_column(LISTS, scores), {})
    assert lists.dataset["positive_scores"][:] == LISTS["positive_scores"]
    assert lists.dataset["negative_scores"][:] == LISTS["negative_scores"]


def test_lists_without_scores_are_kept_without(tmp_path: Path, tiny_collection: Collection) -> None:
    lists = save_training_lists(tmp_path, of_one_column(LISTS, None), {})
    pool = lists.to_pool(tiny_collection)
    assert np.isnan(pool.scores[pool.passage_rows >= 0]).all()
    assert np.isnan(pool.positive_scores[pool.positive_rows >= 0]).all()


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([1.0], "another number of scores; expected one per passage"),
        ([1.0, 2.0, float("inf")], "a score that is not finite"),
    ],
)
def test_a_column_of_scores_has_to_fit(tmp_path: Path, scores: list[float], found: str) -> None:
    columns = {name: column[:1] for name, column in LISTS.items()}
    with pytest.raises(ValueError, match=f"column scores, row 0: found {found}"):
        save_training_lists(tmp_path, of_one_column(columns, [scores]), {})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("kind", "denoise", "column kind, row 1: found another kind"),
        ("positive_ids", [], "column positive_ids, row 1: found an empty list"),
        ("negative_ids", [], "column negative_ids, row 1: found an empty list"),
        (
            "positive_scores",
            [3.0],
            "column positive_scores, row 1: found different numbers of scores and ids",
        ),
        (
            "negative_scores",
            [float("nan")],
            "column negative_scores, row 1: found a score that is not finite",
        ),
        (
            "negative_ids",
            ["p104"],
            "column negative_ids, row 1: found a passage that is also in positive_ids",
        ),
        ("query_id", None, "column query_id, row 1: found null"),
    ],
)
def test_a_wrong_list_is_named(column: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_training_lists(tmp_path, changed(column, 1, value), {})
    assert not list(tmp_path.iterdir()), "nothing is written of what is refused"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "query_id",
            "q999",
            r"lists, row 2: found query_id 'q999', which is not among the 40 queries of tiny",
        ),
        (
            "negative_ids",
            ["p100", "x", "p101"],
            r"row 2: found 'x' in negative_ids, which is not among the 60 pass",
        ),
        ("positive_ids", ["y"], r"row 2: found 'y' in positive_ids"),
    ],
)
def test_an_unknown_id_is_named_with_its_row(
    column: str, value: Any, message: str, tmp_path: Path, tiny_collection: Collection
) -> None:
    lists = save_training_lists(tmp_path / "lists", changed(column, 2, value), {})
    with pytest.raises(ValueError, match=message):
        lists.to_pool(tiny_collection, kinds=["undenoised"])
    assert len(lists.to_pool(tiny_collection, kinds=["denoised"])) == 1
    with pytest.raises(ValueError, match=r"expected some of undenoised, denoised, pseudo"):
        lists.to_pool(tiny_collection, kinds=["noisy"])


def test_what_is_no_folder_of_lists_raises_an_error(lists: TrainingLists, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has no complete training lists; write them with hf-ar2 augment"
    ):
        load_training_lists(tmp_path)
    with pytest.raises(ValueError, match=r"\['kind'\] is missing"):
        save_training_lists(tmp_path / "x", Dataset.from_dict(LISTS).remove_columns("kind"), {})
    path = tmp_path / "lists" / "manifest.json"
    write_json(path, read_json(path) | {"format": "hf-ar2 training lists 0"})
    with pytest.raises(ValueError, match=r"manifest.json: field format is 'hf-ar2 training lists 0'"):
        load_training_lists(tmp_path / "lists")


def test_lists_over_another_corpus_warn(
    tmp_path: Path,
    tiny_collection: Collection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {"collection": {"corpus_fingerprint": tiny_collection.corpus_fingerprint}}
    lists = save_training_lists(tmp_path, Dataset.from_dict(LISTS), made)
    said: list[str] = []
    monkeypatch.setattr("hf_ar2.training_lists.stored.logger.warning", said.append)
    lists.to_pool(tiny_collection)
    assert said == []
    rows = tiny_collection.corpus[:59]  # not select: another test may have attached an index
    smaller = Collection("cut", Dataset.from_dict(rows), tiny_collection.queries, {})
    lists.to_pool(smaller)
    assert "from another corpus than cut is now" in said[0]


# --- queries without labels


def test_queries_are_added_behind_those_of_the_collection(
    tiny_collection: Collection, tmp_path: Path
) -> None:
    known = tiny_collection.queries[3]
    path = tmp_path / "more.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for id, text in [
            ("n1", "where is the lynx"),
            (known["id"], known["text"]),
            ("n2", "wo ist die Krähe"),
        ]:
            stream.write(json.dumps({"_id": id, "text": text, "further": 1}) + "\n")
    extended = tiny_collection.with_queries(read_queries(path))
    assert extended.corpus is tiny_collection.corpus
    assert len(tiny_collection.queries) == 40 and len(extended.queries) == 42
    assert (
        list(extended.queries["id"][40:]) == ["n1", "n2"]
        and extended.queries["text"][41] == "wo ist die Krähe"
    )
    assert extended.corpus_fingerprint == tiny_collection.corpus_fingerprint
    assert extended.queries_fingerprint != tiny_collection.queries_fingerprint
    for split in tiny_collection.splits:
        np.testing.assert_array_equal(
            extended.judgments(split).query_rows, tiny_collection.judgments(split).query_rows
        )
    assert extended.with_queries(read_queries(path)) is extended, "there already"


def test_queries_with_answers_get_none_for_those_added(tiny_collection: Collection) -> None:
    answered = Collection(
        "quiz", tiny_collection.corpus, tiny_collection.queries.add_column("answers", [["x"]] * 40), {}
    )
    extended = answered.with_queries(Dataset.from_dict({"id": ["n"], "text": ["which ?"]}))
    assert extended.queries["answers"][39:] == [["x"], []]


@pytest.mark.parametrize(
    ("id", "text", "message"),
    [
        (
            "q200",
            "another text",
            "row 1: found query id 'q200' with text 'another text', but it already has the text 'where",
        ),
        (
            "n1",
            "another text",
            "row 1: found query id 'n1' with text 'another text', but it already has the text 'lynx'",
        ),
        ("n2", " ", "row 1: found id 'n2' with text ' '"),
    ],
)
def test_an_id_has_one_text(id: str, text: str, message: str, tiny_collection: Collection) -> None:
    with pytest.raises(CollectionError, match=message):
        tiny_collection.with_queries(Dataset.from_dict({"id": ["n1", id], "text": ["lynx", text]}))


def test_a_wrong_line_of_queries_is_named(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": "a", "text": "x"}\n{"_id": "b"}\n')
    with pytest.raises(ValueError, match=r"queries.jsonl:2: found text None"):
        read_queries(path)
    path.write_text('{"_id": "a", "text": "x"}\n{"_id"\n')
    with pytest.raises(ValueError, match=r"queries.jsonl:2: found invalid JSON"):
        read_queries(path)
    with pytest.raises(FileNotFoundError, match=r"expected queries as JSON lines with _id and text"):
        read_queries(tmp_path / "none.jsonl")


def test_queries_stand_beside_the_lists(tiny_collection: Collection, tmp_path: Path) -> None:
    columns = {name: values[:1] for name, values in LISTS.items()} | {"query_id": ["n1"], "kind": ["pseudo"]}
    more = Dataset.from_dict({"id": ["n1"], "text": ["where is\nthe lynx"]})
    lists = save_training_lists(tmp_path, Dataset.from_dict(columns), {}, more)
    assert lists.queries is not None and lists.queries.to_dict() == more.to_dict()
    with pytest.raises(ValueError, match="found query_id 'n1'"):
        lists.to_pool(tiny_collection)
    assert lists.to_pool(tiny_collection.with_queries(lists.queries)).query_rows.tolist() == [40]
    save_training_lists(tmp_path, Dataset.from_dict(LISTS), {})
    assert load_training_lists(tmp_path).queries is None, "those of the lists before are gone"
