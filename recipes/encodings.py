"""The encodings of the corpus in a run folder: made once, used by every stage and row, deleted when no longer needed.

Disk: while a run goes on it holds at most one index per retriever that a later stage or a row names (two where stages
read passages differently from rows), and the former and the new one of the stage that is training. A finished run holds
the one that `hf-ar2 search` uses.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hf_ar2.index.encodings import Encodings
from hf_ar2.recipes.recipe import Recipe, source_name

_NOTE = "encoding.json"


def encodings_folder(run: Path) -> Path:
    """Where the stages and rows of a run keep their indexes."""
    return run / "encodings"


def forget_encodings(recipe: Recipe, run: Path) -> None:
    """Delete the encodings that no stage to come and no row of the evaluation can use.

    Those stay that a finished stage noted as of the weights it started from, or ended with, where these weights are
    named again. Whatever else is there is of weights that training has left behind.
    """
    needed = {source_name(row["retriever"]) for row in recipe.evaluation.get("rows", {}).values()}
    noted: list[tuple[str, str]] = []
    for stage, body in recipe.stages.items():
        done = run / "stages" / stage / "done.json"
        if done.is_file():
            noted += json.loads(done.read_text()).get("encodings", {}).items()
        else:
            needed.add(source_name(body["retriever"]))
    Encodings(encodings_folder(run)).keep_only(name for source, name in noted if source in needed)


def note_row(run: Path, row: str, encoding: str | None) -> None:
    """Write down which encoding a row was evaluated with; None: an index that was given or trained."""
    path = run / "evaluation" / row / _NOTE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"encoding": encoding}))


def keep_served_index(run: Path, row: str | None) -> None:
    """Move the index that a row was evaluated with to `index/`, where `SearchSystem` looks, and delete the others.

    Nothing is moved where there is nothing to move: the run came to its end before, or the row was searched with an
    index that was given or trained. Where search reads other texts or lengths than the row, it builds its own index.

    Args:
        row: whose models are the run's; None where there is no row.
    """
    encodings = Encodings(encodings_folder(run))
    note = run / "evaluation" / row / _NOTE if row is not None else None
    name = json.loads(note.read_text())["encoding"] if note is not None and note.is_file() else None
    if name is not None and (encodings.folder / name / "meta.json").is_file():
        shutil.rmtree(run / "index", ignore_errors=True)
        shutil.move(encodings.folder / name, run / "index")
    encodings.keep_only([])


def told_encodings(run: Path) -> str:
    """How often the corpus was encoded in a run, interruptions included, and how long it took; empty if never."""
    log = Encodings(encodings_folder(run)).log()
    if not log:
        return ""
    times = "once" if len(log) == 1 else f"{len(log)} times"
    return f"Corpus encoded {times}, {sum(entry['seconds'] for entry in log):.0f} s"
