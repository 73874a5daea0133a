"""Checkpoints of two models: how a trainer writes them, and continues from them exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from hf_ar2.files import DamagedFile, check_files, files_in, read_json, write_json, write_note, writing
from hf_ar2.models.joint import JointModel, load_models, save_adapters, save_models
from hf_ar2.models.loading import weights_fingerprint
from hf_ar2.settings.effects import checked_on_resume
from hf_ar2.trainers.lists import stored_fingerprint
from hf_ar2.trainers.prepare import saves_merged
from hf_ar2.trainers.sharding import scatter, shard_state, whole_state
from hf_ar2.training_lists.pool import CandidatePool

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer

logger = logging.get_logger(__name__)

# The last file of a checkpoint, with the checksums of all others, and the optimizer's, as transformers names it.
_CHECKSUMS, _OPTIMIZER = "checksums.json", "optimizer.pt"
CHECKPOINTS = "checkpoint-*"
_RUN, _VERSION = "run.json", 1


class Checkpoints:
    """Writes and reads the checkpoints of a trainer; a resumed run ends with the weights of an uninterrupted one.

    In addition to what transformers writes, a checkpoint has `retriever/` and `ranker/`, `pool/`, the averages of the
    open log entry for each process, and `run.json`: `version`, `run` (`JointTrainer.run_metadata`), `train_lists` (a
    hash of the stored lists) and `weights` (a hash of each model). Of a model with adapters
    `adapters-retriever.safetensors` or `adapters-ranker.safetensors` has what is trained. Of a refresh in flight (see
    `Refresh`) `snapshot.pt` has the weights that are encoded. `checksums.json` has the checksums of all files.
    """

    def __init__(self, trainer: JointTrainer) -> None:
        self.trainer = trainer
        self._log_window: dict[str, Any] | None = None

    def find(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint to resume from (True: the newest complete one of the output folder); None for a new run.

        Raises:
            ValueError: there is no complete checkpoint, it has no optimizer, or a file of it is damaged.
        """
        if not resume_from_checkpoint:
            return None
        # The checkpoints on the first process's machine are the ones to resume from.
        processes, folder = self.trainer.encoders.processes, self.trainer.output_folder
        if resume_from_checkpoint is True:
            processes.share(folder, CHECKPOINTS)
            found = last_complete_checkpoint(folder)
            if found is None:
                raise ValueError(f"{self.trainer.args.output_dir}: no complete checkpoint to resume from")
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

    def write_models(self, folder: Path) -> None:
        """Write `retriever/` and `ranker/` with their cards; the first process calls this."""
        save_models(self.trainer.whole, folder, saves_merged(self.trainer.args, folder))
        self.trainer.publisher.write_cards(folder)

    @contextmanager
    def writing_checkpoint(self, folder: Path) -> Iterator[None]:
        """In this block transformers writes a checkpoint: `run.json` before it, then the checksums.

        All processes call this.
        """
        trainer = self.trainer
        trainer.gather_weights()
        with writing(folder):
            if trainer.args.should_save:
                (folder / _CHECKSUMS).unlink(missing_ok=True)
                save_adapters(trainer.whole, folder)
                content = {
                    "version": _VERSION,
                    "run": trainer.run_metadata,
                    "train_lists": stored_fingerprint(trainer.stored),
                    "weights": fingerprints(trainer.whole),
                }
                write_json(folder / _RUN, content)
            yield
            if trainer.args.should_save:
                write_checksums(folder)
        trainer.encoders.processes.share(folder.parent, CHECKPOINTS)  # no rank may read an incomplete one

    @contextmanager
    def writing_optimizer(self, folder: Path) -> Iterator[None]:
        """In this block transformers writes the optimizer: then its whole state if it is sharded, and the progress.

        The progress is the averages of the open log entry, what evaluations decided, and the pool of the round.
        All processes call this.
        """
        trainer = self.trainer
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        moments = 2 * sum(weight.numel() * weight.element_size() for weight in trained)
        with writing(folder / _OPTIMIZER, moments):
            yield
            if trainer.is_sharded:
                state = whole_state(trainer.optimizer)  # type: ignore[arg-type]
                if trainer.args.should_save:
                    torch.save(state, folder / _OPTIMIZER)
        window = {
            "loss": float(trainer._tr_loss),
            "since": trainer._globalstep_last_logged,
            "sums": dict(trainer.step_log.sums),
            "seconds": dict(trainer.step_log.seconds),
            "learning_rates": dict(trainer.step_log.learning_rates),
            "round_state": trainer.round_state,
        }
        write_json(self._window_file(folder), window)
        if trainer.args.should_save and trainer.pool is not None:
            trainer.pool.save(folder / "pool")
            trainer.refreshing.save(folder)

    def share_models(self, folder: Path) -> None:
        """Give every machine the models that the first process saved; all processes call this."""
        self.trainer.encoders.processes.share(folder, *self.trainer.whole.models, "query_encoder")

    def share_own_files(self, folder: Path) -> None:
        """Give every machine the files that each process wrote for itself, before the first one notes their checksums.

        All processes call this.
        """
        processes = self.trainer.encoders.processes
        for rank in range(processes.world_size):
            processes.share(
                folder, f"rng_state_{rank}.pth", self._window_file(folder, rank).name, source=rank
            )
        processes.barrier()

    def read_progress(self, folder: Path) -> None:
        """Shard the optimizer that was read, read the progress, and find the best checkpoint so far.

        Raises:
            ValueError: it is to be loaded at the end, and is missing.
        """
        if self.trainer.is_sharded:
            shard_state(self.trainer.optimizer)  # type: ignore[arg-type]
        self._find_best(folder)
        if (folder / "pool").is_dir():
            self.trainer.pool = CandidatePool.open(folder / "pool")
        # The run may have had fewer processes then; all have the same round state.
        own, first = self._window_file(folder), self._window_file(folder, 0)
        self._log_window = read_json(own) if own.is_file() else None
        self.trainer.round_state = read_json(first).get("round_state", {}) if first.is_file() else {}
        self.trainer.refreshing.load(folder)

    def _find_best(self, folder: Path) -> None:
        """The best checkpoint is beside the one that is continued: their folder may have been moved or copied."""
        args, noted = self.trainer.args, read_json(folder / TRAINER_STATE_NAME).get("best_model_checkpoint")
        if noted is None:
            return
        best = folder.parent / Path(noted).name
        if best.is_dir():
            self.trainer.state.best_model_checkpoint = str(best)
            if not Path(noted).is_dir():  # transformers has just said that it is ignored
                logger.warning(f"{best} is the best checkpoint so far; it was moved from {noted}")
        elif args.load_best_model_at_end and not Path(noted).is_dir():
            raise ValueError(
                f"{best}: there is no such folder, and it is the best checkpoint so far. Restore it, or resume with "
                "load_best_model_at_end=False"
            )

    def restore_log_window(self) -> None:
        """Continue the averages of the log entry that was open when the checkpoint was written."""
        if self._log_window is not None:
            trainer = self.trainer
            trainer._tr_loss += self._log_window["loss"]
            trainer._globalstep_last_logged = self._log_window["since"]
            for name in ("sums", "seconds", "learning_rates"):
                getattr(trainer.step_log, name).update(self._log_window.get(name, {}))
            self._log_window = None

    def load_models(self, folder: Path, *, resume: bool = True) -> None:
        """Load both models of a checkpoint, in place, once it is known to be of this run.

        Args:
            resume: whether training continues from it; False for the best checkpoint of a run that has ended.

        Raises:
            ValueError: it is of a run with other settings or over other training lists, or it is damaged.
        """
        trainer = self.trainer
        check_checkpoint(folder)
        saved_run = read_run(folder)
        if saved_run["train_lists"] != stored_fingerprint(trainer.stored):
            raise ValueError(
                f"{folder}: trained on other lists than those train_lists has now; resume with the lists the run began "
                "with, or start a new run"
            )
        run = trainer.run_metadata
        check_same_run(folder, saved_run["run"], run)
        if resume and saved_run["run"]["steps"] != run["steps"]:
            logger.warning(
                f"{folder}: the checkpoint is of a run of {saved_run['run']['steps']} steps, and this one has "
                f"{run['steps']}; from here on the learning rates follow the schedule of this one"
            )
        load_models(trainer.whole, folder)
        if trainer.is_sharded:
            scatter(trainer.whole, trainer.model)
        found = fingerprints(trainer.whole)
        if found != saved_run["weights"]:
            raise ValueError(
                f"{folder}: the weights that were read are not those that were saved (found {found}, expected "
                f"{saved_run['weights']}); the checkpoint is damaged, or the base model of adapters is another one"
            )

    def save_start(self, metrics: dict[str, float], trial: Any) -> None:
        """Save the weights that training starts with as the best so far; `metrics` are those of their evaluation."""
        trainer = self.trainer
        if trainer._determine_best_metric(metrics, trial):
            trainer._save_checkpoint(trainer.model, trial)
            trainer.state.best_model_checkpoint = str(trainer.output_folder / "checkpoint-0")
            trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    def load_best(self) -> None:
        """Load the models of the best checkpoint at the end of training, and say which step that was."""
        trainer, state = self.trainer, self.trainer.state
        assert state.best_model_checkpoint is not None
        self.load_models(Path(state.best_model_checkpoint), resume=False)
        if trainer.is_world_process_zero() and state.best_global_step != state.global_step:
            metric = str(trainer.args.metric_for_best_model).removeprefix("eval_").replace("_", " ")
            kept = f"of step {state.best_global_step}" if state.best_global_step else "it started with"
            print(f"Kept the weights {kept}: {metric} {state.best_metric:.3f}.")

    def _window_file(self, folder: Path, rank: int | None = None) -> Path:
        return folder / f"log_window_{self.trainer.encoders.processes.rank if rank is None else rank}.json"


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


def describe_run(trainer: JointTrainer) -> dict[str, Any]:
    """What a run's outcome depends on, as plain data: the settings that decide it, and other facts."""
    args = trainer.args
    names = checked_on_resume(type(args))
    facts = {
        "collection": trainer.collection.fingerprint,
        "global_batch": trainer.global_batch,
        "steps_per_round": trainer.steps_per_round,
        "steps": trainer.planned_steps,
        "own_loss": _name_of(trainer.loss),
        "own_sampler": _name_of(trainer.collator.lists.sampler),
    }
    run: dict[str, Any] = json.loads(json.dumps({name: getattr(args, name) for name in names} | facts))
    return run


def _name_of(function: Any) -> str | None:
    """The name of a custom loss or sampler; None for a built-in one."""
    if function is None or isinstance(function, str):
        return None
    return str(getattr(function, "__qualname__", type(function).__qualname__))


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
    """Compare the run of a checkpoint with this one; what only one of them has is ignored.

    Raises:
        ValueError: a setting or fact differs, so that resuming would not continue that run.
    """
    differ = [name for name in saved_run if name != "steps" and name in run and saved_run[name] != run[name]]
    if differ:
        found = ", ".join(f"{name} ({saved_run[name]} there, {run[name]} here)" for name in differ)
        raise ValueError(
            f"{folder}: this checkpoint's run differs in {found}. Resume with what it was started with, or start "
            "another run from the models in the checkpoint"
        )
