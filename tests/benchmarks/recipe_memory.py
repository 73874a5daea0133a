"""Memory per GPU, disk and hours of the recipes for large collections, by counting; nothing is trained.

    python tests/benchmarks/recipe_memory.py [RECIPE.yaml ...]

A step's forward pass runs on fake tensors, which have shapes and no content, with the real sizes of the models, the
longest texts that the recipe allows, bf16 autocast and fused attention. Counted per GPU: both models' float32 weights,
gradients, DDP's buckets of the same size, AdamW's two moments, every tensor that autograd keeps for the backward pass,
and the vectors that `TorchSearcher` copies to the GPU. Hours are floating-point operations (training, encoding the
corpus, ranking) at 35 % of the 312 TFLOP/s of an A100 in bf16. Not counted: evaluations during training, unlabelled
queries, communication, and waiting for disks. faiss-gpu would copy the vectors in float32, which is twice as much.
"""

from __future__ import annotations

import argparse
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import Recipe, source_name

RECIPES = Path(__file__).parents[2] / "recipes"
GPU, RESERVED = (
    80e9,
    4e9,
)  # reserved: CUDA's context, NCCL, one layer's temporaries, and gaps of the allocator
RATE = 0.35 * 312e12  # floating-point operations per second
BASE = {"vocab_size": 30522}
LARGE = BASE | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
MODELS = {
    "nghuyong/ernie-2.0-base-en": BASE,
    "nghuyong/ernie-2.0-large-en": LARGE,
    "Luyu/co-condenser-marco": BASE,
    "FacebookAI/roberta-base": {"vocab_size": 50265},
}
# Passages, labelled training queries, queries of the evaluation.
COLLECTIONS = {
    "data/ms-marco": (8_841_823, 502_939, 6_980),
    "data/nq": (21_015_324, 58_880, 3_610),
    "data/tqa": (21_015_324, 60_413, 11_313),
}


class Cost(NamedTuple):
    """Of a stage: bytes on each GPU, floating-point operations of all GPUs, and bytes of its checkpoints."""

    memory: float = 0
    work: float = 0
    checkpoints: float = 0


class Model(NamedTuple):
    """What an encoder costs: bytes kept for the backward pass (fixed, and of a row), operations of a row, weights."""

    fixed: float
    row: float
    work: float
    weights: int

    def kept(self, rows: int, mini_batch: int | None) -> float:
        """Bytes kept by the largest chunk: all rows, or `mini_batch_size` of them."""
        return self.fixed + min(rows, mini_batch or rows) * self.row


@cache
def count(name: str, length: int) -> Model:
    """The costs of a model with inputs of this many tokens."""
    with FakeTensorMode():
        network = BertForSequenceClassification(BertConfig(**MODELS[name], num_labels=1)).train()
        one, two = (bytes_kept(network, torch.zeros(rows, length, dtype=torch.long)) for rows in (1, 2))
    config, weights = network.config, sum(weight.numel() for weight in network.parameters())
    h = config.hidden_size
    per_token = config.num_hidden_layers * (8 * h**2 + 4 * h * config.intermediate_size + 4 * h * length)
    return Model(2 * one - two, two - one, length * per_token, weights)


def bytes_kept(network: BertForSequenceClassification, ids: Tensor) -> float:
    """Bytes of the tensors that autograd keeps of a forward pass, without the weights, each storage once."""
    kept: dict[int, int] = {}
    fused, layer_norm = functional.scaled_dot_product_attention, functional.layer_norm
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def attention(*tensors: Tensor, **options: Any) -> Tensor:
        # As on a GPU: fused, so that neither probabilities nor a mask of the dropout are kept. A CPU needs this for it.
        return fused(*tensors, **options | {"dropout_p": 0.0})

    def norm(states: Tensor, *rest: Any, **more: Any) -> Tensor:
        return layer_norm(states.float(), *rest, **more)  # as autocast has it on a GPU

    with (
        mock.patch.object(functional, "scaled_dot_product_attention", attention),
        mock.patch.object(functional, "layer_norm", norm),
        torch.autocast("cpu", torch.bfloat16),
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = network(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        ).logits  # must live: it holds the rest
    del output
    return sum(kept.values())


def stage_cost(recipe: Recipe, stage: str, gpus: int) -> Cost:
    """The cost of a stage."""
    trainer, args = recipe.stages[stage]["trainer"], recipe.stage_args(stage)
    sources = {role: base_model(recipe, stage, role) for role in ("retriever", "ranker")}
    names = {role: recipe.models[name]["model"] for role, name in sources.items() if name}
    towers = 2 if recipe.models[sources["retriever"]].get("separate_towers") else 1
    passages, queries, _ = COLLECTIONS[recipe.collection]
    q, p, pair = (args.get(f"max_{kind}_length", 128) for kind in ("query", "passage", "pair"))
    query, passage = count(names["retriever"], q), count(names["retriever"], p)
    scored = count(names["ranker"], pair) if "ranker" in names else Model(0, 0, 0, 0)
    size = {"retriever": towers * query.weights, "ranker": scored.weights}
    weights = sum(size.values())
    encoding = passages * passage.work
    vectors = passages * 768 * 2
    if trainer == "augment":
        memory = 4 * weights + vectors + ranked_at_once(args, names)
        return Cost(memory, encoding + queries * args["depth"] * scored.work)
    batch, mini = args.get("per_device_train_batch_size", 32), args.get("mini_batch_size")
    in_list = args.get("num_negatives", 0) + args.get("num_positives", 1)
    mines = args.get("num_negatives", 0) > 0 and args.get("mine", True)
    if trainer == "ltre":
        in_list, mines, trained = 0, True, ("retriever",)
    else:
        trained = {"retriever": ("retriever",), "ranker": ("ranker",)}.get(trainer, ("retriever", "ranker"))
    of_both = query.kept(batch, mini), passage.kept(batch * in_list, mini) if in_list else 0
    with_retriever = max(of_both) if mini else sum(of_both)
    with_ranker = scored.kept(batch * in_list, mini)
    together = trainer == "rocketqa-v2" and not mini
    if trainer == "ranker":
        with_retriever = 0
    kept = with_retriever + with_ranker if together else max(with_retriever, with_ranker)
    updated = sum(size[role] for role in trained)
    memory = 4 * weights + (4 + 8) * updated + (4 * updated if gpus > 1 else 0) + kept
    if mines:
        free = GPU - RESERVED - 4 * weights - 12 * updated - vectors
        in_float32 = args.get("index_dtype", "float32") == "float32"
        memory += vectors + (2 * vectors if in_float32 and 2 * vectors <= free / 2 else 0)
    steps, rounds = length_of(args, trainer, queries, batch * gpus)
    backward = 4 if mini else 3  # a backward pass costs two forward passes; gradient caching has one more
    lists = batch * gpus * (query.work + in_list * passage.work)
    pairs = batch * gpus * in_list * scored.work
    if trainer == "ar2":
        turn = args["ranker_steps"] + args["retriever_steps"]
        teaching = args["retriever_steps"] / turn
        done = steps * (teaching * (backward * lists + pairs) + (1 - teaching) * backward * pairs)
    elif trainer == "rocketqa-v2":
        done = steps * backward * (lists + pairs)
    else:
        done = steps * backward * (pairs if trainer == "ranker" else lists)
    encodings = (
        0 if not mines else rounds if trainer in ("ar2", "retriever") and args.get("refresh", True) else 1
    )
    saved = 2 if args.get("save_strategy", "epoch") != "no" else 0
    return Cost(memory, done + encodings * encoding, saved * (4 * weights + 8 * updated))


def length_of(args: dict[str, Any], trainer: str, queries: int, global_batch: int) -> tuple[float, float]:
    """Optimizer steps and rounds of a stage."""
    if trainer == "ar2":
        return args["num_rounds"] * (args["ranker_steps"] + args["retriever_steps"]), args["num_rounds"]
    a_round = -(-queries // global_batch)
    steps = args.get("max_steps") or args.get("num_train_epochs", 3) * a_round
    return steps, steps / (args.get("steps_per_round") or a_round)


def ranked_at_once(args: dict[str, Any], names: dict[str, str]) -> float:
    """Bytes of a batch of `encode_tokens` without gradient: a layer's inputs and outputs."""
    width = max(BertConfig(**MODELS[name]).hidden_size for name in names.values())
    return args.get("encode_tokens", 65536) * 28 * width


def base_model(recipe: Recipe, stage: str, role: str) -> str | None:
    """The model that a stage's retriever or ranker started from."""
    name = source_name(recipe.stages[stage].get(role)) if role in recipe.stages[stage] else None
    while name is not None and name not in recipe.models:
        name = source_name(recipe.stages[name][role])
    return name


def estimate(path: Path) -> tuple[dict[str, float], float, float, int]:
    """GB per GPU of each stage, GB of disk, hours, and the number of GPUs that the recipe's command names."""
    recipe = load_recipe(path)
    named = re.search(r"--num_processes (\d+)", path.read_text())
    gpus = int(named[1]) if named else 1
    costs = {stage: stage_cost(recipe, stage, gpus) for stage in recipe.stages}
    passages, _, evaluated = COLLECTIONS[recipe.collection]
    # Two encodings at a time: the vectors, and FAISS's copy in float32.
    bytes_of_vector = 768 * (4 + (2 if recipe.args.get("index_dtype") == "float16" else 4))
    disk = 2 * passages * bytes_of_vector + max(cost.checkpoints for cost in costs.values())
    work = sum(cost.work for cost in costs.values())
    encoders = [base_model_of_row(recipe, row["retriever"]) for row in recipe.rows.values()]
    for row, encoder in zip(recipe.rows.values(), encoders, strict=True):
        work += passages * count(encoder, 128).work
        if "ranker" in row:
            ranker = base_model_of_row(recipe, row["ranker"], "ranker")
            work += evaluated * recipe.rerank_depth * count(ranker, 160).work
    memory = {stage: (cost.memory + RESERVED) / 1e9 for stage, cost in costs.items()}
    return memory, disk / 1e9, work / gpus / RATE / 3600, gpus


def base_model_of_row(recipe: Recipe, source: Any, role: str = "retriever") -> str:
    """The Hub name of the model that a row's model started from."""
    name = source_name(source)
    name = name if name in recipe.models else base_model(recipe, name, role)
    return str(recipe.models[name]["model"])


def comment(path: Path) -> str:
    """The line that the recipe has in its head."""
    memory, disk, hours, gpus = estimate(path)
    several = f"each of {gpus} GPUs" if gpus > 1 else "a GPU"
    more = " without unlabelled queries" if "unlabelled:" in path.read_text() else ""
    return (
        f"# Estimated, never run: {max(memory.values()):.0f} GB on {several} of 80 GB, {disk:.0f} GB of disk, "
        f"{hours:.0f} hours on A100s{more}."
    )


def large_recipes() -> list[Path]:
    """The shipped recipes for large collections."""
    return sorted(path for path in RECIPES.rglob("*.yaml") if load_recipe(path).collection in COLLECTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path, help="default: those of the package")
    for path in parser.parse_args().recipes or large_recipes():
        print(path.relative_to(RECIPES) if path.is_relative_to(RECIPES) else path)
        print("  ", ", ".join(f"{stage} {size:.1f} GB" for stage, size in estimate(path)[0].items()))
        print("  ", comment(path))


if __name__ == "__main__":
    main()
