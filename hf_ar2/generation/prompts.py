"""The prompts for a passage, and the question in a model's reply."""

from __future__ import annotations

import re

PASSAGE = "{passage}"
CHAT = (
    "Write one question that the following text answers. Ask as a person would who does not know the text, name what "
    "the question is about, and write in the language of the text. Reply with the question alone.\n\nText: {passage}"
)
SEQ2SEQ = "Write a question that this text answers: {passage}"
CAUSAL = "Text: {passage}\n\nA question that the text answers:"
# Names of models that were trained to write a query for a passage without a prompt.
_PASSAGE_ALONE = re.compile(r"doc2query|doct5query|t5query|query-?gen|qgen", re.IGNORECASE)
# Longer passages are truncated; their beginning is enough to ask a question.
PASSAGE_CHARACTERS = 2_000

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_MARKS = re.compile(r"^(?:[-*•#>\s]|\(?\d{1,2}[.):]\s|(?:question|query|q)\s*\d*\s*[:.]\s)+", re.IGNORECASE)
_QUOTES = "\"'`*_“”„«»「」 "
_ASKS = ("?", "？", "؟")


def default_prompt(name: str, *, seq2seq: bool, chat: bool) -> str:
    """The prompt for a type of model; the passage alone for models trained without a prompt, such as doc2query."""
    if seq2seq:
        return PASSAGE if _PASSAGE_ALONE.search(name) else SEQ2SEQ
    return CHAT if chat else CAUSAL


def fill_prompt(prompt: str, passage: str) -> str:
    """The prompt with the passage in it, truncated to 2,000 characters."""
    return prompt.replace(PASSAGE, passage[:PASSAGE_CHARACTERS])


def extract_question(reply: str) -> str:
    """The question in a model's reply: the first line that ends in a question mark, else the first line."""
    lines = [_clean(line) for line in _THOUGHT.sub("", reply).splitlines()]
    lines = [line for line in lines if line]
    asking = (line for line in lines if line.endswith(_ASKS))
    return next(asking, lines[0] if lines else "")


def _clean(line: str) -> str:
    """A line without list marks, quotes, labels and text after the question."""
    line = " ".join(_MARKS.sub("", line.replace("**", "")).strip(_QUOTES).split())
    end = max(line.rfind(sign) for sign in _ASKS)
    return line[: end + 1] if end > 0 else line
