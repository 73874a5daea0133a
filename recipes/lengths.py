"""How many steps a stage takes: from its settings, the number of queries, and its time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ar2.files import read_json, write_note
from hf_ar2.recipes.budget import Budget, Plan
from hf_ar2.recipes.costs import Costs, encodes
from hf_ar2.terminal import counted
from hf_ar2.trainers import AR2Trainer, JointConfig, JointTrainer, LTReTrainer
from hf_ar2.trainers.callbacks import TimeLimit
from hf_ar2.trainers.step_time import step_seconds

LENGTH = "length.json"
# Evaluations during training may take this share of the training time.
_EVALUATION_SHARE = 0.1
# At most this many times the estimated number of steps is allowed; the estimate is rough, because it is from few lists.
_MOST_STEPS = 3
# Fewer evaluations than this cannot show that the metric has stopped rising.
_FEWEST_EVALUATIONS = 4


@dataclass(frozen=True)
class Length:
    """Sets the number of steps of a stage's trainer and how often it evaluates.

    With a plan, a stage takes the steps that fit into its time, and at most `max_epochs` passes over the training
    queries. Their number is estimated, and corrected while it trains (`TimeLimit`), except in AR2. If `patience` is
    set, evaluations take at most a tenth of the time; if fewer than four fit, there are none before the last step.
    """

    plan: Plan | None  # None without minutes
    budget: Budget
    costs: Costs | None  # None if nothing has to be decided
    part: bool = False  # whether the run trains and chooses on a part of the corpus, see `working_part`

    def set(self, trainer: JointTrainer, body: dict[str, Any], folder: Path, stage: str) -> str:
        """Decide, or read what was decided before the run was interrupted; returns the decision in words."""
        path = folder / LENGTH
        if path.is_file():
            decided = read_json(path, {})
        else:
            decided = self._decide(trainer, body, stage)
            if self.part and self.plan is not None and not encodes(self.plan.recipe, stage):
                # It trains on the whole collection, all of which an evaluation would encode.
                decided["settings"] |= _without_evaluations(trainer.args)
            if trainer.is_world_process_zero():
                write_note(path, decided)
            decided = trainer.encoders.processes.of_first(decided)
        _set_length(trainer, decided["settings"])
        steps = decided["steps"]
        if self.plan is not None and not isinstance(trainer, AR2Trainer):
            seconds = self.budget.training_seconds(self.plan, stage)
            trainer.add_callback(TimeLimit(trainer, self.budget.now, seconds, steps))
        return f"{counted(steps, 'steps')} ({decided['why']})"

    def _decide(self, trainer: JointTrainer, body: dict[str, Any], stage: str) -> dict[str, Any]:
        args: Any = trainer.args
        bound = None
        if self.plan is None:
            if isinstance(trainer, AR2Trainer):
                bound = args.retriever_steps * args.num_rounds
            elif args.max_steps > 0 or not body.get("max_epochs"):
                bound = trainer.planned_steps
        queries, why = len(trainer.retrieval.train_judgments), []
        if passes := body.get("max_epochs"):
            most = math.ceil(passes * queries / trainer.global_batch)
            if bound is None or most < bound:
                bound = most
                why.append(f"{passes:g} {'pass' if passes == 1 else 'passes'} over {queries:,} queries")
        steps, seconds = bound, None
        if self.plan is not None:
            if isinstance(trainer, LTReTrainer):
                trainer.prepare()
            trainer.round_state = {"ranker_teaches": True}  # the most expensive step is measured
            JointTrainer.begin_round(trainer)
            seconds = _mean_step(trainer, self.budget)
            left = self.budget.training_seconds(self.plan, stage)
            fitting = max(1, int(left / seconds))
            if steps is None or fitting < steps:
                steps, why = fitting, [f"{left:.0f} s of training, {seconds:.2f} s a step at first"]
        assert steps is not None
        most = steps if self.plan is None else min(bound or math.inf, _MOST_STEPS * steps)
        settings: dict[str, Any] = {}
        if isinstance(trainer, AR2Trainer):
            rounds = max(1, min(args.num_rounds, steps))
            share = args.ranker_steps / max(1, args.retriever_steps)
            settings |= {
                "num_rounds": rounds,
                "retriever_steps": max(1, steps // rounds),
                "ranker_steps": round(share * (steps // rounds)),
            }
        elif self.plan is not None or body.get("max_epochs"):
            settings["max_steps"] = int(most)
        if args.patience is not None and not isinstance(trainer, AR2Trainer):
            settings |= self._evaluations(trainer, steps, seconds, settings.get("max_steps"))
        return {"settings": settings, "steps": steps, "why": ", ".join(why) or "as its settings say"}

    def _evaluations(
        self, trainer: JointTrainer, steps: int, seconds: float | None, most: int | None = None
    ) -> dict[str, Any]:
        """Settings for evaluations that take at most a tenth of the time.

        If fewer than four would fit, there are none; with `save_strategy="best"` there is one at the end.
        """
        args, costs = trainer.args, self.costs
        if costs is None:
            return {}
        queries = len(trainer.evaluation.judgments)
        passages = min(args.eval_passages or costs.passages, costs.passages)
        if isinstance(trainer, LTReTrainer):  # it does not encode passages
            passages = 0
        one = (passages * costs.passage_tokens + queries * costs.query_tokens) / costs.rate
        if trainer.trained == ("ranker",):
            one += queries * args.rerank_depth * costs.pair_tokens / costs.rate
        if seconds is None:
            seconds = costs.step(trainer.method, vars(args))
        every = max(int(args.eval_steps or 1), math.ceil(one / (_EVALUATION_SHARE * seconds)))
        if steps // every >= _FEWEST_EVALUATIONS:
            return {"eval_steps": every}
        if args.save_strategy == "best":  # one at the end, whose encoding a later stage or row uses
            return {"eval_steps": most or steps, "patience": None}
        return _without_evaluations(args)


def _without_evaluations(args: JointConfig) -> dict[str, Any]:
    """Settings without evaluations, and so without keeping the best weights, which evaluations decide."""
    settings: dict[str, Any] = {"eval_strategy": "no", "patience": None}
    if args.save_strategy == "best":
        settings |= {"eval_on_start": False, "save_strategy": "no", "load_best_model_at_end": False}
    return settings


def _mean_step(trainer: JointTrainer, budget: Budget) -> float:
    """Seconds of a step; in AR2, of a retriever step and its share of the ranker's steps."""
    if not isinstance(trainer, AR2Trainer):
        return step_seconds(trainer, 0, budget.now)
    args = trainer.args
    seconds = step_seconds(trainer, args.ranker_steps, budget.now)
    if args.ranker_steps:
        seconds += step_seconds(trainer, 0, budget.now) * args.ranker_steps / max(1, args.retriever_steps)
    return seconds


def _set_length(trainer: JointTrainer, settings: dict[str, Any]) -> None:
    """Change settings that say how long the run is (`max_steps`, `num_rounds`, …), before it begins."""
    for name, value in settings.items():
        if not hasattr(trainer.args, name):
            raise ValueError(f"{name}: {type(trainer.args).__name__} has no such setting")
        setattr(trainer.args, name, value)
    if "num_rounds" in settings:
        trainer.args.num_train_epochs = settings["num_rounds"]
    trainer.round_state = {}
    trainer.prepare_lists()
