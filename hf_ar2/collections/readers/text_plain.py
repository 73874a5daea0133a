"""Sections of plain text: headings are underlined, numbered, or in capitals."""

from __future__ import annotations

import re
from collections import Counter

from hf_ar2.collections.readers.text_faq import begins_entry, begins_question, ends_question
from hf_ar2.collections.readers.text_sections import COLUMNS, Outline, Section, paragraphs_of, words_in

_MAX_WORDS = 30
_RULE = re.compile(r"\s*([=\-~*#^+])\1{2,}\s*")
_NUMBERED = re.compile(
    r"\s*((?:chapter|section|part|appendix)\s+\w+[.:]?|\(?\d+(?:\.\d+)*[.)]?|[A-Z][.)]|[IVX]+[.)])\s+(?=\S*[^\W\d_]{2})",
    re.IGNORECASE,
)
_PAGE = re.compile(r".*\[page \d+\]\s*", re.IGNORECASE)
_OF_CHANGE = re.compile(r"@|\d{4}-\d\d|urgency=")  # the first line of a change log is not a title
_OVERSTRUCK = re.compile(".\b")


def plain_sections(lines: list[str], is_faq: bool = False) -> list[Section]:
    """The sections of a plain text file.

    A heading is underlined; or numbered and between empty lines; or in capitals, above text that is indented or follows
    an empty line. The first line is the title if it is short and an empty line follows. Page headers and footers are
    removed. If the file `is_faq`, a question ends at its question mark even if no empty line follows.
    """
    lines = _without_page_marks([_OVERSTRUCK.sub("", line).expandtabs() for line in lines])
    indents = Counter(len(line) - len(line.lstrip()) for line in lines if words_in(line) > 4)
    margin = indents.most_common(1)[0][0] if indents else 0
    outline = Outline()
    rules: list[str] = []  # underlining characters in order of appearance: the index is the level
    groups = _groups(lines, is_faq)
    for number, group in enumerate(groups):
        following = groups[number + 1] if number + 1 < len(groups) else []
        while group:
            level, text, used = _heading(group, following, margin, rules)
            if not used and number == 0 and len(group) == 1 and following and _is_title(group[0]):
                if not _OF_CHANGE.search(group[0]):
                    level, text, used = 0, group[0], 1
            if not used:
                # An underlined title may follow text without an empty line.
                end = next((at for at in range(1, len(group)) if _underlined(group[at : at + 3])), len(group))
                outline.add(*paragraphs_of(group[:end], margin))
                group = group[end:]
                continue
            outline.heading(level, text.strip())
            group = group[used:]
    return outline.sections


def _groups(lines: list[str], is_faq: bool) -> list[list[str]]:
    """Lines between empty lines; in an FAQ also questions and answers."""
    groups: list[list[str]] = [[]]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if not line.strip():
            groups.append([])
            continue
        if is_faq and begins_entry(line):
            groups.append([])
        groups[-1].append(line)
        goes_on = ends_question(below) and not begins_question(below)
        if is_faq and ends_question(line) and begins_question(groups[-1][0]) and not goes_on:
            groups.append([])
    return [group for group in groups if group]


def _heading(group: list[str], following: list[str], margin: int, rules: list[str]) -> tuple[int, str, int]:
    """Level, text and number of lines of the heading that a group begins with; 0 lines for none."""
    if found := _underlined(group):
        text, rule, used = found
        if rule not in rules:
            rules.append(rule)
        return 1 + rules.index(rule), text, used
    line = group[0]
    indent = len(line) - len(line.lstrip())
    text_below = len(group) > 1 and len(group[1]) - len(group[1].lstrip()) > indent
    if indent > margin or COLUMNS.search(line.strip()) or words_in(line) > 12:
        return 0, "", 0
    if (text_below or (len(group) == 1 and following)) and _in_capitals(line):
        return 10, line, 1
    numbered = _NUMBERED.match(line)
    alone = len(group) == 1 and following and not _NUMBERED.match(following[0])
    if numbered and alone and line.rstrip()[-1] not in ".,;:)" and _is_title(line[numbered.end() :]):
        return 20 + numbered[1].rstrip(".").count("."), line, 1
    return 0, "", 0


def _underlined(group: list[str]) -> tuple[str, str, int] | None:
    """Title, underlining and number of lines."""
    for start in (0, 1):  # there may be a line above the title too
        if len(group) < start + 2 or (start and not _RULE.fullmatch(group[0])):
            continue
        title, rule = group[start].strip(), _RULE.fullmatch(group[start + 1])
        if rule and not _RULE.fullmatch(title) and any(map(str.isalpha, title)):
            length = len(group[start + 1].strip())
            fits = 0.75 * len(title) <= length and (start or length <= len(title) + 8)
            fits = fits or (rule[1] == "=" and len(group) == 2)  # a short rule below a single line
            if fits and _is_title(title.rstrip("!. ")) and not COLUMNS.search(title) and "|" not in title:
                return title, f"{start}{rule[1]}", start + 2
    return None


def _in_capitals(line: str) -> bool:
    text = line.strip()
    letters = sum(map(str.isalpha, text))
    return text.isupper() and letters >= 4 and letters > 0.6 * len(text) and text[-1] not in ".,;!"


def _is_title(line: str) -> bool:
    text = line.strip() or "."
    return (
        0 < words_in(text) <= _MAX_WORDS
        and text[-1] not in ".!。！,;"
        and (text[0].isalnum() or text[0] in "\"'`([¿¡")
    )


def _without_page_marks(lines: list[str]) -> list[str]:
    """The lines without page headers and footers: lines that recur next to page breaks, apart from numbers."""
    breaks = [number for number, line in enumerate(lines) if "\f" in line]
    candidates: list[int] = []
    for at in breaks:
        before = (number for number in range(at - 1, max(at - 6, -1), -1) if lines[number].strip())
        after = (number for number in range(at, min(at + 6, len(lines))) if lines[number].strip("\f \t"))
        candidates += [number for number in (next(before, None), next(after, None)) if number is not None]
    marks = Counter(_masked(lines[number]) for number in candidates)
    recurring = {number for number in candidates if marks[_masked(lines[number])] > 1}
    return [
        "" if number in recurring or _PAGE.fullmatch(line) else line.replace("\f", "")
        for number, line in enumerate(lines)
    ]


def _masked(line: str) -> str:
    return re.sub(r"\d+", "#", line.strip("\f \t"))
