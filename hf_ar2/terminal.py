"""Texts that anybody may have written, as they are printed."""

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
