"""How much of a collection is truncated at the length limits, computed from the stored tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.encoding.input_lengths import length_limit, prompt_tokens
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.models.limits import position_count
from hf_ar2.models.prompts import retriever_prompt
from hf_ar2.settings.text import TextConfig

MAX_TRUNCATED_QUERIES = MAX_TRUNCATED_PASSAGES = 0.05
# The share of passages that the advised length covers, and how many passages are counted.
_COVERED, _SAMPLE = 0.95, 1000
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
        cut = ranker.builder.pair_truncated(*stores)
        found.append(Truncation("pairs", _mean(cut), ranker.builder.max_length))
    return found


def truncation_line(cuts: Sequence[Truncation]) -> str:
    """The shares as text, in lines of at most 80 characters."""
    whole = ", ".join(str(cut).replace(" ", _NO_BREAK) for cut in cuts)
    line = textwrap.fill(f"Truncated: {whole}", 80, subsequent_indent="  ")
    return line.replace(_NO_BREAK, " ")


def passage_length_advice(
    cuts: Sequence[Truncation], retriever: SentenceTransformer, collection: Collection, texts: TextConfig
) -> str | None:
    """What to do if more than 5 % of the passages are truncated, in lines of at most 80 characters; else None.

    The retriever's tokenizer counts a sample of the passages.
    """
    if not any(cut.what == "passages" and cut.share > MAX_TRUNCATED_PASSAGES for cut in cuts):
        return None
    passages = texts.lazy_passage_texts(collection)
    rows = np.linspace(0, len(passages) - 1, min(_SAMPLE, len(passages))).astype(int)
    ids = retriever.tokenizer([passages[row] for row in rows.tolist()], verbose=False)["input_ids"]
    needed = int(np.quantile([len(of_passage) for of_passage in ids], _COVERED, method="higher"))
    prompt = prompt_tokens(retriever.tokenizer, retriever_prompt(retriever, "document"))
    own, positions = length_limit(retriever), position_count(retriever)
    advice = f"{100 * _COVERED:.0f} % of the passages have at most {needed} tokens: "
    if own is None or needed + prompt <= own:
        advice += f"--max_passage_length {needed} reads them whole"
    elif positions is None or needed + prompt <= positions:
        advice += (
            f"--max_passage_length {needed} and the model's max_length {needed + prompt} read them whole"
        )
    else:
        advice += f"the model reads at most {positions}; divide the passages or use a model that reads more"
    return textwrap.fill(advice, 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


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
