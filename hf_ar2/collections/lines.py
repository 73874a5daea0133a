"""Reads text files line by line, plain or gzipped, with line numbers for messages."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.files import write_text
from hf_ar2.terminal import counted

# A small gzip file can hold a line that fills the memory.
LONGEST_LINE = 1 << 26
# Raised by incomplete or damaged gzip data.
DAMAGED_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)


def find_file(folder: Path, *names: str) -> Path | None:
    """The first of these files that is in the folder, plain or gzipped (`.gz`)."""
    candidates = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    return next((file for file in candidates if file.is_file()), None)


def find_splits(folder: Path, pattern: str) -> dict[str, Path]:
    """Split -> file, for the files that match `pattern`, whose `*` is the split; plain or gzipped."""
    before, after = pattern.split("*")
    found: dict[str, Path] = {}
    for ending in ("", ".gz"):
        for file in sorted(folder.glob(pattern + ending)):
            split = file.name[len(Path(before).name) if before else 0 : len(file.name) - len(after + ending)]
            if split in found:
                raise CollectionError(
                    f"{file}: found a second file of split {split!r}; keep this or {found[split]}"
                )
            found[split] = file
    return found


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text, with its line ending, of every line of a UTF-8 file, plain or gzipped."""
    line = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
            for line, raw in enumerate(iter(partial(stream.readline, LONGEST_LINE + 1), b""), 1):
                if len(raw) > LONGEST_LINE:
                    raise CollectionError(
                        f"{file}:{line}: found a line of more than {LONGEST_LINE:,} bytes; expected one entry per line"
                    )
                yield line, raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise CollectionError(
            f"{file}:{line}: found bytes that are not UTF-8 ({error.reason} at byte {error.start} of the "
            "line); expected UTF-8 text. Convert the file, for example with iconv"
        ) from error
    except DAMAGED_GZIP as error:
        raise CollectionError(
            f"{file}:{line}: found damaged gzip data ({error}); expected a complete file"
        ) from error


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Writes a UTF-8 file atomically; the lines have no line endings."""
    write_text(file, (f"{line}\n" for line in lines))


def tab_separated(
    file: Path, columns: int, problems: Problems, header: list[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line that is not blank, after the header if there should be one."""
    for line, text in numbered_lines(file):
        fields = text.rstrip("\r\n").split("\t")
        if line == 1 and header is not None:
            if fields != header:
                raise CollectionError(
                    f"{file}:1: found the columns {fields}; expected the header {header}, separated by tabs"
                )
        elif len(fields) == columns:
            yield line, fields
        elif fields != [""]:
            found = counted(len(fields), "tab-separated columns")
            problems.malformed(file, line, found, str(columns), _shown(text))


def csv_rows(file: Path, problems: Problems, delimiter: str = "\t") -> Iterator[tuple[int, list[str]]]:
    """The first line and the fields of each record of a file of separated fields, which may be quoted."""
    csv.field_size_limit(max(LONGEST_LINE, csv.field_size_limit()))
    reader = csv.reader((text for _, text in numbered_lines(file)), delimiter=delimiter)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.malformed(file, line, f"an unterminated field ({error})", "closed quotes")
            continue
        if fields:
            yield line, fields


def json_lines(file: Path, problems: Problems) -> Iterator[tuple[int, dict]]:
    """Line number and object of each line that is not blank."""
    for line, text in numbered_lines(file):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
            # An escaped half of a surrogate pair is valid JSON but invalid text; Arrow would not name the line.
            if "\\ud" in text.lower():
                json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            problems.malformed(file, line, f"invalid JSON ({error})", "one JSON object", _shown(text))
            continue
        if isinstance(value, dict):
            yield line, value
        else:
            problems.malformed(file, line, f"a JSON {type(value).__name__}", "one JSON object")


def _shown(text: str) -> str:
    """The beginning of a line, for a message."""
    text = text.rstrip("\r\n")
    return f"The line is {text[:80]!r}{' (cut)' if len(text) > 80 else ''}."
