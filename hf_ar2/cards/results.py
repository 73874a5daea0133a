"""What a card says of results: tables with significance, and the same figures as a model index."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from hf_ar2.cards.facts import Training
from hf_ar2.evaluation.tables import display_name, format_p, format_table


def model_index(training: Training) -> list[EvalResult]:
    """The results of the published row, as the Hub shows them: of the retriever, or of the ranker by itself."""
    if not training.metrics:
        return []
    system = training.role
    found = []
    for split, systems in training.metrics[training.served].items():
        for metric, value in systems.get(system, {}).items():
            over = f", the first {training.rerank_depth} passages reordered" if system == "ranker" else ""
            result = EvalResult(
                task_type="information-retrieval",
                task_name="Information retrieval",
                dataset_type=_slug(training.collection),
                dataset_name=short_name(training.collection),
                dataset_split=split,
                metric_type=metric.replace("@", "_at_"),
                metric_name=f"{display_name(metric)}{over}",
                metric_value=round(float(value), 4),
            )
            found.append(result)
    return found


def results_section(training: Training) -> str:
    """Before and after as Markdown tables, one for each split, and what the significance is that of."""
    if not training.metrics:
        return "None was measured in this run."
    splits = dict.fromkeys(split for systems in training.metrics.values() for split in systems)
    parts = [_results_of_split(training, split) for split in splits]
    if not any(parts):
        return "The ranker was not evaluated in this run (`rerank_depth` 0)."
    if not training.tests:
        parts.append("Measured by the trainer on the way; the differences were not tested for significance.")
        return "\n\n".join(part for part in parts if part)
    last = training.served == list(training.metrics)[-1]
    which = "The last row is" if last else f"Row {training.served} is"
    said = f"{which} this model. p: two-sided paired randomisation test over the queries."
    if training.role == "ranker":
        which = "The last rows are" if last else f"The rows of {training.served} are"
        said = (
            f"{which} this model. *ranker*: it reorders the retriever's first {training.rerank_depth} "
            "passages by itself; *pipeline*: they are ordered by the retriever's score over its temperature (unless "
            f"set, 0.05 for cosine and 1 for inner products) plus the ranker's logit over its own (unless set, 1)"
            f"{_weighted(training.chosen)}. p: two-sided paired randomisation test over the queries."
        )
    if reason := training.chosen.get("reason"):
        said += f" Chosen to be served: {reason}"
    return "\n\n".join([part for part in parts if part] + [wrapped(said)])


def _weighted(chosen: Mapping[str, Any]) -> str:
    """What a run fitted for the pipeline, in words; "" where it left the two models alike."""
    if chosen.get("system") != "pipeline":
        return ""
    return f", times a weight ({chosen['weight']:g} in {chosen['row']}, over the first {chosen['depth']} passages)"


def _results_of_split(training: Training, split: str) -> str:
    """A table of the retriever by row, or of what the ranker makes of each row's retriever."""
    ranks = training.role == "ranker"
    measured = {row: found[split] for row, found in training.metrics.items() if split in found}
    if ranks:
        measured = {row: found for row, found in measured.items() if "pipeline" in found}
    systems = ("retriever", "ranker", "pipeline") if ranks else ("retriever",)
    metrics = list(
        dict.fromkeys(metric for found in measured.values() for metric in next(iter(found.values())))
    )
    rows: list[list[Any]] = []
    before, sizes = "", set[int]()
    for row, found in measured.items():
        tests = training.tests.get(row, {}).get(split, {})
        for system in systems:
            if system not in found:
                continue
            test = (
                tests.get("pipeline" if ranks else "retriever")
                if system in ("pipeline", systems[-1])
                else None
            )
            over = "retriever" if ranks else before
            label = f"{row}: {system}" if ranks else row
            rows.append([label, *(found[system].get(metric) for metric in metrics), _outcome(test, over)])
            sizes |= {test["wins"] + test["losses"] + test["ties"]} if test else set()
        before = row
    if not rows:
        return ""
    columns = ["", *map(display_name, metrics), f"{display_name(training.test_metric)} against"]
    queries = f", {sizes.pop():,} queries" if len(sizes) == 1 else ""
    if not training.tests:
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    name = short_name(training.collection)
    return f"`{name}`, {split}{queries}:\n\n{format_table(rows, columns, markdown=True)}"


def _outcome(test: Mapping[str, Any] | None, over: str) -> str:
    if test is None:
        return ""
    return f"{over}: {test['difference']:+.3f}, {format_p(test['p_value'])}"


def short_name(name: str) -> str:
    """A name as others may see it: of an absolute path the last two parts."""
    return "/".join(Path(name).parts[-2:]) if Path(name).is_absolute() else name


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", short_name(name))


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of up to 100 characters."""
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
