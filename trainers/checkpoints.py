"""Checkpoints of two models: what is in them, which of them is whole, whose they are, how they are read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn

from hf_ar2.models.joint import JointModel
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.settings.effects import checked_on_resume

TRAINER_STATE = "trainer_state.json"
_RUN = "run.json"


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that was written to its end; a half-written one, left by a kill, is passed over.

    `trainer_state.json` is the last file of a checkpoint, so a readable one means that the rest is there.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if number and _readable(folder / TRAINER_STATE):
            found.append((int(number[1]), folder))
    return str(max(found)[1]) if found else None


def _readable(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def load_models(model: JointModel, folder: str | Path) -> None:
    """Load `folder/retriever` and `folder/ranker` into the live models, in place.

    Raises:
        FileNotFoundError: a model of the run is missing in the checkpoint.
        RuntimeError: names or shapes of weights differ.
    """
    for name, loader in (("retriever", SentenceTransformer), ("ranker", CrossEncoder)):
        child: nn.Module | None = getattr(model, name)
        if child is None:
            continue
        path = Path(folder) / name
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: not there; the checkpoint was written without a {name}")
        saved = loader(str(path), device="cpu")
        child.load_state_dict(saved.state_dict(), strict=True)


def fingerprints(model: JointModel) -> dict[str, str]:
    """Content hashes of the weights of both models, by name."""
    children = {"retriever": model.retriever, "ranker": model.ranker}
    return {name: weights_fingerprint(child) for name, child in children.items() if child is not None}


def describe_run(args: transformers.TrainingArguments, **facts: Any) -> dict[str, Any]:
    """What a run's outcome depends on, as plain data: the settings that count, and facts beside them."""
    settings = {name: getattr(args, name) for name in checked_on_resume(type(args))}
    about: dict[str, Any] = json.loads(json.dumps(settings | facts))
    return about


def note_run(folder: Path, about: dict[str, Any]) -> None:
    """Write into a checkpoint whose it is: a `describe_run`, as `run.json`."""
    (folder / _RUN).write_text(json.dumps(about, indent=1))


def refuse_other_run(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Compare with the note in a checkpoint; what only one of them has is passed over.

    Returns:
        the note; empty where there is none.

    Raises:
        ValueError: a setting or fact differs, so that resuming would not continue that run.
    """
    if not (folder / _RUN).is_file():
        return {}
    noted: dict[str, Any] = json.loads((folder / _RUN).read_text())
    differ = [name for name in noted if name != "steps" and name in about and noted[name] != about[name]]
    if differ:
        found = ", ".join(f"{name} ({noted[name]} there, {about[name]} here)" for name in differ)
        raise ValueError(
            f"{folder}: this checkpoint's run differs in {found}. Resume with what it was begun with, or begin another "
            "run from the models in the checkpoint"
        )
    return noted
