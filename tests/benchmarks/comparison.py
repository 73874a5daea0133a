"""What one side of a comparison leaves behind, and tables of two sides over collections, budgets and seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.evaluation.significance import PairedTest, paired_test
from hf_ar2.evaluation.tables import display_name, format_p, format_table

METRICS = ("mrr@10", "ndcg@10")
SYSTEMS = ("zero-shot", "retriever", "system")
SIDES = ("ours", "theirs")


@dataclass
class Outcome:
    """One side's run: what it cost and its test values of every query.

    Attributes:
        seconds: processor seconds by part; `spent` is what the budget pays for, `total` is all of the process.
        facts: what was chosen and how much was done, for the reader.
        dev: what the side's choices were made on, mean MRR@10 by candidate.
        values: system → metric → one value per test query, in the order of `queries`.
    """

    side: str
    collection: str
    minutes: float
    seed: int
    model: str
    queries: list[str]
    seconds: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    dev: dict[str, float] = field(default_factory=dict)
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes `SIDE.json`, whole or not at all."""
        write_whole(folder / f"{self.side}.json", json.dumps(asdict(self), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Outcome:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_outcomes(folders: Sequence[Path]) -> list[Outcome]:
    """Both sides of every folder.

    Raises:
        ValueError: a folder that lacks a side.
    """
    found = []
    for folder in folders:
        for side in SIDES:
            path = folder / f"{side}.json"
            if not path.is_file():
                raise ValueError(f"{folder}: found no {side}.json; run it with --side {side}")
            found.append(Outcome.load(path))
    return found


def over_seeds(outcomes: Sequence[Outcome], system: str, metric: str) -> np.ndarray | None:
    """A value per query, averaged over seeds, so that a seed is not counted as more queries; None where none has it.

    Raises:
        ValueError: the seeds have other queries, or one of them lacks the system.
    """
    values = [outcome.values.get(system, {}).get(metric) for outcome in outcomes]
    if all(value is None for value in values):
        return None
    if any(value is None for value in values) or any(o.queries != outcomes[0].queries for o in outcomes):
        where = f"{outcomes[0].collection}, {outcomes[0].minutes:g} minutes, {outcomes[0].side}"
        raise ValueError(f"{where}: the seeds differ in their queries or systems ({system}, {metric})")
    return np.asarray(values, np.float64).mean(axis=0)


def compared(
    ours: Sequence[Outcome], theirs: Sequence[Outcome], system: str, metric: str
) -> tuple[float | None, float | None, PairedTest | None]:
    """Means of both sides over queries and seeds, and the paired test of ours against theirs.

    Raises:
        ValueError: the sides were measured on other queries.
    """
    a, b = over_seeds(ours, system, metric), over_seeds(theirs, system, metric)
    if a is not None and b is not None and ours[0].queries != theirs[0].queries:
        raise ValueError(f"{ours[0].collection}: the two sides were measured on other test queries")
    test = paired_test(a, b) if a is not None and b is not None else None
    return None if a is None else float(a.mean()), None if b is None else float(b.mean()), test


def groups(outcomes: Sequence[Outcome]) -> list[tuple[list[Outcome], list[Outcome]]]:
    """Ours and theirs of every collection and budget, in the order of their first folder.

    Raises:
        ValueError: a group in which the sides differ in their seeds or models.
    """
    keys = list(dict.fromkeys((outcome.collection, outcome.minutes) for outcome in outcomes))
    found = []
    for key in keys:
        ours, theirs = (
            sorted(
                (o for o in outcomes if (o.collection, o.minutes) == key and o.side == side),
                key=lambda o: o.seed,
            )
            for side in SIDES
        )
        told = [[(o.seed, o.model) for o in side] for side in (ours, theirs)]
        if told[0] != told[1] or len(set(told[0])) != len(told[0]):
            raise ValueError(
                f"{key[0]}, {key[1]:g} minutes: expected each seed once per side and one model; found {told}"
            )
        found.append((ours, theirs))
    return found


def summarise(outcomes: Sequence[Outcome]) -> str:
    """One Markdown table: a line per collection, budget and system."""
    columns = ["collection", "minutes", "seeds", "system"]
    for metric in METRICS:
        columns += [f"{display_name(metric)}: ours", "theirs", "ours − theirs"]
    columns += ["processor seconds: ours", "theirs"]
    lines = []
    for ours, theirs in groups(outcomes):
        for system in SYSTEMS:
            line: list[Any] = [ours[0].collection, f"{ours[0].minutes:g}", len(ours), system]
            for metric in METRICS:
                mean, their_mean, test = compared(ours, theirs, system, metric)
                line += [mean, their_mean, told(test)]
            line += [spent(side) if system == "system" else "" for side in (ours, theirs)]
            lines.append(line)
    return format_table(lines, columns, markdown=True)


def told(test: PairedTest | None) -> str:
    return "–" if test is None else f"{test.difference:+.3f} ({format_p(test.p_value)})"


def spent(outcomes: Sequence[Outcome]) -> str:
    """Mean processor seconds that count, and in brackets those of the whole process."""
    means = {name: np.mean([o.seconds[name] for o in outcomes]) for name in ("spent", "total")}
    return f"{means['spent']:.0f} ({means['total']:.0f})"


def describe(ours: Outcome, theirs: Outcome) -> str:
    """The report of one pair of runs in Markdown: the table, then where the seconds went and what was chosen."""
    parts = [f"# {ours.collection}, {ours.minutes:g} minutes, seed {ours.seed}", summarise([ours, theirs])]
    for outcome in (ours, theirs):
        rows = [[name, f"{seconds:.1f}"] for name, seconds in outcome.seconds.items()]
        parts += [
            f"## {outcome.side}",
            format_table(rows, ["part", "processor seconds"], markdown=True),
            format_table([[n, v] for n, v in outcome.dev.items()], ["on dev", "MRR@10"], markdown=True),
            format_table([[n, str(v)] for n, v in outcome.facts.items()], ["fact", ""], markdown=True),
        ]
    return "\n\n".join(parts)


def differences(ours: Outcome, theirs: Outcome) -> dict[str, Any]:
    """System → metric → means and test, for comparison.json."""
    found: dict[str, Any] = {}
    for system in SYSTEMS:
        for metric in METRICS:
            mean, their_mean, test = compared([ours], [theirs], system, metric)
            entry = {"ours": mean, "theirs": their_mean, "test": None if test is None else asdict(test)}
            found.setdefault(system, {})[metric] = entry
    return found
