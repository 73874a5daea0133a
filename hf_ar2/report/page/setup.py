"""The page's notes on a run's machine, data and limits."""

from __future__ import annotations

from typing import Any

from hf_ar2.cards.facts import PLAN
from hf_ar2.cards.measured import part_note, query_note
from hf_ar2.collections.questions import source_text
from hf_ar2.files import read_json
from hf_ar2.report.page.run_folder import RunFolder
from hf_ar2.settings.secrets import without_secrets
from hf_ar2.terminal import counted


def split_notes(run: RunFolder) -> dict[str, list[str]]:
    """Split -> what limits its numbers, as sentences; splits without limits are absent."""
    plan, sources = read_json(run.folder / PLAN, {}), run.environment.get("query_sources") or {}
    notes = {}
    for split in dict.fromkeys(split for splits in run.metrics.values() for split in splits):
        found = query_note(sources, [split]), part_note(plan, run.chosen, [split])
        if any(found):
            notes[split] = [note for note in found if note]
    return notes


def setup_of(run: RunFolder) -> dict[str, str]:
    """The facts of environment.json under the names that the page shows; secrets are hidden."""
    found: dict[str, Any] = without_secrets(run.environment)
    found.pop("packages", None)
    cores, threads, processes = (found.pop(name, None) for name in ("cores", "threads", "processes"))
    sources, on_the_hub = found.pop("query_sources", None) or {}, found.pop("on_the_hub", None)
    shown = {"folder": str(run.folder)}
    if "python" in found:
        shown["Python"] = found.pop("python")
    if "processor" in found:
        used = [counted(cores, "cores")] if cores else []
        used += [f"{counted(threads, 'threads')} used"] if threads else []
        shown["processor"] = ", ".join([found.pop("processor"), *used])
    if "gpu" in found:
        shown["GPU"] = found.pop("gpu") or "none"
    if processes:
        shown["processes"] = str(processes)
    shown |= {name: str(found.pop(name)) for name in list(found)}
    if on_the_hub is not None:
        shown["on the Hub"] = ", ".join(on_the_hub) or "neither the collection nor a model"
    if sources:
        shown["queries"] = "; ".join(_sources(split, counts) for split, counts in sources.items())
    return shown


def _sources(split: str, counts: dict[str, int]) -> str:
    asked = f"asked by people ({counts['']:,})" if counts.get("") else ""
    return f"{split}: {' and '.join(filter(None, [source_text(counts), asked]))}"
