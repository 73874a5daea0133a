"""A folder of documentation as passages; a list of questions, or the documents' own headings, as queries."""

from __future__ import annotations

import hashlib
import logging
import re
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.readers.left_out import LeftOut
from hf_ar2.collections.readers.text_files import FORMATS, read_folder
from hf_ar2.collections.readers.text_queries import Place, heading_queries, title_of, training_views
from hf_ar2.collections.readers.text_questions import read_questions
from hf_ar2.collections.readers.text_sections import Section, grouped
from hf_ar2.collections.tables import (
    HIDING_FEATURES,
    PASSAGE_FEATURES,
    QRELS_FEATURES,
    QUERY_FEATURES,
    SOURCE_FEATURES,
    TRAINING_COLUMNS,
    dataset_of,
)

logger = logging.getLogger(__name__)

# What columns of run files cannot hold, and what stands for it.
_UNFIT_FOR_IDS = re.compile(r"[\s%\ud800-\udfff]")
# A paragraph of so many lines, most of them headings of the same file, is a table of contents.
_CONTENTS_LINES, _CONTENTS_SHARE = 3, 0.6
_NO_LETTER = re.compile(r"[\W\d_]+")


def load_text_folder(
    folder: str | Path,
    *,
    name: str | None = None,
    queries: str | Path | None = None,
    endings: Sequence[str] | None = None,
    headings: bool = True,
    all_headings: bool = False,
) -> Collection:
    """Builds a collection from the documentation in a folder and the folders in it.

    Read are Markdown, plain text, reStructuredText, HTML and manual pages, each also gzipped, in UTF-8. A file that
    cannot be read is left out, not an error. A passage is a run of paragraphs of one section, of about 100 words (of
    Chinese and Japanese: characters); its title is its headings. Prose is one line; code, lists and tables keep theirs.
    Comments and tables of contents are left out.

    With `queries`, each line of that file is a question, a tab, and the file that answers it (relative to the
    folder), maybe with `#` and the heading of the section: its passages, and those of what stands below it, are
    relevant. A question that several places answer has a line for each.

    Without, headings are queries, of the source `heading`, and the passages of their sections are relevant. Headings
    that need to be told of what get the heading above them: "Installation" below "numpy" becomes "numpy installation".
    The same is done with headings that several sections have. What nobody would ask is no query: version numbers and
    dates, signatures, "Notes", and headings of more than 5 passages. Passages keep their headings for search; training
    reads them without those that are queries, see `Collection.for_training`.

    A hash of the query puts 80 % into train, 10 % into dev and 10 % into test; of three or more, each gets one.

    Args:
        folder: the folder. Files and folders whose names begin with a dot are not looked at.
        name: the collection's name; by default the folder's.
        queries: the file of questions. It may be in the folder: it is no passage.
        endings: of the files that are read, such as `.md`, or whole names, such as `README`; by default all that can
            be.
        headings: False: without `queries`, the collection has passages and no queries.
        all_headings: headings that say little are queries too.

    Returns:
        The collection. Passage ids are `FILE:NUMBER`, from 1 in each file; what ids cannot hold is `%`-encoded. What
        was left out is counted in `skipped`, with the first few names.

    Raises:
        CollectionError: no text or no query was found; a line of `queries` has no tab, or names a file or a heading
            that is not there.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise CollectionError(f"text:{folder}: no such folder; expected one with text files: {FORMATS}")
    questions = Path(queries) if queries is not None else None
    left_out = LeftOut()
    places: list[Place] = []
    for path, sections in read_folder(folder, endings, questions, left_out):
        of_file = _places(path, sections, left_out)
        if not any(place.passages for place in of_file):
            left_out.add("files without text", path)
        places += of_file
    if not any(place.passages for place in places):
        raise CollectionError(
            f"text:{folder}: found no text to read{_reasons(left_out)}. Read are {FORMATS}; name a folder with such "
            "files, or their endings: --endings .md,.txt"
        )
    judged: dict[str, tuple[str, list[str]]] = {}
    views: dict[str, tuple[str, str]] = {}
    if questions is not None:
        judged = read_questions(questions, folder, places)
    elif headings:
        found = heading_queries(places, left_out, all_headings)
        judged = {query.id: (query.text, list(query.place.passages)) for query in found}
        views = training_views(places, found)
    if not judged and (headings or questions is not None):
        where = f"in {questions}" if questions is not None else "among the headings"
        advice = "" if all_headings or questions is not None else ", or take all headings: --all-headings"
        raise CollectionError(
            f"text:{folder}: found no query {where}{_reasons(left_out)}. Write questions into a file, one a "
            f"line with a tab and the file that answers it, and name it: --queries FILE{advice}"
        )
    skipped = left_out.counts()
    passages = [
        (id, title_of(place.section.path), text) for place in places for id, text in place.passages.items()
    ]
    logger.info("text:%s: %d passages, %d queries, left out %s", folder, len(passages), len(judged), skipped)
    source = "heading" if questions is None else ""
    return _collection(name or folder.resolve().name, passages, views, judged, source, skipped)


def _reasons(left_out: LeftOut) -> str:
    counts = [f"{count:,} {cause}" for cause, count in left_out.counts().items()]
    return f"; left out: {', '.join(counts)}" if counts else ""


def _places(path: str, sections: list[Section], left_out: LeftOut) -> list[Place]:
    """The sections of a file with their passages."""
    headings = {_letters(section.heading) for section in sections} - {""}
    places, number = [], 0
    for section in sections:
        paragraphs = [text for text in section.paragraphs if not _is_contents(text, headings)]
        left_out.add("tables of contents", path, len(section.paragraphs) - len(paragraphs))
        passages = {}
        for text in grouped(paragraphs):
            if _is_numbers(text):
                left_out.add("passages of numbers", path)
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
    """Whether a passage is data: of twenty numbers or more, with hardly a letter."""
    characters = "".join(text.split())
    return len(text.split()) >= 20 and sum(map(str.isalpha, characters)) < 0.1 * len(characters)


def _letters(text: str) -> str:
    """A line without list marks, numbering, dots and page numbers."""
    return _NO_LETTER.sub(" ", text.casefold()).strip()


def _id(path: str) -> str:
    """A path as part of an id; different paths give different ids."""
    return _UNFIT_FOR_IDS.sub(lambda found: urllib.parse.quote(found[0], errors="surrogateescape"), path)


def _splits_of(judged: dict[str, tuple[str, list[str]]]) -> dict[str, str]:
    """Query id -> split, by a hash of its text: train for 80 % of the queries, dev and test for 10 % each.

    The same on every machine, whatever other queries there are; only where a split would be empty, the query with
    the smallest hash of the largest split is put there.
    """
    hashes = {
        query: int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        for query, (text, _) in judged.items()
    }
    splits = {
        query: "train" if number % 10 < 8 else "dev" if number % 10 == 8 else "test"
        for query, number in hashes.items()
    }
    for split in ("train", "dev", "test"):
        if split not in splits.values() and len(splits) >= 3:
            largest = Counter(splits.values()).most_common(1)[0][0]
            of_largest = (query for query in splits if splits[query] == largest)
            splits[min(of_largest, key=hashes.__getitem__)] = split
    return splits


def _collection(
    name: str,
    passages: list[tuple[str, str, str]],
    views: dict[str, tuple[str, str]],
    judged: dict[str, tuple[str, list[str]]],
    source: str,
    skipped: dict[str, int],
) -> Collection:
    splits = _splits_of(judged)
    qrels = {}
    for split in ("train", "dev", "test"):
        pairs = [
            (query, passage)
            for query, (_, ids) in judged.items()
            if splits[query] == split
            for passage in ids
        ]
        if not judged:
            break
        if not pairs:
            logger.warning("%s: none of the %d queries fell into split %s", name, len(judged), split)
            continue
        columns: dict[str, list[Any]] = {
            "query_id": [query for query, _ in pairs],
            "passage_id": [passage for _, passage in pairs],
            "relevance": [1] * len(pairs),
        }
        qrels[split] = dataset_of(columns, QRELS_FEATURES)
    corpus = {
        "id": [id for id, _, _ in passages],
        "title": [title for _, title, _ in passages],
        "text": [text for _, _, text in passages],
    }
    features = PASSAGE_FEATURES
    if views:
        features = HIDING_FEATURES
        read = [views.get(id, (title, text)) for id, title, text in passages]
        corpus |= {
            column: list(values)
            for column, values in zip(TRAINING_COLUMNS.values(), zip(*read, strict=True), strict=True)
        }
    asked: dict[str, list[str]] = {"id": list(judged), "text": [text for text, _ in judged.values()]}
    query_features = QUERY_FEATURES
    if source:
        asked["source"] = [source] * len(judged)
        query_features = datasets.Features({**QUERY_FEATURES, **SOURCE_FEATURES})
    return Collection(
        name=name,
        corpus=dataset_of(corpus, features),
        queries=dataset_of(asked, query_features),
        qrels=qrels,
        skipped=skipped,
    )
