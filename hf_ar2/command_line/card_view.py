"""Model cards as text for the terminal."""

from __future__ import annotations

import re
import textwrap

from hf_ar2.evaluation.tables import format_table

_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


def terminal_text(card: str, width: int) -> str:
    """A card's Markdown for a terminal of `width` columns: without metadata, paragraphs and tables wrapped."""
    body = re.sub(r"\A---\n.*?\n---\n+|<!--.*?-->", "", card, flags=re.DOTALL)
    blocks: list[str] = []
    for block in re.split(r"(```.*?\n```)", body, flags=re.DOTALL):
        if block.startswith("```"):
            inside = block.split("\n")[1:-1]
            blocks.append(textwrap.indent("\n".join(inside), "    "))
        else:
            blocks += [_shown(part, width) for part in re.split(r"\n{2,}", block.strip()) if part.strip()]
    return "\n\n".join(blocks)


def _shown(block: str, width: int) -> str:
    """A paragraph, a heading, a list or a table."""
    lines = block.split("\n")
    if heading := re.fullmatch(r"(#+) (.+)", block):
        return f"{heading[2]}\n{('═' if len(heading[1]) == 1 else '─') * len(heading[2])}"
    if lines[0].startswith("| "):
        cells = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines]
        # without addresses, which would make the table wide; the papers are listed below
        rows = [[_plain(_LINK.sub(r"\1", cell.strip())).replace("\\|", "|") for cell in row] for row in cells]
        return format_table(rows[2:], rows[0], width=width)
    if re.match(r"- |\d+\. ", block):
        items = re.split(r"\n(?=- |\d+\. )", block)
        return "\n".join(_filled(item, width, "   " if item[0].isdigit() else "  ") for item in items)
    return _filled(block, width)


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        _plain(text), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _plain(text: str) -> str:
    """The text without emphasis, links as their text and address."""
    text = _LINK.sub(r"\1 (\2)", text.replace("\n", " "))
    return re.sub(r"\*{1,2}([^*]+)\*{1,2}", r"\1", re.sub(r" {2,}", " ", text))
