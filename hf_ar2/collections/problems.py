"""What can be wrong with a collection's files: one error type, and what a reader may be told to skip."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

SKIPPABLE = (
    "malformed lines",
    "duplicate ids",
    "duplicate judgments",
    "empty passages",
    "empty queries",
    "unknown queries in qrels",
    "unknown passages in qrels",
    "questions without a positive",
)


class CollectionError(ValueError):
    """A collection cannot be used as it is; the message names the place, the finding and the way out.

    Example:
        >>> from hf_ar2.collections import load_collection
        >>> load_collection("./no-such-folder")
        Traceback (most recent call last):
        hf_ar2.collections.problems.CollectionError: ./no-such-folder: found no such folder; expected a folder with ...
    """


class Problems:
    """Meets the problems of one load: raises at the first, or counts it where its cause is to be skipped.

    Args:
        skip: Causes to skip instead of raising, each one of `SKIPPABLE`.

    Attributes:
        skipped: Cause -> how many times it was met and skipped.

    Raises:
        CollectionError: `skip` names a cause that does not exist.
    """

    def __init__(self, skip: Iterable[str] = ()):
        self.skip = frozenset([skip] if isinstance(skip, str) else skip)
        self.skipped: dict[str, int] = {}
        for cause in sorted(self.skip - set(SKIPPABLE)):
            nearest = difflib.get_close_matches(cause, SKIPPABLE, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise CollectionError(
                f"skip: {cause!r} is not a cause that can be skipped.{hint} Known causes: "
                f"{', '.join(SKIPPABLE)}."
            )

    def meet(
        self, cause: str, file: str | Path, line: int | None, found: str, expected: str, advice: str = ""
    ) -> None:
        """Counts a problem of a cause in `skip`; raises `CollectionError` for any other."""
        if cause in self.skip:
            self.skipped[cause] = self.skipped.get(cause, 0) + 1
            return
        place = f"{file}:{line}" if line is not None else f"{file}"
        way_out = f"Correct the file, or pass skip=[{cause!r}] to leave such entries out; they are counted."
        raise CollectionError(
            f"{place}: found {found}; expected {expected}. {advice + ' ' if advice else ''}{way_out}"
        )

    def add(self, skipped: dict[str, int]) -> None:
        """Adds the counts of another load."""
        for cause, count in skipped.items():
            self.skipped[cause] = self.skipped.get(cause, 0) + count

    def report(self, name: str) -> None:
        """Logs what was skipped, one warning per cause."""
        for cause, count in self.skipped.items():
            logger.warning("%s: skipped %d %s", name, count, cause)
