"""MS MARCO passages in tab-separated files, as released and in RocketQA's layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import find_file, find_splits, numbered_lines, tab_separated
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.readers.entries import Qrels, Queries
from hf_ar2.collections.readers.passages import PassageRows, read_corpus
from hf_ar2.collections.tables import arrow_column
from hf_ar2.terminal import counted

CORPUS_FILES = ("collection.tsv", "para.txt")


def load_ms_marco(
    folder: str | Path,
    *,
    titles: str | Path | None = None,
    name: str | None = None,
    cache_dir: str | Path | None = None,
    skip: Iterable[str] = (),
) -> Collection:
    """Reads MS MARCO passages from tab-separated files without headers; each file may be gzipped.

    - `collection.tsv` (RocketQA: `para.txt`): passage id and text, or id, title and text.
    - `queries.<split>.tsv` (RocketQA: `<split>.query.txt`): query id and text.
    - `qrels.<split>.tsv`: query id and passage id (relevance 1), or the four TREC columns query id, 0,
      passage id, relevance; the columns may be separated by spaces.

    The splits are those of the qrels. Queries of files without qrels are read too.

    Args:
        titles: A file of passage id and title; by default RocketQA's `para.title.txt` if the folder has it. `-`
            means no title. Titles are held in memory while the corpus is read.
        name, cache_dir, skip: As in `load_collection`.

    Raises:
        CollectionError: A file is missing or has an invalid line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "collection.tsv").write_text("7\\tAnn sang.")
        ...     _ = Path(folder, "queries.dev.tsv").write_text("1\\twho sang")
        ...     _ = Path(folder, "qrels.dev.tsv").write_text("1\\t0\\t7\\t1")
        ...     load_ms_marco(folder, name="tiny")
        Collection 'tiny': 1 passage, 1 query
          dev: 1 query, 1 judgment (1 relevant)
    """
    folder = Path(folder)
    problems = Problems(skip)
    passages = find_file(folder, *CORPUS_FILES)
    if passages is None:
        raise CollectionError(f"{folder}: found no {' or '.join(CORPUS_FILES)} with MS MARCO's passages")
    title_file = Path(titles) if titles is not None else find_file(folder, "para.title.txt")
    if title_file is not None and not title_file.is_file():
        raise CollectionError(f"{title_file}: found no such file; expected the titles of {passages}")
    corpus = read_corpus(
        lambda own: _passages(passages, title_file, own),
        [passages] if title_file is None else [passages, title_file],
        problems,
        cache_dir,
    )
    queries = Queries(problems)
    for pattern in ("queries.*.tsv", "*.query.txt"):
        for file in find_splits(folder, pattern).values():
            for line, (id, text) in tab_separated(file, 2, problems):
                queries.add(id, text, file, line)
    found = queries.dataset()
    query_ids, passage_ids = arrow_column(found, "id"), arrow_column(corpus, "id")
    files = find_splits(folder, "qrels.*.tsv")
    if not files or not len(found):
        missing = "qrels.<split>.tsv" if not files else "queries.<split>.tsv"
        raise CollectionError(f"{folder}: found no {missing}; expected one for each split")
    qrels = {split: _qrels(file, problems).dataset(query_ids, passage_ids) for split, file in files.items()}
    problems.log_skipped(str(folder))
    return Collection(name or folder.resolve().name, corpus, found, qrels, problems.skipped)


def _passages(file: Path, title_file: Path | None, problems: Problems) -> PassageRows:
    titles: dict[str, str] = {}
    if title_file is not None:
        titles = {id: title for _, (id, title) in tab_separated(title_file, 2, problems) if title != "-"}
    columns = _number_of_columns(file)
    for line, (id, *title, text) in tab_separated(file, columns, problems):
        yield line, id, title[0] if title else titles.get(id, ""), text


def _number_of_columns(file: Path) -> int:
    """The number of columns of the first line, 2 or 3, which the other lines must have too."""
    line, text = next(numbered_lines(file), (1, ""))
    columns = len(text.rstrip("\r\n").split("\t"))
    if columns not in (2, 3):
        raise CollectionError(
            f"{file}:{line}: found {counted(columns, 'tab-separated columns')}; "
            "expected 2 (id, text) or 3 (id, title, text)"
        )
    return columns


def _qrels(file: Path, problems: Problems) -> Qrels:
    qrels = Qrels(file, problems)
    for line, text in numbered_lines(file):
        fields = text.split()
        if len(fields) == 2:
            qrels.add(fields[0], fields[1], 1, line)
        elif len(fields) == 4:
            qrels.add(fields[0], fields[2], fields[3], line)
        elif fields:
            expected = "2 (query, passage) or 4 (query, 0, passage, relevance)"
            problems.malformed(file, line, counted(len(fields), "columns"), expected)
    return qrels
