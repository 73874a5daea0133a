"""Properties of a saved retriever or ranker, read from its files, and checks that the files are complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ar2.models.lora import adapter_base

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# The activation function of a ranker whose scores are logits.
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True)
class SavedRetriever:
    """How a saved retriever makes and compares embeddings.

    Attributes:
        pooling: `"cls"`, `"mean"`, …
        similarity: `"cosine"` or `"dot"`.
        normalised: whether its embeddings have unit length.
        dimension: of an embedding, after all modules and `truncate_dim`.
        max_length: longest text in tokens; None if the tokenizer has no limit.
        towers: task → subfolder of the transformer, if there are two towers; else empty.
        prompts: task → the prompt, if it is not empty.
        plain: whether it has only transformer, pooling and normalisation, and its embeddings are not cut, so that
            `AutoModel` can do the same.
        adapter_base: the base model if the folder has adapters (LoRA) of one; else None.
    """

    pooling: str
    similarity: str
    normalised: bool
    dimension: int
    max_length: int | None
    towers: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    plain: bool = True
    adapter_base: str | None = None


@dataclass(frozen=True)
class SavedRanker:
    """How a saved ranker reads pairs; `adapter_base` is as in `SavedRetriever`.

    Attributes:
        max_length: longest pair in tokens; None if the tokenizer has no limit.
        plain: whether it has only a transformer with its own classification head, so that
            `AutoModelForSequenceClassification` can do the same.
    """

    max_length: int | None
    plain: bool = True
    adapter_base: str | None = None


def read_retriever(folder: str | Path) -> SavedRetriever:
    """The properties of a saved `SentenceTransformer`; ValueError if it would be loaded with another pooling or
    similarity.
    """
    folder = Path(folder)
    _require(folder, "retriever", "modules.json", "config_sentence_transformers.json")
    settings = _read(folder / "config_sentence_transformers.json")
    similarity = settings.get("similarity_fn_name")
    if similarity not in ("cosine", "dot"):
        raise ValueError(
            f"{folder / 'config_sentence_transformers.json'}: similarity_fn_name is {similarity!r}, expected 'cosine' "
            "or 'dot'; save the retriever with load_retriever(..., similarity=...).save_pretrained(folder)"
        )
    towers = {}
    modules = [(module["path"], module["type"]) for module in _read(folder / "modules.json")]
    if any(kind.endswith(".Router") for _, kind in modules):
        _require(folder, "retriever", "router_config.json")
        router = _read(folder / "router_config.json")
        kinds = router["types"]
        for task, paths in router["structure"].items():
            towers[task] = next(path for path in paths if kinds[path].endswith(".Transformer"))
        modules += [(path, kinds[path]) for path in router["structure"]["document"]]
    names = [kind.rsplit(".", 1)[-1] for _, kind in modules]
    pooling = [path for path, kind in modules if kind.endswith(".Pooling")]
    if not pooling:
        raise ValueError(
            f"{folder / 'modules.json'}: no pooling among {', '.join(names)}; save it with load_retriever"
        )
    for place in towers.values() or [next(path for path, kind in modules if kind.endswith(".Transformer"))]:
        _require_transformer(folder, place, "retriever")
    pooled = _read(folder / pooling[0] / "config.json")
    return SavedRetriever(
        pooling=str(pooled.get("pooling_mode")),
        similarity=similarity,
        normalised="Normalize" in names,
        dimension=_dimension(folder, modules, settings.get("truncate_dim")),
        max_length=_max_length(folder / next(iter(towers.values()), "")),
        towers=towers,
        prompts={task: text for task, text in (settings.get("prompts") or {}).items() if text},
        plain=settings.get("truncate_dim") is None
        and set(names) <= {"Transformer", "Pooling", "Normalize", "Router"}
        and pooled.get("pooling_mode") in ("cls", "mean")
        and pooled.get("include_prompt", True),
        adapter_base=adapter_base(folder),
    )


def read_ranker(folder: str | Path) -> SavedRanker:
    """The properties of a saved `CrossEncoder`; ValueError if files are missing, or its output is not one logit."""
    folder = Path(folder)
    _require_transformer(folder, "", "ranker")
    config = _read(folder / "config.json") if adapter_base(folder) is None else {}
    if len(config.get("id2label", [0])) != 1:
        raise ValueError(
            f"{folder / 'config.json'}: {len(config['id2label'])} labels, expected 1 (one relevance logit)"
        )
    _require(folder, "ranker", "config_sentence_transformers.json")
    activation = _read(folder / "config_sentence_transformers.json").get("activation_fn")
    if activation != IDENTITY:
        raise ValueError(
            f"{folder / 'config_sentence_transformers.json'}: activation_fn is {activation!r}, expected {IDENTITY!r}, "
            "because otherwise CrossEncoder applies a sigmoid; save it with load_ranker(...).save_pretrained(...)"
        )
    modules = folder / "modules.json"
    kinds = [module["type"].rsplit(".", 1)[-1] for module in _read(modules)] if modules.is_file() else []
    plain = kinds in ([], ["Transformer"])
    return SavedRanker(_max_length(folder), plain=plain, adapter_base=adapter_base(folder))


def _dimension(folder: Path, modules: list[tuple[str, str]], truncated: int | None) -> int:
    """The dimension that the last module of a known kind leaves, of (folder, kind) in order."""
    dimension = 0
    for path, kind in modules:
        config = _read(folder / path / "config.json") if kind.endswith((".Pooling", ".Dense")) else {}
        if kind.endswith(".Pooling"):
            modes = config.get("pooling_mode")
            width = int(config.get("embedding_dimension", config.get("word_embedding_dimension", 0)))
            dimension = width * (len(modes) if isinstance(modes, list) else 1)
        elif kind.endswith(".Dense"):
            dimension = int(config["out_features"])
    return min(dimension, truncated or dimension)


def _require_transformer(folder: Path, place: str, role: str) -> None:
    base = adapter_base(folder / place)
    names = "config.json" if base is None else "adapter_model.safetensors", "tokenizer_config.json"
    _require(folder, role, *(f"{place}/{name}".lstrip("/") for name in names))
    if base is not None and Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(
            f"{folder / place / 'adapter_config.json'}: the base model of the adapters, {base}, does not exist. "
            "Put it there again, or correct base_model_name_or_path"
        )
    if base is None and not any((folder / place / name).is_file() for name in _WEIGHTS):
        raise ValueError(
            f"{folder / place}: no {' or '.join(_WEIGHTS)}; a {role} is published with its weights in safetensors. "
            "Save it again with save_pretrained"
        )


def _require(folder: Path, role: str, *names: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: not a saved {role}: {', '.join(missing)} missing. Name a folder written by save_model or "
            "save_pretrained"
        )


def _max_length(folder: Path) -> int | None:
    limit = _read(folder / "tokenizer_config.json").get("model_max_length")
    return int(limit) if limit and limit < 10**6 else None  # tokenizers write 10**30 for "no limit"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}. Save the model again") from None
