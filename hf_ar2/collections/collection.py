"""A test collection: a corpus of passages, queries, and relevance judgments."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_ar2.collections.judgments import Judgments
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.tables import (
    LIST_FEATURES,
    TRAINING_COLUMNS,
    arrow_column,
    check_columns,
    content_hash,
    dataset_of,
    hash_string_lists,
    hash_strings,
    lists_fingerprint,
    query_features,
    rows_of,
)
from hf_ar2.settings.values import check_name
from hf_ar2.terminal import counted

logger = logging.getLogger(__name__)

_JOINED_ROWS = 65_536


@dataclass(eq=False)
class Collection:
    """Corpus, queries and qrels of a test collection. It maps string ids to the row numbers used everywhere else.

    Attributes:
        name: Its name in tables and run files.
        corpus: Passages, columns `id`, `title` (may be empty), `text`, all strings; if queries are headings, also
            `training_title` and `training_text`, see `for_training`.
        queries: Queries of all splits, columns `id`, `text`, and optionally `answers` (list of strings) and `source`
            (string, see `query_sources`).
        qrels: Split -> judgments, columns `query_id`, `passage_id` (strings) and `relevance` (int32).
        skipped: Cause -> number of entries that the reader skipped.
        answer_splits: Split -> int64 rows of `queries`, for splits with answers and without judgments (DPR's
            `*.qa.csv`).
        lists: Training lists that came with the collection, with the columns of `TrainingLists.dataset`; None: none.
            Trainers use those of their split with `train_lists=["collection"]`.
        relevance_levels: Split -> the lowest grade that is relevant, where that is not 1, see `with_relevance_level`.
        members: Name -> weight of the collections that this one was joined of, see `join_collections`; their rows
            follow each other, and their ids begin with `name/`. Empty: it is one collection.

    Raises:
        CollectionError: A column is missing, the corpus is empty, or a split's name cannot be a file's.

    Example:
        >>> from datasets import Dataset
        >>> collection = Collection(
        ...     name="tiny",
        ...     corpus=Dataset.from_dict({"id": ["a", "b"], "title": ["Paris", ""], "text": ["City", "Dog"]}),
        ...     queries=Dataset.from_dict({"id": ["q"], "text": ["which city"]}),
        ...     qrels={"test": Dataset.from_dict({"query_id": ["q"], "passage_id": ["a"], "relevance": [1]})},
        ... )
        >>> collection
        Collection 'tiny': 2 passages, 1 query
          test: 1 query, 1 judgment (1 relevant)
        >>> collection.judgments("test").passage_rows
        array([0])
        >>> collection.passage_texts()
        ['Paris City', 'Dog']
    """

    name: str
    corpus: datasets.Dataset
    queries: datasets.Dataset
    qrels: dict[str, datasets.Dataset]
    skipped: dict[str, int] = field(default_factory=dict)
    answer_splits: dict[str, np.ndarray] = field(default_factory=dict)
    lists: datasets.Dataset | None = None
    relevance_levels: dict[str, int] = field(default_factory=dict)
    members: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_columns("corpus", self.corpus, ("id", "title", "text"))
        check_columns("queries", self.queries, ("id", "text"))
        for split in (*self.qrels, *self.answer_splits):  # they become names of files
            try:
                check_name(split)
            except ValueError as error:
                raise CollectionError(f"collection {self.name!r}: split: {error}") from None
        if set(TRAINING_COLUMNS.values()) & set(self.corpus.column_names):
            check_columns("corpus", self.corpus, tuple(TRAINING_COLUMNS.values()))
        for split, qrels in self.qrels.items():
            check_columns(f"qrels[{split!r}]", qrels, ("query_id", "passage_id", "relevance"))
        if self.lists is not None:
            check_columns("lists", self.lists, tuple(LIST_FEATURES))
        if len(self.corpus) == 0:
            raise CollectionError(f"collection {self.name!r}: found no passages; expected at least one")
        self._judgments: dict[str, Judgments] = {}

    @property
    def splits(self) -> list[str]:
        """The splits that have judgments, in the order train, dev, test, then the others by name."""
        usual = {"train": 0, "dev": 1, "test": 2}
        return sorted(self.qrels, key=lambda split: (usual.get(split, 3), split))

    def judgments(self, split: str) -> Judgments:
        """The judgments of a split by row.

        Raises:
            CollectionError: The split does not exist, or a judgment has an unknown id.
        """
        if split not in self.qrels:
            raise CollectionError(
                f"collection {self.name!r} has no qrels for split {split!r}; it has {self.splits}"
            )
        if split not in self._judgments:
            qrels = self.qrels[split]
            query_rows = self._rows_of(split, "query_id", self.queries)
            passage_rows = self._rows_of(split, "passage_id", self.corpus)
            try:
                judgments = Judgments.from_triples(
                    query_rows, passage_rows, arrow_column(qrels, "relevance").to_numpy()
                )
                self._judgments[split] = replace(judgments, level=self.relevance_levels.get(split, 1))
            except ValueError as error:
                raise CollectionError(f"collection {self.name!r}, qrels[{split!r}]: {error}") from error
        return self._judgments[split]

    def _rows_of(self, split: str, column: str, table: datasets.Dataset) -> np.ndarray:
        ids = arrow_column(self.qrels[split], column)
        rows = rows_of(ids, arrow_column(table, "id"))
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise CollectionError(
                f"collection {self.name!r}, qrels[{split!r}] row {unknown[0]}: found {column} "
                f"{ids[int(unknown[0])].as_py()!r}, which is not among the {len(table)} ids of the "
                f"{'queries' if column == 'query_id' else 'corpus'}; {len(unknown)} judgments have unknown ids"
            )
        return rows

    @cached_property
    def own_rows(self) -> np.ndarray:
        """The corpus row of each query that is itself a passage, under the same id: int64 `[len(queries)]`, else -1.

        Duplicate detection (Quora) and counter-argument retrieval (ArguAna) have such queries. Mining and evaluation
        drop this passage from the query's results, as BEIR does (`ignore_identical_ids`); unlike BEIR, they keep it
        where it is judged relevant.
        """
        rows = rows_of(arrow_column(self.queries, "id"), arrow_column(self.corpus, "id"))
        for split in self.qrels if (rows >= 0).any() else ():
            positives = self.judgments(split).positives()
            queries = np.repeat(positives.query_rows, np.diff(positives.offsets))
            rows[queries[rows[queries] == positives.passage_rows]] = -1
        if count := int((rows >= 0).sum()):
            logger.warning(
                f"{self.name}: {count} of {len(rows)} queries are also passages, under the same id; such a passage is "
                "neither a negative nor a result of its query"
            )
        return rows

    @cached_property
    def member_rows(self) -> np.ndarray:
        """The corpus rows of each of `members`: first row and end (exclusive), int64 `[M, 2]`."""
        if not self.members:
            return np.zeros((0, 2), np.int64)
        ids = arrow_column(self.corpus, "id")
        inside = [np.flatnonzero(pc.starts_with(ids, f"{name}/").to_numpy()) for name in self.members]
        stops = np.cumsum([0, *map(len, inside)])
        if not np.array_equal(np.concatenate(inside), np.arange(len(ids))):
            raise CollectionError(
                f"{self.name}: expected the passages of {', '.join(self.members)}, in this order"
            )
        return np.stack([stops[:-1], stops[1:]], axis=1)

    @cached_property
    def query_members(self) -> np.ndarray:
        """Which of `members` each query belongs to: int64 `[len(queries)]`, -1 for queries that were added."""
        found = np.full(len(self.queries), -1)
        for place, name in enumerate(self.members):
            found[pc.starts_with(arrow_column(self.queries, "id"), f"{name}/").to_numpy()] = place
        return found

    def searched_rows(self, query_rows: np.ndarray) -> np.ndarray | None:
        """The rows that each query `[Q]` searches in mining and evaluation, of its own collection: int64 `[Q, 2]`.

        First row and end (exclusive). A query that was added searches all rows. None: every query searches all rows.
        """
        if not self.members:
            return None
        return np.vstack([self.member_rows, [0, len(self.corpus)]])[self.query_members[query_rows]]

    def by_member(self, split: str) -> dict[str, str]:
        """Name of each of `members` -> its part of this split, such as `dev-nq`, if it has queries."""
        parts = {name: f"{split}-{name}" for name in self.members}
        counts = {part: len(found) for part, found in {**self.answer_splits, **self.qrels}.items()}
        return {name: part for name, part in parts.items() if counts.get(part)}

    def select_passages(self, rows: np.ndarray) -> datasets.Dataset:
        """Rows of the corpus, without a FAISS index that a trainer may have attached; `corpus.select` fails then."""
        corpus = self.corpus
        plain = datasets.Dataset(
            corpus.data, corpus.info, corpus.split, corpus._indices, fingerprint=corpus._fingerprint
        )
        return plain.select(rows)

    def passage_texts(
        self, separator: str = " ", template: str | None = None, rows: slice = slice(None)
    ) -> list[str]:
        """One string per passage: title, separator and text; only the text if there is no title.

        Args:
            separator: between title and text.
            template: used instead, a text with `{title}` and `{text}`, such as `"title: {title} | text: {text}"`.
            rows: of these passages.
        """
        start, stop, _ = rows.indices(len(self.corpus))
        columns = (arrow_column(self.corpus, name) for name in ("title", "text"))
        titles, texts = (column.slice(start, max(0, stop - start)) for column in columns)
        if template is not None:
            pairs = zip(titles.to_pylist(), texts.to_pylist(), strict=True)
            return [template.format(title=title, text=text) for title, text in pairs]
        joined: list[str] = []
        for start in range(0, len(texts), _JOINED_ROWS):
            title, text = titles.slice(start, _JOINED_ROWS), texts.slice(start, _JOINED_ROWS)
            gap = pc.if_else(pc.or_(pc.equal(title, ""), pc.equal(text, "")), "", separator)
            # The last argument is the separator, here one for each row.
            joined.extend(pc.binary_join_element_wise(title, text, gap).to_pylist())
        return joined

    def for_training(self) -> Collection:
        """The collection to train on, whose passages do not include the headings that are its queries.

        Search keeps these headings. In training, a query would match the words of its own heading, and the model would
        learn nothing.

        Returns:
            A collection whose `title` and `text` are `training_title` and `training_text`, with the same ids, queries
            and judgments; this collection itself if it has no such columns.
        """
        if TRAINING_COLUMNS["title"] not in self.corpus.column_names:
            return self
        corpus = self.corpus.remove_columns(list(TRAINING_COLUMNS))
        corpus = corpus.rename_columns({name: shown for shown, name in TRAINING_COLUMNS.items()})
        view = replace(self, corpus=corpus.select_columns(["id", *TRAINING_COLUMNS]))
        view._judgments = self._judgments  # by row, and no row has changed
        return view

    def query_sources(self, split: str) -> dict[str, int]:
        """Source -> number of queries of a split, such as "heading"; "" for queries that people asked.

        Raises:
            CollectionError: The split does not exist.
        """
        if split in self.answer_splits:
            rows = np.asarray(self.answer_splits[split], dtype=np.int64)
        else:
            rows = self.judgments(split).query_rows
        if "source" not in self.queries.column_names:
            return {"": len(rows)}
        return dict(sorted(Counter(source or "" for source in self.queries.select(rows)["source"]).items()))

    def with_queries(self, extra: datasets.Dataset) -> Collection:
        """The collection with more queries, appended so that rows do not change. Queries it already has are ignored.

        Args:
            extra: Columns `id`, `text` and optionally `source`; other columns are ignored.

        Raises:
            CollectionError: A column is missing, an id or a text is empty, or an id has two texts.
        """
        check_columns("queries to add", extra, ("id", "text"))
        known = dict(zip(self.queries["id"][:], self.queries["text"][:], strict=True))
        new: dict[str, str] = {}
        for row, (id, text) in enumerate(zip(extra["id"], extra["text"], strict=True)):
            if not id or not text or not text.strip():
                raise CollectionError(
                    f"queries to add, row {row}: found id {id!r} with text {text!r}; expected both to be nonempty"
                )
            if known.get(id, text) != text or new.get(id, text) != text:
                raise CollectionError(
                    f"queries to add, row {row}: found query id {id!r} with text {text!r}, but it already has the text "
                    f"{known.get(id, new.get(id))!r}; expected a unique id for each query"
                )
            if id not in known:
                new[id] = text
        if not new:
            return self
        source = extra["source"] if "source" in extra.column_names else [""] * len(extra)
        sources = dict(zip(extra["id"], source, strict=True))
        columns: dict[str, list] = {"id": list(new), "text": list(new.values()), "answers": [[]] * len(new)}
        columns["source"] = [sources[id] or "" for id in new]
        own = self.queries
        if "source" in extra.column_names and "source" not in own.column_names:
            own = own.add_column("source", [""] * len(own))
        features = query_features(own.column_names)
        own = own.select_columns(list(features))
        own = own if own.features == features else own.cast(features)
        queries = datasets.concatenate_datasets([own, dataset_of(columns, features)])
        extended = self.with_same_corpus(queries=queries)
        extended._judgments = self._judgments  # by row, and no row has changed
        return extended

    def with_relevance_level(self, level: int, splits: Iterable[str]) -> Collection:
        """The collection with another lowest grade that is relevant in some splits, for graded judgments.

        It decides which passages are positives and which count in all metrics but nDCG, which reads the grades.
        """
        named = [one for split in splits for one in (split, *self.by_member(split).values())]
        levels = {**self.relevance_levels, **dict.fromkeys(named, level)}
        if all(self.relevance_levels.get(split, 1) == found for split, found in levels.items()):
            return self
        changed = self.with_same_corpus(relevance_levels=levels)
        for split, judgments in self._judgments.items():
            changed._judgments[split] = replace(judgments, level=levels.get(split, 1))
        return changed

    def with_same_corpus(self, **fields: Any) -> Collection:
        """A copy with other fields, which keeps the fingerprint of the corpus: hashing it can take minutes."""
        copy = replace(self, **fields)
        if "corpus_fingerprint" in self.__dict__:
            copy.__dict__["corpus_fingerprint"] = self.corpus_fingerprint
        return copy

    def save(self, folder: str | Path) -> None:
        """Writes the collection as a BEIR folder. `load_collection` reads it back with the same fingerprint.

        Raises:
            CollectionError: The folder has other content than a BEIR collection.
        """
        from hf_ar2.collections.write import write_beir

        write_beir(self, Path(folder))

    @cached_property
    def corpus_fingerprint(self) -> str:
        """32 hex digits of the ids, titles and texts of the passages, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for column in ("id", "title", "text"):
            hash_strings(arrow_column(self.corpus, column), digest)
        return digest.hexdigest()

    @cached_property
    def queries_fingerprint(self) -> str:
        """32 hex digits of the ids, texts and answers of the queries, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for column in ("id", "text"):
            hash_strings(arrow_column(self.queries, column), digest)
        if "answers" in self.queries.column_names:
            hash_string_lists(arrow_column(self.queries, "answers"), digest)
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of the passages, also as training reads them, the queries, the judgments, and the lists.

        It does not depend on the order of the judgments, the name, the path, or the format.
        """
        parts: list[bytes | np.ndarray]
        parts = [self.corpus_fingerprint.encode(), self.queries_fingerprint.encode()]
        for split in sorted(self.qrels):
            judgments = self.judgments(split)
            parts += [f"qrels {split}".encode(), judgments.query_rows, judgments.offsets]
            parts += [judgments.passage_rows, judgments.relevance]
        if (view := self.for_training()) is not self:
            parts += [b"for training", view.corpus_fingerprint.encode()]
        for split in sorted(self.answer_splits):
            parts += [f"answers {split}".encode(), np.asarray(self.answer_splits[split], dtype=np.int64)]
        if self.lists is not None:
            parts += [b"lists", lists_fingerprint(self.lists).encode()]
        if self.members:
            parts += [b"members", repr(self.members).encode()]
        return content_hash(*parts)

    def __repr__(self) -> str:
        passages, queries = counted(len(self.corpus), "passages"), counted(len(self.queries), "queries")
        lines = [f"Collection {self.name!r}: {passages}, {queries}"]
        for (start, stop), (name, weight) in zip(self.member_rows, self.members.items(), strict=True):
            lines.append(f"  {name}: {counted(stop - start, 'passages')}, weight {weight:g}")
        for split in self.splits:
            judgments = self.judgments(split)
            judged, relevant = len(judgments.relevance), len(judgments.positives().passage_rows)
            counts = f"{counted(judged, 'judgments')} ({relevant:,} relevant)"
            lines.append(f"  {split}: {counted(len(judgments), 'queries')}, {counts}")
        for split, rows in self.answer_splits.items():
            lines.append(f"  {split}: {counted(len(rows), 'queries')} with answers")
        if self.lists is not None:
            lines.append(f"  training lists: {len(self.lists):,}")
        if self.skipped:
            skipped = [counted(count, cause) for cause, count in self.skipped.items()]
            few, each = ", ".join(skipped), "\n    ".join(["", *skipped])
            lines.append(f"  skipped: {few}" if len(skipped) < 4 else f"  skipped:{each}")
        return "\n".join(lines)
