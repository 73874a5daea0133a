"""Real questions to evaluate on: a file of one question per line, its judgments, and a note where they are missing."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import numbered_lines, tab_separated, write_lines
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.tables import QRELS_FEATURES, arrow_column, dataset_of, rows_of
from hf_ar2.collections.write import QRELS_HEADER
from hf_ar2.whole_number import whole_number

logger = logging.getLogger(__name__)

# The name of their split.
QUESTIONS = "questions"
# Query id -> passage id -> grade; above 0 is relevant.
Judged = dict[str, dict[str, int]]

_NAMED = 5


def normalised(text: str) -> str:
    """A question for comparison: without case, repeated white space, and compatibility characters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def question_id(text: str) -> str:
    """The id of a question: a hash of its normalised text, so that the file can be edited and reordered."""
    return f"question-{hashlib.blake2b(normalised(text).encode(), digest_size=6).hexdigest()}"


def read_questions(file: str | Path) -> dict[str, str]:
    """Query id -> text of a file of one question per line, in order.

    Empty lines, lines that start with `#`, and repeated questions are ignored.
    """
    file = Path(file)
    if not file.is_file():
        raise CollectionError(f"{file}: no such file; expected a file of questions, one per line")
    questions: dict[str, str] = {}
    repeated: list[str] = []
    for line, text in numbered_lines(file):
        text = " ".join(text.split())
        if not text or text.startswith("#"):
            continue
        if question_id(text) in questions:
            repeated.append(f"line {line}: {text}")
        else:
            questions[question_id(text)] = text
    if not questions:
        raise CollectionError(f"{file}: found no question; expected one per line")
    _warn(file, "repeated questions are ignored", repeated)
    return questions


def qrels_of(file: str | Path) -> Path:
    """The file of the judgments of a file of questions."""
    return Path(f"{file}.qrels.tsv")


def read_judged(file: str | Path) -> Judged:
    """The judgments of a file of questions, in BEIR's layout; `{}` if there are none yet."""
    path, judged = qrels_of(file), Judged()
    if not path.is_file():
        return judged
    for line, (query, passage, grade) in tab_separated(path, 3, Problems(), header=QRELS_HEADER):
        try:
            value = whole_number(grade)
        except ValueError:
            raise CollectionError(
                f"{path}:{line}: found score {grade!r}; expected a whole number, 0 for not relevant"
            ) from None
        if judged.setdefault(query, {}).setdefault(passage, value) != value:
            raise CollectionError(
                f"{path}:{line}: found a second, different judgment of passage {passage!r} for {query!r}; delete one "
                "of the lines"
            )
    return judged


def write_judged(file: str | Path, judged: Mapping[str, Mapping[str, int]]) -> None:
    """Writes the judgments of a file of questions atomically."""
    path = qrels_of(file)
    lines = ["\t".join(QRELS_HEADER)]
    for query, grades in judged.items():
        for passage, grade in grades.items():
            if len(f"{passage} ".splitlines()) > 1 or "\t" in passage:
                raise CollectionError(
                    f"{path}: found passage id {passage!r}; expected ids without tabs and line breaks, which qrels "
                    "cannot hold"
                )
            lines.append(f"{query}\t{passage}\t{grade}")
    write_lines(path, lines)


def with_questions(collection: Collection, file: str | Path) -> Collection:
    """The collection with the questions of a file as additional queries and, if judged, as the split `questions`.

    Judgments are read from `FILE.qrels.tsv`. Those of passages or questions that do not exist are ignored with a
    warning. A warning also names questions that are training queries; they are kept.
    """
    if QUESTIONS in {*collection.qrels, *collection.answer_splits}:
        raise CollectionError(
            f"collection {collection.name!r} already has a split {QUESTIONS!r}, the name of the split of {file}; "
            "rename the collection's split"
        )
    questions, judged = read_questions(file), read_judged(file)
    extra = datasets.Dataset.from_dict({"id": list(questions), "text": list(questions.values())})
    extended = collection.with_queries(extra)
    _warn(file, "questions that are also training queries", _trained_on(collection, questions))
    triples = [(query, *pair) for query in questions for pair in judged.get(query, {}).items()]
    known = rows_of([passage for _, passage, _ in triples], arrow_column(collection.corpus, "id")) >= 0
    path = qrels_of(file)
    gone = [passage for (_, passage, _), there in zip(triples, known, strict=True) if not there]
    _warn(path, "judged passages that are not in the corpus are ignored", dict.fromkeys(gone))
    other = [query for query in judged if query not in questions]
    _warn(path, f"judged questions that are not in {Path(file).name} are ignored", other)
    kept = [triple for triple, there in zip(triples, known, strict=True) if there]
    if kept:
        columns = dict(zip(("query_id", "passage_id", "relevance"), zip(*kept, strict=True), strict=True))
        qrels = {**collection.qrels, QUESTIONS: dataset_of(columns, QRELS_FEATURES)}
        extended = extended.with_same_corpus(qrels=qrels)
    return extended


def query_source_note(collection: Collection, split: str, run: str | None) -> str:
    """A note on a split with queries from headings or a model; for other splits "".

    With the folder of a `run`, the command to judge real questions follows.
    """
    counts = query_sources(collection).get(split, {})
    asked = counts.get("", 0)
    if asked == sum(counts.values()):
        return ""
    people = f", plus {asked:,} that people asked" if asked else ", not questions of your users"
    note = f"The queries of {split} are {source_text(counts, 'your')}{people}."
    if run is None:
        return note
    command = f"hf-ar2 label {run} FILE"
    return f"{note} Write twenty real questions\nto a file, one per line, and judge the results: {command}"


def source_text(counts: Mapping[str, int], whose: str = "the") -> str:
    """In words, where the queries come from that no person asked; `counts` is source -> number, as in `query_sources`.

    Example:
        >>> source_text({"": 3, "generated:t5": 20, "heading": 1200})
        'written by t5 (20) and headings of the documents (1,200)'
    """
    parts = []
    for source, count in counts.items():
        kind, _, model = source.partition(":")
        names = {"heading": f"headings of {whose} documents", "generated": f"written by {model}"}
        if source:
            parts.append(f"{names.get(kind, source)} ({count:,})")
    return " and ".join(parts)


def query_sources(collection: Collection) -> dict[str, dict[str, int]]:
    """Split -> source -> number of judged queries, "" for those that people asked; `{}` without sources."""
    if "source" not in collection.queries.column_names:
        return {}
    return {split: collection.query_sources(split) for split in collection.splits}


def _trained_on(collection: Collection, questions: Mapping[str, str]) -> list[str]:
    if "train" not in collection.qrels:
        return []
    rows = collection.judgments("train").query_rows
    trained = {normalised(text) for text in collection.queries.select(rows)["text"][:]}
    return [text for text in questions.values() if normalised(text) in trained]


def _warn(place: str | Path, what: str, found: Iterable[str]) -> None:
    """Log one warning with the number of items and the first few."""
    named = list(found)
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        logger.warning("%s: %s: %d (%s%s)", place, what, len(named), "; ".join(named[:_NAMED]), more)
