"""Training lists: which queries a step trains on, and with which passages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers.utils import logging

from hf_ar2.collections import Collection
from hf_ar2.collections.judgments import Judgments
from hf_ar2.collections.tables import content_hash
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.losses.list_scores import ListScores
from hf_ar2.trainers.config import JointConfig
from hf_ar2.trainers.phases import PhaseCycle
from hf_ar2.training_lists.list_sampler import ListSampler, NegativeSampler
from hf_ar2.training_lists.pool import CandidatePool, build_pool, concatenate_pools, padded_positives
from hf_ar2.training_lists.stored import OF_COLLECTION, lists_of, load_training_lists

if TYPE_CHECKING:
    from hf_ar2.trainers.joint import JointTrainer
    from hf_ar2.trainers.retrieval import Retrieval

logger = logging.get_logger(__name__)

_UNLIMITED = 1 << 30
# The fields that `Lists`, a batch and its `ListScores` share.
_LIST_FIELDS = ("mask", "positives", "query_rows", "passage_rows", "known_positives")


# ---- The order of lists ---------------------------------------------------------------------------------------------


class Positions(Dataset):
    """A dataset whose items are positions in the run, also beyond its length; the collator makes lists of them."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> int:
        return position


class RoundSampler(Sampler[int]):
    """Yields the positions of the current round in order; the round is read anew in every epoch."""

    def __init__(self, length: int, current_round: Callable[[], int]) -> None:
        self.length = length
        self.current_round = current_round

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        start = self.current_round() * self.length
        return iter(range(start, start + self.length))


# ---- Batches --------------------------------------------------------------------------------------------------------


@dataclass
class ListCollator:
    """Turns positions into the inputs of one forward pass.

    It holds only plain data, so that worker processes can get a copy. They are started again in every epoch, after the
    refresh, so that they draw from the pool of the round.

    Args:
        step_tokens, mini_batch_size: most padded tokens, and most rows, of a chunk.
    """

    lists: ListSampler
    phases: PhaseCycle
    retriever_inputs: RetrieverInputs | None
    ranker_inputs: RankerInputs | None
    step_tokens: int
    mini_batch_size: int | None = None

    def __call__(self, positions: list[int]) -> dict[str, Any]:
        lists_per_step = self.lists.lists_per_step
        step = int(positions[0]) // lists_per_step
        phase = self.phases.phase(step)
        # Positions are counted within a phase.
        earlier = (step - self.phases.steps_before(phase, step)) * lists_per_step
        lists = self.lists(np.asarray(positions, np.int64) - earlier, self.phases.names.index(phase))
        batch: dict[str, Any] = {name: torch.from_numpy(getattr(lists, name)) for name in _LIST_FIELDS}
        batch["phase"] = phase
        if lists.scores is not None:
            batch["teacher_scores"] = torch.from_numpy(lists.scores)
        inputs, limits = self.phases[phase].inputs, (self.step_tokens, self.mini_batch_size)
        # Masked places repeat the list's first positive, which is encoded anyway, so they cost nothing.
        rows = np.where(lists.mask, lists.passage_rows, lists.passage_rows[:, :1])
        if "queries" in inputs:
            assert self.retriever_inputs is not None
            batch["queries"] = self.retriever_inputs.query_chunks(lists.query_rows, *limits)
        if "passages" in inputs:
            assert self.retriever_inputs is not None
            batch["passages"] = self.retriever_inputs.passage_chunks(rows.reshape(-1), *limits)
        if "pairs" in inputs:
            assert self.ranker_inputs is not None
            cells = np.flatnonzero(lists.mask.reshape(-1))
            queries = np.repeat(lists.query_rows, rows.shape[1])
            batch["pairs"] = self.ranker_inputs.pair_chunks(queries[cells], rows.reshape(-1)[cells], *limits)
        return batch


def positions_alone(positions: list[int]) -> dict[str, Any]:
    """A batch whose lists are drawn when its step begins."""
    return {"positions": torch.tensor(positions)}


def make_collator(trainer: JointTrainer, sampler: NegativeSampler | None) -> ListCollator:
    """The collator of a trainer, with positives only until candidates are mined."""
    args, collection = trainer.args, trainer.collection
    pool, known = with_stored_lists(None, trainer)
    lists = ListSampler(
        pool=pool,
        known_positives=known,
        corpus_size=len(collection.corpus),
        num_negatives=args.num_negatives,
        num_positives=args.num_positives,
        seed=args.seed if args.data_seed is None else args.data_seed,
        sampler=sampler or args.sampler,
        simans_a=args.simans_a,
        simans_b=args.simans_b,
        first_positive=args.first_positive,
        with_scores=args.distils_stored_scores,
        member_rows=collection.member_rows if collection.members else None,
        member_weights=np.array(list(collection.members.values())) if collection.members else None,
        lists_per_step=trainer.global_batch,
    )
    on_cpu = args.device.type == "cpu" and not args.shard_weights
    return ListCollator(
        lists=lists,
        phases=trainer.phases,
        retriever_inputs=trainer.retrieval.retriever_inputs,
        ranker_inputs=trainer.retrieval.ranker_inputs,
        step_tokens=args.step_tokens or (2048 if on_cpu else _UNLIMITED),
        mini_batch_size=args.mini_batch_size,
    )


def scores_of_lists(outputs: dict[str, Tensor], batch: dict[str, Any], retrieval: Retrieval) -> ListScores:
    """The scores of a batch of the collator, from the outputs of `JointModel.forward`."""
    fields: dict[str, Any] = {name: batch[name] for name in _LIST_FIELDS}
    fields["teacher_scores"] = batch.get("teacher_scores")
    mask = batch["mask"]
    if "passage_embeddings" in outputs:
        queries = outputs["query_embeddings"]
        passages = outputs["passage_embeddings"].view(*mask.shape, -1)
        temperature = retrieval.retriever_temperature
        fields |= {"query_embeddings": queries, "passage_embeddings": passages}
        fields["retriever_scores"] = torch.einsum("bd,bld->bl", queries, passages) / temperature
        fields["retriever_temperature"] = temperature
    if "pair_scores" in outputs:
        pairs = outputs["pair_scores"]
        fields["ranker_scores"] = pairs.new_zeros(mask.shape).masked_scatter(mask, pairs)
    return ListScores(**fields)


# ---- Lists that were written before the run -------------------------------------------------------------------------


def read_stored_lists(collection: Collection, args: JointConfig) -> tuple[Collection, CandidatePool | None]:
    """Read the lists that `train_lists` names: folders, and `collection` for those of the collection.

    Returns:
        The collection with the queries that only the lists have, and a pool with one entry per list, if there are any.

    Raises:
        ValueError: there is no list of `train_list_kinds`, a negative is judged relevant in `train_split`, or a list
            has no scores although distillation or SimANS needs them.
    """
    if not args.train_lists:
        return collection, None
    stored = [
        lists_of(collection, args.train_split) if name == OF_COLLECTION else load_training_lists(name)
        for name in args.train_lists
    ]
    for lists in stored:
        if lists.queries is not None:
            collection = collection.with_queries(lists.queries)
    pools = [lists.to_pool(collection, kinds=args.train_list_kinds) for lists in stored]
    if not any(map(len, pools)):
        kinds = "at all" if args.train_list_kinds is None else f"of the kinds {args.train_list_kinds}"
        raise ValueError(f"train_lists={args.train_lists}: no list {kinds}")
    judgments = collection.judgments(args.train_split).positives()
    for folder, pool in zip(args.train_lists, pools, strict=True):
        _check_negatives(folder, pool, judgments, collection, args.train_split)
        needs_scores = args.distils_stored_scores or args.sampler == "simans"
        if needs_scores and np.isnan(pool.positive_scores).any():
            row = int(np.flatnonzero(np.isnan(pool.positive_scores).any(axis=1))[0])
            query = collection.queries["id"][int(pool.query_rows[row])]
            raise ValueError(
                f"{folder}: a list of query {query!r} has no scores; expected a teacher's score of every passage. "
                "Write them with: hf-ar2 score"
            )
    if args.eval_split in collection.qrels:
        evaluated = collection.judgments(args.eval_split).query_rows
        if leaked := sum(int(np.isin(pool.query_rows, evaluated).sum()) for pool in pools):
            logger.warning(
                f"{leaked} of the stored lists are of queries of eval_split={args.eval_split!r}, so the evaluation "
                "measures queries that are trained on"
            )
    return collection, concatenate_pools([pool for pool in pools if len(pool)])


def with_stored_lists(
    mined: CandidatePool | None, trainer: JointTrainer
) -> tuple[CandidatePool, np.ndarray | None]:
    """One pool of mined lists (if there are any yet) and stored ones, and the passages that cannot be its negatives.

    Returns:
        The pool, and int32 `[Q, P]`, padded with -1: the positives of each entry, the judged positives of its query,
        and the query itself if it is a passage. None if these are only the pool's positives.
    """
    own_rows = trainer.collection.own_rows
    if mined is None and trainer.args.mine:
        judgments = trainer.retrieval.train_judgments
        nothing = np.zeros((len(judgments), 0), np.int64)
        mined = build_pool(nothing, nothing, judgments, depth=0)  # only positives
    if trainer.stored is None:
        assert mined is not None
        pool, known = mined, [mined.positive_rows]
    else:
        pool = trainer.stored if mined is None else concatenate_pools([mined, trainer.stored])
        known = [pool.positive_rows, _judged(pool, trainer.retrieval.train_judgments)]
    if (own_rows >= 0).any():
        known.append(own_rows[pool.query_rows][:, None].astype(np.int32))
    return pool, np.concatenate(known, axis=1) if len(known) > 1 else None


def stored_fingerprint(stored: CandidatePool | None) -> str:
    """A content hash of stored lists; "none" without any."""
    if stored is None:
        return "none"
    return content_hash(
        stored.query_rows, stored.passage_rows, stored.positive_rows, stored.scores, stored.positive_scores
    )


def _judged(pool: CandidatePool, judgments: Judgments) -> np.ndarray:
    """The judged positives of each entry's query, int32 `[Q, P]`; -1 as padding and for queries without judgments."""
    positives = padded_positives(judgments)
    place = np.searchsorted(judgments.query_rows, pool.query_rows)
    place = np.minimum(place, len(judgments) - 1)
    there = judgments.query_rows[place] == pool.query_rows
    return np.where(there[:, None], positives[place], np.int32(-1))


def _check_negatives(
    folder: str, pool: CandidatePool, judgments: Judgments, collection: Collection, split: str
) -> None:
    """Raise ValueError where a list has a negative that is judged relevant."""
    judged = _judged(pool, judgments)
    for column in judged.T:
        entries, places = np.nonzero((pool.passage_rows == column[:, None]) & (pool.passage_rows >= 0))
        if len(entries):
            query = collection.queries["id"][int(pool.query_rows[entries[0]])]
            passage = collection.corpus["id"][int(pool.passage_rows[entries[0], places[0]])]
            raise ValueError(
                f"{folder}: a list of query {query!r} has passage {passage!r} as a negative, which split {split!r} "
                "judges relevant; write the lists again with these judgments"
            )
