"""How much of a collection is truncated at the length limits, computed from the stored tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_ar2.collections.judgments import Judgments
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs

MAX_TRUNCATED_QUERIES = 0.05
_NO_BREAK = "\0"


@dataclass(frozen=True)
class Truncation:
    """The share of texts that are truncated.

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


def truncations(
    retriever: RetrieverInputs | None, ranker: RankerInputs | None = None, positives: Judgments | None = None
) -> list[Truncation]:
    """The shares of passages, queries and pairs that are truncated; pairs are those of `positives`."""
    found = []
    if retriever is not None:
        for what, builder, store in (
            ("passages", retriever.passage_builder, retriever.passage_store),
            ("queries", retriever.query_builder, retriever.query_store),
        ):
            found.append(Truncation(what, _mean(builder.single_truncated(store)), builder.max_length))
    if ranker is not None and positives is not None:
        queries = np.repeat(positives.query_rows, np.diff(positives.offsets))
        stores = ranker.query_store, queries, ranker.passage_store, positives.passage_rows
        found.append(
            Truncation("pairs", _mean(ranker.builder.pair_truncated(*stores)), ranker.builder.max_length)
        )
    return found


def truncation_line(cuts: Sequence[Truncation]) -> str:
    """The shares as text, in lines of at most 80 characters."""
    whole = ", ".join(str(cut).replace(" ", _NO_BREAK) for cut in cuts)
    line = textwrap.fill(f"Truncated: {whole}", 80, subsequent_indent="  ")
    return line.replace(_NO_BREAK, " ")


def query_truncation_warning(cuts: Sequence[Truncation]) -> str | None:
    """A warning if more than 5 % of the queries are truncated, else None."""
    for cut in cuts:
        if cut.what == "queries" and cut.share > MAX_TRUNCATED_QUERIES:
            return (
                f"{cut} are truncated; the rest of them is not searched for. Raise max_query_length, up to the limit "
                "of the model, unless this is intended"
            )
    return None


def _mean(cut: np.ndarray) -> float:
    return float(cut.mean()) if len(cut) else 0.0
