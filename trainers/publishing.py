"""How a trainer writes the cards of its models, and publishes each in a separate repository."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from hf_ar2.cards.card import model_card, published_card
from hf_ar2.cards.facts import ROLES, Training, training_of_trainer
from hf_ar2.cards.hub import check_base_is_public, check_loads, make_repositories, publish
from hf_ar2.cards.mark import write_card
from hf_ar2.cards.provenance import name_of, remember_stages, settings_of, stages_of
from hf_ar2.collections.questions import query_sources
from hf_ar2.folders import temporary_folder
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.models.loading import has_separate_towers
from hf_ar2.models.lora import describe_adapters, has_adapters

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer

logger = logging.get_logger(__name__)

_UPLOADED = "_uploaded"


class Publisher:
    """Publishes the trained models, at the end or during training, see `hub_strategy`.

    With the strategies "checkpoint" and "all_checkpoints" the first of the two models also gets the whole checkpoint.
    After `hf download me/name-retriever --include "last-checkpoint/*"` a run resumes from it like from any other.

    Attributes:
        sources: role → the name, on a card, of the model that training starts from.
        previous_stages: role → the stages that other trainers of this process trained the model in.
        collection: the name of the collection on a card.
    """

    def __init__(self, trainer: JointTrainer, retriever: Any, ranker: Any, collection: Any) -> None:
        self.trainer = trainer
        given = {"retriever": retriever} | ({} if ranker is None else {"ranker": ranker})
        self.sources = {role: name_of(model) for role, model in given.items()}
        self.previous_stages = {role: stages_of(model) for role, model in given.items()}
        self.collection = str(collection) if isinstance(collection, str | Path) else trainer.collection.name

    @property
    def roles(self) -> tuple[str, ...]:
        """The models that were trained, which are saved with a card and published."""
        return tuple(role for role in ROLES if role in self.trainer.trained)

    # ---- How the models were trained --------------------------------------------------------------------------------

    def remember_stages(self) -> None:
        """Record on each trained model how it was trained, for the card after further training."""
        trainer = self.trainer
        for role in self.roles:
            stages = (*self._previous_stages(), trainer.training_summary())
            remember_stages(getattr(trainer.model, role), stages)

    def training(self, role: str) -> Training:
        """How the retriever or the ranker was trained, for its card."""
        trainer, args = self.trainer, self.trainer.args
        history = trainer.state.log_history
        best = trainer.state.best_global_step
        if args.load_best_model_at_end and best is not None:
            history = [entry for entry in history if entry["step"] <= best]
        return training_of_trainer(
            trainer.training_summary(),
            role,
            history,
            args.eval_split,
            args.rerank_depth,
            self._previous_stages(),
            query_sources(trainer.collection),
        )

    def write_cards(self, folder: Path) -> None:
        """Write README.md next to each trained model in a folder that `save_models` wrote."""
        for role in self.roles:
            card = model_card(self.training(role), folder / role)
            write_card(folder / role, card)

    def _previous_stages(self) -> list[dict[str, Any]]:
        stages: list[dict[str, Any]] = []
        for of_role in self.previous_stages.values():
            stages += [stage for stage in of_role if stage not in stages]
        return stages

    # ---- To the Hub -------------------------------------------------------------------------------------------------

    def make_repositories(self, token: str | None, private: bool | None) -> None:
        """Make the repositories before the first step, so that a wrong name or token fails at once."""
        args = self.trainer.args
        for role in self.roles:
            model = getattr(self.trainer.model, role)
            if not args.merge_adapters and not has_separate_towers(model):
                check_base_is_public(role, describe_adapters(model).get("base"))
        if self.trainer.is_world_process_zero():
            make_repositories(
                self.roles,
                self.name,
                private=args.hub_private_repo if private is None else private,
                token=token or args.hub_token,
            )

    def push_checkpoint(self, checkpoint: str) -> None:
        """Publish a checkpoint while training continues; a failure is only a warning, as the end publishes again."""
        trainer, args = self.trainer, self.trainer.args
        strategy = args.hub_strategy
        if not trainer.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running: Any = trainer.push_in_progress
        if running is not None and not running.is_done() and not args.hub_always_push:
            return
        trainer._finish_current_push()
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        # A copy, because the checkpoint may be deleted before it is uploaded.
        copy = trainer.output_folder / _UPLOADED
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(checkpoint, copy, copy_function=_linked_or_copied)
        folders = {role: copy / role for role in self.roles}
        place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint).name
        whole = strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        job = _in_background(
            publish,
            folders,
            self.name,
            self.cards(folders),
            private=args.hub_private_repo,
            token=args.hub_token,
            message=f"Training in progress, step {trainer.state.global_step}",
            revision=args.hub_revision,
            extra={place: copy} if whole else None,
        )
        trainer.push_in_progress = PushInProgress([job])  # type: ignore[assignment,arg-type]

    def finish_push(self) -> None:
        """Warn where the push that has just ended failed, and delete its copy."""
        trainer = self.trainer
        jobs: Any = getattr(trainer, "push_in_progress", None)
        for job in jobs.jobs if jobs is not None else ():
            if job.exception() is not None:
                logger.warning(f"A push during training failed: {job.exception()}")
        trainer.push_in_progress = None
        if trainer.is_world_process_zero():
            shutil.rmtree(trainer.output_folder / _UPLOADED, ignore_errors=True)

    @property
    def name(self) -> str:
        """The start of the repositories' names: `hub_model_id`, or the name of the output folder."""
        return self.trainer.args.hub_model_id or self.trainer.output_folder.absolute().name

    def cards(self, folders: Mapping[str, Path], **licences: str | None) -> partial[str]:
        """A function for `publish`, which writes the card of each folder."""
        return partial(
            published_card,
            trainings={role: self.training(role) for role in self.roles},
            folders=folders,
            retriever=self.trainer.output_folder / "retriever",
            licences=licences,
        )


def push_to_hub(
    trainer: JointTrainer,
    name: str | None = None,
    *,
    private: bool | None = None,
    license: str | None = None,
    data_license: str | None = None,
    index: bool = False,
    token: str | None = None,
    commit_message: str = "End of training",
    revision: str | None = None,
    replace_card: bool = False,
) -> dict[str, CommitInfo]:
    """Save the trained models, and publish them as `NAME-retriever` and `NAME-ranker`, standard checkpoints with cards.

    To be called on all processes; the first one publishes.

    Args:
        name: user or organisation, a slash, and a name; None: `hub_model_id`, or the name of the output folder.
        private: whether a new repository is visible only to you; None: `hub_private_repo`.
        license: of the models, such as `"apache-2.0"`; None: the base model's, where its own card says it.
        data_license: of the training data, in words.
        index: publish the index of the collection as the dataset `NAME-index` too.
        token: with write access; None: `hub_token`, or that of `hf auth login`.
        commit_message: of the commits.
        revision: the branch; None: `hub_revision`, or main.
        replace_card: replace a card on the Hub that a person wrote or edited.

    Returns:
        `"retriever"`, `"ranker"`, `"index"` → the commit (`.repo_url`, `.commit_url`); empty on other processes.

    Raises:
        ValueError, PermissionError, ConnectionError: as `hf_ar2.cards.hub.publish`.
    """
    publisher, args = trainer.publisher, trainer.args
    if index and "retriever" not in publisher.roles:
        raise ValueError("index=True: this trainer trains no retriever whose index could be published")
    trainer.save_model(_internal_call=True)
    searched = trainer.retrieval.refresh() if index else None  # encodes on all processes
    if not trainer.is_world_process_zero():
        return {}
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer._finish_current_push()
    folders = {role: trainer.output_folder / role for role in trainer.publisher.roles}
    with temporary_folder() as temporary:
        if searched is not None:
            folders["index"] = temporary
            frozen = (
                searched if isinstance(searched, FrozenIndex) else FrozenIndex.from_corpus_index(searched)
            )
            collection = trainer.collection
            frozen.save(folders["index"], collection.corpus["id"], {"collection": collection.name})
        for what, folder in folders.items():
            check_loads(what, folder)
        return publish(
            folders,
            name or publisher.name,
            publisher.cards(folders, license=license, data_license=data_license),
            private=args.hub_private_repo if private is None else private,
            token=token or args.hub_token,
            message=commit_message,
            revision=revision or args.hub_revision,
            replace_card=replace_card,
        )


def training_summary(trainer: JointTrainer) -> dict[str, Any]:
    """A training as plain data for a card: the fields of `hf_ar2.cards.facts.Stage` and more."""
    seconds = sum(trainer.step_log.seconds.values())  # including those before a resume
    return {
        "name": trainer.output_folder.absolute().name,
        "collection": trainer.publisher.collection,
        "trainer": trainer.method or type(trainer).__name__,
        "settings": settings_of(trainer.args),
        "sources": dict(trainer.publisher.sources),
        "trained": list(trainer.publisher.roles),
        "steps": trainer.state.global_step,
        "seconds": seconds or None,
        "passages": len(trainer.collection.corpus),
        "queries": len(trainer.retrieval.train_judgments),
        "adapters": {
            role: describe_adapters(getattr(trainer.model, role))
            for role in trainer.publisher.roles
            if has_adapters(getattr(trainer.model, role))
        },
    }


def _in_background(function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
    executor = ThreadPoolExecutor(1, thread_name_prefix="push")
    job = executor.submit(function, *args, **kwargs)
    executor.shutdown(wait=False)
    return job


def _linked_or_copied(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
