"""Reads a recipe from its YAML file and the command line, and checks every field of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hf_ar2.augmentation import AugmentConfig
from hf_ar2.cards.facts import source_changes, source_name
from hf_ar2.collections.joined import source_text
from hf_ar2.command_line.parser import nearest
from hf_ar2.evaluation.systems import LEXICAL_ROW
from hf_ar2.models.loading import LOADING_OPTIONS
from hf_ar2.models.lora import check_lora
from hf_ar2.models.merging import MergeConfig
from hf_ar2.models.prompts import check_prompts
from hf_ar2.recipes.fields import (
    Evaluation,
    Model,
    Row,
    Stage,
    check_fields,
    check_mapping,
    check_shape,
    check_value,
)
from hf_ar2.recipes.recipe import CONFIGS, ROW_ARGS, Recipe, RecipeError, config_fields, errors_at
from hf_ar2.settings.plain_yaml import read_yaml
from hf_ar2.settings.text import names_of
from hf_ar2.settings.values import check_name


def load_recipe(path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read and check a recipe; a RecipeError names the field, what was found and what was expected.

    `overrides` are `--key value` from the command line; a key is a field (`seed`), a setting of every stage (`bf16`) or
    a path (`ar2.num_rounds`, `evaluation.depth`, `models.light.layers`).
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe")
    with errors_at(str(path)):
        content = read_yaml(path.read_bytes())
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a mapping with the fields {', '.join(names_of(Recipe))}")
    content.setdefault("name", path.stem)
    check_shape(content, str(path))
    for key, text in (overrides or {}).items():
        _override(content, key, text)
    content = _with_numbers(content)
    check_shape(content, str(path))
    if isinstance(content.get("collection"), dict | list):
        with errors_at(str(path)):
            content["collection"] = source_text(content["collection"])
    check_fields(str(path), content, Recipe)
    if "collection" not in content:
        raise RecipeError(f"{path}: field 'collection' is missing")
    recipe = Recipe(**content)
    _check(recipe, str(path))
    return recipe


def _settings() -> list[str]:
    """Settings of any trainer, sorted."""
    return sorted({key for trainer in CONFIGS for key in config_fields(trainer)})


def _trainers_with(setting: str) -> list[str]:
    """The trainers that have a setting."""
    return [trainer for trainer in CONFIGS if setting in config_fields(trainer)]


def _override(content: dict[str, Any], key: str, text: str) -> None:
    value = _value(key, text)
    head, _, rest = key.partition(".")
    stages = content.get("stages", {})
    if not rest:
        if key in names_of(Recipe):
            content[key] = value
        elif key in _settings():
            content.setdefault("args", {})[key] = value
            for body in stages.values():  # the command line has precedence over a stage's own setting
                if key in body.get("args", {}):
                    body["args"][key] = value
        else:
            raise RecipeError(
                f"--{key}: unknown key{nearest(key, [*names_of(Recipe), *_settings(), *stages])}"
            )
        return
    if head in stages:
        stages[head].setdefault("args", {})[rest] = value
        return
    if head not in ("models", "evaluation", "args"):
        known = [*stages, "models", "evaluation", "args"]
        raise RecipeError(f"--{key}: {head!r} is not a stage{nearest(head, known)}")
    place = content.setdefault(head, {})
    *path, last = rest.split(".")
    for part in path:
        place = place.setdefault(part, {})
        check_mapping(f"--{key}: {part}", place)
    place[last] = value


def _value(key: str, text: str) -> Any:
    """The value of `--key text`, as YAML reads it; a prompt or separator without quotes is taken literally."""
    *path, name = key.split(".")
    literal = name in ("title_separator", "passage_template") or path[-1:] == ["prompts"]
    # YAML would read "query: " as a mapping, and " " as null.
    if literal and text not in ("null", "~") and not text.startswith(("'", '"')):
        return text
    with errors_at(f"--{key}"):
        return read_yaml(text)


def _with_numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 and 1e3 as texts; here they become the numbers that they look like."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


def _check_names(recipe: Recipe, where: str) -> None:
    """Check that names can be those of folders; that of the recipe may have parts, as in `ar2/scifact`."""
    with errors_at(f"{where}: name"):
        for part in str(recipe.name).split("/"):
            check_name(part)
    named = {"models": recipe.models, "stages": recipe.stages, "evaluation.rows": recipe.rows}
    for place, names in named.items():
        with errors_at(f"{where}: {place}"):
            for name in names:
                check_name(name)
    if recipe.evaluation.get("lexical") and LEXICAL_ROW in recipe.rows:
        raise RecipeError(
            f"{where}: evaluation.rows: found {LEXICAL_ROW!r}, the row that 'lexical' adds; expected another name"
        )


def _check(recipe: Recipe, where: str) -> None:
    _check_names(recipe, where)
    for name, body in recipe.models.items():
        place = f"{where}: models.{name}"
        check_fields(place, body, Model)
        if "model" not in body:
            raise RecipeError(f"{place}: field 'model' is missing")
        _check_lora(place, body)
        if body.get("prompts") is not None:
            with errors_at(place):
                check_prompts(body["prompts"])
    for name, body in recipe.stages.items():
        check_fields(f"{where}: stages.{name}", body, Stage)
        if "trainer" not in body:
            raise RecipeError(
                f"{where}: stages.{name}: field 'trainer' is missing; expected {', '.join(CONFIGS)}"
            )
    for key in recipe.args:
        if key not in _settings():
            raise RecipeError(f"{where}: args: unknown key {key!r}{nearest(str(key), _settings())}")
        trainers = _trainers_with(key)
        used = [body["trainer"] for body in recipe.stages.values() if body["trainer"] in trainers]
        if recipe.stages and not used and key not in ROW_ARGS:
            raise RecipeError(
                f"{where}: args.{key}: no stage of this recipe has this setting, which is one of trainer "
                f"{', '.join(trainers)}; leave it out"
            )
        for trainer in used or trainers:
            check_value(f"{where}: args", recipe.args, key, CONFIGS[trainer])
    check_fields(f"{where}: evaluation", recipe.evaluation, Evaluation)
    with errors_at(f"{where}: args"):
        recipe.texts.check_passage_template()
    sources, writers = list(recipe.models), list[str]()
    for name, body in recipe.stages.items():
        place, trainer = f"{where}: stages.{name}", body["trainer"]
        if name in recipe.models:
            raise RecipeError(f"{place}: a model has the same name")
        for key in body.get("args", {}):
            others = _trainers_with(key)
            if others and trainer not in others:
                raise RecipeError(
                    f"{place}.args: trainer {trainer!r} has no setting {key!r}, which is one of trainer "
                    f"{', '.join(others)}"
                )
        check_fields(f"{place}.args", body.get("args", {}), CONFIGS[trainer], config_fields(trainer))
        without_ranker = trainer in ("retriever", "ltre", "merge")
        _check_roles(place, body, ("retriever",) if without_ranker else ("retriever", "ranker"), sources)
        _check_lists(place, body, writers)
        if trainer == "augment":
            with errors_at(f"{place}.args"):
                AugmentConfig(**recipe.stage_args(name))
        if trainer == "merge":
            _check_merge(recipe, place, name)
        (writers if trainer == "augment" else sources).append(name)
    for name, row in recipe.rows.items():
        place = f"{where}: evaluation.rows.{name}"
        if re.search(r"\s", f"{recipe.name}{name}"):
            raise RecipeError(
                f"{place}: white space in the row's or the recipe's name would split the columns of run files; use "
                "'-' instead"
            )
        check_fields(place, row, Row)
        _check_roles(place, row, ("retriever",), sources)
    if recipe.rerank_depth > recipe.depth and any("ranker" in row for row in recipe.rows.values()):
        raise RecipeError(
            f"{where}: evaluation.rerank_depth: found {recipe.rerank_depth}, expected at most the depth, "
            f"{recipe.depth}: a ranker reorders what the retriever found"
        )


def _check_lists(place: str, body: dict[str, Any], writers: list[str]) -> None:
    """Check that `lists` names earlier stages that write training lists."""
    given = body.get("lists", [])
    if given and body["trainer"] == "augment":
        raise RecipeError(f"{place}.lists: a stage that augments writes lists and takes none")
    for name in given:
        if name not in writers:
            known = nearest(name, writers) if writers else "; there is none"
            raise RecipeError(f"{place}.lists: {name!r} is no earlier stage that augments{known}")


def _check_merge(recipe: Recipe, place: str, stage: str) -> None:
    """Check that a merge has one retriever with one tower, and a base among the models."""
    body = recipe.stages[stage]
    for name in ("ranker", "lists"):
        if name in body:
            raise RecipeError(f"{place}.{name}: a stage that merges takes a retriever and trains nothing")
    with errors_at(f"{place}.args"):
        base = MergeConfig(**recipe.stage_args(stage)).base
    if base is not None and base not in recipe.models:
        raise RecipeError(f"{place}.args.base: {base!r} is not a model{nearest(base, list(recipe.models))}")
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
        if role not in body:
            continue
        if isinstance(body[role], dict):
            if not isinstance(body[role].get("from"), str):
                raise RecipeError(f"{place}.{role}.from: expected the name of a model or an earlier stage")
            changes = source_changes(body[role])
            allowed = [name for name in names_of(Model)[1:] if name not in LOADING_OPTIONS]
            check_fields(f"{place}.{role}", changes, Model, allowed)
            _check_lora(f"{place}.{role}", changes)
        name = source_name(body[role])
        if name not in known:
            near = nearest(name, known)
            raise RecipeError(f"{place}.{role}: {name!r} is not a model or an earlier stage{near}")


def _check_lora(place: str, body: dict[str, Any]) -> None:
    if body.get("lora") is not None:
        with errors_at(place):
            check_lora(body["lora"])
