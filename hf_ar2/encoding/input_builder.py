"""Model inputs from stored token ids: special tokens, truncation and padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.terminal import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InputBuilder:
    """Model inputs from stored token ids, equal to what the tokenizer returns for the texts.

    Args:
        tokenizer: its padding and truncation sides are used.
        max_length: longest input in tokens, special tokens included.

    Raises:
        ValueError: the tokenizer has no padding token, or max_length fits only special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no padding token: set tokenizer.pad_token")
        self.max_length = max_length
        self.pad_id = int(tokenizer.pad_token_id)
        self.pad_type_id = int(tokenizer.pad_token_type_id)
        self.pad_left = tokenizer.padding_side == "left"
        self.keep_end = tokenizer.truncation_side == "left"
        self.with_types = "token_type_ids" in tokenizer.model_input_names
        self._single = SpecialTokens(tokenizer, ["a"])
        self._pair = SpecialTokens(tokenizer, ["a", "b"])
        self._text_tokens(self._single, max_length)

    def single(
        self, store: TokenStore, rows: np.ndarray | Sequence[int], max_length: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Inputs of single texts: `tokenizer(texts, truncation=True, max_length=..., padding="longest")`.

        `max_length` replaces the builder's own.

        Returns:
            int64 CPU tensors [B, L]: input_ids, attention_mask, and token_type_ids if the model takes them.
        """
        rows = np.asarray(rows, np.int64)
        kept = np.minimum(store.lengths[rows], self._text_tokens(self._single, max_length or self.max_length))
        return self._build(self._single, [(store, rows, kept)])

    def pair(
        self,
        query_store: TokenStore,
        query_rows: np.ndarray | Sequence[int],
        passage_store: TokenStore,
        passage_rows: np.ndarray | Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """Inputs of pairs: `tokenizer(queries, passages, truncation="longest_first", ...)`, int64 [B, L].

        Stored passages must not be truncated to fewer tokens than queries: otherwise a passage may count as the shorter
        text and get one token fewer or more.
        """
        queries, passages = np.asarray(query_rows, np.int64), np.asarray(passage_rows, np.int64)
        if queries.shape != passages.shape:
            raise ValueError(
                f"one passage per query: found {counted(len(queries), 'queries')} and "
                f"{counted(len(passages), 'passages')}"
            )
        first, second = self._kept_of_pairs(query_store.lengths[queries], passage_store.lengths[passages])
        return self._build(self._pair, [(query_store, queries, first), (passage_store, passages, second)])

    def single_lengths(self, store: TokenStore, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Tokens of each row as `single` builds it, without padding: int64 [B]."""
        limit = self._text_tokens(self._single, self.max_length)
        return np.minimum(store.lengths[np.asarray(rows, np.int64)], limit) + self._single.added

    def pair_lengths(
        self,
        query_store: TokenStore,
        query_rows: np.ndarray | Sequence[int],
        passage_store: TokenStore,
        passage_rows: np.ndarray | Sequence[int],
    ) -> np.ndarray:
        """Tokens of each row as `pair` builds it, without padding: int64 [B]."""
        first = query_store.lengths[np.asarray(query_rows, np.int64)]
        second = passage_store.lengths[np.asarray(passage_rows, np.int64)]
        return np.minimum(first + second, self._text_tokens(self._pair, self.max_length)) + self._pair.added

    def single_truncated(self, store: TokenStore) -> np.ndarray:
        """Which texts `single` truncates, bool [N]; a text that fills a truncated store's `max_tokens` counts too."""
        limit = self._text_tokens(self._single, self.max_length)
        return store.lengths > (limit if store.max_tokens is None else min(limit, store.max_tokens - 1))

    def pair_truncated(
        self,
        query_store: TokenStore,
        query_rows: np.ndarray,
        passage_store: TokenStore,
        passage_rows: np.ndarray,
    ) -> np.ndarray:
        """Which pairs `pair` truncates, bool [B]; truncation when a query was stored does not count."""
        lengths = query_store.lengths[query_rows] + passage_store.lengths[passage_rows]
        return lengths > self._text_tokens(self._pair, self.max_length)

    def _text_tokens(self, template: SpecialTokens, max_length: int) -> int:
        limit = max_length - template.added
        if limit < 1:
            raise ValueError(
                f"max_length is {max_length}, but the tokenizer adds {template.added} special tokens; expected at "
                f"least {template.added + 1}"
            )
        return limit

    def _kept_of_pairs(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that "longest_first" keeps of each text, as in the `tokenizers` library.

        Only the longer text is truncated if that suffices; else both get half, the longer one the odd token.
        """
        limit = self._text_tokens(self._pair, self.max_length)
        swapped = first > second
        shorter = np.where(swapped, second, first)
        longer = np.maximum(shorter, limit - shorter)
        halved = shorter + longer > limit
        shorter, longer = np.where(halved, limit // 2, shorter), np.where(halved, limit - limit // 2, longer)
        fits = first + second <= limit
        return (
            np.where(fits, first, np.where(swapped, longer, shorter)),
            np.where(fits, second, np.where(swapped, shorter, longer)),
        )

    def _build(
        self, template: SpecialTokens, parts: list[tuple[TokenStore, np.ndarray, np.ndarray]]
    ) -> dict[str, torch.Tensor]:
        """Fill [B, L] arrays from left to right: special tokens, a text, special tokens, ..."""
        totals = template.added + np.sum([kept for _, _, kept in parts], axis=0)
        batch, width = len(totals), int(totals.max(initial=0))
        start = width - totals if self.pad_left else np.zeros_like(totals)
        ids = np.full((batch, width), self.pad_id, np.int64)
        types = np.full((batch, width), self.pad_type_id, np.int64)
        columns, rows_of_batch = np.arange(width), np.arange(batch)
        position = start.copy()
        for i, specials in enumerate(template.specials):
            for token, segment in specials:
                ids[rows_of_batch, position] = token
                types[rows_of_batch, position] = segment
                position += 1
            if i < len(parts):
                store, rows, kept = parts[i]
                source = store.offsets[rows] + (store.lengths[rows] - kept if self.keep_end else 0)
                within = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
                target = np.repeat(rows_of_batch * width + position, kept) + within
                ids.ravel()[target] = np.asarray(store.ids)[np.repeat(source, kept) + within]
                types.ravel()[target] = template.segments[i]
                position += kept
        mask = (columns >= start[:, None]) & (columns < (start + totals)[:, None])
        inputs = {"input_ids": torch.from_numpy(ids)}
        inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        if self.with_types:
            inputs["token_type_ids"] = torch.from_numpy(types)
        return inputs


class SpecialTokens:
    """The special tokens around one text, or around and between two, found by tokenising probes.

    Any tokenizer works that adds tokens without changing those of the texts; others raise ValueError.

    Attributes:
        specials: one list of (token id, segment id) before, between and after the texts.
        segments: the segment id of each text. added: the number of special tokens.
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
