"""Which system a run serves: chosen on dev among all rows, so that a stage that made search worse is not served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hf_ar2.collections import Collection
from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.significance import PairedTest, paired_test
from hf_ar2.evaluation.systems import evaluated_queries
from hf_ar2.evaluation.tables import display_name, format_p
from hf_ar2.evaluation.weights import Blend
from hf_ar2.recipes.recipe import Recipe, RecipeError, source_name

# Level → the p-value below which its best system is served instead of a simpler one, see `choose`.
NEEDED = {2: 0.2, 3: 0.05}
WITH_RANKER = ("pipeline", "ranker")
_ADVICE = (
    "Training did not clearly help on the {queries:,} queries of {split}, so the model it started from is served. "
    "Try more training queries, more steps, another learning rate or harder negatives; more queries in "
    "{split} show smaller gains. To serve the last row anyway, add --evaluation.choose_on null."
)
_EXCLUDED = (
    " People asked none of the queries of {split}, so only models that are merged with the starting one, and that one "
    "itself, are served: not {rows}."
)
# Row → system → the test metric per query of the split that is chosen on, float64 [Q].
Values = Mapping[str, Mapping[str, np.ndarray]]


class Candidate(NamedTuple):
    """A system that a run could serve: a row's `"retriever"`, `"hybrid"` (with BM25), `"pipeline"` or `"ranker"`."""

    row: str
    system: str

    def __str__(self) -> str:
        return f"{self.row} {self.system}"


@dataclass(frozen=True)
class _Comparison:
    better: Candidate
    simpler: Candidate
    test: PairedTest
    needed: float

    def __str__(self) -> str:
        kind = "system with a ranker" if self.better.system in WITH_RANKER else "trained retriever"
        return (
            f"the best {kind}, {self.better}, is not clearly better than {self.simpler} "
            f"({_signed(self.test.difference)}, {format_p(self.test.p_value)}; needed: p < {self.needed:g})"
        )

    def as_json(self, candidate: Candidate) -> dict[str, Any]:
        return {"candidate": str(candidate), "difference": self.test.difference, "p": self.test.p_value}


def choosing_split(recipe: Recipe, collection: Collection) -> tuple[str | None, str]:
    """The split that the served system is chosen on, or None and why there is none."""
    split = recipe.choose_on
    if split is None:
        return None, "evaluation.choose_on is null"
    have = [*collection.splits, *collection.answer_splits]
    if split not in have:
        if "choose_on" in recipe.evaluation:
            raise RecipeError(
                f"evaluation.choose_on: {collection.name} has no split {split!r}; it has {', '.join(have)}"
            )
        return None, f"{collection.name} has no split {split}"
    queries = len(evaluated_queries(collection, split))
    if queries < 2:
        return None, f"split {split} has {queries} {'query' if queries == 1 else 'queries'}"
    if split not in collection.qrels and split not in recipe.splits:
        beyond = [name for name in recipe.metrics if parse_metric(name)[0] not in ("hit_rate", "mrr")]
        if beyond:
            return None, f"split {split} has only answers, from which {', '.join(beyond)} cannot be computed"
    return split, ""


def evaluated_splits(recipe: Recipe, collection: Collection) -> list[str]:
    """The splits that rows are evaluated on: the one that is chosen on, even if it is not listed, then those listed."""
    chosen, _ = choosing_split(recipe, collection)
    return list(dict.fromkeys([chosen, *recipe.splits])) if chosen is not None else list(recipe.splits)


def asked_by_people(collection: Collection, query_rows: np.ndarray) -> np.ndarray:
    """Which queries people asked, bool `[Q]`: those with an empty `source`, or all if queries have no such column.

    Other queries are, say, headings, or written by a model.
    """
    if "source" not in collection.queries.column_names:
        return np.ones(len(query_rows), bool)
    return np.array([not source for source in collection.queries.select(query_rows)["source"]], bool)


def people_asked(collection: Collection, split: str) -> bool:
    """Whether people asked some of a split's queries."""
    return bool(asked_by_people(collection, evaluated_queries(collection, split)).any())


def choose(
    recipe: Recipe, values: Values, blends: Mapping[str, Blend], from_people: bool = True
) -> dict[str, Any]:
    """The system to serve, as chosen.json describes it.

    Candidates are every row's retriever, hybrid (with BM25), pipeline and ranker alone, in three levels: (1) retrievers
    that no stage of the run trained, (2) trained retrievers, (3) systems with a ranker. A hybrid has the level of its
    retriever, since BM25 takes next to no time. Within a level the best mean wins, of equal ones the earlier row.
    Starting from the best of the first level, the best of the next level replaces it if its mean is higher and a
    two-sided paired test over the queries is significant: p < .2 for a trained retriever, p < .05 with a ranker.

    A ranker makes every search slower, so it has to prove its gain. A trained retriever costs as much as the untrained
    one: serving it without a true gain loses no more than missing a true one. If a training's true gain is drawn from
    N(.02, .05) MRR@10 and dev has 50 queries (standard deviation .35 of a query's difference), the served system gains
    .011 on average with p < .05, .017 with p < .2 and .026 if the higher mean always wins; it is worse than the
    untrained one in 0, 1 and 10 % of the runs. So p < .2 has most of the gain and is hardly ever worse.

    If people asked none of the queries (`from_people`), `rows_not_served` are no candidates.

    Returns:
        row, system, weight, depth, lexical (weight of BM25), metric, split, dev (candidate → mean and n), compared_with
        (the simpler system that it replaced, or None), declined (candidates of higher levels whose gain was not
        significant), excluded (rows that are no candidates), retriever_row (see `_retriever_row`), reason (one or two
        sentences) and advice (another sentence, or "").
    """
    excluded = [] if from_people else [row for row in values if row in rows_not_served(recipe)]
    values = {row: values[row] for row in values if row not in excluded}
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
    split, metric = str(recipe.choose_on), recipe.test_metric
    reason = [f"{split} {display_name(metric)} {f'{means[served]:.3f}'.removeprefix('0')}"]
    if compared is not None:
        own = compared.simpler == (served.row, "retriever")
        over = "its retriever" if own else _short_name(compared.simpler)
        reason.append(f"{_signed(compared.test.difference)} over {over} ({format_p(compared.test.p_value)})")
    untrained = winners.get(1)
    if untrained not in (None, served, compared.simpler if compared else None):
        assert untrained is not None
        reason.append(f"{_signed(means[served] - means[untrained])} over {_short_name(untrained)}")
    sentence = ", ".join(reason) + "".join(f"; {one}" for one in declined)
    excluding = _EXCLUDED.format(split=split, rows=", ".join(excluded)) if excluded else ""
    return {
        **_served(recipe, served, blends),
        "metric": metric,
        "split": split,
        "dev": {str(one): {"mean": means[one], "n": len(value)} for one, value in found.items()},
        "compared_with": compared.as_json(compared.simpler) if compared else None,
        "declined": [one.as_json(one.better) for one in declined],
        "retriever_row": _retriever_row(recipe, values, served.row),
        "excluded": excluded,
        "reason": f"{_name(recipe, served, blends)}: {sentence}.{excluding}",
        "advice": _ADVICE.format(queries=len(found[served]), split=split) if level == 1 and higher else "",
    }


def _retriever_row(recipe: Recipe, values: Values, served: str) -> str:
    """The row of the best retriever alone; instead of a served trained one, an untrained one only if p < .2."""
    alone = {row: systems["retriever"] for row, systems in values.items()}
    best = max(alone, key=lambda row: float(alone[row].mean()))
    if _is_trained(recipe, served) and not _is_trained(recipe, best):
        return best if paired_test(alone[best], alone[served]).p_value < NEEDED[2] else served
    return best


def serve_last(recipe: Recipe, why: str, blends: Mapping[str, Blend]) -> dict[str, Any]:
    """The contents of chosen.json if there is no split to choose on: the last row, with its ranker if it has one."""
    row, body = list(recipe.rows.items())[-1]
    ranks = "ranker" in body and recipe.rerank_depth > 0
    served = Candidate(row, "pipeline" if ranks else "retriever")
    unfitted = ranks and recipe.evaluation.get("pipeline_weight") is None
    weight = " and the pipeline's weight is 1" if unfitted else ""
    return {
        **_served(recipe, served, blends),
        "metric": recipe.test_metric,
        "split": None,
        "dev": {},
        "compared_with": None,
        "declined": [],
        "excluded": [],
        "retriever_row": row,
        "reason": f"{_name(recipe, served, blends)}, the last row: {why}, so nothing was chosen{weight}.",
        "advice": "",
    }


def rows_not_served(recipe: Recipe) -> list[str]:
    """Rows that are not served if people asked none of the queries: trained, but not merged, where others are merged.

    Such queries do not measure what people will ask, and training on them makes general search worse.
    """
    if not any(_is_merged(recipe, row) for row in recipe.rows):
        return []
    return [row for row in recipe.rows if _is_trained(recipe, row) and not _is_merged(recipe, row)]


def stages_without_use(recipe: Recipe) -> list[str]:
    """Stages that only `rows_not_served` need, last first."""
    never = rows_not_served(recipe)
    needed: set[str] = set()
    open_sources = [
        source
        for name, row in recipe.rows.items()
        if name not in never
        for source in (row.get(part) for part in ("retriever", "ranker", "index"))
    ]
    while open_sources:
        source = open_sources.pop()
        name = source_name(source) if source is not None else None
        if name in recipe.stages and name not in needed:
            needed.add(name)
            body = recipe.stages[name]
            open_sources += [body.get("retriever"), body.get("ranker"), *body.get("lists", [])]
    return [stage for stage in reversed(recipe.stages) if stage not in needed] if never else []


def _is_trained(recipe: Recipe, row: str) -> bool:
    """Whether a stage of the run trained the row's retriever, or the index that it searches."""
    body = recipe.rows[row]
    return any(source_name(body[part]) in recipe.stages for part in ("retriever", "index") if part in body)


def _short_name(candidate: Candidate) -> str:
    """A candidate in a sentence; a retriever is named by its row alone."""
    names = {"retriever": candidate.row, "hybrid": f"{candidate.row} with BM25"}
    return names.get(candidate.system, str(candidate))


def _is_merged(recipe: Recipe, row: str) -> bool:
    stage = recipe.stages.get(source_name(recipe.rows[row]["retriever"]))
    return stage is not None and stage["trainer"] == "merge"


def _served(recipe: Recipe, served: Candidate, blends: Mapping[str, Blend]) -> dict[str, Any]:
    """The fields that say what is served; weight is for a pipeline, depth for a system with a ranker."""
    blend, depth = blends.get(served.row, Blend()), recipe.rerank_depth
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
        "pipeline": f"pipeline, weight {fields['weight']} over the first {fields['depth']}",
        "ranker": f"ranker alone over the first {fields['depth']}",
    }
    lexical = f", with BM25 at weight {fields['lexical']}" if fields["lexical"] else ""
    return f"{served.row} ({how.get(served.system, 'retriever')}{lexical})"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("+0.", "+.").replace("-0.", "-.")
