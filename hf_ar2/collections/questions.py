"""Real questions to measure on: a file of one question a line, and the judgments that people made of what was found."""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.lines import numbered_lines, tab_separated
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.tables import QRELS_FEATURES, arrow_column, dataset_of, rows_of
from hf_ar2.collections.write import QRELS_HEADER

logger = logging.getLogger(__name__)

# The split that real questions become.
QUESTIONS = "questions"
# Query id -> passage id -> grade; above 0 is relevant.
Judged = dict[str, dict[str, int]]

_NAMED = 5


def normalised(text: str) -> str:
    """A question without what does not make it another one: case, white space, and forms of the same character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def question_id(text: str) -> str:
    """The id of a question, a hash of its normalised text: it stays when the file is edited or reordered."""
    return f"question-{hashlib.blake2b(normalised(text).encode(), digest_size=6).hexdigest()}"


def read_questions(file: str | Path) -> dict[str, str]:
    """Query id -> text of a file of one question a line, in their order.

    Empty lines and lines that begin with `#` are no questions. A question that is there twice counts once.

    Raises:
        CollectionError: There is no such file, it is not UTF-8, or it has no question.
    """
    file = Path(file)
    if not file.is_file():
        raise CollectionError(f"{file}: no such file; expected a file of questions, one a line")
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
        raise CollectionError(f"{file}: found no question; expected one a line")
    _report(file, "questions that are there twice count once", repeated)
    return questions


def qrels_of(file: str | Path) -> Path:
    """Where the judgments of a file of questions are."""
    return Path(f"{file}.qrels.tsv")


def read_judged(file: str | Path) -> Judged:
    """The judgments of a file of questions, in BEIR's layout; `{}` where there are none yet.

    Raises:
        CollectionError: The file has another header, or a line that is no judgment or is there twice.
    """
    path, judged = qrels_of(file), Judged()
    if not path.is_file():
        return judged
    for line, (query, passage, grade) in tab_separated(path, 3, Problems(), header=QRELS_HEADER):
        try:
            value = int(grade)
        except ValueError:
            raise CollectionError(
                f"{path}:{line}: found score {grade!r}; expected a whole number, 0 for not relevant"
            ) from None
        if judged.setdefault(query, {}).setdefault(passage, value) != value:
            raise CollectionError(
                f"{path}:{line}: found a second, different judgment of passage {passage!r} for {query!r}; expected "
                "one for each pair. Delete one of the lines"
            )
    return judged


def write_judged(file: str | Path, judged: Mapping[str, Mapping[str, int]]) -> None:
    """Writes the judgments of a file of questions; the file appears whole or not at all.

    Raises:
        CollectionError: A passage id has a tab or a line break, which the layout cannot hold.
    """
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
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    os.replace(partial, path)


def with_questions(collection: Collection, file: str | Path) -> Collection:
    """The collection with the questions of a file as further queries, and those that are judged as split `questions`.

    Judgments are read from `FILE.qrels.tsv`; without any, there is no such split. Named in a warning and left out
    are judgments of passages that the corpus does not have and of questions that the file does not have. Questions
    that training queries ask as well are named too, and stay.

    Raises:
        CollectionError: The file or its judgments cannot be read, or the collection has a split of this name.
    """
    if QUESTIONS in {*collection.qrels, *collection.answer_splits}:
        raise CollectionError(
            f"collection {collection.name!r} has a split {QUESTIONS!r} already; expected none of this name, which is "
            f"that of {file}. Rename the collection's split"
        )
    questions, judged = read_questions(file), read_judged(file)
    extra = datasets.Dataset.from_dict({"id": list(questions), "text": list(questions.values())})
    extended = collection.with_queries(extra)
    _report(file, "questions that training queries ask too", _trained_on(collection, questions))
    triples = [
        (query, passage, grade) for query in questions for passage, grade in judged.get(query, {}).items()
    ]
    known = rows_of([passage for _, passage, _ in triples], arrow_column(collection.corpus, "id")) >= 0
    path = qrels_of(file)
    gone = [passage for (_, passage, _), there in zip(triples, known, strict=True) if not there]
    _report(path, "judged passages that the corpus does not have are left out", list(dict.fromkeys(gone)))
    other = [query for query in judged if query not in questions]
    _report(path, f"judged questions that {Path(file).name} does not have are left out", other)
    kept = [triple for triple, there in zip(triples, known, strict=True) if there]
    if kept:
        columns = dict(zip(("query_id", "passage_id", "relevance"), zip(*kept, strict=True), strict=True))
        extended = _with_split(extended, dataset_of(columns, QRELS_FEATURES))
    return extended


def _with_split(collection: Collection, qrels: datasets.Dataset) -> Collection:
    """The collection with the split; what is known of its corpus is not computed again."""
    found = Collection(
        collection.name,
        collection.corpus,
        collection.queries,
        {**collection.qrels, QUESTIONS: qrels},
        collection.skipped,
        collection.answer_splits,
    )
    if "corpus_fingerprint" in collection.__dict__:
        found.__dict__["corpus_fingerprint"] = collection.corpus_fingerprint
    return found


def _trained_on(collection: Collection, questions: Mapping[str, str]) -> list[str]:
    if "train" not in collection.qrels:
        return []
    rows = collection.judgments("train").query_rows
    asked = {normalised(text) for text in collection.queries.select(rows)["text"]}
    return [text for text in questions.values() if normalised(text) in asked]


def _report(place: str | Path, what: str, found: Iterable[str]) -> None:
    """One warning: how many, and which, the first of them where they are many."""
    named = list(found)
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        logger.warning("%s: %s: %d (%s%s)", place, what, len(named), "; ".join(named[:_NAMED]), more)
