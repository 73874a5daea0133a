"""Which system a run serves: chosen on dev among all rows, so that a later stage that hurts is not served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_ar2.cards.facts import CHOSEN
from hf_ar2.collections import Collection
from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.significance import PairedTest, paired_test
from hf_ar2.evaluation.systems import evaluated_queries
from hf_ar2.evaluation.tables import display_name
from hf_ar2.evaluation.weights import Blend
from hf_ar2.json_files import write_json
from hf_ar2.recipes.recipe import Recipe, RecipeError, source_name

# p below which a better system of levels 2 and 3 takes the place of a plainer one, see `choose`.
NEEDED = {2: 0.2, 3: 0.05}
WITH_RANKER = ("pipeline", "ranker")
# Row -> system -> the test metric of every query of the split that is chosen on.
Values = Mapping[str, Mapping[str, np.ndarray]]


class Candidate(NamedTuple):
    """A system that a run could serve.

    Attributes:
        row: of the evaluation.
        system: `"retriever"`, `"hybrid"` (with BM25), `"pipeline"` or `"ranker"`.
    """

    row: str
    system: str

    def __str__(self) -> str:
        return f"{self.row} {self.system}"


@dataclass(frozen=True)
class _Comparison:
    better: Candidate
    plainer: Candidate
    test: PairedTest
    needed: float

    def __str__(self) -> str:
        kind = "system with a ranker" if self.better.system in WITH_RANKER else "trained retriever"
        return (
            f"the best {kind}, {self.better}, is not clearly better than {self.plainer} "
            f"({_signed(self.test.difference)}, {_p(self.test.p_value)}; needed: p < {self.needed:g})"
        )

    def told(self, candidate: Candidate) -> dict[str, Any]:
        return {"candidate": str(candidate), "difference": self.test.difference, "p": self.test.p_value}


def choosing_split(recipe: Recipe, collection: Collection) -> tuple[str | None, str]:
    """The split that is chosen on, or None and why there is none.

    Raises:
        RecipeError: `evaluation.choose_on` names a split that the collection does not have.
    """
    settings = recipe.evaluation
    split = settings.get("choose_on", "dev")
    if split is None:
        return None, "evaluation.choose_on is null"
    have = [*collection.splits, *collection.answer_splits]
    if split not in have:
        if "choose_on" in settings:
            raise RecipeError(
                f"evaluation.choose_on: {collection.name} has no split {split!r}; it has {', '.join(have)}"
            )
        return None, f"{collection.name} has no split {split}"
    queries = len(evaluated_queries(collection, split))
    if queries < 2:
        return None, f"split {split} has {queries} {'query' if queries == 1 else 'queries'}"
    if split not in collection.qrels and split not in settings.get("splits", ["dev", "test"]):
        metrics = settings.get("metrics", ["mrr@10", "ndcg@10", "recall@100"])
        beyond = [name for name in metrics if parse_metric(name)[0] not in ("hit_rate", "mrr")]
        if beyond:
            return None, f"split {split} is known by its answers alone, which cannot give {', '.join(beyond)}"
    return split, ""


def evaluated_splits(recipe: Recipe, collection: Collection) -> list[str]:
    """The splits that rows are evaluated on, the one that is chosen on first, whether the recipe lists it or not."""
    listed = recipe.evaluation.get("splits", ["dev", "test"])
    chosen, _ = choosing_split(recipe, collection)
    return list(dict.fromkeys([chosen, *listed])) if chosen is not None else list(listed)


def from_structure(collection: Collection, split: str) -> bool:
    """Whether no query of a split was asked by a person: they are headings, say, or a model wrote them."""
    if "source" not in collection.queries.column_names:
        return False
    return all(collection.queries.select(evaluated_queries(collection, split))["source"])


def choose(
    recipe: Recipe, values: Values, blends: Mapping[str, Blend], from_people: bool = True
) -> dict[str, Any]:
    """The system to serve, as chosen.json has it.

    Candidates are every row's retriever, hybrid (with BM25 beside it), pipeline and ranker alone, with the row's
    weights, in three levels of plainness: (1) retrievers that no stage of the run trained, (2) trained retrievers, (3)
    systems with a ranker. BM25 costs a search nothing that is felt, so a hybrid is as plain as its retriever.
    Within a level the best mean wins, of equal ones the earlier row. From the best of the plainest level on, the
    best of the next level is served in its place if its mean is higher and a two-sided paired test over the
    queries says so: with p < .2 for a trained retriever, with p < .05 for a system with a ranker.

    The levels differ because the errors cost differently. A ranker makes every search slower, for good, so it has to
    prove its gain. A trained retriever costs what the untrained one does: to serve it for a gain that is none loses
    no more than to leave out a real one. If a training's true gain is drawn from N(.02, .05) MRR@10 and dev has 50
    queries (standard deviation .35 of a query's difference), what is served gains .011 on average with p < .05, .017
    with p < .2 and .026 if the higher mean always wins; it is worse than untrained in 0, 1 and 10 % of the runs. p <
    .2 takes most of the gain and hardly ever serves what hurts.

    Where no query comes from a person, the split is no measure of what people will ask, and training on such queries
    costs general search: then only rows whose retriever is untrained or merged with the model it began with are
    candidates, if there is a merged one.

    Args:
        recipe: names the rows and what they are made of.
        values: of the split that is chosen on, for the queries in one order.
        blends: row → how its pipeline orders.
        from_people: whether people asked the split's queries, or some of them.

    Returns:
        row, system, weight, depth, lexical (weight of BM25), metric, split, dev (candidate → mean and n), compared_with
        (the plainer system that it took the place of, or None), declined (candidates of less plain levels that were
        not better enough), retriever_row (the row of the best retriever), reason (a sentence) and advice (another, or
        "").
    """
    merged = [row for row in values if _is_merged(recipe, row)]
    if merged and not from_people:
        values = {
            row: found for row, found in values.items() if row in merged or not _is_trained(recipe, row)
        }
    found = {
        Candidate(row, system): value for row, systems in values.items() for system, value in systems.items()
    }
    means = {one: float(value.mean()) for one, value in found.items()}
    levels: dict[int, list[Candidate]] = {}
    for one in found:
        level = 3 if one.system in WITH_RANKER else 2 if _is_trained(recipe, one.row) else 1
        levels.setdefault(level, []).append(one)
    # Of equal ones `max` takes the first.
    winners = {level: max(levels[level], key=means.__getitem__) for level in sorted(levels)}
    (level, served), *higher = winners.items()
    decided: dict[int, _Comparison] = {}
    for other, better in higher:
        test = paired_test(found[better], found[served])
        decided[other] = _Comparison(better, served, test, NEEDED[other])
        if test.difference > 0 and test.p_value < NEEDED[other]:
            level, served = other, better
    compared, declined = decided.get(level), [one for other, one in decided.items() if other > level]
    split, metric = str(recipe.evaluation.get("choose_on", "dev")), recipe.test_metric
    reason = [f"{split} {display_name(metric)} {_number(means[served])}"]
    if compared is not None:
        over = "its retriever" if compared.plainer == (served.row, "retriever") else _called(compared.plainer)
        reason.append(f"{_signed(compared.test.difference)} over {over} ({_p(compared.test.p_value)})")
    untrained = winners.get(1)
    if untrained not in (None, served, compared.plainer if compared else None):
        assert untrained is not None
        reason.append(f"{_signed(means[served] - means[untrained])} over {_called(untrained)}")
    sentence = ", ".join(reason) + "".join(f"; {one}" for one in declined)
    return {
        **_served(recipe, served, blends),
        "metric": metric,
        "split": split,
        "dev": {str(one): {"mean": means[one], "n": len(value)} for one, value in found.items()},
        "compared_with": compared.told(compared.plainer) if compared else None,
        "declined": [one.told(one.better) for one in declined],
        "retriever_row": max((one for one in found if one.system == "retriever"), key=means.__getitem__).row,
        "reason": f"{_name(recipe, served, blends)}: {sentence}.",
        "advice": _advice(len(found[served]), split) if level == 1 and higher else "",
    }


def serve_last(recipe: Recipe, why: str, blends: Mapping[str, Blend]) -> dict[str, Any]:
    """What chosen.json says where there is no split to choose on: the last row, with its ranker where it has one."""
    settings = recipe.evaluation
    row, body = list(settings["rows"].items())[-1]
    ranks = "ranker" in body and settings.get("rerank_depth", 20) > 0
    served = Candidate(row, "pipeline" if ranks else "retriever")
    weight = " and the pipeline's weight is 1" if ranks and settings.get("pipeline_weight") is None else ""
    return {
        **_served(recipe, served, blends),
        "metric": recipe.test_metric,
        "split": None,
        "dev": {},
        "compared_with": None,
        "declined": [],
        "retriever_row": row,
        "reason": f"{_name(recipe, served, blends)}, the last row: {why}, so nothing was chosen{weight}.",
        "advice": "",
    }


def write_chosen(run: Path, chosen: Mapping[str, Any]) -> None:
    """Write chosen.json, whole or not at all."""
    write_json(run / CHOSEN, chosen)


def _is_trained(recipe: Recipe, row: str) -> bool:
    """Whether a stage of the run trained the row's retriever, or the index that it searches."""
    body = recipe.evaluation["rows"][row]
    return any(source_name(body[part]) in recipe.stages for part in ("retriever", "index") if part in body)


def _called(candidate: Candidate) -> str:
    """A candidate in a sentence: a retriever by its row alone."""
    return {"retriever": candidate.row, "hybrid": f"{candidate.row} with BM25"}.get(
        candidate.system, str(candidate)
    )


def _is_merged(recipe: Recipe, row: str) -> bool:
    stage = recipe.stages.get(source_name(recipe.evaluation["rows"][row]["retriever"]))
    return stage is not None and stage["trainer"] == "merge"


def _served(recipe: Recipe, served: Candidate, blends: Mapping[str, Blend]) -> dict[str, Any]:
    """The fields that say what is served; the weight is the pipeline's, the depth that of systems with a ranker."""
    blend, depth = blends.get(served.row, Blend()), recipe.evaluation.get("rerank_depth", 20)
    return {
        "row": served.row,
        "system": served.system,
        "weight": blend.weight if served.system == "pipeline" else None,
        "depth": {"ranker": depth, "pipeline": blend.depth or depth}.get(served.system),
        "lexical": 0.0 if served.system == "retriever" else blend.lexical,
    }


def _name(recipe: Recipe, served: Candidate, blends: Mapping[str, Blend]) -> str:
    fields = _served(recipe, served, blends)
    how = {
        "retriever": "retriever",
        "hybrid": "retriever",
        "pipeline": f"pipeline, weight {fields['weight']} over the first {fields['depth']}",
        "ranker": f"ranker alone over the first {fields['depth']}",
    }
    if fields["lexical"]:
        how = {system: f"{text}, with BM25 at weight {fields['lexical']}" for system, text in how.items()}
    return f"{served.row} ({how[served.system]})"


def _advice(queries: int, split: str) -> str:
    return (
        f"Training did not clearly help on the {queries:,} queries of {split}, so the model it began with is served. "
        "Try more training queries, more steps or another learning rate, or harder negatives; with more queries in "
        f"{split} smaller gains show. To serve the last row all the same, add --evaluation.choose_on null."
    )


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("+0.", "+.").replace("-0.", "-.")


def _p(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {_number(p)}"
