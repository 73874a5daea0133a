"""Trainers: the two warm-ups, AR2, RocketQAv2 and LTRe."""

from hf_ar2.trainers.ar2 import AR2Config, AR2Trainer
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.ltre import LTReConfig, LTReTrainer
from hf_ar2.trainers.phases import Phase, PhaseCycle
from hf_ar2.trainers.ranker import RankerConfig, RankerTrainer
from hf_ar2.trainers.retriever import RetrieverConfig, RetrieverTrainer
from hf_ar2.trainers.rocketqa_v2 import RocketQAv2Config, RocketQAv2Trainer

__all__ = [
    "AR2Config",
    "AR2Trainer",
    "JointConfig",
    "JointTrainer",
    "LTReConfig",
    "LTReTrainer",
    "Phase",
    "PhaseCycle",
    "RankerConfig",
    "RankerTrainer",
    "RetrieverConfig",
    "RetrieverTrainer",
    "RocketQAv2Config",
    "RocketQAv2Trainer",
]
