"""Counts what is left out, and keeps the first few by name."""

from __future__ import annotations

from collections import Counter

_NAMED = 3


class LeftOut:
    """Counts of what is left out, by cause, with examples."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._named: dict[str, list[str]] = {}

    def add(self, cause: str, name: str = "", count: int = 1) -> None:
        """Count something; its name is shown if it is among the first of its cause."""
        if count:
            self._counts[cause] += count
            named = self._named.setdefault(cause, [])
            if name and name not in named and len(named) < _NAMED:
                named.append(name)

    def counts(self) -> dict[str, int]:
        """Cause, with what it is shown by, → count; in the order of the causes."""
        found = {}
        for cause in sorted(self._counts):
            named = ", ".join(self._named[cause])
            more = ", …" if self._counts[cause] > len(self._named[cause]) else ""
            found[f"{cause} ({named}{more})" if named else cause] = self._counts[cause]
        return found
