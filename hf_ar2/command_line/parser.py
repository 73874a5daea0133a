"""An argument parser with one-line error messages that suggest the closest name."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from hf_ar2.terminal import visible_lines

USAGE_ERROR = 2


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line error messages."""

    does = ""  # the command in one line

    def __init__(self, *, prog: str, description: str, epilog: str, usage: str | None = None) -> None:
        super().__init__(prog, usage, description, epilog, formatter_class=_HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print a message and exit with code 2."""
        self.exit(USAGE_ERROR, f"{self.prog}: {visible_lines(message)}\nSee: {self.prog} --help\n")

    def reject(self, unknown: Sequence[str]) -> NoReturn:
        """Report unknown arguments and exit with code 2."""
        option = next((text.partition("=")[0] for text in unknown if text.startswith("-")), None)
        if option is None:
            self.error(f"{unknown[0]!r} is one argument too many")
        known = [name for action in self._actions for name in action.option_strings]
        self.error(f"there is no option {option!r}{nearest(option, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of all names if none is close."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number of at least 0, for `type=`."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)
