"""Every kind of model in the table of METHODS.md trains with every method, and its checkpoint loads elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tiny_models import make_model

from hf_ar2.collections import Collection
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    LTReConfig,
    LTReTrainer,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
    RocketQAv2Config,
    RocketQAv2Trainer,
)

METHODS = Path(__file__).parents[1] / "recipes" / "METHODS.md"
SETTINGS: dict[str, Any] = {
    "max_steps": 1,
    "warmup_steps": 0,
    "num_rounds": 1,
    "ranker_steps": 1,
    "retriever_steps": 1,
    "learning_rate": 1e-3,
    "num_negatives": 2,
    "pool_depth": 5,
    "eval_depth": 10,
    "rerank_depth": 2,
    "eval_strategy": "no",
    "eval_on_start": False,
    "teacher_gate": "off",
    "eval_metrics": ["mrr@10"],
    "max_passage_length": 24,
    "max_pair_length": 40,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "bf16": False,
}


def with_dense(folder: Path) -> SentenceTransformer:
    modules = [Transformer(str(make_model("bert", folder))), Pooling(32), Dense(32, 16), Normalize()]
    return load_retriever(SentenceTransformer(modules=modules, device="cpu"))


def retriever(
    kind: str, head: str | None = None, dtype: str = "float32", **options: Any
) -> Callable[[Path], Any]:
    return lambda folder: load_retriever(make_model(kind, folder, head, dtype), device="cpu", **options)


def ranker(
    kind: str, head: str | None, labels: int | None = 1, dtype: str = "float32"
) -> Callable[[Path], Any]:
    settings = {} if labels is None else {"num_labels": labels}
    return lambda folder: load_ranker(make_model(kind, folder, head, dtype, **settings), device="cpu")


# The rows of the table of METHODS.md → models of that kind.
RETRIEVERS: dict[str, list[Callable[[Path], Any]]] = {
    "BERT, ERNIE, MPNet": [retriever("bert", pooling="cls", similarity="dot"), retriever("mpnet")],
    "RoBERTa, XLM-R": [retriever("roberta"), retriever("xlm-roberta")],
    "ModernBERT": [retriever("modernbert")],
    "T5 encoder": [retriever("t5", max_length=64)],
    "decoder (Qwen3, Llama, Gemma)": [
        retriever("qwen3", "ForCausalLM"),
        retriever("llama", pooling="lasttoken"),
        retriever("gemma", "ForCausalLM"),
    ],
    "separate towers": [retriever("bert", separate_towers=True)],
    "modules after pooling": [with_dense],
    "fp16 or bf16 weights": [retriever("bert", dtype="bfloat16"), retriever("bert", dtype="float16")],
}
HEAD = "ForSequenceClassification"
RANKERS: dict[str, list[Callable[[Path], Any]]] = {
    "cross-encoder, one label": [ranker("bert", HEAD), ranker("roberta", HEAD), ranker("modernbert", HEAD)],
    "cross-encoder, two labels": [ranker("bert", HEAD, 2)],
    "encoder without a head": [ranker("bert", None, None)],
    "decoder with a head": [ranker("qwen3", HEAD), ranker("llama", HEAD)],
    "decoder, yes or no": [ranker("qwen3", "ForCausalLM", None)],
    "fp16 or bf16 weights": [ranker("bert", HEAD, dtype="bfloat16")],
}


def cases(kinds: dict[str, list[Callable[[Path], Any]]]) -> list[Any]:
    return [
        pytest.param(make, id=f"{kind}-{number}")
        for kind, makes in kinds.items()
        for number, make in enumerate(makes)
    ]


def trained(trainer: Any, config: Any, models: list[Any], folder: Path, collection: Collection) -> Any:
    known = {field.name for field in fields(config)}
    known -= {AR2Config: {"max_steps"}, LTReConfig: {"num_negatives"}}.get(config, set())
    args = config(output_dir=str(folder), **{key: value for key, value in SETTINGS.items() if key in known})
    run = trainer(*models, args=args, collection=collection)
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    run.train()
    for role in run.trained:
        weights = [(name, weight) for name, weight in run.model.named_parameters() if name.startswith(role)]
        assert all(weight.dtype == torch.float32 and torch.isfinite(weight).all() for _, weight in weights)
        assert any(not torch.equal(weight, before[name]) for name, weight in weights)
    return run.model


@pytest.mark.slow
@pytest.mark.parametrize("make", cases(RETRIEVERS))
def test_a_retriever_trains_with_every_method(
    make: Callable[[Path], Any], tmp_path: Path, tiny_collection: Collection, tiny_ranker_path: Path
) -> None:
    methods = {
        "retriever": (RetrieverTrainer, RetrieverConfig),
        "ltre": (LTReTrainer, LTReConfig),
        "ar2": (AR2Trainer, AR2Config),
        "rocketqa-v2": (RocketQAv2Trainer, RocketQAv2Config),
    }
    texts = tiny_collection.passage_texts()[:8]
    for name, (trainer, config) in methods.items():
        models = [make(tmp_path / f"{name}-model")]
        if name in ("ar2", "rocketqa-v2"):
            models.append(load_ranker(tiny_ranker_path, device="cpu"))
        model = trained(trainer, config, models, tmp_path / name, tiny_collection).retriever.eval()
        model.save_pretrained(str(tmp_path / f"{name}-saved"))
        again = SentenceTransformer(str(tmp_path / f"{name}-saved"), device="cpu")
        for encode in ("encode_query", "encode_document"):
            np.testing.assert_allclose(
                getattr(again, encode)(texts), getattr(model, encode)(texts), atol=1e-6
            )


@pytest.mark.slow
@pytest.mark.parametrize("make", cases(RANKERS))
def test_a_ranker_trains_with_every_method(
    make: Callable[[Path], Any], tmp_path: Path, tiny_collection: Collection, tiny_retriever_path: Path
) -> None:
    methods = {
        "ranker": (RankerTrainer, RankerConfig),
        "ar2": (AR2Trainer, AR2Config),
        "rocketqa-v2": (RocketQAv2Trainer, RocketQAv2Config),
    }
    query = tiny_collection.queries["text"][0]
    pairs = [(query, text) for text in tiny_collection.passage_texts()[:8]]
    for name, (trainer, config) in methods.items():
        models = [load_retriever(tiny_retriever_path, device="cpu"), make(tmp_path / f"{name}-model")]
        model = trained(trainer, config, models, tmp_path / name, tiny_collection).ranker
        model.save_pretrained(str(tmp_path / f"{name}-saved"))
        again = CrossEncoder(str(tmp_path / f"{name}-saved"), device="cpu")
        np.testing.assert_allclose(again.predict(pairs), model.predict(pairs), atol=1e-6)


def test_the_table_of_kinds_lists_what_is_tested() -> None:
    text = METHODS.read_text(encoding="utf-8").split("## Models", 1)[1]
    rows = re.findall(r"^\| (retriever|ranker) \| (.+?) \| (.+?) \|", text, re.MULTILINE)
    listed = {
        role: [kind for of, kind, how in rows if of == role and how != "no"]
        for role in ("retriever", "ranker")
    }
    assert listed == {"retriever": list(RETRIEVERS), "ranker": list(RANKERS)}
    assert [kind for _, kind, how in rows if how == "no"] == ["static embeddings"]
