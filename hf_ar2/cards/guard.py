"""A run's results on a collection of other texts, from `guard.json`: a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_ar2.cards.facts import source_name
from hf_ar2.cards.results import short_name
from hf_ar2.evaluation.tables import display_name, format_p, format_table

# In the folder of a run with a guard. It has `guard` (the collection), `split`, `metric`, the counts
# `queries` of `of_queries` and `passages` of `of_passages`, `before` (the model that training started from) and `rows`,
# each with `retriever`, `metrics`, `values` (of the metric, per query), `key`, and rows with `test`, the fields of a
# `PairedTest` against `before`.
GUARD_FILE = "guard.json"


def guard_table(guard: Mapping[str, Any], *, markdown: bool = False) -> str:
    """Each row's retriever on the guard, and its change against the model that training started from."""
    before, rows = guard["before"], guard["rows"]
    metrics = list(before["metrics"])
    lines: list[list[Any]] = []
    if all(row["retriever"] != before["retriever"] for row in rows.values()):
        lines.append([f"before: {source_name(before['retriever'])}", *before["metrics"].values(), None, None])
    for name, row in rows.items():
        test = row.get("test")
        change: list[str | None] = [None, None]
        if test:
            change = [f"{test['difference']:+.3f}", format_p(test["p_value"], test["difference"])]
        lines.append([name, *(row["metrics"].get(metric) for metric in metrics), *change])
    headings = ["row", *map(display_name, metrics), "change", "significance"]
    title = f"Search of other texts ({guard['guard']}, {guard['split']}): {counts_text(guard)}"
    return f"{title}\n\n{format_table(lines, headings, markdown=markdown)}"


def guard_sentence(guard: Mapping[str, Any], retriever: Any) -> str:
    """The result of a row's retriever on the guard, as a sentence; "" if it was not measured."""
    row = next((row for row in guard.get("rows", {}).values() if row["retriever"] == retriever), None)
    if row is None:
        return ""
    metric, test = guard["metric"], row.get("test")
    before = f"the model that training started from has {guard['before']['metrics'][metric]:.3f}"
    change = f" ({test['difference']:+.3f}, {format_p(test['p_value'])})" if test else ""
    return (
        f"On other texts (`{short_name(guard['guard'])}`, {guard['split']}: {counts_text(guard)}) its "
        f"{display_name(metric)} is {row['metrics'][metric]:.3f}; {before}{change}."
    )


def counts_text(guard: Mapping[str, Any]) -> str:
    """The numbers of queries and passages, those before sampling included: `300 of 1,000 queries, 20 passages`."""

    def count(what: str) -> str:
        kept, total = guard[what], guard[f"of_{what}"]
        return f"{kept:,} {what}" if kept == total else f"{kept:,} of {total:,} {what}"

    return f"{count('queries')}, {count('passages')}"
