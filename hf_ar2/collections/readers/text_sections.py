"""Sections of a document in any format, and the passages they are divided into."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

PASSAGE_WORDS = 100
_LONGEST = 1.5 * PASSAGE_WORDS  # a longer paragraph is divided

# Chinese and Japanese have no spaces: each character counts as a word, and no space follows a sentence.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
# Prose has a sign for about every fifth word; code has many more, and models read each part and sign as a token.
_PART = re.compile(r"[^\W_]+|_+|[^\w\s]+")
_PARTS_PER_WORD = 1.2
_SENTENCE_END = re.compile(r"(?<=[.!?])(\s+)|(?<=[。！？])(\s*)")
_LIST_ITEM = re.compile(r"\s*([-*+•·o]|\(?(\d{1,3}|[a-zA-Z]|#)[.)])\s+\S")
_CONTENTS = {"contents", "table of contents", "on this page", "in this article"}
_LEAD_IN_WORDS = 30
COLUMNS = re.compile(r"\S(\t| {3,})\S")


@dataclass
class Section:
    """The text under one heading, or before the first."""

    heading: str = ""
    above: tuple[str, ...] = ()  # the headings of the enclosing sections, outermost first
    # Prose is one line; code, lists and tables keep their lines.
    paragraphs: list[str] = field(default_factory=list)

    @property
    def path(self) -> tuple[str, ...]:
        """The headings above and its own."""
        return (*self.above, self.heading) if self.heading else self.above


class Outline:
    """Collects sections, including those without paragraphs, from the headings and paragraphs of a file."""

    def __init__(self) -> None:
        self.sections = [Section()]
        self._open: list[tuple[int, str]] = []  # level and text of the enclosing headings

    def heading(self, level: int, text: str) -> None:
        """Begin a section; it ends those of the same and of deeper levels."""
        text = " ".join(text.split()).rstrip(":").rstrip()
        # A page's title is often in its front matter and again in its first heading.
        self._open = [entry for entry in self._open if entry[0] < level and entry[1] != text]
        self.sections.append(Section(text, tuple(above for _, above in self._open)))
        if text and text.casefold() not in _CONTENTS:  # what follows is not part of the contents
            self._open.append((level, text))

    def add(self, *paragraphs: str) -> None:
        """Add paragraphs to the last section, except those without a letter or digit."""
        self.sections[-1].paragraphs += [text for text in paragraphs if any(map(str.isalnum, text))]


def paragraphs_of(lines: list[str], margin: int = 0) -> list[str]:
    """The text between empty lines: prose as one line; lists, tables and indented text keep their lines.

    `margin` is the indentation of normal text in columns; a paragraph indented further is code.
    """
    expanded = [line.expandtabs() for line in lines]
    groups = groupby(expanded, key=lambda line: bool(line.strip()))
    return [_paragraph(list(group), margin) for has_text, group in groups if has_text]


def _paragraph(lines: list[str], margin: int) -> str:
    indents = [len(line) - len(line.lstrip()) for line in lines]
    items = [bool(_LIST_ITEM.match(line)) for line in lines]
    rows = sum(bool(COLUMNS.search(line.strip())) or "|" in line for line in lines)
    if min(indents) > margin + 1:
        return block_of(lines)
    if items[0] and rows <= len(lines) / 2:
        lines = _unwrapped(lines, items)
    if items[0] or sum(items) > 1 or (len(lines) > 1 and rows > len(lines) / 2):
        return block_of(line for line in lines if any(map(str.isalnum, line)))  # without the rules of tables
    return " ".join(" ".join(lines).split())


def _unwrapped(lines: list[str], items: list[bool]) -> list[str]:
    """The lines of a list with one line for each item; lines indented further than its text are code and stay."""
    found: list[str] = []
    column, ended_in_code = 0, False
    for line, begins in zip(lines, items, strict=True):
        if begins and (item := _LIST_ITEM.match(line)):
            column = item.end() - 1
        is_code = not begins and len(line) - len(line.lstrip()) > column + 1
        if begins or is_code or ended_in_code:
            found.append(line.rstrip())
        else:
            found[-1] += f" {line.strip()}"
        ended_in_code = is_code
    return found


def block_of(lines: Iterable[str]) -> str:
    """Lines joined as they are, without their common indentation."""
    return textwrap.dedent("\n".join(line.rstrip() for line in lines)).strip("\n")


def words_in(text: str) -> int:
    """Number of words; each Chinese or Japanese character counts as one."""
    return len(_WORD.findall(text))


def _size(text: str) -> int:
    """Number of words; more in code, whose names have several parts with signs between them."""
    return max(words_in(text), round(len(_PART.findall(text)) / _PARTS_PER_WORD))


def grouped(paragraphs: list[str]) -> list[str]:
    """Groups paragraphs into passages of about `PASSAGE_WORDS` words; code, whose words have more parts, into fewer.

    A paragraph more than 1.5 times as long is divided: prose after sentences, other text after lines, and a sentence or
    line that is still too long between words. A passage does not end with what introduces the next one: a short piece
    that ends with a colon or a question mark.
    """
    passages: list[list[tuple[str, str]]] = []
    length = 0
    for gap, piece in _pieces(paragraphs):
        added = _size(piece)
        if passages and length + added <= PASSAGE_WORDS:
            passages[-1].append((gap, piece))
            length += added
            continue
        lead_in = [passages[-1].pop()] if passages and _leads_in(passages[-1]) else []
        passages.append([*lead_in, (gap, piece)])
        length = added + sum(_size(text) for _, text in lead_in)
    return [pieces[0][1] + "".join(gap + piece for gap, piece in pieces[1:]) for pieces in passages]


def _leads_in(pieces: list[tuple[str, str]]) -> bool:
    """Whether a passage ends with a piece that belongs to the next one."""
    last = pieces[-1][1].rstrip()
    return len(pieces) > 1 and last.endswith((":", "?", "：", "？")) and words_in(last) <= _LEAD_IN_WORDS


def _pieces(paragraphs: list[str]) -> list[tuple[str, str]]:
    """(separator before the piece, piece); a paragraph that is too long gives several pieces."""
    pieces: list[tuple[str, str]] = []
    for paragraph in paragraphs:
        if _size(paragraph) <= _LONGEST:
            pieces.append(("\n", paragraph))
        elif "\n" in paragraph:
            for line in paragraph.split("\n"):
                pieces += _pieces_of_prose(line) if line.strip() else []
        else:
            pieces += _pieces_of_prose(paragraph)
    return pieces


def _pieces_of_prose(paragraph: str) -> list[tuple[str, str]]:
    if words_in(paragraph) <= _LONGEST and "\n" not in paragraph and paragraph[:1].isspace():
        return [("\n", paragraph)]  # a line of code keeps its indentation
    pieces: list[tuple[str, str]] = []
    gap, start = "\n", 0
    for end in [*_SENTENCE_END.finditer(paragraph), None]:
        sentence = paragraph[start : end.start() if end else None]
        spans = [word.span() for word in _WORD.finditer(sentence)]
        step = PASSAGE_WORDS if len(spans) > _LONGEST else max(1, len(spans))
        for first in range(0, len(spans), step):
            piece = sentence[spans[first][0] : spans[min(first + step, len(spans)) - 1][1]]
            pieces.append((gap, piece))
            gap = " " if sentence[spans[first][1] :][:1].isspace() else ""
        if end:
            gap, start = end[0][:1], end.end()
    return pieces
