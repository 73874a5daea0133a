"""Where a tokenizer puts its special tokens."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SpecialTokens:
    """The special tokens around one text, or around and between two, found by tokenising probes.

    Attributes:
        specials: one list of (token id, segment id) before, between and after the texts.
        segments: the segment id of each text.
        added: the number of special tokens.

    Raises:
        ValueError: a text has other tokens when the tokenizer adds special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probes: list[str]) -> None:
        encoding = tokenizer(*([probe] for probe in probes), return_token_type_ids=True)
        ids, types = encoding["input_ids"][0], encoding["token_type_ids"][0]
        plain = tokenizer(probes, add_special_tokens=False)["input_ids"]
        # 0 first text, 1 second text, None special
        owners = encoding.sequence_ids(0) if tokenizer.is_fast else _owners(ids, plain)
        self.specials: list[list[tuple[int, int]]] = [[]]
        self.segments: list[int] = []
        own_tokens: list[int] = []
        for token, segment, owner in zip(ids, types, owners, strict=True):
            if owner is None:
                self.specials[-1].append((token, segment))
                continue
            if owner == len(self.segments):  # the text's first token
                self.specials.append([])
                self.segments.append(segment)
            own_tokens.append(token)
        self.added = sum(map(len, self.specials))
        if len(self.segments) != len(probes) or own_tokens != list(chain.from_iterable(plain)):
            raise ValueError(
                f"{type(tokenizer).__name__} encodes the texts {probes} as {ids}, but without special tokens as "
                f"{plain}: its inputs cannot be built from stored tokens"
            )


def _owners(ids: list[int], texts: list[list[int]]) -> list[int | None]:
    """For tokenizers that do not say which text a token belongs to: where the tokens of each text are."""
    owners: list[int | None] = [None] * len(ids)
    start = 0
    for number, tokens in enumerate(texts):
        while start < len(ids) and ids[start : start + len(tokens)] != tokens:
            start += 1
        for place in range(start, min(start + len(tokens), len(ids))):
            owners[place] = number
        start += len(tokens)
    return owners
