"""`hf-ar2 report`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_ar2.collections import Collection, load_collection
from hf_ar2.report.page.page import render_page
from hf_ar2.report.page.queries import PASSAGE_CHARACTERS
from hf_ar2.report.page.run_folder import RunFolder, read_runs
from hf_ar2.search.runs import with_level_of
from hf_ar2.terminal import counted


def report(arguments: argparse.Namespace) -> None:
    """Write the page about the runs, and print its size and contents."""
    runs = read_runs(arguments.runs)
    collection = common_collection(runs)
    page = render_page(runs, collection).encode("utf-8")
    path = Path(arguments.output or runs[0].folder / "report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    rows = sum(len(run.metrics) for run in runs)
    print(
        f"{path}: {len(page) / 1e6:.1f} MB, {counted(rows, 'rows')} of "
        f"{', '.join(run.label for run in runs)} on {collection.name}, {runs[0].split}; passages are cut at "
        f"{PASSAGE_CHARACTERS} characters\nOpen it in a browser; it needs no network."
    )


def common_collection(runs: Sequence[RunFolder]) -> Collection:
    """The collection of the runs; ValueError if they have different collections or splits."""
    splits = {run.split: run for run in runs}
    if len(splits) > 1:
        found = ", ".join(f"{run.folder} on {split}" for split, run in splits.items())
        raise ValueError(f"the runs report on different splits ({found}); make one page for each")
    sources = dict.fromkeys(str(run.recipe["collection"]) for run in runs)
    collections = [load_collection(source) for source in sources]
    if len({collection.fingerprint for collection in collections}) > 1:
        raise ValueError(
            f"the runs were made on different collections ({', '.join(sources)}); make one page for each"
        )
    return with_level_of(runs[0].recipe, collections[0])
