"""Tokens and passwords are left out of everything that is written or printed."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "<hidden>"
_WORDS = r"(?:token|api[_-]?key|password|secret)"
_NAME = re.compile(rf"(?:.*[._-])?{_WORDS}", re.IGNORECASE)
_OPTION = re.compile(rf"(--(?:[\w.-]*[._-])?{_WORDS}(?:=|\s+))[^\s'\"]+", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_HUB_TOKEN = re.compile(r"\bhf_\w{30,}\b")


def is_secret(name: Any) -> bool:
    """Whether a setting of this name, such as `hub_token` or `--warm-up.hub_token`, is a secret."""
    return isinstance(name, str) and _NAME.fullmatch(name.lstrip("-")) is not None


def without_secrets(value: Any) -> Any:
    """A copy of plain data without its secrets.

    Keys of secrets are left out of mappings. In texts and in the arguments of a command the values of options such as
    `--hub_token`, passwords in URLs and tokens of the Hub are hidden.

    Example:
        >>> without_secrets({"max_steps": 5, "hub_token": "hf_abc"})
        {'max_steps': 5}
        >>> without_secrets("hf-ar2 train mine.yaml --hub_token=hf_abc --guard https://me:1234@example.org")
        'hf-ar2 train mine.yaml --hub_token=<hidden> --guard https://<hidden>@example.org'
    """
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not is_secret(key)}
    if isinstance(value, list | tuple):
        before = [None, *value]
        return [
            HIDDEN if is_secret(name) and str(name).startswith("--") else without_secrets(item)
            for name, item in zip(before, value, strict=False)
        ]
    if isinstance(value, str):
        value = _OPTION.sub(rf"\g<1>{HIDDEN}", value)
        return _HUB_TOKEN.sub(HIDDEN, _IN_URL.sub(f"{HIDDEN}@", value))
    return value
