"""The base of every trainer here: a `transformers.Trainer` over a retriever and a ranker, in rounds."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from hf_ar2.cards.provenance import name_of, stages_of
from hf_ar2.collections import Collection, load_collection
from hf_ar2.encoding.length_limits import query_truncation_warning, truncation_line, truncations
from hf_ar2.models.joint import JointModel
from hf_ar2.models.loading import load_ranker, load_retriever, use_fast_attention
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.gradient_cache import GradientCache, average_gradients
from hf_ar2.trainers.lists import ListCollator, Positions, RoundSampler
from hf_ar2.trainers.log_lines import LogLines
from hf_ar2.trainers.patience import Patience
from hf_ar2.trainers.refusals import refuse_what_cannot_work
from hf_ar2.trainers.resuming import ResumableTrainer
from hf_ar2.trainers.retrieval import Retrieval, encoders_of
from hf_ar2.trainers.rounds import Rounds
from hf_ar2.trainers.schedule import parameter_groups, schedule
from hf_ar2.trainers.stored_lists import (
    read_stored_lists,
    with_stored_lists,
)
from hf_ar2.training_lists.list_sampler import ListSampler
from hf_ar2.training_lists.pool import CandidatePool, pool_statistics

logger = logging.get_logger(__name__)

_UNLIMITED = 1 << 30


class JointTrainer(ResumableTrainer):
    """Trains a retriever, a ranker, or both, in turns or together, on lists drawn from candidate pools.

    One epoch is one round: refresh (encode, index, mine), train, evaluate. A subclass says which phase a step
    belongs to (`phase`), which models the phase trains (`learners`), what it encodes (`needs`) and what its loss is
    (`phase_loss`).

    Args:
        args: settings.
        collection: a `Collection`, or what `load_collection` takes.
        retriever: a name, folder or `SentenceTransformer`; trained unless the subclass freezes it.
        ranker: a name, folder or `CrossEncoder`.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        NotImplementedError: DeepSpeed, FSDP or `DataParallel`, with the reason.
        ValueError: a split that does not exist or has no relevant passages.

    Example:
        ```python
        from hf_ar2.losses import listwise_cross_entropy
        from hf_ar2.trainers import JointConfig, JointTrainer


        class PlainRankerTrainer(JointTrainer):
            trained = ("ranker",)

            def needs(self, phase):
                return ("pairs",)

            def phase_loss(self, phase, outputs, batch):
                return listwise_cross_entropy(self.ranker_scores(outputs, batch["mask"]), batch["mask"]), {}


        trainer = PlainRankerTrainer(
            args=JointConfig(output_dir="runs/plain", num_negatives=7),
            collection="BeIR/scifact",
            retriever="sentence-transformers/all-MiniLM-L6-v2",  # finds the lists
            ranker="cross-encoder/ms-marco-MiniLM-L6-v2",
        )
        trainer.train()
        ```
    """

    loss_is_scaled_for_ga = False
    # Which children the optimizer updates.
    trained: tuple[str, ...] = ("retriever", "ranker")

    def __init__(
        self,
        args: JointConfig,
        collection: Collection | str | Path,
        retriever: str | SentenceTransformer | None = None,
        ranker: str | CrossEncoder | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ) -> None:
        # 1. Data and models
        loaded = collection if isinstance(collection, Collection) else load_collection(collection)
        # Headings that are queries are hidden from the passages that training reads.
        self.collection, self.stored = read_stored_lists(loaded.for_training(), args)
        self.collection_source = loaded.name if isinstance(collection, Collection) else str(collection)
        given = {"retriever": retriever, "ranker": ranker}
        self.sources = {role: name_of(model) for role, model in given.items() if model is not None}
        self.earlier = {role: stages_of(model) for role, model in given.items()}
        model = JointModel(
            None if retriever is None else load_retriever(retriever),
            None if ranker is None else load_ranker(ranker),
        )
        for name in ("retriever", "ranker"):
            child = getattr(model, name)
            if child is not None and name not in self.trained:
                child.requires_grad_(False)
        # 2. transformers.Trainer: device, accelerator, callbacks, state
        super().__init__(
            model=model,
            args=args,
            train_dataset=Positions(0),
            eval_dataset=self.collection.queries,
            data_collator=lambda positions: self.collator(positions),
            callbacks=callbacks,
            optimizers=optimizers,
        )
        refuse_what_cannot_work(self)
        self._print_readable_lines()
        self.args: JointConfig = args
        self.model: JointModel = model
        if args.bf16 and args.device.type == "cpu":
            use_fast_attention(model)
        # 3. Tokens, index, pools
        self.encoders = encoders_of(args)
        self.retrieval = self.make_retrieval()
        self.pool: CandidatePool | None = None
        # 4. Lists
        pool, known = self._pools(None)
        lists = ListSampler(
            pool=pool,
            known_positives=known,
            corpus_size=len(self.collection.corpus),
            num_negatives=args.num_negatives,
            num_positives=args.num_positives,
            seed=args.seed if args.data_seed is None else args.data_seed,
            sampler=args.sampler,
            simans_a=args.simans_a,
            simans_b=args.simans_b,
            first_positive=args.first_positive,
            hard_share=self.hard_share,
        )
        on_gpu = args.device.type != "cpu"
        self.collator = ListCollator(
            lists=lists,
            phases=self.phases,
            phase_positions=self._phase_positions,
            needs=self.needs,
            retriever_inputs=self.retrieval.retriever_inputs,
            ranker_inputs=self.retrieval.ranker_inputs,
            step_tokens=args.step_tokens or (_UNLIMITED if on_gpu else 2048),
            mini_batch_size=args.mini_batch_size,
        )
        self.train_dataset = Positions(self.lists_per_round)
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.seconds: dict[str, float] = defaultdict(float)
        self._learning_rates: dict[str, float] = {}
        self._resumed_log: dict[str, Any] | None = None
        # What evaluations decided, as plain data; part of a checkpoint.
        self.round_state: dict[str, Any] = {}
        self.add_callback(Rounds(self))
        if args.patience is not None:
            self.add_callback(Patience(self, args.patience))

    def _print_readable_lines(self) -> None:
        """Have `LogLines` in the place of transformers' own bar or printer; in a notebook its table stays."""
        callbacks = self.callback_handler.callbacks
        theirs = [callback for callback in callbacks if type(callback) in (ProgressCallback, PrinterCallback)]
        if theirs:  # the trainer's own comes after those that were given
            callbacks[callbacks.index(theirs[-1])] = LogLines(self.phases)

    def make_retrieval(self) -> Retrieval:
        """What the trainer retrieves and evaluates with."""
        return Retrieval(self.model.retriever, self.model.ranker, self.collection, self.args, self.encoders)

    # ---- What a subclass decides ------------------------------------------------------------------------------

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases; unless a subclass says otherwise one for each trained model, of its name."""
        return self.trained

    def learners(self, phase: str) -> tuple[str, ...]:
        """The models a step of the phase trains."""
        return (phase,)

    def phase(self, step: int) -> str:
        """The phase of a global step: a pure function, so that all ranks and a resumed run agree."""
        return self.phases[0]

    def phase_steps(self, phase: str, step: int) -> int:
        """How many of the steps before `step` belong to the phase."""
        return step if phase == self.phase(0) else 0

    def model_steps(self, model: str, step: int) -> int:
        """How many of the steps before `step` train the model."""
        return sum(self.phase_steps(phase, step) for phase in self.phases if model in self.learners(phase))

    def needs(self, phase: str) -> tuple[str, ...]:
        """What a step of the phase encodes: some of "queries", "passages", "pairs"."""
        raise NotImplementedError

    def teacher(self, phase: str) -> str | None:
        """The model that only teaches in this phase: run in evaluation mode, without gradient."""
        return None

    def phase_loss(
        self, phase: str, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The phase's loss (a scalar, mean over the local queries) and what to log beside it."""
        raise NotImplementedError

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of a round; one pass over the training lists unless a subclass says otherwise."""
        return -(-len(self.collator.lists.pool) // self.global_batch)

    @property
    def mines(self) -> bool:
        """Whether lists hold candidates of the retriever."""
        return self.args.num_negatives > 0 and self.args.mine

    def hard_share_of(self, progress: np.ndarray) -> np.ndarray | None:
        """Share of negatives from the pool, by progress in [0, 1); the rest is random. None: all of them."""
        return None

    # ---- Rounds -----------------------------------------------------------------------------------------------

    @property
    def global_batch(self) -> int:
        """Lists of one optimizer step, over all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)

    @property
    def lists_per_round(self) -> int:
        """Lists of one round, over all processes."""
        return self.steps_per_round * self.global_batch

    @property
    def planned_steps(self) -> int:
        """Optimizer steps that the settings ask for."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return int(np.ceil(self.args.num_train_epochs * self.steps_per_round))

    @property
    def end_step(self) -> int | None:
        """The last step where `patience` has chosen one, else None."""
        return self.round_state.get("end_step")

    @end_step.setter
    def end_step(self, step: int) -> None:
        """Choose the last step."""
        self.round_state["end_step"] = step

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: those planned, or fewer where `patience` has chosen the last one."""
        return self.planned_steps if self.end_step is None else self.end_step

    @property
    def watched_metric(self) -> str:
        """What `patience` watches, by its name in the evaluation: the first metric of the model that is trained."""
        system = "ranker" if self.trained == ("ranker",) else "retriever"
        return f"eval_{system}_{self.args.eval_metrics[0]}"

    @property
    def current_round(self) -> int:
        """The round the next step belongs to."""
        return self.state.global_step // self.steps_per_round

    def begin_round(self) -> None:
        """Refresh the index and mine, unless this round's pool is there already (a resumed run)."""
        number = self.current_round
        if not self.mines or self.state.global_step >= self.total_steps:
            return
        # A frozen retriever and BM25 find the same candidates in every round.
        moves = "retriever" in self.trained and self.args.mine_with == "retriever"
        again = self.args.refresh and moves
        if self.pool is None or (self.pool.round != number and again):
            self.pool = self.retrieval.mine(number)
            self.log({f"pool/{name}": value for name, value in pool_statistics(self.pool).items()})
        self.collator.lists.pool, self.collator.lists.known_positives = self._pools(self.pool)

    def _pools(self, mined: CandidatePool | None) -> tuple[CandidatePool, np.ndarray | None]:
        """What lists are drawn from: mined candidates (without any: positives alone), and the stored lists beside."""
        if mined is None and self.args.mine:
            mined = self.retrieval.pool_without_candidates()
        return with_stored_lists(mined, self.stored, self.retrieval.train_judgments)

    def hard_share(self, positions: np.ndarray) -> np.ndarray | None:
        """`hard_share_of` the progress these positions stand for."""
        return self.hard_share_of(positions / (self.planned_steps * self.global_batch))

    def _phase_positions(self, positions: np.ndarray) -> tuple[str, np.ndarray]:
        """The phase of a micro-batch, and its positions among the lists of that phase alone."""
        step = int(positions[0]) // self.global_batch
        phase = self.phase(step)
        return phase, positions - (step - self.phase_steps(phase, step)) * self.global_batch

    def _get_train_sampler(self, train_dataset: Any = None) -> RoundSampler:
        return RoundSampler(self.lists_per_round, lambda: self.current_round)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = []  # type: ignore[assignment]

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and say before what is cut at the length limits."""
        retrieval = self.retrieval
        cuts = truncations(retrieval.retriever_inputs, retrieval.ranker_inputs, retrieval.train_judgments)
        if self.is_world_process_zero():
            print(truncation_line(cuts), flush=True)
            if (warning := query_truncation_warning(cuts)) is not None:
                logger.warning(warning)
        return super().train(*args, **kwargs)

    # ---- Step -------------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As in `transformers.Trainer`; with `mini_batch_size` through a gradient cache, to the same gradients."""
        if self.args.mini_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        cache = GradientCache(self.accelerator.unwrap_model(model))
        loss = super().training_step(cache, inputs, num_items_in_batch)
        cache.backward()
        if self.accelerator.sync_gradients:
            average_gradients(list(cache.parameters()))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """One forward of everything the phase needs, then the phase's loss in fp32."""
        phase = inputs["phase"]
        outputs = model(
            queries=inputs.get("queries"),
            passages=inputs.get("passages"),
            pairs=inputs.get("pairs"),
            teacher=self.teacher(phase),
        )
        with torch.autocast(self.args.device.type, enabled=False):
            loss, logs = self.phase_loss(phase, outputs, inputs)
        self._count(f"loss/{phase}", loss)
        for name, value in logs.items():
            self._count(name, value)
        return (loss, outputs) if return_outputs else loss

    def retriever_scores(self, outputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Inner products of each query with the passages of its list, over the temperature; float32 `[B, L]`."""
        queries = outputs["query_embeddings"]
        passages = outputs["passage_embeddings"].view(*mask.shape, -1)
        return torch.einsum("bd,bld->bl", queries, passages) / self.retriever_temperature

    def ranker_scores(self, outputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Ranker logits of each list, float32 `[B, L]`, 0 under the mask."""
        scores = outputs["pair_scores"].new_zeros(mask.shape)
        return scores.masked_scatter(mask, outputs["pair_scores"])

    @property
    def retriever_temperature(self) -> float:
        """What retriever scores are divided by in a softmax."""
        return self.retrieval.retriever_temperature

    # ---- Optimizer --------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One AdamW with groups per model; it skips a model that has no gradient in a step, as two would."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.args, set(self.get_decay_parameter_names(self.model)))
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = cls(groups, **kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A learning rate schedule per model, each counting its own model's steps."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            models = [group["model"] for group in optimizer.param_groups]
            factors = [
                schedule(
                    self.args,
                    model,
                    partial(self.model_steps, model),
                    partial(self._total_model_steps, model, num_training_steps),
                )
                for model in models
            ]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _total_model_steps(self, model: str, planned: int) -> int:
        """Steps of the model in the whole run; fewer than planned once `patience` has chosen the last step."""
        return self.model_steps(model, planned if self.end_step is None else self.end_step)

    # ---- Logs and evaluation ----------------------------------------------------------------------------------

    def _count(self, name: str, value: Tensor) -> None:
        total = self._sums[name]
        total[0] += float(value.detach())
        total[1] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what the steps counted since the last entry, over all processes.

        The last entry of a run also has the seconds of this process spent on each phase, on `refresh` (encode, index,
        mine), `evaluation` and `saving`; of a resumed run those before it, too.
        """
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = self.encoders.processes.combine(np.array([self._sums[name] for name in names], np.float64))
            logs |= {name: float(total / count) for name, (total, count) in zip(names, sums, strict=True)}
            self._sums.clear()
            logs |= self._learning_rates
        if "train_runtime" in logs:
            logs |= {f"seconds/{name}": round(spent, 3) for name, spent in self.seconds.items()}
        super().log(logs, start_time)

    def forget_counts(self) -> None:
        """Drop what steps counted since the last log entry."""
        self._sums.clear()

    def set_length(self, **settings: Any) -> None:
        """Change settings that say how long the run is (`max_steps`, `num_rounds`, …), before it begins."""
        for name, value in settings.items():
            if not hasattr(self.args, name):
                raise ValueError(f"{name}: {type(self.args).__name__} has no such setting")
            setattr(self.args, name, value)
        if "num_rounds" in settings:
            self.args.num_train_epochs = settings["num_rounds"]
        self.train_dataset = Positions(self.lists_per_round)
        self.round_state = {}

    def after_step(self) -> None:
        """Called when the optimizer has moved the weights."""

    def note_learning_rates(self) -> None:
        """Keep the rates of the step that is being taken, for the log: `lr/retriever`, `lr/ranker`."""
        assert self.optimizer is not None
        for group in reversed(self.optimizer.param_groups):
            if "/encoder/" in group["name"]:
                self._learning_rates[f"lr/{group['model']}"] = group["lr"]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of retriever and pipeline on `eval_split`, with the index of the round.

        Returns:
            `eval_retriever_mrr@10`, `eval_pipeline_mrr@10`, …

        Raises:
            ValueError: an `eval_dataset` was given.
        """
        if eval_dataset is not None:
            raise ValueError(
                "eval_dataset: what is measured is the search of a whole collection for a split's queries, not a data "
                "set; leave it out, and name the split in eval_split"
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.retrieval.evaluate().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
