"""Values that no field of a recipe takes: path in the recipe → values. Each is an error before anything runs."""

from __future__ import annotations

import datetime
from typing import Any

INF, NAN = float("inf"), float("nan")
NO_TEXT = [None, 3, True, ["data"], {"a": 1}, ""]
NO_COUNT = [None, 0, -1, 1.5, "8", "ten", True, [1], NAN]
NO_RATE = [None, -1e-5, "fast", True, [1e-5], NAN, INF]
NO_FLAG = [None, "false", "maybe", 1, 0.0, [True]]
NO_MAPPING = [None, [], "a", 3, False]
NO_LIST = [None, "test", 3, {"a": 1}, [3], [None], [["test"]], []]

BAD_VALUES: dict[str, list[Any]] = {
    "name": [None, 3, "../up", "/up", "a\\b", "nul", ".hidden", "a//b", ["a"]],
    "collection": [*NO_TEXT, datetime.date(2024, 1, 1)],
    "seed": [None, 1.5, -1, 2**32, "7", True, NAN],
    "models": NO_MAPPING,
    "args": NO_MAPPING,
    "stages": NO_MAPPING,
    "evaluation": NO_MAPPING,
    "minutes": [0, -5, "ten", True, NAN, INF, [5]],
    "clock": [None, "sun", 3, True],
    "guard": [3, ["a"], True],
    "questions": [3, ["a"], ""],
    "models.light": NO_MAPPING,
    "models.light.model": NO_TEXT,
    "models.light.max_length": [0, -5, "abc", 1.5, True, [5]],
    "models.light.layers": ["0", 3, [-1], [0.5], ["0"], [True], {"a": 1}],
    "models.light.dropout": [-0.1, 1.5, "none", True, NAN],
    "models.light.pooling": ["max", 3, True],
    "models.light.similarity": ["l2", 3],
    "models.light.separate_towers": ["false", 1, "maybe"],
    "models.light.prompts": ["query: ", {"query": 3}, ["a"]],
    "models.light.dtype": ["int8", 16],
    "models.light.trust_remote_code": NO_FLAG,
    "models.light.revision": [3, ["main"]],
    "stages.warm": NO_MAPPING,
    "stages.warm.trainer": [None, "gan", 3, ["retriever"], True],
    "stages.warm.retriever": [None, 3, ["light"], {}, {"from": None}, {"from": "light", "layers": "0"}],
    "stages.warm.lists": [None, "augmented", 3, [3]],
    "stages.warm.args": NO_MAPPING,
    "stages.warm.share": [None, 0, -1, "half", True],
    "stages.warm.min_steps": [None, 0, "ten", True],
    "stages.warm.max_epochs": [None, 0, -1, "one", NAN],
    "stages.warm.args.max_steps": [None, 1.5, "ten", True, [5], -2, NAN],
    "stages.warm.args.learning_rate": NO_RATE,
    "stages.warm.args.per_device_train_batch_size": NO_COUNT,
    "stages.warm.args.gradient_accumulation_steps": NO_COUNT,
    "stages.warm.args.steps_per_round": [0, 1.5, "ten", True],
    "stages.warm.args.num_negatives": [None, -1, 1.5, "one", True],
    "stages.warm.args.weight_decay": NO_RATE,
    "stages.warm.args.warmup_steps": [None, -1, "0.1", True, NAN],
    "stages.warm.args.eval_strategy": [None, "sometimes", 3, True],
    "stages.warm.args.contrast": [None, "triplet", 3],
    "stages.warm.args.sampler": [None, "best", 3],
    "stages.warm.args.cross_batch": NO_FLAG,
    "stages.warm.args.train_split": NO_TEXT,
    "stages.warm.args.train_lists": ["lists", 3, [3]],
    "stages.warm.args.eval_metrics": [*NO_LIST, ["mrr@0"], ["accuracy@1"]],
    "stages.warm.args.hub_token": [3, ["hf_x"], True],
    "stages.joint.args.num_rounds": NO_COUNT,
    "stages.joint.args.teacher_gate": [None, "maybe", True, 3],
    "stages.joint.args.adversarial_weight": [None, -0.1, 1.1, "half", NAN, True],
    "args.max_passage_length": [0, -1, 1.5, "long", True],
    "args.max_query_length": NO_COUNT,
    "args.bf16": ["true", 1, "maybe"],
    "args.fp16": ["true", 1],
    "args.use_cpu": ["no", 1, None],
    "args.max_grad_norm": [None, -1, "one", True, INF],
    "args.adam_beta1": [-0.1, 1.5, "x"],
    "args.passage_template": [3, "{title}", "{text", "{text} {author}"],
    "args.ranker_temperature": [0, -1, "hot", NAN, None],
    "args.encode_tokens": [0, -1, "many", 1.5],
    "evaluation.rows": NO_MAPPING,
    "evaluation.splits": NO_LIST,
    "evaluation.metrics": NO_LIST,
    "evaluation.depth": NO_COUNT,
    "evaluation.rerank_depth": [None, -1, 1.5, "ten", True, 21, INF],
    "evaluation.test_metric": [None, 3, True],
    "evaluation.report_split": [None, 3, ["test"]],
    "evaluation.choose_on": [3, ["dev"], True],
    "evaluation.pipeline_weight": [-1, "heavy", True, NAN, INF],
    "evaluation.lexical": NO_FLAG,
    "evaluation.rows.after": NO_MAPPING,
    "evaluation.rows.after.retriever": [None, 3, ["warm"], {}, "absent"],
    "evaluation.rows.after.ranker": [None, 3, "absent"],
    "evaluation.rows.after.index_factory": [None, 3, ""],
    "evaluation.rows.after.search_parameters": [16, ["nprobe=16"]],
}

# Arguments of `hf-ar2 train RECIPE` and `recipes/run.py RECIPE`, and what their error names.
BAD_OVERRIDES: dict[str, list[str]] = {
    "models.light.layers": ["[1", "'", "{", "0", "[0"],
    "warm.max_steps": ["ten", "1.5", "null", "[1", "2024-13-45", "9" * 5000],
    "learning_rate": ["nan", "fast", "-1", ".inf"],
    "seed": ["1.5", "-1", "a: b", "&a [*a]", "!!python/object:os.system x"],
    "evaluation.depth.more": ["3"],
    "models.light": ["null", "3"],
    "stages": ["[]"],
    "absent": ["3"],
    "absent.max_steps": ["3"],
}


def recipe() -> dict[str, Any]:
    """A small recipe without an error, all of whose parts have fields."""
    return {
        "name": "tiny",
        "collection": "data",
        "seed": 3,
        "models": {"light": {"model": "tiny-retriever", "max_length": 32}},
        "args": {"eval_strategy": "no", "eval_on_start": False, "use_cpu": True},
        "stages": {
            "warm": {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 6}},
            "joint": {"trainer": "ar2", "retriever": "warm", "ranker": "warm", "args": {"num_rounds": 1}},
        },
        "evaluation": {
            "splits": ["test"],
            "metrics": ["mrr@10"],
            "depth": 20,
            "rerank_depth": 10,
            "rows": {"before": {"retriever": "light"}, "after": {"retriever": "warm", "ranker": "joint"}},
        },
    }


def with_value(path: str, value: Any) -> dict[str, Any]:
    """The recipe with another value at a path of names with dots between them."""
    body = place = recipe()
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    return body
