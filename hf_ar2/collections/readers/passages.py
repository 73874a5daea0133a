"""Streams passages into an Arrow dataset, in memory or memory-mapped, and checks them."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_ar2.collections.problems import Problems
from hf_ar2.collections.tables import PASSAGE_FEATURES, arrow_column, content_hash, first_occurrences, rows_of
from hf_ar2.folders import temporary_folder
from hf_ar2.progress import progress_bar

# (line in the file, id, title, text) of each passage, and further columns.
PassageRows = Iterator[tuple]

_BATCH_ROWS = 10_000
_MAPPED_FROM_BYTES = 256 * 2**20


def read_corpus(
    rows: Callable[[Problems], PassageRows],
    sources: Sequence[Path],
    problems: Problems,
    cache_dir: str | Path | None,
    features: datasets.Features = PASSAGE_FEATURES,
) -> datasets.Dataset:
    """Streams passages into a dataset and checks ids and texts.

    A small corpus stays in memory. A larger one (256 MiB of sources or more), and any with a `cache_dir`, is written
    once as an Arrow file and memory-mapped, so that the processes of a machine share one copy. The file is keyed by
    path, size and modification time of the sources and by the causes to skip.

    Args:
        rows: Given a `Problems`, yields line, id, title and text of each passage, in order.
        sources: The files that the rows come from; messages name the first.
        cache_dir: Folder for the Arrow file; by default `hf_ar2` in the cache of `datasets`.
        features: The columns of the rows after the line.
    """
    stats = [(source.resolve(), source.stat()) for source in sources]
    if not cache_dir and sum(stat.st_size for _, stat in stats) < _MAPPED_FROM_BYTES:
        return _checked_passages(rows(problems), sources[0], problems, None, features)
    folder = Path(cache_dir) if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "hf_ar2"
    folder.mkdir(parents=True, exist_ok=True)
    made_from = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    key = content_hash(json.dumps(["corpus 2", made_from, sorted(problems.skip), list(features)]).encode())
    table, counts = folder / f"corpus-{key}.arrow", folder / f"corpus-{key}.json"
    if not table.is_file():
        with temporary_folder(folder) as temporary:
            own = Problems(problems.skip)
            _checked_passages(rows(own), sources[0], own, temporary, features)
            (temporary / "skipped.json").write_text(json.dumps(own.skipped))
            # The table is moved last, so that a table always has its counts.
            os.replace(temporary / "skipped.json", counts)
            os.replace(temporary / "checked.arrow", table)
    problems.skipped.update(json.loads(counts.read_text()))
    return datasets.Dataset.from_file(str(table))


def _checked_passages(
    rows: PassageRows, file: Path, problems: Problems, folder: Path | None, features: datasets.Features
) -> datasets.Dataset:
    """The valid passages as a dataset, in memory or in the folder's `checked.arrow`."""
    lines = array("q")
    passages = _write(_batches(rows, lines, file, features), folder and folder / "all.arrow", features)
    keep = check_passages(passages, lambda row: lines[row], file, problems)
    if not keep.all():
        tables = passages.with_format("arrow").iter(_BATCH_ROWS)
        masks = (pa.array(keep[at : at + _BATCH_ROWS]) for at in range(0, len(keep), _BATCH_ROWS))
        pairs = zip(tables, masks, strict=True)
        kept = (batch for table, mask in pairs for batch in table.filter(mask).to_batches())
        passages = _write(kept, folder and folder / "kept.arrow", features)
    if folder is not None:
        os.replace(folder / ("all.arrow" if keep.all() else "kept.arrow"), folder / "checked.arrow")
    return passages


def _batches(
    rows: PassageRows, lines: array, file: Path, features: datasets.Features
) -> Iterator[pa.RecordBatch]:
    rows = iter(progress_bar(rows, description=f"Reading {file.name}", unit=" passages", delay=3))
    while batch := list(islice(rows, _BATCH_ROWS)):
        numbers, *columns = zip(*batch, strict=True)
        lines.extend(numbers)
        arrays = [pa.array(column, type=pa.string()) for column in columns]
        yield pa.record_batch(arrays, schema=features.arrow_schema)


def _write(
    batches: Iterable[pa.RecordBatch], file: Path | None, features: datasets.Features
) -> datasets.Dataset:
    """Writes record batches to memory or to a file and opens them as a dataset."""
    sink = pa.BufferOutputStream() if file is None else pa.OSFile(str(file), "wb")
    with sink:
        with pa.ipc.new_stream(sink, features.arrow_schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        if file is None:
            return datasets.Dataset.from_buffer(sink.getvalue())
    return datasets.Dataset.from_file(str(file))


def check_passages(
    passages: datasets.Dataset, line_of: Callable[[int], int | None], file: str | Path, problems: Problems
) -> np.ndarray:
    """A bool mask `[N]` of the valid passages; the others are passed to `problems`.

    An id must not be empty or occur twice, and a passage must have a title or a text.
    """
    ids = arrow_column(passages, "id")
    columns = (arrow_column(passages, name) for name in ("title", "text"))
    blank = pc.and_(*(pc.equal(pc.utf8_trim_whitespace(column), "") for column in columns))
    empty, first = blank.to_numpy(), first_occurrences(ids)
    no_id = pc.equal(ids, "").to_numpy()
    wrong = np.flatnonzero(no_id | empty | ~first)
    earlier = rows_of(ids.take(wrong), ids)
    for row, before in zip(wrong.tolist(), earlier.tolist(), strict=True):
        line, shown = line_of(row), repr(ids[row].as_py())
        if no_id[row]:
            problems.malformed(file, line, "an empty passage id", "an id")
        elif empty[row]:
            problems.raise_or_skip(
                "empty passages", file, line, f"passage {shown} without title and text", "a text"
            )
        else:
            found = f"passage id {shown} a second time (first in line {line_of(before)})"
            problems.raise_or_skip("duplicate ids", file, line, found, "a unique id for each passage")
    return ~no_id & ~empty & first
