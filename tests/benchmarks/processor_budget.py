"""Keeping to a number of processor seconds: a ledger of what spent them, and a learning rate that follows the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Processor seconds that may be spent, and what each part spent.

    Args:
        seconds: that may be spent from the start of the clock on.
        clock: what is counted, by default the processor time of this process since it began, all threads together.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.process_time) -> None:
        self.seconds = seconds
        self.clock = clock
        self.parts: dict[str, float] = {}

    @property
    def spent(self) -> float:
        return self.clock()

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Books the seconds of the block under a name."""
        before = self.clock()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + self.clock() - before


class Allowance:
    """A share of a budget that one training may use; its learning rate rises and falls with the seconds used.

    The number of steps that fit is not known beforehand, so the schedule (linear warm-up, linear decay to 0) goes by
    the share that is used, and training ends when the next step would not fit.
    """

    def __init__(self, budget: Budget, seconds: float, warmup: float = 0.1) -> None:
        self.clock = budget.clock
        self.start = self.clock()
        self.seconds = seconds
        self.warmup = warmup
        self.steps = 0

    @property
    def used(self) -> float:
        """Share of the allowance that is used, from 0 to 1."""
        return min(1.0, (self.clock() - self.start) / self.seconds) if self.seconds > 0 else 1.0

    def factor(self) -> float:
        """What the learning rate is multiplied by now, for the step that comes."""
        if self.used < self.warmup:
            return max(self.used / self.warmup, 0.2)  # a first step at 0 would be a step for nothing
        return (1.0 - self.used) / (1.0 - self.warmup)

    def step_done(self) -> bool:
        """Counts a step; whether training should end because half of another one would not fit."""
        self.steps += 1
        taken = self.clock() - self.start
        return taken + 0.5 * taken / self.steps >= self.seconds


def affordable(total: int, seconds_each: float, seconds: float, at_least: int = 0) -> int:
    """How many of `total` things fit into some seconds, but not fewer than `at_least`."""
    fitting = int(seconds / seconds_each) if seconds_each > 0 else total
    return min(total, max(at_least, fitting))
