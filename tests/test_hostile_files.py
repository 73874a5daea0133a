"""Files that are damaged, endless or nested without end are one clear error, soon and in little memory."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest

from hf_ar2.collections import CollectionError, load_collection
from hf_ar2.collections.readers.json_records import json_records
from hf_ar2.evaluation.columns import read_columns
from hf_ar2.evaluation.runs import read_run
from hf_ar2.files import read_json
from hf_ar2.search.runs import read_recipe


@pytest.fixture
def folder(tiny_collection, tmp_path):
    """A BEIR folder whose corpus is a gzip file."""
    tiny_collection.save(tmp_path / "data")
    corpus = tmp_path / "data" / "corpus.jsonl"
    (tmp_path / "data" / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    corpus.unlink()
    return tmp_path / "data"


def damaged(whole: bytes) -> dict[str, bytes]:
    """Kinds of damage to a gzip file."""
    middle = len(whole) // 2
    return {
        "cut": whole[:middle],
        "flipped": whole[:middle]
        + bytes(byte ^ 255 for byte in whole[middle : middle + 30])
        + whole[middle + 30 :],
        "no gzip": b"plain text\n" * 20,
        "checksum": whole[:-8] + b"\0" * 8,
    }


@pytest.mark.parametrize("kind", ["cut", "flipped", "no gzip", "checksum"])
def test_damaged_gzip_data_names_the_file(kind, folder, tmp_path):
    corpus = folder / "corpus.jsonl.gz"
    corpus.write_bytes(damaged(corpus.read_bytes())[kind])
    with pytest.raises(CollectionError, match=r"corpus.jsonl.gz:\d+: found"):
        load_collection(folder)
    run = tmp_path / "run.trec.gz"
    lines = "".join(f"q Q0 d{number} {number + 1} {-number} x\n" for number in range(100))
    run.write_bytes(damaged(gzip.compress(lines.encode()))[kind])
    with pytest.raises(
        ValueError, match=r"run.trec.gz: (damaged gzip data|not UTF-8)|run.trec.gz:\d+: "
    ) as raised:
        read_run(run, ["q"], [f"d{number}" for number in range(100)])
    assert "\n" not in str(raised.value)


def bomb(path, size: int, start: bytes = b"") -> None:
    piece = b"a" * (1 << 20)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(start)
        for _ in range(size // len(piece)):
            stream.write(piece)


def test_a_small_file_with_an_endless_line_does_not_fill_the_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ar2.collections.lines.LONGEST_LINE", 1 << 22)
    monkeypatch.setattr("hf_ar2.collections.readers.json_records._LONGEST_ITEM", 1 << 22)
    corpus, run, dpr = folder / "corpus.jsonl.gz", tmp_path / "run.trec.gz", tmp_path / "train.json.gz"
    bomb(corpus, 1 << 26)
    bomb(run, 1 << 26)
    bomb(dpr, 1 << 26, b'["')
    tracemalloc.start()
    with pytest.raises(CollectionError, match="corpus.jsonl.gz:1: found a line of more than"):
        load_collection(folder)
    with pytest.raises(ValueError, match="run.trec.gz:1: found 1 column"):
        read_run(run, ["q"], ["d"])
    with pytest.raises(ValueError, match="run.trec.gz: found a line of more than"):
        read_columns(run, ("query", "passage"), {})
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
    with pytest.raises(CollectionError, match="train.json.gz:1: found an item of more than"):
        list(json_records(dpr))


def test_json_that_is_nested_without_end(folder, tmp_path):
    deep = "[" * 100_000
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(f'{{"_id": {deep}\n'.encode()))
    with pytest.raises(
        CollectionError, match=r"corpus.jsonl.gz:1: found invalid JSON \(maximum recursion depth"
    ):
        load_collection(folder)
    (tmp_path / "train.json").write_text(deep)
    with pytest.raises(CollectionError, match="train.json:1: found JSON that is nested too deeply"):
        list(json_records(tmp_path / "train.json"))
    with pytest.raises(ValueError, match="train.json: not a complete JSON file"):
        read_json(tmp_path / "train.json")


@pytest.mark.parametrize(
    "content", [b"\x00\x01\x02\xff", b"\x7fELF\x02", b"&a [*a]", b"[" * 1000, b"- a", b""]
)
def test_a_run_folder_whose_recipe_is_none(content, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="recipe.yaml: ") as raised:
        read_recipe(tmp_path)
    assert "\n" not in str(raised.value)
