"""How a model was trained, its settings and stages, recorded on the model for its card."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import TrainingArguments

from hf_ar2.settings.effects import ALWAYS_NAMED, affects_result

# The attribute of a model that has the stages of its training.
_STAGES = "hf_ar2_stages"


def settings_of(args: TrainingArguments) -> dict[str, Any]:
    """The settings that may affect the result: all of this library, and transformers' where not the default."""
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    classes = [cls for cls in type(args).__mro__ if cls not in TrainingArguments.__mro__]
    ours = {name for cls in classes for name in inspect.get_annotations(cls)}
    settings = {}
    for field in dataclasses.fields(args):
        if not affects_result(field.name):
            continue
        value = getattr(args, field.name)
        if field.name in ours or field.name in ALWAYS_NAMED or value != _default(theirs[field.name]):
            value = value.value if isinstance(value, enum.Enum) else value
            if isinstance(value, str | int | float | list) or value is None:
                settings[field.name] = value
    return settings


def stages_of(model: Any) -> tuple[dict[str, Any], ...]:
    """The stages that a model object was trained in, each as `JointTrainer.training_summary` describes it."""
    return tuple(getattr(model, _STAGES, ()))


def remember_stages(model: Any, stages: Sequence[dict[str, Any]]) -> None:
    """Record on a model object the stages that it was trained in."""
    setattr(model, _STAGES, tuple(stages))


def name_of(model: Any) -> str:
    """The name on a card of the model that training starts from: its stage, or its name or folder.

    A folder is absolute, so that it is not mistaken for an id on the Hub once it is deleted.
    """
    if stages_of(model):
        return str(stages_of(model)[-1]["name"])
    if isinstance(model, SentenceTransformer | CrossEncoder):
        transformers = [module for module in model.modules() if isinstance(module, Transformer)]
        named = getattr(transformers[0].model.config, "name_or_path", "") if transformers else ""
    else:
        named = "" if model is None else str(model)
    return str(Path(named).absolute()) if Path(named).is_dir() and named else named or "an unnamed model"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
