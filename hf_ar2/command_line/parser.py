"""An argument parser with one-line error messages that suggest the closest name."""

from __future__ import annotations

import argparse
import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

from hf_ar2.terminal import visible_lines

PROGRAM = "hf-ar2"
USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line error messages."""

    does = ""  # the command in one line

    def __init__(self, *, prog: str, description: str, epilog: str, usage: str | None = None) -> None:
        layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
        super().__init__(prog, usage, description, epilog, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print a message and exit with code 2."""
        self.exit(USAGE_ERROR, f"{self.prog}: {visible_lines(message)}\nSee: {self.prog} --help\n")

    def reject(self, unknown: Sequence[str]) -> NoReturn:
        """Report unknown arguments and exit with code 2."""
        option = next((text.partition("=")[0] for text in unknown if text.startswith("-")), None)
        if option is None:
            self.error(f"unexpected argument {unknown[0]!r}")
        known = [name for action in self._actions for name in action.option_strings]
        self.error(f"there is no option {option!r}{nearest(option, known)}")


def command(arguments: Callable[[Parser], None]) -> Parser:
    """The parser of the command that a function's name says; the function adds its arguments.

    The function's docstring is the help: what the command does in the first line, details, and an example at the end.
    """
    name = arguments.__name__.strip("_").replace("_", "-")
    text, mark, example = inspect.cleandoc(arguments.__doc__ or "").partition("example:\n")
    parser = Parser(prog=f"{PROGRAM} {name}", description=text.strip(), epilog=mark + example)
    first_line = text.partition(".\n")[0]
    parser.does = first_line[:1].lower() + first_line[1:]
    arguments(parser)
    return parser


def add(group: Any, name: str, help: str, **more: Any) -> None:
    """Add an argument to a parser or a group, named as the help shows it: `RUN`, `--index FOLDER` or `--private`."""
    option, _, metavar = name.partition(" ")
    if not option.startswith("-"):
        option, metavar = option.lower(), option
    group.add_argument(option, help=help, **({"metavar": metavar} if metavar else {}), **more)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of all names if none is close."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


def positive(text: str, minimum: int = 1) -> int:
    """A whole number of at least `minimum`, for `type=`."""
    if not text.isdigit() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {minimum}")
    return int(text)
