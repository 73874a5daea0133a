"""Streams the items of a large JSON list without loading the whole file."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from hf_ar2.collections.lines import DAMAGED_GZIP
from hf_ar2.collections.problems import CollectionError

_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_CHUNK_CHARACTERS = 2**22
_LONGEST_ITEM = 2**28
# A literal or escape that is cut is at most this long: an error nearer to the end of the buffer may be due to the cut.
_CUT_CHARACTERS = 32


def json_records(file: Path) -> Iterator[tuple[int, Any]]:
    """Yields the line on which each item of a JSON list begins (from 1), and the item; the file may be gzipped."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig") as stream:
        buffer = _Buffer(file, stream)
        if buffer.next_character() != "[":
            raise buffer.error(f"{buffer.next_character()!r}", "a list, which begins with '['")
        buffer.advance(1)
        if buffer.next_character() == "]":
            return
        while True:
            buffer.next_character()
            yield buffer.line, buffer.decode()
            separator = buffer.next_character()
            buffer.advance(1)
            if separator == "]":
                return
            if separator != ",":
                raise buffer.error(
                    f"{separator!r} after an item" if separator else "the end of the file", "',' or ']'"
                )


class _Buffer:
    """The text that was read and not yet decoded, and the line on which it begins."""

    def __init__(self, file: Path, stream: TextIO):
        self.file, self.stream = file, stream
        self.text, self.start, self.line = "", 0, 1
        self.ended = False

    def fill(self) -> None:
        """Reads at least as much as is left, so that a very long item takes few attempts."""
        left = self.text[self.start :]
        if len(left) > _LONGEST_ITEM:
            raise self.error(f"an item of more than {_LONGEST_ITEM:,} characters", "a list of objects")
        try:
            more = self.stream.read(max(_CHUNK_CHARACTERS, len(left)))
        except (UnicodeDecodeError, *DAMAGED_GZIP) as error:
            raise self.error(f"undecodable data further on ({error})", "UTF-8 text") from error
        self.text, self.start, self.ended = left + more, 0, not more

    def advance(self, count: int) -> None:
        self.line += self.text.count("\n", self.start, self.start + count)
        self.start += count

    def next_character(self) -> str:
        """Skips white space and returns the next character, or "" at the end."""
        while not (found := _NOT_BLANK.search(self.text, self.start)) and not self.ended:
            self.advance(len(self.text) - self.start)
            self.fill()
        self.advance((found.start() if found else len(self.text)) - self.start)
        return self.text[self.start : self.start + 1]

    def decode(self) -> Any:
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.start)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - _CUT_CHARACTERS or error.msg.startswith("Unterminated")
                if cut and not self.ended:
                    self.fill()
                    continue
                self.advance(error.pos - self.start)
                raise self.error(f"invalid JSON ({error.msg})", "a list of objects") from error
            except RecursionError as error:
                raise self.error("JSON that is nested too deeply", "a list of objects") from error
            self.advance(end - self.start)
            return value

    def error(self, found: str, expected: str) -> CollectionError:
        return CollectionError(
            f"{self.file}:{self.line}: found {found}; expected {expected}. Correct the file"
        )
