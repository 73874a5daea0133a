"""Tiny models with random weights, as plain transformers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import make_tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = {**SMALL, "num_key_value_heads": 1, "head_dim": 16}
ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# Kind → the prefix of its classes in transformers, and its settings.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SMALL),
    "ernie": ("Ernie", SMALL),
    "mpnet": ("MPNet", {**SMALL, "pad_token_id": 1}),
    "roberta": ("Roberta", {**SMALL, **ROBERTA}),
    "xlm-roberta": ("XLMRoberta", {**SMALL, **ROBERTA}),
    "modernbert": (
        "ModernBert",
        {**SMALL, **ROBERTA, "cls_token_id": 0, "sep_token_id": 2, "local_attention": 8},
    ),
    "t5": ("T5", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_heads": 2, "pad_token_id": 1}),
    "qwen3": ("Qwen3", {**DECODER, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 1}),
    "llama": ("Llama", {**DECODER, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}),
    "gemma": ("Gemma", {**DECODER, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
}
DECODERS = ("qwen3", "llama", "gemma")


def make_model(
    kind: str,
    folder: Path,
    head: str | None = None,
    dtype: str = "float32",
    **settings: Any,
) -> Path:
    """Write a small random model and its tokenizer.

    Args:
        kind: of `KINDS`.
        head: ForSequenceClassification, ForCausalLM, …; None: the bare encoder.
        settings: of the config.
    """
    prefix, options = KINDS[kind]
    tokenizer = make_tokenizer(kind)
    config_class = getattr(transformers, f"{prefix}Config")
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 80}
    if kind == "t5":
        del size["max_position_embeddings"]
    config = config_class(**{**options, **size, **settings})
    architecture = getattr(transformers, prefix + (head or ("EncoderModel" if kind == "t5" else "Model")))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """BERT's tokenizer, or one whose special tokens are where models of this kind have them."""
    if kind in ("bert", "ernie"):
        return make_tiny_tokenizer()
    if kind == "qwen3":
        return word_tokenizer("$A </s>", "$A $B </s>", padding_side="left")
    if kind in ("llama", "gemma"):
        tokenizer = word_tokenizer("<s> $A", "<s> $A <s> $B")
        if kind == "llama":
            tokenizer.pad_token = None
        return tokenizer
    if kind == "t5":
        return word_tokenizer("$A </s>", "$A </s> $B </s>", model_max_length=int(1e30))
    return word_tokenizer("<s> $A </s>", "<s> $A </s> </s> $B </s>")


def word_tokenizer(single: str, pair: str, **options: Any) -> PreTrainedTokenizerFast:
    """Words of the tiny collection; special tokens as in RoBERTa, and no token types."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "yes", "no", ":", *make_tiny_tokenizer().get_vocab()]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "removed"), pre_tokenizers.Whitespace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": token for name, token in names.items()},
        **{"model_max_length": 64, "model_input_names": ["input_ids", "attention_mask"], **options},
    )
