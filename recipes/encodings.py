"""The encodings of the corpus in a run folder: made once, used by every stage and row, deleted when no longer needed.

Disk: during a run at most one index per retriever that a later stage or a row names (two where stages read passages
differently from rows), and the previous and the new one of the stage that is training. A finished run keeps those
that `hf-ar2 search` and `hf-ar2 evaluate` use.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from hf_ar2.files import read_json, write_json
from hf_ar2.index.encodings import Encodings
from hf_ar2.progress import format_duration
from hf_ar2.recipes.recipe import Recipe, encodings_folder, source_name
from hf_ar2.search.run_index import INDEX, TRAINING_INDEX

_ROW_ENCODING = "encoding.json"


def forget_encodings(recipe: Recipe, run: Path) -> None:
    """Delete the encodings that no later stage and no row of the evaluation can use.

    A finished stage has recorded the encodings of the weights that it started and ended with.
    """
    needed = {source_name(row["retriever"]) for row in recipe.rows.values()}
    recorded: list[tuple[str, str]] = []
    for stage, body in recipe.stages.items():
        done = run / "stages" / stage / "done.json"
        if done.is_file():
            recorded += read_json(done, {}).get("encodings", {}).items()
        else:
            needed.add(source_name(body["retriever"]))
    Encodings(encodings_folder(run)).keep_only(name for source, name in recorded if source in needed)


def record_row_encodings(run: Path, row: str, encodings: Mapping[str, str]) -> None:
    """Record which encodings a row was evaluated with, by the folder in which a finished run keeps each."""
    path = run / "evaluation" / row / _ROW_ENCODING
    write_json(path, {**read_json(path, {}), **encodings})


def keep_served_index(run: Path, row: str | None) -> None:
    """Move the index that the served row was evaluated with to `index/`, where `SearchSystem` looks; delete the others.

    Its index over passages without the headings that are queries is moved to `index_for_training/`.

    An index stays if the row has no newer one: the run was finished before, or the row was searched with an index from
    a file or a stage. If search reads other texts or lengths than the row, it builds its own index.
    """
    encodings = Encodings(encodings_folder(run))
    recorded = read_json(run / "evaluation" / row / _ROW_ENCODING, {}) if row is not None else {}
    for folder in (INDEX, TRAINING_INDEX):
        name = recorded.get(folder)
        if name is not None and (encodings.folder / name / "meta.json").is_file():
            shutil.rmtree(run / folder, ignore_errors=True)
            shutil.move(encodings.folder / name, run / folder)
    encodings.keep_only([])


def encoding_times(run: Path) -> str:
    """How often the corpus was encoded in a run, interruptions included, and how long it took; "" if never."""
    log = Encodings(encodings_folder(run)).log()
    if not log:
        return ""
    times = "once" if len(log) == 1 else f"{len(log)} times"
    return f"Corpus encoded {times}, {format_duration(sum(entry['seconds'] for entry in log))}"
