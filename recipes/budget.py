"""How the minutes that a recipe gets are divided among its stages, and which stages they do not reach to."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_ar2.json_files import write_json
from hf_ar2.recipes.merge_share import SHARES
from hf_ar2.recipes.recipe import Recipe, RecipeError, source_changes, source_name
from hf_ar2.recipes.sampled import MOST_PASSAGES

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.monotonic, "processor": time.process_time}
# A backward pass costs twice a forward pass.
_TRAINING = 3.0
# Of the whole time, what is divided; the rest is for loading models and writing files.
_KEPT = 0.95
# Of the whole time, what a stage may take that trains nothing.
_UNTRAINED = 0.1


@dataclass(frozen=True)
class Costs:
    """What things cost on this machine, for this collection.

    Attributes:
        rate: tokens encoded in a second by the model that retrievers begin with.
        passages: number of passages; passage_tokens, query_tokens, pair_tokens: mean lengths as they are read.
        dev_queries: queries of the split that the served system is chosen on.
        from_people: whether people asked them; where none did, a merged retriever is not dropped.
    """

    rate: float
    passages: int
    passage_tokens: float
    query_tokens: float
    pair_tokens: float
    dev_queries: int
    from_people: bool = True

    @property
    def encoding(self) -> float:
        """Seconds of encoding the corpus once."""
        return self.passages * self.passage_tokens / self.rate

    def ranking(self, depth: int) -> float:
        """Seconds of ranking the first `depth` passages of every dev query."""
        return self.dev_queries * depth * self.pair_tokens / self.rate

    def merging(self) -> float:
        """Seconds of comparing shares of the starting weights on a part of the corpus."""
        if not self.from_people:
            return 0.0
        part = min(self.passages, max(MOST_PASSAGES, self.passages // 2))
        return len(SHARES) * part * self.passage_tokens / self.rate

    def step(self, trainer: str, settings: dict[str, Any]) -> float:
        """About the seconds of a training step (of AR2: of the retriever), before one is measured."""
        lists = settings.get("per_device_train_batch_size", 8)
        entries = 1 + settings.get("num_negatives", 0 if trainer in ("retriever", "ltre") else 15)
        tokens = float(lists * self.query_tokens)
        if trainer in ("retriever", "ar2", "rocketqa-v2"):
            tokens += lists * entries * self.passage_tokens
        if trainer in ("ranker", "rocketqa-v2"):
            tokens += lists * entries * self.pair_tokens
        if trainer == "ar2":
            tokens += lists * entries * self.pair_tokens / _TRAINING
        return _TRAINING * tokens / self.rate


@dataclass
class Plan:
    """What the minutes allow.

    Attributes:
        recipe: the recipe without the stages that were dropped.
        dropped: stage → why.
        training: stage → seconds of its training steps.
        overhead: stage → seconds of what it encodes and ranks besides; `""`: of the evaluation at the end.
    """

    recipe: Recipe
    dropped: dict[str, str] = field(default_factory=dict)
    training: dict[str, float] = field(default_factory=dict)
    overhead: dict[str, float] = field(default_factory=dict)


def make_plan(recipe: Recipe, seconds: float, costs: Costs) -> Plan:
    """Divide the seconds among the stages by their `share`; drop stages that they do not reach to.

    What the stages and the evaluation on dev encode and rank is set aside first. A stage is dropped while encoding and
    ranking for it alone take longer than its training, the one with the worst proportion first, and where it would
    not reach its `min_steps`. The first stage that trains a retriever always stays.

    Raises:
        RecipeError: the seconds do not even reach to what cannot be dropped.
    """
    dropped: dict[str, str] = {}
    recipe = copy.deepcopy(recipe)
    while True:
        overhead = overheads(recipe, costs)
        left = seconds - sum(overhead.values())
        total = sum(share_of(body) for body in recipe.stages.values())
        training = {name: left * share_of(body) / total for name, body in recipe.stages.items()}
        stays = _indispensable(recipe, costs)
        own = {
            name: sum(overhead.values()) - sum(overheads(without(recipe, name), costs).values())
            for name in recipe.stages
            if name not in stays
        }
        # A stage that trains nothing has no training to compare with.
        may = {
            name: training[name] if share_of(recipe.stages[name]) else _UNTRAINED * seconds for name in own
        }
        worst = max(own, key=lambda name: own[name] / max(may[name], 1e-3), default=None)
        gone = _too_short(recipe, training, costs, stays)
        if worst is not None and own[worst] > max(may[worst], 0.0):
            reason = f"encoding and ranking for it would take {own[worst]:.0f} s, longer than its training"
            gone = (worst, reason)
        if gone is None:
            break
        dropped[gone[0]] = gone[1]
        recipe = without(recipe, gone[0])
    if left <= 0:
        raise RecipeError(
            f"minutes: encoding and ranking alone take about {sum(overhead.values()) / 60:.1f} minutes here, and "
            f"{seconds / 60:.1f} were given; give more, shorten max_passage_length, or take a smaller model"
        )
    return Plan(recipe, dropped, training, overhead)


def share_of(body: dict[str, Any]) -> float:
    """A stage's part of the time, in proportion to the other stages' parts."""
    trains = body["trainer"] not in ("augment", "merge")
    return float(body.get("share", 1.0 if trains else 0.0))


def encodes(recipe: Recipe, stage: str) -> bool:
    """Whether a stage searches passages that its retriever encodes; in-batch and BM25's negatives need no encoding."""
    settings, trainer = recipe.stage_args(stage), recipe.stages[stage]["trainer"]
    if trainer != "retriever":
        return True
    return settings.get("num_negatives", 0) > 0 and settings.get("mine_with", "retriever") == "retriever"


def overheads(recipe: Recipe, costs: Costs) -> dict[str, float]:
    """Seconds of encoding the corpus and of ranking dev queries, by stage, in their order; `""` for the evaluation.

    The corpus is encoded once for every set of weights: what an earlier stage encoded costs a later one nothing.
    """
    encoded: set[str] = set()
    # LTRe moves no passage: its corpus is that of the retriever it starts from.
    passages_of: dict[str, str] = {}

    def encoding(source: Any) -> float:
        name = passages_of.get(source_name(source), source_name(source))
        if name in encoded:
            return 0.0
        encoded.add(name)
        return costs.encoding

    seconds = {}
    for name, body in recipe.stages.items():
        settings, trainer = recipe.stage_args(name), body["trainer"]
        mines = trainer != "merge" and encodes(recipe, name)
        if trainer == "ltre":
            passages_of[name] = passages_of.get(
                source_name(body["retriever"]), source_name(body["retriever"])
            )
        seconds[name] = encoding(body["retriever"]) if mines else 0.0
        if trainer == "merge" and settings.get("share", "auto") == "auto":
            base = settings.get("base") or recipe.way_back(body["retriever"])[0]
            seconds[name] = costs.merging()
            seconds[name] += encoding(body["retriever"]) + encoding(base) if costs.from_people else 0.0
        if trainer in ("ar2", "rocketqa-v2"):
            rounds = settings.get("num_rounds", 1)
            seconds[name] += (rounds - 1) * costs.encoding
            if settings.get("teacher_gate", "ahead") == "ahead" and trainer == "ar2":
                seconds[name] += rounds * costs.ranking(settings.get("rerank_depth", 20))
    depth = recipe.evaluation.get("rerank_depth", 20)
    seconds[""] = 0.0
    for row in recipe.evaluation.get("rows", {}).values():
        seconds[""] += encoding(row["retriever"])
        seconds[""] += costs.ranking(depth) if "ranker" in row else 0.0
    return seconds


def without(recipe: Recipe, stage: str) -> Recipe:
    """The recipe without a stage: what started from it starts from what the stage started from.

    Where a ranker is dropped, stages that need one are dropped, too, and rows do without.
    """
    recipe = dataclasses.replace(
        recipe, stages=copy.deepcopy(recipe.stages), evaluation=copy.deepcopy(recipe.evaluation)
    )
    rows = recipe.evaluation.get("rows", {})
    removed = {stage: recipe.stages.pop(stage)}
    rankers = {stage} if removed[stage]["trainer"] == "ranker" else set()
    for name, body in list(recipe.stages.items()):
        if "ranker" in body and source_name(body["ranker"]) in rankers:
            removed[name] = recipe.stages.pop(name)
            rankers.add(name)
    for name in [name for name, row in rows.items() if source_name(row["retriever"]) in removed]:
        _hand_on(rows, rows.pop(name), removed)
    for user in [*recipe.stages.values(), *rows.values()]:
        for role in ("retriever", "ranker"):
            while role in user and source_name(user[role]) in removed:
                gone = source_name(user[role])
                if role == "ranker" and gone in rankers:
                    del user[role]
                else:
                    before = removed[gone].get(role, removed[gone]["retriever"])
                    user[role] = _relinked(user[role], before)
    return recipe


def _hand_on(rows: dict[str, Any], row: dict[str, Any], removed: dict[str, Any]) -> None:
    """The ranker of a row that goes passes to the row of the retriever that its own started from."""
    if "ranker" not in row:
        return
    source = source_name(row["retriever"])
    while source in removed:
        source = source_name(removed[source]["retriever"])
    for other in rows.values():
        if source_name(other["retriever"]) == source and "ranker" not in other:
            other["ranker"] = row["ranker"]


def _relinked(source: Any, before: Any) -> Any:
    """What `source` changes in a model, changed in the one before."""
    changes, earlier = source_changes(source), source_changes(before)
    name = source_name(before)
    return {"from": name, **earlier, **changes} if earlier or changes else name


def _indispensable(recipe: Recipe, costs: Costs) -> set[str]:
    merges = [name for name, body in recipe.stages.items() if body["trainer"] == "merge"]
    retrievers = [name for name, body in recipe.stages.items() if body["trainer"] == "retriever"]
    needed = set((retrievers or list(recipe.stages))[:1])
    return needed if costs.from_people else needed | set(merges)


def _too_short(
    recipe: Recipe, training: dict[str, float], costs: Costs, stays: set[str]
) -> tuple[str, str] | None:
    for name, body in recipe.stages.items():
        least = body.get("min_steps", 0)
        reached = int(training[name] / costs.step(body["trainer"], recipe.stage_args(name)))
        if name not in stays and reached < least:
            return name, f"{least:,} steps or more make it useful, and there is time for {max(reached, 0):,}"
    return None


@dataclass
class Budget:
    """The time of a run, over all its attempts.

    Args:
        folder: the run; `time.json` in it holds what earlier attempts took.
        seconds: what the run may take until its system is chosen; None: as long as its stages take.
        clock: a name in `CLOCKS`.
    """

    folder: Path
    seconds: float | None
    clock: str = "wall"
    earlier: float = 0.0

    def __post_init__(self) -> None:
        self.now = CLOCKS[self.clock]
        self._began = 0.0 if self.clock == "processor" else self.now()
        path = self.folder / "time.json"
        if path.is_file():
            self.earlier = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])

    @property
    def spent(self) -> float:
        """Seconds of this attempt and the earlier ones."""
        return self.earlier + self.now() - self._began

    def note(self) -> None:
        """Write what was spent so far, on the first process."""
        if not PartialState().is_main_process:
            return
        write_json(self.folder / "time.json", {"seconds": self.spent, "clock": self.clock})

    def training_seconds(self, plan: Plan, stage: str) -> float:
        """What a stage may train for, from now on: its share of what is left when all that follows is set aside."""
        assert self.seconds is not None
        names = list(plan.recipe.stages)
        following = names[names.index(stage) :]
        aside = sum(plan.overhead[name] for name in [*following[1:], ""])
        shares = [share_of(plan.recipe.stages[name]) for name in following]
        return max(0.0, (_KEPT * self.seconds - self.spent - aside) * shares[0] / sum(shares))
