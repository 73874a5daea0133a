"""How a setting is declared: its default, and in the field's metadata its help, unit, values in papers and range."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_type_hints

from hf_ar2.settings.secrets import HIDDEN, is_secret
from hf_ar2.settings.values import expected, fits

RANGE = ("minimum", "above", "maximum")
LARGEST_SEED = 2**32 - 1  # the largest that numpy accepts


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    paper: str = "",
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    affects_result: bool = True,
    checked_on_resume: bool = True,
) -> Any:
    """A dataclass field with its documentation.

    Args:
        default: a list is copied for every object.
        help: a description in sentences.
        unit: of the value, such as `"tokens"`.
        paper: the values in papers and their code, such as `"AR2: 1e-5"`.
        minimum, maximum: of a number; `minimum` also of the length of a text or list.
        above: an exclusive minimum.
        affects_result: whether the trained models depend on it.
        checked_on_resume: whether a run can only be resumed with the value that it was started with.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "paper": paper,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "affects_result": affects_result,
        "checked_on_resume": checked_on_resume and affects_result,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """A setting and its documentation.

    Attributes:
        annotation: its type, such as `int | None`; the choices of a `Literal`.
        declared_in: the class that declares it.
        field: the field, with the metadata that `setting` wrote; `help`, `unit` and `paper` are part of it.
    """

    name: str
    annotation: str
    declared_in: type
    field: Field[Any]
    help: str
    unit: str
    paper: str

    @property
    def default(self) -> Any:
        """The default value."""
        factory = self.field.default_factory
        return self.field.default if factory is MISSING else factory()

    def __str__(self) -> str:
        """Everything about the setting in one paragraph."""
        unit = f", in {self.unit}" if self.unit else ""
        paper = f" {self.paper}." if self.paper else ""
        return f"{self.name} ({self.annotation}{unit}, default {self.default!r}): {self.help}{paper}"


def settings_of_class(config: type) -> dict[str, Setting]:
    """The settings of a class that `setting` declares, those of the class itself before inherited ones."""
    found: dict[str, Setting] = {}
    for declared_in in config.__mro__:
        # A class that is not a dataclass yet has its fields as attributes.
        fields = vars(declared_in).get("__dataclass_fields__", vars(declared_in))
        for name, annotation in inspect.get_annotations(declared_in).items():
            known = fields.get(name)
            if name not in found and isinstance(known, Field) and "affects_result" in known.metadata:
                shown = [known.metadata[key] for key in ("help", "unit", "paper")]
                found[name] = Setting(name, _plain_type(annotation), declared_in, known, *shown)
    return found


# The ranges of fields of `transformers.TrainingArguments` that are not declared again here.
_OF_TRANSFORMERS: dict[str, dict[str, float]] = {
    "adam_beta1": {"minimum": 0, "maximum": 1},
    "adam_beta2": {"minimum": 0, "maximum": 1},
    "adam_epsilon": {"above": 0},
    "data_seed": {"minimum": 0, "maximum": LARGEST_SEED},
    "dataloader_num_workers": {"minimum": 0},
    "dataloader_prefetch_factor": {"minimum": 1},
    "ddp_timeout": {"minimum": 1},
    "eval_accumulation_steps": {"minimum": 1},
    "eval_delay": {"minimum": 0},
    "eval_steps": {"above": 0},
    "gradient_accumulation_steps": {"minimum": 1},
    "label_smoothing_factor": {"minimum": 0, "maximum": 1},
    "max_grad_norm": {"minimum": 0},
    "max_steps": {"minimum": -1},
    "num_train_epochs": {"above": 0},
    "per_device_eval_batch_size": {"minimum": 1},
    "per_device_train_batch_size": {"minimum": 1},
    "save_steps": {"above": 0},
    "seed": {"minimum": 0, "maximum": LARGEST_SEED},
    "torch_empty_cache_steps": {"minimum": 1},
}


def problem_of(config: type, name: str, value: Any, none: str = "None") -> str | None:
    """Why a value is invalid for a field: `found 0, expected a whole number of at least 1`; None if it is valid.

    Args:
        config: a dataclass; annotations and metadata of its fields say which values they take.
        none: the name of None, `null` in YAML.
    """
    hint, metadata = _fields(config)[name]
    own = {key: metadata[key] for key in RANGE if metadata.get(key) is not None}
    limits = _OF_TRANSFORMERS.get(name, {}) | own
    if fits(value, hint, limits):
        return None
    shown = none if value is None else HIDDEN if is_secret(name) else repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
    return f"found {shown}, expected {expected(hint, limits, none)}"


@functools.cache
def _fields(config: type) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    hints = get_type_hints(config)
    return {one.name: (hints[one.name], one.metadata) for one in fields(config)}


def check_values(config: Any) -> None:
    """Check the types and ranges of a configuration; the ValueError names the field."""
    for name in [one.name for one in fields(config) if one.init]:
        if problem := problem_of(type(config), name, getattr(config, name)):
            raise ValueError(f"{name}: {problem}")


class Documented:
    """A class whose docstring lists its settings, so that `help()` shows them."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        text = inspect.cleandoc(vars(cls).get("__doc__") or "")
        # The settings come before the first section.
        before, *sections = re.split(r"^(?=(?:Raises|Example):$)", text, maxsplit=1, flags=re.MULTILINE)
        lines = [
            textwrap.fill(str(known), 110, initial_indent="    ", subsequent_indent="        ")
            for known in settings_of_class(cls).values()
        ]
        cls.__doc__ = "\n".join([before.rstrip(), "", "Args:", *lines, "", *sections]).rstrip() + "\n"


def _plain_type(annotation: Any) -> str:
    """`Literal["a", "b"]` as `a | b`; other annotations as they are."""

    def choices(found: re.Match[str]) -> str:
        return " | ".join(word.strip(" \"'") for word in found[1].split(","))

    return re.sub(r"Literal\[([^\]]*)\]", choices, str(annotation))
