"""Sections of Markdown files."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from hf_ar2.collections.readers.skip_counts import SkipCounts
from hf_ar2.collections.readers.text_sections import Outline, Section, block_of, paragraphs_of

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*")
_HTML_HEADING = re.compile(r"\s*<h([1-6])[^>]*>(.*?)</h\1>\s*", re.IGNORECASE)
_QUOTED = re.compile(r" {0,3}(?:> ?)+(?:\[!\w+\]\s*$)?")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")  # the line above it is a heading
_FRONT_TITLE = re.compile(r"""title:[ \t]*["']?(.*?)["']?[ \t]*""")
_NOT_UNDERLINED = re.compile(r"\s*([-*+>|]|\d+[.)]|    )")
_ATTRIBUTES = re.compile(r"\s*\{:?\s*[#.][^}]*\}\s*$")

_CODE_SPAN = re.compile(r"(`+[^`\n]+`+)")
_IMAGE = re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])")
_LINK = re.compile(r"\[((?:[^\[\]]|\\[\[\]])*)\](\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\])")
_LINK_TARGET = re.compile(r"\s{0,3}\[[^\]^]+\]:\s*\S.*")
_EMPHASIS = re.compile(r"(\*\*|__|(?<![\w*])\*(?!\*))(?=\S)([^*\n]+?)(?<=\S)\1(?!\w)")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+.!<>|-])")
_TAG = re.compile(
    r"</?(a|b|br|center|code|details|div|em|font|h[1-6]|hr|i|img|kbd|li|ol|p|picture|pre|small|source|span|strong|sub|"
    r"summary|sup|table|tbody|td|th|thead|tr|u|ul|video)(\s[^<>]*|/)?>",
    re.IGNORECASE,
)


def markdown_sections(lines: list[str], skipped: SkipCounts) -> list[Section]:
    """The sections of a Markdown file: at `#`, at underlines, and at the `title:` of its front matter.

    Code, lists and tables keep their lines; comments, images and link targets are removed. `skipped` counts the lines
    of front matter other than its title.
    """
    outline = Outline()
    body: list[str] = []

    def end_body() -> None:
        outline.add(*map(plain_text, paragraphs_of(body, margin=2)))
        body.clear()

    front = _front_matter(lines)
    for number, line in enumerate(lines[:front]):
        if title := _FRONT_TITLE.fullmatch(line):
            outline.heading(0, title[1])
        elif number not in (0, front - 1):
            skipped.add("lines of front matter")
    code: list[str] | None = None
    fence = ""
    for line in _without_comments(lines[front:]):
        if code is None:
            line = _QUOTED.sub("", line)
        mark = _FENCE.match(line)
        if code is not None:
            if mark and mark[1].startswith(fence) and not line.strip(" `~"):
                outline.add(block_of(code))
                code = None
            else:
                code.append(line)
        elif mark:
            end_body()
            code, fence = [], mark[1]
        elif heading := _HEADING.fullmatch(line) or _HTML_HEADING.fullmatch(line):
            end_body()
            level = heading[1]
            outline.heading(len(level) if level[0] == "#" else int(level), plain_heading(heading[2]))
        elif (underline := _UNDERLINE.fullmatch(line)) and _can_be_underlined(body):
            text = body.pop()
            end_body()
            outline.heading(1 if underline[1][0] == "=" else 2, plain_heading(text))
        elif not _LINK_TARGET.fullmatch(line):
            body.append(line)
    end_body()
    if code is not None:
        outline.add(block_of(code))
    return outline.sections


def plain_text(text: str) -> str:
    """Markdown without images, link targets, emphasis and HTML tags; code spans stay as they are."""
    code = _CODE_SPAN.findall(text)
    text = _CODE_SPAN.sub("\0", text)
    text = _LINK.sub(r"\1", _LINK.sub(r"\1", _IMAGE.sub("", text)))
    text = _TAG.sub(lambda tag: "\n" if tag[1].lower() == "br" else "", text)
    text = _ESCAPED.sub(r"\1", _EMPHASIS.sub(r"\2", text))
    spans = iter(code)
    text = re.sub("\0", lambda _: next(spans), html.unescape(text))
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def plain_heading(text: str) -> str:
    """A heading without markup, backticks and attributes."""
    return " ".join(plain_text(_ATTRIBUTES.sub("", text)).replace("`", "").split())


def _front_matter(lines: list[str]) -> int:
    """Number of lines of the front matter, between `---` on the first line and the next `---`."""
    if not lines or lines[0].rstrip() != "---":
        return 0
    return next((number + 1 for number, line in enumerate(lines) if number and line.rstrip() == "---"), 0)


def _can_be_underlined(body: list[str]) -> bool:
    """Whether the last paragraph can be an underlined heading: one line, not a list, quotation or table."""
    if not body or not body[-1].strip() or _NOT_UNDERLINED.match(body[-1]):
        return False
    return len(body) == 1 or not body[-2].strip()


def _without_comments(lines: list[str]) -> Iterator[str]:
    """The lines without comments, except in fenced code."""
    fence, inside = "", False
    for line in lines:
        mark = _FENCE.match(line)
        if mark and not inside and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        if fence:
            yield line
            continue
        kept, rest = "", line
        while rest:
            before, found, rest = rest.partition("-->" if inside else "<!--")
            kept += "" if inside else before
            inside = inside != bool(found)
        if kept.strip() or not line.strip():
            yield kept
