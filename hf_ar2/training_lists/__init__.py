"""Training lists: candidate pools, filters, samplers, stored lists."""

from hf_ar2.training_lists.pool import CandidatePool, build_pool
from hf_ar2.training_lists.stored import TrainingLists, load_training_lists, save_training_lists

__all__ = [
    "CandidatePool",
    "TrainingLists",
    "build_pool",
    "load_training_lists",
    "save_training_lists",
]
