"""Hybrid data augmentation (RocketQA, Qu et al., NAACL 2021; RocketQAv2, Ren et al., EMNLP 2021).

A retriever returns the first n passages of every query, a ranker scores them, and three kinds of training lists are
written: *undenoised* (labelled positives, all other retrieved passages as negatives), *denoised* (confidently
irrelevant passages as negatives, and confidently relevant ones as additional positives) and *pseudo* (the same for
queries without labels). The papers' code does not include this step, and RocketQAv2's n and thresholds are
unpublished.
"""

from hf_ar2.augmentation.false_negatives import Suspect, read_false_negatives
from hf_ar2.augmentation.hybrid import augment
from hf_ar2.settings.augment import AugmentConfig

__all__ = ["AugmentConfig", "Suspect", "augment", "read_false_negatives"]
