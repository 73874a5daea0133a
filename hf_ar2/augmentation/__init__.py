"""Hybrid data augmentation (RocketQA, Qu et al., NAACL 2021; RocketQAv2, Ren et al., EMNLP 2021).

A retriever finds the first n passages of every query, a ranker scores them, and three kinds of training lists are
written: *undenoised* (labelled positives, any other retrieved passage as a negative), *denoised* (negatives only where
the ranker is sure of irrelevance, and positives where it is sure of relevance) and *pseudo* (the same for queries
without labels). The papers' code has no such builder; their n and thresholds for RocketQAv2 are not published.
"""

from hf_ar2.augmentation.false_negatives import Suspect, read_false_negatives
from hf_ar2.augmentation.hybrid import augment
from hf_ar2.settings.augment import AugmentConfig

__all__ = ["AugmentConfig", "Suspect", "augment", "read_false_negatives"]
