"""Command-line options that set the fields of a settings class: name, type, default and help are declared there."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from typing import Any

from hf_ar2.settings.fields import Setting, settings_of_class
from hf_ar2.settings.values import expected, fits


def add_setting(
    group: Any, config: type, name: str, option: str = "", *, default: str | None = None, **more: Any
) -> None:
    """Add the option that sets a field, by default under the field's name; its value is None if it is not given.

    `default` is what the help says about the default: None for the field's own, "" for nothing. `more` are further
    arguments of `add_argument`.
    """
    known = settings_of_class(config)[name]
    arguments = {"dest": name, "default": None, "help": _help(known, default), **_type(known), **more}
    if "choices" in arguments or "action" in arguments:
        arguments.pop("metavar", None)
    group.add_argument(option or f"--{name}", **arguments)


def add_settings(group: Any, config: type, names: Any, *, default: str | None = None) -> None:
    """Add the options of several fields under their own names."""
    for name in names:
        add_setting(group, config, name, default=default)


def given_settings(arguments: argparse.Namespace, config: type) -> dict[str, Any]:
    """The settings of a class that the command line gives."""
    values = {name: getattr(arguments, name, None) for name in settings_of_class(config)}
    return {name: value for name, value in values.items() if value is not None}


def _type(known: Setting) -> dict[str, Any]:
    kind = known.annotation.removesuffix(" | None")
    if kind == "bool":
        return {"action": "store_true"}
    if kind in ("int", "float"):
        return {"type": partial(_number, known), "metavar": "N" if kind == "int" else "X"}
    return {"metavar": "TEXT", **({} if kind == "str" else {"nargs": "+"})}


def _number(known: Setting, text: str) -> float:
    """The number of an option."""
    kind = int if known.annotation.startswith("int") else float
    with contextlib.suppress(ValueError):
        if fits(number := kind(text), kind, known.field.metadata):
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: expected {expected(kind, known.field.metadata)}")


def _help(known: Setting, default: str | None) -> str:
    text = known.help
    if default is None and known.default not in (None, False):
        default = f"{known.default:,}" if isinstance(known.default, int) else str(known.default)
    text, _, unset = text.partition(" None: ")
    if default is None and unset:
        default = unset.rstrip(".")
    if text[1].islower():
        text = text[0].lower() + text[1:]
    return f"{text.rstrip('.')}{f' ({default})' if default else ''}".replace("%", "%%")
