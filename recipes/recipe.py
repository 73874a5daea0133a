"""A recipe: a collection, models, the stages that train them, the rows that are evaluated, and their settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from hf_ar2.augmentation import AugmentConfig
from hf_ar2.cards.facts import CHOSEN, PLAN, reported_split, source_changes, source_name
from hf_ar2.cards.guard import GUARD_FILE
from hf_ar2.encoding.processes import Processes
from hf_ar2.models.merging import MergeConfig
from hf_ar2.search.run_index import SEARCHED_INDEX, RunIndex
from hf_ar2.settings.effects import OF_THE_MACHINE
from hf_ar2.settings.fields import LARGEST_SEED
from hf_ar2.settings.secrets import without_secrets
from hf_ar2.settings.text import ScoringConfig, TextConfig, names_of
from hf_ar2.terminal import visible_lines
from hf_ar2.trainers import AR2Config, LTReConfig, RankerConfig, RetrieverConfig, RocketQAv2Config

# Trainer of a stage → its settings. Two train nothing: `augment` writes training lists for later stages, `merge`
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
# Set by the runner, which deletes files there that it no longer needs.
RESERVED = ("output_dir", "index_dir")
# Common settings that also apply to the rows: how texts are read, searched and shown. The others are about training.
ROW_ARGS = (*names_of(ScoringConfig), "encode_tokens", "train_split", *OF_THE_MACHINE)
# Fields of a row that are settings of its configuration.
_ROW_SETTINGS = ("index_factory", "index", "index_ids", "search_parameters")
# The parts of a run folder that other machines need. Indexes and tokens are shared where they are made.
_READ_AGAIN = ("stages", "evaluation", "runs", PLAN, CHOSEN, GUARD_FILE)


# Loads the model of a role (`"retriever"` or `"ranker"`) and a source, as a stage or a row names it.
Load = Callable[[str, Any], Any]


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the field, what was found and what was expected."""


@contextmanager
def errors_at(place: str, kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Raise errors of these kinds as a `RecipeError` that names the place in the recipe."""
    try:
        yield
    except kinds as error:
        raise RecipeError(f"{place}: {error}") from None


@dataclass
class Recipe:
    """A checked recipe; `hf_ar2.recipes.fields` has the fields of models, stages, rows and evaluation."""

    name: str
    collection: str = field(metadata={"minimum": 1})  # as a text that `load_collection` takes
    # Of every stage, of new ranker heads, of samples.
    seed: int = field(default=42, metadata={"minimum": 0, "maximum": LARGEST_SEED})
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)  # settings of every stage
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)  # in the order they run
    evaluation: dict[str, Any] = field(default_factory=dict)
    # What the run may take until the served system is chosen; None: as long as its stages take.
    minutes: float | None = field(default=None, metadata={"above": 0})
    clock: Literal["wall", "processor"] = "wall"  # counts the minutes; "processor": time of this process
    guard: str | None = None  # a collection of other texts, see `hf_ar2.recipes.guard`
    # A file of real questions, one per line, that every row is also evaluated on, see `with_questions`.
    questions: str | None = field(default=None, metadata={"minimum": 1})
    output_dir: str = ""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of the evaluation: name → the models that are evaluated and how they search."""
        return self.evaluation.get("rows", {})

    @property
    def splits(self) -> list[str]:
        """Splits that the rows are evaluated on."""
        return self.evaluation.get("splits", ["dev", "test"])

    @property
    def report_split(self) -> str:
        """The split of the final table."""
        return reported_split(vars(self))

    @property
    def choose_on(self) -> str | None:
        """The split that the served system is chosen on; None: the last row is served."""
        return self.evaluation.get("choose_on", "dev")

    @property
    def metrics(self) -> list[str]:
        """Metrics of the evaluation."""
        return self.evaluation.get("metrics", ["mrr@10", "ndcg@10", "recall@100"])

    @property
    def test_metric(self) -> str:
        """The metric that differences are tested on."""
        return str(self.evaluation.get("test_metric", self.metrics[0]))

    @property
    def table_metrics(self) -> list[str]:
        """The metrics, first the one that differences are tested on."""
        return list(dict.fromkeys([self.test_metric, *self.metrics]))

    @property
    def depth(self) -> int:
        """Passages that are retrieved per query."""
        return self.evaluation.get("depth", 100)

    @property
    def rerank_depth(self) -> int:
        """Passages that a ranker reorders per query."""
        return self.evaluation.get("rerank_depth", 20)

    @property
    def texts(self) -> TextConfig:
        """How texts are read, by the common settings."""
        return TextConfig(**{name: self.args[name] for name in names_of(TextConfig) if name in self.args})

    def stage_args(self, stage: str) -> dict[str, Any]:
        """Settings of a stage: the recipe's common ones that its trainer has, then its own."""
        body = self.stages[stage]
        allowed = config_fields(body["trainer"])
        common = {key: value for key, value in self.args.items() if key in allowed}
        return {"seed": self.seed, **common, **body.get("args", {})}

    def first_model(self, source: Any) -> tuple[str, list[dict[str, Any]]]:
        """The model that a retriever started from, and what its stages changed in it, first to last."""
        changes: list[dict[str, Any]] = []
        while True:
            if isinstance(source, dict):
                changes.insert(0, source_changes(source))
            name = source_name(source)
            if name in self.models:
                return name, changes
            source = self.stages[name]["retriever"]

    def stage_key(self, stage: str) -> str:
        """A hash of everything in the recipe that a stage's result depends on, the stages before it included."""
        body = self.stages[stage]
        sources = {}
        for role in ("retriever", "ranker"):
            source = body.get(role)
            if source is not None:
                name = source_name(source)
                earlier = self.stage_key(name) if name in self.stages else self.models.get(name)
                sources[role] = [source, earlier]
        args = without_secrets(self.stage_args(stage))  # a new token does not make another stage
        args.pop("ddp_timeout", None)  # a run that ended by it goes on with a longer one
        content = [self.collection, args, body["trainer"], sources]
        length = {name: body[name] for name in ("share", "max_epochs") if name in body}
        if length or self.minutes is not None:
            content.append([length, self.minutes])
        if body.get("lists"):
            content.append([self.stage_key(name) for name in body["lists"]])
        if body["trainer"] == "merge":
            settings = MergeConfig(**self.stage_args(stage))
            content.append(self.models.get(settings.base) if settings.base else None)
            level = self.evaluation.get("relevance_level", 1)
            by = [self.guard, self.test_metric, *([level] if level != 1 else [])]
            content.append(by if settings.share == "auto" else None)
        return short_hash(content)


def config_fields(trainer: str) -> list[str]:
    """Names of the settings a trainer takes."""
    return [f.name for f in dataclasses.fields(CONFIGS[trainer]) if f.init and f.name not in RESERVED]


def short_hash(content: Any) -> str:
    """24 hex digits of plain data."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def stage_config(recipe: Recipe, stage: str, run: Path) -> Any:
    """The configuration that a stage is run with in a run folder; ValueError or TypeError for invalid settings."""
    body = recipe.stages[stage]
    settings = recipe.stage_args(stage)
    if body["trainer"] in ("augment", "merge"):
        return CONFIGS[body["trainer"]](**settings)
    settings.setdefault("cache_dir", str(run / "cache"))
    settings["index_dir"] = str(encodings_folder(run))
    if body.get("lists"):
        written = [str(lists_folder(run, name)) for name in body["lists"]]
        settings["train_lists"] = written + (settings.get("train_lists") or [])
    return CONFIGS[body["trainer"]](output_dir=str(run / "stages" / stage), **settings)


def row_config(recipe: Recipe, row: str, run: Path) -> RetrieverConfig | LTReConfig:
    """The configuration that a row is evaluated with: an `LTReConfig` if an index is named or search has parameters."""
    body = recipe.rows[row]
    settings: dict[str, Any] = {key: value for key, value in recipe.args.items() if key in ROW_ARGS}
    settings |= {"cache_dir": str(run / "cache"), "index_dir": str(encodings_folder(run))}
    settings |= {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
    settings |= {key: body[key] for key in _ROW_SETTINGS if key in body}
    stage = settings.get("index")
    if stage is not None and stage in recipe.stages:
        del settings["index"]
        found = RunIndex.from_stage(run / "stages" / stage / SEARCHED_INDEX, recipe.stage_args(stage))
        if found is None:  # it is searched exactly, as it was trained
            settings["index_factory"] = "Flat"
        else:
            settings["index"] = str(found.path)
            settings |= {} if found.ids is None else {"index_ids": str(found.ids)}
    output = str(run / "evaluation" / row)
    if "index" in settings or "search_parameters" in settings:
        return LTReConfig(output_dir=output, vectors="index", **settings)
    return RetrieverConfig(output_dir=output, **settings)


def lists_folder(run: Path, stage: str) -> Path:
    """Where a stage that augments writes its training lists."""
    return run / "stages" / stage / "lists"


def encodings_folder(run: Path) -> Path:
    """Where the stages and rows of a run keep their indexes."""
    return run / "encodings"


def on_every_machine(run: Path) -> None:
    """Wait for all processes; then each machine has what the first process wrote of stages and evaluations."""
    Processes.current(PartialState().device).share(run, *_READ_AGAIN)


def say(text: str) -> None:
    """Print on the first process."""
    if PartialState().is_main_process:
        print(visible_lines(text), flush=True)
