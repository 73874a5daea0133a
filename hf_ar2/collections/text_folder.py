"""A folder of text and Markdown files as passages; a list of questions, or the files' own headings, as queries."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import numbered_lines
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.tables import PASSAGE_FEATURES, QRELS_FEATURES, QUERY_FEATURES, dataset_of

logger = logging.getLogger(__name__)

PASSAGE_WORDS = 100
ENDINGS = (".md", ".txt")
MIN_HEADING_WORDS, MAX_HEADING_WORDS = 2, 30

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")


@dataclass
class Section:
    """What stands under one heading, or before a file's first.

    Attributes:
        heading: the heading, empty where there is none.
        above: the headings that it stands under, outermost first.
        line: the heading's line, from 1.
        paragraphs: their texts, each on one line.
    """

    heading: str = ""
    above: tuple[str, ...] = ()
    line: int = 1
    paragraphs: list[str] = field(default_factory=list)


def load_text_folder(
    folder: str | Path, *, name: str | None = None, queries: str | Path | None = None
) -> Collection:
    """Builds a collection from the `.md` and `.txt` files of a folder and the folders in it, UTF-8.

    A passage is a run of paragraphs of one section, of about 100 words; longer paragraphs are divided at the ends of
    sentences. In Markdown, sections begin at headings (`#`); in text, the first line is the heading where it is short
    and an empty line follows.

    With `queries`, each line of that file is a question, a tab, and the file that answers it (relative to the
    folder), maybe with `#` and the heading of the section: its passages are relevant. A passage's title is its
    headings.

    Without, every heading is a query, and the passages of its section are relevant. A title is then what stands
    *above* that heading, so that no passage contains its query. Left out, and counted in `Collection.skipped`:
    headings that do not have 2 to 30 words, that several sections have, or that have no text.

    A hash of the query puts 80 % into train, 10 % into dev and 10 % into test.

    Args:
        folder: the folder. Files and folders whose names begin with a dot are not looked at.
        name: the collection's name; by default the folder's.
        queries: the file of questions.

    Returns:
        The collection. Passage ids are `FILE:NUMBER`, from 1 in each file.

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
    folder = Path(folder)
    if not folder.is_dir():
        raise CollectionError(f"text:{folder}: no such folder; expected one with .md or .txt files")
    dropped: Counter[str] = Counter()
    files = {file.relative_to(folder).as_posix(): read_sections(file) for file in _files(folder, dropped)}
    passages: list[tuple[str, str, str]] = []
    # file -> its sections, each with the ids of its passages
    found: dict[str, list[tuple[Section, list[str]]]] = {}
    for path, sections in files.items():
        number = 0
        for section in sections:
            # Where the heading is the query, it must not stand in the passage as well.
            headings = (*section.above, section.heading) if queries is not None else section.above
            title = " · ".join(filter(None, headings))
            ids = []
            for text in grouped(section.paragraphs):
                number += 1
                ids.append(f"{path}:{number}")
                passages.append((ids[-1], title, text))
            found.setdefault(path, []).append((section, ids))
        if number == 0:
            dropped["files without text"] += 1
    if not passages:
        raise CollectionError(
            f"text:{folder}: found no text in {len(files)} files that end in {' or '.join(ENDINGS)}; left out: "
            f"{dict(dropped)}"
        )
    if queries is not None:
        judged = _questions(Path(queries), folder, found)
    else:
        judged = _headings(found, dropped)
    if not judged:
        where = f"in {queries}" if queries is not None else "among the headings"
        raise CollectionError(
            f"text:{folder}: found no query {where}; left out: {dict(dropped)}. Write questions into a file, one a "
            "line with a tab and the file that answers it, and name it: --queries FILE"
        )
    skipped = {cause: dropped[cause] for cause in sorted(dropped)}
    logger.info("text:%s: %d passages, %d queries, left out %s", folder, len(passages), len(judged), skipped)
    return _collection(name or folder.resolve().name, passages, judged, skipped)


def _files(folder: Path, dropped: Counter[str]) -> Iterator[Path]:
    """The text files in the order of their paths; others are counted."""
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            dropped["hidden files"] += 1
        elif file.suffix.lower() in ENDINGS:
            yield file
        else:
            dropped[f"files that do not end in {' or '.join(ENDINGS)}"] += 1


def read_sections(file: Path) -> list[Section]:
    """The sections of a file, those without paragraphs among them.

    Raises:
        CollectionError: a line is not UTF-8; the message names it.
    """
    lines = [(number, line.rstrip("\r\n")) for number, line in numbered_lines(file)]
    markdown = file.suffix.lower() == ".md"
    if not markdown and len(lines) > 2 and not lines[1][1].strip():
        first = lines[0][1].strip()
        if 0 < len(first.split()) <= MAX_HEADING_WORDS and first[-1] not in ".!?":
            return [Section(first, (), 1, _paragraphs(lines[2:]))]
    if not markdown:
        return [Section("", (), 1, _paragraphs(lines))]
    sections = [Section()]
    outline: list[tuple[int, str]] = []  # level and text of the headings that are open
    body: list[tuple[int, str]] = []
    fence = ""
    for number, line in lines:
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        heading = None if fence or mark else _HEADING.fullmatch(line)
        if heading is None:
            body.append((number, line))
            continue
        sections[-1].paragraphs, body = _paragraphs(body), []
        level, text = len(heading[1]), heading[2]
        outline = [entry for entry in outline if entry[0] < level]
        sections.append(Section(text, tuple(above for _, above in outline), number))
        outline.append((level, text))
    sections[-1].paragraphs = _paragraphs(body)
    return sections


def _paragraphs(lines: list[tuple[int, str]]) -> list[str]:
    """What stands between empty lines, white space made one space."""
    text = "\n".join(line for _, line in lines)
    return [" ".join(part.split()) for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def grouped(paragraphs: list[str], words: int = PASSAGE_WORDS) -> list[str]:
    """Paragraphs put together into passages of about so many words.

    A paragraph half as long again is divided at the ends of sentences, and a sentence as long as that between words.

    Example:
        >>> grouped(["one two", "three four", "five"], words=4)
        ['one two\\nthree four', 'five']
        >>> grouped(["One two. Three four five. Six seven."], words=4)
        ['One two.', 'Three four five.', 'Six seven.']
    """
    pieces: list[tuple[str, str]] = []  # what stands before it, and the piece
    for paragraph in paragraphs:
        if len(paragraph.split()) <= 1.5 * words:
            pieces.append(("\n", paragraph))
            continue
        for sentence in _SENTENCE_END.split(paragraph):
            all_words = sentence.split()
            if len(all_words) <= 1.5 * words:
                pieces.append((" ", sentence))
            else:
                pieces += [(" ", " ".join(all_words[i : i + words])) for i in range(0, len(all_words), words)]
    passages: list[str] = []
    length = 0
    for gap, piece in pieces:
        added = len(piece.split())
        if passages and length + added <= words:
            passages[-1] += gap + piece
            length += added
        else:
            passages.append(piece)
            length = added
    return passages


def _headings(
    found: dict[str, list[tuple[Section, list[str]]]], dropped: Counter[str]
) -> dict[str, tuple[str, list[str]]]:
    """Query id -> heading and the passages of its section."""
    sections = [(path, section, ids) for path, entries in found.items() for section, ids in entries]
    texts = Counter(section.heading.casefold() for _, section, _ in sections)
    queries = {}
    for path, section, ids in sections:
        if not section.heading:
            continue
        if not MIN_HEADING_WORDS <= len(section.heading.split()) <= MAX_HEADING_WORDS:
            dropped[f"headings not of {MIN_HEADING_WORDS} to {MAX_HEADING_WORDS} words"] += 1
        elif not ids:
            dropped["headings without text"] += 1
        elif texts[section.heading.casefold()] > 1:
            dropped["headings of several sections"] += 1
        else:
            queries[f"q:{path}:{section.line}"] = (section.heading, ids)
    return queries


def _questions(
    file: Path, folder: Path, found: dict[str, list[tuple[Section, list[str]]]]
) -> dict[str, tuple[str, list[str]]]:
    """Query id -> question and the passages of the file or section that answers it."""
    if not file.is_file():
        raise CollectionError(f"queries: {file}: no such file; expected one question a line")
    lines_of: dict[str, int] = {}
    queries: dict[str, tuple[str, list[str]]] = {}
    for line, text in numbered_lines(file):
        if not text.strip():
            continue
        question, tab, place = (part.strip() for part in text.rstrip("\r\n").partition("\t"))
        if not tab or not question or not place:
            raise CollectionError(
                f"{file}:{line}: found {text.strip()[:80]!r}; expected a question, a tab, and the file that answers "
                "it, maybe with # and a heading"
            )
        if question in lines_of:
            raise CollectionError(
                f"{file}:{line}: found the question of line {lines_of[question]} again; expected each once"
            )
        lines_of[question] = line
        path, _, heading = place.partition("#") if place not in found else (place, "", "")
        path = os.path.normpath(path).replace(os.sep, "/")
        if path not in found:
            raise CollectionError(
                f"{file}:{line}: found the file {path!r}; expected one of the {len(found)} text files in {folder}, "
                f"such as {next(iter(found))!r}"
            )
        ids = [id for section, of in found[path] if heading in ("", section.heading) for id in of]
        if not ids:
            headings = [section.heading for section, of in found[path] if of and section.heading]
            raise CollectionError(
                f"{file}:{line}: found no text in {place!r}; headings with text there: {', '.join(headings) or 'none'}"
            )
        queries[f"q:{len(queries) + 1}"] = (question, ids)
    return queries


def _split_of(text: str) -> str:
    """train for 80 % of the queries, dev and test for 10 % each; the same on every machine."""
    tenth = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return "train" if tenth < 8 else "dev" if tenth == 8 else "test"


def _collection(
    name: str,
    passages: list[tuple[str, str, str]],
    judged: dict[str, tuple[str, list[str]]],
    skipped: dict[str, int],
) -> Collection:
    qrels = {}
    for split in ("train", "dev", "test"):
        pairs = [
            (query, passage)
            for query, (text, ids) in judged.items()
            if _split_of(text) == split
            for passage in ids
        ]
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
