"""Finds the parts of an HTML page: its main part, navigation, tables used as layout, and the name of its site."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

# Line and column of a start tag.
Position = tuple[int, int]

_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_NAMED_BLOCKS = {"div", "section", "ul", "ol", "dl", "table", "details"}
_BLOCKS = _NAMED_BLOCKS | {"article", "main", "header", "footer", "nav", "aside"}
# A table that contains one of these elements is used as layout.
_IN_LAYOUT = {*_HEADINGS, "table", "pre", "dl"}
_ROLES = {
    "navigation", "search", "banner", "contentinfo", "complementary", "menu", "menubar", "toolbar", "doc-toc",
}  # fmt: skip
# Classes and ids of navigation, whatever is in it.
_NAVIGATION = {
    "nav", "navbar", "navigation", "navheader", "navfooter", "navpanel", "nav-panel", "sidenav", "topnav", "breadcrumb",
    "breadcrumbs", "footer", "page-footer", "site-footer", "skip-link", "skip-links", "skiplink", "skip-nav",
    "pagination", "pager", "searchbox", "search", "sphinxsidebar",
}  # fmt: skip
# Words of classes and ids of navigation if most of the text is links.
_LINK_LISTS = {
    "nav", "navbar", "navigation", "menu", "submenu", "mainmenu", "toc", "contents", "sidebar", "related", "breadcrumb",
    "breadcrumbs", "header", "footer", "topbar", "pager", "pagination", "links",
}  # fmt: skip
_MOSTLY, _ALMOST_ALL = 0.5, 0.8
_MIN_CONTENTS = 3
# Notes and footnotes in the text, which some generators write as <aside>.
_NOTES = set("admonition note tip hint important warning caution danger callout footnote".split())
_CONTENT = ("body", "document", "content", "main-content", "markdown-body", "main")
_SEPARATOR = re.compile(r"\s*[|·•—–»]\s*|\s+-+\s+|\s*[()]\s*")
_NUMBER = re.compile(r"(?:chapter|section|part|appendix)?\s*[\dA-Z]?(?:\.?\d+)*\.?\s+", re.IGNORECASE)


@dataclass(eq=False)
class _Element:
    """A block, and counts over it and the blocks in it."""

    tag: str
    at: Position
    names: set[str]
    role: str
    parent: _Element | None
    number: int  # in the order of the page
    last: int = 0  # the number of the last block in it
    text: int = 0  # characters, without spaces
    link_text: int = 0
    links: int = 0
    places: int = 0  # links to places in pages
    pages: set[str] = field(default_factory=set)  # that the links lead to, at most two
    contains: set[str] = field(default_factory=set)  # tags

    def __post_init__(self) -> None:
        outer = self.parent
        self.in_text: bool = bool(outer and (outer.in_text or outer.is_main() or outer.tag == "article"))

    def holds(self, other: _Element | None) -> bool:
        """Whether another block is this one or inside it."""
        return other is not None and self.number <= other.number <= self.last

    def add_pages(self, pages: set[str]) -> None:
        if len(self.pages) < 2:
            self.pages = set(sorted(self.pages | pages)[:2])

    def add_inner(self, inner: _Element) -> None:
        """Add the counts of a block inside it."""
        self.text += inner.text
        self.link_text += inner.link_text
        self.links += inner.links
        self.places += inner.places
        self.add_pages(inner.pages)
        self.contains |= inner.contains

    @property
    def words(self) -> set[str]:
        """The words of its names: nav and wrapper of `nav-wrapper`."""
        return {word for name in self.names for word in re.split(r"[-_]+", name)}

    def is_main(self) -> bool:
        return self.tag == "main" or self.role == "main"

    def is_navigation(self) -> bool:
        if self.role in _ROLES or self.tag in ("nav", "footer"):
            return True
        if self.tag == "aside":
            return not (self.words & _NOTES or self.role in ("note", "doc-footnote"))
        if self.tag == "header":
            # A page's or an article's own header has its title.
            return not self.contains & (_HEADINGS if self.in_text else {"h1"})
        places = self.places == self.links >= _MIN_CONTENTS and len(self.pages) == 1
        if self.tag in ("ul", "ol", "dl") and places and self.link_text > _ALMOST_ALL * self.text:
            return True  # a list of links to places in one page
        if self.tag not in _NAMED_BLOCKS or self.contains & {"h1", "main", "article"}:
            return False
        if self.names & _NAVIGATION:
            return True
        return bool(self.words & _LINK_LISTS) and self.link_text > _MOSTLY * self.text


@dataclass(frozen=True)
class Layout:
    """The parts of a page, by the positions of their start tags."""

    main: frozenset[Position]  # the elements that hold the text; empty for the whole page
    navigation: frozenset[Position]  # elements whose text is not part of the page's content
    tables: frozenset[Position]  # those that are used as layout
    site: str  # the page's title without its first heading


def layout_of(page: str) -> Layout:
    """Find the parts of a page.

    The main part is what the page marks as such; or its only article; or its only block with a class or id such as
    "content", if it holds all titles and most of the text.
    """
    survey = _Survey()
    survey.feed(page)
    survey.close()
    survey.end(0)
    navigation: set[_Element] = set()
    left_out: set[_Element] = set()  # navigation and what is in it
    for element in survey.elements:  # enclosing blocks first
        if element.is_navigation():
            navigation.add(element)
        if element in navigation or element.parent in left_out:
            left_out.add(element)
    text = survey.text - sum(element.text for element in navigation if element.parent not in left_out)
    headings = [heading for heading in survey.headings if heading[2] not in left_out]
    candidates = [element for element in survey.elements if element not in left_out]

    def only_one(found: list[_Element]) -> list[_Element]:
        if not found or not found[0].holds(found[-1]) or found[0].text < _MOSTLY * text:
            return []
        return found[:1] if all(found[0].holds(block) for tag, _, block in headings if tag == "h1") else []

    main = [element for element in candidates if element.is_main()]
    main = main or only_one([element for element in candidates if element.tag == "article"])
    blocks = [element for element in candidates if element.tag in ("div", "section")]
    for name in _CONTENT:
        main = main or only_one([element for element in blocks if name in element.names])
    if main:
        headings = [heading for heading in headings if any(element.holds(heading[2]) for element in main)]
    first = next((words for tag, words, _ in headings if tag == "h1"), headings[0][1] if headings else "")
    tables = (each for each in survey.elements if each.tag == "table" and each.contains & _IN_LAYOUT)
    return Layout(
        frozenset(element.at for element in main),
        frozenset(element.at for element in navigation),
        frozenset(element.at for element in tables),
        site_of(" ".join("".join(survey.title).split()), first),
    )


def site_of(title: str, heading: str) -> str:
    """A page's title without what its first heading repeats.

    Example:
        >>> site_of("Closures - The Rust Book", "3.1 Closures"), site_of("bee(1)", "bee(1) manual page")
        ('The Rust Book', '')
    """
    heading = " ".join(heading.split()).rstrip("#¶§ ")
    for repeated in (heading, _NUMBER.sub("", heading, count=1)):
        if not repeated or not title:
            continue
        if repeated.casefold().startswith(title.casefold()):
            return ""
        if title.casefold().startswith(repeated.casefold()):
            separator = _SEPARATOR.match(title, len(repeated))
            if separator:
                rest = title[separator.end() :]
                return rest.removesuffix(")") if "(" in separator[0] else rest
        if title.casefold().endswith(repeated.casefold()):
            before = title[: len(title) - len(repeated)]
            separators = list(_SEPARATOR.finditer(before))
            if separators and separators[-1].end() == len(before):
                return before[: separators[-1].start()]
    return title


class _Survey(HTMLParser):
    """Measures the blocks of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[_Element] = []
        self.headings: list[tuple[str, str, _Element | None]] = []  # tag, text, enclosing block
        self.title: list[str] = []
        self.text = 0
        self._open: list[_Element] = []
        self._inside = ""  # title, script, style or heading
        self._heading: list[str] = []
        self._in_link = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._open:
            self._open[-1].contains.add(tag)
        if tag in ("script", "style", "title", *_HEADINGS):
            self._inside = tag
            self._heading = []
        elif tag == "a":
            target = dict(attrs).get("href")
            self._in_link = target is not None
            if target is not None and self._open:
                page, mark, _ = target.partition("#")
                self._open[-1].links += 1
                self._open[-1].places += bool(mark)
                self._open[-1].add_pages({page})
        elif tag in _BLOCKS:
            given = {name: (value or "").lower() for name, value in attrs}
            names = set(f"{given.get('class', '')} {given.get('id', '')}".split())
            parent = self._open[-1] if self._open else None
            element = _Element(tag, self.getpos(), names, given.get("role", ""), parent, len(self.elements))
            self.elements.append(element)
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            if tag in _HEADINGS:
                self.headings.append((tag, "".join(self._heading), self._open[-1] if self._open else None))
            self._inside = ""
        elif tag == "a":
            self._in_link = False
        elif tag in _BLOCKS:
            at = next((at for at in reversed(range(len(self._open))) if self._open[at].tag == tag), None)
            if at is not None:
                self.end(at)

    def end(self, at: int) -> None:
        """End the open elements from this one."""
        for element in reversed(self._open[at:]):
            element.last = len(self.elements) - 1
            if element.parent is not None:
                element.parent.add_inner(element)
        del self._open[at:]

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            return
        if self._inside == "title":
            if not self.elements:  # later ones are those of pictures
                self.title.append(data)
            return
        if self._inside:
            self._heading.append(data)
        length = len("".join(data.split()))
        self.text += length
        if self._open:
            self._open[-1].text += length
            self._open[-1].link_text += length if self._in_link else 0
