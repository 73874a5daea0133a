"""Reads a recipe from its YAML file and the command line, and checks every field of it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from hf_ar2.augmentation import AugmentConfig
from hf_ar2.cards.facts import source_name
from hf_ar2.evaluation.systems import LEXICAL_ROW
from hf_ar2.models.loading import DTYPES, LOADING_OPTIONS
from hf_ar2.models.lora import check_lora
from hf_ar2.models.merging import MergeConfig
from hf_ar2.models.prompts import check_prompts
from hf_ar2.recipes.recipe import CONFIGS, Recipe, RecipeError, config_fields, errors_at
from hf_ar2.settings.values import check_name

MODEL_FIELDS = (
    "model",
    "layers",
    "max_length",
    "dropout",
    "pooling",
    "similarity",
    "separate_towers",
    "lora",
    "prompts",
    "dtype",
    *LOADING_OPTIONS,
)
# share: part of the minutes; min_steps: with fewer, the stage is dropped; max_epochs: passes over the queries.
STAGE_FIELDS = ("trainer", "retriever", "ranker", "lists", "args", "share", "min_steps", "max_epochs")
# A row is searched exactly, with an index of a factory string, with a file's, or with the one that a stage trained.
ROW_FIELDS = ("retriever", "ranker", "index_factory", "index", "index_ids", "search_parameters")
EVALUATION_FIELDS = (
    "rows splits metrics depth rerank_depth test_metric report_split choose_on pipeline_weight lexical"
).split()


def load_recipe(path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `--key value` from the command line; a key is a field (`seed`), a setting of every stage
            (`bf16`), or a path (`ar2.num_rounds`, `evaluation.depth`, `models.light.layers`).

    Raises:
        RecipeError: an unknown key (with the nearest known one), a stage that names a missing model, …
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a mapping with the fields {', '.join(_fields())}")
    content.setdefault("name", path.stem)
    for key, text in (overrides or {}).items():
        _override(content, key, text)
    content = _with_numbers(content)
    _check_keys(str(path), content, _fields())
    if "collection" not in content:
        raise RecipeError(f"{path}: field 'collection' is missing")
    recipe = Recipe(**content)
    _check(recipe, str(path))
    return recipe


def _fields() -> list[str]:
    return [f.name for f in dataclasses.fields(Recipe)]


def _settings() -> list[str]:
    """Settings of any trainer, sorted."""
    return sorted({key for trainer in CONFIGS for key in config_fields(trainer)})


def _override(content: dict[str, Any], key: str, text: str) -> None:
    value = _value(key, text)
    head, _, rest = key.partition(".")
    stages = content.get("stages") or {}
    if not rest:
        if key in _fields():
            content[key] = value
        elif key in _settings():
            content.setdefault("args", {})[key] = value
            for body in stages.values():  # the command line has precedence over a stage's own setting
                if key in body.get("args", {}):
                    body["args"][key] = value
        else:
            raise RecipeError(f"--{key}: unknown key{_nearest(key, [*_fields(), *_settings(), *stages])}")
        return
    if head in stages:
        stages[head].setdefault("args", {})[rest] = value
        return
    if head not in ("models", "evaluation", "args"):
        known = [*stages, "models", "evaluation", "args"]
        raise RecipeError(f"--{key}: {head!r} is not a stage{_nearest(head, known)}")
    place = content.setdefault(head, {})
    *path, last = rest.split(".")
    for part in path:
        place = place.setdefault(part, {})
    place[last] = value


def _value(key: str, text: str) -> Any:
    """The value of `--key text`, as YAML reads it; a prompt or separator without quotes is taken as it is."""
    *path, name = key.split(".")
    literal = name in ("title_separator", "passage_template") or path[-1:] == ["prompts"]
    # YAML would read "query: " as a mapping, and " " as null.
    if literal and text not in ("null", "~") and not text.startswith(("'", '"')):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--{key}: {text!r} is not valid YAML: {error}") from None


def _with_numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as text; here it becomes the number it looks like."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _check_names(recipe: Recipe, where: str) -> None:
    """Names become those of folders; that of the recipe may have parts, as in `ar2/scifact`."""
    with errors_at(f"{where}: name"):
        for part in str(recipe.name).split("/"):
            check_name(part)
    for place, names in (
        ("models", recipe.models),
        ("stages", recipe.stages),
        ("evaluation.rows", recipe.rows),
    ):
        for name in names:
            with errors_at(f"{where}: {place}"):
                check_name(name)
    if recipe.evaluation.get("lexical") and LEXICAL_ROW in recipe.rows:
        raise RecipeError(
            f"{where}: evaluation.rows: found {LEXICAL_ROW!r}, the row that 'lexical' adds; expected another name"
        )


def _check(recipe: Recipe, where: str) -> None:
    _check_names(recipe, where)
    for name, body in recipe.models.items():
        _check_keys(f"{where}: models.{name}", body, MODEL_FIELDS)
        if "model" not in body:
            raise RecipeError(f"{where}: models.{name}: field 'model' is missing")
        _check_lora(f"{where}: models.{name}", body)
        if body.get("prompts") is not None:
            with errors_at(f"{where}: models.{name}"):
                check_prompts(body["prompts"])
        _check_loading(f"{where}: models.{name}", body)
    _check_minutes(recipe, where)
    _check_keys(f"{where}: args", recipe.args, _settings())
    with errors_at(f"{where}: args"):
        recipe.texts.check_passage_template()
    sources, writers = list(recipe.models), list[str]()
    for name, body in recipe.stages.items():
        place = f"{where}: stages.{name}"
        if name in recipe.models:
            raise RecipeError(f"{place}: a model has the same name")
        _check_keys(place, body, STAGE_FIELDS)
        trainer = body.get("trainer")
        if trainer not in CONFIGS:
            raise RecipeError(f"{place}.trainer: found {trainer!r}, expected one of {', '.join(CONFIGS)}")
        _check_keys(f"{place}.args", body.get("args", {}), config_fields(trainer))
        _check_numbers(f"{place}.args", trainer, recipe.stage_args(name))
        without_ranker = trainer in ("retriever", "ltre", "merge")
        _check_roles(place, body, ("retriever",) if without_ranker else ("retriever", "ranker"), sources)
        _check_lists(place, body, writers)
        if trainer == "augment":
            with errors_at(f"{place}.args"):
                AugmentConfig(**recipe.stage_args(name))
        if trainer == "merge":
            _check_merge(recipe, place, name)
        (writers if trainer == "augment" else sources).append(name)
    if recipe.guard is not None and not isinstance(recipe.guard, str):
        raise RecipeError(f"{where}: guard: found {recipe.guard!r}, expected a collection's folder or name")
    _check_keys(f"{where}: evaluation", recipe.evaluation, EVALUATION_FIELDS)
    for name, row in recipe.rows.items():
        place = f"{where}: evaluation.rows.{name}"
        if re.search(r"\s", f"{recipe.name}{name}"):
            raise RecipeError(
                f"{place}: white space in the row's or the recipe's name would split the columns of run files; use "
                "'-' instead"
            )
        _check_keys(place, row, ROW_FIELDS)
        _check_roles(place, row, ("retriever",), sources)


def _check_loading(place: str, body: dict[str, Any]) -> None:
    trusted, dtype = body.get("trust_remote_code", False), body.get("dtype")
    if not isinstance(trusted, bool):
        raise RecipeError(f"{place}.trust_remote_code: found {trusted!r}, expected true or false")
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"{place}.dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")


def _check_minutes(recipe: Recipe, where: str) -> None:
    def positive(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0

    if recipe.minutes is not None and not positive(recipe.minutes):
        raise RecipeError(f"{where}: minutes: found {recipe.minutes!r}, expected a number above 0")
    if recipe.clock not in ("wall", "processor"):
        raise RecipeError(f"{where}: clock: found {recipe.clock!r}, expected wall or processor")
    for name, body in recipe.stages.items():
        place = f"{where}: stages.{name}"
        for key in ("share", "min_steps", "max_epochs"):
            if isinstance(body, dict) and key in body and not positive(body[key]):
                raise RecipeError(f"{place}.{key}: found {body[key]!r}, expected a number above 0")


def _check_lists(place: str, body: dict[str, Any], writers: list[str]) -> None:
    """`lists` names earlier stages that write training lists."""
    given = body.get("lists", [])
    if not isinstance(given, list):
        raise RecipeError(f"{place}.lists: found {given!r}, expected a list of earlier stages that augment")
    if given and body["trainer"] == "augment":
        raise RecipeError(f"{place}.lists: a stage that augments writes lists and takes none")
    for name in given:
        if name not in writers:
            known = _nearest(name, writers) if writers else "; there is none"
            raise RecipeError(f"{place}.lists: {name!r} is no earlier stage that augments{known}")


def _check_numbers(place: str, trainer: str, settings: dict[str, Any]) -> None:
    """A text in place of a number or of true/false would otherwise fail only when the stage starts."""
    for setting in dataclasses.fields(CONFIGS[trainer]):
        value = settings.get(setting.name)
        wanted = isinstance(setting.default, (int, float)) and "str" not in str(setting.type)
        if wanted and isinstance(value, str):
            kind = "true or false" if isinstance(setting.default, bool) else "a number"
            raise RecipeError(f"{place}.{setting.name}: found {value!r}, expected {kind}")


def _check_merge(recipe: Recipe, place: str, stage: str) -> None:
    """A merge has one retriever with one tower, and a base among the models."""
    body = recipe.stages[stage]
    for name in ("ranker", "lists"):
        if name in body:
            raise RecipeError(f"{place}.{name}: a stage that merges takes a retriever and trains nothing")
    with errors_at(f"{place}.args"):
        base = MergeConfig(**recipe.stage_args(stage)).base
    if base is not None and base not in recipe.models:
        raise RecipeError(f"{place}.args.base: {base!r} is not a model{_nearest(base, list(recipe.models))}")
    model, changes = recipe.first_model(body["retriever"])
    source = source_name(body["retriever"])
    if source == (base or model):
        raise RecipeError(
            f"{place}.retriever: {model!r} is also the base; expected a stage that trained it, or another base in args"
        )
    while source in recipe.stages:
        if recipe.stages[source]["trainer"] == "ltre":
            raise RecipeError(
                f"{place}.retriever: stage {source!r} (ltre) leaves a tower for queries and one for passages, and "
                "only retrievers with one tower can be merged. Merge before LTRe"
            )
        source = source_name(recipe.stages[source]["retriever"])
    if any(fields.get("separate_towers") for fields in (recipe.models[model], *changes)):
        raise RecipeError(
            f"{place}.retriever: it has separate_towers; only one-tower retrievers can be merged"
        )


def _check_roles(place: str, body: dict[str, Any], required: tuple[str, ...], known: list[str]) -> None:
    for role in ("retriever", "ranker"):
        if role in required and role not in body:
            raise RecipeError(f"{place}: field {role!r} is missing: name a model or an earlier stage")
        if role in body:
            if isinstance(body[role], dict):
                changes = [field for field in MODEL_FIELDS[1:] if field not in LOADING_OPTIONS]
                _check_keys(f"{place}.{role}", body[role], ["from", *changes])
                _check_loading(f"{place}.{role}", body[role])
                _check_lora(f"{place}.{role}", body[role])
            name = source_name(body[role])
            if name not in known:
                nearest = _nearest(name, known)
                raise RecipeError(f"{place}.{role}: {name!r} is not a model or an earlier stage{nearest}")


def _check_lora(place: str, body: dict[str, Any]) -> None:
    if body.get("lora") is not None:
        with errors_at(place):
            check_lora(body["lora"])


def _check_keys(place: str, body: Any, allowed: list[str] | tuple[str, ...]) -> None:
    if not isinstance(body, dict):
        raise RecipeError(f"{place}: expected a mapping, found {type(body).__name__}")
    for key in body:
        if key not in allowed:
            raise RecipeError(f"{place}: unknown key {key!r}{_nearest(key, allowed)}")


def _nearest(name: str, allowed: Any) -> str:
    near = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(map(str, allowed))}"
