"""Test collections (corpus, queries, qrels) as `datasets.Dataset`s, one reader per format."""

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.joined import join_collections
from hf_ar2.collections.judgments import Judgments
from hf_ar2.collections.problems import SKIPPABLE, CollectionError
from hf_ar2.collections.readers.beir import load_beir
from hf_ar2.collections.readers.beir_tables import load_beir_from_hub
from hf_ar2.collections.readers.dpr import load_dpr
from hf_ar2.collections.readers.load import load_collection
from hf_ar2.collections.readers.ms_marco import load_ms_marco
from hf_ar2.collections.readers.pairs import Source, load_pairs
from hf_ar2.collections.readers.python_packages import load_python_packages

__all__ = [
    "SKIPPABLE",
    "Collection",
    "CollectionError",
    "Judgments",
    "Source",
    "join_collections",
    "load_beir",
    "load_beir_from_hub",
    "load_collection",
    "load_dpr",
    "load_ms_marco",
    "load_pairs",
    "load_python_packages",
]
