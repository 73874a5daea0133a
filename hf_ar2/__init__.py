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

# Where names live that are not in hf_ar2.trainers, which is above this package and only passed on.
_HOMES = {
    "Collection": "hf_ar2.collections",
    "join_collections": "hf_ar2.collections",
    "load_collection": "hf_ar2.collections",
    "CorpusIndex": "hf_ar2.index",
    "JointModel": "hf_ar2.models",
    "load_ranker": "hf_ar2.models",
    "load_retriever": "hf_ar2.models",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hf-ar2")
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "hf_ar2.trainers")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
