"""What users give in recipes and on the command line: names and values, checked before anything runs."""

from __future__ import annotations

import re
from typing import Any

_NAME = re.compile(r"\w[\w .+-]*")
# Files of these names cannot be made on Windows, with any ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST_NAME = 100


def check_name(name: Any) -> None:
    """Check a name that becomes a file's or a folder's: letters, digits, spaces and `._+-`, on every system.

    Raises:
        ValueError: something else, such as a path.

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
