"""The prompts of a model, as sentence-transformers puts them before texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

Task = Literal["query", "document"]
# The first that exists counts, even if it is empty.
_NAMES: dict[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


def retriever_prompt(retriever: SentenceTransformer, task: Task) -> str:
    """The prompt that `encode_query` or `encode_document` puts before a text."""
    return _prompt(retriever, _NAMES[task])


def ranker_prompt(ranker: CrossEncoder) -> str:
    """The prompt that `predict` puts before the query of a pair: the default prompt."""
    return _prompt(ranker, ())


def _prompt(model: Any, names: tuple[str, ...]) -> str:
    prompts = model.prompts or {}
    name = next((name for name in names if name in prompts), model.default_prompt_name)
    return prompts.get(name) or ""


def set_retriever_prompts(retriever: SentenceTransformer, prompts: Mapping[str, str] | None) -> None:
    """Set prompts (others are kept), and write that of passages where `encode_document` finds it.

    Models of the E5 family name it "passage", but `encode_document` first reads "document", which is empty by default.

    Args:
        prompts: "query" → prompt, "document" (or "passage", "corpus") → prompt; other names raise ValueError.
    """
    if prompts is not None:
        check_prompts(prompts)
        unknown = sorted(set(prompts) - {name for names in _NAMES.values() for name in names})
        if unknown:
            raise ValueError(f"prompts: unknown name {unknown[0]!r}: expected 'query' and 'document'")
        if not set(prompts).isdisjoint(_NAMES["document"]):
            prompts = {"document": "", **prompts}
    merged = {**(retriever.prompts or {}), **(prompts or {})}
    if not merged.get("document"):
        merged["document"] = next((merged[name] for name in _NAMES["document"] if merged.get(name)), "")
    retriever.prompts = merged


def set_ranker_prompt(ranker: CrossEncoder, prompts: Mapping[str, str] | None) -> None:
    """Set the prompt before a pair's query (`{"query": prompt}`), and make it the default, which `predict` uses."""
    if prompts is None:
        return
    check_prompts(prompts)
    if list(prompts) != ["query"]:
        found = ", ".join(map(repr, prompts)) or "none"
        raise ValueError(f"prompts: found {found}; expected only 'query': a ranker has one prompt")
    ranker.prompts = {**(ranker.prompts or {}), **prompts}
    ranker.default_prompt_name = "query"


def check_prompts(prompts: Any) -> None:
    """Raise ValueError if prompts are not a mapping from names to texts."""
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise ValueError(
            f"prompts: found {prompts!r}, expected names and texts, such as {{query: 'query: ', document: 'passage: '}}"
        )


def prompt_features(retriever: SentenceTransformer, task: Task) -> dict[str, int]:
    """`prompt_length` in tokens, for a pooling that leaves out the prompt; else nothing."""
    prompt = retriever_prompt(retriever, task)
    if not prompt or all(m.include_prompt for m in retriever.modules() if isinstance(m, Pooling)):
        return {}
    length = retriever.preprocess([""], prompt=prompt, task=task).get("prompt_length")
    return {} if length is None else {"prompt_length": int(length)}
