"""The stage that merges: the mean of a trained retriever's weights and those of the model it started from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
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
from hf_ar2.evaluation.significance import paired_test
from hf_ar2.evaluation.tables import display_name, format_table
from hf_ar2.index.search import search_in_ranges
from hf_ar2.models.loading import load_retriever
from hf_ar2.models.lora import merge_adapters, save_model
from hf_ar2.models.merging import (
    DEFAULT_SHARE,
    MAX_FREE_SHARE,
    MAX_LOSS,
    MergeConfig,
    check_mergeable,
    merge_retrievers,
)
from hf_ar2.recipes.choosing import asked_by_people
from hf_ar2.recipes.guard import Guard
from hf_ar2.recipes.recipe import Load, Recipe, encodings_folder, errors_at, say, stage_config
from hf_ar2.recipes.sampled import reduced, values_among
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings
from hf_ar2.terminal import counted

# Shares of the starting weights that `auto` chooses from.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
# Shares are compared on this many queries, among this many first passages of each of the two retrievers.
QUERIES = 150
CANDIDATES = 15
_LEVEL = 0.05

# The trained retriever and the base.
Pair = tuple[SentenceTransformer, SentenceTransformer]


def check_merges(recipe: Recipe, collection: Collection, run: Path, load: Load) -> None:
    """Check that the bases have the right architecture, and that shares can be chosen on the dev splits."""
    for stage, body in recipe.stages.items():
        if body["trainer"] != "merge":
            continue
        config = stage_config(recipe, stage, run)
        with errors_at(f"stages.{stage}"):
            if config.share == "auto":
                cut = parse_metric(recipe.test_metric)[1] or 0
                if cut > recipe.depth:
                    needed = f"{recipe.test_metric} needs {cut} passages per query"
                    raise ValueError(f"{needed}; raise evaluation.depth")
                if not len(collection.judgments(config.eval_split).positives()):
                    raise ValueError(
                        f"share='auto' chooses on the split {config.eval_split!r} of {collection.name}, in which no "
                        "query has a relevant passage; give a number, such as 0.3"
                    )
            if not (run / "stages" / stage / "done.json").is_file():
                model, changes = recipe.first_model(body["retriever"])
                base = trained = load_base(recipe, stage, config, load)
                # The trained retriever has the architecture of the model that it started from.
                if config.base not in (None, model):
                    trained = _changed(load("retriever", model), changes)
                check_mergeable(trained, base)


def load_base(recipe: Recipe, stage: str, config: MergeConfig, load: Load) -> SentenceTransformer:
    """The model whose weights are averaged with the trained ones, with the changes that the stages made to it."""
    model, changes = recipe.first_model(recipe.stages[stage]["retriever"])
    return _changed(load("retriever", config.base or model), changes)


def merge(
    recipe: Recipe, stage: str, run: Path, collection: Collection, guard: Guard | None, load: Load
) -> dict[str, Any]:
    """Choose the share if it is `auto`, and save the merged retriever in the stage's folder.

    Returns `settings`, with the share and the base's name, and `chosen`, the means by share and the reason.
    """
    folder = run / "stages" / stage
    config = stage_config(recipe, stage, run)
    device = PartialState().device
    trained = merge_adapters(load("retriever", recipe.stages[stage]["retriever"]).to(device))
    base = load_base(recipe, stage, config, load).to(device)
    check_mergeable(trained, base)
    report: dict[str, Any] = {}
    share = config.share
    if share == "auto":
        share, report["chosen"] = _choose(recipe, stage, run, collection, guard, (trained, base))
    say(f"{stage}: {share:.0%} of the starting weights")
    merged = merge_retrievers(trained, base, share)
    if PartialState().is_main_process:
        new = folder / ".retriever.partial"
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(folder / "retriever", ignore_errors=True)
        save_model(merged, new)
        new.rename(folder / "retriever")
    del trained, base, merged
    torch.cuda.empty_cache()
    model = config.base or recipe.first_model(recipe.stages[stage]["retriever"])[0]
    taken = {"share": share, "base": str(recipe.models[model]["model"])}
    return {"settings": {**recipe.stage_args(stage), **taken}, **report}


def _choose(
    recipe: Recipe, stage: str, run: Path, collection: Collection, guard: Guard | None, retrievers: Pair
) -> tuple[float, dict[str, Any]]:
    """The share, and what it was chosen by."""
    config = stage_config(recipe, stage, run)
    settings = Settings().changed({**asdict(config), "depth": recipe.depth})
    measured: dict[str, dict[float, np.ndarray]] = {}
    folder = run / "stages" / stage / "index"
    metric = recipe.test_metric
    judgments = collection.judgments(config.eval_split).positives()
    people = judgments.take(asked_by_people(collection, judgments.query_rows))
    if len(people):
        systems = [
            SearchSystem(model, None, collection, settings, run, index_dir=encodings_folder(run))
            for model in retrievers
        ]
        measured["dev"] = values_of_shares(systems, people, metric, config.seed, config.eval_split)
    else:
        say(
            f"The queries of {config.eval_split} come from the texts' structure (headings, say), not from people, so "
            "they do not measure what people will ask."
        )
    if guard is not None:
        sample = guard.choice.sample
        judged = sample.judgments(guard.choice.split).positives()
        say(f"The guard is {guard.source}, {guard.choice}.")
        if guard.choice is guard.report:
            say("It has one split with judgments, which is used for choosing and for the report.")
        systems = [
            SearchSystem(model, None, sample, settings, run, folder / f"guard-{part}")
            for part, model in zip(("trained", "base"), retrievers, strict=True)
        ]
        measured["guard"] = values_of_shares(systems, judged, metric, config.seed, "guard")
    share, reason = choose_share(measured.get("dev"), measured.get("guard"))
    means: dict[str, dict[float, float]] = {}
    for what, of_share in measured.items():
        means[what] = {share: float(values.mean()) for share, values in of_share.items()}
    if means:
        rows = [[f"{share * 100:.0f} %", *(of[share] for of in means.values())] for share in SHARES]
        headings = [f"{display_name(metric)}, {what}" for what in means]
        say(format_table(rows, ["starting weights", *headings]))
    say(f"Chosen: {share}, {reason}.")
    return share, {"metric": metric, **means, "reason": reason}


def values_of_shares(
    systems: Sequence[SearchSystem], judgments: Judgments, metric: str, seed: int, title: str
) -> dict[float, np.ndarray]:
    """The metric of every share, per query (share → float64 `[Q]`), measured on a part of a corpus.

    Only that part is encoded for each share: the passages that are relevant to a sample of at most `QUERIES` queries,
    and those that the trained retriever and the base (`systems`, over one collection) retrieve for them. `title` is
    that of the printed line with the size of the part.
    """
    trained, total = systems[0], len(systems[0].collection.corpus)
    if len(judgments) > QUERIES:
        chosen = np.random.default_rng(seed).choice(len(judgments), QUERIES, replace=False)
        judgments = judgments.take(np.sort(chosen))
    found = []
    for system in systems:
        inputs = system.retriever_inputs
        queries = system.encoders.embed_queries(system.retriever, inputs, judgments.query_rows)
        ranges = system.collection.searched_rows(judgments.query_rows)
        found.append(search_in_ranges(system.searched.search, queries, min(CANDIDATES, total), ranges)[1])
    part, passage_rows = reduced(judgments, found, total, QUERIES, seed)
    say(f"{title}: {counted(len(part), 'queries')} among {len(passage_rows):,} of {total:,} passages")
    values = {}
    for share in SHARES:
        merged = merge_retrievers(trained.retriever, systems[1].retriever, share)
        values[share] = values_among(trained, merged, part, passage_rows, [metric])[metric]
    return values


def choose_share(
    dev: Mapping[float, np.ndarray] | None, guard: Mapping[float, np.ndarray] | None = None
) -> tuple[float, str]:
    """Which share of the starting weights to take, and why, in words.

    Differences are judged by the paired test over queries: significant below p = .05.

    - *Dev alone*: the largest share up to .3 with which dev is no worse than with the trained weights alone. A share
      above .3 is taken only if it is the best and all shares up to .3 are significantly below it.
    - *Dev and guard* (a collection of other texts): of all shares that are not significantly below the best one on
      dev, the best on the guard; of equal ones there, the best on dev. Shares above .3 must also not lose more than .02
      on dev, because with few queries hardly any difference is significant.
    - *No dev*, if its queries come from headings and the like: people will ask other things. Half of the starting
      weights are taken, unless another share is significantly better on the guard; then the best there.

    `dev` and `guard` are share → the test metric of every query, float64 `[Q]`.
    """
    if dev is None:
        if guard is None:
            return DEFAULT_SHARE, "the queries of dev were not asked by people, and there is no guard"
        best = _best(guard)
        if best != DEFAULT_SHARE and _below(guard[DEFAULT_SHARE], guard[best]):
            return best, f"significantly better on the guard than {DEFAULT_SHARE}"
        return DEFAULT_SHARE, (
            "the queries of dev were not asked by people, and no other share is significantly better on the guard"
        )
    best = _best(dev)
    as_good = [share for share in dev if not _below(dev[share], dev[best])]
    if guard is not None:
        least = dev[best].mean() - MAX_LOSS
        allowed = [share for share in as_good if share <= MAX_FREE_SHARE or dev[share].mean() >= least]
        share = max(allowed, key=lambda share: (guard[share].mean(), dev[share].mean(), share))
        return share, "the best on the guard of the shares that cost nothing on dev"
    if min(as_good) > MAX_FREE_SHARE:
        return best, f"the best on dev, significantly above those up to {MAX_FREE_SHARE}"
    trained = dev[min(dev)].mean()
    share = max(share for share in dev if share <= MAX_FREE_SHARE and dev[share].mean() >= trained)
    return share, f"the largest up to {MAX_FREE_SHARE} that is no worse on dev than none"


def _best(values: Mapping[float, np.ndarray]) -> float:
    return max(values, key=lambda share: (values[share].mean(), -share))


def _below(values: np.ndarray, best: np.ndarray) -> bool:
    """Whether values are significantly below the best; never on a single query."""
    if len(values) < 2 or values.mean() >= best.mean():
        return False
    return paired_test(values, best).p_value < _LEVEL


def _changed(retriever: SentenceTransformer, changes: Sequence[Mapping[str, Any]]) -> SentenceTransformer:
    for fields in changes:
        retriever = load_retriever(retriever, **fields)
    return merge_adapters(retriever)
