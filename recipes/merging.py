"""The stage that merges: a trained retriever's weights averaged with those of the model it goes back to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.tables import display_name, format_table
from hf_ar2.models.loading import load_retriever
from hf_ar2.models.merging import MergeConfig, check_mergeable, merge_retrievers
from hf_ar2.recipes.encodings import encodings_folder
from hf_ar2.recipes.guard import Guard
from hf_ar2.recipes.merge_share import SHARES, choose_share
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.sampled import reduced, values_among
from hf_ar2.recipes.stage_settings import stage_config
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

# Of a split: this many queries, and what each of the two retrievers finds first.
QUERIES = 150
CANDIDATES = 15

Load = Callable[[str, Any], Any]


def check_merges(recipe: Recipe, collection: Collection, run: Path, load: Load) -> None:
    """Refuse, before anything is trained, merges that could not be carried out after it.

    Args:
        load: the model of a role and a source.

    Raises:
        RecipeError: a base of another architecture, two towers, a split without queries to choose on.
    """
    for stage, body in recipe.stages.items():
        if body["trainer"] != "merge":
            continue
        config = stage_config(recipe, stage, run)
        try:
            if config.share == "auto":
                cut = parse_metric(recipe.test_metric)[1] or 0
                if cut > recipe.evaluation.get("depth", 100):
                    raise ValueError(
                        f"{recipe.test_metric} needs {cut} passages per query; raise evaluation.depth"
                    )
                if not len(collection.judgments(config.eval_split).positives()):
                    raise ValueError(
                        f"share='auto' chooses on the split {config.eval_split!r} of {collection.name}, in which no "
                        "query has a relevant passage; name a number, such as 0.3"
                    )
            if not (run / "stages" / stage / "done.json").is_file():
                model, changes = recipe.way_back(body["retriever"])
                base = load_base(recipe, stage, config, load)
                # What is trained has the architecture of the model that it goes back to.
                trained = (
                    base if config.base in (None, model) else _changed(load("retriever", model), changes)
                )
                check_mergeable(trained, base)
        except ValueError as error:
            raise RecipeError(f"stages.{stage}: {error}") from None


def load_base(recipe: Recipe, stage: str, config: MergeConfig, load: Load) -> SentenceTransformer:
    """The model whose weights are mixed in, with all that was changed on the way to the trained one."""
    model, changes = recipe.way_back(recipe.stages[stage]["retriever"])
    return _changed(load("retriever", config.base or model), changes)


def merge(
    recipe: Recipe, stage: str, run: Path, collection: Collection, guard: Guard | None, load: Load
) -> dict[str, Any]:
    """Choose the share where that is asked for, and leave the merged retriever in the stage's folder.

    Returns:
        `settings`, with the share that was taken and what the base is called, and where it was chosen `chosen`: the
        means by share, and the reason.
    """
    folder = run / "stages" / stage
    config = stage_config(recipe, stage, run)
    device = PartialState().device
    trained = load("retriever", recipe.stages[stage]["retriever"]).to(device)
    base = load_base(recipe, stage, config, load).to(device)
    check_mergeable(trained, base)
    report: dict[str, Any] = {}
    share = config.share
    if share == "auto":
        share, report["chosen"] = _choose(recipe, stage, config, run, collection, guard, trained, base)
    _say(f"{stage}: {share:.0%} of the starting weights")
    merged = merge_retrievers(trained, base, share)
    if PartialState().is_main_process:
        new = folder / ".retriever.partial"
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(folder / "retriever", ignore_errors=True)
        merged.save_pretrained(str(new), create_model_card=False)
        new.rename(folder / "retriever")
    del trained, base, merged
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    model = config.base or recipe.way_back(recipe.stages[stage]["retriever"])[0]
    named = {"share": share, "base": str(recipe.models[model]["model"])}
    return {"settings": {**recipe.stage_args(stage), **named}, **report}


def _choose(
    recipe: Recipe,
    stage: str,
    config: MergeConfig,
    run: Path,
    collection: Collection,
    guard: Guard | None,
    trained: SentenceTransformer,
    base: SentenceTransformer,
) -> tuple[float, dict[str, Any]]:
    """The share, and what it was chosen by."""
    settings = Settings().changed({**asdict(config), "depth": recipe.evaluation.get("depth", 100)})
    measured: dict[str, dict[float, np.ndarray]] = {}
    folder = run / "stages" / stage / "index"
    metric, name = recipe.test_metric, display_name(recipe.test_metric)
    judgments = collection.judgments(config.eval_split).positives()
    people = judgments.take(asked_by_people(collection, judgments.query_rows))
    if len(people):
        systems = [
            SearchSystem(model, None, collection, settings, run, index_dir=encodings_folder(run))
            for model in (trained, base)
        ]
        measured["dev"] = values_of_shares(systems, people, metric, config.seed, config.eval_split)
    else:
        _say(
            f"The queries of {config.eval_split} come from the texts' structure (headings, say), not from people, so "
            "they do not measure what people will ask."
        )
    if guard is not None:
        sample = guard.choice.sample
        judged = sample.judgments(guard.choice.split).positives()
        _say(f"The guard is {guard.source}, {guard.choice}.")
        if guard.choice is guard.report:
            _say("It has one split with judgments, which is chosen on and reported.")
        systems = [
            SearchSystem(model, None, sample, settings, run, folder / f"guard-{part}")
            for part, model in (("trained", trained), ("base", base))
        ]
        measured["guard"] = values_of_shares(systems, judged, metric, config.seed, "guard")
    share, reason = choose_share(measured.get("dev"), measured.get("guard"))
    means = {
        what: {share: float(values.mean()) for share, values in of_share.items()}
        for what, of_share in measured.items()
    }
    if means:
        _say(shares_table(means, name))
    _say(f"Chosen: {share}, {reason}.")
    return share, {"metric": metric, **means, "reason": reason}


def values_of_shares(
    systems: Sequence[SearchSystem], judgments: Judgments, metric: str, seed: int, title: str
) -> dict[float, np.ndarray]:
    """The metric of every share, per query, measured on a part of a corpus; only that part is encoded for each.

    The part is what is relevant to some of the queries, and what the trained retriever and the base find for them.

    Args:
        systems: of the trained retriever and of the base, over one collection.
        judgments: of the queries, of which at most 150 are taken.
        title: of the line that says how large the part is.
    """
    trained, total = systems[0], len(systems[0].collection.corpus)
    if len(judgments) > QUERIES:
        chosen = np.random.default_rng(seed).choice(len(judgments), QUERIES, replace=False)
        judgments = judgments.take(np.sort(chosen))
    found = []
    for system in systems:
        queries = system.encoders.embed_queries(
            system.retriever, system.retriever_inputs, judgments.query_rows
        )
        found.append(system.searched.search(queries, min(CANDIDATES, total))[1])
    part, passage_rows = reduced(judgments, found, total, QUERIES, seed)
    _say(f"{title}: {len(part):,} queries among {len(passage_rows):,} of {total:,} passages")
    values = {}
    for share in SHARES:
        merged = merge_retrievers(trained.retriever, systems[1].retriever, share)
        values[share] = values_among(
            merged,
            trained.retriever_inputs,
            trained.encoders,
            part,
            passage_rows,
            [metric],
            trained.settings.depth,
        )[metric]
    return values


def asked_by_people(collection: Collection, query_rows: np.ndarray) -> np.ndarray:
    """Which queries people asked, bool `[Q]`: those whose `source` is empty, or all where queries have none."""
    if "source" not in collection.queries.column_names:
        return np.ones(len(query_rows), bool)
    sources = collection.queries.select(query_rows)["source"]
    return np.array([not source for source in sources], bool)


def shares_table(means: Mapping[str, Mapping[float, float]], metric: str) -> str:
    """A line for each share."""
    shares = next(iter(means.values()))
    rows = [[f"{share:.0%}".replace("%", " %"), *(of[share] for of in means.values())] for share in shares]
    return format_table(rows, ["starting weights", *(f"{metric}, {what}" for what in means)])


def _changed(retriever: SentenceTransformer, changes: Sequence[Mapping[str, Any]]) -> SentenceTransformer:
    for fields in changes:
        retriever = load_retriever(retriever, **fields)
    return retriever


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)
