"""Sections of HTML pages, with the parser of the standard library."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hf_ar2.collections.readers.text_sections import Outline, Section, block_of

_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4}
_DROPPED = {
    "script", "style", "nav", "header", "footer", "aside", "form", "button", "select", "template", "noscript", "svg",
    "iframe", "object", "canvas",
}  # fmt: skip
# What text ends at. The first ones have end tags always, so that these can be matched.
_CLOSED = {
    "div", "section", "article", "body", "blockquote", "dl", "figure", "details", "address", "fieldset", "center",
}  # fmt: skip
_ENDS_TEXT = _CLOSED | {"p", "dt", "dd", "figcaption", "summary", "h5", "h6"}
_LISTS = {"ul", "ol", "table"}
_VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "track", "wbr"}


def html_sections(lines: list[str]) -> list[Section]:
    """The sections of an HTML page: at h1 to h4, under its title.

    Scripts, styles, navigation, forms and comments go. Where the page marks its main part, the rest goes too.
    Preformatted text, list items and table rows keep their lines.

    Args:
        lines: of the file, without line endings.
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
    """Fills an outline; `only_main` takes nothing outside of <main> or role=main."""

    def __init__(self, only_main: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.outline = Outline()
        self.only_main = only_main
        self.text: list[str] = []
        self.main = 0 if only_main else 1  # > 0: inside the main part
        self.open: list[tuple[str, str]] = []  # tags that change what text is: (tag, what it does)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if tag == "br" and self.doing("title", "heading") is None:
                self.text.append("\n")
            elif tag == "hr":
                self.end_text()
            return
        given = dict(attrs)
        role = given.get("role")
        if tag in _DROPPED or role in ("navigation", "search", "banner", "contentinfo", "complementary"):
            if self.doing("drop") is None:
                self.end_text()
            self.open.append((tag, "drop"))
        elif self.doing("drop"):
            self.open.append((tag, ""))
        elif tag == "main" or role == "main":
            self.end_text()
            self.main += 1
            self.open.append((tag, "main"))
        elif tag in _HEADINGS or tag == "title":
            self.end_text()
            self.open.append((tag, "title" if tag == "title" else "heading"))
        elif tag == "pre":
            self.end_text()
            self.open.append((tag, "pre"))
        elif tag in _LISTS:
            if not self.doing("list"):
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
            if tag in _ENDS_TEXT and not self.doing("drop"):
                self.end_block()
            return
        # A tag that was left open inside of another one ends with it, but nothing ends what is dropped but its end.
        inner = [what for _, what in self.open[at + 1 :]]
        if "drop" in inner:
            return
        what = self.open[at][1]
        if what == "list" and [doing for _, doing in self.open].count("list") > 1:
            self.text.append("\n")
        elif what and what != "drop":
            self.end_text()
        elif not what and not self.doing("drop"):
            self.end_block()
        self.main -= [what, *inner].count("main")
        del self.open[at:]

    def handle_data(self, data: str) -> None:
        is_anchor = data.strip() in ("#", "¶", "§", "🔗") and self.doing("heading")
        if not self.doing("drop") and not is_anchor:
            self.text.append(data if self.doing("pre") else re.sub(r"\s+", " ", data))

    def doing(self, *whats: str) -> str | None:
        """The innermost of these that is open."""
        return next((what for _, what in reversed(self.open) if what in whats), None)

    def end_block(self) -> None:
        """End a paragraph; in a list or table it is part of an item or row."""
        if self.doing("list", "pre", "heading", "title") is None:
            self.end_text()
        else:
            self.text.append(" ")

    def end_text(self) -> None:
        """Make a heading or a paragraph of the text so far."""
        text, self.text = "".join(self.text), []
        inside = self.doing("title", "heading", "pre", "list")
        if inside == "title":
            self.outline.heading(0, text)
        elif not self.main or not text.strip():
            return
        elif inside == "heading":
            tag = next(tag for tag, what in reversed(self.open) if what == "heading")
            self.outline.heading(_HEADINGS[tag], text)
        elif inside == "pre":
            self.outline.add(block_of(text.split("\n")))
        elif inside == "list" or self.doing("list"):
            kept = [" ".join(line.split()) for line in text.split("\n")]
            self.outline.add("\n".join(line for line in kept if any(map(str.isalnum, line))))
        else:
            self.outline.add(" ".join(text.split()))
