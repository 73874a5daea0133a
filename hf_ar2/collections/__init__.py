"""Test collections (corpus, queries, qrels) as `datasets.Dataset`s, one reader per format."""

from __future__ import annotations

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.collections.problems import SKIPPABLE, CollectionError
from hf_ar2.collections.python_packages import load_python_packages

__all__ = ["SKIPPABLE", "Collection", "CollectionError", "Judgments", "load_collection", "load_python_packages"]


def load_collection(source) -> Collection:
    if str(source).startswith("python-packages:"):
        return load_python_packages(str(source).removeprefix("python-packages:").split(","))
    raise NotImplementedError
