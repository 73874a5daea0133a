"""Checkpoints of two models: how a trainer writes them, and continues from them exactly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from hf_ar2.files import DamagedFile, check_files, files_in, read_json, write_json, write_note, writing
from hf_ar2.models.joint import JointModel, load_models, save_adapters, save_models
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.settings.effects import checked_on_resume
from hf_ar2.trainers.lists import stored_fingerprint
from hf_ar2.trainers.prepare import saves_merged
from hf_ar2.trainers.sharding import gather, scatter, shard_state, whole_state
from hf_ar2.training_lists.pool import CandidatePool

if TYPE_CHECKING:
    from hf_ar2.index.encoders import Encoders
    from hf_ar2.trainers.async_refresh import Refresh
    from hf_ar2.trainers.callbacks import StepLog
    from hf_ar2.trainers.config import JointConfig
    from hf_ar2.trainers.publishing import Publisher

logger = logging.get_logger(__name__)

CHECKPOINTS = "checkpoint-*"
# The last file of a checkpoint, with the checksums of all others, and the optimizer's, as transformers names it.
_CHECKSUMS, _OPTIMIZER = "checksums.json", "optimizer.pt"
_RUN, _VERSION = "run.json", 1
_WINDOW = "log_window_{}.json"


class CheckpointedTrainer(Trainer):
    """A `transformers.Trainer` of two models whose resumed runs end with the weights of an uninterrupted one.

    In addition to what transformers writes, a checkpoint has `retriever/` and `ranker/`, `pool/`, the averages of the
    open log entry for each process, and `run.json`: `version`, `run` (`run_metadata`), `train_lists` (a hash of the
    stored lists) and `weights` (a hash of each model). `adapters-retriever.safetensors` and
    `adapters-ranker.safetensors` have the trained weights of models with adapters, `snapshot.pt` those that a refresh
    in flight encodes (see `Refresh`), and `checksums.json` the checksums of all files.

    Attributes:
        whole: the models that are saved: `model`, or a whole copy of it if its weights are sharded.
        round_state: what rounds and evaluations decided, as plain data.
    """

    args: JointConfig
    model: JointModel
    # `JointTrainer` makes these.
    whole: JointModel
    round_state: dict[str, Any]
    encoders: Encoders
    pool: CandidatePool | None
    stored: CandidatePool | None
    refreshing: Refresh
    step_log: StepLog
    publisher: Publisher
    _log_window: dict[str, Any] | None = None

    @property
    def output_folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(str(self.args.output_dir))

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are, or will be, in shards."""
        return self.whole is not self.model

    def gather_weights(self) -> None:
        """Bring the whole copy of sharded weights up to date; all processes call this."""
        if self.is_sharded:
            gather(self.model, self.whole)

    @property
    def run_metadata(self) -> dict[str, Any]:
        """What the outcome of a run depends on, as plain data; a checkpoint is compared with the run that resumes from
        it.

        Here these are settings; `JointTrainer` adds facts, such as `steps`.
        """
        settings = {name: getattr(self.args, name) for name in checked_on_resume(type(self.args))}
        return dict(json.loads(json.dumps(settings)))

    # ---- Writing ----------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `transformers.Trainer`: `retriever/` and `ranker/` in a folder; all processes call this."""
        self.gather_weights()
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.output_folder)
        self.encoders.processes.share(folder, *self.whole.models, "query_encoder")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.output_folder)
            save_models(self.whole, folder, saves_merged(self.args, folder))
            self.publisher.write_cards(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.gather_weights()
        folder = self.output_folder / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            if self.args.should_save:
                (folder / _CHECKSUMS).unlink(missing_ok=True)
                save_adapters(self.whole, folder)
                content = {
                    "version": _VERSION,
                    "run": self.run_metadata,
                    "train_lists": stored_fingerprint(self.stored),
                    "weights": fingerprints(self.whole),
                }
                write_json(folder / _RUN, content)
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                write_checksums(folder)
        self.encoders.processes.share(self.output_folder, CHECKPOINTS)  # no rank may read an incomplete one

    def _save_rng_state(self, output_dir: str) -> None:
        """As in `transformers.Trainer`; then every machine gets the files that each process wrote for itself."""
        super()._save_rng_state(output_dir)
        processes = self.encoders.processes
        for rank in range(processes.world_size):
            names = f"rng_state_{rank}.pth", _WINDOW.format(rank)
            processes.share(Path(output_dir), *names, source=rank)
        processes.barrier()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        moments = 2 * sum(w.numel() * w.element_size() for w in self.model.parameters() if w.requires_grad)
        with writing(folder / _OPTIMIZER, moments):
            super()._save_optimizer_and_scheduler(output_dir)
            if self.is_sharded:
                state = whole_state(self.optimizer)  # type: ignore[arg-type]
                if self.args.should_save:
                    torch.save(state, folder / _OPTIMIZER)
        window = {
            "loss": float(self._tr_loss),
            "since": self._globalstep_last_logged,
            "sums": dict(self.step_log.sums),
            "seconds": dict(self.step_log.seconds),
            "learning_rates": dict(self.step_log.learning_rates),
            "round_state": self.round_state,
        }
        write_json(folder / _WINDOW.format(self.encoders.processes.rank), window)
        if self.args.should_save and self.pool is not None:
            self.pool.save(folder / "pool")
            self.refreshing.save(folder)

    def _evaluate(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `transformers.Trainer`; with `save_strategy="best"` also saves the weights of the start."""
        metrics = super()._evaluate(trial, *args, **kwargs)
        at_start = self.state.global_step == 0 and self.args.save_strategy == "best"
        if at_start and self._determine_best_metric(metrics, trial):
            self._save_checkpoint(self.model, trial)
            self.state.best_model_checkpoint = str(self.output_folder / "checkpoint-0")
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return metrics

    # ---- Reading ----------------------------------------------------------------------------------------------

    def find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint to resume from (True: the newest complete one of the output folder); None for a new run.

        Raises:
            ValueError: there is no complete checkpoint, it has no optimizer, or a file of it is damaged.
        """
        if not resume_from_checkpoint:
            return None
        # The checkpoints on the first process's machine are the ones to resume from.
        processes, folder = self.encoders.processes, self.output_folder
        if resume_from_checkpoint is True:
            processes.share(folder, CHECKPOINTS)
            found = last_complete_checkpoint(folder)
            if found is None:
                raise ValueError(f"{self.args.output_dir}: no complete checkpoint to resume from")
        else:
            found = str(resume_from_checkpoint)
            processes.share(Path(found).parent, Path(found).name)
        if not Path(found).is_dir():
            raise ValueError(f"{found}: there is no such checkpoint to resume from")
        if not Path(found, _OPTIMIZER).is_file():
            raise ValueError(
                f"{found}: there is no {_OPTIMIZER} (save_only_model=True writes none), so its run cannot be "
                "continued exactly; start another run from the models in the checkpoint"
            )
        check_checkpoint(Path(found))
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder, steps = Path(resume_from_checkpoint), self.run_metadata["steps"]
        saved_steps = self._load_models(folder)["steps"]
        if saved_steps != steps:
            logger.warning(
                f"{folder}: the checkpoint is of a run of {saved_steps} steps, and this one has {steps}; from here on "
                "the learning rates follow the schedule of this one"
            )

    def _load_best_model(self) -> None:
        """Load the models of the best checkpoint, and say which step that was."""
        state = self.state
        assert state.best_model_checkpoint is not None
        self._load_models(Path(state.best_model_checkpoint))
        if self.is_world_process_zero() and state.best_global_step != state.global_step:
            metric = str(self.args.metric_for_best_model).removeprefix("eval_").replace("_", " ")
            kept = f"of step {state.best_global_step}" if state.best_global_step else "it started with"
            print(f"Kept the weights {kept}: {metric} {state.best_metric:.3f}.")

    def _load_models(self, folder: Path) -> dict[str, Any]:
        """Load both models of a checkpoint of this run, in place, and return the run that it records.

        Raises:
            ValueError: it is of a run with other settings or over other training lists, or it is damaged.
        """
        check_checkpoint(folder)
        saved = read_run(folder)
        if saved["train_lists"] != stored_fingerprint(self.stored):
            raise ValueError(
                f"{folder}: trained on other lists than those train_lists has now; resume with the lists the run began "
                "with, or start a new run"
            )
        check_same_run(folder, saved["run"], self.run_metadata)
        load_models(self.whole, folder)
        if self.is_sharded:
            scatter(self.whole, self.model)
        found = fingerprints(self.whole)
        if found != saved["weights"]:
            raise ValueError(
                f"{folder}: the weights that were read are not those that were saved (found {found}, expected "
                f"{saved['weights']}); the checkpoint is damaged, or the base model of adapters is another one"
            )
        run: dict[str, Any] = saved["run"]
        return run

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.is_sharded:
            shard_state(self.optimizer)  # type: ignore[arg-type]
        folder = Path(checkpoint)
        if (folder / "pool").is_dir():
            self.pool = CandidatePool.open(folder / "pool")
        # The run may have had fewer processes then; all have the same round state.
        own, first = (folder / _WINDOW.format(rank) for rank in (self.encoders.processes.rank, 0))
        self._log_window = read_json(own) if own.is_file() else None
        self.round_state = read_json(first).get("round_state", {}) if first.is_file() else {}
        self.refreshing.load(folder)

    def restore_log_window(self) -> None:
        """Continue the averages of the log entry that was open when the checkpoint was written."""
        if self._log_window is not None:
            self._tr_loss += self._log_window["loss"]
            self._globalstep_last_logged = self._log_window["since"]
            for name in ("sums", "seconds", "learning_rates"):
                getattr(self.step_log, name).update(self._log_window.get(name, {}))
            self._log_window = None


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint; a damaged one is skipped, with a warning that names the file."""
    numbers = {
        int(number[1]): folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if (number := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and (folder / _CHECKSUMS).is_file()
    }
    for _, folder in sorted(numbers.items(), reverse=True):
        try:
            check_checkpoint(folder)
            return str(folder)
        except DamagedFile as error:
            logger.warning(f"{error} This checkpoint is skipped.")
    return None


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`, which says that a checkpoint is complete."""
    write_note(folder / _CHECKSUMS, {}, [file for file in files_in(folder) if file.name != _CHECKSUMS])


def check_checkpoint(folder: Path) -> None:
    """Compare the files of a checkpoint with their checksums, once per process.

    Raises:
        FileNotFoundError: it is not complete. DamagedFile: names a file.
    """
    path = folder / _CHECKSUMS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, so the checkpoint is not complete; resume from an earlier one"
        )
    advice = "Resume from an earlier checkpoint, or start the run again."
    try:
        checksums = read_json(path)["checksums"]
    except DamagedFile as error:
        raise DamagedFile(f"{error}. {advice}") from error
    check_files(folder, checksums, advice)


def fingerprints(model: JointModel) -> dict[str, str]:
    """Content hashes of the weights of both models, by role."""
    return {role: weights_fingerprint(child) for role, child in model.models.items()}


def read_run(folder: Path) -> dict[str, Any]:
    """The `run.json` of a checkpoint; ValueError if there is none, or it has another version."""
    path = Path(folder, _RUN)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a checkpoint that a trainer of hf_ar2 wrote")
    saved_run: dict[str, Any] = read_json(path)
    if saved_run.get("version") != _VERSION:
        raise ValueError(
            f"{path}: version {saved_run.get('version')}, expected {_VERSION}; another version of hf_ar2 wrote this "
            "checkpoint. Start another run from the models in it"
        )
    return saved_run


def check_same_run(folder: Path, saved_run: dict[str, Any], run: dict[str, Any]) -> None:
    """Raise ValueError if the run of a checkpoint differs from this one; what only one of them has is ignored."""
    differ = [name for name in saved_run if name != "steps" and name in run and saved_run[name] != run[name]]
    if differ:
        found = ", ".join(f"{name} ({saved_run[name]} there, {run[name]} here)" for name in differ)
        raise ValueError(
            f"{folder}: this checkpoint's run differs in {found}. Resume with what it was started with, or start "
            "another run from the models in the checkpoint"
        )
