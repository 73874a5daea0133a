"""A Collection and its Judgments: rows, texts, fingerprints, writing and reading back."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset

from hf_ar2.collections import Collection, CollectionError, Judgments, load_collection
from hf_ar2.collections.tables import arrow_column


def collection(**changes) -> Collection:
    """Three passages (one without a title), two queries, two splits."""
    parts = {
        "name": "tiny",
        "corpus": Dataset.from_dict(
            {
                "id": ["d1", "d2", "d3"],
                "title": ["Paris", "", "Naïve “quotes”"],
                "text": ["A city.", "A dog.\nIt barks.", "tab\there 漢字"],
            }
        ),
        "queries": Dataset.from_dict({"id": ["q1", "q2"], "text": ["which city", "which animal"]}),
        "qrels": {
            "train": Dataset.from_dict({"query_id": ["q2"], "passage_id": ["d2"], "relevance": [1]}),
            "test": Dataset.from_dict(
                {"query_id": ["q2", "q1", "q2"], "passage_id": ["d3", "d1", "d1"], "relevance": [2, 1, 0]}
            ),
        },
    }
    return Collection(**(parts | changes))


# Judgments


def test_judgments_are_sorted_rows():
    judgments = collection().judgments("test")
    assert judgments.query_rows.tolist() == [0, 1]
    assert judgments.offsets.tolist() == [0, 1, 3]
    assert judgments.passage_rows.tolist() == [0, 0, 2]
    assert judgments.relevance.tolist() == [1, 0, 2]
    dtypes = [
        getattr(judgments, name).dtype for name in ("query_rows", "offsets", "passage_rows", "relevance")
    ]
    assert dtypes == [np.int64, np.int64, np.int64, np.int32]
    passages, grades = judgments.of(1)
    assert passages.tolist() == [0, 2] and grades.tolist() == [0, 2]


def test_positives_leave_out_grade_zero_and_queries_that_have_nothing_else():
    positives = Judgments.from_triples([1, 1, 2, 5], [9, 3, 4, 6], [0, 1, 0, 3]).positives()
    assert positives.query_rows.tolist() == [1, 5]
    assert positives.offsets.tolist() == [0, 1, 2]
    assert positives.passage_rows.tolist() == [3, 6]


def test_take_keeps_a_subset_of_the_queries():
    judgments = Judgments.from_triples([1, 1, 2, 5, 5], [9, 3, 4, 6, 7], [1, 1, 1, 1, 2])
    for some in (judgments.take([0, 2]), judgments.take(np.array([True, False, True]))):
        assert some.query_rows.tolist() == [1, 5]
        assert some.offsets.tolist() == [0, 2, 4]
        assert some.passage_rows.tolist() == [3, 9, 6, 7]
        assert some.relevance.tolist() == [1, 1, 1, 2]
    assert len(judgments.take(np.array([], dtype=np.int64))) == 0
    with pytest.raises(ValueError, match="ascending"):
        judgments.take([2, 0])


def test_judgments_equal_a_loop_over_random_qrels():
    rng = np.random.default_rng(0)
    pairs = rng.permutation(50 * 40)[:600]
    queries, passages, grades = pairs // 40, pairs % 40, rng.integers(0, 3, 600)
    judgments = Judgments.from_triples(queries, passages, grades)
    expected = {}
    for query, passage, grade in sorted(
        zip(queries.tolist(), passages.tolist(), grades.tolist(), strict=True)
    ):
        expected.setdefault(query, []).append((passage, grade))
    found = {int(row): list(zip(*map(np.ndarray.tolist, judgments.of(i)), strict=True))
             for i, row in enumerate(judgments.query_rows)}  # fmt: skip
    assert found == expected


def test_a_pair_judged_twice_is_an_error():
    with pytest.raises(ValueError, match="passage row 3 is judged more than once for query row 1"):
        Judgments.from_triples([1, 1], [3, 3], [1, 0])


def test_a_grade_that_is_no_whole_number_is_an_error():
    with pytest.raises(ValueError, match=r"relevance 0\.9: expected a whole number"):
        Judgments.from_triples([1, 1], [3, 4], [1, 0.9])


# Collection


def test_passage_texts_join_title_and_text_where_there_is_a_title():
    assert collection().passage_texts() == [
        "Paris A city.",
        "A dog.\nIt barks.",
        "Naïve “quotes” tab\there 漢字",
    ]
    assert collection().passage_texts(" [SEP] ")[0] == "Paris [SEP] A city."


def test_repr_counts_each_split():
    assert repr(collection(skipped={"empty passages": 3})).splitlines() == [
        "Collection 'tiny': 3 passages, 2 queries",
        "  train: 1 query, 1 judgment (1 relevant)",
        "  test: 2 queries, 3 judgments (2 relevant)",
        "  skipped: 3 empty passages",
    ]


def test_splits_come_in_their_usual_order():
    qrels = collection().qrels["train"]
    assert collection(qrels=dict.fromkeys(["extra", "test", "dev", "train"], qrels)).splits == [
        "train", "dev", "test", "extra"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corpus": Dataset.from_dict({"_id": ["a"], "text": ["b"]})},
            r"corpus: found columns \['_id', 'text'\]; expected .*, \['id', 'title'\] is missing",
        ),
        ({"corpus": Dataset.from_dict({"id": [], "title": [], "text": []})}, "found no passages"),
        (
            {
                "qrels": {
                    "test": Dataset.from_dict({"query_id": ["q1"], "passage_id": ["d9"], "relevance": [1]})
                }
            },
            r"qrels\['test'\] row 0: found passage_id 'd9', which is not among the 3 ids of the corpus",
        ),
    ],
)
def test_a_collection_that_does_not_hang_together_raises_an_error(changes, message):
    with pytest.raises(CollectionError, match=message):
        collection(**changes).judgments("test")


def test_an_unknown_split_is_an_error_that_lists_the_splits():
    with pytest.raises(CollectionError, match=r"no qrels for split 'dev'; it has \['train', 'test'\]"):
        collection().judgments("dev")


def test_equal_content_has_an_equal_fingerprint_however_it_is_stored():
    whole = collection()
    qrels = {split: part.shuffle(seed=3) for split, part in reversed(whole.qrels.items())}
    again = collection(name="other", corpus=whole.corpus.select([2, 1, 0]).select([2, 1, 0]), qrels=qrels)
    assert again.fingerprint == whole.fingerprint
    assert len(whole.fingerprint) == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"corpus": collection().corpus.select([0, 2, 1])},
        {
            "corpus": Dataset.from_dict(
                {"id": ["d1", "d2", "d3"], "title": ["", "", ""], "text": ["P", "a", "b"]}
            )
        },
        {"queries": collection().queries.add_column("answers", [["a"], ["b"]])},
        {"qrels": {"test": collection().qrels["test"]}},
        {"qrels": collection().qrels | {"train": collection().qrels["test"]}},
        {"answer_splits": {"dev": np.array([0])}},
    ],
)
def test_other_content_has_another_fingerprint(changes):
    assert collection(**changes).fingerprint != collection().fingerprint


def test_the_boundary_between_texts_counts():
    texts = [["ab", "c"], ["a", "bc"]]
    one, other = (
        collection(corpus=Dataset.from_dict({"id": ["d1", "d2"], "title": ["", ""], "text": text}))
        for text in texts
    )
    assert one.corpus_fingerprint != other.corpus_fingerprint


# Writing


def test_save_and_load_give_the_same_collection(tmp_path: Path):
    saved = collection()
    saved.save(tmp_path / "tiny")
    loaded = load_collection(tmp_path / "tiny")
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.corpus.to_dict() == saved.corpus.to_dict()
    assert loaded.queries.to_dict() == saved.queries.to_dict()
    assert {split: part.to_dict() for split, part in loaded.qrels.items()} == {
        split: part.to_dict() for split, part in saved.qrels.items()
    }
    assert (tmp_path / "tiny/qrels/train.tsv").read_text() == "query-id\tcorpus-id\tscore\nq2\td2\t1\n"


def test_save_keeps_answers_and_splits_that_have_nothing_else(tmp_path: Path):
    queries = collection().queries.add_column("answers", [["Paris", "the City of Light"], []])
    saved = collection(queries=queries, qrels={}, answer_splits={"test": np.array([1])})
    saved.save(tmp_path)
    loaded = load_collection(tmp_path)
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.queries["answers"][0] == ["Paris", "the City of Light"]
    assert loaded.answer_splits["test"].tolist() == [1]


def test_save_replaces_an_older_collection_with_all_its_splits(tmp_path: Path):
    collection().save(tmp_path)
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"older")
    one_split = collection(qrels={"test": collection().qrels["test"]})
    one_split.save(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "corpus.jsonl",
        "queries.jsonl",
        "test.tsv",
    ]
    assert load_collection(tmp_path).fingerprint == one_split.fingerprint


def test_save_leaves_other_folders_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CollectionError, match=r"not a BEIR folder .* Nothing was written"):
        collection().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_save_rejects_ids_that_qrels_cannot_hold(tmp_path: Path):
    corpus = Dataset.from_dict({"id": ["d\t1"], "title": [""], "text": ["a"]})
    with pytest.raises(CollectionError, match=r"passage id 'd\\t1'; expected ids without tabs"):
        collection(corpus=corpus).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Opening


def test_max_passages_keeps_what_is_judged(tmp_path: Path):
    corpus = Dataset.from_dict({"id": list("abcdef"), "title": [""] * 6, "text": list("ABCDEF")})
    qrels = {"test": Dataset.from_dict({"query_id": ["q1"], "passage_id": ["e"], "relevance": [1]})}
    collection(corpus=corpus, qrels=qrels).save(tmp_path)
    fewer = load_collection(tmp_path, max_passages=3)
    assert fewer.corpus["id"][:] == ["a", "b", "e"]
    assert fewer.judgments("test").passage_rows.tolist() == [2]
    assert len(load_collection(tmp_path, max_passages=100).corpus) == 6
    with pytest.raises(CollectionError, match="max_passages: found 0; expected at least 1"):
        load_collection(tmp_path, max_passages=0)


@pytest.mark.parametrize("source", ["./nowhere", "a/b/c", Path("nowhere")])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(source):
    with pytest.raises(CollectionError, match=r"found no such folder; expected a folder with corpus\.jsonl"):
        load_collection(source)


def test_a_folder_of_no_known_form_is_an_error(tmp_path: Path):
    with pytest.raises(
        CollectionError, match=r"found a folder without any of these files; .*psgs_w100.tsv \(DPR\)"
    ):
        load_collection(tmp_path)


def test_an_option_of_another_format_is_an_error(tmp_path: Path):
    collection().save(tmp_path)
    with pytest.raises(CollectionError, match=r"positives: found a value for .*, which is a BEIR folder"):
        load_collection(tmp_path, positives="all")


def test_an_unknown_cause_to_skip_is_an_error_that_lists_the_known_ones(tmp_path: Path):
    collection().save(tmp_path)
    message = r"'empty passage' is not a cause that can be skipped\. Did you mean 'empty passages'"
    with pytest.raises(CollectionError, match=message) as error:
        load_collection(tmp_path, skip=["empty passage"])
    assert "duplicate ids" in str(error.value)


def test_a_collection_without_dev_gets_one_out_of_train(tmp_path: Path, caplog):
    numbers = range(40)
    corpus = Dataset.from_dict(
        {"id": [f"d{n}" for n in numbers], "title": [""] * 40, "text": [f"text {n}" for n in numbers]}
    )
    queries = Dataset.from_dict({"id": [f"q{n}" for n in numbers], "text": [f"query {n}" for n in numbers]})

    def judged(rows):
        pairs = [(f"q{n}", f"d{(n + more) % 40}", 1) for n in rows for more in (0, 1)]
        return Dataset.from_dict(
            dict(
                zip(("query_id", "passage_id", "relevance"), map(list, zip(*pairs, strict=True)), strict=True)
            )
        )

    whole = Collection("mine", corpus, queries, {"train": judged(range(30)), "test": judged(range(30, 40))})
    whole.save(tmp_path / "mine")
    cut = load_collection(tmp_path / "mine")
    parts = {split: set(cut.qrels[split]["query_id"]) for split in cut.splits}
    assert {split: len(ids) for split, ids in parts.items()} == {"train": 24, "dev": 6, "test": 10}
    assert parts["train"] | parts["dev"] == {f"q{n}" for n in range(30)}
    assert len(cut.qrels["dev"]) == 12  # with all that is judged for its queries
    assert "6 of the 30 queries of train are now dev" in caplog.text
    assert load_collection(tmp_path / "mine").fingerprint == cut.fingerprint
    assert load_collection(tmp_path / "mine", dev_share=0).splits == ["train", "test"]
    with pytest.raises(CollectionError, match=r"dev_share: found 2"):
        load_collection(tmp_path / "mine", dev_share=2)


def test_passages_are_selected_where_a_faiss_index_is_attached():
    ours = collection()
    ours.corpus.add_faiss_index_from_external_arrays(np.eye(3, dtype=np.float32), "embeddings")
    selected = ours.select_passages(np.array([2, 0]))
    assert selected["id"][:] == [ours.corpus["id"][2], ours.corpus["id"][0]]
    assert selected.list_indexes() == []
    assert ours.corpus.list_indexes() == ["embeddings"]


def test_texts_are_read_without_copying_an_attached_faiss_index(monkeypatch):
    ours = collection()
    ours.corpus.add_faiss_index_from_external_arrays(np.eye(3, dtype=np.float32), "embeddings")
    expected = collection().passage_texts()

    def fail(self, memo):
        raise AssertionError("the dataset was copied, together with its index")

    monkeypatch.setattr(datasets.Dataset, "__deepcopy__", fail, raising=False)
    assert ours.passage_texts() == expected
    assert ours.passage_texts(rows=slice(1, 2)) == expected[1:2]


def test_columns_are_read_in_the_order_of_selected_rows():
    chosen = collection().corpus.select([2, 0])
    assert arrow_column(chosen, "id").to_pylist() == chosen["id"][:]
    assert arrow_column(chosen.select([1]), "id").to_pylist() == chosen["id"][1:]
