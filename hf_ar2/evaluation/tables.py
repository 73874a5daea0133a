"""Tables of results for the terminal, in Markdown and in LaTeX."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_ar2.evaluation.significance import PairedTest
from hf_ar2.terminal import counted, visible

Metrics = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
Tests = Mapping[str, Mapping[str, Mapping[str, PairedTest | Mapping[str, float]]]]

# Column headings of the systems for which only the first metric is shown.
_SHORT = {"hybrid": "+ BM25", "pipeline": "pipeline"}
RETRIEVER_METRICS = ("mrr@10", "ndcg@10", "recall@100")
MARKS = "* p < .05, ** p < .01, *** p < .001; ▼, ▼▼, ▼▼▼: the same, for a loss"
LEGEND = (
    f"{MARKS} (two-sided paired test over the queries). The mark of a retriever compares it with the retriever of the "
    "stage before, the mark of a pipeline or of BM25 added with the retriever of its stage."
)
NAN_NOTE = "NaN: there was nothing to average, or a value was not finite."

# Character -> its form in LaTeX.
_ESCAPES = {character: f"\\{character}" for character in "&%$#_{}"}
_ESCAPES |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {"<": "$<$", ">": "$>$", "|": "$|$", "–": "--", "≤": r"$\leq$", "≥": r"$\geq$"}
_ESCAPES["▼"] = r"$\bigtriangledown$"
# pdflatex stops at a Greek letter. LaTeX has no commands for those that look like Latin ones.
_GREEK = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi mathrm{o} pi rho varsigma sigma tau "
    "upsilon varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega epsilon phi vartheta"
).split()
_ESCAPES |= {
    letter: rf"$\{name}$"
    for letter, name in zip("αβγδεζηθικλμνξοπρςστυφχψωΓΔΘΛΞΠΣΥΦΨΩϵϕϑ", _GREEK, strict=True)
}
_ESCAPES |= dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True))


def format_table(
    rows: Sequence[Sequence[Any]], columns: Sequence[str], *, markdown: bool = False, width: int = 80
) -> str:
    """An aligned table as text, or in Markdown.

    Floats get three decimals, None a dash; a note below the table explains NaN. Columns of numbers are aligned on the
    right, others on the left. If a text table is wider than `width` characters, its text columns are wrapped, the
    widest first. A name that is longer than its column ends in …, and is given in full below the table.
    """
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"row {number} has {len(row)} cells for the {len(columns)} columns {list(columns)}: {row}"
            )
    cells = [[format_cell(value) for value in row] for row in rows]
    numeric = [all(re.match(r" *([-+]?\d|–|NaN)", row[i]) for row in cells) for i in range(len(columns))]
    note = NAN_NOTE if any("NaN" in row for row in cells) else ""
    if markdown:
        rule = ["---:" if right else "---" for right in numeric]
        escaped = [[cell.strip().replace("|", "\\|") for cell in row] for row in [list(columns), *cells]]
        table = "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])
        return f"{table}\n\n{note}" if note else table

    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    gaps = 2 * (len(columns) - 1)
    wrappable = [i for i in range(len(columns)) if not numeric[i]]
    while wrappable and sum(widths) + gaps > width:
        widest = max(wrappable, key=lambda i: widths[i])
        if widths[widest] <= 12:
            break
        widths[widest] = max(12, widths[widest] - (sum(widths) + gaps - width))
    cut: dict[str, str] = {}
    lines = _aligned(list(columns), widths, numeric, cut)
    lines.append("─" * (sum(widths) + gaps))
    for row in cells:
        lines += _aligned(row, widths, numeric, cut)
    if cut:
        lines += ["", *(f"{short}: {name}" for name, short in cut.items())]
    if note:
        lines += ["", *textwrap.wrap(note, width)]
    return "\n".join(lines)


def stage_table(
    metrics: Metrics,
    tests: Tests | None = None,
    *,
    split: str = "test",
    names: Sequence[str] = RETRIEVER_METRICS,
    markdown: bool = False,
    width: int = 80,
    served: str | None = None,
) -> str:
    """The table that a run ends with: the metrics of each stage, and the significance of the changes.

    Args:
        metrics: stage -> split -> "retriever" | "hybrid" | "ranker" | "pipeline" -> metric -> value, stages in order,
            as in metrics.json. Missing values are shown as a dash; a system that no stage has gets no column.
        tests: stage -> split -> "retriever" | "pipeline" | "pipeline_before" -> `paired_test` of the first metric, or
            the dict of its fields: this stage's retriever against the one of the stage before, this stage's pipeline
            against this stage's retriever, and against the last pipeline before it.
        names: the retriever's metrics, the one that was tested first; the other systems are shown with that one.
        width: of the terminal, in characters.
        served: the stage to mark as served.
    """
    stages = [stage for stage in metrics if split in metrics[stage]]
    if not stages:
        found = sorted({name for splits in metrics.values() for name in splits})
        raise ValueError(f"no stage has the split {split!r}; splits found: {', '.join(found) or 'none'}")
    outcomes = {stage: _paired_tests((tests or {}).get(stage, {}).get(split, {})) for stage in stages}
    tested = [test for outcome in outcomes.values() for test in outcome.values()]
    # Marks of one length, so that the values before them stay aligned.
    longest = max((len(significance_mark(test.p_value, test.difference)) for test in tested), default=0)
    columns: dict[str, Sequence[str]] = {"retriever": names}
    for system in ("hybrid", "pipeline"):
        if any(system in metrics[stage][split] for stage in stages):
            columns[system] = names[:1]
    results, compared = [], []
    with_pipeline = ""
    for number, stage in enumerate(stages):
        systems, outcome = metrics[stage][split], outcomes[stage]
        row = [f"{stage} (served)" if stage == served else stage]
        for system, shown in columns.items():
            values = [systems.get(system, {}).get(name) for name in shown]
            test = outcome.get(system)
            mark = significance_mark(test.p_value, test.difference) if test is not None else ""
            first = format_cell(values[0])
            row += [f"{first:>5} {mark:<{longest}}" if longest else first, *map(format_cell, values[1:])]
        results.append(row)
        over = f"{stage} over {stages[number - 1]}" if number else stage
        for key, label in (
            ("retriever", f"retriever: {over}"),
            ("hybrid", f"with BM25 over without: {stage}"),
            ("pipeline_before", f"pipeline: {stage} over {with_pipeline}"),
            ("pipeline", f"pipeline over retriever: {stage}"),
        ):
            if key in outcome:
                test = outcome[key]
                change = f"{test.difference:+.3f}", format_p(test.p_value, test.difference)
                compared.append([label, *change, test.wins, test.losses, test.ties])
        with_pipeline = stage if "pipeline" in systems else with_pipeline
    sizes = {test.wins + test.losses + test.ties for test in tested}
    queries = f": {counted(sizes.pop(), 'queries')}" if len(sizes) == 1 else ""
    headings = ["stage"]
    for system, shown in columns.items():
        first, *others = map(display_name, shown)
        short = "hybrid" in columns and system != "retriever"  # the same metric as the retriever's first
        headings += [_SHORT[system] if short else f"{system} {first}", *others]
    parts = [f"{split}{queries}", format_table(results, headings, markdown=markdown, width=width)]
    if compared:
        outcome_of = f"{display_name(names[0])} compared"
        headings = [outcome_of, "change", "significance", "better", "worse", "equal"]
        parts.append(format_table(compared, headings, markdown=markdown, width=width))
        parts.append(LEGEND.replace("*", "\\*") if markdown else textwrap.fill(LEGEND, width))
    return "\n\n".join(parts)


def member_table(metrics: Metrics, splits: Mapping[str, str], name: str) -> str:
    """The metric `name` of every stage's systems on each of several collections, a column for each.

    `metrics` are as in `stage_table`, `splits` are collection -> its split as in `Collection.by_member`.
    """
    rows = []
    for stage, found in metrics.items():
        for system in ("retriever", "hybrid", "pipeline"):
            values = [found.get(split, {}).get(system, {}).get(name) for split in splits.values()]
            if any(value is not None for value in values):
                rows.append([stage, system, *values])
    return format_table(rows, [f"{display_name(name)} on each", "system", *splits])


def format_p(p: float, difference: float | None = None) -> str:
    """A p-value as papers print it; given the difference, with its mark."""
    text = "p < .001" if p < 0.001 else f"p = {f'{p:.3f}'.removeprefix('0')}"
    return text if difference is None else f"{text} {significance_mark(p, difference)}".rstrip()


def significance_mark(p: float, difference: float) -> str:
    """`***` below .001, `**` below .01, `*` below .05, else nothing; `▼` instead of `*` for a loss."""
    return ("▼" if difference < 0 else "*") * sum(p < level for level in (0.05, 0.01, 0.001))


def display_name(metric: str) -> str:
    """A metric's name as papers print it."""
    measure, at, cutoff = metric.partition("@")
    names = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP", "hit_rate": "Hit"}
    return names.get(measure, measure.replace("_", " ").capitalize()) + at + cutoff


def format_cell(value: Any) -> str:
    """A value as tables show it: floats with three decimals, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, (float, np.floating)):
        return "NaN" if math.isnan(value) else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else visible(str(value))


def _paired_tests(tests: Mapping[str, PairedTest | Mapping[str, Any]]) -> dict[str, PairedTest]:
    return {key: test if isinstance(test, PairedTest) else PairedTest(**test) for key, test in tests.items()}


def _aligned(
    cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], cut: dict[str, str]
) -> list[str]:
    """The lines of one row; cells wider than their column are wrapped. Words that had to be cut are added to `cut`."""
    wrapped = []
    for cell, width in zip(cells, widths, strict=True):
        if len(cell) > width:
            words = cell.split()
            long = {word: f"{word[: width - 1]}…" for word in words if len(word) > width}
            cut |= long
            cell = " ".join(long.get(word, word) for word in words)
            wrapped.append(textwrap.wrap(cell, width, break_on_hyphens=False))
        else:
            wrapped.append([cell])
    lines = []
    for number in range(max(map(len, wrapped))):
        parts = [cell[number] if number < len(cell) else "" for cell in wrapped]
        padded = [
            part.rjust(width) if to_right else part.ljust(width)
            for part, width, to_right in zip(parts, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def latex_table(rows: Sequence[Sequence[str]], columns: Sequence[str], caption: str) -> str:
    """A LaTeX table in the style of the package booktabs; every text is escaped.

    The first column is aligned on the left, the others on the right.
    """
    lines = [" & ".join(map(_escaped, cells)) + r" \\" for cells in [columns, *rows]]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_escaped(caption)}}}",
            r"\end{table}",
        ]
    )


def _escaped(text: str) -> str:
    escaped = "".join(_ESCAPES.get(character, character) for character in text)
    return re.sub(r"^-(?=\d)", "$-$", escaped)
