"""How an error is shown: in one line, or with its traceback."""

from __future__ import annotations

import os

from hf_ar2.settings.secrets import without_secrets
from hf_ar2.terminal import visible, visible_lines

TRACEBACK = "HF_AR2_TRACEBACK"
# Errors with a message for users. Others come from a mistake in the program, from a library or from the machine.
_EXPLAINED = (ValueError, OSError, ImportError, NotImplementedError)
_LONGEST = 600


def error_text(error: Exception) -> str:
    """The text of an error for users: its message, and its type if the message was not written for users.

    The error is raised again if `HF_AR2_TRACEBACK` is set.
    """
    if os.environ.get(TRACEBACK):
        raise error
    text = without_secrets(str(error))
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 text ({visible(text)}). Set {TRACEBACK}=1 to see where it was read"
    if isinstance(error, _EXPLAINED) and text.strip():
        return visible_lines(text)
    text = " ".join(text.split())
    text = f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text
    return f"{type(error).__name__}: {visible(text) or 'no message'} (set {TRACEBACK}=1 to see the traceback)"
