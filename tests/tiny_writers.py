"""Models of transformers that write, of one layer and with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import make_tiny_tokenizer


def make_tiny_writers(folder: Path) -> Path:
    """Writes `seq2seq`, `causal` and `chat` into a folder; the last has a chat template."""
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    tokenizer = make_tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t5 = T5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_ff=64,
            d_kv=16,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
        )
        T5ForConditionalGeneration(t5).save_pretrained(folder / "seq2seq")
        gpt = GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3
        )
        for name in ("causal", "chat"):
            GPT2LMHeadModel(gpt).save_pretrained(folder / name)
    tokenizer.model_max_length = 256
    for name in ("seq2seq", "causal", "chat"):
        if name == "chat":
            tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %} ?"
        tokenizer.save_pretrained(folder / name)
    return folder
