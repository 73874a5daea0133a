"""Does a passage contain an answer? The token match of DPR (Karpukhin et al. 2020), used for answer-string hit rates
and to keep passages that answer the question out of its negatives.

Text is normalised (Unicode NFD), lower-cased and split into runs of letters, digits and marks; every other visible
character is a token. An answer matches if the passage contains its tokens in sequence, so "art" does not match "party".
DPR searches the passage's text without its title.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import regex

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_ASCII_TOKEN = re.compile(r"[A-Za-z0-9]+|[!-~]")


def token_string(text: str) -> str:
    """The lower-case tokens of a text, each between single spaces; empty if it has none.

    No token contains a space, so a search for a sequence of tokens is a substring search.
    """
    pattern = _ASCII_TOKEN if text.isascii() else _TOKEN
    tokens = pattern.findall(text if text.isascii() else unicodedata.normalize("NFD", text))
    return f" {' '.join(tokens)} ".lower() if tokens else ""


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Whether a text contains one of the answers as a sequence of tokens.

    An answer without any token (empty, or only white space) matches nothing; in DPR's code it matches everything.

    Example:
        >>> has_answer(["New York"], "He moved to new york, then left."), has_answer(["art"], "The party")
        (True, False)
    """
    return _contains(token_string(text), [token_string(answer) for answer in answers])


def answer_hits(
    retrieved: np.ndarray,
    answers: Sequence[Sequence[str]],
    passage_texts: Sequence[str],
    cache: dict[int, str] | None = None,
) -> np.ndarray:
    """Which retrieved passages contain an answer to their query.

    Args:
        retrieved: int `[Q, K]`, passage rows, -1 padded.
        answers: for each of the Q queries its answer strings.
        passage_texts: text of every passage, indexed by row.
        cache: pass the same dict to several calls over one corpus to tokenise each passage once.

    Returns:
        bool `[Q, K]`, False under the padding.

    Raises:
        ValueError: another number of answer lists than of rankings, or a single string in place of a list.

    Example:
        >>> texts = ["It is Paris.", "In Rome."]
        >>> answer_hits(np.array([[1, 0], [0, -1]]), [["Paris"], ["rome", "Roma"]], texts)
        array([[False,  True],
               [False, False]])
    """
    retrieved = np.asarray(retrieved)
    if retrieved.ndim != 2 or len(retrieved) != len(answers):
        raise ValueError(
            f"found {len(answers)} answer lists for rankings of shape {list(retrieved.shape)}; one each"
        )
    cache = {} if cache is None else cache
    for row in np.unique(retrieved[retrieved >= 0]).tolist():
        if row not in cache:
            cache[row] = token_string(passage_texts[row])
    hits = np.zeros(retrieved.shape, bool)
    for i, rows in enumerate(retrieved.tolist()):
        if isinstance(answers[i], str):
            raise ValueError(f"answers of query {i} are the string {answers[i]!r}; expected a list")
        wanted = [token_string(answer) for answer in answers[i]]
        hits[i] = [row >= 0 and _contains(cache[row], wanted) for row in rows]
    return hits


def _contains(passage: str, answers: list[str]) -> bool:
    return any(answer in passage for answer in answers if answer)
