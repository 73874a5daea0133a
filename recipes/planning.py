"""The plan of a run that gets minutes: measured once, kept in the run folder, shown before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_ar2.collections import Collection
from hf_ar2.evaluation.systems import evaluated_queries
from hf_ar2.evaluation.tables import format_table
from hf_ar2.json_files import write_json
from hf_ar2.recipes.budget import Budget, Costs, Plan, make_plan
from hf_ar2.recipes.choosing import from_structure
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.stage_settings import stage_config
from hf_ar2.recipes.working_part import part_size, working_part
from hf_ar2.settings.text import TextConfig
from hf_ar2.trainers.retrieval import Retrieval, encoders_of
from hf_ar2.trainers.step_time import tokens_per_second

PLAN = "plan.json"


def plan_run(
    recipe: Recipe, run: Path, collection: Collection, budget: Budget, retriever: SentenceTransformer
) -> tuple[Plan | None, Costs, Collection]:
    """What things cost here and, where the recipe has `minutes`, what they allow; a resumed run reads both.

    Args:
        retriever: the model that the first stage begins with.

    Returns:
        The plan (None without minutes), the costs, and the collection that is trained and chosen on: the given one, or
        a part of it where encoding it would take too much of the minutes (see `working_part`).
    """
    path = run / PLAN
    if path.is_file():
        noted = json.loads(path.read_text(encoding="utf-8"))
        if noted["of"] != _identity(recipe):
            raise RecipeError(
                f"{path}: this run was planned for another recipe, collection or number of minutes. Choose another "
                "--output_dir, or delete the folder to run it again"
            )
        plan = None
        if noted["plan"] is not None:
            changed = dataclasses.replace(
                recipe, stages=noted["stages"], evaluation={**recipe.evaluation, "rows": noted["rows"]}
            )
            plan = Plan(changed, **noted["plan"])
        return plan, Costs(**noted["costs"]), _part_of(recipe, collection, noted["part"])
    costs = measure_costs(recipe, run, collection, budget, retriever)
    size = None if budget.seconds is None else part_size(costs, budget.seconds)
    part = _part_of(recipe, collection, size)
    if part is not collection:
        chosen_on = recipe.evaluation.get("choose_on", "dev")
        dev_queries = len(evaluated_queries(part, chosen_on)) if chosen_on in part.splits else 0
        costs = dataclasses.replace(costs, passages=len(part.corpus), dev_queries=dev_queries)
    plan = None if budget.seconds is None else make_plan(recipe, budget.seconds - budget.spent, costs)
    if PartialState().is_main_process:
        content: dict[str, Any] = {
            "of": _identity(recipe),
            "costs": dataclasses.asdict(costs),
            "part": size,
            "plan": None,
        }
        if plan is not None:
            content["stages"] = plan.recipe.stages
            content["rows"] = plan.recipe.evaluation.get("rows", {})
            content["plan"] = {name: getattr(plan, name) for name in ("dropped", "training", "overhead")}
        write_json(path, content)
    PartialState().wait_for_everyone()
    return plan, costs, part


def _part_of(recipe: Recipe, collection: Collection, size: int | None) -> Collection:
    if size is None:
        return collection
    chosen_on = recipe.evaluation.get("choose_on", "dev")
    return working_part(
        collection,
        size,
        recipe.args.get("train_split", "train"),
        chosen_on if chosen_on in collection.qrels else None,
        recipe.seed,
        recipe.args.get("title_separator", TextConfig.title_separator),
    )


def _identity(recipe: Recipe) -> str:
    content = [
        recipe.collection,
        recipe.models,
        recipe.args,
        recipe.stages,
        recipe.evaluation,
        recipe.minutes,
    ]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def measure_costs(
    recipe: Recipe, run: Path, collection: Collection, budget: Budget, retriever: SentenceTransformer
) -> Costs:
    """Lengths of the texts, and the speed of the encoder on a sample of them."""
    first = next(name for name, body in recipe.stages.items() if body["trainer"] != "augment")
    args = stage_config(recipe, first, run)
    retrieval = Retrieval(retriever.to(args.device), None, collection, args, encoders_of(args))
    inputs = retrieval.retriever_inputs
    assert inputs is not None
    passages = inputs.passage_builder.single_lengths(inputs.passage_store, np.arange(len(collection.corpus)))
    queries = inputs.query_builder.single_lengths(inputs.query_store, np.arange(len(collection.queries)))
    passage_tokens, query_tokens = float(np.mean(passages)), float(np.mean(queries))
    longest = args.max_pair_length or passage_tokens + query_tokens
    chosen_on = recipe.evaluation.get("choose_on", "dev")
    return Costs(
        rate=tokens_per_second(retrieval, budget.now),
        passages=len(passages),
        passage_tokens=passage_tokens,
        query_tokens=query_tokens,
        pair_tokens=min(float(longest), passage_tokens + query_tokens),
        dev_queries=len(evaluated_queries(collection, chosen_on)) if chosen_on in collection.splits else 0,
        from_people=chosen_on not in collection.splits or not from_structure(collection, chosen_on),
    )


def describe_plan(plan: Plan, costs: Costs, seconds: float, passages: int) -> str:
    """The plan as a table, with what was dropped and why.

    Args:
        passages: of the whole corpus.
    """
    rows: list[list[Any]] = [
        [name, f"{plan.training[name]:.0f}", f"{plan.overhead[name]:.0f}"] for name in plan.recipe.stages
    ]
    rows.append(["choosing on dev", "", f"{plan.overhead['']:.0f}"])
    lines = [
        f"{seconds / 60:g} minutes. Encoding {costs.passages:,} passages once takes {costs.encoding:.0f} s here "
        f"({costs.rate:,.0f} tokens a second).",
        *(
            [
                f"They stand for all {passages:,} passages in training and in the choice on dev, because encoding all "
                "takes too much of the time; more minutes use all."
            ]
            if costs.passages < passages
            else []
        ),
        "",
        format_table(rows, ["stage", "training, s", "encoding and ranking, s"]),
    ]
    lines += [f"Without {name}: {why}." for name, why in plan.dropped.items()]
    return "\n".join(lines)
