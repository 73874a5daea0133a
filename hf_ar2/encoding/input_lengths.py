"""How long the inputs of a model may be, with its prompts."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.models.prompts import ranker_prompt
from hf_ar2.settings.text import TextConfig

# Tokenizers without a limit report 10**30.
_NO_LIMIT = 10**6


def text_prompt(ranker: CrossEncoder) -> str:
    """The prompt that is part of the query's text; a chat template puts it into a separate message."""
    return "" if reads_messages(ranker) else ranker_prompt(ranker)


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """The number of tokens of a prompt, without special tokens."""
    return len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0


def length_limit(model: SentenceTransformer | CrossEncoder) -> int | None:
    """The longest input of a model in tokens; None if it has no limit, such as a model with relative positions."""
    limit = model.max_seq_length
    return int(limit) if limit is not None and limit < _NO_LIMIT else None


def input_length(
    model: SentenceTransformer | CrossEncoder,
    wanted: int | None,
    setting: str,
    prompt: str = "",
    added: int = 0,
) -> int:
    """The longest input in tokens: `wanted` for the text and special tokens, plus the prompt, up to the model's own
    limit.

    Args:
        wanted: the value of the setting named `setting`; None: the model's own limit.
        added: tokens of a chat template, counted like those of a prompt.

    Raises:
        ValueError: the prompt leaves no space for the text, or neither the setting nor the model has a limit.
    """
    limit, tokenizer = length_limit(model), model.tokenizer
    added += prompt_tokens(tokenizer, prompt)
    if wanted is None and limit is None:
        raise ValueError(f"{setting} is not set, and the model has no length limit: set {setting}")
    lengths = [limit, None if wanted is None else wanted + added]
    length = min(value for value in lengths if value is not None)
    special = tokenizer.num_special_tokens_to_add(pair=setting == "max_pair_length")
    if added and length <= added + special:
        what = f"the prompt {prompt!r}" if prompt else "the chat template"
        raise ValueError(
            f"{what} takes {added} tokens, which with {special} special tokens leaves no space for text within "
            f"{length}: shorten it, or raise {setting} or the model's max_length (it is {limit})"
        )
    return length


def cut_at(max_length: int) -> dict[str, dict[str, Any]]:
    """`processing_kwargs` that make sentence-transformers truncate texts at another length than the model's own."""
    return {"text": {"max_length": max_length, "truncation": True}}


def pair_length(ranker: CrossEncoder, texts: TextConfig) -> int:
    """The longest pair in tokens, prompt and chat template included; see `input_length`."""
    added = template_tokens(ranker)
    return input_length(ranker, texts.max_pair_length, "max_pair_length", text_prompt(ranker), added)


def reads_messages(model: SentenceTransformer | CrossEncoder) -> bool:
    """Whether sentence-transformers renders the model's texts with a chat template."""
    return "message" in getattr(model[0], "modality_config", {})


def template_tokens(ranker: CrossEncoder) -> int:
    """Tokens of a chat template around an empty pair, with the prompt; 0 without a template."""
    if not reads_messages(ranker):
        return 0
    features = ranker.preprocess([("", "")], prompt=ranker_prompt(ranker) or None)
    return int(features["attention_mask"].sum())


def first_tokens(text: str, tokenizer: Any, count: int, prompt: str = "") -> str:
    """The text up to the end of its `count`-th token; the tokens are those of the text after the prompt."""
    count += prompt_tokens(tokenizer, prompt)
    if not tokenizer.is_fast:  # a tokenizer written in Python does not say where its tokens end
        return _shortest_start(text, tokenizer, count, prompt)
    encoding = tokenizer(prompt + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = encoding["offset_mapping"]
    return text if len(ends) <= count else text[: max(0, ends[count - 1][1] - len(prompt))]


def _shortest_start(text: str, tokenizer: Any, count: int, prompt: str) -> str:
    """The shortest start of the text with its first `count` tokens, those of the prompt included."""

    def first(end: int) -> list[int]:
        ids = tokenizer(prompt + text[:end], add_special_tokens=False, verbose=False)["input_ids"]
        return list(ids[:count])

    wanted = first(len(text))
    return text[: bisect_left(range(len(text)), True, key=lambda end: first(end) == wanted)]
