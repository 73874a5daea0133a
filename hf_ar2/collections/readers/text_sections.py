"""Sections of a document, whatever its format, and the passages they are cut into."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

PASSAGE_WORDS = 100

# Chinese and Japanese have no spaces: there a character is a word, and a sentence ends without one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])(\s+)|(?<=[。！？])(\s*)")
_LIST_ITEM = re.compile(r"\s*([-*+•·o]|\(?(\d{1,3}|[a-zA-Z]|#)[.)])\s+\S")
_COLUMNS = re.compile(r"\S(\t| {3,})\S")


@dataclass
class Section:
    """What stands under one heading, or before a file's first.

    Attributes:
        heading: the heading, empty where there is none.
        above: the headings that it stands under, outermost first.
        paragraphs: their texts. Prose is one line; code, lists and tables keep their lines.
    """

    heading: str = ""
    above: tuple[str, ...] = ()
    paragraphs: list[str] = field(default_factory=list)

    @property
    def path(self) -> tuple[str, ...]:
        """The headings above and its own."""
        return (*self.above, self.heading) if self.heading else self.above


class Outline:
    """Collects the sections of a file as a reader comes to their headings and paragraphs.

    Attributes:
        sections: what was found, those without paragraphs among them.
    """

    def __init__(self) -> None:
        self.sections = [Section()]
        self._open: list[tuple[int, str]] = []  # level and text of the headings that are open

    def heading(self, level: int, text: str) -> None:
        """Begin a section; it closes those of the same level and of deeper ones."""
        text = " ".join(text.split()).rstrip(":").rstrip()
        # A page's title often stands in its front matter and again as its first heading.
        self._open = [entry for entry in self._open if entry[0] < level and entry[1] != text]
        self.sections.append(Section(text, tuple(above for _, above in self._open)))
        if text:
            self._open.append((level, text))

    def add(self, *paragraphs: str) -> None:
        """Add paragraphs to the last section; those without a letter or digit say nothing."""
        self.sections[-1].paragraphs += [text for text in paragraphs if any(map(str.isalnum, text))]


def paragraphs_of(lines: list[str], margin: int = 0) -> list[str]:
    """What stands between empty lines: prose as one line; lists, tables and what is indented with their lines.

    Args:
        lines: without line endings.
        margin: columns that every line may be indented by; more makes code of it.
    """
    found, group = [], []
    for line in [*lines, ""]:
        if line.strip():
            group.append(line.expandtabs())
        elif group:
            found.append(_paragraph(group, margin))
            group = []
    return found


def _paragraph(lines: list[str], margin: int) -> str:
    indents = [len(line) - len(line.lstrip()) for line in lines]
    items = [bool(_LIST_ITEM.match(line)) for line in lines]
    rows = sum(bool(_COLUMNS.search(line.strip())) or "|" in line for line in lines)
    if min(indents) > margin + 1:
        return block_of(lines)
    if items[0] or sum(items) > 1 or (len(lines) > 1 and rows > len(lines) / 2):
        return block_of(line for line in lines if any(map(str.isalnum, line)))  # rules of tables say nothing
    return " ".join(" ".join(lines).split())


def block_of(lines: Iterable[str]) -> str:
    """Lines that stay lines, with their common indentation removed."""
    return textwrap.dedent("\n".join(line.rstrip() for line in lines)).strip("\n")


def words_in(text: str) -> int:
    """Words of a text, a Chinese or Japanese character counted as one."""
    return len(_WORD.findall(text))


def grouped(paragraphs: list[str], words: int = PASSAGE_WORDS) -> list[str]:
    """Paragraphs put together into passages of about so many words.

    A paragraph half as long again is divided: prose at the ends of sentences, other text at the ends of lines, and a
    sentence or line that is still as long as that between words.
    """
    passages: list[str] = []
    length = 0
    for gap, piece in _pieces(paragraphs, words):
        added = words_in(piece)
        if passages and length + added <= words:
            passages[-1] += gap + piece
            length += added
        else:
            passages.append(piece)
            length = added
    return passages


def _pieces(paragraphs: list[str], words: int) -> list[tuple[str, str]]:
    """What stands before a piece, and the piece; what is longer than a passage comes in several."""
    pieces: list[tuple[str, str]] = []
    for paragraph in paragraphs:
        if words_in(paragraph) <= 1.5 * words:
            pieces.append(("\n", paragraph))
        elif "\n" in paragraph:
            for line in paragraph.split("\n"):
                pieces += _pieces_of_prose(line, words) if line.strip() else []
        else:
            pieces += _pieces_of_prose(paragraph, words)
    return pieces


def _pieces_of_prose(paragraph: str, words: int) -> list[tuple[str, str]]:
    if words_in(paragraph) <= 1.5 * words and "\n" not in paragraph and paragraph[:1].isspace():
        return [("\n", paragraph)]  # a line of code keeps its indentation
    pieces: list[tuple[str, str]] = []
    gap, start = "\n", 0
    for end in [*_SENTENCE_END.finditer(paragraph), None]:
        sentence = paragraph[start : end.start() if end else None]
        spans = [word.span() for word in _WORD.finditer(sentence)]
        step = words if len(spans) > 1.5 * words else max(1, len(spans))
        for first in range(0, len(spans), step):
            piece = sentence[spans[first][0] : spans[min(first + step, len(spans)) - 1][1]]
            pieces.append((gap, piece))
            gap = " " if sentence[spans[first][1] :][:1].isspace() else ""
        if end:
            gap, start = end[0][:1], end.end()
    return pieces
