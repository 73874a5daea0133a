"""Headings as queries: which ones somebody might ask, and the passages that answer them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace

from hf_ar2.collections.readers.heading_words import (
    MAX_HEADING_WORDS,
    asked,
    can_tell,
    fault,
    is_command,
    is_empty,
    is_general,
    joined,
)
from hf_ar2.collections.readers.left_out import LeftOut
from hf_ar2.collections.readers.text_sections import Section, words_in

MAX_PASSAGES = 5
MIN_EQUAL, MAX_EQUAL_SHARE = 5, 0.01
# Files and folders of which the headings are no questions.
_RECORDS = re.compile(
    r"change(s|log)|news|history|relnotes|release.?notes|what.?s.?new|licen[cs]e|copying|copyright|notice|third.?party|"
    r"authors",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Place:
    """A section of a file, and its passages: id -> text."""

    path: str
    section: Section
    passages: dict[str, str]


@dataclass(frozen=True)
class HeadingQuery:
    """A heading that is a query."""

    text: str
    place: Place
    with_context: bool

    @property
    def id(self) -> str:
        """That of its first passage, after `q:`."""
        return f"q:{next(iter(self.place.passages))}"


def heading_queries(places: list[Place], left_out: LeftOut, all_headings: bool = False) -> list[HeadingQuery]:
    """The headings that are queries, in the order of the places.

    Args:
        places: sections with their passages.
        left_out: counts the headings that are no queries, by cause.
        all_headings: take version numbers, signatures, words that say little, and sections of many passages too.
    """
    texts = Counter(text for place in places for text in place.passages.values())
    found = []
    for place in places:
        heading = place.section.heading
        if not heading:
            continue
        query, cause = _query(place, all_headings)
        repeats = not all_headings and any(texts[text] > 1 for text in place.passages.values())
        if query is not None and repeats:
            query, cause = None, "of text that other sections have word for word"
        if query is not None:
            found.append(query)
        else:
            left_out.add(f"headings {cause}", f'"{heading[:40]}"')
    # Of equal headings each is told of what; those that are equal still are left out.
    equal = _equal(found)
    found = [_told(query) if equal[_key(query.text)] > 1 else query for query in found]
    equal = _equal(found)
    for query in found:
        if equal[_key(query.text)] > 1:
            left_out.add("headings of several sections", f'"{query.place.section.heading[:40]}"')
    found = [query for query in found if equal[_key(query.text)] == 1]
    return found if all_headings else _without_templates(found, left_out)


def _without_templates(queries: list[HeadingQuery], left_out: LeftOut) -> list[HeadingQuery]:
    """The queries without most of those of a heading that very many sections have, such as each page's "Options".

    Of each heading as many stay as are a hundredth of the queries, or five: those with the smallest hashes.
    """
    of_heading: dict[str, list[HeadingQuery]] = {}
    for query in queries:
        of_heading.setdefault(_key(query.place.section.heading), []).append(query)
    limit = max(MIN_EQUAL, round(MAX_EQUAL_SHARE * len(queries)))
    kept: set[str] = set()
    for equal in of_heading.values():
        first = sorted(equal, key=lambda query: hashlib.sha256(query.text.encode()).digest())[:limit]
        kept |= {query.id for query in first}
        cause = f"that very many sections have, beyond {limit} of each"
        left_out.add(f"headings {cause}", f'"{equal[0].place.section.heading[:40]}"', len(equal) - len(first))
    return [query for query in queries if query.id in kept]


def _query(place: Place, all_headings: bool) -> tuple[HeadingQuery | None, str]:
    """The query, or why there is none."""
    heading = place.section.heading
    text = asked(heading)
    if not place.passages:
        return None, "without text of their own"
    if not text or words_in(text) > MAX_HEADING_WORDS:
        return None, f"of more than {MAX_HEADING_WORDS} words" if text else "without words"
    query = HeadingQuery(text, place, with_context=False)
    if all_headings:
        return query, ""
    if any(_RECORDS.match(part) for part in place.path.split("/")):
        return None, "of change logs and licences"
    if cause := fault(heading):
        return None, f"that are {cause}"
    if len(place.passages) > MAX_PASSAGES:
        return None, f"of more than {MAX_PASSAGES} passages"
    if is_empty(text):
        return None, "that ask nothing"
    if is_general(text):
        query = _told(query)
        if not query.with_context:
            return None, "of one word or general words, with none above that says of what"
    elif len(text.split()) == 2 and place.section.above and is_command(asked(place.section.above[0])):
        query = _told(query)
    return query, ""


def _told(query: HeadingQuery) -> HeadingQuery:
    """The query with the nearest heading above it that says of what it is, if there is one."""
    if query.with_context:
        return query
    for heading in reversed(query.place.section.above):
        context = asked(heading)
        if can_tell(context) and _key(context) not in _key(query.text):
            return replace(query, text=joined(query.text, context), with_context=True)
    return query


def _equal(queries: list[HeadingQuery]) -> Counter[str]:
    return Counter(_key(query.text) for query in queries)


def _key(text: str) -> str:
    """What texts have in common that differ in capitals and punctuation alone."""
    return "".join(character for character in text.casefold() if character.isalnum())


def training_views(places: list[Place], queries: list[HeadingQuery]) -> dict[str, tuple[str, str]]:
    """What training reads, title and text, of the passages that have a heading that is a query.

    The heading is left out of the titles of its section and of those below it, and lines that repeat it of the text.

    Returns:
        Passage id -> title and text; passages that are read as they are have no entry.
    """
    hidden = {(query.place.path, query.place.section.path) for query in queries}
    repeated_in = {query.id: _key(query.place.section.heading) for query in queries}
    found = {}
    for place in places:
        path = place.section.path
        kept = [text for end, text in enumerate(path, 1) if (place.path, path[:end]) not in hidden]
        repeated = repeated_in.get(f"q:{next(iter(place.passages), '')}")
        for id, text in place.passages.items():
            read = text
            if repeated:
                lines = [line for line in text.split("\n") if _key(line) != repeated]
                read = "\n".join(lines) if any(map(str.strip, lines)) else text
            if len(kept) < len(path) or read != text:
                found[id] = (title_of(kept), read)
    return found


def title_of(headings: list[str] | tuple[str, ...]) -> str:
    """Headings as a passage's title."""
    return " · ".join(filter(None, headings))
