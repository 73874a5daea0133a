"""The fields of a recipe and of the mappings in it, with the values that they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_ar2.command_line.parser import nearest
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.settings.fields import problem_of, setting
from hf_ar2.settings.text import RELEVANCE_LEVEL_HELP, names_of


@dataclass
class Model:
    """A model, and the changes that are made to it."""

    model: str = setting("", "Hub id, folder or package:NAME/FOLDER.", minimum=1)
    layers: list[int] | None = setting(None, "Layers to keep.", minimum=0)
    max_length: int | None = setting(None, "Longest text or pair.", unit="tokens", minimum=1)
    dropout: float | None = setting(None, "Dropout in training.", minimum=0, maximum=1)
    pooling: Literal["cls", "mean", "lasttoken"] | None = setting(None, "How token states become a vector.")
    similarity: Literal["cosine", "dot"] | None = setting(None, "How vectors are compared.")
    separate_towers: bool | None = setting(None, "An encoder each for queries and passages.")
    lora: dict[str, Any] | None = setting(None, "Fields of peft.LoraConfig.")
    prompts: dict[str, str] | None = setting(None, "Texts put before queries and passages.")
    truncate_dim: int | None = setting(
        None, "Dimensions of the embeddings that are kept, from the first on.", minimum=1
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = setting(None, "Data type of the weights.")
    attn_implementation: str | None = setting(None, "sdpa, eager, flash_attention_2, …")
    trust_remote_code: bool = setting(False, "Run custom code from the model's repository.")
    revision: str | None = setting(None, "Branch, tag or commit on the Hub.")


@dataclass
class Stage:
    """A stage."""

    trainer: Literal["retriever", "ranker", "ar2", "rocketqa-v2", "ltre", "augment", "merge"] = setting(
        "", "How."
    )
    retriever: str | dict[str, Any] = setting("", "A model or an earlier stage.")
    ranker: str | dict[str, Any] = setting("", "The same for the ranker.")
    lists: list[str] = setting([], "Earlier stages that augment.")
    args: dict[str, Any] = setting(None, "Settings of the trainer.")
    share: float = setting(1.0, "Part of the minutes.", above=0)
    min_steps: float = setting(0, "With fewer, the stage is dropped.", above=0)
    max_epochs: float = setting(0, "Passes over the queries.", above=0)
    after_passes: float = setting(
        0, "Dropped unless the earlier stages make so many passes over the queries.", above=0
    )


@dataclass
class Row:
    """A row of the evaluation. It is searched exactly, or with an index: of a factory string, a file, or a stage."""

    retriever: str | dict[str, Any] = setting("", "A model or a stage.")
    ranker: str | dict[str, Any] = setting("", "The same for the ranker.")
    index_factory: str = setting("Flat", "FAISS factory string.", minimum=1)
    index: str | None = setting(None, "A FAISS file, or a stage that trained one.")
    index_ids: str | None = setting(None, "The ids of its passages.")
    search_parameters: str | None = setting(None, "'nprobe=16', 'efSearch=256'.")


@dataclass
class Evaluation:
    """The evaluation at the end."""

    rows: dict[str, Any] = setting(None, "Name → row.")
    splits: list[str] = setting([], "Splits that rows are evaluated on.", minimum=1)
    metrics: list[str] = setting([], "Such as mrr@10.", minimum=1)
    relevance_level: int = setting(1, RELEVANCE_LEVEL_HELP, unit="grade", minimum=1)
    depth: int = setting(100, "Passages retrieved per query.", minimum=1)
    rerank_depth: int = setting(20, "Passages that a ranker reorders.", minimum=0)
    test_metric: str = setting("", "The metric that differences are tested on.")
    report_split: str = setting("test", "The split of the final table.")
    choose_on: str | None = setting("dev", "The split that the served system is chosen on.")
    pipeline_weight: float | None = setting(None, "Weight of the ranker; null: fitted.", minimum=0)
    lexical: bool = setting(False, "Whether BM25 is a row, and part of all others.")


def check_shape(content: dict[str, Any], where: str) -> None:
    """Check that what has fields is a mapping, so that they can be read and set."""
    for name in ("models", "args", "stages", "evaluation"):
        check_mapping(f"{where}: {name}", content.get(name, {}))
    for name, body in content.get("models", {}).items():
        check_mapping(f"{where}: models.{name}", body)
    for name, body in content.get("stages", {}).items():
        check_mapping(f"{where}: stages.{name}", body)
        check_mapping(f"{where}: stages.{name}.args", body.get("args", {}))
    rows = content.get("evaluation", {}).get("rows", {})
    check_mapping(f"{where}: evaluation.rows", rows)
    for name, body in rows.items():
        check_mapping(f"{where}: evaluation.rows.{name}", body)


def check_mapping(place: str, value: Any) -> None:
    """Check that a value is a mapping."""
    if not isinstance(value, dict):
        found = "null" if value is None else repr(value)
        raise RecipeError(f"{place}: found {found}, expected a mapping")


def check_fields(place: str, body: Any, config: type, allowed: Any = None) -> None:
    """Check the names (by default those of `config`) and the values of the fields of a mapping at a `place`."""
    check_mapping(place, body)
    allowed = names_of(config) if allowed is None else allowed
    for key in body:
        if key not in allowed:
            raise RecipeError(f"{place}: unknown key {key!r}{nearest(str(key), allowed)}")
        check_value(place, body, key, config)


def check_value(place: str, body: dict[str, Any], key: str, config: type) -> None:
    """Check the value of a field. `no` or `off`, which YAML reads as false, becomes that word if the field takes it."""
    value = body[key]
    problem = problem_of(config, key, value, "null")
    if problem and value is False:
        for word in ("no", "off"):
            if problem_of(config, key, word) is None:
                body[key], problem = word, None
    if problem:
        raise RecipeError(f"{place}{': ' if config is Recipe else '.'}{key}: {problem}")
