"""A folder of documentation as passages; a list of questions, or the documents' own headings, as queries."""

from __future__ import annotations

import logging
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.readers.skip_counts import SkipCounts
from hf_ar2.collections.readers.text_files import FORMATS, is_html, read_folder
from hf_ar2.collections.readers.text_queries import (
    Place,
    heading_queries,
    read_questions,
    title_of,
    training_views,
)
from hf_ar2.collections.readers.text_sections import Section, grouped, words_in
from hf_ar2.collections.splits import SPLITS, nonempty_splits
from hf_ar2.collections.tables import (
    PASSAGE_FEATURES,
    TRAINING_VIEW_FEATURES,
    dataset_of,
    query_features,
    relevant_qrels,
)
from hf_ar2.terminal import counted

logger = logging.getLogger(__name__)

# Characters that run files cannot have in an id, and `%`, with which they are encoded.
_UNFIT_FOR_IDS = re.compile(r"[\s%\ud800-\udfff]")
# A paragraph with at least so many lines, most of them headings of the file, is a table of contents.
_CONTENTS_LINES, _CONTENTS_SHARE = 3, 0.6
_NO_LETTER = re.compile(r"[\W\d_]+")
# Pages of a folder, and words of a paragraph, from which on repeated paragraphs are dropped.
_MIN_PAGES, _MIN_WORDS = 5, 4
_NUMBERS = re.compile(r"\d+")


def load_text_folder(
    folder: str | Path,
    *,
    name: str | None = None,
    queries: str | Path | None = None,
    endings: Sequence[str] | None = None,
    headings: bool = True,
    all_headings: bool = False,
) -> Collection:
    """Builds a collection from the documentation in a folder and its subfolders.

    Reads Markdown, plain text, reStructuredText, HTML and manual pages in UTF-8, plain or gzipped. Files that cannot be
    read are skipped. A passage is a run of paragraphs of one section, about 100 words long (code: fewer; Chinese and
    Japanese: about 100 characters); its title is the section's headings. Prose becomes one line; code, lists and tables
    keep their lines. Comments, navigation, tables of contents and what most HTML pages repeat are dropped.

    With `queries`, each line of that file is a question, a tab, and the file that answers it (relative to the folder),
    optionally with `#` and the heading of a section. The passages there, and in the sections below it, are relevant. A
    question with several answers has a line for each.

    Without `queries`, headings are queries, of the source `heading`, and the passages of their sections are relevant. A
    heading that is unclear alone, or that several sections have, is joined with the heading above it: "Installation"
    below "numpy" becomes "numpy installation". Headings that nobody would ask are skipped: version numbers and dates,
    signatures, "Notes", and headings with more than 5 passages. Passages keep their headings for search; training reads
    them without those that are queries, see `Collection.for_training`.

    A hash of the query puts 80 % into train, 10 % into dev and 10 % into test; with three or more queries no split is
    empty.

    Args:
        folder: the folder. Files and folders whose names start with a dot are ignored.
        name: the collection's name; by default the folder's.
        queries: the file of questions. If it is in the folder, it is not read as text.
        endings: of the files to read, such as `.md`, or file names, such as `README`; by default all known ones.
        headings: if False and without `queries`, the collection has no queries.
        all_headings: also use the headings that would be skipped.

    Returns:
        The collection. Passage ids are `FILE:NUMBER`, from 1 in each file, `%`-encoded where necessary. Skipped files
        and headings are counted in `skipped`, with a few names each.

    Raises:
        CollectionError: no text or no query was found, or a line of `queries` has no tab or names an unknown file or
            heading.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise CollectionError(f"text:{folder}: no such folder; expected one with text files: {FORMATS}")
    questions = Path(queries) if queries is not None else None
    skipped = SkipCounts()
    places: list[Place] = []
    for path, sections in without_boilerplate(read_folder(folder, endings, questions, skipped), skipped):
        of_file = _places(path, sections, skipped)
        if not any(place.passages for place in of_file):
            skipped.add("files without text", path)
        places += of_file
    if not any(place.passages for place in places):
        raise CollectionError(
            f"text:{folder}: found no text to read{_reasons(skipped)}. Known formats are {FORMATS}; name a folder "
            "with such files, or the endings of yours: --endings .md,.txt"
        )
    judged: dict[str, tuple[str, list[str]]] = {}
    views: dict[str, tuple[str, str]] = {}
    if questions is not None:
        judged = read_questions(questions, folder, places)
    elif headings:
        found = heading_queries(places, skipped, all_headings)
        judged = {query.id: (query.text, list(query.place.passages)) for query in found}
        views = training_views(places, found)
    if not judged and (headings or questions is not None):
        where = f"in {questions}" if questions is not None else "among the headings"
        advice = "" if all_headings or questions is not None else ", or use all headings: --all-headings"
        raise CollectionError(
            f"text:{folder}: found no query {where}{_reasons(skipped)}. Write questions to a file, one per "
            f"line with a tab and the file that answers it, and name it: --queries FILE{advice}"
        )
    counts = skipped.counts()
    passages: list[tuple[str, str, str]] = []
    for place in places:
        title = title_of(place.section.path)
        passages += [(id, title, text) for id, text in place.passages.items()]
    logger.info("text:%s: %d passages, %d queries, skipped %s", folder, len(passages), len(judged), counts)
    source = "heading" if questions is None else ""
    return _collection(name or folder.resolve().name, passages, views, judged, source, counts)


def _reasons(skipped: SkipCounts) -> str:
    counts = [counted(count, cause) for cause, count in skipped.counts().items()]
    return f"; skipped: {', '.join(counts)}" if counts else ""


def _places(path: str, sections: list[Section], skipped: SkipCounts) -> list[Place]:
    """The sections of a file with their passages."""
    headings = {_letters(section.heading) for section in sections} - {""}
    places, number = [], 0
    for section in sections:
        paragraphs = [text for text in section.paragraphs if not _is_contents(text, headings)]
        skipped.add("tables of contents", path, len(section.paragraphs) - len(paragraphs))
        passages = {}
        for text in grouped(paragraphs):
            if _is_numbers(text):
                skipped.add("passages of numbers", path)
                continue
            number += 1
            passages[f"{_id(path)}:{number}"] = text
        places.append(Place(path, section, passages))
    return places


def _is_contents(text: str, headings: set[str]) -> bool:
    lines = [_letters(line) for line in text.split("\n")]
    lines = [line for line in lines if line]
    found = sum(line in headings for line in lines)
    return len(lines) >= _CONTENTS_LINES and found >= _CONTENTS_SHARE * len(lines)


def _is_numbers(text: str) -> bool:
    """Whether a passage is data: at least twenty numbers and hardly a letter."""
    characters = "".join(text.split())
    return len(text.split()) >= 20 and sum(map(str.isalpha, characters)) < 0.1 * len(characters)


def _letters(text: str) -> str:
    """A line without list marks, numbering, dots and page numbers."""
    return _NO_LETTER.sub(" ", text.casefold()).strip()


def _id(path: str) -> str:
    """A path as part of an id; unique for each path."""
    return _UNFIT_FOR_IDS.sub(lambda found: urllib.parse.quote(found[0], errors="surrogateescape"), path)


def _collection(
    name: str,
    passages: list[tuple[str, str, str]],
    views: dict[str, tuple[str, str]],
    judged: dict[str, tuple[str, list[str]]],
    source: str,
    skipped: dict[str, int],
) -> Collection:
    splits = nonempty_splits({query: text for query, (text, _) in judged.items()})
    qrels = {}
    for split in SPLITS if judged else ():
        of_split = {query: ids for query, (_, ids) in judged.items() if splits[query] == split}
        if of_split:
            query_ids = [query for query, ids in of_split.items() for _ in ids]
            qrels[split] = relevant_qrels(query_ids, [id for ids in of_split.values() for id in ids])
        else:
            logger.warning("%s: none of the %d queries fell into split %s", name, len(judged), split)
    features = PASSAGE_FEATURES
    rows: list[tuple[str, ...]] = [*passages]
    if views:
        features = TRAINING_VIEW_FEATURES
        rows = [(id, title, text, *views.get(id, (title, text))) for id, title, text in passages]
    corpus = dict(zip(features, zip(*rows, strict=True), strict=True))
    queries: dict[str, list[str]] = {"id": list(judged), "text": [text for text, _ in judged.values()]}
    if source:
        queries["source"] = [source] * len(judged)
    return Collection(
        name,
        dataset_of(corpus, features),
        dataset_of(queries, query_features(queries)),
        qrels,
        skipped=skipped,
    )


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
            keys = {_masked(text) for section in sections for text in section.paragraphs} - {""}
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
                if not any(2 * counts[folder, _masked(text)] >= pages[folder] for folder in folders)
            ]
            skipped.add("paragraphs that most HTML pages repeat", path, len(section.paragraphs) - len(kept))
            section.paragraphs = kept
        yield path, sections


def _masked(text: str) -> str:
    """A paragraph for comparison; empty if it is too short to be boilerplate."""
    return _NUMBERS.sub("0", " ".join(text.split())) if words_in(text) >= _MIN_WORDS else ""
