"""A run folder as a recipe leaves it, without the models: seeded rankings, every row better than the last."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import yaml

from hf_ar2.collections import Collection
from hf_ar2.evaluation import paired_test, write_run
from hf_ar2.evaluation.runs import run_file
from hf_ar2.evaluation.systems import evaluated_queries, measure, rankings_of_systems

METRICS = ("mrr@10", "ndcg@10")
# row -> how far positives are lifted, and whether there is a ranker
ROWS = {"zero-shot": (0.0, False), "warm-up": (0.5, True), "AR2": (1.0, True)}
LOGS = {
    "retriever": [
        {"epoch": 0.5, "step": 10, "loss/retriever": 1.5},
        {"epoch": 1.0, "step": 20, "loss/retriever": 1.0},
        {"epoch": 1.0, "step": 20, "train_runtime": 3.0},
    ],
    "ar2": [
        {"epoch": 0.0, "step": 0, "eval_retriever_mrr@10": 0.4, "eval_pipeline_mrr@10": 0.5},
        {"epoch": 0.0, "step": 0, "pool/outscored": 0.6},
        {
            "epoch": 0.5,
            "step": 5,
            "loss/ranker": 0.7,
            "loss/adversarial": float("nan"),
            "ranker_accuracy": 0.5,
        },
        {"epoch": 1.0, "step": 10, "eval_retriever_mrr@10": 0.6, "eval_pipeline_mrr@10": 0.7},
        {
            "epoch": 1.0,
            "step": 10,
            "train_runtime": 8.0,
            "seconds/refresh": 2.5,
            "seconds/ranker": 1.5,
            "seconds/retriever": 3.0,
        },
    ],
}


def make_tiny_run(
    folder: Path,
    source: str,
    collection: Collection,
    *,
    name: str = "tiny",
    seed: int = 0,
    depth: int = 20,
    lifts: dict[str, tuple[float, bool]] = ROWS,
) -> Path:
    """Write the run's files; `source` is what its recipe calls the collection."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row: {"retriever": "light"} for row in lifts}
    stages = {"retriever": {"trainer": "retriever"}, "ar2": {"trainer": "ar2"}}
    recipe = {
        "name": name,
        "collection": source,
        "stages": stages,
        "evaluation": {"rows": rows, "metrics": list(METRICS), "splits": ["test"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    machine = {"python": "3.11", "processor": "Some CPU", "cores": 2, "threads": 1}
    (folder / "environment.json").write_text(json.dumps({**machine, "packages": {"torch": "2.13.0"}}))
    for stage, log in LOGS.items():
        place = folder / "stages" / stage
        place.mkdir(parents=True, exist_ok=True)
        (place / "done.json").write_text(json.dumps({"seconds": 10.0, "steps": log[-1]["step"]}))
        (place / "trainer_state.json").write_text(json.dumps({"log_history": log}))

    query_rows = evaluated_queries(collection, "test")
    query_ids = np.asarray(collection.queries["id"], object)[query_rows].tolist()
    passage_ids = list(collection.corpus["id"])
    means: dict[str, dict] = {}
    tests: dict[str, dict] = {}
    before: np.ndarray | None = None
    pipeline_before: np.ndarray | None = None
    for row, (lift, ranked) in lifts.items():
        scores, found = _rankings(collection, rng, lift, depth)
        ranker = rng.normal(0, 2, (len(query_rows), 5)).astype(np.float32) if ranked else None
        systems = rankings_of_systems(scores, found, ranker, retriever_temperature=1.0)
        values = {}
        for system, (ranking, shown) in systems.items():
            path = run_file(folder, row, "test", system)
            write_run(path, query_ids, passage_ids, ranking, shown, tag=f"{row}-{system}")
            values[system] = measure(collection, "test", ranking, METRICS)
        means[row] = {
            "test": {
                system: {metric: float(value.mean()) for metric, value in measured.items()}
                for system, measured in values.items()
            }
        }
        chief = values["retriever"]["mrr@10"]
        compared = {} if before is None else {"retriever": dataclasses.asdict(paired_test(chief, before))}
        if ranked:
            both = values["pipeline"]["mrr@10"]
            compared["pipeline"] = dataclasses.asdict(paired_test(both, chief))
            if pipeline_before is not None:
                compared["pipeline_before"] = dataclasses.asdict(paired_test(both, pipeline_before))
            pipeline_before = both
        tests[row], before = {"test": compared}, chief
    (folder / "metrics.json").write_text(json.dumps(means))
    (folder / "significance.json").write_text(json.dumps({"metric": "mrr@10", "tests": tests}))
    return folder


def _rankings(
    collection: Collection, rng: np.random.Generator, lift: float, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 and passage rows int64 `[Q, depth]`: random passages, and a positive that is scored higher."""
    judgments, total = collection.judgments("test"), len(collection.corpus)
    positives = judgments.passage_rows[judgments.offsets[:-1]]
    others = 1 + rng.choice(total - 1, depth - 1, replace=False)
    found = (positives[:, None] + np.append(0, others)) % total
    scores = rng.uniform(0, 1, found.shape).astype(np.float32)
    scores[:, 0] += lift * rng.uniform(0, 1, len(found)).astype(np.float32)
    order = np.argsort(-scores, axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)
