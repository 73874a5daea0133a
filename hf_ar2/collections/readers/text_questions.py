"""Reads a file of questions about a folder of text, with the files or sections that answer them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from hf_ar2.collections.lines import numbered_lines
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.readers.text_queries import Place


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
