"""Runs the examples of docstrings and documents as they stand, on tiny models and a tiny collection.

The names that the examples use are those of the Hub; here they are answered by what the tests have.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import with_passages

import hf_ar2.models.loading
from hf_ar2.collections import Collection
from hf_ar2.trainers import JointConfig, JointTrainer

RETRIEVERS = ("sentence-transformers/all-MiniLM-L6-v2",)
RANKERS = ("cross-encoder/ms-marco-MiniLM-L6-v2",)
COLLECTIONS = ("BeIR/scifact",)

# What makes a run short: two steps, one of each phase.
FEW = {"max_steps": 2, "ranker_steps": 1, "retriever_steps": 1, "num_rounds": 1, "list_depth": 10}
PUSH = JointTrainer.push_to_hub
QUIET = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "bf16": False}


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of Python in a document or docstring: line of the first statement, code."""
    for match in re.finditer(r"^( *)```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, match.start(2)) + 1, textwrap.dedent(match[2])


def run_block(code: str, name: str, line: int = 1) -> dict[str, Any]:
    """Runs a block by itself, as pasted into an empty file; errors show `name` and the line in it."""
    names: dict[str, Any] = {"__name__": "__example__"}
    exec(compile("\n" * (line - 1) + code, name, "exec"), names)
    return names


def answer_hub_names(
    monkeypatch: pytest.MonkeyPatch, retriever: Path, ranker: Path, collection: Collection
) -> None:
    """Models and collections that examples name become tiny ones, and training a matter of two steps."""
    collection = with_passages(collection, 120)  # recall@100 asks for that many
    models = dict.fromkeys(RETRIEVERS, str(retriever)) | dict.fromkeys(RANKERS, str(ranker))
    resolve = hf_ar2.models.loading.resolve_model_name
    monkeypatch.setattr(
        hf_ar2.models.loading, "resolve_model_name", lambda name: resolve(models.get(str(name), name))
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, *part, **_: _hub_tables(collection, name, *part)
    )
    finish = JointConfig.__post_init__

    def short(args: Any) -> None:
        for name, value in (FEW | QUIET).items():
            if hasattr(args, name):
                setattr(args, name, value)
        finish(args)

    monkeypatch.setattr(JointConfig, "__post_init__", short)
    monkeypatch.setattr(JointTrainer, "push_to_hub", _push_to_working_folder)


def _push_to_working_folder(trainer: JointTrainer, name: str, **options: Any) -> None:
    """`me/name-retriever` becomes a folder, so that an example that loads it back finds it."""
    inspect.signature(PUSH).bind(trainer, name, **options)
    for role in ("retriever", "ranker"):
        child = getattr(trainer.model, role)
        if child is not None:
            child.save_pretrained(f"{name}-{role}", create_model_card=False)


def _hub_tables(collection: Collection, name: str, part: str = "") -> datasets.DatasetDict:
    """A collection in the layout of BEIR's repositories: `name` with two parts, and `name-qrels`."""
    if name.removesuffix("-qrels") not in COLLECTIONS:
        raise ValueError(f"{name}: examples use {', '.join(COLLECTIONS)}")
    if not name.endswith("-qrels"):
        table = collection.corpus if part == "corpus" else collection.queries
        return datasets.DatasetDict({part: table.rename_column("id", "_id")})
    columns = {"query_id": "query-id", "passage_id": "corpus-id", "relevance": "score"}
    return datasets.DatasetDict(
        {
            "validation" if split == "dev" else split: table.rename_columns(columns)
            for split, table in collection.qrels.items()
        }
    )
