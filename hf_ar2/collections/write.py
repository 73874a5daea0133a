"""Writes a collection as a BEIR folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow.compute as pc

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import find_file, write_lines
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.tables import TRAINING_COLUMNS, arrow_column

QRELS_HEADER = ["query-id", "corpus-id", "score"]
# Subfolder with the state of an interrupted command, from which it resumes.
WORK = "work"
# The BEIR layout does not cover splits with answers and without judgments; their queries are listed in this subfolder.
ANSWER_SPLITS, ANSWER_SPLIT_HEADER = "answer_splits", ["query-id"]
# Nor training lists, see `Collection.lists`.
LISTS = "lists.parquet"
_WRITTEN_FIELDS = ("id", "title", "text", *TRAINING_COLUMNS.values(), "answers", "source")
_WRITTEN_ROWS = 10_000


def write_beir(collection: Collection, folder: Path) -> None:
    """Writes a collection as a BEIR folder, with its answers, answer splits and training lists.

    Each file is replaced atomically. Files of an older collection in the folder are replaced or removed.
    """
    if collection.members:
        names = ", ".join(collection.members)
        raise CollectionError(f"{folder}: expected one collection, found several ({names}); save each")
    check_writable(folder)
    for table, of in ((collection.corpus, "passage"), (collection.queries, "query")):
        unwritable = pc.index(pc.match_substring_regex(arrow_column(table, "id"), r"[\t\r\n]"), True).as_py()
        if unwritable >= 0:
            raise CollectionError(
                f"collection {collection.name!r}: found {of} id {table[unwritable]['id']!r}; expected ids "
                "without tabs and line breaks, which qrels cannot hold"
            )
    lists = {
        Path("qrels", f"{split}.tsv"): _lines(QRELS_HEADER, table, ["query_id", "passage_id", "relevance"])
        for split, table in collection.qrels.items()
    }
    for split, rows in collection.answer_splits.items():
        listed = collection.queries.select(rows)
        lists[Path(ANSWER_SPLITS, f"{split}.tsv")] = _lines(ANSWER_SPLIT_HEADER, listed, ["id"])
    write_lines(folder / "corpus.jsonl", _json_lines(collection.corpus))
    write_lines(folder / "queries.jsonl", _json_lines(collection.queries))
    for path, lines in lists.items():
        write_lines(folder / path, lines)
    if collection.lists is not None:
        partial = folder / f"{LISTS}.partial"
        collection.lists.to_parquet(partial)
        os.replace(partial, folder / LISTS)
    else:
        (folder / LISTS).unlink(missing_ok=True)
    old = [folder / "corpus.jsonl.gz", folder / "queries.jsonl.gz", *folder.glob("qrels/*.tsv*")]
    for file in [*old, *folder.glob(f"{ANSWER_SPLITS}/*.tsv*")]:
        if file.is_file() and file.relative_to(folder) not in lists:
            file.unlink()


def check_writable(folder: Path) -> None:
    """Checks that a folder is new, empty or a BEIR folder, apart from `WORK`; CollectionError if not."""
    if not folder.exists():
        return
    others = folder.is_dir() and any(path.name != WORK for path in folder.iterdir())
    if not folder.is_dir() or (others and not find_file(folder, "corpus.jsonl")):
        raise CollectionError(
            f"{folder}: found something that is not a BEIR folder (it has no corpus.jsonl); expected an "
            "empty or new folder, or an older collection to replace. Nothing was written; choose another folder"
        )


def _json_lines(table: datasets.Dataset) -> Iterator[str]:
    names = [name for name in _WRITTEN_FIELDS if name in table.column_names]
    for rows in table.iter(_WRITTEN_ROWS):
        for values in zip(*(rows[name] for name in names), strict=True):
            entry = dict(zip(names, values, strict=True))
            if not entry.get("source"):
                entry.pop("source", None)
            for shown, name in TRAINING_COLUMNS.items():
                if name in entry and entry[name] == entry[shown]:
                    del entry[name]
            yield json.dumps({"_id": entry.pop("id"), **entry}, ensure_ascii=False)


def _lines(header: list[str], table: datasets.Dataset, columns: list[str]) -> Iterator[str]:
    yield "\t".join(header)
    for rows in table.iter(_WRITTEN_ROWS):
        for values in zip(*(rows[name] for name in columns), strict=True):
            yield "\t".join(map(str, values))
