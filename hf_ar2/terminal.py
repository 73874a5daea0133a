"""Texts that anybody may have written, and counts, as they are printed."""

from __future__ import annotations

import re
import unicodedata

# Characters that change the direction of a text could make it look like another one; the last two end lines.
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def visible(text: str) -> str:
    """One line: control and direction characters as escapes, tabs and line ends as spaces.

    Terminals take control characters as commands.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " "
        if character in "\t\r\n"
        else character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs") or _TURNING.match(character)
        else character
        for character in text
    )


def visible_lines(text: str) -> str:
    """As `visible`, line by line."""
    return "\n".join(visible(line) for line in text.split("\n"))


def column_widths(text: str) -> list[int]:
    """The columns that each character takes in a terminal: two for Chinese, Japanese and Korean ones."""
    return [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text]


def counted(number: int, nouns: str) -> str:
    """A number and what it counts, which is given in the plural.

    Example:
        >>> counted(1200, "judged queries"), counted(1, "judged queries"), counted(1, "files that are empty")
        ('1,200 judged queries', '1 judged query', '1 file that is empty')
    """
    if number == 1:
        nouns = re.sub(r"\b(\w+?)(ie)?s\b", lambda found: found[1] + "y" * bool(found[2]), nouns, count=1)
        nouns = nouns.replace(" that are ", " that is ", 1)
    return f"{number:,} {nouns}"
