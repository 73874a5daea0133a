"""What the benchmarks share: one thread, clocks, the part of a collection they run on, and the machine's name.

    python tests/benchmarks/machine.py

prints the machine. Import this before torch: it fixes the number of threads.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from hf_ar2.collections import Collection

torch.set_num_threads(1)

PACKAGES = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "numpy")


@dataclass
class Clock:
    """Seconds spent in ``with clock:`` blocks: wall time, and processor time of the whole process."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds the time of the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu


def describe_machine() -> str:
    """Processor, threads, load and versions, on three lines."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    model = facts.get("model name", model)
    flags = facts.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if flag in flags]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{model} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}; {' '.join(known)})\n"
        f"{torch.get_num_threads()} thread on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start\n"
        f"Python {platform.python_version()}, {versions}"
    )


def part_of(collection: Collection, queries: int, passages: int, split: str = "train") -> Collection:
    """The first queries of a split, their positives, and other passages up to a number."""
    judgments = collection.judgments(split).positives()
    judgments = judgments.take(np.arange(min(queries, len(judgments))))
    needed = np.unique(judgments.passage_rows)
    others = np.setdiff1d(np.arange(len(collection.corpus)), needed)
    rows = np.sort(np.concatenate([needed, others[: max(0, passages - len(needed))]]))
    corpus, part = collection.corpus.select(rows), collection.queries.select(judgments.query_rows)
    wanted = set(part["id"])
    qrels = collection.qrels[split].filter(lambda row: row["query_id"] in wanted and row["relevance"] > 0)
    return Collection(f"{collection.name}, a part", corpus, part, {split: qrels})


def ratio_of(ours: list[float], theirs: list[float]) -> str:
    """Median and range of the paired ratios."""
    ratios = np.array(ours) / np.array(theirs)
    return f"{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})"


if __name__ == "__main__":
    print(describe_machine())
