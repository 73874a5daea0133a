"""A folder of text and Markdown files as passages; a list of questions, or the files' own headings, as queries."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import numbered_lines
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.tables import PASSAGE_FEATURES, QRELS_FEATURES, QUERY_FEATURES, dataset_of
from hf_ar2.collections.text_sections import (
    MAX_HEADING_WORDS,
    MIN_HEADING_WORDS,
    Section,
    grouped,
    read_sections,
    words_in,
)

logger = logging.getLogger(__name__)

ENDINGS = (".md", ".txt")

# What columns of run files cannot hold, and what stands for it.
_UNFIT_FOR_IDS = re.compile(r"[\s%\ud800-\udfff]")


@dataclass
class Place:
    """A section of a file, and its passages: id -> text.

    Example:
        >>> place = Place("bees.md", Section("Bees", paragraphs=["They fly."]), {"bees.md:1": "They fly."})
        >>> place.section.heading, list(place.passages)
        ('Bees', ['bees.md:1'])
    """

    path: str
    section: Section
    passages: dict[str, str]


def load_text_folder(
    folder: str | Path,
    *,
    name: str | None = None,
    queries: str | Path | None = None,
    headings: bool = True,
) -> Collection:
    """Builds a collection from the `.md` and `.txt` files of a folder and the folders in it, UTF-8.

    A passage is a run of paragraphs of one section, of about 100 words (of Chinese and Japanese: characters); longer
    paragraphs are divided at the ends of sentences. A passage's title is its headings. In Markdown, sections begin at
    headings (`#`, or underlined), and the `title:` of a front matter stands above them all; in text, the first line
    is the heading where it is short and an empty line follows.

    With `queries`, each line of that file is a question, a tab, and the file that answers it (relative to the
    folder), maybe with `#` and the heading of the section: its passages, and those of what stands below it, are
    relevant. A question that several places answer has a line for each.

    Without, every heading is a query, and the passages of its section are relevant; it is left out of their title, so
    that no passage contains its query. Not used, and counted in `Collection.skipped`: headings that do not have 2 to
    30 words, that several sections have, or that have no text of their own.

    A hash of the query puts 80 % into train, 10 % into dev and 10 % into test; of three or more, each gets one.

    Args:
        folder: the folder. Files and folders whose names begin with a dot are not looked at.
        name: the collection's name; by default the folder's.
        queries: the file of questions. It may be in the folder: it is no passage.
        headings: False: without `queries`, the collection has passages and no queries.

    Returns:
        The collection. Passage ids are `FILE:NUMBER`, from 1 in each file; what ids cannot hold is `%`-encoded.

    Raises:
        CollectionError: no text or no query was found; a file is not UTF-8; a line of `queries` has no tab, or names
            a file or a heading that is not there.

    Example:
        >>> Path("notes").mkdir()
        >>> _ = Path("notes/bees.md").write_text("# Bees\\n\\n## How bees dance\\n\\nA bee that found food dances.")
        >>> collection = load_text_folder("notes")
        >>> collection.queries["text"][:], collection.corpus[0]["title"], collection.corpus[0]["text"]
        (['How bees dance'], 'Bees', 'A bee that found food dances.')
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise CollectionError(f"text:{folder}: no such folder; expected one with .md or .txt files")
    questions = Path(queries) if queries is not None else None
    dropped: Counter[str] = Counter()
    files = list(_files(folder, questions, dropped))
    places: list[Place] = []
    for file in files:
        of_file = _places(file, file.relative_to(folder).as_posix(), dropped)
        if not any(place.passages for place in of_file):
            dropped["files without text"] += 1
        places += of_file
    if not any(place.passages for place in places):
        raise CollectionError(
            f"text:{folder}: found no text in {len(files)} files that end in {' or '.join(ENDINGS)}; left out: "
            f"{dict(dropped)}. Name a folder with text"
        )
    if questions is not None:
        judged = _questions(questions, folder, places)
    else:
        judged = _headings(places, dropped) if headings else {}
    if not judged and (headings or questions is not None):
        where = f"in {questions}" if questions is not None else "among the headings"
        raise CollectionError(
            f"text:{folder}: found no query {where}; left out: {dict(dropped)}. Write questions into a file, one a "
            "line with a tab and the file that answers it, and name it: --queries FILE"
        )
    # Where the heading is the query, it must not stand in the passage as well.
    asked = set() if questions is not None else {id for _, ids in judged.values() for id in ids}
    passages = [
        (id, _title(place.section, own_heading=id not in asked), text)
        for place in places
        for id, text in place.passages.items()
    ]
    skipped = {cause: dropped[cause] for cause in sorted(dropped)}
    logger.info("text:%s: %d passages, %d queries, left out %s", folder, len(passages), len(judged), skipped)
    return _collection(name or folder.resolve().name, passages, judged, skipped)


def _files(folder: Path, questions: Path | None, dropped: Counter[str]) -> Iterator[Path]:
    """The text files in the order of their paths; others are counted."""
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or (questions is not None and questions.is_file() and file.samefile(questions)):
            continue
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            dropped["hidden files"] += 1
        elif file.suffix.lower() in ENDINGS:
            yield file
        else:
            dropped[f"files that do not end in {' or '.join(ENDINGS)}"] += 1


def _places(file: Path, path: str, dropped: Counter[str]) -> list[Place]:
    """The sections of a file with their passages."""
    places, number = [], 0
    for section in read_sections(file, dropped):
        passages = {}
        for text in grouped(section.paragraphs):
            number += 1
            passages[f"{_id(path)}:{number}"] = text
        places.append(Place(path, section, passages))
    return places


def _id(path: str) -> str:
    """A path as part of an id; different paths give different ids."""
    return _UNFIT_FOR_IDS.sub(lambda found: urllib.parse.quote(found[0], errors="surrogateescape"), path)


def _title(section: Section, own_heading: bool) -> str:
    return " · ".join(filter(None, (*section.above, section.heading if own_heading else "")))


def _headings(places: list[Place], dropped: Counter[str]) -> dict[str, tuple[str, list[str]]]:
    """Query id -> heading and the passages of its section."""
    texts = Counter(place.section.heading.casefold() for place in places if place.passages)
    queries = {}
    for place in places:
        heading = place.section.heading
        if not heading:
            continue
        if not MIN_HEADING_WORDS <= words_in(heading) <= MAX_HEADING_WORDS:
            dropped[f"headings not of {MIN_HEADING_WORDS} to {MAX_HEADING_WORDS} words"] += 1
        elif not place.passages:
            dropped["headings without text"] += 1
        elif texts[heading.casefold()] > 1:
            dropped["headings of several sections"] += 1
        else:
            queries[f"q:{_id(place.path)}:{place.section.line}"] = (heading, list(place.passages))
    return queries


def _questions(file: Path, folder: Path, places: list[Place]) -> dict[str, tuple[str, list[str]]]:
    """Query id -> question and the passages of the files or sections that answer it."""
    if not file.is_file():
        raise CollectionError(
            f"queries: {file}: no such file; expected one question a line, with a tab and the file that answers it"
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
                "it, maybe with # and a heading"
            )
        passages = answered.setdefault(question, {})
        for id in _passages_at(where, f"{file}:{line}", folder, found):
            if passages.setdefault(id, line) != line:
                raise CollectionError(
                    f"{file}:{line}: found the question of line {passages[id]} with the same answer again; expected "
                    "each once. Delete one of the lines"
                )
    return {f"q:{number}": (text, list(ids)) for number, (text, ids) in enumerate(answered.items(), 1)}


def _passages_at(where: str, line: str, folder: Path, found: dict[str, list[Place]]) -> list[str]:
    """Ids of the passages of a file, or of the section after `#` and of what stands below it."""
    path, _, heading = where.partition("#") if where not in found else (where, "", "")
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
        headings = [
            place.section.heading for place in found[path] if place.passages and place.section.heading
        ]
        raise CollectionError(
            f"{line}: found no text in {where!r}; headings with text there: {', '.join(headings) or 'none'}"
        )
    return ids


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
    judged: dict[str, tuple[str, list[str]]],
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
    return Collection(
        name=name,
        corpus=dataset_of(corpus, PASSAGE_FEATURES),
        queries=dataset_of(
            {"id": list(judged), "text": [text for text, _ in judged.values()]}, QUERY_FEATURES
        ),
        qrels=qrels,
        skipped=skipped,
    )
