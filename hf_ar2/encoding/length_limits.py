"""How much of a collection is cut at the length limits, told from the tokens that are stored anyway."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_ar2.collections.judgments import Judgments
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs

# What is cut of a query is not searched for, so that few should be.
MANY_QUERIES = 0.05
_UNBROKEN = "\0"


@dataclass(frozen=True)
class Cut:
    """A share of texts that is cut.

    Attributes:
        what: "passages", "queries" or "pairs".
        share: of them, 0 to 1.
        limit: in tokens, special tokens included.
    """

    what: str
    share: float
    limit: int

    def __str__(self) -> str:
        percent = 100 * self.share
        shown = f"{percent:.0f}" if percent >= 9.5 or not percent else f"{max(percent, 0.1):.1f}"
        return f"{shown} % of {self.what} ({self.limit} tokens)"


def what_is_cut(
    retriever: RetrieverInputs | None, ranker: RankerInputs | None = None, positives: Judgments | None = None
) -> list[Cut]:
    """Which shares of passages, queries and pairs are cut.

    Args:
        retriever: passages and queries as it reads them, all of the collection.
        ranker: pairs as it reads them.
        positives: the pairs: queries with their relevant passages. What else a query is paired with is about as long.
    """
    found = []
    if retriever is not None:
        for what, builder, store in (
            ("passages", retriever.passage_builder, retriever.passage_store),
            ("queries", retriever.query_builder, retriever.query_store),
        ):
            found.append(Cut(what, _mean(builder.single_cut(store)), builder.max_length))
    if ranker is not None and positives is not None:
        queries = np.repeat(positives.query_rows, np.diff(positives.offsets))
        stores = ranker.query_store, queries, ranker.passage_store, positives.passage_rows
        found.append(Cut("pairs", _mean(ranker.builder.pair_cut(*stores)), ranker.builder.max_length))
    return found


def cut_line(cuts: Sequence[Cut]) -> str:
    """What is cut, in a line, or in two of 80 columns."""
    whole = ", ".join(str(cut).replace(" ", _UNBROKEN) for cut in cuts)
    line = textwrap.fill(f"Cut at the length limits: {whole}", 80, subsequent_indent="  ")
    return line.replace(_UNBROKEN, " ")


def too_many_queries(cuts: Sequence[Cut]) -> str | None:
    """What to say where more than 5 % of the queries are cut; None where they are not."""
    for cut in cuts:
        if cut.what == "queries" and cut.share > MANY_QUERIES:
            return (
                f"{cut}: what is cut is not searched for. Raise max_query_length, up to the limit of the model, unless "
                "the queries are meant to be cut"
            )
    return None


def _mean(cut: np.ndarray) -> float:
    return float(cut.mean()) if len(cut) else 0.0
