"""How models were trained, as plain data for their cards: read from a run folder, or recorded by a trainer."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ar2.cards.environment import describe_environment
from hf_ar2.cards.measured import part_note, part_sentence, query_note
from hf_ar2.collections.joined import texts_of_sources
from hf_ar2.files import read_json
from hf_ar2.terminal import counted

ROLES = ("retriever", "ranker")
# The system that a run serves, and why; written at the end of its evaluation.
CHOSEN = "chosen.json"
# How a run with minutes divides them, and the part of the corpus that it trains and chooses on.
PLAN = "plan.json"


@dataclass(frozen=True)
class Stage:
    """A stage of training; None where a number is not known."""

    name: str
    trainer: str  # such as "ar2", or "augment" or "merge"
    sources: Mapping[str, str]  # role → the model it started from, and the changes to it: `_source_text`
    settings: Mapping[str, Any] = field(default_factory=dict)  # all that affect the result
    steps: int | None = None
    seconds: float | None = None
    passages: int | None = None  # of the corpus
    queries: int | None = None  # that were trained on
    # What LTRe trained against: type, passages, dimension, fingerprint, retriever (name of the passage encoder).
    index: Mapping[str, Any] | None = None
    # Role → `describe_adapters` of the model, if adapters (LoRA) were trained instead of the weights.
    adapters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """How a retriever or a ranker was trained."""

    role: str
    name: str  # of the run
    collection: str  # as `load_collection` takes it
    stages: Sequence[Stage]  # that the model comes from, in the order they ran
    base: str  # the name of the model that training started from
    environment: Mapping[str, Any] = field(default_factory=dict)  # see `describe_environment`
    # Row → split → system → metric → value, in the order of training.
    metrics: Mapping[str, Any] = field(default_factory=dict)
    # Row → split → "retriever" (against the row before), "pipeline" (against the row's retriever) or "pipeline_before"
    # (against the last pipeline before) → fields of `PairedTest`.
    tests: Mapping[str, Any] = field(default_factory=dict)
    test_metric: str = "mrr@10"
    rerank_depth: int | None = None  # passages of a query that the ranker reordered
    on_the_hub: Sequence[str] = ()  # which of collection and base model are ids on the Hub
    row: str = ""  # the row of `metrics` that is published; "": the last
    chosen: Mapping[str, Any] = field(default_factory=dict)  # contents of chosen.json, if there is one
    other_texts: str = ""  # the result on a collection of other texts, as a sentence, if it was measured
    notes: Sequence[str] = ()  # what limits the numbers of `metrics`, as sentences

    @property
    def served(self) -> str:
        """The row of `metrics` that is published; "" without metrics."""
        return self.row if self.row in self.metrics else next(reversed(list(self.metrics)), "")

    @property
    def last(self) -> Stage:
        """The last stage that trained the model; a merge trains nothing."""
        return next((stage for stage in reversed(self.stages) if stage.trainer != "merge"), self.stages[-1])

    @property
    def merge(self) -> Stage | None:
        """The merge that made the model; None if no merge followed training."""
        return self.stages[-1] if self.stages[-1].trainer == "merge" else None

    @property
    def seconds(self) -> float | None:
        """Duration of all stages; None if that of one is not known."""
        known = [stage.seconds for stage in self.stages]
        return None if None in known else sum(second for second in known if second is not None)


def hub_id(name: str | Path) -> str | None:
    """The name if it is an id on the Hub (`owner/name`, and not a local path), else None."""
    words = r"[A-Za-z0-9][\w.-]*"
    return str(name) if re.fullmatch(f"{words}/{words}", str(name)) and not Path(name).exists() else None


def training_of_run(folder: str | Path, recipe: Mapping[str, Any], role: str) -> Training:
    """How the retriever or the ranker that a run serves was trained, from the run folder and its recipe.yaml."""
    folder = Path(folder)
    evaluation = recipe.get("evaluation") or {}
    stages, models = recipe.get("stages") or {}, recipe.get("models") or {}
    row, served = served_name(folder, recipe), served_row(folder, recipe)
    if role not in served:
        trained = [other for other in ROLES if is_trained(folder, recipe, other)]
        raise ValueError(
            f"{folder}: the run serves no {role} that it trained: row {row or '(none)'} of its evaluation, which it "
            f"serves, has no {role}. It has: {', '.join(trained) or 'neither'}"
        )
    source = source_name(served[role])
    if source not in stages:
        raise ValueError(
            f"{folder / 'recipe.yaml'}: row {row} of evaluation.rows, which is served, names {source!r} as {role}, "
            f"expected a stage that trained it; the stages are {', '.join(stages) or 'none'}"
        )
    wanted = set(_ancestors(str(source), stages))
    environment = read_json(folder / "environment.json", {})
    significance = read_json(folder / "significance.json", {})
    metrics, chosen = read_json(folder / "metrics.json", {}), read_json(folder / CHOSEN, {})
    splits = list(dict.fromkeys(split for systems in metrics.values() for split in systems))
    base = first_model(role, str(source), stages)
    notes = (
        query_note(environment.get("query_sources") or {}, splits),
        part_note(read_json(folder / PLAN, {}), chosen, splits),
    )
    return Training(
        role=role,
        name=str(recipe.get("name", folder.name)),
        collection=str(recipe["collection"]),
        stages=[_stage_of_run(folder, recipe, name) for name in stages if name in wanted],
        base=str(models.get(base, {}).get("model", base)),
        environment=environment,
        metrics=metrics,
        tests=significance.get("tests", {}),
        test_metric=significance.get("metric", "mrr@10"),
        rerank_depth=evaluation.get("rerank_depth", 20),
        on_the_hub=environment.get("on_the_hub", ()),
        row=row,
        chosen=chosen,
        other_texts=_other_texts(folder, recipe, served[role]) if role == "retriever" else "",
        notes=list(filter(None, notes)),
    )


def served_name(folder: str | Path, recipe: Mapping[str, Any]) -> str:
    """The row of a run's evaluation that is served: the one chosen on dev, else the last; "" without rows."""
    rows = (recipe.get("evaluation") or {}).get("rows") or {}
    chosen = read_json(Path(folder) / CHOSEN, {}).get("row")
    if chosen is not None and chosen not in rows:
        raise ValueError(
            f"{Path(folder) / CHOSEN}: serves row {chosen!r}, but recipe.yaml has {', '.join(rows) or 'no rows'}. Its "
            f"evaluation did not finish. {how_to_finish(folder)}"
        )
    return str(chosen) if chosen is not None else next(reversed(rows), "")


def served_row(folder: str | Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The models and the index of the row that a run serves, without the ranker if it is not served."""
    name = served_name(folder, recipe)
    row = dict(recipe["evaluation"]["rows"][name]) if name else {}
    if read_json(Path(folder) / CHOSEN, {}).get("system") in ("retriever", "hybrid"):
        row.pop("ranker", None)
    return row


def reported_split(recipe: Mapping[str, Any]) -> str:
    """The split of a run's tables: by default test, or the last of the splits if test is not one of them."""
    evaluation = recipe.get("evaluation") or {}
    splits = evaluation.get("splits") or ["test"]
    return str(evaluation.get("report_split", "test" if "test" in splits else splits[-1]))


def last_row(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The last row of a recipe's evaluation; `{}` without rows. The row that a run serves is `served_row`."""
    rows = (recipe.get("evaluation") or {}).get("rows") or {}
    return list(rows.values())[-1] if rows else {}


def is_trained(folder: str | Path, recipe: Mapping[str, Any], role: str) -> bool:
    """Whether a stage of the recipe trained the model that the run serves in a role."""
    served = served_row(folder, recipe)
    return role in served and source_name(served[role]) in (recipe.get("stages") or {})


def training_of_trainer(
    record: Mapping[str, Any],
    role: str,
    log_history: Sequence[Mapping[str, Any]],
    split: str,
    rerank_depth: int,
    earlier: Sequence[Mapping[str, Any]] = (),
    query_sources: Mapping[str, Mapping[str, int]] | None = None,
) -> Training:
    """How a trainer trained a model; the results are its own evaluations, without significance tests.

    Args:
        record: `collection`, `trained` (roles; default: only `role`) and the fields of `Stage`.
        log_history: of the trainer's state; its first and last evaluations are the results before and after training.
        earlier: records of the earlier stages of the models, in order.
        query_sources: split → source → number of queries, if the collection has sources.
    """
    stages = [
        Stage(**{name: value for name, value in stage.items() if name in Stage.__dataclass_fields__})
        for stage in (*earlier, record)
    ]
    entries = [entry for entry in log_history if any(key.startswith("eval_") for key in entry)]
    metrics: dict[str, Any] = {}
    for entry in dict.fromkeys([0, len(entries) - 1]) if entries else ():
        step = entries[entry].get("step", 0)
        row = "before" if step == 0 else f"after {counted(step, 'steps')}"
        metrics[row] = _by_split(entries[entry], split)
    total = record.get("passages") or 0
    limit = record.get("settings", {}).get("eval_passages") or total
    base = next(
        stage["sources"][role] for stage in (*earlier, record) if role in stage.get("trained", (role,))
    )
    splits = dict.fromkeys(name for row in metrics.values() for name in row)
    notes = [query_note(query_sources or {}, splits)]
    if metrics and limit < total:
        notes.append(part_sentence(split, f"about {limit:,} of {total:,} passages"))
    return Training(
        role=role,
        name=record["name"],
        collection=record["collection"],
        stages=stages,
        base=base,
        environment={**describe_environment(), "query_sources": query_sources or {}},
        metrics=metrics,
        notes=list(filter(None, notes)),
        rerank_depth=rerank_depth,
        on_the_hub=[
            name for name in (*texts_of_sources(record["collection"]).values(), base) if hub_id(name)
        ],
    )


def source_name(source: Any) -> str:
    """The model or stage a role starts from: `light`, `stage`, or `{from: stage, max_length: 96}`."""
    return source["from"] if isinstance(source, dict) else source


def source_changes(source: Any) -> dict[str, Any]:
    """The settings changed in the model that a role starts from."""
    return {key: value for key, value in source.items() if key != "from"} if isinstance(source, dict) else {}


def _other_texts(folder: Path, recipe: Mapping[str, Any], retriever: Any) -> str:
    from hf_ar2.cards.guard import GUARD_FILE, guard_sentence

    return guard_sentence(read_json(folder / GUARD_FILE, {}), retriever) if recipe.get("guard") else ""


def _ancestors(name: str, stages: Mapping[str, Any]) -> Iterator[str]:
    """The stage and all earlier stages that its models come from."""
    if name in stages:
        yield name
        body = stages[name]
        for source in [source_name(body[role]) for role in ROLES if role in body] + body.get("lists", []):
            yield from _ancestors(source, stages)


def first_model(role: str, name: str, stages: Mapping[str, Any]) -> str:
    """The model that a stage's model started from; a ranker may have started as a retriever."""
    while name in stages:
        name = source_name(stages[name].get(role) or stages[name].get("retriever"))
    return name


def _stage_of_run(folder: Path, recipe: Mapping[str, Any], name: str) -> Stage:
    body, done = recipe["stages"][name], read_json(folder / "stages" / name / "done.json", {})
    given = {"seed": recipe.get("seed"), **(recipe.get("args") or {}), **(body.get("args") or {})}
    models = recipe.get("models") or {}
    return Stage(
        name=name,
        trainer=body["trainer"],
        sources={role: _source_text(body[role], models) for role in ROLES if role in body},
        settings=done.get("settings", given),
        adapters=done.get("adapters", {}),
        **{key: done.get(key) for key in ("steps", "seconds", "passages", "queries", "index")},
    )


def _source_text(source: Any, models: Mapping[str, Any]) -> str:
    """The model that a role starts from and what is changed in it: `stage warm-up, dropout 0.0`."""
    name = source_name(source)
    fields = dict(models.get(name, {}))
    named = str(fields.pop("model")) if fields else f"stage {name}"
    fields |= source_changes(source)
    return ", ".join([named, *(f"{key} {value}" for key, value in fields.items())])


def _by_split(entry: Mapping[str, Any], split: str) -> dict[str, dict[str, dict[str, float]]]:
    """Entries such as `eval_retriever_mrr@10: 0.5`, as split → system → metric → value.

    `eval_nq_retriever_mrr@10` is about one of several collections, and so about the split `dev-nq`.
    """
    found: dict[str, dict[str, dict[str, float]]] = {split: {}}
    for key, value in entry.items():
        if match := re.fullmatch(r"eval_(?:(.+?)_)?(retriever|ranker|pipeline)_(.+)", key):
            part = f"{split}-{match[1]}" if match[1] else split
            found.setdefault(part, {}).setdefault(match[2], {})[match[3]] = float(value)
    return found


def how_to_finish(run: str | Path) -> str:
    """A sentence on how to finish an interrupted run: with the command that started it, which continues it."""
    again = "Run the command that started it again to continue"
    try:
        command = read_json(Path(run) / "environment.json", {}).get("command", "")
        script, recipe, *options = shlex.split(command)
    except ValueError:  # no command, or one whose quotes were lost
        return again
    folder = Path(script).parent
    if Path(script).name != "run.py" or recipe.startswith("-"):
        return again
    if Path(recipe).is_relative_to(folder) and folder.name:  # a recipe of the package
        recipe = Path(recipe).relative_to(folder).with_suffix("").as_posix()
    return f"Finish it with: {shlex.join(['hf-ar2', 'train', recipe, *options])}"
