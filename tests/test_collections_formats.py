"""The readers of BEIR folders and Hub ids, MS MARCO and DPR: what each makes of a well-formed collection."""

from __future__ import annotations

import gzip
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from hf_ar2.collections import CollectionError, load_collection

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def write(folder: Path, files: dict[str, str]) -> Path:
    """Writes the texts into files below the folder, gzipped where the name ends in .gz."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return folder


def json_lines(*entries: dict) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def qrels_of(collection, split: str) -> list[tuple[str, str, int]]:
    columns = collection.qrels[split].to_dict()
    return list(zip(columns["query_id"], columns["passage_id"], columns["relevance"], strict=True))


# BEIR

BEIR = {
    "corpus.jsonl": json_lines(
        {"_id": "d1", "title": "Paris", "text": "A city.", "metadata": {"url": "x"}},
        {"_id": "d2", "text": "No title."},
        {"_id": "d3", "title": "A title only", "text": ""},
    ),
    "queries.jsonl": json_lines(
        {"_id": "q1", "text": "which city", "metadata": {}}, {"_id": "q2", "text": "unjudged"}
    ),
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n",
    "qrels/dev.tsv": "query-id\tcorpus-id\tscore\n",
}


def test_whole_numbers_as_ids_and_decimals_as_grades(tmp_path: Path):
    """What pandas writes: ids are integers, and grades are decimals as soon as their column had a gap."""
    files = {
        "corpus.jsonl": json_lines({"_id": 0, "text": "zero"}, {"_id": 7, "text": "seven"}),
        "queries.jsonl": json_lines({"_id": 1, "text": "which"}),
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\n1\t0\t2.0\n1\t7\t0.0\n",
    }
    collection = load_collection(write(tmp_path / "beir", files))
    assert collection.corpus["id"][:] == ["0", "7"]
    assert qrels_of(collection, "test") == [("1", "0", 2), ("1", "7", 0)]
    files = {
        "collection.tsv": "0\tzero\n",
        "queries.dev.tsv": "1\twhich\n",
        "qrels.dev.tsv": "1\t0\t0\t1.0\n",
    }
    assert qrels_of(load_collection(write(tmp_path / "ms", files)), "dev") == [("1", "0", 1)]


def test_beir_folder(tmp_path: Path):
    collection = load_collection(write(tmp_path / "mine", BEIR))
    assert collection.name == "mine"
    assert collection.corpus.to_dict() == {
        "id": ["d1", "d2", "d3"],
        "title": ["Paris", "", "A title only"],
        "text": ["A city.", "No title.", ""],
    }
    assert collection.queries["id"][:] == ["q1", "q2"], "queries without judgments are kept"
    assert collection.splits == ["dev", "test"]
    assert qrels_of(collection, "test") == [("q1", "d1", 2), ("q1", "d2", 0)]
    assert len(collection.judgments("dev")) == 0
    assert collection.passage_texts()[2] == "A title only"
    assert collection.skipped == {}


def test_beir_files_may_be_gzipped_have_a_byte_order_mark_or_other_line_ends(tmp_path: Path):
    plain = load_collection(write(tmp_path / "plain", BEIR))
    zipped = load_collection(write(tmp_path / "zipped", {f"{name}.gz": text for name, text in BEIR.items()}))
    windows = {name: "\ufeff" + text.replace("\n", "\r\n") + "\r\n" for name, text in BEIR.items()}
    assert (
        plain.fingerprint == zipped.fingerprint == load_collection(write(tmp_path / "w", windows)).fingerprint
    )


def test_a_mapped_corpus_is_parsed_once_and_again_when_the_file_changed(tmp_path: Path, monkeypatch):
    folder, cache = write(tmp_path / "mine", BEIR), tmp_path / "cache"
    first = load_collection(folder, cache_dir=cache)
    assert first.corpus.cache_files, "the corpus is an Arrow file on disk"
    assert first.fingerprint == load_collection(folder).fingerprint

    def never(*_):
        raise AssertionError("parsed again")

    with monkeypatch.context() as patch:
        patch.setattr("hf_ar2.collections.readers.beir._passages", never)
        assert load_collection(folder, cache_dir=cache).fingerprint == first.fingerprint
    more = BEIR["corpus.jsonl"] + json_lines({"_id": "d4", "text": "later"}, {"_id": "d5", "text": " "})
    write(folder, {"corpus.jsonl": more})
    for _ in range(2):  # read, then taken from the cache: what was skipped is known both times
        changed = load_collection(folder, cache_dir=cache, skip=["empty passages"])
        assert len(changed.corpus) == 4
        assert changed.skipped == {"empty passages": 1}
    assert len(list(cache.glob("*.arrow"))) == 2 and not [path for path in cache.iterdir() if path.is_dir()]


def test_a_large_corpus_is_mapped_from_the_cache_of_datasets(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("hf_ar2.collections.readers.passages._MAPPED_FROM_BYTES", 10)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    collection = load_collection(write(tmp_path / "mine", BEIR))
    (cached,) = collection.corpus.cache_files
    assert Path(cached["filename"]).parent == tmp_path / "cache" / "hf_ar2"


def test_beir_style_hub_id(monkeypatch):
    """The Hub is out of reach in tests: this replaces `datasets.load_dataset` by what it would return."""
    of_hub = {
        ("BeIR/mine", "corpus"): {
            "corpus": {"_id": ["11", "12"], "title": ["Paris", None], "text": ["A city.", "A dog."]}
        },
        ("BeIR/mine", "queries"): {
            "queries": {"_id": ["1", "2"], "title": ["", ""], "text": ["city", "dog"]}
        },
        ("BeIR/mine-qrels", None): {
            "train": {"query-id": [2], "corpus-id": [12], "score": [1]},
            "validation": {"query-id": [1], "corpus-id": [11], "score": [1]},
        },
    }

    def load_dataset(path, name=None, cache_dir=None):
        tables = of_hub[path, name].items()
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(columns) for split, columns in tables})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    collection = load_collection("BeIR/mine")
    assert collection.name == "mine"
    assert collection.corpus.to_dict() == {
        "id": ["11", "12"],
        "title": ["Paris", ""],
        "text": ["A city.", "A dog."],
    }
    assert collection.splits == ["train", "dev"], "the Hub's validation is dev"
    assert qrels_of(collection, "train") == [("2", "12", 1)], "integer ids become strings"

    of_hub["BeIR/mine-qrels", None]["train"]["corpus-id"] = [99]
    with pytest.raises(CollectionError, match=r"BeIR/mine-qrels \(train\):1: found passage id '99'"):
        load_collection("BeIR/mine")
    of_hub["BeIR/mine", "corpus"]["corpus"] = {"docid": ["11"], "text": ["A city."]}
    with pytest.raises(CollectionError, match=r"BeIR/mine \(corpus\): found columns \['docid', 'text'\]"):
        load_collection("BeIR/mine")


@pytest.mark.parametrize(("part", "splits"), [("default", ["dev", "test"]), ("qrels", ["test"])])
def test_hub_ids_of_mteb_and_nanobeir(monkeypatch, part, splits):
    """The judgments are a configuration of the repository: default (MTEB), or qrels without scores (NanoBEIR)."""
    pair = {"query-id": ["q1"], "corpus-id": ["7"]}
    judged = (
        {"train": pair}
        if part == "qrels"
        else {"validation": pair | {"score": [2.0]}, "test": pair | {"score": [1]}}
    )
    split = "train" if part == "qrels" else None
    parts = {
        "corpus": {
            split or "corpus": {"_id": [7, 8], "title": ["Paris", None], "text": ["A city.", "A dog."]}
        },
        "queries": {split or "queries": {"id": ["q1"], "text": ["which city"]}},
        part: judged,
    }

    def load_dataset(path, name=None, cache_dir=None):
        if path != "some/collection":
            raise datasets.exceptions.DatasetNotFoundError(f"{path} does not exist")
        tables = parts[name or "default"].items()
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(columns) for split, columns in tables})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: list(parts))
    collection = load_collection("some/collection")
    assert collection.splits == splits
    assert collection.corpus["id"][:] == ["7", "8"]
    assert qrels_of(collection, "test") == [("q1", "7", 1)]
    parts["corpus"]["more"] = {"_id": [9], "text": ["x"]}
    with pytest.raises(
        CollectionError, match=r"some/collection \(corpus\): found the splits .*; expected one"
    ):
        load_collection("some/collection")
    del parts["corpus"]["more"], parts[part]
    with pytest.raises(CollectionError, match="whose judgments are its configuration qrels or default"):
        load_collection("some/collection")


def test_a_beir_folder_of_parquet_files(tmp_path: Path):
    tables = {
        "corpus.parquet": {"_id": [0, 7], "text": ["zero", "seven"]},
        "queries/queries-00000-of-00001.parquet": {"_id": ["q1"], "text": ["which"]},
        "qrels/test-00000-of-00002.parquet": {"query-id": ["q1"], "corpus-id": [0], "score": [2.0]},
        "qrels/test-00001-of-00002.parquet": {"query-id": ["q1"], "corpus-id": [7], "score": [0.0]},
    }
    for name, columns in tables.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / name)
    collection = load_collection(tmp_path, name="mine")
    assert collection.corpus["id"][:] == ["0", "7"]
    assert qrels_of(collection, "test") == [("q1", "0", 2), ("q1", "7", 0)]
    datasets.Dataset.from_dict({"_id": [0.5], "text": ["half"]}).to_parquet(tmp_path / "corpus.parquet")
    with pytest.raises(CollectionError, match="found ids of type .*; expected strings or integers"):
        load_collection(tmp_path)
    (tmp_path / "corpus.parquet").write_text("no parquet")
    with pytest.raises(CollectionError, match="corpus.parquet: cannot be read as parquet"):
        load_collection(tmp_path)


def test_a_hub_id_that_cannot_be_had_is_an_error_that_says_where_was_looked(monkeypatch):
    def load_dataset(path, name=None, cache_dir=None):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        CollectionError, match=r"someone/none: found no such folder here, and no .* Hub \(offline\)"
    ):
        load_collection("someone/none")


# ir_datasets


class OfIrDatasets:
    """A stand-in for a dataset of the package ir_datasets, which is optional."""

    def __init__(self, docs=(), queries=(), qrels=()):
        self.docs, self.queries, self.qrels = docs, queries, qrels
        self.docs_iter, self.queries_iter, self.qrels_iter = (
            partial(iter, part) for part in (docs, queries, qrels)
        )
        self.has_docs, self.has_queries, self.has_qrels = (
            partial(bool, part) for part in (docs, queries, qrels)
        )


def test_ir_datasets(monkeypatch):
    docs = [
        SimpleNamespace(doc_id="d1", title="Paris", text="A city."),
        SimpleNamespace(doc_id="d2", abstract="A dog.", default_text=lambda: "A dog."),
    ]
    queries = [SimpleNamespace(query_id="q1", default_text=lambda: "which city")]
    qrels = [SimpleNamespace(query_id="q1", doc_id="d1", relevance=2)]
    known = {
        "mine": OfIrDatasets(docs),
        "mine/train": OfIrDatasets(docs, queries),
        "mine/dev": OfIrDatasets(docs, queries, qrels),
        "mine/dev/small": OfIrDatasets(docs, queries, qrels),
        "queries-only": OfIrDatasets((), queries, qrels),
    }
    monkeypatch.setitem(sys.modules, "ir_datasets", SimpleNamespace(load=known.__getitem__))
    collection = load_collection("ir_datasets:mine")
    assert collection.corpus.to_dict() == {
        "id": ["d1", "d2"],
        "title": ["Paris", ""],
        "text": ["A city.", "A dog."],
    }
    assert collection.splits == ["dev"] and qrels_of(collection, "dev") == [("q1", "d1", 2)]
    assert load_collection("ir_datasets:mine/dev").splits == ["dev"]
    assert load_collection("ir_datasets:mine/dev/small").splits == ["test"]
    for source, message in (
        ("ir_datasets:other", "ir_datasets has no such dataset"),
        ("ir_datasets:queries-only", "found no documents"),
        ("ir_datasets:mine/train", "found no judgments, nor a subset"),
    ):
        with pytest.raises(CollectionError, match=f"{source}: {message}"):
            load_collection(source)
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(ImportError, match="pip install ir-datasets"):
        load_collection("ir_datasets:mine")


# MS MARCO

MS_MARCO = {
    "collection.tsv": "0\tA city.\n1\tA dog.\n2\tA “cat”.\n",
    "queries.train.tsv": "10\twhich city\n11\twhich dog\n",
    "queries.dev.tsv": "20\twhich cat\n21\tunjudged\n",
    "queries.dev.small.tsv": "20\twhich cat\n",
    "qrels.train.tsv": "10\t0\t0\t1\n11 0 1 1\n",
    "qrels.dev.tsv": "20\t2\n",
    "qrels.dev.small.tsv": "20\t2\n",
}


def test_ms_marco_with_two_and_four_column_qrels(tmp_path: Path):
    collection = load_collection(write(tmp_path, MS_MARCO))
    assert collection.corpus.to_dict() == {
        "id": ["0", "1", "2"],
        "title": ["", "", ""],
        "text": ["A city.", "A dog.", "A “cat”."],
    }
    assert sorted(collection.queries["id"][:]) == ["10", "11", "20", "21"], (
        "a query of two files is one query"
    )
    assert collection.splits == ["train", "dev", "dev.small"]
    assert qrels_of(collection, "train") == [("10", "0", 1), ("11", "1", 1)]
    assert qrels_of(collection, "dev.small") == [("20", "2", 1)]


def test_ms_marco_titles_in_a_column_or_in_a_file(tmp_path: Path):
    titled = {"collection.tsv": "0\tParis\tA city.\n1\t\tA dog.\n2\tCats\tA “cat”.\n"}
    in_column = load_collection(write(tmp_path / "column", MS_MARCO | titled))
    file = write(tmp_path, {"titles.tsv": "2\tCats\n0\tParis\n1\t-\n"}) / "titles.tsv"
    in_file = load_collection(write(tmp_path / "file", MS_MARCO), titles=file)
    assert in_column.corpus["title"][:] == ["Paris", "", "Cats"]
    assert in_file.fingerprint == in_column.fingerprint


def test_ms_marco_as_rocketqa_lays_it_out(tmp_path: Path):
    files = {
        "para.txt": MS_MARCO["collection.tsv"],
        "para.title.txt": "0\tParis\n1\t-\n2\tCats\n",
        "train.query.txt": MS_MARCO["queries.train.tsv"],
        "dev.query.txt": MS_MARCO["queries.dev.tsv"],
        "qrels.train.tsv": "10\t0\n11\t1\n",
        "qrels.train.addition.tsv": "10\t2\n",
        "qrels.dev.tsv": "20\t2\n",
    }
    collection = load_collection(write(tmp_path, files))
    assert collection.splits == ["train", "dev", "train.addition"]
    assert collection.passage_texts()[0] == "Paris A city."


# DPR


def context(id: str | int, key: str = "passage_id") -> dict:
    return {"title": "t", "text": "x", "score": 1.0, key: id}


def question(text: str, answers: list[str], positives: list[dict], negatives: list[dict] = ()) -> dict:
    parts = {"positive_ctxs": positives, "hard_negative_ctxs": list(negatives), "negative_ctxs": []}
    return {"dataset": "nq", "question": text, "answers": answers} | parts


DPR_TRAIN = [
    question("who sang", ["Ann"], [context("2"), context("3")], [context("1"), context("3")]),
    question("who ran", ["Bob", "Robert"], [context("1", "psg_id")]),
]
DPR = {
    "psgs_w100.tsv": 'id\ttext\ttitle\n1\tBob ran.\tBob\n2\t"Ann ""the voice"" sang."\tAnn\n3\tAnn, again.\tAnn\n',
    "biencoder-nq-train.json": json.dumps(DPR_TRAIN, indent=4),
    "biencoder-nq-dev.json": json.dumps([question("who sang it", ["Ann"], [context("3")])]),
    "nq-dev.qa.csv": "who sang it\t['Ann']\nwho knows\t['No one', \"it's unknown\"]\n",
    "nq-test.qa.csv": "who won\t['Cy']\n",
}


def test_dpr(tmp_path: Path):
    collection = load_collection(write(tmp_path, DPR))
    assert collection.corpus.to_dict() == {
        "id": ["1", "2", "3"],
        "title": ["Bob", "Ann", "Ann"],
        "text": ["Bob ran.", 'Ann "the voice" sang.', "Ann, again."],
    }
    assert collection.queries.to_dict() == {
        "id": ["train-0", "train-1", "dev-0", "dev-qa-1", "test-qa-0"],
        "text": ["who sang", "who ran", "who sang it", "who knows", "who won"],
        "answers": [["Ann"], ["Bob", "Robert"], ["Ann"], ["No one", "it's unknown"], ["Cy"]],
    }
    assert collection.splits == ["train", "dev"]
    assert qrels_of(collection, "train") == [("train-0", "2", 1), ("train-1", "1", 1)], (
        "the first positive is gold"
    )
    rows = {split: rows.tolist() for split, rows in collection.answer_splits.items()}
    assert rows == {"dev": [2, 3], "test": [4]}
    assert repr(collection).splitlines()[-1] == "  test: 1 query with answers"


def test_dpr_with_long_passages_and_other_ids(tmp_path: Path):
    """A field of csv has no more than 131,072 characters by default; DPR's results have `wiki:` before the id."""
    asked = [
        question("who", [], [context(0)], [context("wiki:1", "id"), context("1")]),
        question("what", [], [context("wiki:1", "psg_id")]),
    ]
    files = {
        "psgs_w100.tsv": "id\ttext\ttitle\n0\t" + "word " * 60_000 + '\tLong\n1\t"Bob\nran."\tBob\n',
        "nq-train.json": json.dumps(asked),
    }
    collection = load_collection(write(tmp_path, files), hard_negatives=True, dev_share=0)
    assert len(collection.corpus["text"][0]) == 300_000
    assert qrels_of(collection, "train") == [("train-0", "0", 1), ("train-0", "1", 0), ("train-1", "1", 1)]


def test_dpr_files_may_be_gzipped(tmp_path: Path):
    zipped = load_collection(write(tmp_path / "zipped", {f"{name}.gz": text for name, text in DPR.items()}))
    assert zipped.fingerprint == load_collection(write(tmp_path / "plain", DPR)).fingerprint


def test_dpr_with_all_positives_and_hard_negatives(tmp_path: Path):
    collection = load_collection(write(tmp_path, DPR), positives="all", hard_negatives=True)
    judged = [("train-0", "2", 1), ("train-0", "3", 1), ("train-0", "1", 0), ("train-1", "1", 1)]
    assert qrels_of(collection, "train") == judged, "a positive that is a hard negative as well is a positive"


def test_dpr_questions_without_a_positive_can_be_skipped(tmp_path: Path):
    files = DPR | {
        "biencoder-nq-train.json": json.dumps(
            [*DPR_TRAIN, question("lost", ["x"], [context("77")]), question("none", ["x"], [])], indent=1
        )
    }
    with pytest.raises(
        CollectionError, match=r"nq-train\.json:\d+: found question 'train-2' without a positive"
    ):
        load_collection(write(tmp_path, files))
    collection = load_collection(tmp_path, skip=["questions without a positive"])
    assert collection.skipped == {"questions without a positive": 2}
    assert len(collection.judgments("train")) == 2
    assert "train-2" in collection.queries["id"][:]


def test_dpr_survives_saving_as_beir(tmp_path: Path):
    collection = load_collection(write(tmp_path / "dpr", DPR))
    collection.save(tmp_path / "beir")
    assert load_collection(tmp_path / "beir").fingerprint == collection.fingerprint


@pytest.mark.parametrize("characters", [1, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 4])
def test_a_long_json_list_is_read_piece_by_piece(tmp_path: Path, monkeypatch, characters, indent):
    from hf_ar2.collections.readers import json_records

    monkeypatch.setattr(json_records, "_CHUNK_CHARACTERS", characters)
    items = [
        {"text": 'a "quoted" \\ é 漢 \n, ]', "numbers": [1, -2.5e10, True, None, []]},
        {"end": "x" * 200},
        {},
    ]
    file = tmp_path / "list.json"
    file.write_text(json.dumps(items, indent=indent), encoding="utf-8")
    found = list(json_records.json_records(file))
    assert [item for _, item in found] == items
    lines = file.read_text(encoding="utf-8").splitlines()
    assert all(lines[line - 1].strip().startswith(("{", "[")) for line, _ in found)


# The same content in every format


def test_equal_content_has_an_equal_fingerprint_in_every_format(tmp_path: Path):
    ms_marco = write(
        tmp_path / "m",
        {
            "collection.tsv": "1\tBob\tBob ran.\n2\t\tAnn sang.\n",
            "queries.train.tsv": "train-0\twho ran\n",
            "qrels.train.tsv": "train-0\t1\n",
        },
    )
    beir = write(
        tmp_path / "b",
        {
            "corpus.jsonl": json_lines(
                {"_id": "1", "title": "Bob", "text": "Bob ran."}, {"_id": "2", "text": "Ann sang."}
            ),
            "queries.jsonl": json_lines({"_id": "train-0", "text": "who ran"}),
            "qrels/train.tsv": "query-id\tcorpus-id\tscore\ntrain-0\t1\t1\n",
        },
    )
    dpr = write(
        tmp_path / "d",
        {
            "psgs_w100.tsv": "id\ttext\ttitle\n1\tBob ran.\tBob\n2\tAnn sang.\t\n",
            "x-train.json": json.dumps([question("who ran", ["Bob"], [context("1")])]),
        },
    )
    assert load_collection(ms_marco).fingerprint == load_collection(beir).fingerprint
    assert load_collection(dpr).corpus_fingerprint == load_collection(beir).corpus_fingerprint


# The development collections, where they are


@pytest.mark.parametrize(
    ("name", "passages", "queries"),
    [
        ("scifact", 5183, [648, 161, 300]),
        ("squad-small", 2650, [6000, 300, 500]),
        ("drcd-zh", 2000, [3243, 281, 3493]),
    ],
)
def test_development_collections(name, passages, queries, tmp_path: Path):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not beside the repository")
    collection = load_collection(SHARED / name)
    assert len(collection.corpus) == passages
    assert [len(collection.judgments(split)) for split in ("train", "dev", "test")] == queries
    collection.save(tmp_path)
    assert load_collection(tmp_path).fingerprint == collection.fingerprint
