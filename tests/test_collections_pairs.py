"""Collections of what the trainers of sentence-transformers take: pairs, triplets, n negatives, scores."""

from __future__ import annotations

import gzip
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import write_recipe
from datasets import Dataset, DatasetDict
from tiny_ar2 import settings_of
from transformers.utils import logging as transformers_logging

from hf_ar2.collections import Collection, CollectionError, load_collection, load_pairs
from hf_ar2.collections.splits import nonempty_splits
from hf_ar2.command_line import main as cli
from hf_ar2.recipes import run as script
from hf_ar2.trainers import RankerConfig, RankerTrainer, RetrieverConfig, RetrieverTrainer
from hf_ar2.training_lists.stored import lists_of, load_training_lists

TRIPLETS = {
    "anchor": ["which city", "which animal"],
    "positive": ["Paris is a city.", "A dog barks."],
    "negative": ["A dog barks.", "Paris is a city."],
}
QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}


def read(rows: dict[str, list], **options) -> Collection:
    """The rows as the split train, so that nothing is held out."""
    return load_pairs({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(TRIPLETS)}, **options)


def texts_of(table: Dataset) -> dict[str, str]:
    return dict(zip(table["id"], table["text"], strict=True))


def qrels_of(collection: Collection, split: str) -> list[tuple[str, str]]:
    """The texts of relevant pairs."""
    queries, passages = texts_of(collection.queries), texts_of(collection.corpus)
    table = collection.qrels[split]
    return [(queries[q], passages[p]) for q, p in zip(table["query_id"], table["passage_id"], strict=True)]


def lists_in(collection: Collection, split: str = "train") -> Iterator[tuple[str, dict[str, float]]]:
    """Query, and the scores of its list's passages, the positive first."""
    queries, passages = texts_of(collection.queries), texts_of(collection.corpus)
    for row in lists_of(collection, split).dataset:
        ids = row["positive_ids"] + row["negative_ids"]
        scores = row["positive_scores"] + row["negative_scores"]
        yield queries[row["query_id"]], {passages[id]: score for id, score in zip(ids, scores, strict=True)}


# What is read


@pytest.mark.parametrize("query", ["anchor", "query", "question", "Question"])
@pytest.mark.parametrize("passage", ["positive", "passage", "answer", "document", "context"])
def test_pairs_are_known_by_the_names_of_their_columns(query, passage):
    collection = read({passage: ["A dog barks."], query: ["which animal"]})
    assert qrels_of(collection, "train") == [("which animal", "A dog barks.")]
    assert set(collection.corpus["title"]) == {""}


def test_equal_texts_are_one_passage_and_one_query():
    collection = read(
        {"query": ["which", "which", "which", "who"], "answer": ["a dog", "a cat", "a dog", "a dog"]}
    )
    assert qrels_of(collection, "train") == [("which", "a dog"), ("which", "a cat"), ("who", "a dog")]
    assert len(set(collection.corpus["id"])) == len(collection.corpus)
    assert collection.lists.num_rows == 2, "those of the split test, which has triplets"


def test_a_query_that_is_a_passage_has_its_id():
    """As in duplicate detection: it is neither its own negative nor its own result."""
    collection = read({"anchor": ["a dog", "a cat"], "positive": ["the dog", "a dog"]})
    at = collection.queries["text"][:].index("a dog")
    assert collection.corpus["text"][int(collection.own_rows[at])] == "a dog"


@pytest.mark.parametrize(
    "negatives",
    [
        {"negative": ["x", "y"]},
        {"negative_1": ["x", "y"], "negative_2": ["z", "x"]},
        {"Negative-1": ["x", "y"]},
        {"negatives": [["x"], ["y", "z", "x"]]},
        {"negative": [["x"], ["y"]]},
        {"negatives": [[], ["y"]]},
    ],
)
def test_negatives_become_lists(negatives):
    collection = read({"query": ["one", "two"], "passage": ["1", "2"], **negatives})
    expected = [
        (query, [text for cells in negatives.values() for text in np.ravel(cells[at])])
        for at, query in enumerate(["one", "two"])
    ]
    found = [(query, list(scores)[1:]) for query, scores in lists_in(collection)]
    assert found == [(query, texts) for query, texts in expected if texts]
    assert all(math.isnan(score) for _, scores in lists_in(collection) for score in scores.values())


def test_a_list_has_the_negatives_of_all_rows_of_a_pair():
    """Triplets repeat a pair for each negative; a query with two positives has two lists."""
    rows = [("one", "1", "x"), ("one", "1", "y"), ("one", "1", "x"), ("one", "2", "z")]
    columns = dict(zip(("query", "answer", "negative"), map(list, zip(*rows, strict=True)), strict=True))
    found = [(query, list(scores)) for query, scores in lists_in(read(columns))]
    assert found == [("one", ["1", "x", "y"]), ("one", ["2", "z"])]


def test_a_negative_that_is_relevant_is_dropped_and_counted(caplog):
    rows = {"query": ["one", "one"], "answer": ["1", "2"], "negatives": [["2", "x"], ["one", "2"]]}
    collection = read(rows)
    assert [list(scores) for _, scores in lists_in(collection)] == [["1", "x"]]
    assert collection.skipped == {"negatives that are relevant, or the query itself": 3}
    assert "skipped 3 negatives that are relevant" in caplog.text


@pytest.mark.parametrize("name", ["label", "labels", "score", "scores", "Score"])
@pytest.mark.parametrize(
    ("negatives", "cell", "expected"),
    [
        (["x"], [0.5, 0.25], [0.5, 0.25]),
        (["x", "y"], [3, 1, 2], [3, 1, 2]),
        (["x"], 4.0, [0, -4]),  # the margin, as for MarginMSELoss
        (["x"], [4.0], [0, -4]),
        (["x", "y"], [4.0, -1.0], [0, -4, 1]),
    ],
)
def test_scores_are_of_each_passage_or_margins(name, negatives, cell, expected):
    collection = read({"query": ["one"], "passage": ["1"], "negatives": [negatives], name: [cell]})
    ((_, scores),) = lists_in(collection)
    assert list(scores.values()) == expected


def test_lists_of_scored_rows_keep_scores_of_one_scale_together():
    """Margins of a pair are joined; other scores of the positive are of another teacher or scale."""
    margins = {
        "query": ["q", "q"],
        "passage": ["p", "p"],
        "negative": ["x", "y"],
        "score": [2.0, 3.0],
    }
    assert [list(scores.values()) for _, scores in lists_in(read(margins))] == [[0, -2, -3]]
    scores = margins | {"score": [[5.0, 2.0], [1.0, 3.0]]}
    assert [list(scores.values()) for _, scores in lists_in(read(scores))] == [[5, 2], [1, 3]]


# Splits


def test_one_split_is_divided_by_a_hash_of_the_query(caplog):
    rows = {"query": [f"query {n // 2}" for n in range(80)], "answer": [f"answer {n}" for n in range(80)]}
    collection = load_collection(Dataset.from_dict(rows), name="mine")
    splits = nonempty_splits({f"query {n}": f"query {n}" for n in range(40)})
    assert collection.splits == ["train", "dev", "test"]
    for split in collection.splits:
        pairs = qrels_of(collection, split)
        assert {query for query, _ in pairs} == {query for query, of in splits.items() if of == split}
        assert len(pairs) == 2 * len({query for query, _ in pairs})
    assert "mine has only the split train; its queries are divided by a hash" in caplog.text
    more = load_collection(Dataset.from_dict({name: [*reversed(cells)] for name, cells in rows.items()}))
    assert {*qrels_of(more, "dev")} == {*qrels_of(collection, "dev")}, "whatever the order of the rows"


def test_lists_are_those_of_the_split():
    rows = {"query": [f"query {n}" for n in range(30)], "answer": [f"answer {n}" for n in range(30)]}
    collection = load_pairs(Dataset.from_dict(rows | {"negative": ["none of these"] * 30}))
    for split in collection.splits:
        assert [query for query, _ in lists_in(collection, split)] == [
            q for q, _ in qrels_of(collection, split)
        ]
    moved = load_collection(
        {"train": Dataset.from_dict(rows | {"negative": ["none of these"] * 30})}, dev_share=0.2
    )
    assert moved.fingerprint == collection.fingerprint, "a dict with the split train alone is divided too"


def test_splits_of_the_source_stay_and_validation_is_dev(caplog):
    parts = {split: Dataset.from_dict(TRIPLETS) for split in ("train", "validation", "test", "hard")}
    collection = load_collection(DatasetDict(parts))
    assert collection.splits == ["train", "dev", "test", "hard"]
    assert len(collection.queries) == len(collection.corpus) == 2
    assert "2 queries of dev are also in train" in caplog.text
    assert load_collection({"test": Dataset.from_dict(TRIPLETS)}).splits == ["test"]


def test_a_split_train_without_dev_gives_a_share_to_dev():
    rows = {"query": [f"query {n}" for n in range(10)], "answer": [f"answer {n}" for n in range(10)]}
    parts = {"train": Dataset.from_dict(rows), "test": Dataset.from_dict(TRIPLETS)}
    collection = load_collection(parts)
    assert [len(collection.judgments(split)) for split in collection.splits] == [8, 2, 2]
    assert load_collection(parts, dev_share=0).splits == ["train", "test"]


# Files, folders, the Hub


ROWS = [
    {"query": "one", "answer": "1", "negatives": ["x", "y"], "score": [3.0, 2.0, 1.0]},
    {"query": 'two, "quoted"\nlines', "answer": "2", "negatives": ["x", "z"], "score": [3.0, 2.0, 1.0]},
]


def write(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if file.suffix == ".gz" else open
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        Dataset.from_list(rows).to_parquet(file)
        return file
    with opener(file, "wt", encoding="utf-8", newline="") as stream:
        if name.endswith(".csv"):
            import csv

            writer = csv.writer(stream)
            writer.writerow(rows[0])
            writer.writerows(
                [json.dumps(cell) if isinstance(cell, list) else cell for cell in row.values()]
                for row in rows
            )
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return file


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.csv", "rows.csv.gz", "rows.parquet"]
)
def test_files_and_folders(tmp_path: Path, name):
    expected = load_pairs({"test": Dataset.from_list(ROWS)})
    file = write(tmp_path / "mine" / f"test-{name}", ROWS)
    for source in (file, str(file), file.parent):
        collection = load_collection(source)
        assert collection.splits == ["test"] and collection.fingerprint == expected.fingerprint
    assert collection.name == "mine"
    (tmp_path / "mine" / "data").mkdir()
    file.rename(tmp_path / "mine" / "data" / file.name)
    assert load_collection(tmp_path / "mine").fingerprint == expected.fingerprint, "as on the Hub"


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation.jsonl"],
            ["train", "dev"],
        ),
        (["nli_dev.jsonl", "nli_test.csv", "nli.jsonl"], ["train", "dev", "test"]),
        (["training.jsonl", "contest.jsonl", "dev.jsonl"], ["train", "dev"]),
    ],
)
def test_a_word_in_the_name_of_a_file_is_its_split(tmp_path: Path, files, splits):
    for number, file in enumerate(files):
        write(tmp_path / file, [{"query": f"{number}", "answer": f"answer {number}"}])
    collection = load_collection(tmp_path)
    assert collection.splits == splits
    assert sum(len(collection.qrels[split]) for split in splits) == len(files)


def test_folders_of_save_to_disk(tmp_path: Path):
    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    Dataset.from_list(ROWS * 2).save_to_disk(str(tmp_path / "one"))
    assert load_collection(tmp_path / "splits").splits == ["test"]
    assert (
        load_collection(tmp_path / "one").fingerprint == load_collection(Dataset.from_list(ROWS)).fingerprint
    )


def test_the_hub(monkeypatch):
    """The Hub is out of reach in tests: this replaces `datasets.load_dataset` by what it does."""

    def load_dataset(path, name=None, cache_dir=None):
        if path != "some/pairs" and not path.startswith("some/collection"):
            raise datasets.exceptions.DatasetNotFoundError(f"{path} does not exist")
        if name not in (None, "triplet"):
            raise ValueError(f"BuilderConfig {name!r} not found. Available: ['pair', 'triplet']")
        if path == "some/collection" and name is None:
            raise ValueError(
                "Config name is missing. Please pick one among the available configs: ['pair', 'triplet']"
            )
        return DatasetDict({"train": Dataset.from_dict(TRIPLETS), "dev": Dataset.from_dict(TRIPLETS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source, name in (("some/pairs", "pairs"), ("some/collection:triplet", "collection")):
        collection = load_collection(source)
        assert collection.name == name and collection.splits == ["train", "dev"]
    for source, message in (
        ("some/collection", r"Config name is missing.*'triplet'\].*as in some/collection:NAME"),
        ("some/pairs:wrong", "some/pairs:wrong: cannot be loaded from the Hub .*'wrong' not found"),
        ("none/here", "found no such folder here, and no collection on the Hub"),
        ("none/here:pair", "cannot be loaded from the Hub .none/here does not exist"),
    ):
        with pytest.raises(CollectionError, match=message):
            load_collection(source)


# Errors


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ["text1", "text2"],
            r"found the columns \['text1', 'text2'\]; expected one column with queries \(anchor, query,",
        ),
        (["query", "body"], r"one with passages \(positive, passage, answer, document, context\)"),
        (["question", "context", "answer"], r"several of passage \(context, answer\); .* remove those"),
        (["query", "anchor", "answer"], r"several of query \(query, anchor\)"),
        (["query", "answer", "negative", "label", "score"], r"several of scores \(label, score\)"),
    ],
)
def test_unknown_or_ambiguous_columns(columns, message):
    with pytest.raises(
        CollectionError, match=f"^dataset: found the columns .*{message}" if "several" in message else message
    ):
        load_pairs(Dataset.from_dict({column: ["text"] for column in columns}))


LABELLED = {
    "query": [
        "which city",
        "which city",
        "which animal",
        "which city",
        "which animal",
        "which sea",
        "which sea",
    ],
    "passage": ["Paris", "a dog", "a dog", "Oslo", "Paris", "the Baltic", "Oslo"],
    "label": [1, 0, 1, 1, 0, 1, 1],
}


@pytest.mark.parametrize("kind", [int, float, bool])
def test_passages_with_the_label_0_are_negatives_of_their_query(kind):
    collection = read(LABELLED | {"label": [kind(label) for label in LABELLED["label"]]})
    assert qrels_of(collection, "train") == [
        ("which city", "Paris"),
        ("which animal", "a dog"),
        ("which city", "Oslo"),
        ("which sea", "the Baltic"),
        ("which sea", "Oslo"),
    ]
    found = [(query, list(scores)) for query, scores in lists_in(collection)]
    assert found == [
        ("which city", ["Paris", "a dog"]),
        ("which animal", ["a dog", "Paris"]),
        ("which city", ["Oslo", "a dog"]),
    ]
    assert not collection.skipped


def test_labels_that_contradict_each_other_or_leave_a_query_without_a_passage_are_counted(tmp_path: Path):
    rows = LABELLED | {"label": [1, 0, 1, 0, 0, 0, 0]}
    rows = {
        name: [*cells, *more]
        for (name, cells), more in zip(rows.items(), (["which city"], ["Oslo"], [1]), strict=True)
    }
    collection = read(rows)
    assert (
        collection.skipped
        == {
            "negatives that are relevant, or the query itself": 3,  # in each list of the query, one of them in test
            "negatives of queries without a relevant passage": 2,
        }
    )
    assert [query for query, _ in qrels_of(collection, "train")] == [
        "which city",
        "which animal",
        "which city",
    ]
    with pytest.raises(
        CollectionError, match="all labels are 0; expected 1 for the passages that are relevant"
    ):
        load_pairs({"train": Dataset.from_dict(LABELLED | {"label": [0] * 7})})
    with pytest.raises(
        CollectionError, match=r"found label 2 of a row .*or a label: 1 for a relevant passage"
    ):
        read(LABELLED | {"label": [1, 0, 2, 0, 0, 0, 0]})


def test_a_ranker_is_trained_on_labelled_pairs(models, tmp_path: Path):
    file = tmp_path / "train.csv"
    lines = zip(*LABELLED.values(), strict=True)
    file.write_text("query,passage,label\n" + "".join(f"{q},{p},{label}\n" for q, p, label in lines))
    settings = (
        settings_of(RankerConfig) | QUIET | {"train_lists": ["collection"], "mine": False, "max_steps": 2}
    )
    settings |= {"num_negatives": 1}
    args = RankerConfig(output_dir=str(tmp_path / "run"), **settings)
    trainer = RankerTrainer(models / "tiny-retriever", models / "tiny-ranker", args, file)
    trainer.train()
    assert trainer.state.global_step == 2


def test_columns_that_are_not_read_are_named(caplog):
    read({"query": ["q"], "answer": ["a"], "url": ["u"], "hard": ["h"]})
    assert "dataset (train): the columns url, hard are not read" in caplog.text


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"query": ""}, "'' in the column 'query'; expected a text"),
        ({"query": " \n"}, "column 'query'"),
        ({"answer": None}, "None in the column 'answer'"),
        ({"answer": ["a"]}, r"\['a'\] in the column 'answer'"),
        ({"answer": 7}, "7 in the column 'answer'"),
        ({"negatives": None}, "None in the column 'negatives'"),
        ({"negatives": ["x", None]}, "None in the column 'negatives'"),
        ({"negatives": ["x", ""]}, "'' in the column 'negatives'"),
        (
            {"score": [3.0]},
            r"score \[3.0\] of a row with 2 negatives; expected a list of 3 finite scores, .*or 2 margins",
        ),
        ({"score": 3.0}, "score 3.0 of a row with 2 negatives"),
        ({"score": None}, "score None"),
        ({"score": [3.0, None, 1.0]}, "score .*None"),
        ({"score": [3.0, math.nan, 1.0]}, "finite"),
        ({"score": [True, False, False]}, "score .*True"),
        ({"negatives": [], "score": 1.0}, "score 1.0 of a row with 0 negatives; .*Remove the column"),
        (
            {"negatives": [], "score": 0},
            "score 0 of a row with 0 negatives; .*every row is a relevant passage",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row, found):
    file = write(tmp_path / "train.jsonl", [ROWS[0], ROWS[1] | row])
    with pytest.raises(CollectionError, match=rf"train\.jsonl:2: found .*{found}"):
        load_collection(file)
    causes = ["malformed lines", "empty queries", "empty passages"]
    collection = load_collection(file, skip=causes)
    assert sum(collection.skipped.values()) == 1 and len(collection.queries) == 1


def test_a_bad_row_of_a_table_is_named_by_its_number():
    with pytest.raises(CollectionError, match=r"dataset \(train\):2: found None in the column 'negative'"):
        read(TRIPLETS | {"negative": ["x", None]})
    with pytest.raises(CollectionError, match=r"dataset \(train\):1: found 1 in the column 'anchor'"):
        read(TRIPLETS | {"anchor": [1, 2]})


def test_two_scores_of_a_negative():
    rows = {"query": ["q", "q"], "answer": ["a", "a"], "negative": ["x", "x"], "score": [2.0, 1.0]}
    with pytest.raises(
        CollectionError, match=r"dataset \(train\):2: found the score -1.0 of a negative that has -2.0"
    ):
        read(rows)


def test_bad_files(tmp_path: Path):
    def raises(message: str, file: str, content: str) -> None:
        (tmp_path / file).write_text(content)
        with pytest.raises(CollectionError, match=message):
            load_collection(tmp_path / file)

    raises(
        r"a\.csv:3: found 1 comma-separated columns; expected the 2 of line 1",
        "a.csv",
        "query,answer\nq,a\nq\n",
    )
    raises(
        r"a\.csv:2: found 'high' in the column 'score'", "a.csv", "query,answer,negative,score\nq,a,x,high\n"
    )
    raises(r"a\.csv: found the columns \[\]", "a.csv", "")
    raises(r"a\.jsonl:1: found invalid JSON", "a.jsonl", "no JSON")
    raises(r"a\.parquet: cannot be read as parquet", "a.parquet", "no parquet")
    raises(r"a\.txt: found no file of rows; expected \.parquet, \.jsonl", "a.txt", "text")
    raises(r"a\.json: found the columns \[\]", "a.json", "")
    with pytest.raises(CollectionError, match="pairs: found no rows"):
        load_collection(Dataset.from_dict({"query": [], "answer": []}))


def test_other_sources_and_options():
    with pytest.raises(
        CollectionError, match="dataset: found a IterableDataset; expected a datasets.Dataset"
    ):
        load_collection(Dataset.from_dict(TRIPLETS).to_iterable_dataset())
    with pytest.raises(CollectionError, match="titles: found a value for the dataset"):
        load_collection(Dataset.from_dict(TRIPLETS), titles="titles.tsv")


# Saved, and reduced


def test_lists_are_saved_with_the_collection(tmp_path: Path):
    collection = load_pairs({"train": Dataset.from_list(ROWS), "dev": Dataset.from_list(ROWS)})
    collection.save(tmp_path)
    again = load_collection(tmp_path)
    assert again.fingerprint == collection.fingerprint
    assert again.lists.to_list() == collection.lists.to_list()
    assert "training lists: 2" in repr(again)
    without = Collection("mine", collection.corpus, collection.queries, collection.qrels)
    assert without.fingerprint != collection.fingerprint
    without.save(tmp_path)
    assert load_collection(tmp_path).lists is None, "the old lists are removed"
    Dataset.from_dict({"query_id": ["q"]}).to_parquet(tmp_path / "lists.parquet")
    with pytest.raises(CollectionError, match=r"lists\.parquet: found the columns .*expected"):
        load_collection(tmp_path)


def test_fewer_passages_leave_the_lists_those_that_are_there():
    parts = {split: Dataset.from_list(ROWS) for split in ("train", "dev")}
    fewer = load_collection(parts, max_passages=3)
    assert [list(scores) for _, scores in lists_in(fewer)] == [["1", "x"], ["2", "x"]]
    with pytest.raises(ValueError, match="came with 2 lists, but none for split 'train'"):
        lists_of(load_collection(parts, max_passages=2), "train")


# Training


@pytest.fixture(scope="module")
def triplets(tiny_collection) -> DatasetDict:
    """The splits of the tiny collection as triplets, whose negative is the positive of the next query."""
    queries, passages = texts_of(tiny_collection.queries), texts_of(tiny_collection.corpus)
    parts = {}
    for split in tiny_collection.splits:
        table = tiny_collection.qrels[split]
        positives = [passages[id] for id in table["passage_id"]]
        parts[split] = Dataset.from_dict(
            {
                "anchor": [queries[id] for id in table["query_id"]],
                "positive": positives,
                "negative": positives[1:] + positives[:1],
                "score": [[2.0, 0.5]] * len(positives),
            }
        )
    return DatasetDict(parts)


def trainer_of(retriever, folder, collection, **settings) -> RetrieverTrainer:
    args = RetrieverConfig(output_dir=str(folder), **(settings_of(RetrieverConfig) | QUIET | settings))
    return RetrieverTrainer(retriever, args=args, collection=collection)


GIVEN = {"train_lists": ["collection"], "mine": False, "num_negatives": 1}


@pytest.mark.parametrize("settings", [{}, {"distillation": "kl"}, {"distillation": "margin_mse"}])
def test_a_step_on_given_negatives(tiny_retriever_path, tmp_path, triplets, settings):
    """A batch has the negatives of the dataset, and their scores, without a search."""
    trainer = trainer_of(
        tiny_retriever_path, tmp_path, triplets, max_steps=1, warmup_steps=0, **GIVEN, **settings
    )
    assert trainer.publisher.collection == "pairs"
    batch = trainer.collator(list(range(4)))
    queries, passages = trainer.collection.queries["text"], trainer.collection.corpus["text"]
    rows = {row["anchor"]: row for row in triplets["train"]}
    for query, (positive, negative) in zip(batch["query_rows"], batch["passage_rows"], strict=True):
        row = rows[queries[int(query)]]
        assert [passages[int(positive)], passages[int(negative)]] == [row["positive"], row["negative"]]
    if settings:
        assert batch["teacher_scores"].tolist() == [[2.0, 0.5]] * 4
    before = {name: weights.clone() for name, weights in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.pool is None
    assert any(not torch.equal(before[name], weights) for name, weights in trainer.model.named_parameters())


def test_given_and_mined_negatives_together(tiny_retriever_path, tmp_path, triplets):
    trainer = trainer_of(tiny_retriever_path, tmp_path, triplets, max_steps=1, **(GIVEN | {"mine": True}))
    trainer.train()
    assert len(trainer.pool) == len(triplets["train"])
    assert len(trainer.collator.lists.pool) == 2 * len(triplets["train"])


def test_lists_that_are_not_there(tiny_retriever_path, tmp_path, tiny_collection, triplets):
    with pytest.raises(ValueError, match=r"train_lists='collection': .* came without negatives"):
        trainer_of(tiny_retriever_path, tmp_path, tiny_collection, **GIVEN)
    with pytest.raises(CollectionError, match="has no qrels for split 'nowhere'"):
        trainer_of(tiny_retriever_path, tmp_path, triplets, train_split="nowhere", **GIVEN)
    unscored = DatasetDict({split: part.remove_columns("score") for split, part in triplets.items()})
    with pytest.raises(ValueError, match="has no scores"):
        trainer_of(tiny_retriever_path, tmp_path, unscored, distillation="kl", **GIVEN)


def test_negatives_that_are_not_used_are_named(tiny_retriever_path, tmp_path, triplets, caplog):
    transformers_logging.get_logger().addHandler(caplog.handler)
    try:
        trainer_of(tiny_retriever_path, tmp_path, triplets)
    finally:
        transformers_logging.get_logger().removeHandler(caplog.handler)
    assert (
        "lists of negatives, which are not used; to train on them set train_lists=['collection']"
        in caplog.text
    )
    assert caplog.records[-1].levelno == logging.WARNING


# Commands and recipes


def test_given_negatives_are_scored(tiny_ranker_path, tmp_path, triplets):
    write(tmp_path / "data" / "train.jsonl", list(triplets["train"].remove_columns("score")))
    write(tmp_path / "data" / "dev.jsonl", list(triplets["dev"].remove_columns("score")))
    command = ["score", str(tmp_path / "data"), "--ranker", str(tiny_ranker_path), "--lists", "collection"]
    assert cli.main([*command, "--output", str(tmp_path / "scored")]) == 0
    scored = load_training_lists(tmp_path / "scored")
    assert len(scored) == len(triplets["train"])
    assert np.isfinite([row["negative_scores"] for row in scored.dataset]).all()


@pytest.mark.slow
def test_a_recipe_trains_on_given_negatives_first(home, tmp_path, triplets):
    """And an error that shows before anything is trained, where the collection has none."""
    for split, part in triplets.items():
        write(tmp_path / "data" / f"{split}.jsonl", list(part))
    write(tmp_path / "pairs" / "train.jsonl", list(triplets["train"].select_columns(["anchor", "positive"])))
    quick = {name: value for name, value in settings_of(RetrieverConfig).items() if name != "output_dir"}
    mined = {"max_steps": 1, "num_negatives": 1, "pool_depth": 4}
    body = {
        "name": "tiny",
        "collection": str(tmp_path / "data"),
        "models": {"light": {"model": str(home / "retriever")}},
        "args": quick | QUIET,
        "stages": {
            "given": {"trainer": "retriever", "retriever": "light", "args": {**mined}},
            "mined": {"trainer": "retriever", "retriever": "given", "args": mined},
        },
        "evaluation": {"rows": {}},
    }
    path = str(write_recipe(tmp_path / "tiny.yaml", body))
    given = ["--given.train_lists", "[collection]", "--given.mine", "false"]
    script.main([path, *given, "--output_dir", str(tmp_path / "run")])
    logs = [
        (tmp_path / "run" / "stages" / stage / "trainer_state.json").read_text() for stage in body["stages"]
    ]
    assert ["pool/" in log for log in logs] == [False, True], "only the second stage mines"
    more = ["--collection", str(tmp_path / "pairs"), "--output_dir", str(tmp_path / "other")]
    with pytest.raises(SystemExit, match="stages.given.args: .*pairs came without negatives"):
        script.main([path, *given, *more])


def test_splits_that_could_be_dev_are_named(caplog) -> None:
    rows = [{"anchor": f"question {number}", "positive": f"answer {number}"} for number in range(8)]
    parts = {"train": rows[:6], "holdout": rows[6:7], "validation_matched": rows[7:]}
    load_collection({split: Dataset.from_list(part) for split, part in parts.items()})
    assert "To use one of its splits holdout, validation_matched instead, name it dev" in caplog.text
