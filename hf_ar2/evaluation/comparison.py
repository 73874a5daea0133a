"""Several systems on the queries of one split: their metrics, and paired tests against one of them."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hf_ar2.evaluation.metrics import DEFAULT_METRICS, parse_metric
from hf_ar2.evaluation.runs import Run, read_run, run_of_scores
from hf_ar2.evaluation.significance import PairedTest, holm, paired_test
from hf_ar2.evaluation.systems import check_relevant, evaluated_queries, measure
from hf_ar2.evaluation.tables import (
    MARKS,
    NAN_NOTE,
    display_name,
    format_cell,
    format_p,
    format_table,
    latex_table,
)
from hf_ar2.terminal import counted

if TYPE_CHECKING:
    from hf_ar2.collections import Collection

NONE = format_cell(None)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of `compare`. `print` shows it as a table for the terminal.

    Attributes:
        title: the collection, the split and the number of queries.
        metrics: the columns; the first one is tested.
        against: the system that the others are tested against.
        values: system -> metric -> float64 `[Q]`, one value per query. A metric whose cutoff exceeds the length of a
            system's lists is absent.
        tests: system -> its paired test against `against`. The p-values are corrected for the number of tests (Holm).
            Systems without the first metric are absent; so are all where there are fewer than two queries.
        notes: remarks on single systems, such as the number of queries that a run lacks.

    Example:
        >>> values = {name: {"mrr@10": np.array(found)} for name, found in {"a": [0.5, 1], "b": [1.0, 1]}.items()}
        >>> result = Comparison("my collection, test: 2 queries", ["mrr@10"], "a", values, tests={})
        >>> result.means
        {'a': {'mrr@10': 0.75}, 'b': {'mrr@10': 1.0}}
        >>> print(result.to_markdown())
        my collection, test: 2 queries
        <BLANKLINE>
        | system | MRR@10 |
        | --- | ---: |
        | a | 0.750 |
        | b | 1.000 |
    """

    title: str
    metrics: Sequence[str]
    against: str
    values: Mapping[str, Mapping[str, np.ndarray]]
    tests: Mapping[str, PairedTest]
    notes: Sequence[str] = ()

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """System -> metric -> mean over the queries."""
        return {
            system: {metric: float(values[metric].mean()) for metric in self.metrics if metric in values}
            for system, values in self.values.items()
        }

    def __str__(self) -> str:
        width = shutil.get_terminal_size((80, 24)).columns
        table = format_table(self._rows(), self._columns(), width=width)
        remarks = [textwrap.fill(remark, width, break_on_hyphens=False) for remark in self._remarks()]
        return f"{self.title}\n\n{table}" + ("\n\n" + "\n".join(remarks) if remarks else "")

    def to_markdown(self) -> str:
        """The table and its remarks in Markdown."""
        rows = [[_markdown(system), *cells] for system, *cells in self._rows()]
        table = format_table(rows, self._columns(), markdown=True)
        return "\n\n".join([_markdown(self.title), table, *map(_markdown, self._remarks())])

    def to_latex(self) -> str:
        """A table in the style of the LaTeX package booktabs; the remarks are in its caption."""
        rows, remarks = self._rows(), self._remarks()
        if any("NaN" in row for row in rows):  # in the other two forms `format_table` adds this note
            remarks.append(NAN_NOTE)
        return latex_table(rows, self._columns(), " ".join([f"{self.title}.", *remarks]))

    def _columns(self) -> list[str]:
        names = ["system", *map(display_name, self.metrics)]
        return names + ([f"Δ {display_name(self.metrics[0])}", "p", "W/L/T"] if self.tests else [])

    def _rows(self) -> list[list[str]]:
        rows = []
        for system, means in self.means.items():
            row = [system, *(format_cell(means.get(metric)) for metric in self.metrics)]
            test = self.tests.get(system)
            if test is not None:
                p = re.sub(r"^p (= )?", "", format_p(test.p_value, test.difference))
                row += [f"{test.difference:+.3f}", p, f"{test.wins}/{test.losses}/{test.ties}"]
            elif self.tests:
                row += [NONE, NONE, NONE]
            rows.append(row)
        return rows

    def _remarks(self) -> list[str]:
        remarks = list(self.notes)
        if any(metric not in values for values in self.values.values() for metric in self.metrics):
            remarks.append(f"{NONE}: the system's lists are shorter than the cutoff.")
        if self.tests:
            count = len(self.tests)
            corrected = f", p corrected for {count} comparisons (Holm)" if count > 1 else ""
            remarks.insert(
                0,
                f"Δ, p and queries won/lost/tied: {display_name(self.metrics[0])} against {self.against}; two-sided "
                f"paired randomisation test over the queries{corrected}; {MARKS}.",
            )
        return remarks


def compare(
    collection: Collection,
    systems: Mapping[str, Run | str | os.PathLike[str] | Mapping[str, Mapping[str, float]]],
    split: str = "test",
    metrics: Sequence[str] = DEFAULT_METRICS,
    against: str | None = None,
    relevance_level: int | None = None,
) -> Comparison:
    """Compare systems on the queries of a split, as `hf-ar2 compare` does.

    A query that a run lacks counts 0. Queries of a run that are not in the split are left out.

    Args:
        collection: has the judgments, or the answers, of the split.
        systems: name -> what it retrieved: a `Run`, the path of a TREC run file, or a mapping from query id to passage
            id to score.
        split: of the collection.
        metrics: names such as "mrr@10", see `hf_ar2.evaluation.metrics`; the first one is tested.
        against: the system that the others are tested against; None: the first.
        relevance_level: the lowest grade that is relevant, see `evaluate_rankings`.

    Raises:
        ValueError: no system or no metric, an unknown split, metric, id or `against`, a malformed run file, a run
            without any query of the split, or lists of `against` that are too short for the first metric.

    Example:
        >>> from datasets import Dataset
        >>> from hf_ar2.collections import Collection
        >>> judgments = {"query_id": ["q1", "q2"], "passage_id": ["d1", "d2"], "relevance": [1, 1]}
        >>> collection = Collection(
        ...     name="capitals",
        ...     corpus=Dataset.from_dict({"id": ["d1", "d2"], "title": ["", ""], "text": ["Paris", "Rome"]}),
        ...     queries=Dataset.from_dict({"id": ["q1", "q2"], "text": ["France", "Italy"]}),
        ...     qrels={"test": Dataset.from_dict(judgments)},
        ... )
        >>> bm25 = {"q1": {"d2": 3.5, "d1": 1.5}, "q2": {"d1": 2.0, "d2": 1.0}}
        >>> dense = {"q1": {"d1": 0.8, "d2": 0.2}, "q2": {"d2": 0.9, "d1": 0.3}}
        >>> result = compare(collection, {"BM25": bm25, "dense": dense}, metrics=["mrr@2", "recall@1"])
        >>> result.means["dense"], result.tests["dense"].p_value
        ({'mrr@2': 1.0, 'recall@1': 1.0}, 0.5)
    """
    for metric in metrics:
        parse_metric(metric)
    if not systems or not metrics:
        raise ValueError("expected at least one system and one metric to compare")
    against = next(iter(systems)) if against is None else against
    if against not in systems:
        raise ValueError(f"against={against!r}: no such system; expected one of {', '.join(systems)}")
    check_relevant(collection, split, relevance_level)
    queries = evaluated_queries(collection, split)
    query_ids, passage_ids = collection.queries["id"][:], collection.corpus["id"][:]
    values, notes = {}, []
    for name, given in systems.items():
        source = name
        if isinstance(given, Run):
            run = given
        elif isinstance(given, Mapping):
            run = run_of_scores(given, query_ids, passage_ids, name)
        else:
            source, run = os.fspath(given), read_run(given, query_ids, passage_ids)
        found = int(np.isin(queries, run.query_rows).sum())
        if not found:
            raise ValueError(
                f"{source}: none of its {counted(len(run.query_rows), 'queries')} is among the {len(queries):,} judged "
                f"ones of {collection.name}, such as {query_ids[int(queries[0])]!r}. Give the run of that split, or "
                "other judgments"
            )
        if found < len(queries):
            notes.append(f"{name}: queries without a list, which count 0: {len(queries) - found:,}.")
        if len(run.query_rows) > found:
            unjudged = len(run.query_rows) - found
            notes.append(f"{name}: queries without judgments, which are left out: {unjudged:,}.")
        ranking = run.of_queries(queries).passage_rows
        values[name] = measure(collection, split, ranking, metrics, relevance_level)
    title = f"{collection.name}, {split}: {counted(len(queries), 'queries')}"
    return Comparison(title, list(metrics), against, values, _tests(values, against, metrics[0]), notes)


def _tests(
    values: Mapping[str, Mapping[str, np.ndarray]], against: str, metric: str
) -> dict[str, PairedTest]:
    base = values[against].get(metric)
    if base is None:
        raise ValueError(
            f"the lists of {against} are too short for {metric}; put first a metric that all systems have"
        )
    if len(base) < 2:
        return {}
    others = {name: found[metric] for name, found in values.items() if name != against and metric in found}
    tests = {name: paired_test(found, base) for name, found in others.items()}
    corrected = holm([test.p_value for test in tests.values()]).tolist()
    return {name: replace(test, p_value=p) for (name, test), p in zip(tests.items(), corrected, strict=True)}


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", text)
