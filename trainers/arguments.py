"""The arguments of a trainer, checked before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn
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


def check_keywords(trainer: type[JointTrainer], given: dict[str, Any]) -> None:
    """Raise TypeError for a keyword of `transformers.Trainer` that the trainer lacks, and say what to pass instead."""
    for keyword in given.keys() & _INSTEAD.keys() - inspect.signature(trainer.__init__).parameters.keys():
        raise TypeError(f"{trainer.__name__}() takes no argument {keyword!r}; {_INSTEAD[keyword]}")


@contextmanager
def naming(role: str, model: Any) -> Iterator[None]:
    """Name the model in an error of the Hub, because the name may have been meant as a folder."""
    try:
        yield
    except OSError as error:
        if isinstance(model, str | Path) and not Path(model).exists():
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(
                f"{role} {str(model)!r}: found no such folder, and no model of this name on the Hub: {reason}"
            ) from error
        raise


def not_available(message: str) -> Callable[..., Any]:
    """A method of `transformers.Trainer` that the trainers do not have; its error says what to call instead."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(message)

    return method


def check_arguments(
    trainer: JointTrainer,
    retriever: Any,
    ranker: Any,
    args: Any,
    collection: Any,
    loss: Any,
    sampler: Any,
    unknown: dict[str, Any],
) -> None:
    """Raise TypeError or ValueError for arguments in the wrong place; `unknown` are keywords that the trainer lacks."""
    name = type(trainer).__name__
    for keyword in unknown:
        raise TypeError(f"{name}() takes no argument {keyword!r}")
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
    if sampler is not None and args.num_negatives == 0:
        raise ValueError(f"{name}: the sampler would not be called with num_negatives=0; expected at least 1")
    if loss is not None:
        _check_loss(name, loss)


def _check_loss(trainer: str, loss: Any) -> None:
    """Raise TypeError for a loss that cannot be called with scores alone."""
    name = getattr(loss, "__name__", type(loss).__name__)
    expected = "expected a function of one argument, a hf_ar2.losses.ListScores"
    if not callable(loss):
        raise TypeError(f"{trainer}: loss is a {name}; {expected}")
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"{trainer}: loss {name}{signature} cannot be called with scores alone ({error}); {expected}. Losses of "
            "sentence-transformers take texts, and do not fit"
        ) from None


def check_swapped(trainer: JointTrainer, model: JointModel) -> None:
    """Raise ValueError if the name of a ranker was given as the retriever, and the reverse."""
    saved_as = [str(((one.config and one.config.architectures) or [""])[0]) for one in model.models.values()]
    if [name.endswith("ForSequenceClassification") for name in saved_as] == [True, False]:
        raise ValueError(
            f"{type(trainer).__name__}: retriever and ranker are swapped: the retriever was loaded from a "
            f"{saved_as[0]}, the ranker from a {saved_as[1]}; pass the retriever first"
        )


def check_launch(trainer: JointTrainer) -> None:
    """Raise NotImplementedError for launches that would train something else: DeepSpeed, FSDP, `DataParallel`."""
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
