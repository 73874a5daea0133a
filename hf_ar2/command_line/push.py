"""`hf-ar2 push` and `hf-ar2 card`: model cards on the Hub, and as text for the terminal."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hf_ar2.cards.card import model_card, published_card
from hf_ar2.cards.facts import CHOSEN, ROLES, is_trained, served_name, training_of_run
from hf_ar2.cards.hub import INDEX_FILES, check_loads, hub_token, publish
from hf_ar2.command_line.open import opened_system, quiet
from hf_ar2.evaluation.tables import format_table
from hf_ar2.files import read_json
from hf_ar2.folders import temporary_folder
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.search.run_index import SEARCHED_INDEX
from hf_ar2.search.runs import read_finished_recipe
from hf_ar2.terminal import visible_lines

_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


def card(arguments: argparse.Namespace) -> None:
    """Print the cards of a run's models."""
    run = Path(arguments.run)
    recipe = read_finished_recipe(run)
    wanted = [arguments.what] if arguments.what else _models_of(run, recipe)
    cards = []
    for role in wanted:
        training, licences = training_of_run(run, recipe, role), _licences(arguments)
        text = model_card(training, run / role, **licences)
        width = min(100, shutil.get_terminal_size((80, 24)).columns)
        cards.append(text if arguments.markdown else terminal_text(text, width))
    print(visible_lines("\n\n".join(cards)))


def push(arguments: argparse.Namespace) -> None:
    """Publish a run's models, and its index on request."""
    run = Path(arguments.run)
    recipe = read_finished_recipe(run)
    parts = [arguments.what] if arguments.what else _models_of(run, recipe)
    if arguments.what == "all":
        parts = [*_models_of(run, recipe), "index"]
    folders = {part: run / part for part in parts}
    described = ["retriever" if part == "index" else part for part in parts]
    trainings = {role: training_of_run(run, recipe, role) for role in described}
    quiet()
    hub_token()  # a missing one is an error before anything is loaded
    with temporary_folder() as temporary:
        if "index" in folders:
            folders["index"] = _index_of(arguments, run, temporary)
        for part, folder in folders.items():
            check_loads(part, folder)
        about: dict[str, Any] = {"trainings": trainings, "folders": folders, "retriever": run / "retriever"}
        commits = publish(
            folders,
            arguments.name,
            partial(published_card, **about, licences=_licences(arguments)),
            private=arguments.private or None,
            replace_card=arguments.replace_card,
        )
    loader, loaded = {"retriever": "SentenceTransformer", "ranker": "CrossEncoder"}, []
    for part, commit in commits.items():
        print(f"{part:<10} {commit.repo_url}")
        if part in loader:
            loaded.append(f'{loader[part]}("{commit.repo_url.repo_id}")')
    if loaded:
        print(f"Next: {' and '.join(loaded)}; the cards describe other ways")


def _licences(arguments: argparse.Namespace) -> dict[str, str | None]:
    return {"license": arguments.license, "data_license": arguments.data_license}


def _models_of(run: Path, recipe: Mapping[str, Any]) -> list[str]:
    """The roles of the models that the run trained; other models are not published."""
    found = [role for role in ROLES if (run / role).is_dir() and is_trained(run, recipe, role)]
    if not found:
        row = served_name(run, recipe)
        why = read_json(run / CHOSEN, {}).get("reason", "")
        raise ValueError(
            f"{run}: the row it serves ({row or 'evaluation.rows is empty'}) names no saved model that a stage of "
            f"the run trained, so there is nothing to publish.{f' Served: {why}' if why else ''} To always serve the "
            "last row, add --evaluation.choose_on null to the command that made the run"
        )
    return found


def _index_of(arguments: argparse.Namespace, run: Path, temporary: Path) -> Path:
    """The folder of the index to publish: the one that LTRe saved, or one made from the index of `hf-ar2 search`."""
    kept = run / SEARCHED_INDEX
    if all((kept / name).is_file() for name in INDEX_FILES):
        return kept
    options = argparse.Namespace(run=arguments.run)
    with opened_system(options, ranker=False) as system:
        about, searched = {"collection": system.collection.name}, system.searched
        index = searched if isinstance(searched, FrozenIndex) else FrozenIndex.from_corpus_index(searched)
        index.save(temporary, system.collection.corpus["id"], about)
    return temporary


def terminal_text(card: str, width: int) -> str:
    """A card's Markdown for a terminal of `width` columns: without metadata, paragraphs and tables wrapped."""
    body = re.sub(r"\A---\n.*?\n---\n+|<!--.*?-->", "", card, flags=re.DOTALL)
    blocks: list[str] = []
    for block in re.split(r"(```.*?\n```)", body, flags=re.DOTALL):
        if block.startswith("```"):
            inside = block.split("\n")[1:-1]
            blocks.append(textwrap.indent("\n".join(inside), "    "))
        else:
            blocks += [_shown(part, width) for part in re.split(r"\n{2,}", block.strip()) if part.strip()]
    return "\n\n".join(blocks)


def _shown(block: str, width: int) -> str:
    """A paragraph, a heading, a list or a table."""
    lines = block.split("\n")
    if heading := re.fullmatch(r"(#+) (.+)", block):
        return f"{heading[2]}\n{('═' if len(heading[1]) == 1 else '─') * len(heading[2])}"
    if lines[0].startswith("| "):
        cells = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines]
        # without addresses, which would make the table wide; the papers are listed below
        rows = [[_plain(_LINK.sub(r"\1", cell.strip())).replace("\\|", "|") for cell in row] for row in cells]
        return format_table(rows[2:], rows[0], width=width)
    if re.match(r"- |\d+\. ", block):
        items = re.split(r"\n(?=- |\d+\. )", block)
        return "\n".join(_filled(item, width, "   " if item[0].isdigit() else "  ") for item in items)
    return _filled(block, width)


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        _plain(text), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _plain(text: str) -> str:
    """The text without emphasis, links as their text and address."""
    text = _LINK.sub(r"\1 (\2)", text.replace("\n", " "))
    return re.sub(r"\*{1,2}([^*]+)\*{1,2}", r"\1", re.sub(r" {2,}", " ", text))
