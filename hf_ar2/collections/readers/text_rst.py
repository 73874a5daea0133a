"""Sections of reStructuredText files."""

from __future__ import annotations

import re

from hf_ar2.collections.readers.text_sections import Outline, Section, block_of, paragraphs_of
from hf_ar2.terminal import column_widths

_ADORNMENT = re.compile(r"([=\-~^\"'`#*+:.<>_])\1{2,}\s*")
_DIRECTIVE = re.compile(r"\.\.\s+([\w:+-]+)::\s*(.*)")
_FOOTNOTE = re.compile(r"\.\.\s+(\[[\w#*.-]+\]\s.*)")
_OPTION = re.compile(r":[\w -]+:(\s.*)?")
# Directives whose content is text, and directives whose content is code.
_TEXT = {
    "note", "warning", "tip", "hint", "important", "caution", "danger", "attention", "error", "seealso", "admonition",
    "topic", "sidebar", "container", "epigraph", "rubric", "glossary", "list-table", "table", "only", "todo",
}  # fmt: skip
_VERSIONS = {
    "versionadded": "Added in version",
    "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version",
    "versionremoved": "Removed in version",
}
# The first line of something else than a definition, though the lines below it are indented.
_NO_TERM = re.compile(r"\s|[-*+•|]\s|\(?(\d+|\w|#)[.)]\s|:[^:`]+:(\s|$)|\.\.(\s|$)|>>>|\+[-=]|={3}|--?\w|/\w")
_CODE = set("code code-block sourcecode parsed-literal literalinclude highlight prompt doctest".split())
_INLINE = (
    (re.compile(r":[\w:.+-]+:`~?([^`<]+?)\s*<[^`>]*>`"), r"\1"),
    (re.compile(r":[\w:.+-]+:`~?!?([^`]+)`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"`([^`]+)`__?"), r"\1"),
    (re.compile(r"(\*\*|(?<![\w*])\*(?!\*))(?=\S)([^*\n]+?)(?<=\S)\1(?!\w)"), r"\2"),
    (re.compile(r"\b(\w+)__?(?=[\s.,;:)]|$)"), r"\1"),
    (re.compile(r"\\(?=[*`_|\\ ])"), ""),
)


def rst_sections(lines: list[str]) -> list[Section]:
    """The sections of a reStructuredText file, at its underlined titles.

    Literal blocks, lists and tables keep their lines; comments, targets, images and directives that include or generate
    text are removed.
    """
    outline = Outline()
    styles: list[str] = []  # adornments in order of appearance: the index is the level
    _read([line.expandtabs() for line in lines], outline, styles)
    return outline.sections


def _read(lines: list[str], outline: Outline, styles: list[str]) -> None:
    body: list[str] = []

    def end_body() -> None:
        literal = bool(body) and body[-1].rstrip().endswith("::")
        for text in paragraphs_of(body, margin=0 if len(body) < 2 else 1):
            outline.add(plain_text(text))
        if literal and outline.sections[-1].paragraphs:
            paragraphs = outline.sections[-1].paragraphs
            text = paragraphs[-1].removesuffix("::").rstrip()
            paragraphs[-1] = text + (":" if paragraphs[-1] != "::" else "")
        body.clear()

    at = 0
    while at < len(lines):
        line = lines[at]
        if title := _title_at(lines, at):
            end_body()
            text, style, used = title
            if style not in styles:
                styles.append(style)
            outline.heading(styles.index(style) + 1, plain_text(text).replace("`", ""))
            at += used
        elif line.startswith("..") and (line[2:3].isspace() or not line[2:].strip()):
            end_body()
            content, end = _indented(lines, at + 1)
            _directive(line, content, outline, styles)
            at = end
        elif not line.strip() and body and body[-1].rstrip().endswith("::"):
            content, end = _indented(lines, at)
            if any(map(str.strip, content)):
                end_body()
                outline.add(block_of(content))
            at = max(end, at + 1)
        elif (not body or not body[-1].strip()) and _is_term(lines, at):
            end_body()
            definition, end = _indented(lines, at + 1)
            outline.add(*_definition(line, definition))
            at = end
        else:
            body.append(line)
            at += 1
    end_body()


def _is_term(lines: list[str], at: int) -> bool:
    """Whether a definition begins here: a line, with the next one indented."""
    below = lines[at + 1] if at + 1 < len(lines) else ""
    is_indented = bool(below.strip()) and below[0].isspace()
    return is_indented and bool(lines[at].strip()) and not _NO_TERM.match(lines[at])


def _definition(term: str, lines: list[str]) -> list[str]:
    """The paragraphs of a definition; the first one begins with its term."""
    inner = Outline()
    _read(block_of(lines).split("\n"), inner, [])
    paragraphs = [text for section in inner.sections for text in section.paragraphs]
    return _headed(plain_text(term).rstrip(": "), paragraphs)


def _headed(head: str, paragraphs: list[str]) -> list[str]:
    """Paragraphs below a few words, which go on the same line as prose."""
    if not paragraphs or "\n" in paragraphs[0]:
        return [f"{head}:", *paragraphs] if paragraphs else [head]
    return [f"{head}: {paragraphs[0]}", *paragraphs[1:]]


def _title_at(lines: list[str], at: int) -> tuple[str, str, int] | None:
    """Title, adornment and number of lines of the title that begins here, if any."""
    if at and lines[at - 1].strip() and not _ADORNMENT.fullmatch(lines[at - 1]):
        return None
    over = _ADORNMENT.fullmatch(lines[at])
    title, below = [*lines[at + 1 : at + 3], "", ""][:2]
    if over and title.strip() and below.rstrip() == lines[at].rstrip():
        return title.strip(), f"{over[1]}{over[1]}", 3
    if at + 1 < len(lines) and lines[at].strip() and not lines[at][0].isspace() and not over:
        under = _ADORNMENT.fullmatch(lines[at + 1])
        if under and len(lines[at + 1].rstrip()) >= min(sum(column_widths(lines[at].rstrip())) - 2, 80):
            return lines[at].strip(), under[1], 2
    return None


def _indented(lines: list[str], start: int) -> tuple[list[str], int]:
    """The indented and empty lines from `start`, and the index after them."""
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end][0].isspace()):
        end += 1
    return lines[start:end], end


def _directive(line: str, content: list[str], outline: Outline, styles: list[str]) -> None:
    """Add the text of a directive; comments, targets and other directives have none."""
    if footnote := _FOOTNOTE.fullmatch(line.rstrip()):
        outline.add(plain_text(" ".join(" ".join([footnote[1], *content]).split())))
    found = _DIRECTIVE.fullmatch(line.rstrip())
    if not found:
        return
    name, argument = found[1].lower(), found[2].strip()
    while content and _OPTION.fullmatch(content[0].strip()):
        content = content[1:]
    if name in _CODE:
        outline.add(block_of(content))
    elif name in _VERSIONS:
        outline.add(*_definition(f"{_VERSIONS[name]} {argument}", content))
    elif ":" in name or name.startswith(("function", "class", "method", "option", "envvar")):
        outline.add(*_definition(argument, content))
    elif name in _TEXT:
        # The argument is text too, such as a signature before its description.
        if argument and name not in ("only", "container", "list-table", "todo"):
            outline.add(plain_text(argument))
        _read(block_of(content).split("\n"), outline, styles)


def plain_text(text: str) -> str:
    """Text without roles, targets and emphasis."""
    parts = re.split(r"(``.+?``)", text)
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = part[1:-1]
            continue
        for pattern, replacement in _INLINE:
            part = pattern.sub(replacement, part)
        parts[place] = part
    return "".join(parts)
