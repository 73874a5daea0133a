"""The plan of a run with minutes, and the part of a large corpus that a short run trains and chooses on.

The plan is made once, kept in the run folder, and printed before anything is trained.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from pathlib import Path

import numpy as np
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_ar2.cards.facts import PLAN
from hf_ar2.collections import Collection
from hf_ar2.encoding.processes import Processes
from hf_ar2.evaluation.tables import format_table
from hf_ar2.files import read_json, write_note
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.progress import format_duration
from hf_ar2.recipes.budget import UNTRAINED, Budget, Plan, make_plan, without
from hf_ar2.recipes.choosing import choosing_split, people_asked, stages_without_use
from hf_ar2.recipes.costs import Costs, dev_queries_of, measure_costs
from hf_ar2.recipes.recipe import Recipe, RecipeError, on_every_machine, short_hash
from hf_ar2.settings.text import TextConfig
from hf_ar2.terminal import counted

# Fewer steps of the first stage than this change a model little.
FEW_STEPS = 20
# If encoding the whole corpus takes more than the share _WHOLE of the time, a part is used whose encoding takes _PART.
_WHOLE, _PART = 0.1, 0.06
# The smallest part; fewer passages cannot show which retriever is better.
_FEWEST_PASSAGES = 500
# First passages of BM25 that are added with a dev query: they are easily confused with its relevant ones.
_NEAR_DEV = 5
# Largest share of a part for dev queries with their passages.
_DEV_SHARE = 0.4


def plan_run(
    recipe: Recipe,
    identity: str,
    run: Path,
    collection: Collection,
    budget: Budget,
    retriever: SentenceTransformer,
) -> tuple[Plan | None, Costs, Collection]:
    """Measure the costs here and, if the recipe has `minutes`, plan the run; a resumed run reads both.

    `identity` is that of the recipe with all its stages (`plan_identity`); the first stage starts from `retriever`.

    Returns:
        The plan (None without minutes), the costs, and the collection that is trained and chosen on: the given one, or
        a part of it if encoding it would take too many of the minutes (see `working_part`).
    """
    path = run / PLAN
    stored = read_json(path, {})
    if stored and stored["of"] != identity:
        raise RecipeError(
            f"{path}: this run was planned for another recipe, collection or number of minutes. Choose another "
            "--output_dir, or delete the folder to run it again"
        )
    if stored:
        part = part_of(recipe, collection, stored["part"])
    else:
        costs = measure_costs(recipe, run, collection, budget.now, retriever)
        size = None if budget.seconds is None else part_size(costs, budget.seconds)
        part = part_of(recipe, collection, size)
        if part is not collection:
            train = recipe.args.get("train_split", "train")
            costs = dataclasses.replace(
                costs,
                passages=len(part.corpus),
                dev_queries=dev_queries_of(recipe, part),
                part_queries=len(part.judgments(train).positives()),
            )
        stored = {"of": identity, "costs": vars(costs), "part": size, "plan": None}
        stored["of_passages"] = len(collection.corpus)
        if budget.seconds is not None:
            plan = make_plan(recipe, budget.seconds - budget.spent, costs)
            stored |= {"stages": plan.recipe.stages, "rows": plan.recipe.rows}
            stored["plan"] = {name: getattr(plan, name) for name in ("dropped", "training", "overhead")}
        stored = Processes.current(PartialState().device).of_first(stored)  # their clocks differ
        if PartialState().is_main_process:
            write_note(path, stored)
        on_every_machine(run)
    planned = None
    if stored["plan"] is not None:
        evaluation = {**recipe.evaluation, "rows": stored["rows"]}
        kept = dataclasses.replace(recipe, stages=stored["stages"], evaluation=evaluation)
        planned = Plan(kept, **stored["plan"])
    return planned, Costs(**stored["costs"]), part


def without_useless_stages(recipe: Recipe, collection: Collection) -> tuple[Recipe, str]:
    """The recipe without stages whose results would never be served, and why they are left out, or `""`.

    If people asked none of the queries that the served system is chosen on, and a stage merges models with the starting
    one, models that are trained after the merge are never served (see `choosing.choose`).
    """
    split, _ = choosing_split(recipe, collection)
    if split is None or people_asked(collection, split):
        return recipe, ""
    useless = stages_without_use(recipe)
    for stage in useless:
        if stage in recipe.stages:  # a stage that needed its ranker went with it
            recipe = without(recipe, stage)
    why = f"people asked none of the queries of {split}, so what it trains would not be served"
    return recipe, "\n".join(f"Without {stage}: {why}." for stage in useless)


def plan_identity(recipe: Recipe) -> str:
    """A hash of everything that a plan depends on.

    The evaluation and the choice of the served system may change from one call of the command to the next.
    """
    fields = ("collection", "models", "args", "stages", "minutes")
    return short_hash([*(getattr(recipe, name) for name in fields), recipe.rows, recipe.rerank_depth])


def describe_plan(plan: Plan, costs: Costs, seconds: float, passages: int) -> str:
    """The plan as a table, with what was dropped and why; `seconds` of the run, `passages` of the whole corpus."""
    recipe = plan.recipe
    clock = " of processor time" if recipe.clock == "processor" else ""
    lines = [
        f"{format_duration(seconds)}{clock}. Encoding {counted(costs.passages, 'passages')} once takes "
        f"{format_duration(costs.encoding)} here ({costs.rate:,.0f} tokens a second)."
    ]
    if costs.passages < passages:
        lines.append(
            f"They represent all {passages:,} passages in training and in the choice on dev, because encoding all "
            "takes too much of the time; with more minutes, all are used."
        )
    rows, all_passes = [], True
    for name, body in recipe.stages.items():
        steps = None
        if body["trainer"] not in UNTRAINED:
            steps = plan.training[name] / costs.step_of(recipe, name)
            all_passes &= steps > 0.99 * costs.steps_of_epochs(recipe, name)
        cells = [format_duration(plan.training[name]), format_duration(plan.overhead[name])]
        rows.append([name, "" if steps is None else f"{steps:,.0f}", *cells])
    rows.append([f"choosing on {recipe.choose_on}", "", "", format_duration(plan.overhead[""])])
    lines += ["", format_table(rows, ["stage", "steps, about", "training", "encoding and ranking"])]
    lines += [f"Without {name}: {why}." for name, why in plan.dropped.items()]
    if all_passes:
        needed = format_duration(sum(plan.training.values()) + sum(plan.overhead.values()))
        lines.append(
            f"The run needs about {needed} of the {format_duration(seconds)}: then every stage has made all of its "
            "passes (max_epochs) over the training queries."
        )
    notes = few_steps(plan, costs), time_after(plan, costs, passages)
    lines += [textwrap.fill(note, 100) for note in notes if note]
    return "\n".join(lines)


def few_steps(plan: Plan, costs: Costs) -> str:
    """A warning if there is so little time that the first stage hardly trains, else `""`."""
    name = next(name for name, body in plan.recipe.stages.items() if body["trainer"] not in UNTRAINED)
    steps = plan.training[name] / costs.step_of(plan.recipe, name)
    most = costs.steps_of_epochs(plan.recipe, name)
    if round(steps) >= min(FEW_STEPS, most):
        return ""
    # A quarter more, since with more time other stages may join.
    training = 1.25 * min(FEW_STEPS, most) * sum(plan.training.values()) / steps
    enough = (sum(plan.overhead.values()) + training) / 60
    return (
        f"Warning: there is time for about {counted(round(steps), 'steps')} of {name}, which "
        f"teaches a model next to nothing. --minutes {math.ceil(enough)} would be enough for about "
        f"{min(FEW_STEPS, most)}. A smaller model and a smaller --max_passage_length make steps faster."
    )


def time_after(plan: Plan, costs: Costs, passages: int) -> str:
    """How long the evaluation of other splits takes after the minutes if the whole corpus has yet to be encoded."""
    recipe = plan.recipe
    others = [split for split in recipe.splits if split != recipe.choose_on]
    if costs.passages == passages or not others:
        return ""
    # Those of the first row, of the served one and of the best retriever, see `evaluate_rows`.
    models = min(3, len(recipe.rows))
    minutes = models * passages * costs.passage_tokens / costs.rate / 60
    return (
        f"After these minutes up to {models} models encode all {passages:,} passages for {', '.join(others)}: up to "
        f"{minutes:,.0f} more minutes. To leave this out, add --evaluation.splits '[{recipe.choose_on}]'."
    )


def part_size(costs: Costs, seconds: float) -> int | None:
    """Passages of the part; None if there is time to encode the whole corpus."""
    if costs.encoding <= _WHOLE * seconds:
        return None
    return max(_FEWEST_PASSAGES, int(_PART * seconds * costs.rate / costs.passage_tokens))


def part_of(recipe: Recipe, collection: Collection, size: int | None) -> Collection:
    """The part of a collection that a recipe trains and chooses on, of about `size` passages; None: all of it."""
    if size is None:
        return collection
    train = recipe.args.get("train_split", "train")
    dev = recipe.choose_on if recipe.choose_on in collection.qrels else None
    return working_part(collection, size, train, dev, recipe.seed, recipe.texts)


def working_part(
    collection: Collection, size: int, train: str, dev: str | None, seed: int, texts: TextConfig
) -> Collection:
    """A part of a collection with about `size` passages: those that dev and training queries are about.

    Dev queries are taken in random order, each with its relevant passages and the first ones of BM25, until they fill
    two fifths of the part; then training queries with their relevant passages. Only queries are kept whose relevant
    passages are all in the part. One dev query is taken even if it adds more than `size` passages.
    """
    rng = np.random.default_rng(seed)
    rows: set[int] = set()
    if dev is not None:
        judgments = collection.judgments(dev).positives()
        questions = collection.queries.select(judgments.query_rows)["text"][:]
        lexical = LexicalIndex.of_members(texts.passage_texts(collection), collection.member_rows)
        _, nearby = lexical.search(questions, _NEAR_DEV, collection.searched_rows(judgments.query_rows))
        for place in rng.permutation(len(judgments)):
            added = {*judgments.of(place)[0].tolist(), *nearby[place][nearby[place] >= 0].tolist()}
            if rows and len(rows | added) > _DEV_SHARE * size:
                break
            rows |= added
    judgments = collection.judgments(train).positives()
    for place in rng.permutation(len(judgments)):
        added = set(judgments.of(place)[0].tolist())
        if len(rows | added) > size:
            break
        rows |= added
    kept = np.sort(np.fromiter(rows, np.int64))
    inside = set(np.asarray(collection.corpus["id"][:], object)[kept].tolist())
    qrels = {}
    for split in dict.fromkeys([train, *([dev, *collection.by_member(dev).values()] if dev else [])]):
        table = collection.qrels[split]
        judged = list(zip(table["query_id"][:], table["passage_id"][:], table["relevance"][:], strict=True))
        partial = {query for query, passage, grade in judged if grade > 0 and passage not in inside}
        complete = [passage in inside and query not in partial for query, passage, _ in judged]
        qrels[split] = table.select(np.flatnonzero(complete))
    corpus = collection.select_passages(kept)
    return dataclasses.replace(collection, corpus=corpus, qrels=qrels, answer_splits={})
