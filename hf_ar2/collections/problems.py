"""The error type of collections, and the kinds of invalid entries that a reader can skip."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from hf_ar2.terminal import counted

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
    """A collection is invalid; the message names the place, what was found and what was expected.

    Example:
        >>> from hf_ar2.collections import load_collection
        >>> load_collection("./no-such-folder")
        Traceback (most recent call last):
        hf_ar2.collections.problems.CollectionError: ./no-such-folder: found no such folder; expected a folder with ...
    """


class Problems:
    """Handles the invalid entries of a collection: raises an error, or counts those that are to be skipped.

    `skip` names causes out of `SKIPPABLE`; `skipped` is cause -> number of skipped entries.
    """

    def __init__(self, skip: Iterable[str] = ()):
        self.skip = frozenset([skip] if isinstance(skip, str) else skip)
        self.skipped: Counter[str] = Counter()
        for cause in sorted(self.skip - set(SKIPPABLE)):
            nearest = difflib.get_close_matches(cause, SKIPPABLE, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            known = f"Known causes: {', '.join(SKIPPABLE)}."
            raise CollectionError(f"skip: {cause!r} is not a cause that can be skipped.{hint} {known}")

    def raise_or_skip(
        self, cause: str, file: str | Path, line: int | None, found: str, expected: str, advice: str = ""
    ) -> None:
        """Counts an invalid entry if its cause is in `skip`, or raises `CollectionError`."""
        if cause in self.skip:
            self.skipped[cause] += 1
            return
        place = f"{file}:{line}" if line is not None else f"{file}"
        advice = (
            f"{advice} Correct the file, or pass skip=[{cause!r}] to skip and count such entries.".lstrip()
        )
        raise CollectionError(f"{place}: found {found}; expected {expected}. {advice}")

    def malformed(
        self, file: str | Path, line: int | None, found: str, expected: str, advice: str = ""
    ) -> None:
        """As `raise_or_skip`, for the cause "malformed lines"."""
        self.raise_or_skip("malformed lines", file, line, found, expected, advice)

    def log_skipped(self, name: str) -> None:
        """Logs a warning for each cause that was skipped."""
        for cause, count in self.skipped.items():
            logger.warning(f"{name}: skipped {counted(count, cause)}")
