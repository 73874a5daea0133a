"""What a trainer is called with, and checks of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sentence_transformers import CrossEncoder, SentenceTransformer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainingArguments

from hf_ar2.collections import Collection
from hf_ar2.losses.list_scores import ListLoss
from hf_ar2.models.joint import JointModel
from hf_ar2.trainers.evaluation import EvalRankings
from hf_ar2.training_lists.list_sampler import NegativeSampler

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer

# Arguments of `transformers.Trainer` that mean something else here, and what to pass instead.
_INSTEAD = {
    "model": "pass the models as retriever and ranker",
    "train_dataset": "pass a collection; its split train_split is trained on. A Dataset of pairs is one",
    "eval_dataset": "pass a collection; its split eval_split is evaluated on. A DatasetDict of pairs is one",
    "processing_class": "leave it out; each model has its own tokenizer",
    "tokenizer": "leave it out; each model has its own tokenizer",
    "data_collator": "leave it out; pass sampler to choose the negatives of a list",
    "model_init": "pass the models as retriever and ranker",
    "compute_loss_func": "pass loss, a function of hf_ar2.losses.ListScores",
}

NO_PREDICT = (
    "predict() is not implemented: call evaluate() for metrics on `eval_split`, trainer.retrieval.retrieve() for the "
    "passages that queries retrieve, or search with the saved models (hf_ar2.search.SearchSystem)"
)
NO_DATALOADER = (
    "get_eval_dataloader() is not implemented: an evaluation searches the collection and loads no batches; call "
    "evaluate()"
)


class TrainerOptions(TypedDict, total=False):
    """The keyword arguments of every trainer, see `JointTrainer`."""

    loss: ListLoss | None
    sampler: NegativeSampler | None
    compute_metrics: Callable[[EvalRankings], dict[str, float]] | None
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[Optimizer | None, LRScheduler | None]


def check_arguments(
    trainer: JointTrainer, retriever: Any, ranker: Any, args: Any, collection: Any, unknown: dict[str, Any]
) -> None:
    """Raise for arguments in the wrong place.

    Args:
        unknown: keywords that the trainer does not have.

    Raises:
        TypeError: a keyword that the trainer does not take, with what to pass instead; retriever and ranker, or args
            and collection, are swapped; args are of another class.
    """
    name = type(trainer).__name__
    for keyword in unknown:
        instead = f"; {_INSTEAD[keyword]}" if keyword in _INSTEAD else ""
        raise TypeError(f"{name}() takes no argument {keyword!r}{instead}")
    if isinstance(retriever, CrossEncoder) or isinstance(ranker, SentenceTransformer):
        raise TypeError(
            f"{name}: retriever is a {type(retriever).__name__}, ranker is a {type(ranker).__name__}; expected a "
            "SentenceTransformer as retriever and a CrossEncoder as ranker: pass the retriever first"
        )
    if isinstance(collection, TrainingArguments) or isinstance(args, Collection | str | Path):
        raise TypeError(
            f"{name}: args and collection are swapped: args is a {type(args).__name__}, collection is a "
            f"{type(collection).__name__}"
        )
    if not isinstance(args, trainer.config_class):
        raise TypeError(
            f"{name}: args is a {type(args).__name__}, expected a {trainer.config_class.__name__}"
        )


def check_swapped(trainer: JointTrainer, model: JointModel) -> None:
    """Raise where the name of a ranker was given as the retriever, and the reverse.

    Raises:
        ValueError: the retriever was loaded from a sequence classifier, and the ranker from a model that is none.
    """
    saved_as = [str(((one.config and one.config.architectures) or [""])[0]) for one in model.models.values()]
    if [name.endswith("ForSequenceClassification") for name in saved_as] == [True, False]:
        raise ValueError(
            f"{type(trainer).__name__}: retriever and ranker are swapped: the retriever was loaded from a "
            f"{saved_as[0]}, the ranker from a {saved_as[1]}; pass the retriever first"
        )


def check_launch(trainer: JointTrainer) -> None:
    """Raise for launches that would train something else without saying so.

    Raises:
        NotImplementedError: DeepSpeed, FSDP or `DataParallel`, with the reason.
    """
    if trainer.is_deepspeed_enabled:
        raise NotImplementedError(
            "DeepSpeed: its optimizers treat a missing gradient as zero, so the model that is frozen in this phase "
            "would be updated; launch with plain DDP (accelerate launch --multi_gpu)"
        )
    if trainer.is_fsdp_enabled:
        raise NotImplementedError(
            "FSDP by accelerate: processes encode different numbers of batches of the corpus, which a sharded model "
            "cannot; launch with plain DDP (accelerate launch --multi_gpu), and set shard_weights=True to shard"
        )
    if trainer.args.parallel_mode.value == "not_distributed" and trainer.args.n_gpu > 1:
        raise NotImplementedError(
            f"{trainer.args.n_gpu} GPUs in one process would run torch.nn.DataParallel, which cannot split lists; "
            "use accelerate launch --multi_gpu, or show one GPU (CUDA_VISIBLE_DEVICES=0)"
        )
