"""Pairs for rankers that read them through a chat template, such as causal language models."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder
from torch import Tensor

from hf_ar2.collections import Collection
from hf_ar2.encoding.input_lengths import cut_at, first_tokens
from hf_ar2.models.prompts import ranker_prompt
from hf_ar2.settings.text import TextConfig


class MessagePairs:
    """Pairs of a collection as a ranker's own `preprocess` makes them.

    A chat template joins the texts before they are tokenised, so that the tokens of a pair are not those of its parts.

    Args:
        max_length: longest pair in tokens, template included.
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
