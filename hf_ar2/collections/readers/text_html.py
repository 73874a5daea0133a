"""Sections of HTML pages, read with the parser of the standard library."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hf_ar2.collections.readers.html_layout import Layout, layout_of
from hf_ar2.collections.readers.text_man import with_summary
from hf_ar2.collections.readers.text_sections import Outline, Section, block_of

_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_DROPPED = {
    "script", "style", "form", "button", "select", "template", "noscript", "svg", "iframe", "object", "canvas",
}  # fmt: skip
# Elements that end a paragraph. Those in _CLOSED always have an end tag.
_CLOSED = {
    "div", "section", "article", "body", "blockquote", "dl", "figure", "details", "address", "fieldset", "center",
    "header", "aside",
}  # fmt: skip
_ENDS_TEXT = _CLOSED | {"p", "dt", "dd", "figcaption", "summary"}
_LISTS = {"ul", "ol", "table"}
_VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "track", "wbr"}
# The text of links to a heading.
_ANCHORS = {"#", "¶", "§", "🔗", "∞", "\u200b", "\uf0c1"}


def html_sections(lines: list[str]) -> list[Section]:
    """The sections of an HTML page, at its headings, below the part of its title that they do not repeat.

    Scripts, styles, navigation, forms and comments are removed. If the page marks its main part, only that is read.
    Preformatted text, list items and table rows keep their lines. A term is put before its definition: "term: text".
    The summary of a manual page becomes the heading of its description.
    """
    text = "\n".join(lines)
    layout = layout_of(text)
    for only_main in (True, False) if layout.main else (False,):
        reader = _Reader(layout, only_main)
        reader.feed(text)
        reader.close()
        reader.end_text()
        reader.end_terms()
        if any(section.paragraphs for section in reader.outline.sections):
            break
    return with_summary(reader.outline.sections)


class _Reader(HTMLParser):
    """Fills an outline; with `only_main` from the main part only."""

    def __init__(self, layout: Layout, only_main: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.outline = Outline()
        self.layout = layout
        self.text: list[str] = []
        self.terms: list[str] = []  # whose definition follows
        self.in_term = False
        self.main = 0 if only_main else 1  # above 0 inside the main part
        self.open: list[tuple[str, str]] = []  # enclosing tags: (tag, meaning for the text in it)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if tag == "br" and self.inside("title", "heading") is None:
                self.text.append("\n")
            elif tag == "hr":
                self.end_text()
            return
        at, given = self.getpos(), dict(attrs)
        if tag in _DROPPED or at in self.layout.navigation:
            if self.inside("drop") is None:
                self.end_text()
            self.open.append((tag, "drop"))
        elif self.inside("drop"):
            self.open.append((tag, ""))
        elif at in self.layout.main:
            self.end_text()
            self.main += 1
            self.open.append((tag, "main"))
        elif tag in _HEADINGS or tag in ("title", "pre"):
            self.end_text()
            self.open.append((tag, "heading" if tag in _HEADINGS else tag))
        elif at in self.layout.tables:
            self.end_block()
            self.open.append((tag, "layout"))
        elif tag in _LISTS:
            if not self.inside("list"):
                self.end_text()
            self.open.append((tag, "list"))
        elif tag == "li":
            self.text.append("\n- ")
        elif tag in ("tr", "td", "th") and self.inside("list", "layout") == "layout":
            self.end_block()
        elif tag == "tr":
            self.text.append("\n")
        elif tag in ("td", "th"):
            self.text.append(" | " if self.text and self.text[-1] != "\n" else "")
        elif tag == "a":
            is_anchor = {"headerlink", "permalink"} & set((given.get("class") or "").split())
            self.open.append((tag, "drop" if is_anchor else "link" if "href" in given else ""))
        elif tag in _ENDS_TEXT:
            self.end_block()
            if tag in ("dt", "dd"):
                self.in_term = tag == "dt"
            if tag in _CLOSED:
                self.open.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        at = next((place for place in reversed(range(len(self.open))) if self.open[place][0] == tag), None)
        if at is None:
            if tag in _ENDS_TEXT and not self.inside("drop"):
                self.end_block()
                self.in_term = self.in_term and tag != "dt"
            return
        # An end tag also ends the tags left open inside; but dropped content ends only with its own end tag.
        kind, *inner = [kind for _, kind in self.open[at:]]
        if "drop" in inner:
            return
        if tag == "a" and kind != "drop":  # old pages leave blocks open in links
            del self.open[at]
            return
        if kind == "list" and [kind for _, kind in self.open].count("list") > 1:
            self.text.append("\n")
        elif kind and kind != "drop":
            self.end_text()
        elif not kind and not self.inside("drop"):
            self.end_block()
        self.main -= [kind, *inner].count("main")
        del self.open[at:]
        if tag == "dl" and not self.inside("drop"):
            self.in_term = False
            self.end_terms()

    def handle_data(self, data: str) -> None:
        is_anchor = data.strip() in _ANCHORS and self.inside("heading", "link")
        if not self.inside("drop") and not is_anchor:
            self.text.append(data if self.inside("pre") else re.sub(r"\s+", " ", data))

    def inside(self, *kinds: str) -> str | None:
        """The innermost of these meanings that applies."""
        return next((kind for _, kind in reversed(self.open) if kind in kinds), None)

    def end_block(self) -> None:
        """End a paragraph; in a list or table the item or row continues."""
        if self.inside("list", "pre", "heading", "title", "layout") in (None, "layout"):
            self.end_text()
        else:
            self.text.append(" ")

    def end_text(self) -> None:
        """Add the text so far to the outline as a heading or a paragraph."""
        text, self.text = "".join(self.text), []
        kind = self.inside("title", "heading", "pre", "list", "layout")
        if kind == "title":
            self.outline.heading(0, self.layout.site)
        elif (
            not kind
            and not self.outline.sections[-1].above
            and " ".join(text.split()) == self.outline.sections[-1].heading
        ):
            return  # the page's title again, not marked up as a heading
        elif not self.main or not text.strip():
            return
        elif kind == "heading":
            tag = next(tag for tag, kind in reversed(self.open) if kind == "heading")
            self.end_terms()
            self.outline.heading(_HEADINGS[tag], text)
        elif kind == "pre":
            self.end_terms(":")
            self.outline.add(block_of(text.split("\n")))
        elif kind == "list":
            self.end_terms(":")
            self.outline.add("\n".join(filter(None, map(_row, text.split("\n")))))
        elif self.in_term:
            self.terms.append(" ".join(text.split()).rstrip(":"))
        elif kind != "layout" or any(map(str.isalpha, text)):  # without the numbers of rows
            self.add_prose(" ".join(text.split()))

    def add_prose(self, text: str) -> None:
        """Add a paragraph, after the terms that it defines."""
        if self.terms and not self.terms[-1].endswith("?"):
            terms, self.terms = ", ".join(self.terms), []
            text = f"{terms.rstrip('.')}: {text}"
        self.end_terms()
        self.outline.add(text)

    def end_terms(self, end: str = "") -> None:
        """Add terms without a definition in prose as a paragraph."""
        terms, self.terms = ", ".join(self.terms), []
        if terms:
            self.outline.add(terms if terms.endswith("?") else terms + end)


def _row(line: str) -> str:
    """A list item or a row of a table, without empty cells at its ends; empty without letters and digits."""
    line = " ".join(line.split())
    return line.strip("| ") if any(map(str.isalnum, line)) else ""
