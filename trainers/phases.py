"""The phases of a run: which step trains which models, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Phase:
    """A kind of training step.

    Attributes:
        name: part of the names that its values are logged under, as in `loss/retriever`.
        trained: the models that it trains.
        inputs: what it encodes, some of "queries", "passages" and "pairs".
        steps: optimizer steps that it takes in a row.
        teacher: "ranker" if that model only teaches: it runs in evaluation mode and without gradient.
        own_loss: whether the `loss` that was given to the trainer takes the place of `phase_loss`.

    Example:
        >>> Phase("ranker", trained=("ranker",), inputs=("pairs",)).steps
        1
    """

    name: str
    trained: tuple[str, ...]
    inputs: tuple[str, ...]
    steps: int = 1
    teacher: Literal["ranker"] | None = None
    own_loss: bool = True


class PhaseCycle:
    """Phases that take their steps in turn, over and over.

    The phase of a step depends on the global step alone, so that all processes and a resumed run agree.

    Example:
        >>> warm_up = Phase("ranker", ("ranker",), ("pairs",), steps=1)
        >>> phases = PhaseCycle(warm_up, Phase("retriever", ("retriever",), ("queries", "passages"), steps=2))
        >>> [phases.phase(step) for step in range(4)], phases.steps_before("retriever", 4)
        (['ranker', 'retriever', 'retriever', 'ranker'], 2)
    """

    def __init__(self, *phases: Phase) -> None:
        self._phases = {phase.name: phase for phase in phases}

    def __getitem__(self, name: str) -> Phase:
        return self._phases[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the phases, in their order."""
        return tuple(self._phases)

    @property
    def trained(self) -> tuple[str, ...]:
        """The models that are trained in any phase."""
        return tuple(dict.fromkeys(role for phase in self._phases.values() for role in phase.trained))

    def phase(self, step: int) -> str:
        """The name of the phase of a global step."""
        ends = np.cumsum([phase.steps for phase in self._phases.values()])
        return self.names[int(np.searchsorted(ends, step % ends[-1], side="right"))]

    def steps_before(self, name: str, step: int) -> int:
        """How many of the steps before `step` belong to a phase."""
        cycles, rest = divmod(step, sum(phase.steps for phase in self._phases.values()))
        for phase in self._phases.values():
            if phase.name == name:
                break
            rest -= phase.steps
        own = self._phases[name].steps
        return cycles * own + min(max(rest, 0), own)
