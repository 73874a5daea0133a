"""The page as one file: template, style, script and packed data.

The data is compressed and encoded in base64, so the markup contains no text of a collection; the script inserts every
text as text. A content security policy allows only this script, and no requests.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from itertools import chain
from string import Template
from typing import Any

import numpy as np
import yaml

from hf_ar2.cards.facts import PLAN, last_row, source_name
from hf_ar2.cards.guard import GUARD_FILE, guard_sentence
from hf_ar2.cards.measured import part_note, query_note
from hf_ar2.collections import Collection
from hf_ar2.collections.questions import source_text
from hf_ar2.evaluation.metrics import DEFAULT_METRICS
from hf_ar2.evaluation.systems import LEXICAL_ROW
from hf_ar2.evaluation.tables import LEGEND, display_name
from hf_ar2.files import read_json
from hf_ar2.report.page.queries import NO_PASSAGE, PASSAGE_CHARACTERS, TOP, query_browser
from hf_ar2.report.page.run_folder import RunFolder
from hf_ar2.report.page.training import stage_times, training_charts
from hf_ar2.report.times import minutes_note
from hf_ar2.settings.secrets import without_secrets
from hf_ar2.terminal import counted

SCRIPTS = ("elements.js", "data.js", "charts.js", "results.js", "queries.js", "page.js")
# JavaScript needs arrays at a multiple of four bytes to read them as typed arrays.
_ALIGNED = 4
_ARRAYS = {"uint8": "u8", "uint16": "u16", "uint32": "u32", "float32": "f32"}


def render_page(runs: Sequence[RunFolder], collection: Collection) -> str:
    """The page of one run or several over one collection, as HTML that needs no other file.

    Args:
        runs: as `read_runs` returns them. The page shows the split that the first run's recipe reports on.

    Example:
        >>> from hf_ar2 import load_collection
        >>> from hf_ar2.report.page import read_runs
        >>> def page_of_quickstart() -> str:
        ...     runs = read_runs(["runs/quickstart"])
        ...     return render_page(runs, load_collection(runs[0].recipe["collection"]))
    """
    return page_of(page_data(runs, collection))


def page_data(runs: Sequence[RunFolder], collection: Collection) -> dict[str, Any]:
    """Everything that the page shows, as JSON types and numpy arrays."""
    split, primary_metric = runs[0].split, runs[0].primary_metric
    named = [(run.recipe.get("evaluation") or {}).get("metrics") or DEFAULT_METRICS for run in runs]
    metrics = list(dict.fromkeys([primary_metric, *chain.from_iterable(named)]))
    browser = query_browser(runs, collection, split, metrics)
    systems = browser["systems"]
    pair = untrained_rows(runs[0].recipe), served_place(systems, runs[0])
    before, after = default_pair(systems, len(runs), *pair)
    return {
        "title": " · ".join(run.label for run in runs),
        "version": version("hf-ar2"),
        "collection": {
            "name": collection.name,
            "passages": len(collection.corpus),
            "queries": len(browser["queries"]["id"]),
        },
        "primary_metric": browser["metrics"][0],
        "names": {metric: display_name(metric) for metric in metrics},
        "legend": LEGEND,
        "before": before,
        "after": after,
        "top": TOP,
        "characters": PASSAGE_CHARACTERS,
        "none": NO_PASSAGE,
        "runs": [
            {
                "label": run.label,
                "metrics": run.metrics,
                "tests": run.tests,
                "primary_metric": run.primary_metric,
                "served": run.served,
                "charts": training_charts(run),
                "times": stage_times(run),
                "minutes": minutes_note(run.folder, run.recipe),
                "setup": setup_of(run),
                "packages": run.environment.get("packages"),
                "notes": split_notes(run),
                "otherTexts": other_texts(run),
                "recipe": yaml.safe_dump(without_secrets(run.recipe), sort_keys=False, allow_unicode=True),
            }
            for run in runs
        ],
        "browser": browser,
    }


def other_texts(run: RunFolder) -> str:
    """The result on the recipe's guard of the last row's retriever; "" without a guard."""
    guard = read_json(run.folder / GUARD_FILE, {}) if run.recipe.get("guard") else {}
    return guard_sentence(guard, last_row(run.recipe).get("retriever")).replace("`", "")


def default_pair(
    systems: Sequence[dict[str, Any]], runs: int, untrained: Sequence[str] = (), served: int | None = None
) -> tuple[int, int]:
    """The comparison shown first, as positions in `systems`: the model before training, then what the run serves.

    Systems of the same kind (pipelines, say) are compared if both rows have one. With several `runs` (their number),
    the last rows of the first and of the last run are compared. The model before training is the first of the
    `untrained` rows, else the first row but BM25. `served` is the position of what the run serves; None: the last row.
    """
    of_rows: dict[tuple[int, str], dict[str, int]] = {}
    for place, system in enumerate(systems):
        of_rows.setdefault((system["run"], system["row"]), {})[system["system"]] = place
    first_run, last = [key for key in of_rows if key[0] == systems[0]["run"]], list(of_rows.values())[-1]
    if runs > 1:
        return _alike(of_rows[first_run[-1]], last)
    of_untrained = [key for key in first_run if key[1] in untrained]
    dense = [key for key in first_run if key[1] != LEXICAL_ROW]
    before = of_rows[(of_untrained or dense or first_run)[0]]
    if served is None:
        return _alike(before, last)
    if served == before.get("retriever"):
        return served, last["retriever"]
    same = before.get(systems[served]["system"], served)
    return before["retriever"] if same == served else same, served


def _alike(before: dict[str, int], after: dict[str, int]) -> tuple[int, int]:
    """The pipelines of two rows (system -> place), or what else both have."""
    for name in ("pipeline", "retriever"):
        if name in before and name in after:
            return before[name], after[name]
    return min(before.values()), min(after.values())


def untrained_rows(recipe: Mapping[str, Any]) -> list[str]:
    """The rows of a recipe whose retriever no stage of it trained."""
    rows, stages = (recipe.get("evaluation") or {}).get("rows") or {}, recipe.get("stages") or {}
    return [row for row, body in rows.items() if source_name(body["retriever"]) not in stages]


def served_place(systems: Sequence[dict[str, Any]], run: RunFolder) -> int | None:
    """The position in `systems` of what a run serves; None for a ranker alone, which has no lists to browse."""
    chosen = run.chosen.get("row"), run.chosen.get("system")
    return next((at for at, found in enumerate(systems) if (found["row"], found["system"]) == chosen), None)


def page_of(data: dict[str, Any]) -> str:
    """The template filled with style, script and data."""
    folder = files("hf_ar2.report.page")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(data["title"]),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=base64.b64encode(pack(data)).decode(),
    )


def pack(data: Any) -> bytes:
    """JSON and its arrays as one compressed block; ValueError for NaN or infinite numbers, which JSON cannot hold.

    The block holds the length of the JSON (uint32, little endian), the JSON, and then the arrays, each at a multiple of
    four bytes. In the JSON an array is `{"$": [type, offset among the arrays, length]}`, flat.
    """
    arrays: list[bytes] = []
    size = 0

    def plain(value: Any) -> Any:
        nonlocal size
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if not isinstance(value, np.ndarray):
            return value
        kind, start = _ARRAYS[value.dtype.name], size
        block = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        block += bytes(-len(block) % _ALIGNED)
        arrays.append(block)
        size += len(block)
        return {"$": [kind, start, value.size]}

    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # UTF-8 cannot encode one half of a surrogate pair.
    written = text.encode("utf-8", "replace")
    written += b" " * (-(len(written) + 4) % _ALIGNED)
    # No time in the header, so that equal runs give equal files.
    return gzip.compress(len(written).to_bytes(4, "little") + written + b"".join(arrays), 6, mtime=0)


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
