"""Counts skipped files and headings, with the first few names."""

from __future__ import annotations

from collections import Counter

_NAMED = 3


class SkipCounts:
    """Counts by cause, with a few names each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._named: dict[str, list[str]] = {}

    def add(self, cause: str, name: str = "", count: int = 1) -> None:
        """Add to the count of a cause; its first few names are kept."""
        if count:
            self._counts[cause] += count
            named = self._named.setdefault(cause, [])
            if name and name not in named and len(named) < _NAMED:
                named.append(name)

    def counts(self) -> dict[str, int]:
        """Cause, with its names, → count; sorted by cause."""
        found = {}
        for cause in sorted(self._counts):
            named = ", ".join(self._named[cause])
            more = ", …" if self._counts[cause] > len(self._named[cause]) else ""
            found[f"{cause} ({named}{more})" if named else cause] = self._counts[cause]
        return found
