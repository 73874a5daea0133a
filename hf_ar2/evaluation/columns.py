"""Columns of run and qrels files, which white space separates, as arrays; errors name the line."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from hf_ar2.terminal import counted
from hf_ar2.whole_number import whole_number

# Blocks of this size stay in the CPU cache; reading blocks of 16 MB takes twice as long.
_CHARACTERS_PER_BLOCK = 1 << 16
_LONGEST_LINE = 1 << 20


def read_columns(
    path: str | os.PathLike[str], names: tuple[str, ...], kinds: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The columns in `kinds` (int, float or a dict from id to row) as arrays, and their lines' numbers as `line`.

    Blocks of lines are converted by calls that loop in C. If a block fails, its lines are checked to name the bad one.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*kinds, "line")}
    done = 0
    with opened(path) as file:
        for lines in _blocks(path, file):
            fields = list(map(str.split, lines))
            numbers = np.arange(done + 1, done + 1 + len(fields))
            done += len(fields)
            if not all(fields):
                numbers = numbers[np.fromiter(map(bool, fields), bool, len(fields))]
                fields = list(filter(None, fields))
            if not fields:
                continue
            try:
                for name, column in zip(names, zip(*fields, strict=True), strict=True):
                    if name in kinds:
                        parts[name].append(_converted(column, kinds[name]))
            except (ValueError, KeyError, OverflowError):
                _raise_at_line(path, fields, numbers, names, kinds)
                raise
            parts["line"].append(numbers)
    empty = {name: np.zeros(0, np.float64 if kinds.get(name) is float else np.int64) for name in parts}
    return {name: np.concatenate(blocks) if blocks else empty[name] for name, blocks in parts.items()}


def _blocks(path: str | os.PathLike[str], file: IO[str]) -> Iterator[list[str]]:
    """The lines of a file, many at a time; ValueError for a line so long that it may fill the memory."""
    rest = ""
    while block := file.read(_CHARACTERS_PER_BLOCK):
        *lines, rest = (rest + block).split("\n")
        if len(rest) > _LONGEST_LINE:
            raise ValueError(
                f"{path}: found a line of more than {_LONGEST_LINE:,} characters; expected a run or qrels"
            )
        yield lines
    if rest:
        yield [rest]


def _converted(column: tuple[str, ...], kind: Any) -> np.ndarray:
    convert = kind.__getitem__ if isinstance(kind, dict) else kind
    dtype = np.float64 if kind is float else np.int64
    try:
        return np.fromiter(map(convert, column), dtype, len(column))
    except ValueError:
        if kind is not int:
            raise
        return np.fromiter(map(whole_number, column), dtype, len(column))  # 1.0, which takes longer to read


def _raise_at_line(
    path: str | os.PathLike[str],
    fields: list[list[str]],
    numbers: np.ndarray,
    names: tuple[str, ...],
    kinds: dict[str, Any],
) -> None:
    for number, line in zip(numbers.tolist(), fields, strict=True):
        if len(line) != len(names):
            raise ValueError(
                f"{path}:{number}: found {counted(len(line), 'columns')}; expected {len(names)}: {' '.join(names)} "
                "(ids must not contain white space)"
            )
        for name, value in zip(names, line, strict=True):
            if name not in kinds:
                continue
            kind = kinds[name]
            try:
                _converted((value,), kind)
            except KeyError:
                raise ValueError(
                    f"{path}:{number}: unknown {name} id {value!r}: it is not among the collection's {len(kind)} "
                    f"{name} ids. Was the file made for this version of the collection?"
                ) from None
            except (ValueError, OverflowError):
                expected = "a whole number" if kind is int else "a number"
                raise ValueError(f"{path}:{number}: {name} is {value!r}; expected {expected}") from None


def check_no_repeats(
    path: str | os.PathLike[str],
    columns: dict[str, np.ndarray],
    verb: str,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
) -> None:
    """Raises ValueError where a query has a passage twice; `verb` is "retrieved" or "judged"."""
    query, passage = columns["query"], columns["passage"]
    key = query * len(passage_ids) + passage
    order = np.argsort(key, kind="stable")
    again = np.flatnonzero(key[order][1:] == key[order][:-1])
    if len(again):
        line = int(order[again + 1].min())
        raise ValueError(
            f"{path}:{columns['line'][line]}: passage {passage_ids[passage[line]]!r} is {verb} a second time for query "
            f"{query_ids[query[line]]!r}; expected each pair once"
        )


def rows_of_ids(ids: Sequence[str]) -> dict[str, int]:
    """Id -> row."""
    return dict(zip(ids, range(len(ids)), strict=True))


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """A UTF-8 file, plain or gzipped, without its byte order mark; ValueError if it is not UTF-8, or damaged."""
    compressed = str(path).endswith(".gz")
    opener = gzip.open if compressed else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)"
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip data ({error}); expected a complete file") from error
