"""Sections of HTML pages, read with the parser of the standard library."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hf_ar2.collections.readers.text_sections import Outline, Section, block_of

_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4}
_DROPPED = {
    "script", "style", "nav", "header", "footer", "aside", "form", "button", "select", "template", "noscript", "svg",
    "iframe", "object", "canvas",
}  # fmt: skip
# Elements that end a paragraph. Those in _CLOSED always have an end tag.
_CLOSED = {
    "div", "section", "article", "body", "blockquote", "dl", "figure", "details", "address", "fieldset", "center",
}  # fmt: skip
_ENDS_TEXT = _CLOSED | {"p", "dt", "dd", "figcaption", "summary", "h5", "h6"}
_LISTS = {"ul", "ol", "table"}
_VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "track", "wbr"}


def html_sections(lines: list[str]) -> list[Section]:
    """The sections of an HTML page, at h1 to h4, below its title.

    Scripts, styles, navigation, forms and comments are removed. If the page marks its main part, only that is read.
    Preformatted text, list items and table rows keep their lines.
    """
    text = "\n".join(lines)
    for only_main in (True, False):
        reader = _Reader(only_main)
        reader.feed(text)
        reader.close()
        reader.end_text()
        if not only_main or any(section.paragraphs for section in reader.outline.sections):
            break
    return reader.outline.sections


class _Reader(HTMLParser):
    """Fills an outline; with `only_main` from <main> and role=main only."""

    def __init__(self, only_main: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.outline = Outline()
        self.only_main = only_main
        self.text: list[str] = []
        self.main = 0 if only_main else 1  # above 0 inside the main part
        self.open: list[tuple[str, str]] = []  # enclosing tags: (tag, meaning for the text in it)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if tag == "br" and self.inside("title", "heading") is None:
                self.text.append("\n")
            elif tag == "hr":
                self.end_text()
            return
        given = dict(attrs)
        role = given.get("role")
        if tag in _DROPPED or role in ("navigation", "search", "banner", "contentinfo", "complementary"):
            if self.inside("drop") is None:
                self.end_text()
            self.open.append((tag, "drop"))
        elif self.inside("drop"):
            self.open.append((tag, ""))
        elif tag == "main" or role == "main":
            self.end_text()
            self.main += 1
            self.open.append((tag, "main"))
        elif tag in _HEADINGS or tag in ("title", "pre"):
            self.end_text()
            self.open.append((tag, "heading" if tag in _HEADINGS else tag))
        elif tag in _LISTS:
            if not self.inside("list"):
                self.end_text()
            self.open.append((tag, "list"))
        elif tag == "li":
            self.text.append("\n- ")
        elif tag == "tr":
            self.text.append("\n")
        elif tag in ("td", "th"):
            self.text.append(" | " if self.text and self.text[-1] != "\n" else "")
        elif tag == "a" and "headerlink" in (given.get("class") or ""):
            self.open.append((tag, "drop"))
        elif tag in _ENDS_TEXT:
            self.end_block()
            if tag in _CLOSED:
                self.open.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        at = next((place for place in reversed(range(len(self.open))) if self.open[place][0] == tag), None)
        if at is None:
            if tag in _ENDS_TEXT and not self.inside("drop"):
                self.end_block()
            return
        # An end tag also ends the tags left open inside; but dropped content ends only with its own end tag.
        kind, *inner = [kind for _, kind in self.open[at:]]
        if "drop" in inner:
            return
        if kind == "list" and [kind for _, kind in self.open].count("list") > 1:
            self.text.append("\n")
        elif kind and kind != "drop":
            self.end_text()
        elif not kind and not self.inside("drop"):
            self.end_block()
        self.main -= [kind, *inner].count("main")
        del self.open[at:]

    def handle_data(self, data: str) -> None:
        is_anchor = data.strip() in ("#", "¶", "§", "🔗") and self.inside("heading")
        if not self.inside("drop") and not is_anchor:
            self.text.append(data if self.inside("pre") else re.sub(r"\s+", " ", data))

    def inside(self, *kinds: str) -> str | None:
        """The innermost of these meanings that applies."""
        return next((kind for _, kind in reversed(self.open) if kind in kinds), None)

    def end_block(self) -> None:
        """End a paragraph; in a list or table the item or row continues."""
        if self.inside("list", "pre", "heading", "title") is None:
            self.end_text()
        else:
            self.text.append(" ")

    def end_text(self) -> None:
        """Add the text so far to the outline as a heading or a paragraph."""
        text, self.text = "".join(self.text), []
        kind = self.inside("title", "heading", "pre", "list")
        if kind == "title":
            self.outline.heading(0, text)
        elif not self.main or not text.strip():
            return
        elif kind == "heading":
            tag = next(tag for tag, kind in reversed(self.open) if kind == "heading")
            self.outline.heading(_HEADINGS[tag], text)
        elif kind == "pre":
            self.outline.add(block_of(text.split("\n")))
        elif kind == "list" or self.inside("list"):
            kept = [" ".join(line.split()) for line in text.split("\n")]
            self.outline.add("\n".join(line for line in kept if any(map(str.isalnum, line))))
        else:
            self.outline.add(" ".join(text.split()))
