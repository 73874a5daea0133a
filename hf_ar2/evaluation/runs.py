"""Run files and qrels files, the formats of retrieval systems and trec_eval.

A line of a run file has one retrieved passage, `query_id Q0 passage_id rank score tag`, or in MS MARCO's format
`query_id passage_id rank`. A line of a qrels file is `query_id 0 passage_id relevance`. Paths that end in .gz are
compressed. The files have ids; everywhere else passages and queries are rows.

A run is written in the given order, and read in the order of its rank column. If ranks are equal or contradict the
scores, it is read as trec_eval reads every run, by score and then by document id, both descending, with a warning. So
metrics can differ from trec_eval's only where scores are tied.

Blank lines and a byte order mark are ignored.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from hf_ar2.evaluation.columns import check_no_repeats, opened, read_columns, rows_of_ids
from hf_ar2.files import check_files, read_json, writing
from hf_ar2.terminal import counted

if TYPE_CHECKING:
    from hf_ar2.collections import Collection
    from hf_ar2.collections.judgments import Judgments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """The passages that one system retrieved.

    Attributes:
        query_rows: int64 `[Q]`, ascending.
        passage_rows: int64 `[Q, K]`, best first, -1 padded.
        scores: float32 `[Q, K]`, -inf under the padding.
        tag: the system's name.

    Example:
        >>> run = Run(np.array([0, 2]), np.array([[5, 3], [4, -1]]), np.array([[2, 1], [0.5, -np.inf]]), "bm25")
        >>> run.of_queries([2, 1]).passage_rows.tolist()  # the run has no list for query 1
        [[4, -1], [-1, -1]]
    """

    query_rows: np.ndarray
    passage_rows: np.ndarray
    scores: np.ndarray
    tag: str = ""

    def of_queries(self, query_rows: np.ndarray) -> Run:
        """The run of these queries, int64 `[Q']`, in this order; a query that the run lacks gets an empty list.

        The metrics take `run.of_queries(judgments.query_rows).passage_rows`.
        """
        query_rows = np.asarray(query_rows, np.int64)
        passage_rows = np.full((len(query_rows), self.passage_rows.shape[1]), -1, np.int64)
        scores = np.full(passage_rows.shape, -np.inf, np.float32)
        if len(self.query_rows):
            place = np.minimum(np.searchsorted(self.query_rows, query_rows), len(self.query_rows) - 1)
            held = self.query_rows[place] == query_rows
            passage_rows[held], scores[held] = self.passage_rows[place[held]], self.scores[place[held]]
        return Run(query_rows, passage_rows, scores, self.tag)


def run_of_scores(
    scores: Mapping[str, Mapping[str, float]],
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    tag: str = "",
) -> Run:
    """The run of a mapping from query id to passage id to score; passages are sorted by score, ties as given."""
    query_row, passage_row = rows_of_ids(query_ids), rows_of_ids(passage_ids)
    for query, found in scores.items():
        for kind, ids, known in (("query", [query], query_row), ("passage", found, passage_row)):
            unknown = next((name for name in ids if name not in known), None)
            if unknown is not None:
                raise ValueError(f"{tag}: unknown {kind} id {unknown!r}; the collection does not have it")
    queries = sorted(scores, key=query_row.__getitem__)
    passage_rows = np.full((len(queries), max(map(len, scores.values()), default=0)), -1, np.int64)
    values = np.full(passage_rows.shape, -np.inf, np.float32)
    for i, query in enumerate(queries):
        found = scores[query]
        best_first = sorted(found, key=found.__getitem__, reverse=True)
        passage_rows[i, : len(found)] = [passage_row[passage] for passage in best_first]
        values[i, : len(found)] = [found[passage] for passage in best_first]
    return Run(np.array([query_row[query] for query in queries], np.int64), passage_rows, values, tag)


def run_file(folder: str | os.PathLike[str], row: str, split: str, system: str) -> Path:
    """The path of a TREC run in a run folder; `system` is `"retriever"`, `"ranker"` or `"pipeline"`."""
    return Path(folder) / "runs" / row / f"{split}.{system}.trec"


def check_run_files(folder: str | os.PathLike[str], row: str) -> None:
    """Compare a row's run files in a run folder with the checksums that the recipe's evaluation recorded."""
    advice = "Run the command that made the run again: it evaluates the row again."
    for name in ("key.json", "questions.json"):
        note = Path(folder) / "evaluation" / row / name
        noted = read_json(note) if note.is_file() else {}
        if isinstance(noted, dict):
            check_files(note.parent, noted.get("checksums", {}), advice)


def write_run(
    path: str | os.PathLike[str],
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    rows: np.ndarray,
    scores: np.ndarray,
    tag: str = "hf_ar2",
    *,
    format: Literal["trec", "ms-marco"] = "trec",
) -> None:
    """Write a run, with nine significant digits of each score, enough to read the same float32 back.

    Args:
        query_ids: Q ids, of the queries of the rankings.
        passage_ids: id of every passage of the corpus, by row.
        rows: int `[Q, K]`, passage rows, best first, -1 padded.
        scores: float `[Q, K]`.
        tag: the system's name.
        format: `"trec"` (six columns) or `"ms-marco"` (three columns, tabs, no scores).

    Raises:
        ValueError: an id or the tag is empty or has white space; arrays that do not fit each other.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows, scores = np.array([[1, 0]]), np.array([[9.5, 7.0]])
        ...     write_run(f"{folder}/test.trec", ["q1"], ["d1", "d2"], rows, scores, "bm25")
        ...     print(Path(f"{folder}/test.trec").read_text(), end="")
        q1 Q0 d2 1 9.5 bm25
        q1 Q0 d1 2 7 bm25
    """
    rows, scores = np.asarray(rows), np.asarray(scores)
    if format not in ("trec", "ms-marco"):
        raise ValueError(f"unknown run format {format!r}; it is 'trec' or 'ms-marco'")
    if rows.ndim != 2 or len(query_ids) != len(rows) or rows.shape != scores.shape:
        raise ValueError(
            f"a run of {len(query_ids)} queries needs rows and scores of one shape [{len(query_ids)}, K]; "
            f"found {list(rows.shape)} and {list(scores.shape)}"
        )
    _check_ids("run tag", [tag])
    _check_ids("query id", list(query_ids))
    found = np.unique(rows[rows >= 0])
    found_ids = _ids_at(passage_ids, found)
    _check_ids("passage id", found_ids)
    ranks = list(range(1, rows.shape[1] + 1))
    with _replacing(path) as file:
        for query_id, query_rows, query_scores in zip(query_ids, rows, scores, strict=True):
            kept = query_rows >= 0
            places = np.searchsorted(found, query_rows[kept]).tolist()
            columns: list[list[Any]] = [[found_ids[place] for place in places], ranks]
            escaped = query_id.replace("%", "%%")
            if format == "trec":
                columns.append(query_scores[kept].tolist())
                line = f"{escaped} Q0 %s %d %.9g {tag.replace('%', '%%')}\n"
            else:
                line = f"{escaped}\t%s\t%d\n"
            # One % for all lines of a query runs in C; a call per line takes several times as long.
            file.write(line * len(columns[0]) % tuple(_interleaved(columns, len(columns[0]))))


def read_run(path: str | os.PathLike[str], query_ids: Sequence[str], passage_ids: Sequence[str]) -> Run:
    """Read a run in TREC's six columns or MS MARCO's three, depending on the first line.

    The rank column decides the order. If a query has equal ranks, or a rank contradicts its score, the scores decide,
    then the passage ids, both descending (as in trec_eval), with a warning. Without a score column, scores are 1 /
    rank, and equal ranks keep the order of the lines.

    Args:
        query_ids, passage_ids: the ids of all queries and passages, by row.

    Raises:
        ValueError: a line with another number of columns, a rank or score that is not a number, an unknown id, a
            passage listed twice for a query; the message names the file and the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "bm25.trec").write_text("q1 Q0 d2 1 9.5 bm25\\nq1 Q0 d1 2 7 bm25")
        ...     run = read_run(f"{folder}/bm25.trec", query_ids=["q0", "q1"], passage_ids=["d1", "d2"])
        >>> run.tag, run.query_rows.tolist(), run.passage_rows.tolist(), run.scores.tolist()
        ('bm25', [1], [[1, 0]], [[9.5, 7.0]])
    """
    with opened(path) as file:
        lines = enumerate(iter(partial(file.readline, 1 << 20), ""), 1)
        number, line = next(((number, line) for number, line in lines if not line.isspace()), (1, ""))
    first = line.split()
    if len(first) not in (0, 3, 6):
        raise ValueError(
            f"{path}:{number}: found {counted(len(first), 'columns')}; expected "
            "'query_id Q0 passage_id rank score tag' or 'query_id passage_id rank'"
        )
    trec = len(first) != 3
    names = ("query", "Q0", "passage", "rank", "score", "tag") if trec else ("query", "passage", "rank")
    rows = {"query": rows_of_ids(query_ids), "passage": rows_of_ids(passage_ids)}
    columns = read_columns(path, names, {**rows, "rank": int, "score": float})
    query, passage, rank = columns["query"], columns["passage"], columns["rank"]
    check_no_repeats(path, columns, "retrieved", query_ids, passage_ids)
    score = columns["score"] if trec else 1.0 / np.maximum(rank, 1)

    order = np.lexsort((rank, query))
    same_query = query[order][1:] == query[order][:-1]
    equal = same_query & (rank[order][1:] == rank[order][:-1])
    contradicted = same_query & ~equal & (score[order][1:] > score[order][:-1])
    if trec and (wrong := np.flatnonzero(equal | contradicted)).size:
        two = sorted(columns["line"][order[wrong[0] : wrong[0] + 2]].tolist())
        problem = "have equal ranks" if equal[wrong[0]] else "have ranks that contradict their scores"
        logger.warning(
            f"{path}: lines {two[0]} and {two[1]} {problem}, so the run is ordered by score, as trec_eval does"
        )
        # Ids in order, so that ties are broken without sorting the ids of the whole corpus.
        found, place = np.unique(passage, return_inverse=True)
        found_ids = _ids_at(passage_ids, found)
        id_rank = np.empty(len(found), np.int64)
        id_rank[sorted(range(len(found)), key=found_ids.__getitem__)] = np.arange(len(found))
        order = np.lexsort((-id_rank[place], -score, query))
    query, passage, score = query[order], passage[order], score[order]
    query_rows, starts, lengths = np.unique(query, return_index=True, return_counts=True)
    place = np.repeat(np.arange(len(query_rows)), lengths)
    column = np.arange(len(query)) - np.repeat(starts, lengths)
    passage_rows = np.full((len(query_rows), int(lengths.max(initial=0))), -1, np.int64)
    scores = np.full(passage_rows.shape, -np.inf, np.float32)
    passage_rows[place, column] = passage
    scores[place, column] = score
    return Run(query_rows, passage_rows, scores, first[5] if trec and first else "")


def write_qrels(
    path: str | os.PathLike[str], query_ids: Sequence[str], passage_ids: Sequence[str], judgments: Judgments
) -> None:
    """Write judgments as `query_id 0 passage_id relevance`, with arguments as `read_qrels`.

    Raises:
        ValueError: an id is empty or has white space.

    Example:
        >>> import tempfile
        >>> from hf_ar2.collections import Judgments
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     judgments = Judgments.from_triples([0, 0], [1, 0], [1, 0])
        ...     write_qrels(f"{folder}/qrels", ["q1"], ["d1", "d2"], judgments)
        ...     print(Path(f"{folder}/qrels").read_text(), end="")
        q1 0 d1 0
        q1 0 d2 1
    """
    queries = _ids_at(query_ids, np.repeat(judgments.query_rows, np.diff(judgments.offsets)))
    passages = _ids_at(passage_ids, judgments.passage_rows)
    _check_ids("query id", queries)
    _check_ids("passage id", passages)
    columns = (queries, passages, judgments.relevance.tolist())
    with _replacing(path) as file:
        file.write("%s 0 %s %d\n" * len(queries) % tuple(_interleaved(columns, len(queries))))


def read_qrels(
    path: str | os.PathLike[str], query_ids: Sequence[str], passage_ids: Sequence[str]
) -> Judgments:
    """Read a qrels file, `query_id 0 passage_id relevance`.

    Args:
        query_ids, passage_ids: the ids of all queries and passages, by row.

    Raises:
        ValueError: a line with another number of columns, a relevance that is not a whole number, an unknown id, a
            passage judged twice for a query; the message names the file and the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "qrels").write_text("q1 0 d2 1")
        ...     judgments = read_qrels(f"{folder}/qrels", query_ids=["q0", "q1"], passage_ids=["d1", "d2"])
        >>> judgments.query_rows, judgments.of(0)
        (array([1]), (array([1]), array([1], dtype=int32)))
    """
    from hf_ar2.collections.judgments import Judgments  # here, so that metrics need nothing but numpy

    rows = {"query": rows_of_ids(query_ids), "passage": rows_of_ids(passage_ids)}
    columns = read_columns(path, ("query", "0", "passage", "relevance"), {**rows, "relevance": int})
    check_no_repeats(path, columns, "judged", query_ids, passage_ids)
    return Judgments.from_triples(columns["query"], columns["passage"], columns["relevance"])


def check_run_ids(collection: Collection) -> None:
    """Check that run and qrels files can hold the ids of a collection, before time is spent on rankings."""
    for kind, table in (("query", collection.queries), ("passage", collection.corpus)):
        _check_ids(f"{collection.name}: {kind} id", list(table["id"]))


def _check_ids(what: str, ids: list[str]) -> None:
    # One call of split finds in C whether any is empty or has white space.
    if len(" ".join(ids).split()) != len(ids):
        wrong = next(name for name in ids if len(name.split()) != 1)
        raise ValueError(
            f"{what} {wrong!r} is empty or has white space, which separates the columns of run and qrels files. Rename "
            "it, for example with '_' in place of spaces"
        )


def _ids_at(ids: Sequence[str], rows: np.ndarray) -> list[str]:
    """The ids at these rows; of a column of a `datasets.Dataset` they are read together, one by one takes long."""
    from datasets.arrow_dataset import Column  # here, so that metrics need numpy alone

    if isinstance(ids, Column):
        return list(ids[rows.tolist()])
    return [ids[row] for row in rows.tolist()]


def _interleaved(columns: Sequence[Sequence[Any]], length: int) -> list[Any]:
    """[a1, b1, c1, a2, b2, c2, ...] of the first `length` values of the columns."""
    flat: list[Any] = [None] * (length * len(columns))
    for place, column in enumerate(columns):
        flat[place :: len(columns)] = column[:length]
    return flat


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """A text file to write, which replaces `path` when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path), ExitStack() as stack:
            file: Any = stack.enter_context(open(partial, "wb"))
            if path.suffix == ".gz":
                # No name or time in the header, so that equal runs give equal files.
                file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
            yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
