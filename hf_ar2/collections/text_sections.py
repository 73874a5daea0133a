"""Sections and passages of text and Markdown files."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hf_ar2.collections.lines import numbered_lines

PASSAGE_WORDS = 100
MIN_HEADING_WORDS, MAX_HEADING_WORDS = 2, 30

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")  # makes a heading of the line above it
_FRONT_TITLE = re.compile(r"""title:[ \t]*["']?(.*?)["']?[ \t]*""")
# Chinese and Japanese have no spaces: there a character is a word, and a sentence ends without one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])(\s+)|(?<=[。！？])(\s*)")


@dataclass
class Section:
    """What stands under one heading, or before a file's first.

    Attributes:
        heading: the heading, empty where there is none.
        above: the headings that it stands under, outermost first.
        line: the heading's line, from 1.
        paragraphs: their texts, each on one line.

    Example:
        >>> section = Section("How bees dance", above=("Bees",), line=7, paragraphs=["In circles."])
        >>> " > ".join([*section.above, section.heading])
        'Bees > How bees dance'
    """

    heading: str = ""
    above: tuple[str, ...] = ()
    line: int = 1
    paragraphs: list[str] = field(default_factory=list)


def read_sections(file: Path, dropped: Counter[str] | None = None) -> list[Section]:
    """The sections of a file, those without paragraphs among them.

    Args:
        file: one that ends in .md is Markdown, any other plain text.
        dropped: counts lines of front matter other than its title.

    Raises:
        CollectionError: a line is not UTF-8; the message names it.

    Example:
        >>> _ = Path("bees.md").write_text("Bees\\n====\\n\\nThey fly.\\n\\n## How bees dance\\n\\nIn circles.")
        >>> [(section.heading, section.above, section.paragraphs) for section in read_sections(Path("bees.md"))[1:]]
        [('Bees', (), ['They fly.']), ('How bees dance', ('Bees',), ['In circles.'])]
    """
    lines = [(number, line.rstrip("\r\n")) for number, line in numbered_lines(file)]
    if file.suffix.lower() == ".md":
        return _markdown_sections(lines, Counter() if dropped is None else dropped)
    if len(lines) > 2 and not lines[1][1].strip():
        first = lines[0][1].strip()
        if 0 < words_in(first) <= MAX_HEADING_WORDS and first[-1] not in ".!。！":
            return [Section(first, (), 1, _paragraphs(lines[2:]))]
    return [Section("", (), 1, _paragraphs(lines))]


def _markdown_sections(lines: list[tuple[int, str]], dropped: Counter[str]) -> list[Section]:
    sections = [Section()]
    outline: list[tuple[int, str]] = []  # level and text of the headings that are open
    body: list[tuple[int, str]] = []
    fence = ""

    def begin(level: int, text: str, number: int) -> None:
        nonlocal outline, body
        sections[-1].paragraphs, body = _paragraphs(body), []
        # A page's title often stands in its front matter and again as its first heading.
        outline = [entry for entry in outline if entry[0] < level and entry[1] != text]
        sections.append(Section(text, tuple(above for _, above in outline), number))
        outline.append((level, text))

    front = _front_matter(lines)
    for number, line in lines[:front]:
        if title := _FRONT_TITLE.fullmatch(line):
            begin(0, title[1], number)
        elif number not in (1, front):
            dropped["lines of front matter"] += 1
    for number, line in lines[front:]:
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        plain = not fence and not mark
        underline = _UNDERLINE.fullmatch(line) if plain and _ends_in_one_line(body) else None
        if plain and (heading := _HEADING.fullmatch(line)):
            begin(len(heading[1]), heading[2], number)
        elif underline:
            above, text = body.pop()
            begin(1 if underline[1][0] == "=" else 2, text.strip(), above)
        else:
            body.append((number, line))
    sections[-1].paragraphs = _paragraphs(body)
    return sections


def _front_matter(lines: list[tuple[int, str]]) -> int:
    """How many lines it has: those from a first `---` to the next; 0 where there is none."""
    if not lines or lines[0][1].rstrip() != "---":
        return 0
    return next((number for number, line in lines[1:] if line.rstrip() == "---"), 0)


def _ends_in_one_line(body: list[tuple[int, str]]) -> bool:
    """Whether the last paragraph is a single line and no list, quotation or table: what an underline can be of."""
    if not body or not body[-1][1].strip() or re.match(r"\s*([-*+>|]|\d+[.)]|    )", body[-1][1]):
        return False
    return len(body) == 1 or not body[-2][1].strip()


def _paragraphs(lines: list[tuple[int, str]]) -> list[str]:
    """What stands between empty lines, white space made one space."""
    text = "\n".join(line for _, line in lines)
    return [" ".join(part.split()) for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def words_in(text: str) -> int:
    """Words of a text, a Chinese or Japanese character counted as one.

    Example:
        >>> words_in("How bees dance"), words_in("蜜蜂怎样跳舞")
        (3, 6)
    """
    return len(_WORD.findall(text))


def grouped(paragraphs: list[str], words: int = PASSAGE_WORDS) -> list[str]:
    """Paragraphs put together into passages of about so many words.

    A paragraph half as long again is divided at the ends of sentences, and a sentence as long as that between words.

    Example:
        >>> grouped(["one two", "three four", "five"], words=4)
        ['one two\\nthree four', 'five']
        >>> grouped(["One two. Three four five. Six seven."], words=4)
        ['One two.', 'Three four five.', 'Six seven.']
    """
    pieces: list[tuple[str, str]] = []  # what stands before it, and the piece
    for paragraph in paragraphs:
        gap = "\n"
        if words_in(paragraph) <= 1.5 * words:
            pieces.append((gap, paragraph))
            continue
        start = 0
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
    passages: list[str] = []
    length = 0
    for gap, piece in pieces:
        added = words_in(piece)
        if passages and length + added <= words:
            passages[-1] += gap + piece
            length += added
        else:
            passages.append(piece)
            length = added
    return passages
