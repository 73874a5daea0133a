"""The queries of a folder of text: headings that a person might ask, or a file of questions; and their passages."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from hf_ar2.collections.lines import numbered_lines
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.readers import heading_words as words
from hf_ar2.collections.readers.skip_counts import SkipCounts
from hf_ar2.collections.readers.text_sections import Section, words_in

MAX_PASSAGES = 5
MIN_EQUAL, MAX_EQUAL_SHARE = 5, 0.01
# Files and folders whose headings are not queries.
_RECORDS = re.compile(
    r"change(s|log)|news|history|relnotes|release.?notes|what.?s.?new|licen[cs]e|copying|copyright|notice|third.?party|"
    r"authors",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Place:
    """A section of a file, with its passages: id -> text."""

    path: str
    section: Section
    passages: dict[str, str]


@dataclass(frozen=True)
class HeadingQuery:
    """A heading that is a query."""

    text: str
    place: Place
    has_context: bool

    @property
    def id(self) -> str:
        """`q:` and the id of its first passage."""
        return f"q:{next(iter(self.place.passages))}"


def heading_queries(
    places: list[Place], skipped: SkipCounts, all_headings: bool = False
) -> list[HeadingQuery]:
    """The headings that are queries, in the order of the places; `skipped` counts the others.

    `all_headings` also accepts version numbers, signatures, uninformative words, and sections of many passages.
    """
    texts = Counter(text for place in places for text in place.passages.values())
    found = []
    for place in places:
        heading = place.section.heading
        if not heading:
            continue
        query = _query(place, all_headings)
        if isinstance(query, HeadingQuery) and not all_headings:
            if any(texts[text] > 1 for text in place.passages.values()):
                query = "of text that other sections repeat"
        if isinstance(query, HeadingQuery):
            found.append(query)
        else:
            skipped.add(f"headings {query}", _shown(heading))
    # Equal queries get context; those that are still equal are skipped.
    count = Counter(_key(query.text) for query in found)
    found = [_in_context(query) if count[_key(query.text)] > 1 else query for query in found]
    count = Counter(_key(query.text) for query in found)
    for query in found:
        if count[_key(query.text)] > 1:
            skipped.add("headings of several sections", _shown(query.place.section.heading))
    found = [query for query in found if count[_key(query.text)] == 1]
    return found if all_headings else _without_templates(found, skipped)


def _shown(heading: str) -> str:
    return f'"{heading[:40]}"'


def _without_templates(queries: list[HeadingQuery], skipped: SkipCounts) -> list[HeadingQuery]:
    """Limit the queries with the same heading, such as "Options" on each page, to 1 % of all queries, or to five.

    The queries with the smallest hashes stay.
    """
    of_heading: dict[str, list[HeadingQuery]] = {}
    for query in queries:
        of_heading.setdefault(_key(query.place.section.heading), []).append(query)
    limit = max(MIN_EQUAL, round(MAX_EQUAL_SHARE * len(queries)))
    kept: set[str] = set()
    for equal in of_heading.values():
        first = sorted(equal, key=lambda query: hashlib.sha256(query.text.encode()).digest())[:limit]
        kept |= {query.id for query in first}
        cause = f"headings that very many sections have, beyond {limit} of each"
        skipped.add(cause, _shown(equal[0].place.section.heading), len(equal) - len(first))
    return [query for query in queries if query.id in kept]


def _query(place: Place, all_headings: bool) -> HeadingQuery | str:
    """The query of a heading, or why it has none."""
    heading = place.section.heading
    text = words.as_query(heading)
    if not place.passages:
        return "without text of their own"
    if not text or words_in(text) > words.MAX_HEADING_WORDS:
        return f"of more than {words.MAX_HEADING_WORDS} words" if text else "without words"
    query = HeadingQuery(text, place, has_context=False)
    if all_headings:
        return query
    if any(_RECORDS.match(part) for part in place.path.split("/")):
        return "of change logs and licences"
    if cause := words.reason_to_skip(heading):
        return f"that are {cause}"
    if len(place.passages) > MAX_PASSAGES:
        return f"of more than {MAX_PASSAGES} passages"
    if all(_key(passage) == _key(heading) for passage in place.passages.values()):
        return "that their text only repeats"
    if words.asks_nothing(text):
        return "without a question"
    if words.needs_context(text):
        query = _in_context(query)
        if not query.has_context:
            return "of one word or general words, without a heading above that gives context"
    elif (
        len(text.split()) == 2
        and place.section.above
        and words.is_command(words.as_query(place.section.above[0]))
    ):
        query = _in_context(query)
    return query


def _in_context(query: HeadingQuery) -> HeadingQuery:
    """The query with the nearest heading above it that gives context, if any."""
    if query.has_context:
        return query
    for heading in reversed(query.place.section.above):
        context = words.as_context(heading)
        if words.gives_context(context) and _key(context) not in _key(query.text):
            return replace(query, text=words.add_context(query.text, context), has_context=True)
    return query


def _key(text: str) -> str:
    """The letters and digits of a text in lower case, for comparison."""
    return "".join(character for character in text.casefold() if character.isalnum())


def training_views(places: list[Place], queries: list[HeadingQuery]) -> dict[str, tuple[str, str]]:
    """Passage id -> title and text for training, for the passages whose headings are queries.

    The heading is removed from the titles of its section and of those below it, and lines that repeat it from the text.
    Passages that do not change have no entry.
    """
    hidden = {(query.place.path, query.place.section.path) for query in queries}
    with_query = {id(query.place) for query in queries}
    views = {}
    for place in places:
        path = place.section.path
        kept = [text for end, text in enumerate(path, 1) if (place.path, path[:end]) not in hidden]
        repeated = _key(place.section.heading) if id(place) in with_query else ""
        for passage, text in place.passages.items():
            view = text
            if repeated:
                lines = [line for line in text.split("\n") if _key(line) != repeated]
                view = "\n".join(lines) if any(map(str.strip, lines)) else text
            if len(kept) < len(path) or view != text:
                views[passage] = (title_of(kept), view)
    return views


def title_of(headings: list[str] | tuple[str, ...]) -> str:
    """The title of a passage, made of its headings."""
    return " · ".join(filter(None, headings))


def read_questions(file: Path, folder: Path, places: list[Place]) -> dict[str, tuple[str, list[str]]]:
    """Query id -> question and the passages that answer it.

    A line of the file is a question, a tab, and the file that answers it, optionally with `#` and a heading. The places
    are the sections of the folder of text.
    """
    if not file.is_file():
        raise CollectionError(
            f"queries: {file}: no such file; expected one question per line, with a tab and the file that answers it"
        )
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.path, []).append(place)
    answered: dict[str, dict[str, int]] = {}  # question -> passage -> line
    for line, text in numbered_lines(file):
        if not text.strip():
            continue
        question, _, where = (part.strip() for part in text.partition("\t"))
        if not question or not where:
            raise CollectionError(
                f"{file}:{line}: found {text.strip()[:80]!r}; expected a question, a tab, and the file that answers "
                "it, optionally with # and a heading"
            )
        passages = answered.setdefault(question, {})
        for id in _passages_at(where, f"{file}:{line}", folder, found):
            if passages.setdefault(id, line) != line:
                raise CollectionError(
                    f"{file}:{line}: found the question of line {passages[id]} with the same answer again; delete one "
                    "of the lines"
                )
    return {f"q:{number}": (text, list(ids)) for number, (text, ids) in enumerate(answered.items(), 1)}


def _passages_at(where: str, line: str, folder: Path, found: dict[str, list[Place]]) -> list[str]:
    """Ids of the passages of a file, or of the section after `#` and the sections below it."""
    path, _, heading = (where, "", "") if where in found else where.partition("#")
    path, heading = os.path.normpath(path.strip()).replace(os.sep, "/"), heading.strip()
    if path not in found:
        near = difflib.get_close_matches(path, found, n=1) or list(found)
        raise CollectionError(
            f"{line}: found the file {path!r}; expected one of the {len(found)} text files in {folder}, such as "
            f"{near[0]!r}"
        )
    ids = [
        id
        for place in found[path]
        if not heading or heading in (place.section.heading, *place.section.above)
        for id in place.passages
    ]
    if not ids:
        with_text = [place.section for place in found[path] if place.passages]
        headings = [section.heading for section in with_text if section.heading]
        raise CollectionError(
            f"{line}: found no text in {where!r}; headings with text there: {', '.join(headings) or 'none'}"
        )
    return ids
