"""Content hashes of what stages and rows read besides the recipe: the collection, local models, indexes, queries."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ar2.collections import Collection
from hf_ar2.collections.tables import content_hash
from hf_ar2.files import read_json
from hf_ar2.models.lora import adapter_base
from hf_ar2.recipes.recipe import PLAN, Recipe, RecipeError, source_name
from hf_ar2.settings.plain_yaml import read_yaml
from hf_ar2.settings.secrets import without_secrets
from hf_ar2.training_lists.stored import OF_COLLECTION

if TYPE_CHECKING:
    from hf_ar2.recipes.guard import Guard

INPUTS = "inputs.json"
_RUN_AGAIN = (
    "Choose another --output_dir, or delete the folders of this stage and of those after it to run them again"
)
_FILES = ("index", "index_ids", "unlabelled")


class Inputs:
    """Content hashes of what a recipe refers to by name; everything is read once."""

    def __init__(self, recipe: Recipe, collection: Collection, guard: Guard | None = None) -> None:
        self.recipe = recipe
        self.collection = collection
        self.guard = guard
        self._hashes: dict[str, str] = {}

    def of_stage(self, stage: str) -> dict[str, str]:
        """Name → hash of what a stage itself reads, without what the stages before it read."""
        settings = self.recipe.stage_args(stage)
        paths = {f"args.{name}": settings[name] for name in _FILES if settings.get(name)}
        lists = [path for path in settings.get("train_lists") or [] if path != OF_COLLECTION]
        paths |= {f"args.train_lists: {path}": path for path in lists}
        merges = self.recipe.stages[stage]["trainer"] == "merge"
        if merges and settings.get("base"):
            paths[f"models.{settings['base']}"] = self.recipe.models[settings["base"]]["model"]
        found = self._of(self.recipe.stages[stage], paths)
        if merges and self.guard is not None and settings.get("share", "auto") == "auto":
            found["guard"] = self.guard.choice.sample.fingerprint
        return found

    def of_row(self, row: str) -> dict[str, str]:
        """Name → hash of what a row of the evaluation itself reads."""
        body = self.recipe.rows[row]
        return self._of(body, {name: body[name] for name in _FILES if body.get(name)})

    def of_guard(self, retriever: Any) -> dict[str, str]:
        """Name → hash of what the evaluation of a retriever on the guard reads."""
        assert self.guard is not None
        models = self._of({"retriever": retriever}, {})
        return {**models, "collection": self.guard.report.sample.fingerprint}

    def _of(self, body: dict[str, Any], paths: dict[str, str]) -> dict[str, str]:
        for role in ("retriever", "ranker"):
            name = source_name(body[role]) if role in body else None
            if name in self.recipe.models:
                paths[f"models.{name}"] = self.recipe.models[name]["model"]
        found = {"collection": self.collection.fingerprint}
        for name, path in paths.items():
            if Path(path).exists():
                if path not in self._hashes:
                    self._hashes[path] = hash_of_files(path)
                found[name] = self._hashes[path]
                base = adapter_base(path)
                if base is not None and Path(base).is_dir():
                    found[f"{name}, base of its adapters"] = hash_of_files(base)
        return found


def check_minutes(recipe: Recipe, run: Path) -> None:
    """Check that a run continues with the minutes that it was started with: they are part of what was trained."""
    path = run / "recipe.yaml"
    if not path.is_file() or not ((run / PLAN).is_file() or any((run / "stages").glob("*/key.txt"))):
        return
    try:
        earlier = read_yaml(path.read_bytes()).get("minutes")
    except (ValueError, AttributeError):  # damaged, and written again now
        return
    if earlier == recipe.minutes:
        return
    given = "--minutes is missing" if recipe.minutes is None else f"--minutes {recipe.minutes:g}"
    begun, needed = f"with --minutes {earlier}", f"Add --minutes {earlier} to"
    if earlier is None:
        begun, needed = "without --minutes", "Leave it out of"
    elif recipe.minutes is not None:
        needed = f"Give --minutes {earlier} in"
    raise RecipeError(
        f"{given}, but {run} was started {begun}. {needed} the command: what is finished is kept. "
        "To train again from the start, choose another --output_dir"
    )


def check_run_folder(run: Path, inputs: Inputs) -> None:
    """Check that the stages in a run folder were run with the recipe's settings, on the present contents of its inputs.

    A stage of an older run, which has no hashes of its inputs, passes.
    """
    recipe = inputs.recipe
    for stage in recipe.stages:
        folder = run / "stages" / stage
        key = folder / "key.txt"
        expected = recipe.stage_key(stage)
        found = key.read_text(encoding="utf-8", errors="replace") if key.is_file() else expected
        if len(found) != len(expected):
            raise RecipeError(
                f"{key}: damaged. Delete this file if the stage was run with this same recipe, else its "
                "folder, and run the command again"
            )
        if found != expected:
            named = ", ".join(changed_settings(run, recipe, stage))
            raise RecipeError(
                f"{folder}: this stage was run with other settings{named and f': {named}'}. {_RUN_AGAIN}"
            )
    for stage in recipe.stages:
        folder = run / "stages" / stage
        hashes = read_json(folder / INPUTS, {})
        changed = differing(hashes, inputs.of_stage(stage)) if hashes else []
        if changed:
            sources = {"collection": recipe.collection, "guard": recipe.guard}
            named = ", ".join(f"{name} ({sources[name]})" if name in sources else name for name in changed)
            raise RecipeError(
                f"{folder}: the contents of {named} have changed since this stage was run. {_RUN_AGAIN}"
            )


def changed_settings(run: Path, recipe: Recipe, stage: str) -> list[str]:
    """The settings of a stage that differ from those in the run folder, as in `max_steps=3 instead of 2`."""
    try:
        content = read_yaml((run / "recipe.yaml").read_bytes())
        before, now = (_settings_of(one, stage) for one in (Recipe(**content), recipe))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # there is none, or it is damaged
        return []
    return [
        f"{name}={now.get(name, 'the default')} instead of {before.get(name, 'the default')}"
        for name in {**before, **now}
        if now.get(name) != before.get(name)
    ]


def _settings_of(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The fields of a recipe that a stage's key depends on: name → value, without the stages before it."""
    body = recipe.stages[stage]
    found: dict[str, Any] = {"collection": recipe.collection, "minutes": recipe.minutes}
    for name, value in body.items():
        if name != "args":
            found[name] = value
        if name in ("retriever", "ranker") and source_name(value) in recipe.models:
            model = source_name(value)
            found |= {f"models.{model}.{key}": item for key, item in recipe.models[model].items()}
    return {**found, **without_secrets(recipe.stage_args(stage))}


def differing(earlier: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names that both have, with different hashes."""
    return [name for name, content in earlier.items() if found.get(name, content) != content]


def hash_of_files(path: str | Path) -> str:
    """32 hex digits of a file, or of a folder's files and their names, without README.md and hidden files."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    parts: list[bytes] = []
    for file in files:
        name = file.relative_to(path)
        if file == path or not (name.name == "README.md" or any(part.startswith(".") for part in name.parts)):
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
            parts += [name.as_posix().encode(), digest.digest()]
    return content_hash(*parts)
