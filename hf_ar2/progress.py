"""Progress: tqdm bars on a terminal and in a notebook, a line now and then if the output goes to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm as auto_tqdm
from tqdm.std import tqdm

# Without a terminal, lines are at least this far apart; a task that takes less time prints none.
SECONDS_BETWEEN_LINES = 30.0


def on_terminal() -> bool:
    """Whether bars can be redrawn: on a terminal or in a notebook."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in auto_tqdm.__mro__)
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    description: str = "",
    unit: str = "it",
    show: bool = True,
    delay: float = 0.0,
) -> tqdm[Any]:
    """A tqdm bar; without a terminal it prints a line every 30 seconds at most.

    Args:
        iterable: counted while it is iterated over; None: `update` counts.
        total: number of units; None: the length of `iterable`, if it has one.
        delay: seconds before a bar appears on a terminal.
    """
    options: dict[str, Any] = {"total": total, "desc": description, "unit": unit, "disable": not show}
    if not on_terminal():
        return _ProgressLines(iterable, **options)
    return auto_tqdm(iterable, delay=delay, dynamic_ncols=True, unit_scale=unit == "tok", **options)


def progress_line(description: str, done: float, total: float | None, unit: str, seconds: float) -> str:
    """Progress as text: share done, counts, and the time left."""
    start = f"{description}: " if description else ""
    if not total:
        return f"{start}{done:,.0f} {unit.strip()} in {format_duration(seconds)}"
    left = f", {format_duration(seconds * (total - done) / done)} left" if 0 < done < total else ""
    return f"{start}{done / total * 100:.0f} % ({done:,.0f}/{total:,.0f} {unit.strip()}){left}"


def format_duration(seconds: float) -> str:
    """A duration in the two largest units that it has.

    Example:
        >>> [format_duration(seconds) for seconds in (0.4, 56, 250, 300, 3900)]
        ['0 s', '56 s', '4 min 10 s', '5 min', '1 h 5 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, units = (whole // 60, whole % 60, ("min", "s"))
    if large >= 60:
        minutes = round(seconds / 60)
        large, small, units = (minutes // 60, minutes % 60, ("h", "min"))
    return f"{large:,} {units[0]}" + (f" {small} {units[1]}" if small else "")


def line_is_due() -> bool:
    """Whether the last line of this process is 30 seconds ago; if so, the time starts again."""
    global _last_line
    now = time.monotonic()
    if now - _last_line < SECONDS_BETWEEN_LINES:
        return False
    _last_line = now
    return True


_last_line = float("-inf")


class _ProgressLines(tqdm):
    """A bar that prints lines."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._began = time.monotonic()
        options |= dict.fromkeys(("mininterval", "maxinterval", "delay"), SECONDS_BETWEEN_LINES)
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        if now - self._began >= SECONDS_BETWEEN_LINES and line_is_due():
            text = progress_line(
                self.desc.removesuffix(": "), self.n, self.total, self.unit, now - self._began
            )
            print(text, file=sys.stderr, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: printed lines stay."""

    def close(self) -> None:
        """End the bar without a last line."""
        self.last_print_t = float("-inf")
        super().close()
