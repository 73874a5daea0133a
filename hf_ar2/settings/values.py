"""Checks of names and values in recipes and on the command line, before anything runs."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_NAME = re.compile(r"\w[\w .+-]*")
# Windows reserves these names, with any ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST_NAME = 100
_LIMITS = {
    "minimum": (operator.ge, "of at least"),
    "above": (operator.gt, "above"),
    "maximum": (operator.le, "of at most"),
}


def check_name(name: Any) -> None:
    """Raise ValueError for a name that cannot become a file's or a folder's on every system.

    Example:
        >>> check_name("AR2+LTRe")
        >>> check_name("../other")
        Traceback (most recent call last):
        ValueError: found '../other', expected a name: letters, digits, spaces and ._+-, ...
    """
    allowed = isinstance(name, str) and _NAME.fullmatch(name) and name[-1] not in " ."
    if not allowed or _DEVICES.fullmatch(name) or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(
            f"found {name!r}, expected a name: letters, digits, spaces and ._+-, first a letter or digit, last no "
            f"space or dot, at most {_LONGEST_NAME} bytes, and none that Windows reserves, such as CON"
        )


def fits(value: Any, hint: Any, limits: Mapping[str, Any]) -> bool:
    """Whether plain data, as YAML has it, has the type of a resolved annotation and lies in a range.

    Other objects, such as paths and enumerations, are not checked. `limits` has `minimum`, `above` and `maximum` of
    numbers, where set; `minimum` also of the length of texts and lists. A number has to be finite.
    """
    if type(value).__module__ not in ("builtins", "datetime") or hint is Any:
        return True
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, part, limits) for part in _alternatives(hint))
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind in (int, float):
        number = type(value) is int or (kind is float and type(value) is float)
        return number and math.isfinite(value) and _in_range(value, limits)
    if kind is str:
        return type(value) is str and len(value) >= (limits.get("minimum") or 0)
    if kind in (list, Sequence):
        items = isinstance(value, list | tuple) and len(value) >= (limits.get("minimum") or 0)
        return items and all(fits(item, parts[0] if parts else Any, limits) for item in value)
    if kind in (dict, Mapping):
        of_items = parts[1] if parts else Any
        return isinstance(value, dict) and all(fits(item, of_items, {}) for item in value.values())
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value in [member.value for member in kind]
    return isinstance(value, kind)


def expected(hint: Any, limits: Mapping[str, Any], none: str = "None") -> str:
    """What `fits` accepts, in words.

    Example:
        >>> expected(int | None, {"minimum": 1}), expected(float, {"above": 0, "maximum": 1})
        ('a whole number of at least 1, or None', 'a number above 0 and of at most 1')
    """
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        alternatives = [expected(part, limits, none) for part in _alternatives(hint) if part is not NoneType]
        return " or ".join(dict.fromkeys(alternatives)) + (f", or {none}" if NoneType in parts else "")
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    empty = "" if limits.get("minimum") is None else " that is not empty"
    words: dict[Any, str] = {
        bool: "true or false",
        int: f"a whole number{_range(limits)}",
        float: f"a number{_range(limits)}",
        str: f"a text{empty}",
        dict: "a mapping",
        Mapping: "a mapping",
    }
    if kind in (list, Sequence):
        words = {str: f"texts{empty}", int: f"whole numbers{_range(limits)}"}
        return f"a list of {words.get(parts[0] if parts else None, 'values')}"
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _alternatives(hint: Any) -> list[Any]:
    """The parts of a union, without `str` where it only allows the values of an enumeration."""
    parts = list(get_args(hint))
    enumerated = any(isinstance(part, type) and issubclass(part, Enum) for part in parts)
    return [part for part in parts if not (enumerated and part is str)]


def _in_range(value: float, limits: Mapping[str, Any]) -> bool:
    given = {name: limit for name, limit in limits.items() if name in _LIMITS and limit is not None}
    return all(_LIMITS[name][0](value, limit) for name, limit in given.items())


def _range(limits: Mapping[str, Any]) -> str:
    given = [f"{text} {limits[name]}" for name, (_, text) in _LIMITS.items() if limits.get(name) is not None]
    return f" {' and '.join(given)}" if given else ""
