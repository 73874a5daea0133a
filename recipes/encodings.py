"""The encodings of the corpus in a run folder: made once, used by every stage and row, deleted when no longer needed.

Disk: during a run at most one index per retriever that a later stage or a row names (two where stages read passages
differently from rows), and the previous and the new one of the stage that is training. A finished run keeps the one
that `hf-ar2 search` uses.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_ar2.files import read_json, write_json
from hf_ar2.index.encodings import Encodings
from hf_ar2.progress import format_duration
from hf_ar2.recipes.recipe import Recipe, encodings_folder, source_name

_ROW_ENCODING = "encoding.json"


def forget_encodings(recipe: Recipe, run: Path) -> None:
    """Delete the encodings that no later stage and no row of the evaluation can use.

    A finished stage recorded the encodings of the weights it started and ended with. Those whose weights are named
    again are kept; training has changed the weights of all others.
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


def record_row_encoding(run: Path, row: str, encoding: str | None) -> None:
    """Record which encoding a row was evaluated with; None: an index from a file or a stage."""
    path = run / "evaluation" / row / _ROW_ENCODING
    write_json(path, {"encoding": encoding})


def keep_served_index(run: Path, row: str | None) -> None:
    """Move the index that the served row was evaluated with to `index/`, where `SearchSystem` looks; delete the others.

    Nothing is moved if the run was finished before, or if the row was searched with an index from a file or a stage.
    If search reads other texts or lengths than the row, it builds its own index.
    """
    encodings = Encodings(encodings_folder(run))
    name = (
        read_json(run / "evaluation" / row / _ROW_ENCODING, {}).get("encoding") if row is not None else None
    )
    if name is not None and (encodings.folder / name / "meta.json").is_file():
        shutil.rmtree(run / "index", ignore_errors=True)
        shutil.move(encodings.folder / name, run / "index")
    encodings.keep_only([])


def encoding_times(run: Path) -> str:
    """How often the corpus was encoded in a run, interruptions included, and how long it took; "" if never."""
    log = Encodings(encodings_folder(run)).log()
    if not log:
        return ""
    times = "once" if len(log) == 1 else f"{len(log)} times"
    return f"Corpus encoded {times}, {format_duration(sum(entry['seconds'] for entry in log))}"
