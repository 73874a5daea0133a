"""`hf-ar2 label`: a person judges what the models find for real questions."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_ar2.collections.questions import read_judged, read_questions
from hf_ar2.command_line.labelling import Labelling, Search
from hf_ar2.command_line.open import opened_system
from hf_ar2.models.loading import load_retriever, weights_fingerprint
from hf_ar2.search.run_index import LABEL
from hf_ar2.search.runs import model_fields, read_finished_recipe, settings_of_run
from hf_ar2.search.system import Hit, SearchSystem
from hf_ar2.terminal import visible

# Longer passages are cut.
_CHARACTERS = 1_200
_ASKS = "Relevant (as in 1 3; Enter: none; s: skip; u: undo; q: quit)? "


def label(arguments: argparse.Namespace) -> None:
    """Ask about every question in the terminal or on a page, and print how many are judged."""
    read_questions(arguments.file)  # errors appear before models are loaded
    read_judged(arguments.file)
    with contextlib.ExitStack() as stack:
        if arguments.browser:
            from hf_ar2.command_line.label_page import LabelServer

            server = stack.enter_context(LabelServer(arguments.port))
        systems = stack.enter_context(opened_systems(arguments))
        labelling = Labelling(arguments.file, systems, arguments.seed)
        if arguments.browser:
            server.ask(labelling, arguments.run)
        else:
            ask(labelling)
    print(f"\n{labelling.summary(arguments.run)}")


@contextlib.contextmanager
def opened_systems(arguments: argparse.Namespace) -> Iterator[list[Search]]:
    """The systems to judge: the one that the run serves, and the retriever before training (the recipe's first row)."""
    recipe = read_finished_recipe(arguments.run)
    with opened_system(arguments) as served:
        systems = [served]
        rows = list(((recipe.get("evaluation") or {}).get("rows") or {}).items())
        others = "; its recipe has no earlier row"
        if len(rows) > 1:
            name, row = rows[0]
            systems.append(first_system(arguments.run, recipe, row, served))
            others = f" and of {name}, mixed"
        print(f"Shown: the first {arguments.k} results of the run's models{others}.")
        for system in systems:
            _ = system.searched  # builds the index before the first question
        yield [partial(system.search, k=arguments.k) for system in systems]


def first_system(run: str, recipe: dict[str, Any], row: dict[str, Any], served: SearchSystem) -> SearchSystem:
    """The retriever of a row without a ranker, searched exactly.

    Its index is kept in `RUN/label`, unless it has the weights of the served one, whose index is then used.
    """
    fields = model_fields(recipe, run, row["retriever"], "retriever")
    retriever = load_retriever(fields.pop("model"), **fields)
    settings = settings_of_run(recipe).changed({"index_factory": "Flat", "search_parameters": None})
    exact = served.settings.index_factory == "Flat" and served.run_index is None
    same = exact and weights_fingerprint(retriever) == weights_fingerprint(served.retriever)
    folder = served.work_folder if same else Path(run) / LABEL
    return SearchSystem(retriever, None, served.collection, settings, folder)


def ask(labelling: Labelling) -> None:
    """Ask about the questions in the terminal, until the last one, `q`, or the end of the input."""
    if labelling.judged:
        print("Questions that were judged before are shown again only with new passages.")
    while (id := labelling.current) is not None:
        shown = labelling.shown
        print(f"\n[{labelling.number} of {len(labelling.questions)}] {visible(labelling.questions[id])}\n")
        print(passages_text(shown, shutil.get_terminal_size((100, 24)).columns))
        if not _answer(labelling, len(shown)):
            return


def _answer(labelling: Labelling, shown: int) -> bool:
    """Ask until the answer is valid; False ends the session."""
    while True:
        try:
            answer = input(f"\n{_ASKS}").strip().casefold()
        except (EOFError, KeyboardInterrupt):
            print()
            return False
        numbers = re.split(r"[\s,;]+", answer) if answer else []
        expected = f"expected numbers from 1 to {shown} with spaces between them, or s, u or q."
        if answer == "q":
            return False
        if answer == "s":
            labelling.skip()
            return True
        if answer == "u":
            if labelling.undo():
                return True
            print("There is nothing to undo.")
        elif all(re.fullmatch("[0-9]{1,4}", number) and 1 <= int(number) <= shown for number in numbers):
            labelling.judge([int(number) - 1 for number in numbers])
            return True
        else:
            print(f"{visible(answer)!r}: {expected}")


def passages_text(hits: list[Hit], width: int) -> str:
    """Numbered passages for the terminal, wrapped, without control characters."""
    parts = []
    for number, hit in enumerate(hits, 1):
        title = f"{hit.title} ({hit.passage_id})" if hit.title else hit.passage_id
        text = hit.text if len(hit.text) <= _CHARACTERS else f"{hit.text[:_CHARACTERS]}…"
        lines = [
            part for line in text.splitlines() for part in textwrap.wrap(visible(line), max(20, width - 7))
        ]
        parts.append("\n".join([f"{number:>4}  {visible(title)}", *(f"      {line}" for line in lines)]))
    return "\n\n".join(parts)
