"""How the minutes of a run are divided among its stages, which stages are dropped, and where the time went."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_ar2.evaluation.tables import format_table
from hf_ar2.files import read_json, write_note
from hf_ar2.progress import format_duration
from hf_ar2.recipes.costs import Costs, encodes
from hf_ar2.recipes.recipe import Recipe, RecipeError, source_changes, source_name

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.monotonic, "processor": time.process_time}
# Trainers without training steps.
UNTRAINED = ("augment", "merge")
# Seconds, and share of the minutes, that are not divided: they are for loading models and writing files.
_RESERVED_SECONDS, _RESERVED_SHARE = 10.0, 0.03
# Share of the minutes that a stage without training may take.
_UNTRAINED = 0.1
# Parts of a trainer's seconds that are not training.
_MINING, _EVALUATION = "refresh", "evaluation"


@dataclass
class Plan:
    """How the minutes are divided."""

    recipe: Recipe  # without the stages that were dropped
    dropped: dict[str, str] = field(default_factory=dict)  # stage → why
    training: dict[str, float] = field(default_factory=dict)  # stage → seconds of its training steps
    # Stage → seconds of its encoding and ranking; "": of the evaluation at the end.
    overhead: dict[str, float] = field(default_factory=dict)


def make_plan(recipe: Recipe, seconds: float, costs: Costs) -> Plan:
    """Divide the seconds among the stages by their `share`; drop stages for which there is too little time.

    The time for encoding and ranking, in the stages and in the evaluation on dev, is set aside first. A stage gets no
    more than it needs for its `max_epochs`; the others share the rest. A stage is dropped if its own encoding and
    ranking takes longer than its share of the time, the one with the worst ratio first, and if it would reach neither
    its `min_steps` nor its `max_epochs`, or the stages before it not their passes (`after_passes`). The first stage
    that trains a retriever is never dropped. If the time is too short for what remains, that is a RecipeError.
    """
    dropped: dict[str, str] = {}
    while True:
        overhead = overheads(recipe, costs)
        left = seconds - sum(overhead.values())
        shares = {name: share_of(body) for name, body in recipe.stages.items()}
        most = {
            name: costs.steps_of_epochs(recipe, name) * costs.step_of(recipe, name) for name in recipe.stages
        }
        training = _divided(left, shares, most)
        required = _required_stages(recipe, costs)
        own = {
            name: sum(overhead.values()) - sum(overheads(without(recipe, name), costs).values())
            for name in recipe.stages
            if name not in required
        }
        other = _UNTRAINED * seconds  # a stage without training has none to compare with
        total = sum(shares.values())
        allowed = {name: left * shares[name] / total if shares[name] else other for name in own}
        worst = max(own, key=lambda name: own[name] / max(allowed[name], 1e-3), default=None)
        drop = _too_short(recipe, training, most, costs, required)
        if worst is not None and own[worst] > max(allowed[worst], 0.0):
            reason = f"encoding and ranking for it would take {format_duration(own[worst])}, longer than its training"
            drop = worst, reason
        if drop is None:
            break
        stage, reason = drop
        dropped[stage] = reason
        recipe = without(recipe, stage)
    if left <= 0:
        raise RecipeError(
            f"minutes: encoding and ranking alone take about {sum(overhead.values()) / 60:.1f} minutes here, and "
            f"{seconds / 60:.1f} of the minutes are left; give more, shorten max_passage_length, or take a smaller "
            "model"
        )
    return Plan(recipe, dropped, training, overhead)


def _divided(left: float, shares: dict[str, float], most: dict[str, float]) -> dict[str, float]:
    """Divide the seconds `left` by the shares, but give no stage more than its `most`; the others share the rest."""
    parts, open_shares = dict.fromkeys(shares, 0.0), {name: share for name, share in shares.items() if share}
    while open_shares:
        total = sum(open_shares.values())
        full = [name for name, share in open_shares.items() if left * share / total >= most[name]]
        for name in full or open_shares:
            parts[name] = most[name] if full else left * open_shares[name] / total
        if not full:
            break
        left -= sum(most[name] for name in full)
        open_shares = {name: share for name, share in open_shares.items() if name not in full}
    return parts


def share_of(body: dict[str, Any]) -> float:
    """A stage's part of the training time, relative to the other stages' parts."""
    trains = body["trainer"] not in UNTRAINED
    return float(body.get("share", 1.0 if trains else 0.0))


def overheads(recipe: Recipe, costs: Costs) -> dict[str, float]:
    """Stage → seconds to encode the corpus and rank dev queries, in their order; `""` → those of the evaluation.

    The corpus is encoded once for every set of weights, in the first stage that needs it.
    """
    encoded: set[tuple[str, int | None]] = set()
    # LTRe trains queries only: its passages are encoded as by the retriever it starts from.
    passages_of: dict[str, str] = {}

    def encoding(source: Any) -> float:
        name = passages_of.get(source_name(source), source_name(source))
        vectors = name, source_changes(source).get("truncate_dim")
        if vectors in encoded:
            return 0.0
        encoded.add(vectors)
        return costs.encoding

    seconds = {}
    for name, body in recipe.stages.items():
        settings, trainer = recipe.stage_args(name), body["trainer"]
        mines = trainer != "merge" and encodes(recipe, name)
        if trainer == "ltre":
            start = source_name(body["retriever"])
            passages_of[name] = passages_of.get(start, start)
        seconds[name] = encoding(body["retriever"]) if mines else 0.0
        if trainer == "merge" and settings.get("share", "auto") == "auto":
            base = settings.get("base") or recipe.first_model(body["retriever"])[0]
            seconds[name] = costs.merging()
            seconds[name] += encoding(body["retriever"]) + encoding(base) if costs.from_people else 0.0
        if trainer in ("ar2", "rocketqa-v2"):
            rounds = settings.get("num_rounds", 1)
            seconds[name] += (rounds - 1) * costs.encoding
            if settings.get("teacher_gate", "ahead") == "ahead" and trainer == "ar2":
                seconds[name] += rounds * costs.ranking(settings.get("rerank_depth", 20))
    seconds[""] = 0.0
    for row in recipe.rows.values():
        seconds[""] += encoding(row["retriever"])
        seconds[""] += costs.ranking(recipe.rerank_depth) if "ranker" in row else 0.0
    return seconds


def without(recipe: Recipe, stage: str) -> Recipe:
    """The recipe without a stage: what started from it starts from what the stage itself started from.

    Without a stage that trains a ranker, stages that need its ranker are dropped too, and rows lose theirs.
    """
    recipe = copy.deepcopy(recipe)
    rows = recipe.rows
    removed = {stage: recipe.stages.pop(stage)}
    rankers = {stage} if removed[stage]["trainer"] == "ranker" else set()
    for name, body in list(recipe.stages.items()):
        if "ranker" in body and source_name(body["ranker"]) in rankers:
            removed[name] = recipe.stages.pop(name)
            rankers.add(name)
    for name in [name for name, row in rows.items() if source_name(row["retriever"]) in removed]:
        _move_ranker(rows, rows.pop(name), removed)
    for user in [*recipe.stages.values(), *rows.values()]:
        for role in ("retriever", "ranker"):
            while role in user and source_name(user[role]) in removed:
                gone = source_name(user[role])
                if role == "ranker" and gone in rankers:
                    del user[role]
                else:
                    earlier = removed[gone].get(role, removed[gone]["retriever"])
                    changes = {**source_changes(earlier), **source_changes(user[role])}
                    name = source_name(earlier)
                    user[role] = {"from": name, **changes} if changes else name
    return recipe


def _move_ranker(rows: dict[str, Any], row: dict[str, Any], removed: dict[str, Any]) -> None:
    """Give the ranker of a dropped row to the row whose retriever the dropped row's retriever started from."""
    if "ranker" not in row:
        return
    source = source_name(row["retriever"])
    while source in removed:
        source = source_name(removed[source]["retriever"])
    for other in rows.values():
        if source_name(other["retriever"]) == source and "ranker" not in other:
            other["ranker"] = row["ranker"]


def _required_stages(recipe: Recipe, costs: Costs) -> set[str]:
    """Stages that are never dropped: the first that trains a retriever, and merges if no person asked the queries."""
    retrievers = [name for name, body in recipe.stages.items() if body["trainer"] == "retriever"]
    merges = [name for name, body in recipe.stages.items() if body["trainer"] == "merge"]
    first = (retrievers or list(recipe.stages))[:1]
    return set(first if costs.from_people else first + merges)


def _too_short(
    recipe: Recipe, training: dict[str, float], most: dict[str, float], costs: Costs, required: set[str]
) -> tuple[str, str] | None:
    """The last stage for which there are too few steps, its own or those before it, and the reason to drop it."""
    passes, found = 0.0, None  # passes over the training queries, in earlier stages
    for name, body in recipe.stages.items():
        settings, trainer = recipe.stage_args(name), body["trainer"]
        least, least_passes = body.get("min_steps", 0), body.get("after_passes", 0)
        reached = max(0, int(training[name] / costs.step_of(recipe, name)))
        if name not in required and reached < least and training[name] < most[name]:
            found = name, f"it needs at least {least:,} steps, and there is time for {reached:,}"
        elif name not in required and passes < least_passes:
            reason = f"the earlier stages have time for {passes:.1f} passes over the training queries, and a stage "
            found = name, f"{reason}like this one pays off after {least_passes:g}"
        if trainer in ("retriever", "ar2", "rocketqa-v2") and costs.train_queries:
            passes += reached * settings.get("per_device_train_batch_size", 8) / costs.train_queries
    return found


@dataclass
class Budget:
    """The time that a run or a stage has taken, over all calls of the command."""

    folder: Path  # the run or the stage; its time.json has the seconds of earlier calls
    seconds: float | None  # what the run may take until the served system is chosen; None: no limit
    clock: str = "wall"
    stage: Budget | None = None  # of the stage that is running, which is written as well

    def __post_init__(self) -> None:
        self.now = CLOCKS[self.clock]
        self._writing = threading.Lock()  # the run's lock writes in a separate thread
        self._closed = False
        self._began = 0.0 if self.clock == "processor" else self.now()
        self.earlier = float(read_json(self.folder / "time.json", {}).get("seconds", 0.0))

    @property
    def spent(self) -> float:
        """Seconds of this call and the earlier ones."""
        return self.earlier + self.now() - self._began

    def close(self) -> None:
        """Write the seconds a last time: what follows, such as the evaluation on test, is not counted."""
        self.write()
        self._closed = True

    def write(self) -> None:
        """Write the seconds so far to `time.json`, on the first process."""
        stage = self.stage  # the other thread may change it
        if PartialState().is_main_process and not self._closed:
            with self._writing:
                write_note(self.folder / "time.json", {"seconds": self.spent, "clock": self.clock})
        if stage is not None:
            stage.write()

    def training_seconds(self, plan: Plan, stage: str) -> float:
        """How long a stage may train from now on: its planned share of what is left after all overhead that follows."""
        assert self.seconds is not None
        names = list(plan.recipe.stages)
        following = names[names.index(stage) :]
        overhead = sum(plan.overhead[name] for name in [*following[1:], ""])
        planned = [plan.training[name] for name in following]
        left = (1 - _RESERVED_SHARE) * self.seconds - _RESERVED_SECONDS - self.spent - overhead
        return max(0.0, left * planned[0] / sum(planned))


def time_table(run: Path, recipe: Recipe, evaluation: float) -> str:
    """The time of every stage by what it was spent on, from its `done.json`, and that of the evaluation of rows.

    It is by the wall clock, all calls of the command together; the report shows the same.
    """
    rows: list[list[Any]] = []
    for stage in recipe.stages:
        done = read_json(run / "stages" / stage / "done.json", {})
        if done:
            parts = done.get("parts", {})
            mining, evaluating = (parts.get(name, 0.0) for name in (_MINING, _EVALUATION))
            other = (_MINING, _EVALUATION, "saving")
            training = sum(value for name, value in parts.items() if name not in other)
            rows.append([stage, done.get("steps"), mining, training, evaluating, done["seconds"]])
    rows.append(["rows of results", None, None, None, evaluation, evaluation])
    sums = [sum(row[column] or 0.0 for row in rows) for column in range(2, 6)]
    rows.append(["all", None, *sums])
    cells = [
        [name, steps, *(None if seconds is None else format_duration(seconds) for seconds in parts)]
        for name, steps, *parts in rows
    ]
    headings = ["time", "steps", "encoding and mining", "training", "evaluation", "all"]
    return format_table(cells, headings)


def more_time(recipe: Recipe, seconds: float, costs: Costs) -> str:
    """What another hour would be spent on, as a sentence; the recipe is the original one, with all its stages."""
    try:
        now, then = make_plan(recipe, seconds, costs), make_plan(recipe, seconds + 3600.0, costs)
    except RecipeError:
        return ""
    parts = []
    for stage, training in then.training.items():
        gained = training - now.training.get(stage, 0.0)
        new = " (not trained in this run)" if stage not in now.training else ""
        if gained >= 1:
            parts.append(f"{stage} +{format_duration(gained)}{new}")
    if parts:
        return f"Another hour would go into: {', '.join(parts)}."
    return (
        "More minutes would change nothing: every stage makes all of its passes (max_epochs) over the training "
        "queries. More training queries or a larger model would."
    )
