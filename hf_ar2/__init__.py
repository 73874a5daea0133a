"""Trains a retriever and a ranker together, on Hugging Face models (AR2, RocketQAv2, LTRe).

The names below are imported when they are first used, so that `import hf_ar2` stays quick and light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_ar2 import evaluation, losses, trainers

    __version__: str
    from hf_ar2.collections import Collection, load_collection
    from hf_ar2.index import CorpusIndex
    from hf_ar2.models.joint import JointModel
    from hf_ar2.models.loading import load_ranker, load_retriever
    from hf_ar2.trainers import (
        AR2Config,
        AR2Trainer,
        LTReConfig,
        LTReTrainer,
        RankerConfig,
        RankerTrainer,
        RetrieverConfig,
        RetrieverTrainer,
        RocketQAv2Config,
        RocketQAv2Trainer,
    )

__all__ = [
    "AR2Config",
    "AR2Trainer",
    "Collection",
    "CorpusIndex",
    "JointModel",
    "LTReConfig",
    "LTReTrainer",
    "RankerConfig",
    "RankerTrainer",
    "RetrieverConfig",
    "RetrieverTrainer",
    "RocketQAv2Config",
    "RocketQAv2Trainer",
    "__version__",
    "evaluation",
    "join_collections",
    "load_collection",
    "load_ranker",
    "load_retriever",
    "losses",
    "trainers",
]

# Packages that are attributes of this one: `hf_ar2.losses.ListScores`.
_PACKAGES = ("evaluation", "losses", "trainers")

# Where each name lives. The trainers are above this package, which never uses them: it only passes their names on.
_HOMES = {
    "Collection": "hf_ar2.collections",
    "join_collections": "hf_ar2.collections",
    "load_collection": "hf_ar2.collections",
    "CorpusIndex": "hf_ar2.index",
    "JointModel": "hf_ar2.models",
    "load_ranker": "hf_ar2.models",
    "load_retriever": "hf_ar2.models",
    "AR2Config": "hf_ar2.trainers",
    "AR2Trainer": "hf_ar2.trainers",
    "LTReConfig": "hf_ar2.trainers",
    "LTReTrainer": "hf_ar2.trainers",
    "RankerConfig": "hf_ar2.trainers",
    "RankerTrainer": "hf_ar2.trainers",
    "RetrieverConfig": "hf_ar2.trainers",
    "RetrieverTrainer": "hf_ar2.trainers",
    "RocketQAv2Config": "hf_ar2.trainers",
    "RocketQAv2Trainer": "hf_ar2.trainers",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hf-ar2")
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
