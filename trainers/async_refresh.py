"""Refreshes of the candidate pool: all at once at the start of a round, or in shares between the steps that follow."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

from hf_ar2.encoding.batches import Encode, encode_rows, token_budget_batches
from hf_ar2.encoding.processes import Processes
from hf_ar2.files import writing
from hf_ar2.index.background import BackgroundEncoder, Corpus
from hf_ar2.index.shards import new_array
from hf_ar2.trainers.lists import with_stored_lists
from hf_ar2.training_lists.pool import pool_statistics

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer

logger = logging.get_logger(__name__)

# In a checkpoint, the weights that are being encoded; next to the indexes, each process's embeddings of them so far.
_SNAPSHOT, _EMBEDDINGS = "snapshot.pt", "snapshot-{}.npy"
# In `JointTrainer.round_state`, the step that the snapshot was taken at; absent while nothing is in flight.
_TAKEN_AT = "snapshot_taken_at"


class Refresh:
    """Keeps the candidate pool of a trainer up to date, see `refresh_mode`.

    In async mode the retriever is copied at the start of a round (step s). After each of the next K steps a K-th of the
    corpus is encoded with this copy; after step s + K the corpus is indexed and mined, and the new pool is used. K is
    `max_staleness`, or a round if that is shorter. The first pool, and with K = 0 every pool, is made before the
    round's first step.

    The batches are those of encoding the corpus at once, so the embeddings do not depend on K or an interruption: a
    resumed run reads the copy from its checkpoint and encodes the same batches again. Each process encodes its own rows
    into a separate file, and waits for the others only to build the index.

    With `refresh_device` one more process on each machine encodes the rows of all its training processes, see
    `BackgroundEncoder`, and these wait for it after step s + K. The embeddings and the step of the swap are the same.

    Raises:
        ValueError: async mode where the retriever is not trained; a `refresh_device` that is of another kind than the
            training's, or not there.
    """

    def __init__(self, trainer: JointTrainer) -> None:
        self.trainer = trainer
        self.is_async = trainer.args.refresh_mode == "async"
        if self.is_async and "retriever" not in trainer.trained:
            raise ValueError(
                f"refresh_mode='async': {type(trainer).__name__} does not train the retriever, so its pool "
                "stays as it is; leave the setting out"
            )
        # Where a process of its own encodes; None: the training processes do.
        self._device = _refresh_device(trainer.args.refresh_device, trainer.args.device)
        self._background: BackgroundEncoder | None = None  # of this machine, on its first process
        self._snapshot: SentenceTransformer | None = None
        self._embedder: Encode | None = None  # of the snapshot, for all its shares
        self._encoding = ""  # of the snapshot
        self._batches: list[np.ndarray] = []  # of this process, as rows of the corpus
        self._rows = slice(0)  # of this process
        self._done = 0
        self._embeddings: np.memmap[Any, Any] | None = None
        self._begun = False  # whether there is a file, or will be

    @property
    def swap_step(self) -> int | None:
        """The step after which the pool is swapped; None while nothing is in flight."""
        taken_at = self.trainer.round_state.get(_TAKEN_AT)
        return None if taken_at is None else taken_at + self._steps

    @property
    def _steps(self) -> int:
        return min(self.trainer.args.max_staleness or 0, self.trainer.steps_per_round)

    @property
    def _path(self) -> Path:
        rank = self.trainer.encoders.processes.rank
        return self.trainer.retrieval.encodings.folder / _EMBEDDINGS.format(rank)

    def start(self) -> None:
        """Start the process that encodes on `refresh_device`, if that is set; all processes call this."""
        trainer, ranks = self.trainer, self.trainer.encoders.processes
        inputs, local = trainer.retrieval.retriever_inputs, trainer.args.local_process_index
        if self._device is None:
            return
        assert inputs is not None and trainer.whole.retriever is not None
        rows = ranks.part_of(len(inputs.passage_store))
        places = ranks.gather((local, self._path.absolute(), rows))
        if local == 0:
            # The processes of a machine follow each other.
            others = [index for index, *_ in places[ranks.rank + 1 :]]
            here = others.index(0) if 0 in others else len(others)
            parts = [place[1:] for place in places[ranks.rank : ranks.rank + here + 1]]
            corpus = Corpus(inputs.passage_builder, inputs.passage_store, parts, trainer.args.index_dtype)
            alone = replace(trainer.encoders, device=self._device, processes=Processes(0, 1, self._device))
            self._background = BackgroundEncoder(trainer.whole.retriever, corpus, alone)

    def close(self) -> None:
        """End the process that `start` has started."""
        if self._background is not None:
            self._background.close()
            self._background = None

    def begin_round(self) -> None:
        """Mine, or begin to, unless this round's pool is there already or in flight (a resumed run)."""
        trainer = self.trainer
        number, step = trainer.current_round, trainer.state.global_step
        # A frozen retriever and BM25 find the same candidates in every round.
        changes = "retriever" in trainer.trained and trainer.args.mine_with == "retriever"
        if trainer.pool is None:
            self._mine(number)
        elif trainer.args.refresh and changes and trainer.pool.round != number and self.swap_step is None:
            if not self.is_async:
                self._mine(number)
            elif step + self._steps < trainer.total_steps:  # else no step would use the pool
                trainer.round_state[_TAKEN_AT] = step
                self._begin(copy.deepcopy(trainer.whole.retriever))
                self.advance()
        self._use_pool()

    def advance(self) -> None:
        """After a step: encode what is due (a resumed run repeats earlier shares); at the end swap the pool."""
        if self._background is not None:
            self._background.finished()  # raises if it has died
        if self.swap_step is None:
            return
        trainer, steps = self.trainer, self._steps
        left = self.swap_step - trainer.state.global_step
        retrieval = trainer.retrieval
        # An evaluation may have encoded with these weights, and its index may still be open.
        if retrieval.opened != self._encoding and self._device is not None:
            self._encode_elsewhere(wait=left <= 0)
        elif retrieval.opened != self._encoding:
            self._encode(-(-len(self._batches) * (steps - left) // steps) if left > 0 else len(self._batches))
        if left > 0:
            return
        self._embeddings = None  # closes the file
        current = retrieval.retriever
        retrieval.retriever, retrieval.encoded = self._snapshot, self._path if self._begun else None
        try:
            self._mine(trainer.round_state[_TAKEN_AT] // trainer.steps_per_round)
        finally:
            retrieval.retriever, retrieval.encoded = current, None
        self._use_pool()
        self.drop()

    def log_step(self, refreshing: float, total: float) -> None:
        """Log the age of the pool's weights in steps, and the share of seconds that refreshing took."""
        trainer = self.trainer
        if not self.is_async or trainer.pool is None:
            return
        sums = trainer.step_log.sums
        age = trainer.state.global_step - trainer.pool.round * trainer.steps_per_round
        sums["pool/age"] = [float(age), 1.0]
        share = sums["refresh_share"]
        share[:] = share[0] + refreshing, share[1] + total

    def drop(self) -> None:
        """Forget the snapshot and what was encoded of it."""
        self._snapshot, self._embedder, self._embeddings, self._batches = None, None, None, []
        self._begun = False
        self.trainer.round_state.pop(_TAKEN_AT, None)
        if self.is_async:
            self._path.unlink(missing_ok=True)

    # ---- Checkpoints ------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the snapshot into a checkpoint, if one is in flight."""
        if self._snapshot is not None:
            with writing(folder / _SNAPSHOT):
                torch.save(self._snapshot.state_dict(), folder / _SNAPSHOT)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the encoding begins again."""
        if self.swap_step is not None:
            snapshot = copy.deepcopy(self.trainer.whole.retriever)
            assert snapshot is not None
            snapshot.load_state_dict(torch.load(folder / _SNAPSHOT, map_location="cpu", weights_only=True))
            self._begin(snapshot)

    # ---- Parts ------------------------------------------------------------------------------------------------

    def _begin(self, snapshot: SentenceTransformer | None) -> None:
        trainer, retrieval = self.trainer, self.trainer.retrieval
        inputs, processes = retrieval.retriever_inputs, trainer.encoders.processes
        assert snapshot is not None and inputs is not None
        self._snapshot = snapshot.eval()
        self._embedder = trainer.encoders.embedder(snapshot, "document")
        self._encoding = retrieval.encoding_of(snapshot)
        store = inputs.passage_store
        self._rows = processes.part_of(len(store))
        lengths = inputs.passage_builder.single_lengths(store, np.arange(self._rows.start, self._rows.stop))
        batches = token_budget_batches(lengths, trainer.encoders.budget)
        self._batches, self._done = [self._rows.start + batch for batch in batches], 0

    def _encode(self, upto: int) -> None:
        """Encode the batches of this process before `upto`, as far as they are not encoded yet."""
        trainer, encoders = self.trainer, self.trainer.encoders
        inputs = trainer.retrieval.retriever_inputs
        assert self._snapshot is not None and self._embedder is not None and inputs is not None
        if self._embeddings is None:
            self._begun = True
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            shape = (self._rows.stop - self._rows.start, self._snapshot.get_embedding_dimension() or 0)
            new_array(self._path, trainer.args.index_dtype, shape)
            self._embeddings, self._done = np.load(self._path, mmap_mode="r+"), 0
        if upto > self._done:
            # Whole batches, longest first: `encode_rows` makes the same ones of them.
            rows = np.concatenate(self._batches[self._done : upto])
            part = np.zeros((len(rows), self._embeddings.shape[1]), self._embeddings.dtype)
            encode_rows(
                self._embedder,
                inputs.passage_builder,
                inputs.passage_store,
                rows,
                part,
                budget=encoders.budget,
                device=encoders.device,
                show_progress=False,
            )
            self._embeddings[rows - self._rows.start] = part
            self._embeddings.flush()
            self._done = upto

    def _encode_elsewhere(self, wait: bool) -> None:
        """Have the corpus encoded on `refresh_device`, and wait for it if this is due; all processes call this."""
        assert self._snapshot is not None
        if not self._begun and self._background is not None:
            self._background.begin(self._snapshot.state_dict())
        self._begun = True
        ranks = self.trainer.encoders.processes
        # Once a second, so that a long wait is no time-out of the process group.
        while wait and not all(ranks.gather(self._background is None or self._background.finished(wait=1))):
            pass

    def _mine(self, number: int) -> None:
        trainer = self.trainer
        trainer.pool = trainer.retrieval.mine(number)
        due = trainer.control.should_log  # this entry must not take the place of the step's
        statistics = pool_statistics(trainer.pool)
        trainer.log({f"pool/{name}": value for name, value in statistics.items()})
        trainer.control.should_log = due
        empty, queries = int(statistics["empty_pools"]), int(statistics["queries"])
        if 2 * empty > queries and trainer.is_world_process_zero():
            dropped = [f"{name} {count:,}" for name, count in trainer.pool.dropped.items() if count]
            logger.warning(
                f"{trainer.output_folder.name}: no candidate is left for {empty} of {queries} training queries, so "
                f"their negatives are random passages. Dropped: {', '.join(dropped) or 'none'}. If a filter drops too "
                "many, loosen it or leave it out"
            )

    def _use_pool(self) -> None:
        lists = self.trainer.collator.lists
        lists.pool, lists.known_positives = with_stored_lists(self.trainer.pool, self.trainer)


def _refresh_device(name: str | None, training: torch.device) -> torch.device | None:
    """The device of `refresh_device`; ValueError where it cannot encode as the device of the training does."""
    if name is None:
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"refresh_device={name!r}: expected a device of torch, such as 'cuda:1'") from None
    if device.type != training.type:
        raise ValueError(
            f"refresh_device={name!r}: training is on {training}, and another kind of device rounds differently; "
            f"expected a {training.type} device"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"refresh_device={name!r}: this machine shows {torch.cuda.device_count()} GPUs")
    return device
