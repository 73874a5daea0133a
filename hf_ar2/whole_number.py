"""Whole numbers that a program wrote as 1.0, as pandas does for a column that had a gap."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def whole_number(value: Any) -> int:
    """The integer of a number or of its text: 1, 1.0, "1" and "1.0" are 1.

    Raises:
        ValueError: Not a whole number, such as "1.5", "nan", "yes" or None.
    """
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
    with suppress(ValueError, TypeError):
        if float(value).is_integer():
            return int(float(value))
    raise ValueError(f"found {value!r}; expected a whole number")
