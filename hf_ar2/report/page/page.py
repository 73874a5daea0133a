"""The page as one file: template, style and script joined, and the data packed beside them.

The data is compressed and written in base64, so no text of a collection stands in the markup; the script puts every
text into the page as text. A content security policy lets this script run, no other, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import yaml

from hf_ar2.cards.facts import last_row, read_json
from hf_ar2.cards.guard import GUARD_FILE, guard_sentence
from hf_ar2.collections import Collection
from hf_ar2.evaluation.metrics import DEFAULT_METRICS
from hf_ar2.evaluation.tables import LEGEND, display_name
from hf_ar2.report.page.queries import NO_PASSAGE, PASSAGE_CHARACTERS, TOP, query_browser
from hf_ar2.report.page.run_folder import RunFolder
from hf_ar2.report.page.training import stage_times, training_charts

SCRIPTS = ("elements.js", "data.js", "charts.js", "results.js", "queries.js", "page.js")
# Arrays begin where JavaScript can lay a typed array over them.
_ALIGNED = 4
_ARRAYS = {"uint8": "u8", "uint16": "u16", "uint32": "u32", "float32": "f32"}


def render_page(runs: Sequence[RunFolder], collection: Collection) -> str:
    """The page of one run or several over one collection.

    Args:
        runs: as `read_runs` gives them. The split is the one that the first run's recipe reports on.
        collection: what the runs were made on.

    Returns:
        HTML, complete in itself.

    Raises:
        ValueError: a split that the collection does not have, or run files that do not fit it.

    Example:
        >>> from hf_ar2 import load_collection
        >>> from hf_ar2.report.page import read_runs
        >>> def page_of_quickstart() -> str:
        ...     runs = read_runs(["runs/quickstart"])
        ...     return render_page(runs, load_collection(runs[0].recipe["collection"]))
    """
    return page_of(page_data(runs, collection))


def page_data(runs: Sequence[RunFolder], collection: Collection) -> dict[str, Any]:
    """All that the page shows, as JSON's types and numpy arrays."""
    split, chief = runs[0].split, runs[0].chief
    named = [metric for run in runs for metric in metrics_of(run)]
    metrics = list(dict.fromkeys([chief, *named]))
    browser = query_browser(runs, collection, split, metrics)
    before, after = default_pair(browser["systems"], len(runs))
    if len(runs) == 1:
        after = next((place for place in served_places(browser["systems"], runs) if place != before), after)
    return {
        "title": " · ".join(run.label for run in runs),
        "version": version("hf-ar2"),
        "collection": {
            "name": collection.name,
            "passages": len(collection.corpus),
            "queries": len(browser["queries"]["id"]),
        },
        "chief": browser["metrics"][0],
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
                "folder": str(run.folder),
                "metrics": run.metrics,
                "tests": run.tests,
                "chief": run.chief,
                "served": {key: run.chosen[key] for key in ("row", "system", "reason")}
                if run.chosen
                else None,
                "charts": training_charts(run),
                "times": stage_times(run),
                "environment": run.environment,
                "otherTexts": other_texts(run),
                "recipe": yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True),
            }
            for run in runs
        ],
        "browser": browser,
    }


def metrics_of(run: RunFolder) -> list[str]:
    """The metrics that a run's recipe asks for, those of its table where it says nothing."""
    return list((run.recipe.get("evaluation") or {}).get("metrics") or DEFAULT_METRICS)


def other_texts(run: RunFolder) -> str:
    """What was measured on the recipe's guard for the retriever of the last row, "" without one."""
    guard = read_json(run.folder / GUARD_FILE) if run.recipe.get("guard") else {}
    return guard_sentence(guard, last_row(run.recipe).get("retriever")).replace("`", "")


def default_pair(systems: Sequence[dict[str, Any]], runs: int) -> tuple[int, int]:
    """What is compared when the page is opened: the first and the last row of a run, or the runs' last rows.

    Those are their pipelines where both rows have one, else their retrievers.

    Returns:
        places in `systems`, before and after.
    """
    of_rows: dict[tuple[int, str], dict[str, int]] = {}
    for place, system in enumerate(systems):
        of_rows.setdefault((system["run"], system["row"]), {})[system["system"]] = place
    first_run = [found for (run, _), found in of_rows.items() if run == systems[0]["run"]]
    before, after = first_run[0 if runs == 1 else -1], list(of_rows.values())[-1]
    alike = [
        (before[name], after[name]) for name in ("pipeline", "retriever") if name in before and name in after
    ]
    return alike[0] if alike else (min(before.values()), min(after.values()))


def served_places(systems: Sequence[dict[str, Any]], runs: Sequence[RunFolder]) -> list[int]:
    """Places in `systems` of what the runs serve; a ranker alone is not among them."""
    return [
        place
        for place, system in enumerate(systems)
        if (chosen := runs[system["run"]].chosen)
        and (chosen["row"], chosen["system"]) == (system["row"], system["system"])
    ]


def page_of(data: dict[str, Any]) -> str:
    """The template with style, script and data in it."""
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
    """JSON and the arrays in it as one compressed block.

    It holds the length of the JSON (uint32, little endian), the JSON, and after it the arrays, each at a multiple of
    four bytes. In the JSON an array is `{"$": [type, offset among the arrays, length]}`, flat.

    Raises:
        ValueError: a number that JSON has no word for, nan or infinite.
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
    # A lone half of a surrogate pair is no character, and UTF-8 has no bytes for it.
    written = text.encode("utf-8", "replace")
    written += b" " * (-(len(written) + 4) % _ALIGNED)
    # No time in the header: equal runs give equal files.
    return gzip.compress(len(written).to_bytes(4, "little") + written + b"".join(arrays), 6, mtime=0)
