"""Settings that every trainer of this library shares, on top of `transformers.TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import transformers

from hf_ar2.models.loading import bf16_is_faster
from hf_ar2.settings.fields import check_values, setting
from hf_ar2.settings.search import Settings
from hf_ar2.settings.text import RELEVANCE_LEVEL_HELP, ScoringConfig, StorageConfig
from hf_ar2.trainers.config_checks import check_combinations
from hf_ar2.training_lists.draws import SAMPLERS


@dataclass
class JointConfig(ScoringConfig, StorageConfig, transformers.TrainingArguments):  # type: ignore[misc]
    """What retriever, ranker and AR2 training have in common.

    Arguments of `transformers.TrainingArguments` work as usual, or are an error. Those listed below have other
    defaults here; an epoch is a round.

    Example:
        >>> args = JointConfig(output_dir="runs/mine", num_negatives=7, eval_metrics=["mrr@10"])
        >>> args.pool_depth, args.eval_split, args.sampler
        (100, 'dev', 'uniform')
        >>> JointConfig(output_dir="runs/mine", sampler="best")
        Traceback (most recent call last):
        ValueError: sampler='best': expected one of uniform, top, simans
    """

    learning_rate: float = setting(
        1e-5,
        "Peak learning rate (of the retriever, where two models are trained).",
        paper="AR2: 1e-5",
        minimum=0,
    )
    warmup_steps: float = setting(
        0.1,
        "Warm-up steps of a model; below 1: a share of the model's own steps.",
        unit="steps",
        paper="AR2: 0.1",
        minimum=0,
    )
    ranker_learning_rate: float | None = setting(
        None,
        "Peak learning rate of the ranker. None: learning_rate.",
        paper="AR2: 1e-6 (MS MARCO: 5e-7)",
        minimum=0,
    )
    head_learning_rate: float | None = setting(
        None,
        "Peak learning rate of the ranker's head. None: the ranker's. A new head needs about ten times that rate.",
        minimum=0,
    )
    ranker_warmup_steps: float | None = setting(
        None,
        "Warm-up of the ranker, in its own steps, as warmup_steps. None: warmup_steps.",
        unit="steps",
        minimum=0,
    )
    ranker_lr_scheduler_type: str | None = setting(
        None, "Schedule of the ranker (linear, cosine, constant, …). None: lr_scheduler_type."
    )
    decay_share: float = setting(
        0.1,
        "With warmup_stable_decay: the last share of a model's own steps, in which its learning rate falls to zero.",
        above=0,
        maximum=1,
    )
    weight_decay: float = setting(
        0.0, "Weight decay of AdamW, not applied to biases and norms.", paper="AR2: 0", minimum=0
    )
    float32_weights: bool = setting(
        True,
        "Train in float32 even if the weights were loaded in bf16 or fp16, which loses small updates.",
    )
    logging_steps: float = setting(
        10, "Steps between two entries of the log.", unit="steps", affects_result=False, above=0
    )
    eval_strategy: Literal["epoch", "steps", "no"] = setting(
        "epoch", "When to evaluate: epoch (every round), steps or no.", checked_on_resume=False
    )
    save_strategy: Literal["epoch", "steps", "no", "best"] = setting(
        "epoch",
        "When to write a checkpoint: epoch (every round), steps, no, or best (when an evaluation is the best so far, "
        "including those of the last step and, with eval_on_start, of the start).",
        affects_result=False,
    )
    save_total_limit: int | None = setting(
        2, "Checkpoints to keep.", unit="checkpoints", affects_result=False, minimum=1
    )
    merge_adapters: bool = setting(
        False,
        "Save models that have adapters (LoRA) with the adapters merged into the weights; checkpoints keep them apart.",
        checked_on_resume=False,
    )
    eval_on_start: bool = setting(True, "Evaluate before the first step.", checked_on_resume=False)

    matryoshka_dims: list[int] | None = setting(
        None,
        "Also train these first dimensions of the retriever's embeddings, so that they can be cut (truncate_dim): the "
        "loss is the mean over these widths and the full one. None: only the full width.",
        unit="dimensions",
        paper="Matryoshka: halved down to 8",
    )

    hub_token: str | None = field(default=None, repr=False)  # so that it is in no log

    train_split: str = setting("train", "Split of the qrels to train on.", minimum=1)
    eval_split: str = setting(
        "dev", "Split of the qrels to evaluate on during training.", checked_on_resume=False, minimum=1
    )
    relevance_level: int = setting(1, RELEVANCE_LEVEL_HELP, unit="grade", minimum=1)
    train_lists: list[str] | None = setting(
        None,
        "Folders of training lists, written by `hf-ar2 augment`; `collection`: the negatives that the collection came "
        "with. None: all lists are mined.",
        checked_on_resume=False,  # their content is compared instead
    )
    train_list_kinds: list[str] | None = setting(
        None, "Which lists of those folders to use: some of undenoised, denoised, pseudo. None: all."
    )
    mine: bool = setting(
        True,
        "With train_lists: whether to use mined lists of the training queries in addition to the stored ones.",
    )
    mine_with: str = setting(
        "retriever",
        "What finds candidates: retriever (its index, as in AR2 and ANCE) or bm25 (as in DPR), which encodes nothing.",
    )
    refresh: bool = setting(
        True, "Encode, index and mine in every round. False: once, before the first round."
    )
    refresh_mode: Literal["sync", "async"] = setting(
        "sync",
        "sync: training waits at a round's start until the corpus is encoded. async: it goes on with the former pool, "
        "and every step encodes a share of the corpus with the weights of the round's start.",
        paper="ANCE: async, in a second job",
    )
    max_staleness: int | None = setting(
        None,
        "With refresh_mode='async': steps from those weights to the pool that they find, at most a round. 0: as sync.",
        unit="steps",
        minimum=0,
    )
    refresh_device: str | None = setting(
        None,
        "With refresh_mode='async': a device that no training process uses, such as cuda:7. One more process on each "
        "machine encodes there while the others train; they wait for it where max_staleness ends. None: the training "
        "processes encode between their steps.",
        paper="ANCE: a second job on other GPUs",
        affects_result=False,
    )
    num_positives: int = setting(
        1, "Most positives in a list. A query with fewer leaves masked places.", unit="passages", minimum=1
    )
    num_negatives: int = setting(
        15, "Negatives in a list, besides its positives.", unit="passages", paper="AR2: 15", minimum=0
    )
    pool_depth: int = setting(
        100,
        "Candidates kept per training query.",
        unit="passages",
        paper="AR2: 100 (MS MARCO: 200)",
        minimum=1,
    )
    sampler: str = setting(
        "uniform",
        "How negatives are drawn from the candidates: uniform, top or simans.",
        paper="AR2: uniform",
    )
    simans_a: float = setting(
        0.5,
        "SimANS: sharpness, per squared unit of score. Cosine similarity needs values of several hundred.",
        paper="SimANS: 0.5 (dot product)",
        minimum=0,
    )
    simans_b: float = setting(
        0.0,
        "SimANS: the preferred difference of a negative's score to the positive's.",
        paper="SimANS: 0 or 1",
    )
    absolute_margin: float | None = setting(
        None,
        "Drop candidates that score above the query's positive (the mean, if there are several) minus this margin. "
        "None: keep them.",
        unit="units of score",
        paper="NV-Retriever (TopK-MarginPos): 0.05",
        minimum=0,
    )
    relative_margin: float | None = setting(
        None,
        "Drop candidates that score above (1 - margin) times the query's positive (the mean, if there are several): "
        "they may be relevant but unlabelled. None: keep them.",
        paper="NV-Retriever (TopK-PercPos): 0.05",
    )
    max_score: float | None = setting(
        None,
        "Drop candidates that score above this. None: keep them.",
        unit="units of score",
        paper="NV-Retriever (TopK-Abs): 0.7",
    )
    range_min: int = setting(
        0,
        "Drop this many candidates from the top, after the other filters.",
        unit="passages",
        paper="NV-Retriever (Top-K shifted by N): 10",
        minimum=0,
    )
    filter_answers: bool = setting(
        False, "Drop candidates that contain an answer string. Needs queries with answers."
    )
    filter_duplicates: bool = setting(
        True, "Drop candidates with the same text as one of the query's positives."
    )
    first_positive: bool = setting(
        False, "Always take a query's first positive instead of drawing one.", paper="AR2's code: True"
    )

    eval_metrics: list[str] = setting(
        list(Settings.metrics), "Metrics of the retriever.", checked_on_resume=False, minimum=1
    )
    eval_depth: int = setting(
        100, "Passages retrieved per evaluated query.", unit="passages", minimum=1, checked_on_resume=False
    )
    rerank_depth: int = setting(
        20,
        "Passages per query that the ranker reorders in evaluations. 0: the ranker is not evaluated.",
        unit="passages",
        minimum=0,
        checked_on_resume=False,
    )
    eval_queries: int | None = setting(
        None,
        "Evaluate on this many queries of the split (a seeded sample). None: all.",
        unit="queries",
        checked_on_resume=False,
        minimum=1,
    )
    eval_passages: int | None = setting(
        None,
        "Evaluations during training search this many passages: the positives of the evaluated queries, and what "
        "ranks highest for them before the first step. None: the whole corpus.",
        unit="passages",
        minimum=1,
    )
    patience: int | None = setting(
        None,
        "Stop after this many evaluations in which the trained model's first metric does not rise. With "
        "warmup_stable_decay the decay begins then. None: train all steps.",
        unit="evaluations",
        minimum=1,
    )
    encode_tokens: int | None = setting(
        None,
        "Padded tokens of a batch when the corpus is encoded or pairs are ranked. None: 2048 on a CPU, 65536 on a "
        "GPU.",
        unit="tokens",
        minimum=1,
        checked_on_resume=False,
    )
    mini_batch_size: int | None = setting(
        None,
        "Gradient caching: rows (queries, passages or pairs) encoded at a time, so that a step's memory does not grow "
        "with its lists. None: all at once.",
        unit="rows",
        minimum=1,
        checked_on_resume=False,
    )
    shard_weights: bool = setting(
        False,
        "Keep weights, gradients and optimizer states in shards, one for each process (FSDP2), in addition to a whole "
        "copy of the weights that encodes. Not with RocketQAv2 and LTRe.",
        checked_on_resume=False,
    )
    step_tokens: int | None = setting(
        None,
        "Padded tokens of a chunk within a step. None: 2048 on a CPU, no limit on a GPU.",
        unit="tokens",
        checked_on_resume=False,
        minimum=1,
    )

    def __post_init__(self) -> None:
        check_values(self)
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            self.bf16 = not self.fp16 and bf16_is_faster("cuda" if on_gpu else "cpu")
        if self.bf16 and not on_gpu and not torch.backends.mps.is_available():
            self.use_cpu = True  # without a GPU, transformers accepts bf16 only with this
        if not on_gpu:
            self.dataloader_pin_memory = False
        if self.encode_tokens is None:
            self.encode_tokens = 65536 if on_gpu else 2048
        super().__post_init__()
        self._check("sampler", self.sampler, SAMPLERS)
        self._check("mine_with", self.mine_with, ("retriever", "bm25"))
        self._check("index_dtype", self.index_dtype, ("float32", "float16"))
        self.check_passage_template()
        check_combinations(self)

    @property
    def distils_stored_scores(self) -> bool:
        """Whether the scores of `train_lists` are a teacher's, which the loss needs."""
        return False

    def check_dimension(self, dimension: int | None) -> None:
        """Check `matryoshka_dims` against the dimension of the retriever's embeddings.

        Raises:
            ValueError: one of them is larger.
        """
        largest = max(self.matryoshka_dims or [0])
        if dimension is not None and largest > dimension:
            raise ValueError(
                f"matryoshka_dims={self.matryoshka_dims}: the retriever's embeddings have {dimension} dimensions; "
                f"leave {largest} out"
            )

    @staticmethod
    def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
