"""The state of a labelling session: the questions, the passages to judge, and the judgments so far."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from hf_ar2.collections.questions import qrels_of, read_judged, read_questions, write_judged
from hf_ar2.search.system import Hit

# The first results of a system for a question.
Search = Callable[[str], Sequence[Hit]]


def pooled(lists: Sequence[Sequence[Hit]], seed: str) -> list[Hit]:
    """The passages of several systems, each once, in a seeded order that does not show which system found it."""
    by_rank = [hit for hits in zip_longest(*lists) for hit in hits if hit is not None]
    found = list({hit.passage_id: hit for hit in reversed(by_rank)}.values())[::-1]
    random.Random(seed).shuffle(found)
    return found


class Labelling:
    """Goes through the questions of a file, and saves the judgments after each in its qrels file.

    A question is shown if a passage that was found for it is not judged yet: runs share their judgments.
    """

    def __init__(self, file: str | Path, systems: Sequence[Search], seed: int) -> None:
        self.file = Path(file)
        self.questions = read_questions(file)  # id -> text
        self.judged = read_judged(file)  # id -> passage id -> grade
        self.skipped: set[str] = set()  # ids, in this session
        self._systems, self._seed = systems, seed
        self._ids = list(self.questions)
        self._place = 0
        self._found: dict[str, list[Hit]] = {}
        # The places of the answered questions, with their judgments before.
        self._history: list[tuple[int, dict[str, int] | None]] = []

    @property
    def current(self) -> str | None:
        """The id of the current question; None at the end."""
        while self._place < len(self._ids):
            if self._to_judge(self._ids[self._place]):
                return self._ids[self._place]
            self._place += 1
        return None

    @property
    def number(self) -> int:
        """The number of the current question, from 1; at the end one more than there are."""
        _ = self.current  # skips what is judged
        return self._place + 1

    @property
    def shown(self) -> list[Hit]:
        """The passages to judge, in the order to show; none at the end."""
        id = self.current
        return self._to_judge(id) if id is not None else []

    def judge(self, relevant: Sequence[int]) -> None:
        """Save that these places of `shown` are relevant and the others are not, and go to the next question."""
        id = self.current
        assert id is not None
        grades = {hit.passage_id: int(place in relevant) for place, hit in enumerate(self.shown)}
        self._history.append((self._place, self.judged.get(id)))
        self.judged[id] = {**self.judged.get(id, {}), **grades}
        self._save()
        self.skipped.discard(id)
        self._place += 1

    def skip(self) -> None:
        """Go to the next question without a judgment; this one is shown again in the next session."""
        id = self.current
        assert id is not None
        self._history.append((self._place, self.judged.get(id)))
        self.skipped.add(id)
        self._place += 1

    def undo(self) -> bool:
        """Go back to the last question that was judged or skipped; False if there is none."""
        if not self._history:
            return False
        self._place, before = self._history.pop()
        id = self._ids[self._place]
        self.skipped.discard(id)
        if before is None:
            self.judged.pop(id, None)
        else:
            self.judged[id] = before
        self._save()
        return True

    def summary(self, run: str) -> str:
        """How many questions are judged, the file of the judgments if there is one, and the next command."""
        done = [self.judged[id] for id in self._ids if self.judged.get(id)]
        relevant = sum(grade > 0 for grades in done for grade in grades.values())
        without = sum(not any(grade > 0 for grade in grades.values()) for grades in done)
        none = f"; no relevant passage for {without:,}" if without else ""
        skipped = f"; {len(self.skipped):,} skipped" if self.skipped else ""
        count = f"{len(done):,} of {len(self._ids):,} questions judged{skipped}"
        if not done:
            return (
                f"{count}. Nothing was judged, and nothing was written\nNext: hf-ar2 label {run} {self.file}"
            )
        return (
            f"{count}, {relevant:,} relevant passages{none}\n"
            f"In {qrels_of(self.file)}: the judgments\n"
            f"Next: hf-ar2 evaluate {run} --questions {self.file}"
        )

    def _to_judge(self, id: str) -> list[Hit]:
        if id not in self._found:
            lists = [search(self.questions[id]) for search in self._systems]
            self._found[id] = pooled(lists, f"{self._seed}:{id}")
        return [hit for hit in self._found[id] if hit.passage_id not in self.judged.get(id, {})]

    def _save(self) -> None:
        write_judged(self.file, self.judged)
        if not self.judged:  # all were undone
            qrels_of(self.file).unlink()
