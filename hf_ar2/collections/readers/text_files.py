"""Finds the text files of a folder and reads their sections in any known format."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.readers.skip_counts import SkipCounts
from hf_ar2.collections.readers.text_faq import split_at_questions
from hf_ar2.collections.readers.text_html import html_sections
from hf_ar2.collections.readers.text_man import is_man_page, man_sections
from hf_ar2.collections.readers.text_markdown import markdown_sections
from hf_ar2.collections.readers.text_plain import plain_sections
from hf_ar2.collections.readers.text_rst import rst_sections
from hf_ar2.collections.readers.text_sections import Section

FORMATS = ".md, .txt, .rst, .html, man pages (.1 to .8), and README, FAQ and the like without an ending"

_MARKDOWN, _PLAIN, _RST = (".md", ".markdown"), (".txt", ".text"), (".rst",)
_HTML = (".html", ".htm", ".xhtml")
_SOURCES = (*_MARKDOWN, *_PLAIN, *_RST)
_MAN = re.compile(r"\.[1-8][a-z]*")
_NAMES = {
    "README", "FAQ", "INSTALL", "INSTALLATION", "CHANGELOG", "CHANGES", "NEWS", "HISTORY", "TODO", "HACKING", "BUGS",
    "CONTRIBUTING", "USAGE", "NOTES", "GUIDE", "MANUAL", "TUTORIAL", "HOWTO", "UPGRADING", "RELEASE_NOTES",
}  # fmt: skip
_OTHER_ENDINGS = 5
_LARGEST = 1 << 26  # bytes; a small gzip file can fill the memory


def read_folder(
    folder: Path, endings: Sequence[str] | None, questions: Path | None, skipped: SkipCounts
) -> Iterator[tuple[str, list[Section]]]:
    """Path and sections of the text files of a folder and its subfolders, sorted by path.

    Args:
        endings: of the files to read, such as `.md`, or file names, such as `README`; None: `FORMATS`.
        questions: a file to ignore.
        skipped: counts the skipped files: hidden, with other endings, binary, not UTF-8, without text.
    """
    wanted = {normalise_ending(ending) for ending in endings} if endings is not None else None
    others: Counter[str] = Counter()
    seen: set[bytes] = set()
    files = sorted(folder.rglob("*"))
    # Files from which an HTML page of the same name was generated.
    sources = {
        file.with_name(_plain_name(file)).with_suffix("") for file in files if _ending(file) in _SOURCES
    }
    for file in files:
        if not file.is_file() or (questions is not None and questions.is_file() and file.samefile(questions)):
            continue
        path = file.relative_to(folder)
        if any(part.startswith(".") for part in path.parts):
            skipped.add("hidden files")
            continue
        name, ending = _plain_name(file), _ending(file)
        if not (_is_text(name, ending) if wanted is None else wanted & {ending, name}):
            others[ending or "none"] += 1
            continue
        shown = path.as_posix().encode("utf-8", "replace").decode()
        if ending in _HTML and file.with_name(name).with_suffix("") in sources:
            skipped.add("HTML pages generated from another file of the folder", shown)
            continue
        text, problem = _read(file)
        if text is None:
            skipped.add(problem, shown)
            continue
        lines = re.split(r"\r\n|\r|\n", text)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if not text.strip():
            skipped.add("empty files", shown)
        elif digest in seen:
            skipped.add("copies of another file", shown)
        elif _MAN.fullmatch(ending) and not is_man_page(lines):
            skipped.add("files named like man pages without their macros", shown)
        else:
            seen.add(digest)
            yield path.as_posix(), _sections(name, ending, lines, skipped)
    if others:
        named = others.most_common(_OTHER_ENDINGS)
        listed = [f"{ending} {count:,}" for ending, count in named]
        if rest := others.total() - sum(count for _, count in named):
            listed.append(f"others {rest:,}")
        skipped.add(f"files with other endings: {', '.join(listed)}", count=others.total())


def is_html(path: str) -> bool:
    """Whether a file is read as an HTML page, by its name."""
    return _ending(Path(path)) in _HTML


def normalise_ending(ending: str) -> str:
    """An ending in lower case, or a file name as it is; CollectionError if it is neither."""
    ending = ending.strip()
    if not re.fullmatch(r"\.?[^\s./*?]+", ending):
        raise CollectionError(
            f"endings: found {ending!r}; expected endings such as .md, or file names such as README, separated by "
            "commas: --endings .md,.txt,README"
        )
    return ending.lower() if ending.startswith(".") else ending


def _plain_name(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _ending(file: Path) -> str:
    return Path(_plain_name(file)).suffix.lower()


def _is_text(name: str, ending: str) -> bool:
    if ending:
        return ending in (*_SOURCES, *_HTML) or bool(_MAN.fullmatch(ending))
    return bool(_NAMES & {name.upper(), *re.split(r"[-_ ]", name.upper())})


def _read(file: Path) -> tuple[str | None, str]:
    """The text of a file, or None and why it is skipped."""
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
            data = stream.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error):
        return None, "files that cannot be read"
    if len(data) > _LARGEST:
        return None, f"files of more than {_LARGEST >> 20} MB"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        return None, "binary files" if b"\0" in data and not utf_16 else "files that are not UTF-8"
    return (None, "binary files") if "\0" in text else (text, "")


def _sections(name: str, ending: str, lines: list[str], skipped: SkipCounts) -> list[Section]:
    is_faq = "faq" in name.lower()
    if ending in _MARKDOWN:
        sections = markdown_sections(lines, skipped)
    elif ending in _RST:
        sections = rst_sections(lines)
    elif ending in _HTML:
        sections = html_sections(lines)
    elif _MAN.fullmatch(ending):
        sections = man_sections(lines)
    else:
        sections = plain_sections(lines, is_faq)
    return split_at_questions(sections, is_faq)
