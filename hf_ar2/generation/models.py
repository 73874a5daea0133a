"""Questions from models of transformers: seq2seq models, and causal models with or without a chat template."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from hf_ar2.encoding.batches import token_budget_batches
from hf_ar2.generation.prompts import PASSAGE_CHARACTERS, default_prompt, fill_prompt
from hf_ar2.models.loading import bf16_is_faster, resolve_model_name

NEW_TOKENS = 64
# Longer prompts are truncated, even if the model's limit is higher.
_MAX_TOKENS = 1024
_BUDGET = {"cuda": 16_384}


class ModelWriter:
    """Writes with a model of transformers: one reply per passage greedily, or several (`count`) by seeded sampling.

    The prompt contains `{passage}`; None uses the default for the type of model.
    """

    def __init__(self, model: str, count: int = 1, prompt: str | None = None, seed: int = 42) -> None:
        folder = resolve_model_name(model)
        self.name, self.count, self.seed = model, count, seed
        config = AutoConfig.from_pretrained(folder)
        self.seq2seq = bool(config.is_encoder_decoder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # A causal model continues at the right end, so padding goes to the left.
        self.tokenizer.padding_side = "right" if self.seq2seq else "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        kind = AutoModelForSeq2SeqLM if self.seq2seq else AutoModelForCausalLM
        dtype = torch.bfloat16 if bf16_is_faster(self.device) else torch.float32
        self.model: Any = kind.from_pretrained(folder, dtype=dtype).eval()
        self.model.to(self.device)
        self.chat = not self.seq2seq and bool(self.tokenizer.chat_template)
        self.prompt = prompt or default_prompt(Path(model).name, seq2seq=self.seq2seq, chat=self.chat)
        own = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 2**31)
        self.max_tokens = max(8, min(own - (0 if self.seq2seq else NEW_TOKENS), _MAX_TOKENS))

    def batches(self, passages: Sequence[str]) -> list[np.ndarray]:
        """Indices of the passages of each batch, of similar length, longest first.

        Batches are made of all passages, so that the samples do not depend on where an earlier run was interrupted.
        """
        lengths = np.array([len(self._tokens(passage)) + NEW_TOKENS for passage in passages])
        return token_budget_batches(lengths, max(1, _BUDGET.get(self.device.type, 4_096) // self.count))

    def write(self, batch: int, passages: Sequence[str]) -> list[list[str]]:
        """The replies for the passages of a batch, whose number is added to the seed of the sampling."""
        transformers.set_seed(self.seed + batch)
        tokens = {"input_ids": [self._tokens(passage) for passage in passages]}
        inputs = self.tokenizer.pad(tokens, return_attention_mask=True, return_tensors="pt", verbose=False)
        inputs = inputs.to(self.device)
        settings, sampled = copy.deepcopy(self.model.generation_config), self.count > 1
        settings.update(
            max_new_tokens=NEW_TOKENS,
            max_length=None,
            num_beams=1,
            do_sample=sampled,
            temperature=1.0 if sampled else None,
            top_k=10 if sampled else None,
            top_p=0.95 if sampled else None,
            num_return_sequences=self.count,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            out = self.model.generate(**inputs, generation_config=settings)
        if not self.seq2seq:
            out = out[:, inputs["input_ids"].shape[1] :]
        texts = iter(self.tokenizer.batch_decode(out, skip_special_tokens=True))
        return [[next(texts) for _ in range(self.count)] for _ in passages]

    def _tokens(self, passage: str) -> list[int]:
        ids = self._encode(fill_prompt(self.prompt, passage))
        if len(ids) > self.max_tokens:  # truncate the passage, not the text after it
            passage = passage[:PASSAGE_CHARACTERS]
            own = self.tokenizer(passage, add_special_tokens=False, verbose=False)["input_ids"]
            kept = max(1, len(own) - (len(ids) - self.max_tokens) - 8)
            passage = self.tokenizer.decode(own[:kept], skip_special_tokens=True)
            ids = self._encode(fill_prompt(self.prompt, passage))[: self.max_tokens]
        return ids

    def _encode(self, text: str) -> list[int]:
        if self.chat:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # for templates with this option
            )
        ids = list(self.tokenizer(text, add_special_tokens=not self.chat, verbose=False)["input_ids"])
        # A causal model would not continue after an end token.
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id}
        return ids[:-1] if not self.seq2seq and not self.chat and ids and ids[-1] in ends else ids
