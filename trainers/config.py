"""Settings that every trainer of this library shares, on top of `transformers.TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.models.loading import bf16_is_faster
from hf_ar2.training_lists.draws import SAMPLERS


def setting(default: Any, text: str) -> Any:
    """A config field with its help text; the text names the unit and the paper's value."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class JointConfig(transformers.TrainingArguments):
    """What retriever, ranker and AR2 training have in common.

    Every argument of `transformers.TrainingArguments` works as usual. These have other defaults here:
    `learning_rate` 1e-5, `warmup_steps` 0.1 (a share of each model's own steps), `weight_decay` 0, `logging_steps` 10,
    `eval_strategy` and `save_strategy` "epoch" (an epoch is a round), `eval_on_start` True, `save_total_limit` 2,
    `dataloader_num_workers` 0 and `disable_tqdm` False. `bf16=None` turns bf16 autocast on where it pays (GPUs with
    bf16, CPUs with AMX).

    Lengths are in tokens, special tokens included, except where said.

    Example:
        >>> args = JointConfig(output_dir="runs/mine", num_negatives=7, eval_metrics=["mrr@10"])
        >>> args.pool_depth, args.eval_split, args.sampler
        (100, 'dev', 'uniform')
        >>> JointConfig(output_dir="runs/mine", sampler="best")
        Traceback (most recent call last):
        ValueError: sampler='best': expected one of uniform, top, simans
    """

    learning_rate: float = setting(
        1e-5, "Peak learning rate (of the retriever, where two models train). AR2: 1e-5."
    )
    warmup_steps: float = setting(
        0.1, "Warm-up: a share of the model's own steps if below 1, else steps. AR2: 0.1."
    )
    ranker_learning_rate: float | None = setting(
        None, "Peak learning rate of the ranker; None: learning_rate. AR2: 1e-6 (5e-7 on MS MARCO)."
    )
    head_learning_rate: float | None = setting(
        None,
        "Peak learning rate of the ranker's head; None: the ranker's. A fresh head wants ten times as much.",
    )
    ranker_warmup_steps: float | None = setting(
        None, "Warm-up of the ranker, in its own steps as warmup_steps; None: warmup_steps."
    )
    ranker_lr_scheduler_type: str | None = setting(
        None, "The ranker's schedule (linear, cosine, constant, …); None: lr_scheduler_type."
    )
    decay_share: float = setting(
        0.1, "warmup_stable_decay: the last share of a model's own steps, over which its rate goes to zero."
    )
    weight_decay: float = setting(0.0, "AdamW's weight decay, not on biases and norms. AR2: 0.")
    logging_steps: float = setting(10, "Steps between two entries of the log.")
    eval_strategy: str = setting("epoch", "When to evaluate; an epoch is a round.")
    save_strategy: str = setting("epoch", "When to write a checkpoint; an epoch is a round.")
    save_total_limit: int | None = setting(2, "Checkpoints kept.")
    eval_on_start: bool = setting(True, "Evaluate before the first step.")
    bf16: bool | None = setting(  # type: ignore[assignment]
        None, "bf16 autocast; None: where it pays (GPUs with bf16, CPUs with AMX)."
    )

    train_split: str = setting("train", "Split of the qrels to train on.")
    eval_split: str = setting("dev", "Split of the qrels to evaluate on during training.")
    max_query_length: int = setting(32, "Tokens a query is cut at. AR2: 32.")
    max_passage_length: int | None = setting(
        128, "Tokens a passage is cut at for the retriever; None: its own limit. AR2: 128."
    )
    max_pair_length: int | None = setting(
        160, "Tokens a (query, passage) pair is cut at for the ranker; None: its own limit. RocketQAv2: 160."
    )
    title_separator: str = setting(
        " ", "What stands between a passage's title and its text. AR2's inputs: ' [SEP] '."
    )

    train_lists: list[str] | None = setting(
        None, "Folders of training lists (written by `hf-ar2 augment`); None: all lists are mined."
    )
    train_list_kinds: list[str] | None = setting(
        None, "Which lists of those folders: some of undenoised, denoised, pseudo; None: all."
    )
    mine: bool = setting(
        True, "With train_lists: whether mined lists of the training queries stand beside the stored ones."
    )
    mine_with: str = setting(
        "retriever",
        "What finds candidates: retriever (its index, as AR2 and ANCE), or bm25, for which nothing is encoded (DPR).",
    )
    refresh: bool = setting(True, "Encode, index and mine anew every round; False: once, before the first.")
    num_positives: int = setting(
        1, "Positives in a list at most; a query with fewer leaves the rest under the mask."
    )
    num_negatives: int = setting(15, "Negatives in a list, beside its positives. AR2: 15.")
    pool_depth: int = setting(100, "Candidates kept per training query. AR2: 100 (200 on MS MARCO).")
    sampler: str = setting("uniform", "How negatives are drawn from the pool: uniform (AR2), top, or simans.")
    simans_a: float = setting(
        0.5,
        "SimANS: sharpness, per squared unit of score. SimANS: 0.5 for raw dot products; cosine wants hundreds.",
    )
    simans_b: float = setting(
        0.0, "SimANS: preferred score over the positive's, in units of score. SimANS: 0 or 1."
    )
    relative_margin: float | None = setting(
        None,
        "Drop candidates that score above (1 - margin) times the query's positive (the mean of several): they may be "
        "relevant and unlabelled. None: keep them. NV-Retriever: 0.05.",
    )
    filter_answers: bool = setting(
        False, "Drop candidates that contain an answer string (needs queries with answers)."
    )
    filter_duplicates: bool = setting(True, "Drop candidates with the text of one of the query's positives.")
    first_positive: bool = setting(
        False, "Always take a query's first positive instead of drawing one. AR2's code: True."
    )

    retriever_temperature: float | None = setting(
        None,
        "Divides retriever scores in every softmax; None: 0.05 for cosine, 1 for dot product. AR2: 1 (dot).",
    )
    ranker_temperature: float = setting(1.0, "Divides ranker scores where the ranker teaches. AR2: 1.")

    index_factory: str = setting(
        "Flat", "FAISS factory string of the index; inner product. AR2: Flat (exact)."
    )
    index_dtype: str = setting("float32", "Stored embeddings: float32 or float16.")
    eval_metrics: list[str] = setting(["mrr@10", "ndcg@10", "recall@100"], "Metrics of the retriever.")
    eval_depth: int = setting(100, "Passages retrieved per evaluated query.")
    rerank_depth: int = setting(
        20, "Passages of a query the ranker reorders; 0: the ranker is not evaluated."
    )
    eval_queries: int | None = setting(
        None, "Evaluate on this many queries of the split (a seeded sample); None: on all."
    )
    eval_passages: int | None = setting(
        None,
        "Evaluations during training search this many passages: the positives of the evaluated queries and what ranks "
        "highest for them before the first step; None: the whole corpus.",
    )
    patience: int | None = setting(
        None,
        "Stop after this many evaluations without a rise of the trained model's first metric; with "
        "warmup_stable_decay the decay begins there. None: take every step.",
    )
    encode_tokens: int | None = setting(
        None,
        "Padded tokens of a batch when the corpus is encoded or pairs are ranked; None: 2048 on a CPU, 65536 on a GPU.",
    )
    mini_batch_size: int | None = setting(
        None,
        "Gradient caching: rows (queries, passages or pairs) encoded at a time, so that a step's memory does not grow "
        "with its lists; None: everything at once.",
    )
    step_tokens: int | None = setting(
        None, "Padded tokens of a chunk within a step; None: 2048 on a CPU, no limit on a GPU."
    )
    cache_dir: str | None = setting(
        None, "Where tokenised texts are kept; None: `cache` in the output folder."
    )
    index_dir: str | None = setting(
        None,
        "Where indexes are kept, one folder per fingerprint, shared by everything that names the same folder; None: "
        "`index` in the output folder.",
    )

    def __post_init__(self) -> None:
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            self.bf16 = not self.fp16 and bf16_is_faster("cuda" if on_gpu else "cpu")
        if self.bf16 and not on_gpu and not torch.backends.mps.is_available():
            self.use_cpu = True  # transformers accepts bf16 without a GPU only when told so
        if not on_gpu:
            self.dataloader_pin_memory = False
        if self.encode_tokens is None:
            self.encode_tokens = 65536 if on_gpu else 2048
        super().__post_init__()
        self._check("sampler", self.sampler, SAMPLERS)
        self._check("mine_with", self.mine_with, ("retriever", "bm25"))
        self._check("index_dtype", self.index_dtype, ("float32", "float16"))
        for name in ("pool_depth", "eval_depth", "encode_tokens", "max_query_length", "num_positives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={self.mini_batch_size}: expected at least 1, or None")
        if not self.train_lists and (not self.mine or self.train_list_kinds):
            raise ValueError(
                "mine=False and train_list_kinds choose among stored lists: name them in train_lists"
            )
        if self.sampler == "simans" and self.train_lists and self.mine:
            raise ValueError(
                "sampler='simans' weighs differences of scores, but mined lists hold the retriever's and stored ones "
                "the ranker's: use mine=False, or another sampler"
            )
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share={self.decay_share}: expected a share above 0, at most 1")
        for name in ("patience", "eval_passages"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1, or None")
        if self.patience is not None and self.eval_strategy == "no":
            raise ValueError(
                "patience counts evaluations, but eval_strategy='no'; expected 'steps' or 'epoch'"
            )
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            raise ValueError(
                f"relative_margin={self.relative_margin}: expected a share of the positive's score, from 0 to below 1"
            )
        if self.num_negatives < 0 or self.rerank_depth < 0:
            raise ValueError("num_negatives and rerank_depth cannot be negative")
        if self.rerank_depth > self.eval_depth:
            raise ValueError(f"rerank_depth={self.rerank_depth} is more than eval_depth={self.eval_depth}")
        self._check_metrics()
        if (
            self.retriever_temperature is not None and self.retriever_temperature <= 0
        ) or self.ranker_temperature <= 0:
            raise ValueError("temperatures have to be positive")
        if self.simans_a < 0:
            raise ValueError(
                f"simans_a={self.simans_a}: expected 0 or more; below 0 it would prefer what is far from the positive"
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size=True would change the batch in the middle of a run, and rounds, phases and "
                "schedules are counted in batches; set per_device_train_batch_size, and mini_batch_size where memory "
                "is short"
            )
        if self.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers=True would keep the workers' old candidate pool after a refresh; "
                "leave it False"
            )
        for name in ("lr_scheduler_type", "ranker_lr_scheduler_type"):
            value = getattr(self, name)
            if value is not None and str(value).split(".")[-1].lower() not in SCHEDULES:
                raise ValueError(
                    f"{name}={value!r}: with two models in one optimizer these work: {', '.join(SCHEDULES)}"
                )

    def _check_metrics(self) -> None:
        """Refuse what would be found out only when a round has been trained and is evaluated."""
        if isinstance(self.eval_metrics, str) or not self.eval_metrics:
            raise ValueError(
                f"eval_metrics={self.eval_metrics!r}: expected a list of names such as ['mrr@10']"
            )
        evaluates = self.eval_strategy != "no" or self.eval_on_start
        for metric in self.eval_metrics:
            cut = parse_metric(metric)[1] or 0
            if evaluates and cut > self.eval_depth:
                raise ValueError(
                    f"eval_metrics={self.eval_metrics}: {metric} needs {cut} passages per query, but "
                    f"eval_depth={self.eval_depth}; raise eval_depth or name other eval_metrics"
                )

    @staticmethod
    def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}")


SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "warmup_stable_decay")
