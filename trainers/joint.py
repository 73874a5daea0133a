"""The base of every trainer here: a `transformers.Trainer` over a retriever and a ranker, in rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback

from hf_ar2.collections import Collection, Source, load_collection
from hf_ar2.lock import locked
from hf_ar2.losses.list_scores import ListLoss, ListScores, call_loss
from hf_ar2.losses.matryoshka import matryoshka_loss
from hf_ar2.models.joint import JointModel
from hf_ar2.models.loading import load_ranker, load_retriever, similarity_of
from hf_ar2.trainers.arguments import (
    NO_DATALOADER,
    NO_PREDICT,
    check_arguments,
    check_keywords,
    check_launch,
    check_swapped,
    naming,
    not_available,
)
from hf_ar2.trainers.async_refresh import Refresh
from hf_ar2.trainers.callbacks import Patience, Rounds, StepLog
from hf_ar2.trainers.checkpoints import Checkpoints, describe_run, write_checksums
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.evaluation import EvalRankings, Evaluation
from hf_ar2.trainers.gradient_cache import GradientCache, average_gradients
from hf_ar2.trainers.lists import (
    Positions,
    RoundSampler,
    make_collator,
    positions_alone,
    read_stored_lists,
    scores_of_lists,
)
from hf_ar2.trainers.log_lines import print_log_lines
from hf_ar2.trainers.phases import PhaseCycle
from hf_ar2.trainers.prepare import prepare_models
from hf_ar2.trainers.publishing import Publisher, push_to_hub, training_summary
from hf_ar2.trainers.retrieval import Retrieval, encoders_of
from hf_ar2.trainers.schedule import make_optimizer, make_scheduler
from hf_ar2.trainers.sharding import gather
from hf_ar2.training_lists.list_sampler import NegativeSampler
from hf_ar2.training_lists.pool import CandidatePool


class JointTrainer(Trainer):
    """Trains a retriever, a ranker, or both, in turns or together, on lists drawn from candidate pools.

    One epoch is one round: refresh (encode, index, mine), train, evaluate. A subclass says in which `phases` it trains
    which model, and their loss (`phase_loss`).

    Args:
        retriever: a name, folder or `SentenceTransformer`; trained unless the subclass freezes it.
        ranker: a name, folder or `CrossEncoder`; None where the method has none.
        args: settings.
        collection: a `Collection`, or what `load_collection` takes.
        loss: from `hf_ar2.losses.ListScores` to a scalar tensor, or to a tuple of one and a dict of tensors to log. It
            replaces the trainer's loss; the docstring of a trainer with several losses says which.
        sampler: draws the negatives of a list in place of `args.sampler`, see `NegativeSampler`.
        compute_metrics: from the `EvalRankings` of an evaluation to a dict of floats, logged as `eval_…`.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        NotImplementedError: DeepSpeed, FSDP or `DataParallel`, with the reason.
        TypeError: an argument in the wrong place, see `hf_ar2.trainers.arguments`.
        ValueError: a split that does not exist or has no relevant passages; names of models that are swapped.

    Example:
        ```python
        from hf_ar2.losses import listwise_cross_entropy
        from hf_ar2.trainers import JointConfig, JointTrainer, Phase, PhaseCycle

        class PlainRankerTrainer(JointTrainer):
            phases = PhaseCycle(Phase("ranker", trained=("ranker",), inputs=("pairs",)))

            def phase_loss(self, phase, scores):
                return listwise_cross_entropy(scores.ranker_scores, scores.mask), {}

        retriever, ranker = "sentence-transformers/all-MiniLM-L6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2"
        args = JointConfig(output_dir="runs/plain", num_negatives=7)
        PlainRankerTrainer(retriever, ranker, args, "BeIR/scifact").train()
        ```
    """

    args: JointConfig
    model: JointModel
    loss_is_scaled_for_ga = False
    phases: PhaseCycle  # every subclass has its own
    config_class: type[JointConfig] = JointConfig
    retrieval_class: type[Retrieval] = Retrieval
    method: str = ""  # the trainer's name in recipes and on cards

    def __new__(cls, *arguments: Any, **given: Any) -> Self:
        check_keywords(cls, given)
        return super().__new__(cls)

    def __init__(
        self,
        retriever: SentenceTransformer | str | Path,
        ranker: CrossEncoder | str | Path | None,
        args: JointConfig,
        collection: Collection | Source,
        *,
        loss: ListLoss | None = None,
        sampler: NegativeSampler | None = None,
        compute_metrics: Callable[[EvalRankings], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, LRScheduler | None] = (None, None),
        **unknown: Any,
    ) -> None:
        check_arguments(self, retriever, ranker, args, collection, loss, sampler, unknown)
        # 1. Data and models
        loaded = collection if isinstance(collection, Collection) else load_collection(collection)
        # Where headings are the queries, training reads the passages without them.
        judged = loaded.with_relevance_level(args.relevance_level, (args.train_split, args.eval_split))
        self.collection, self.stored = read_stored_lists(judged.for_training(), args)
        with naming("retriever", retriever):
            encoder = self.load_retriever(retriever)
        with naming("ranker", ranker):
            model = JointModel(encoder, None if ranker is None else load_ranker(ranker))
        check_swapped(self, model)
        # 2. transformers.Trainer: device, accelerator, callbacks, state
        if args.refresh_device is not None and args.n_gpu > 1:
            args._n_gpu = 1  # the others are not for DataParallel
        # What rounds and evaluations decided, as plain data; part of a checkpoint.
        self.round_state: dict[str, Any] = {}
        self.checkpoints = Checkpoints(self)
        self.publisher = Publisher(self, retriever, ranker, collection)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Positions(0),
            eval_dataset=self.collection.queries,
            compute_metrics=compute_metrics,  # type: ignore[arg-type]
            callbacks=callbacks,
            optimizers=optimizers,  # type: ignore[arg-type]
        )
        check_launch(self)
        self.whole = prepare_models(self)
        print_log_lines(self.callback_handler, self.phases.names)
        self.normalises = similarity_of(encoder) == "cosine"
        # 3. Tokens, index, pools
        self.encoders = encoders_of(args)
        self.retrieval = self.retrieval_class(
            self.whole.retriever, self.whole.ranker, self.collection, args, self.encoders
        )
        self.evaluation = self.make_evaluation()
        if args.metric_for_best_model and args.eval_strategy != "no" and compute_metrics is None:
            self.evaluation.check_best_metric()
        self.pool: CandidatePool | None = None
        self.refreshing = Refresh(self)
        # 4. Lists and losses
        self.collator = make_collator(self, sampler)
        # The data loader works ahead of the steps, so that its lists could come from the pool before a swap.
        self.data_collator = positions_alone if self.refreshing.is_async else self.collator
        self.loss = loss
        self.step_log = StepLog(self.encoders.processes)
        self.prepare_lists()
        self.add_callback(Rounds(self))
        if args.patience is not None:
            self.add_callback(Patience(self, args.patience))

    # ---- What a subclass decides ------------------------------------------------------------------------------

    def load_retriever(self, retriever: SentenceTransformer | str | Path) -> SentenceTransformer:
        """Load the retriever, unless it is loaded already."""
        return load_retriever(retriever)

    def make_evaluation(self) -> Evaluation:
        """The evaluation of the models on `eval_split`."""
        return Evaluation(self.retrieval)

    def phase_loss(self, phase: str, scores: ListScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The phase's loss (a scalar, mean over the local queries) and its terms, to log."""
        raise NotImplementedError

    def diagnostics(self, phase: str, scores: ListScores) -> dict[str, Tensor]:
        """Further values to log of a step, with any loss; computed without gradient."""
        return {}

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of a round: the setting of this name, or a pass over all lists where it is unset."""
        chosen: int | None = getattr(self.args, "steps_per_round", None)
        return chosen or -(-len(self.collator.lists.pool) // self.global_batch)

    def hard_share(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """A picklable function from positions to the share of negatives from the pool, not random ones; None: all."""
        return None

    @property
    def trained(self) -> tuple[str, ...]:
        """The models that the optimizer updates: those of all phases."""
        return self.phases.trained

    # ---- Rounds -----------------------------------------------------------------------------------------------

    @property
    def output_folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(str(self.args.output_dir))

    @property
    def global_batch(self) -> int:
        """Lists of one optimizer step, over all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)

    @property
    def planned_steps(self) -> int:
        """Optimizer steps that the settings ask for."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return int(np.ceil(self.args.num_train_epochs * self.steps_per_round))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: those planned, or fewer if `patience` or a time limit ends it."""
        chosen = (self.round_state.get(name) for name in ("end_step", "steps_in_time"))
        return min([self.planned_steps, *(step for step in chosen if step is not None)])

    @property
    def current_round(self) -> int:
        """The round the next step belongs to."""
        return self.state.global_step // self.steps_per_round

    def begin_round(self) -> None:
        """Refresh the index and mine, see `Refresh`."""
        self.gather_weights()
        mines = self.args.num_negatives > 0 and self.args.mine
        if mines and self.state.global_step < self.total_steps:
            self.refreshing.begin_round()
        self.prepare_lists()

    def prepare_lists(self) -> None:
        """Update the phases and the hard share of the collator, and the length of a round."""
        self.collator.phases = self.phases
        self.collator.lists.hard_share = self.hard_share()
        self.train_dataset = Positions(self.steps_per_round * self.global_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> RoundSampler:
        return RoundSampler(len(self.train_dataset), lambda: self.current_round)  # type: ignore[arg-type]

    # ---- Step -------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if "positions" in inputs:  # see `positions_alone`
            inputs = self.collator(inputs["positions"].tolist())
        return super()._prepare_inputs(inputs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As in `transformers.Trainer`; with `mini_batch_size` a gradient cache computes the same gradients."""
        if self.args.mini_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        cache = GradientCache(self.accelerator.unwrap_model(model))
        loss = super().training_step(cache, inputs, num_items_in_batch)
        cache.backward()
        if self.accelerator.sync_gradients:
            average_gradients(list(cache.parameters()))
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """One forward of everything the phase needs, then the phase's loss in fp32."""
        phase = inputs["phase"]
        step = self.phases[phase]
        outputs = model(**{kind: inputs[kind] for kind in step.inputs}, teacher=step.teacher)
        with torch.autocast(self.args.device.type, enabled=False):
            scores = self.list_scores(outputs, inputs)
            own = self.loss if step.own_loss else None
            loss_of = partial(self.phase_loss, phase) if own is None else partial(call_loss, own)
            dims = self.args.matryoshka_dims
            loss, logs = matryoshka_loss(loss_of, scores, dims, normalise=self.normalises)
            with torch.no_grad():
                logs = logs | self.diagnostics(phase, scores)
        self.step_log.add({f"loss/{phase}": loss, **logs})
        if not self.args.fp16 and not math.isfinite(loss.item()):  # fp16 skips steps that overflow
            place = f"{self.output_folder.name}, step {self.state.global_step + 1}, {phase}"
            raise self.step_log.not_finite(loss, scores, place, own is not None)
        return (loss, outputs) if return_outputs else loss

    def list_scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> ListScores:
        """The scores of a batch of the collator, from the outputs of `JointModel.forward`."""
        return scores_of_lists(outputs, batch, self.retrieval)

    def after_step(self) -> None:
        """Called when the optimizer has updated the weights."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One AdamW with groups per model; it skips a model that has no gradient in a step, as two would."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A learning rate schedule per model, each counting its own model's steps."""
        if self.lr_scheduler is None:
            self.lr_scheduler = make_scheduler(self, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are, or will be, in shards."""
        return self.whole is not self.model

    def gather_weights(self) -> None:
        """Bring the whole copy of sharded weights up to date; all processes call this."""
        if self.is_sharded:
            gather(self.model, self.whole)

    # ---- Logs and evaluation ----------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `transformers.Trainer`, with the values that `StepLog` has collected since the last entry."""
        logs |= self.step_log.entry(logs)
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics on `eval_split`: `eval_retriever_mrr@10`, `eval_pipeline_mrr@10`, …, those of `compute_metrics`.

        Args:
            eval_dataset: the name of another split of the collection, such as "test": all its queries search all
                passages, and the metrics are `test_retriever_mrr@10`, ….

        Raises:
            ValueError: there is no such split.
            TypeError: `compute_metrics` did not return a dict.
        """
        evaluation, prefix = self.evaluation.of_split(eval_dataset, metric_key_prefix)
        self.gather_weights()
        values = evaluation.metrics() | evaluation.own_metrics(self.compute_metrics)
        metrics = {f"{prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `transformers.Trainer`; with `save_strategy="best"` also saves the weights of the start."""
        metrics = super()._evaluate(trial, *args, **kwargs)
        if self.state.global_step == 0 and self.args.save_strategy == "best":
            self.checkpoints.save_start(metrics, trial)
        return metrics

    predict = not_available(NO_PREDICT)
    get_eval_dataloader = not_available(NO_DATALOADER)

    # ---- Runs, see `Checkpoints`, and the Hub, see `Publisher` ------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` continues from the newest complete checkpoint, exactly.

        Raises:
            FolderInUse: another run writes to the output folder.
            ValueError: there is no complete checkpoint to resume from; it has no optimizer; it is of a run with another
                collection, seed, batch, schedule or other setting that counts, or over other training lists.
        """
        with locked(self.output_folder) if self.is_world_process_zero() else nullcontext():
            checkpoint = self.checkpoints.find(resume_from_checkpoint)
            if self.is_world_process_zero():
                self.retrieval.print_truncations()
            eval_on_start = self.args.eval_on_start
            self.args.eval_on_start = eval_on_start and checkpoint is None  # the interrupted run did that
            try:
                result = super().train(checkpoint, *args, **kwargs)
            finally:
                self.args.eval_on_start = eval_on_start
                self.refreshing.close()
            self.publisher.remember_stages()
            if self.args.push_to_hub:
                self.push_to_hub()
            return result

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, which would take another step after a checkpoint of the last one."""
        if self.control.should_training_stop or self.state.global_step >= self.total_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    run_metadata = property(describe_run)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `transformers.Trainer`: `retriever/` and `ranker/` in a folder; all processes call this."""
        self.gather_weights()
        super().save_model(output_dir, _internal_call)
        self.checkpoints.share_models(Path(output_dir or self.output_folder))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.checkpoints.write_models(Path(output_dir or self.output_folder))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.checkpoints.writing_checkpoint(self.output_folder / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self.checkpoints.writing_optimizer(Path(output_dir)):
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.checkpoints.share_own_files(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.checkpoints.read_progress(Path(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.checkpoints.load_models(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.checkpoints.load_best()

    training_summary = training_summary
    push_to_hub = push_to_hub  # type: ignore[assignment]

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repositories before the first step, so that a wrong name or token fails at once."""
        self.publisher.make_repositories(token, private)
        self.hub_model_id = self.publisher.name  # type: ignore[assignment]
        self.push_in_progress = None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        write_checksums(Path(checkpoint_folder))
        self.publisher.push_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self.publisher.finish_push()
