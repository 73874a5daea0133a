"""What a person sees at the end of a run: tables for the terminal and for Markdown, and the figure report.png.

Everything here takes plain data: the contents of a run's metrics.json, results of paired tests, and the entries that
trainers log. Nothing here computes a metric.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ar2.evaluation.significance import PairedTest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metrics = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
Tests = Mapping[str, Mapping[str, Mapping[str, PairedTest | Mapping[str, float]]]]
LogHistory = Mapping[str, Sequence[Mapping[str, Any]]]

# Columns of the retriever's first metric: with BM25 beside it, and of the pipeline.
_SHORT = {"hybrid": "+ BM25", "pipeline": "pipeline"}
RETRIEVER_METRICS = ("mrr@10", "ndcg@10", "recall@100")
MARKS = "* p < .05, ** p < .01, *** p < .001; ▼, ▼▼, ▼▼▼ likewise, where it is worse"
LEGEND = (
    f"{MARKS} (two-sided paired test over the queries). A mark after a retriever compares it with the retriever of "
    "the stage before, a mark after a pipeline with the retriever of its stage."
)
NAN_NOTE = "NaN: no number; nothing was there to average, or a value was not finite."
# The palette of Okabe and Ito, told apart by people with any kind of colour blindness.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#6E6E6E"
# What trainers log about the difficulty of pools: key -> label, colour, marker.
POOL_SHARES = {
    "ranker_accuracy": ("lists the ranker gets right", VERMILION, "s"),
    "teacher_accuracy": ("retriever's lists the ranker gets right", PURPLE, "D"),
    "pool/ranker_beats_positive": ("negatives ranked above the positive", BLUE, "o"),
    "pool/deceived": ("negatives ranked above the positive", BLUE, "o"),
    "pool/outscored": ("pools whose top beats the positive", ORANGE, "^"),
}
POOL_MARGINS = {
    "pool/mean_margin": ("positive less negatives, mean", GREEN, "v"),
    "pool/top_margin": ("positive less top candidate, mean", BLUE, "o"),
}
LOSSES = ("loss/retriever", "loss/ranker", "loss/adversarial", "loss/distillation")
_MANY_POINTS = 40


def format_table(
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str],
    *,
    markdown: bool = False,
    width: int = 80,
) -> str:
    """An aligned table as text.

    Floats get three decimals, None a dash. A NaN is shown as such, with a note below the table that says what it is.
    Columns of numbers are aligned on the right, others on the left.
    A text table wider than `width` has its text columns wrapped, the widest first; nothing is cut off.

    Args:
        rows: cells, as many in each row as there are columns.
        columns: headings.
        markdown: a Markdown table in place of one for the terminal.
        width: of the terminal, in characters.

    Raises:
        ValueError: a row with another number of cells.

    Example:
        >>> print(format_table([["zero-shot", 0.25, 448], ["ar2", None, 448]], ["stage", "MRR@10", "queries"]))
        stage      MRR@10  queries
        ──────────────────────────
        zero-shot   0.250      448
        ar2             –      448
    """
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"row {number} has {len(row)} cells for the {len(columns)} columns {list(columns)}: {row}"
            )
    cells = [[_cell(value) for value in row] for row in rows]
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
    lines = _aligned(list(columns), widths, numeric)
    lines.append("─" * (sum(widths) + gaps))
    for row in cells:
        lines += _aligned(row, widths, numeric)
    if note:
        lines += ["", *textwrap.wrap(note, width)]
    return "\n".join(lines)


def stage_table(
    metrics: Metrics,
    tests: Tests | None = None,
    *,
    split: str = "test",
    markdown: bool = False,
    width: int = 80,
    served: str | None = None,
) -> str:
    """The table that a run ends with: what each stage reached, and which changes are more than luck.

    Args:
        metrics: stage -> split -> "retriever" | "hybrid" | "ranker" | "pipeline" -> metric -> value, stages in order,
            as in metrics.json. What is missing is shown as a dash; without any pipeline there is no column for it.
        tests: stage -> split -> "retriever" | "pipeline" | "pipeline_before" -> `paired_test` of MRR@10: this
            stage's retriever against the one of the stage before, this stage's pipeline against this stage's
            retriever, and against the last pipeline before it. A test may be a `PairedTest` or the dict of its fields.
        split: which split to show.
        markdown: Markdown in place of text for the terminal.
        width: of the terminal, in characters.
        served: the stage whose models are served, which is marked.

    Raises:
        ValueError: no stage has the split.

    Example:
        >>> metrics = {"zero-shot": {"test": {"retriever": {"mrr@10": 0.25, "ndcg@10": 0.3, "recall@100": 0.8}}},
        ...            "warm-up": {"test": {"retriever": {"mrr@10": 0.5, "ndcg@10": 0.6, "recall@100": 0.9}}}}
        >>> tests = {"warm-up": {"test": {"retriever": PairedTest(0.25, 0.012, 30, 10, 8)}}}
        >>> print(stage_table(metrics, tests).split("* p <")[0].strip())
        test: 48 queries
        <BLANKLINE>
        stage      retriever MRR@10  nDCG@10  Recall@100
        ────────────────────────────────────────────────
        zero-shot           0.250      0.300       0.800
        warm-up             0.500 *    0.600       0.900
        <BLANKLINE>
        MRR@10 compared                    change  significance  better  worse  equal
        ─────────────────────────────────────────────────────────────────────────────
        retriever: warm-up over zero-shot  +0.250  p = .012 *        30     10      8
    """
    stages = [stage for stage in metrics if split in metrics[stage]]
    if not stages:
        found = sorted({name for splits in metrics.values() for name in splits})
        raise ValueError(f"no stage has the split {split!r}; splits found: {', '.join(found) or 'none'}")
    outcomes = {stage: _paired_tests((tests or {}).get(stage, {}).get(split, {})) for stage in stages}
    tested = [test for outcome in outcomes.values() for test in outcome.values()]
    # Marks of one length, so that the values before them stay aligned.
    longest = max((len(significance_mark(test.p_value, test.difference)) for test in tested), default=0)
    columns: dict[str, tuple[str, ...]] = {"retriever": RETRIEVER_METRICS}
    for system in ("hybrid", "pipeline"):
        if any(system in metrics[stage][split] for stage in stages):
            columns[system] = ("mrr@10",)
    results, compared = [], []
    with_pipeline = ""
    for number, stage in enumerate(stages):
        systems, outcome = metrics[stage][split], outcomes[stage]
        row = [f"{stage} (served)" if stage == served else stage]
        for system, names in columns.items():
            values = [systems.get(system, {}).get(name) for name in names]
            test = outcome.get(system)
            mark = significance_mark(test.p_value, test.difference) if test is not None else ""
            first = _cell(values[0])
            row += [f"{first:>5} {mark:<{longest}}" if longest else first, *map(_cell, values[1:])]
        results.append(row)
        over = f"{stage} over {stages[number - 1]}" if number else stage
        for key, label in (
            ("retriever", f"retriever: {over}"),
            ("hybrid", f"with BM25 over without: {stage}"),
            ("pipeline_before", f"pipeline: {stage} over {with_pipeline}"),
            ("pipeline", f"pipeline over retriever: {stage}"),
        ):
            if key in outcome:
                compared.append(_comparison(label, outcome[key]))
        with_pipeline = stage if "pipeline" in systems else with_pipeline
    sizes = {test.wins + test.losses + test.ties for test in tested}
    queries = f": {sizes.pop():,} queries" if len(sizes) == 1 else ""
    headings = ["stage"]
    for system, names in columns.items():
        first, *others = map(display_name, names)
        short = "hybrid" in columns and system != "retriever"  # the same metric as the retriever's first
        headings += [_SHORT[system] if short else f"{system} {first}", *others]
    parts = [f"{split}{queries}", format_table(results, headings, markdown=markdown, width=width)]
    if compared:
        headings = ["MRR@10 compared", "change", "significance", "better", "worse", "equal"]
        parts.append(format_table(compared, headings, markdown=markdown, width=width))
        parts.append(LEGEND.replace("*", "\\*") if markdown else textwrap.fill(LEGEND, width))
    return "\n\n".join(parts)


def format_p(p: float, difference: float | None = None) -> str:
    """A p-value as papers print it; with the difference that it belongs to, with its mark.

    Example:
        >>> format_p(0.012), format_p(0.00004, 0.2), format_p(0.012, -0.1), format_p(0.16, -0.1)
        ('p = .012', 'p < .001 ***', 'p = .012 ▼', 'p = .160')
    """
    text = "p < .001" if p < 0.001 else f"p = {f'{p:.3f}'.removeprefix('0')}"
    return text if difference is None else f"{text} {significance_mark(p, difference)}".rstrip()


def significance_mark(p: float, difference: float) -> str:
    """`***` below .001, `**` below .01, `*` below .05, else nothing; `▼` in place of `*` for what is worse.

    Example:
        >>> significance_mark(0.003, 0.1), significance_mark(0.003, -0.1)
        ('**', '▼▼')
    """
    return ("▼" if difference < 0 else "*") * sum(p < level for level in (0.05, 0.01, 0.001))


def display_name(metric: str) -> str:
    """A metric's name as papers print it.

    Example:
        >>> display_name("mrr@10"), display_name("ndcg@10"), display_name("hit_rate@20")
        ('MRR@10', 'nDCG@10', 'Hit rate@20')
    """
    measure, at, cutoff = metric.partition("@")
    names = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP"}
    return names.get(measure, measure.replace("_", " ").capitalize()) + at + cutoff


def plot_report(
    log_history: LogHistory,
    metrics: Metrics,
    path: str | os.PathLike[str],
    *,
    split: str = "test",
    dev_split: str = "dev",
    metric: str = "mrr@10",
    title: str = "",
) -> None:
    """Draw a run's figure, report.png: what each stage reached, dev metrics per round, losses, pool difficulty.

    A panel draws those of its series that were logged, and says so where none was. Stages follow each other along
    the axis, in the order given.

    Args:
        log_history: stage -> entries of `trainer.state.log_history`, with "epoch" and "step". Drawn are
            `eval_retriever_<metric>` and `eval_pipeline_<metric>`, every `loss/<name>`, and the keys of
            `POOL_SHARES` (those of `POOL_MARGINS` where no share was logged).
        metrics: as in metrics.json, see `stage_table`.
        path: the PNG file; its folder is made.
        split: which split of `metrics` the first panel shows.
        dev_split: the split that the trainers evaluated, for the second panel's title.
        metric: which metric the first two panels show.
        title: headline, such as the recipe and the collection.

    Example:
        >>> import tempfile
        >>> losses = {10: 2.0, 20: 1.5}
        >>> history = [{"step": n, "epoch": n / 20, "loss/retriever": loss} for n, loss in losses.items()]
        >>> metrics = {"AR2": {"test": {"retriever": {"mrr@10": 0.45}}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_report({"AR2": history}, metrics, f"{folder}/report.png")
        ...     Path(folder, "report.png").is_file()
        True
    """
    from matplotlib.figure import Figure  # slow to import; a Figure of its own leaves pyplot's state alone

    figure = Figure(figsize=(12, 8), dpi=130, layout="constrained")
    (stages_axes, dev_axes), (loss_axes, pool_axes) = figure.subplots(2, 2)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    name = display_name(metric)
    _draw_stages(stages_axes, metrics, split, metric)
    _finish(stages_axes, f"{name} by stage, {split}", "", name)

    dev = {
        f"eval_retriever_{metric}": ("retriever", BLUE, "o"),
        f"eval_pipeline_{metric}": ("pipeline", VERMILION, "s"),
    }
    _draw_series(dev_axes, log_history, dev, "epoch")
    _finish(dev_axes, f"{name} per round, {dev_split}", "round", name)

    logged = {key for entries in log_history.values() for entry in entries for key in entry}
    losses = dict.fromkeys([*LOSSES, *sorted(key for key in logged if key.startswith("loss/"))])
    colours = itertools.cycle((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY))
    styles = {
        key: (key.removeprefix("loss/"), colour, "") for key, colour in zip(losses, colours, strict=False)
    }
    _draw_series(loss_axes, log_history, styles, "step")
    _finish(loss_axes, "Losses by phase", "step", "loss")

    pool, unit = (POOL_SHARES, "share") if logged & set(POOL_SHARES) else (POOL_MARGINS, "score")
    _draw_series(pool_axes, log_history, pool, "epoch")
    _finish(pool_axes, "Pool difficulty", "round", unit, legend_below=True)

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (float, np.floating)) and math.isnan(value):
        return "NaN"
    if isinstance(value, (float, np.floating)):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)


def _comparison(label: str, test: PairedTest) -> list[Any]:
    p = format_p(test.p_value, test.difference)
    return [label, f"{test.difference:+.3f}", p, test.wins, test.losses, test.ties]


def _paired_tests(tests: Mapping[str, PairedTest | Mapping[str, Any]]) -> dict[str, PairedTest]:
    return {key: test if isinstance(test, PairedTest) else PairedTest(**test) for key, test in tests.items()}


def _aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    """The lines of one row; a cell wider than its column takes several."""
    wrapped = [
        textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]
        for cell, width in zip(cells, widths, strict=True)
    ]
    lines = []
    for number in range(max(map(len, wrapped))):
        parts = [cell[number] if number < len(cell) else "" for cell in wrapped]
        padded = [
            part.rjust(width) if to_right else part.ljust(width)
            for part, width, to_right in zip(parts, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _draw_stages(axes: Axes, metrics: Metrics, split: str, metric: str) -> None:
    stages = [stage for stage in metrics if split in metrics[stage]]
    for system, side, colour, hatch in (("retriever", -0.2, BLUE, ""), ("pipeline", 0.2, VERMILION, "//")):
        values = [metrics[stage][split].get(system, {}).get(metric) for stage in stages]
        bars = [(place + side, value) for place, value in enumerate(values) if value is not None]
        if bars:
            x, heights = zip(*bars, strict=True)
            drawn = axes.bar(x, heights, 0.38, color=colour, hatch=hatch, edgecolor="white", label=system)
            axes.bar_label(drawn, fmt="%.3f", padding=2, fontsize=9)
    axes.set_xticks(range(len(stages)), stages)
    axes.margins(y=0.2)


def _draw_series(
    axes: Axes, log_history: LogHistory, styles: Mapping[str, tuple[str, str, str]], along: str
) -> None:
    """A line per key of `styles` (label, colour, marker), broken between stages; along "epoch" or "step"."""
    offset, shown = 0.0, []
    for stage, entries in log_history.items():
        series = {key: _points(entries, key, along) for key in styles}
        if not any(len(points) for points in series.values()):
            continue
        for key, points in series.items():
            label, colour, marker = styles[key]
            x, y = points.T
            if len(x) > _MANY_POINTS:  # the values as they are in pale, their running mean over them
                axes.plot(x + offset, y, color=colour, alpha=0.25, linewidth=0.8)
                y, marker = _running_mean(y, len(y) // 20), ""
            if len(x):
                known = axes.get_legend_handles_labels()[1]
                label = "_nolegend_" if label in known else label
                axes.plot(
                    x + offset, y, color=colour, linewidth=1.8, marker=marker, markersize=5, label=label
                )
        end = offset + max(float(entry.get(along, 0.0)) for entry in entries)
        shown.append((stage, offset, end))
        offset = math.ceil(end) if along == "epoch" else end  # so that a stage's rounds stand at the ticks
    # More than two names take turns between two heights: a short stage is narrower than its name.
    for number, (stage, start, end) in enumerate(shown):
        if number:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=":")
        height = 1.06 if len(shown) > 2 and number % 2 else 1.01
        place = axes.get_xaxis_transform()
        axes.text((start + end) / 2, height, stage, transform=place, ha="center", fontsize=9, color=GREY)
    if offset:
        axes.set_xlim(-0.02 * offset, 1.02 * offset)
        axes.locator_params(axis="x", integer=True)


def _finish(axes: Axes, title: str, x_label: str, y_label: str, *, legend_below: bool = False) -> None:
    """Title, labels, grid and legend, or a note that nothing was logged."""
    axes.set_title(title, loc="left", fontweight="bold", pad=28)
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.get_legend_handles_labels()[1]:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not logged in this run", transform=axes.transAxes, ha="center", color=GREY)
        return
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    if legend_below:
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    else:
        axes.legend(frameon=False, fontsize=9)


def _points(entries: Sequence[Mapping[str, Any]], key: str, along: str) -> np.ndarray:
    """float64 `[n, 2]`: place along the axis and value, of the entries that have the key with a finite value."""
    points = [(entry.get(along, number), entry[key]) for number, entry in enumerate(entries) if key in entry]
    array = np.array([(x, y) for x, y in points if y is not None], np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` neighbours on each side, fewer at the ends."""
    total = np.append(0.0, np.cumsum(values))
    place = np.arange(len(values))
    low, high = np.maximum(place - window, 0), np.minimum(place + window + 1, len(values))
    return (total[high] - total[low]) / (high - low)
