"""The half of every trainer that writes checkpoints of two models, and continues from them exactly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from hf_ar2.collections import Collection
from hf_ar2.index.encoders import Encoders
from hf_ar2.models.joint import save_models
from hf_ar2.trainers.checkpoints import (
    TRAINER_STATE,
    describe_run,
    fingerprints,
    last_complete_checkpoint,
    load_models,
    note_run,
    refuse_other_run,
)
from hf_ar2.trainers.publishing import PublishingTrainer
from hf_ar2.trainers.stored_lists import note_stored_lists, refuse_other_lists
from hf_ar2.training_lists.pool import CandidatePool

logger = logging.get_logger(__name__)

_OPTIMIZER = "optimizer.pt"  # as transformers names it


class ResumableTrainer(PublishingTrainer):
    """A trainer whose interrupted run ends, resumed, with the weights of an uninterrupted one."""

    collection: Collection
    encoders: Encoders
    pool: CandidatePool | None
    stored: Any
    seconds: dict[str, float]
    round_state: dict[str, Any]
    _sums: dict[str, list[float]]
    _resumed_log: dict[str, Any] | None

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def global_batch(self) -> int:
        """Lists of one optimizer step, over all processes."""
        raise NotImplementedError

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of a round."""
        raise NotImplementedError

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        raise NotImplementedError

    @property
    def about(self) -> dict[str, Any]:
        """What a checkpoint says of its run, and a run that goes on from it is compared with."""
        return describe_run(
            self.args,
            collection=self.collection.fingerprint,
            global_batch=self.global_batch,
            steps_per_round=self.steps_per_round,
            steps=self.total_steps,
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` continues from the newest complete checkpoint, exactly.

        Raises:
            ValueError: there is no complete checkpoint to resume from; it has no optimizer; it is of a run with another
                collection, seed, batch, schedule or other setting that counts, or over other training lists.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self._folder)
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir}: no complete checkpoint to resume from")
        if resume_from_checkpoint and not Path(resume_from_checkpoint).is_dir():
            raise ValueError(f"{resume_from_checkpoint}: there is no such checkpoint to resume from")
        if resume_from_checkpoint and not Path(resume_from_checkpoint, _OPTIMIZER).is_file():
            raise ValueError(
                f"{resume_from_checkpoint}: there is no {_OPTIMIZER} (save_only_model=True writes none), so that its "
                "run cannot be continued exactly; begin another run from the models in the checkpoint"
            )
        eval_on_start = self.args.eval_on_start
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # the interrupted run did that
        try:
            result = super().train(resume_from_checkpoint or None, *args, **kwargs)
        finally:
            self.args.eval_on_start = eval_on_start
        if self.args.push_to_hub:
            self.push_to_hub()
        return result

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            save_models(self.model, output_dir or self._folder)
            self.write_cards(output_dir or self._folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / TRAINER_STATE).unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights.json").write_text(json.dumps(fingerprints(self.model), indent=1))
            note_stored_lists(folder, self.stored)
            note_run(folder, self.about)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The trainer's state, written next by the first rank, says that a checkpoint is complete.
        self.encoders.processes.barrier()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        window = {
            "loss": float(self._tr_loss),
            "since": self._globalstep_last_logged,
            "sums": dict(self._sums),
            "seconds": dict(self.seconds),
            "round_state": self.round_state,
        }
        rank = self.encoders.processes.rank
        Path(output_dir, f"log_window_{rank}.json").write_text(json.dumps(window))
        if self.args.should_save and self.pool is not None:
            self.pool.save(Path(output_dir) / "pool")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if (Path(checkpoint) / "pool").is_dir():
            self.pool = CandidatePool.open(Path(checkpoint) / "pool")
        window = Path(checkpoint, f"log_window_{self.encoders.processes.rank}.json")
        self._resumed_log = json.loads(window.read_text()) if window.is_file() else None
        self.round_state = (self._resumed_log or {}).get("round_state", {})

    def restore_log_window(self) -> None:
        """Continue the averages of the log entry that was open when the checkpoint was written."""
        if self._resumed_log is not None:
            self._tr_loss += self._resumed_log["loss"]
            self._globalstep_last_logged = self._resumed_log["since"]
            self._sums.update(self._resumed_log["sums"])
            self.seconds.update(self._resumed_log.get("seconds", {}))
            self._resumed_log = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        refuse_other_lists(Path(resume_from_checkpoint), self.stored)
        about = self.about
        steps = refuse_other_run(Path(resume_from_checkpoint), about).get("steps", about["steps"])
        if steps != about["steps"]:
            logger.warning(
                f"{resume_from_checkpoint}: of a run of {steps} steps, and this one has {about['steps']}; from here on "
                "the learning rates follow the schedule of this one"
            )
        load_models(self.model, resume_from_checkpoint)
        expected = json.loads(Path(resume_from_checkpoint, "weights.json").read_text())
        found = fingerprints(self.model)
        if found != expected:
            raise ValueError(
                f"{resume_from_checkpoint}: the weights that were read are not those that were saved "
                f"(found {found}, expected {expected}); the checkpoint is damaged"
            )

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)
