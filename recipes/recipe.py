"""A recipe: one YAML file, checked field by field before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_ar2.augmentation import AugmentConfig
from hf_ar2.cards.facts import source_changes, source_name
from hf_ar2.models.merging import MergeConfig
from hf_ar2.trainers import AR2Config, LTReConfig, RankerConfig, RetrieverConfig, RocketQAv2Config

# What a stage may be, and its settings. Two train nothing: `augment` writes training lists for later stages, `merge`
# averages a trained retriever's weights with those it started from.
CONFIGS: dict[str, Any] = {
    "retriever": RetrieverConfig,
    "ranker": RankerConfig,
    "ar2": AR2Config,
    "rocketqa-v2": RocketQAv2Config,
    "ltre": LTReConfig,
    "augment": AugmentConfig,
    "merge": MergeConfig,
}
MODEL_FIELDS = ("model", "layers", "max_length", "dropout", "pooling", "similarity", "separate_towers")
# share: of the time of a run with minutes; min_steps: fewer are not worth it; max_epochs: passes over the queries.
STAGE_FIELDS = ("trainer", "retriever", "ranker", "lists", "args", "share", "min_steps", "max_epochs")
# A row is searched exactly, or with an index of a factory string, a file's, or the one that a stage trained.
ROW_FIELDS = ("retriever", "ranker", "index_factory", "index", "index_ids", "search_parameters")
EVALUATION_FIELDS = (
    "rows",
    "splits",
    "metrics",
    "depth",
    "rerank_depth",
    "test_metric",
    "report_split",
    "choose_on",
    "pipeline_weight",
    "lexical",
)
# Set by the runner, which finds there what it wrote and deletes what is no longer needed.
RESERVED = ("output_dir", "index_dir")


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the field, what was found and what was expected."""


@dataclass
class Recipe:
    """A checked recipe.

    Attributes:
        name: for reports.
        collection: what `load_collection` takes.
        seed: of every stage, of fresh heads, of samples.
        models: name → fields of `load_retriever` / `load_ranker`.
        args: settings of every stage.
        stages: name → trainer, models it starts from, stages whose training lists it takes, settings; in the order
            they run.
        evaluation: rows of the final table (which models), splits, metrics, depths.
        minutes: what the run may take until the system that is served is chosen; None: what its stages ask for.
        clock: what the minutes are counted by: `"wall"`, or `"processor"` time of this process.
        guard: a collection of other texts, on which each row's retriever is measured beside the model that training
            began with; None: no such measurement.
        questions: a file of real questions, one a line, that every row is measured on as well (`with_questions`).
    """

    name: str
    collection: str
    seed: int = 42
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    clock: str = "wall"
    guard: str | None = None
    questions: str | None = None
    output_dir: str = ""

    def stage_args(self, stage: str) -> dict[str, Any]:
        """Settings of a stage: the recipe's common ones that its trainer has, then its own."""
        body = self.stages[stage]
        allowed = config_fields(body["trainer"])
        common = {key: value for key, value in self.args.items() if key in allowed}
        return {"seed": self.seed, **common, **body.get("args", {})}

    @property
    def test_metric(self) -> str:
        """The metric that differences are tested on."""
        metrics = self.evaluation.get("metrics", ["mrr@10"])
        return str(self.evaluation.get("test_metric", metrics[0]))

    def way_back(self, source: Any) -> tuple[str, list[dict[str, Any]]]:
        """The model that a retriever goes back to through its stages, and what is changed on the way, first to last."""
        changes: list[dict[str, Any]] = []
        while True:
            if isinstance(source, dict):
                changes.insert(0, source_changes(source))
            name = source_name(source)
            if name in self.models:
                return name, changes
            source = self.stages[name]["retriever"]

    def stage_key(self, stage: str) -> str:
        """A hash of everything a stage's result depends on in the recipe, the stages before it included."""
        body = self.stages[stage]
        sources = {}
        for role in ("retriever", "ranker"):
            source = body.get(role)
            if source is not None:
                name = source_name(source)
                sources[role] = [
                    source,
                    self.stage_key(name) if name in self.stages else self.models.get(name),
                ]
        content = [self.collection, self.stage_args(stage), body["trainer"], sources]
        length = {name: body[name] for name in ("share", "max_epochs") if name in body}
        if length or self.minutes is not None:
            content.append([length, self.minutes])
        if body.get("lists"):
            content.append([self.stage_key(name) for name in body["lists"]])
        if body["trainer"] == "merge":
            settings = MergeConfig(**self.stage_args(stage))
            content.append(self.models.get(settings.base) if settings.base else None)
            content.append([self.guard, self.test_metric] if settings.share == "auto" else None)
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def load_recipe(path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `--key value` from the command line; a key is a field (`seed`), a setting of every stage
            (`bf16`), or a path (`ar2.num_rounds`, `evaluation.depth`, `models.light.layers`).

    Raises:
        RecipeError: an unknown key (with the nearest known one), a stage that names a model that is not there, …
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
    content = _numbers(content)
    _known(str(path), content, _fields())
    if "collection" not in content:
        raise RecipeError(f"{path}: field 'collection' is missing")
    recipe = Recipe(**content)
    _check(recipe, str(path))
    return recipe


def config_fields(trainer: str) -> list[str]:
    """Names of the settings a trainer takes."""
    return [f.name for f in dataclasses.fields(CONFIGS[trainer]) if f.init and f.name not in RESERVED]


def _fields() -> list[str]:
    return [f.name for f in dataclasses.fields(Recipe)]


def _check(recipe: Recipe, where: str) -> None:
    for name, body in recipe.models.items():
        _known(f"{where}: models.{name}", body, MODEL_FIELDS)
        if "model" not in body:
            raise RecipeError(f"{where}: models.{name} does not say which model (field 'model')")
    _check_minutes(recipe, where)
    common = sorted({key for trainer in CONFIGS for key in config_fields(trainer)})
    _known(f"{where}: args", recipe.args, common)
    seen, writers = list(recipe.models), list[str]()
    for name, body in recipe.stages.items():
        place = f"{where}: stages.{name}"
        if name in recipe.models:
            raise RecipeError(f"{place}: a model has this name too")
        _known(place, body, STAGE_FIELDS)
        if body.get("trainer") not in CONFIGS:
            raise RecipeError(
                f"{place}.trainer: found {body.get('trainer')!r}, expected one of {', '.join(CONFIGS)}"
            )
        _known(f"{place}.args", body.get("args", {}), config_fields(body["trainer"]))
        _check_numbers(f"{place}.args", body["trainer"], recipe.stage_args(name))
        alone = body["trainer"] in ("retriever", "ltre", "merge")
        roles: tuple[str, ...] = ("retriever",) if alone else ("retriever", "ranker")
        _check_roles(place, body, roles, seen)
        _check_lists(place, body, writers)
        if body["trainer"] == "augment":
            _check_augmentation(f"{place}.args", recipe.stage_args(name))
        if body["trainer"] == "merge":
            _check_merge(recipe, place, name)
        (writers if body["trainer"] == "augment" else seen).append(name)
    if recipe.guard is not None and not isinstance(recipe.guard, str):
        raise RecipeError(f"{where}: guard: found {recipe.guard!r}, expected a collection's folder or name")
    evaluation = recipe.evaluation
    _known(f"{where}: evaluation", evaluation, EVALUATION_FIELDS)
    for name, row in evaluation.get("rows", {}).items():
        if re.search(r"\s", f"{recipe.name}{name}"):
            raise RecipeError(
                f"{where}: evaluation.rows.{name}: white space in the row's or the recipe's name would split the "
                "columns of run files; write it with '-'"
            )
        _known(f"{where}: evaluation.rows.{name}", row, ROW_FIELDS)
        _check_roles(f"{where}: evaluation.rows.{name}", row, ("retriever",), seen)


def _check_minutes(recipe: Recipe, where: str) -> None:
    """Time is a positive number of minutes; a stage's part of it, and its bounds, are positive numbers."""

    def positive(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0

    if recipe.minutes is not None and not positive(recipe.minutes):
        raise RecipeError(f"{where}: minutes: found {recipe.minutes!r}, expected a number above 0")
    if recipe.clock not in ("wall", "processor"):
        raise RecipeError(f"{where}: clock: found {recipe.clock!r}, expected wall or processor")
    for name, body in recipe.stages.items():
        for field_name in ("share", "min_steps", "max_epochs"):
            if isinstance(body, dict) and field_name in body and not positive(body[field_name]):
                raise RecipeError(
                    f"{where}: stages.{name}.{field_name}: found {body[field_name]!r}, expected a number above 0"
                )


def _check_lists(place: str, body: dict[str, Any], writers: list[str]) -> None:
    """`lists` names stages before this one that write training lists."""
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
    """A text where a number or true/false is wanted would be compared with numbers only when the stage begins."""
    for setting in dataclasses.fields(CONFIGS[trainer]):
        value = settings.get(setting.name)
        wanted = isinstance(setting.default, (int, float)) and "str" not in str(setting.type)
        if wanted and isinstance(value, str):
            kind = "true or false" if isinstance(setting.default, bool) else "a number"
            raise RecipeError(f"{place}.{setting.name}: found {value!r}, expected {kind}")


def _check_augmentation(place: str, settings: dict[str, Any]) -> None:
    """Settings that would be refused once the stages before have run are refused now."""
    try:
        AugmentConfig(**settings)
    except ValueError as error:
        raise RecipeError(f"{place}: {error}") from None


def _check_merge(recipe: Recipe, place: str, stage: str) -> None:
    """A merge has one retriever of one tower, and a base among the models."""
    body, settings = recipe.stages[stage], recipe.stage_args(stage)
    for name in ("ranker", "lists"):
        if name in body:
            raise RecipeError(f"{place}.{name}: a stage that merges takes a retriever and trains nothing")
    try:
        base = MergeConfig(**settings).base
    except ValueError as error:
        raise RecipeError(f"{place}.args: {error}") from None
    if base is not None and base not in recipe.models:
        raise RecipeError(f"{place}.args.base: {base!r} is no model{_nearest(base, list(recipe.models))}")
    model, changes = recipe.way_back(body["retriever"])
    if source_name(body["retriever"]) == (base or model):
        raise RecipeError(
            f"{place}.retriever: {model!r} is the base too; expected a stage that trained it, or another base in args"
        )
    source = source_name(body["retriever"])
    while source in recipe.stages:
        if recipe.stages[source]["trainer"] == "ltre":
            raise RecipeError(
                f"{place}.retriever: stage {source!r} (ltre) leaves a tower for queries and one for passages, and "
                "only retrievers with one tower are merged. Merge before LTRe"
            )
        source = source_name(recipe.stages[source]["retriever"])
    if any(body.get("separate_towers") for body in (recipe.models[model], *changes)):
        raise RecipeError(
            f"{place}.retriever: it has separate_towers, and only retrievers with one tower are merged"
        )


def _check_roles(place: str, body: dict[str, Any], required: tuple[str, ...], seen: list[str]) -> None:
    for role in ("retriever", "ranker"):
        if role in required and role not in body:
            raise RecipeError(f"{place}: field {role!r} is missing: name a model or an earlier stage")
        if role in body:
            if isinstance(body[role], dict):
                _known(f"{place}.{role}", body[role], ("from", *MODEL_FIELDS[1:]))
            name = source_name(body[role])
            if name not in seen:
                raise RecipeError(
                    f"{place}.{role}: {name!r} is no model or earlier stage{_nearest(name, seen)}"
                )


def _known(place: str, body: dict[str, Any], allowed: list[str] | tuple[str, ...]) -> None:
    if not isinstance(body, dict):
        raise RecipeError(f"{place}: expected a mapping, found {type(body).__name__}")
    for key in body:
        if key not in allowed:
            raise RecipeError(f"{place}: unknown key {key!r}{_nearest(key, allowed)}")


def _nearest(name: str, allowed: Any) -> str:
    near = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(map(str, allowed))}"


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as text; here it is the number it looks like."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _override(content: dict[str, Any], key: str, text: str) -> None:
    value = yaml.safe_load(text)
    head, _, rest = key.partition(".")
    stages = content.get("stages") or {}
    if not rest:
        if key in _fields():
            content[key] = value
        elif any(key in config_fields(trainer) for trainer in CONFIGS):
            content.setdefault("args", {})[key] = value
            for body in stages.values():  # said on the command line, it wins over what a stage says
                if key in body.get("args", {}):
                    body["args"][key] = value
        else:
            settings = sorted({f for trainer in CONFIGS for f in config_fields(trainer)})
            raise RecipeError(f"--{key}: unknown key{_nearest(key, [*_fields(), *settings, *stages])}")
        return
    if head in stages:
        stages[head].setdefault("args", {})[rest] = value
        return
    if head not in ("models", "evaluation", "args"):
        raise RecipeError(
            f"--{key}: {head!r} is no stage{_nearest(head, [*stages, 'models', 'evaluation', 'args'])}"
        )
    place = content.setdefault(head, {})
    *path, last = rest.split(".")
    for part in path:
        place = place.setdefault(part, {})
    place[last] = value
