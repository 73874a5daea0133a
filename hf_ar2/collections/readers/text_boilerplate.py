"""Drops what the pages of a site repeat: menus, slogans and footers that their markup does not name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from hf_ar2.collections.readers.skip_counts import SkipCounts
from hf_ar2.collections.readers.text_files import is_html
from hf_ar2.collections.readers.text_sections import Section, words_in

_MIN_PAGES, _MIN_WORDS = 5, 4
_NUMBERS = re.compile(r"\d+")


def without_boilerplate(
    documents: Iterable[tuple[str, list[Section]]], skipped: SkipCounts
) -> Iterator[tuple[str, list[Section]]]:
    """The documents (path and sections) without the paragraphs that at least half of the HTML pages of a folder have.

    Pages in its subfolders count too. Paragraphs of fewer than 4 words stay, and all of folders with fewer than 5
    pages. Numbers, such as those of dates, count as equal.
    """
    documents = list(documents)
    pages: Counter[PurePosixPath] = Counter()
    counts: Counter[tuple[PurePosixPath, str]] = Counter()
    for path, sections in documents:
        if is_html(path):
            keys = {_key(text) for section in sections for text in section.paragraphs} - {""}
            for folder in PurePosixPath(path).parents:
                pages[folder] += 1
                counts.update((folder, key) for key in keys)
    for path, sections in documents:
        parents = PurePosixPath(path).parents if is_html(path) else ()
        folders = [folder for folder in parents if pages[folder] >= _MIN_PAGES]
        for section in sections if folders else ():
            kept = [
                text
                for text in section.paragraphs
                if not any(2 * counts[folder, _key(text)] >= pages[folder] for folder in folders)
            ]
            skipped.add("paragraphs that most HTML pages repeat", path, len(section.paragraphs) - len(kept))
            section.paragraphs = kept
        yield path, sections


def _key(text: str) -> str:
    """A paragraph for comparison; empty if it is too short to be boilerplate."""
    return _NUMBERS.sub("0", " ".join(text.split())) if words_in(text) >= _MIN_WORDS else ""
