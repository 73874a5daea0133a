"""The half of every trainer that records how its models were trained, and publishes them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from hf_ar2.cards.card import index_card, model_card
from hf_ar2.cards.facts import ROLES, Training, read_json, training_of_trainer
from hf_ar2.cards.hub import check_loads, make_repositories, publish
from hf_ar2.cards.provenance import _STAGES, settings_of
from hf_ar2.index.frozen import ABOUT_FILE, FrozenIndex
from hf_ar2.models.joint import JointModel
from hf_ar2.models.saved import read_retriever

logger = logging.get_logger(__name__)

_UPLOADED = "_uploaded"


class PublishingTrainer(Trainer):
    """A `transformers.Trainer` over two models that writes their cards and publishes each in its own repository.

    `push_to_hub=True` publishes while training goes on: at every save (`hub_strategy="every_save"`), or at the end
    alone ("end"). With "checkpoint" and "all_checkpoints" the whole checkpoint is beside the first of the two models;
    downloaded (`hf download me/name-retriever --include "last-checkpoint/*"`), it is resumed from like any other.
    """

    model: JointModel
    trained: tuple[str, ...]
    collection: Any
    retrieval: Any
    # Role → what the model was called that training begins with; and what was called so as the collection.
    sources: dict[str, str]
    # Role → the stages that the model has behind it, trained by others of these trainers in this process.
    earlier: dict[str, tuple[dict[str, Any], ...]]
    collection_source: str
    # What a recipe calls the trainer, for the card.
    method: str = ""

    # ---- Training provenance ---------------------------------------------------------------------------------

    def stage_record(self) -> dict[str, Any]:
        """What a card needs to know about this training, as plain data (see `hf_ar2.cards.facts.Stage`)."""
        seconds = [entry["train_runtime"] for entry in self.state.log_history if "train_runtime" in entry]
        return {
            "name": self._folder_name,
            "collection": self.collection_source,
            "trainer": self.method or type(self).__name__,
            "settings": settings_of(self.args),
            "sources": dict(self.sources),
            "trained": list(self.published),
            "steps": self.state.global_step,
            "seconds": sum(seconds) if seconds else None,
            "passages": len(self.collection.corpus),
            "queries": len(self.retrieval.train_judgments),
        }

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's; what was trained knows of it afterwards."""
        result = super().train(*args, **kwargs)
        for role in self.published:
            setattr(getattr(self.model, role), _STAGES, (*self._all_earlier(), self.stage_record()))
        return result

    def _all_earlier(self) -> list[dict[str, Any]]:
        stages: list[dict[str, Any]] = []
        for of_role in self.earlier.values():
            stages += [stage for stage in of_role if stage not in stages]
        return stages

    @property
    def published(self) -> tuple[str, ...]:
        """The models that were trained, which are those to publish."""
        return tuple(role for role in ROLES if role in self.trained and getattr(self.model, role) is not None)

    def training(self, role: str) -> Training:
        """How the retriever or the ranker was trained, for its card."""
        args: Any = self.args
        history = self.state.log_history
        if args.load_best_model_at_end and self.state.best_global_step is not None:
            history = [entry for entry in history if entry["step"] <= self.state.best_global_step]
        return training_of_trainer(
            self.stage_record(), role, history, args.eval_split, args.rerank_depth, self._all_earlier()
        )

    def write_cards(self, folder: str | Path) -> None:
        """Write README.md beside each trained model in a folder that `save_models` wrote."""
        for role in self.published:
            card = model_card(self.training(role), Path(folder) / role)
            (Path(folder) / role / "README.md").write_text(card, encoding="utf-8")

    # ---- To the Hub -------------------------------------------------------------------------------------------

    def push_to_hub(  # type: ignore[override]
        self,
        name: str | None = None,
        *,
        private: bool | None = None,
        license: str | None = None,
        data_license: str | None = None,
        index: bool = False,
        token: str | None = None,
        commit_message: str = "End of training",
        revision: str | None = None,
    ) -> dict[str, CommitInfo]:
        """Save what was trained, and publish it as `NAME-retriever` and `NAME-ranker`, standard checkpoints with cards.

        To be called on all processes; the first one publishes.

        Args:
            name: user or organisation, a slash, and a name; None: `hub_model_id`, or the name of the output folder.
            private: visible to you alone, where a repository is new; None: `hub_private_repo`.
            license: of the models, such as `"apache-2.0"`; None: the base model's, where its own card says it.
            data_license: of the training data, in words.
            index: publish the index of the collection as the dataset `NAME-index` too.
            token: with write access; None: `hub_token`, or that of `hf auth login`.
            commit_message: of the commits.
            revision: the branch; None: `hub_revision`, or main.

        Returns:
            `"retriever"`, `"ranker"`, `"index"` → the commit (`.repo_url`, `.commit_url`); empty but on the first
            process.

        Raises:
            ValueError, PermissionError, ConnectionError: as `hf_ar2.cards.hub.publish`.
        """
        if index and "retriever" not in self.published:
            raise ValueError("index=True: this trainer trains no retriever whose index could be published")
        self.save_model(_internal_call=True)
        searched = self.retrieval.refresh() if index else None  # encodes on all processes
        if not self.is_world_process_zero():
            return {}
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        output = Path(str(self.args.output_dir))
        folders = {role: output / role for role in self.published}
        with tempfile.TemporaryDirectory(prefix="hf-ar2-") as temporary:
            if searched is not None:
                folders["index"] = Path(temporary)
                _save_index(searched, folders["index"], self)
            for what, folder in folders.items():
                check_loads(what, folder)
            return publish(
                folders,
                name or self._name,
                partial(self._card, self._trainings(), folders, license, data_license),
                private=self.args.hub_private_repo if private is None else private,
                token=token or self.args.hub_token,
                message=commit_message,
                revision=revision or self.args.hub_revision,
            )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repositories before the first step, so that a name or a token that cannot serve fails at once."""
        if self.is_world_process_zero():
            make_repositories(
                self.published,
                self._name,
                private=self.args.hub_private_repo if private is None else private,
                token=token or self.args.hub_token,
            )
        self.hub_model_id = self._name  # type: ignore[assignment]
        self.push_in_progress = None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish a checkpoint while training goes on; a failure is a warning, for the end publishes again."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # A copy, for the checkpoint may be deleted before it is uploaded.
        copy = Path(str(self.args.output_dir)) / _UPLOADED
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(checkpoint_folder, copy, copy_function=_linked_or_copied)
        folders = {role: copy / role for role in self.published}
        place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
        job = self._in_background(
            publish,
            folders,
            self._name,
            partial(self._card, self._trainings(), folders, None, None),
            private=self.args.hub_private_repo,
            token=self.args.hub_token,
            message=f"Training in progress, step {self.state.global_step}",
            revision=self.args.hub_revision,
            beside={place: copy}
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
            else None,
        )
        self.push_in_progress = PushInProgress([job])  # type: ignore[assignment,arg-type]

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        jobs = getattr(self, "push_in_progress", None)
        for job in jobs.jobs if jobs is not None else ():
            if job.exception() is not None:
                logger.warning(f"A push during training failed: {job.exception()}")
        self.push_in_progress = None
        if self.is_world_process_zero():
            shutil.rmtree(Path(str(self.args.output_dir)) / _UPLOADED, ignore_errors=True)

    @staticmethod
    def _in_background(function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        executor = ThreadPoolExecutor(1, thread_name_prefix="push")
        job = executor.submit(function, *args, **kwargs)
        executor.shutdown(wait=False)
        return job

    @property
    def _name(self) -> str:
        return self.args.hub_model_id or self._folder_name

    @property
    def _folder_name(self) -> str:
        return Path(str(self.args.output_dir)).absolute().name

    def _trainings(self) -> dict[str, Training]:
        return {role: self.training(role) for role in self.published}

    @staticmethod
    def _card(
        trainings: Mapping[str, Training],
        folders: Mapping[str, Path],
        license: str | None,
        data_license: str | None,
        what: str,
        ids: Mapping[str, str],
    ) -> str:
        if what == "index":
            about = read_json(folders["index"] / ABOUT_FILE)
            unit = read_retriever(folders["retriever"]).similarity == "cosine"
            return index_card(trainings["retriever"], about, ids["index"], ids["retriever"], normalised=unit)
        other = {"retriever": "ranker", "ranker": "retriever"}[what]
        return model_card(
            trainings[what],
            folders[what],
            name=ids[what],
            partner=ids.get(other),
            license=license,
            data_license=data_license,
        )


def _save_index(searched: Any, folder: Path, trainer: PublishingTrainer) -> None:
    """Write the index of a trainer's collection: `index.faiss`, `ids.json`, `index.json`."""
    index = searched if isinstance(searched, FrozenIndex) else FrozenIndex.from_corpus_index(searched)
    index.save(folder, trainer.collection.corpus["id"], {"collection": trainer.collection.name})


def _linked_or_copied(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
