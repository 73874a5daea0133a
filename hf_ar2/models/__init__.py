"""Models: loading, the joint module of both, merging, and the properties of saved models."""

from hf_ar2.models.joint import JointModel
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.models.lora import merge_adapters

__all__ = ["JointModel", "load_ranker", "load_retriever", "merge_adapters"]
