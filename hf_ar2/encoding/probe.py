"""Checks that a model reads the same inputs here and in sentence-transformers, with a few texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn

from hf_ar2.collections import Collection
from hf_ar2.encoding.input_lengths import cut_at, first_tokens, reads_messages, text_prompt
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.folders import temporary_folder
from hf_ar2.models.joint import embed, score_pairs
from hf_ar2.models.loading import similarity_of
from hf_ar2.models.prompts import Task, ranker_prompt, retriever_prompt
from hf_ar2.settings.text import TextConfig
from hf_ar2.terminal import counted

# Texts of the collection among the probes.
_FEW = 3
# Most tokens of a text that is run through the model; token ids are compared at full length.
_RUN_TOKENS = 64
# Largest difference, as a share of the largest value, that counts as rounding.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

# Model -> the settings that it was checked with.
_checked: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def check_inputs(
    retriever: SentenceTransformer | None,
    ranker: CrossEncoder | None,
    collection: Collection,
    texts: TextConfig,
) -> None:
    """Check that inputs built from stored tokens equal those of `encode_query`, `encode_document` and `predict`.

    The probes are a few texts of the collection, and empty, long and special ones. A model is checked once per process
    and settings.

    Raises:
        ValueError: token ids or outputs differ; the message shows both.
    """
    for model in (retriever, ranker):
        if model is None:
            continue
        plain = TextConfig(**{name: getattr(texts, name) for name in TextConfig.__dataclass_fields__})
        key = repr((plain, model.prompts, model.default_prompt_name, model.max_seq_length))
        if key in _checked.setdefault(model, set()):
            continue
        with temporary_folder() as cache:
            probe = _probe_collection(model, collection, texts)
            for with_outputs in (False, True):
                lengths = _shortened(plain) if with_outputs else plain
                if isinstance(model, SentenceTransformer):
                    _check_retriever(model, probe, lengths, cache, with_outputs)
                else:
                    _check_ranker(model, probe, lengths, cache, with_outputs)
        _checked[model].add(key)


def _shortened(texts: TextConfig) -> TextConfig:
    """Lengths that cost little to run."""
    names = ("max_query_length", "max_passage_length", "max_pair_length")
    short: dict[str, Any] = {name: min(getattr(texts, name) or _RUN_TOKENS, _RUN_TOKENS) for name in names}
    return replace(texts, **short)


def _probe_collection(model: Any, collection: Collection, texts: TextConfig) -> Collection:
    """A few passages and queries, ordinary and hard ones."""
    special = " ".join(["a", *dict.fromkeys(model.tokenizer.all_special_tokens), "b"])
    few = {
        name: table[sorted({0, len(table) // 2, len(table) - 1})[:_FEW]] if len(table) else {"text": []}
        for name, table in (("queries", collection.queries), ("corpus", collection.corpus))
    }
    words = " ".join([*few["queries"]["text"], *few["corpus"]["text"], "word"]).split()
    longest = max(texts.max_query_length, texts.max_passage_length or 0, texts.max_pair_length or 0, 512)
    long = " ".join((words * (longest // len(words) + 1))[: longest + 1])
    hard = ["", "  Two  Spaces\n", special, long]
    queries = [*few["queries"]["text"], *hard]
    titles = [*few["corpus"].get("title", []), *["" for _ in hard], "title"]
    passages = [*few["corpus"]["text"], *hard, "text"]
    return Collection(
        name="probe",
        corpus=Dataset.from_dict(
            {"id": list(map(str, range(len(passages)))), "title": titles, "text": passages}
        ),
        queries=Dataset.from_dict({"id": list(map(str, range(len(queries)))), "text": queries}),
        qrels={},
    )


def _check_retriever(
    retriever: SentenceTransformer, probe: Collection, texts: TextConfig, cache: Path, with_outputs: bool
) -> None:
    inputs = RetrieverInputs(retriever, probe, cache, texts, show_progress=False)
    unit = similarity_of(retriever) == "cosine"
    tasks: dict[Task, Any] = {
        "query": (list(probe.queries["text"]), inputs.queries, inputs.max_query_length),
        "document": (texts.passage_texts(probe), inputs.passages, inputs.max_passage_length),
    }
    for task, (read, build, length) in tasks.items():
        ours, method = build(np.arange(len(read))), f"encode_{task}"
        options: dict[str, Any] = {"processing_kwargs": cut_at(length)}
        if not with_outputs:
            prompt = retriever_prompt(retriever, task)
            theirs = retriever.preprocess(read, prompt=prompt or None, task=task, **options)
            _compare_tokens(method, read, ours, theirs, chat=reads_messages(retriever))
            continue
        encode = retriever.encode_query if task == "query" else retriever.encode_document
        options |= {"batch_size": len(read), "show_progress_bar": False, "convert_to_numpy": True}
        with _as_served(retriever):
            vectors = encode(read, normalize_embeddings=unit, **options)
            features = {name: tensor.to(retriever.device) for name, tensor in ours.items()}
            found = embed(retriever, features, task).cpu().numpy()
        _compare_outputs(method, read, found, np.asarray(vectors, np.float32), retriever)


def _check_ranker(
    ranker: CrossEncoder, probe: Collection, texts: TextConfig, cache: Path, with_outputs: bool
) -> None:
    inputs = RankerInputs(ranker, probe, cache, texts, show_progress=False)
    queries, passages = list(probe.queries["text"]), texts.passage_texts(probe)
    # Each passage once, each query at least once, and the long one with a long passage.
    query_rows = np.append(np.arange(len(passages)) % len(queries), len(queries) - 1)
    passage_rows = np.append(np.arange(len(passages)), len(passages) - 2)
    prompt, limit = text_prompt(ranker), texts.max_query_length
    cut = [first_tokens(query, ranker.tokenizer, limit, prompt) for query in queries]
    pairs = [(cut[query], passages[passage]) for query, passage in zip(query_rows, passage_rows, strict=True)]
    ours = inputs.pairs(query_rows, passage_rows)
    options: dict[str, Any] = {"processing_kwargs": cut_at(inputs.max_pair_length)}
    if not with_outputs:
        theirs = ranker.preprocess(pairs, prompt=ranker_prompt(ranker) or None, **options)
        _compare_tokens("predict", pairs, ours, theirs)
        return
    options |= {"batch_size": len(pairs), "show_progress_bar": False}
    with _as_served(ranker):
        scores = ranker.predict(pairs, **options)
        features = {name: tensor.to(ranker.device) for name, tensor in ours.items()}
        found = score_pairs(ranker, features).cpu().numpy()
    _compare_outputs("predict", pairs, found, np.asarray(scores, np.float32), ranker)


def _compare_tokens(
    method: str, read: list[Any], ours: dict[str, Tensor], theirs: Any, chat: bool = False
) -> None:
    if "cu_seq_lens_q" in theirs:  # Flash Attention reads no padding; only outputs are compared
        return
    advice = _NO_CHAT if chat else _ADVICE
    found = _ids_of_rows(ours, len(read))
    expected = _ids_of_rows(theirs, len(read))
    for text, here, there in zip(read, found, expected, strict=True):
        if here != there:
            raise ValueError(
                f"{_difference(method, text)} have these token ids here: {_shown(here)}, and these in "
                f"sentence-transformers: {_shown(there)}. {advice}"
            )


def _compare_outputs(
    method: str, read: list[Any], found: np.ndarray, expected: np.ndarray, model: nn.Module
) -> None:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    found, expected = found.reshape(len(read), -1), expected.reshape(len(read), -1)
    allowed = _TOLERANCE.get(dtype, _TOLERANCE[torch.float32]) * max(1e-3, float(np.nanmax(np.abs(expected))))
    row = 0
    if found.shape == expected.shape:
        both_nan = np.isnan(found) & np.isnan(expected)
        gaps = np.where(both_nan, 0, np.abs(found - expected)).max(axis=1)
        row = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
        if gaps[row] <= allowed:
            return
    raise ValueError(
        f"{_difference(method, read[row])} give {_numbers(found[row])} here, and {_numbers(expected[row])} in "
        f"sentence-transformers. {_ADVICE}"
    )


_ADVICE = (
    "Others would load a model that differs from the one trained here. Use a model that reads texts through a plain "
    "tokenizer, without modules, templates or settings that change them"
)

_NO_CHAT = (
    "sentence-transformers puts a chat template around the texts. Load the model, remove the template with "
    "`del retriever[0].modality_config['message']`, save it, and name the saved folder"
)


def _difference(method: str, text: Any) -> str:
    shown = repr(text)
    return f"the inputs of {method} for {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _ids_of_rows(features: Any, rows: int) -> list[list[int] | None]:
    """Token ids of each row without padding; None where features have no such rows."""
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if ids is None or mask is None or ids.ndim != 2 or ids.shape != mask.shape or len(ids) != rows:
        return [None] * rows
    return [line[kept.bool()].tolist() for line, kept in zip(ids, mask, strict=True)]


def _shown(ids: list[int] | None) -> str:
    text = "none" if ids is None else str(ids)
    if ids is not None and len(ids) > 24:
        text = f"{str(ids[:12])[:-1]}, ..., {str(ids[-12:])[1:]}"
    return f"{text} ({counted(len(ids or ()), 'tokens')})"


def _numbers(values: np.ndarray) -> str:
    rounded = ", ".join(f"{value:.4f}" for value in values[:4])
    return f"[{rounded}{', ...' if len(values) > 4 else ''}]"


@contextlib.contextmanager
def _as_served(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradient and autocast; the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    device = next((p.device.type for p in model.parameters()), "cpu")
    try:
        with torch.inference_mode(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
