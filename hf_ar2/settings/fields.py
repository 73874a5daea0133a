"""How a setting is declared: its default, and in the field's metadata everything else that is known about it."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import MISSING, Field, dataclass, field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    paper: str = "",
    minimum: int | None = None,
    affects_result: bool = True,
    checked_on_resume: bool = True,
) -> Any:
    """A dataclass field with its documentation.

    Args:
        default: the value where none is given. A list is copied for every object.
        help: what the setting does, in sentences.
        unit: of the value, such as `"tokens"`.
        paper: the values that papers and their code use, such as `"AR2: 1e-5"`.
        minimum: the smallest value of an integer.
        affects_result: whether the trained models depend on it.
        checked_on_resume: whether a run can only be resumed with the value it was started with.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "paper": paper,
        "minimum": minimum,
        "affects_result": affects_result,
        "checked_on_resume": checked_on_resume and affects_result,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """A setting as it is shown to people.

    Attributes:
        name: of the field.
        annotation: its type, such as `int | None`; the choices of a `Literal`.
        declared_in: the class that declares it.
        field: the field, with the metadata that `setting` wrote.
    """

    name: str
    annotation: str
    declared_in: type
    field: Field[Any]

    @property
    def default(self) -> Any:
        """The default value."""
        factory = self.field.default_factory
        return self.field.default if factory is MISSING else factory()

    @property
    def help(self) -> str:
        """What the setting does, without unit and paper values."""
        return str(self.field.metadata["help"])

    @property
    def unit(self) -> str:
        """The unit of the value; "" if it has none."""
        return str(self.field.metadata["unit"])

    @property
    def paper(self) -> str:
        """The values in papers; "" if there are none."""
        return str(self.field.metadata["paper"])

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
                found[name] = Setting(name, _plain_type(str(annotation)), declared_in, known)
    return found


def check_minimums(config: Any) -> None:
    """Check the integers of a configuration against the minimums that their fields declare.

    Raises:
        ValueError: a value is below its minimum.
    """
    for name, known in settings_of_class(type(config)).items():
        minimum, value = known.field.metadata["minimum"], getattr(config, name)
        if minimum is not None and value is not None and value < minimum:
            otherwise = ", or None" if known.default is None else ""
            raise ValueError(f"{name}={value}: expected at least {minimum}{otherwise}")


class Documented:
    """A class whose docstring lists its settings, so that `help()` shows them."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        before, mark, after = _split_docstring(inspect.cleandoc(vars(cls).get("__doc__") or ""))
        lines = [
            textwrap.fill(str(known), 110, initial_indent="    ", subsequent_indent="        ")
            for known in settings_of_class(cls).values()
        ]
        cls.__doc__ = "\n".join([before.rstrip(), "", "Args:", *lines, "", mark + after]).rstrip() + "\n"


def _split_docstring(text: str) -> tuple[str, str, str]:
    """The text before its sections, the heading of the first section, and the rest."""
    parts = re.split(r"^((?:Raises|Example):)$", text, maxsplit=1, flags=re.MULTILINE)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else (text, "", "")


def _plain_type(annotation: str) -> str:
    """`Literal["a", "b"]` as `a | b`; other annotations as they are."""
    return re.sub(
        r"Literal\[([^\]]*)\]",
        lambda found: " | ".join(word.strip(" \"'") for word in found[1].split(",")),
        annotation,
    )
