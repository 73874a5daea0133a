"""Scores existing training lists with a ranker, for a retriever that learns from stored scores."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from sentence_transformers import CrossEncoder

from hf_ar2.augmentation.scored import cached_block
from hf_ar2.collections import Collection
from hf_ar2.collections.tables import arrow_column, content_hash
from hf_ar2.encoding.inputs import RankerInputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.index.encoders import Encoders
from hf_ar2.models.loading import bf16_is_faster, weights_fingerprint
from hf_ar2.progress import progress_bar
from hf_ar2.settings.augment import ScoreConfig
from hf_ar2.training_lists.stored import TrainingLists, load_training_lists, save_training_lists

# Lists per block on disk; an interrupted run repeats at most one block.
_BLOCK = 128


def score_lists(
    lists: TrainingLists,
    collection: Collection,
    ranker: CrossEncoder,
    folder: str | Path,
    args: ScoreConfig,
    *,
    name: str | None = None,
) -> TrainingLists:
    """The same lists with the ranker's scores instead of their own, written to another folder.

    Scores are cached in blocks, so that an interrupted run resumes.

    Args:
        collection: has the passages, and the queries that are not in the folder of the lists.
        folder: for the scored lists; older ones are replaced.
        name: of the ranker, for the manifest.
    """
    folder = Path(folder)
    if folder.resolve() == lists.folder.resolve():
        raise ValueError(f"{folder} is the folder of the lists to score; expected another folder to write to")
    work = folder / "work"
    if lists.queries is not None:
        collection = collection.with_queries(lists.queries)
    pool = lists.to_pool(collection)
    rows = np.concatenate([pool.positive_rows, pool.passage_rows], axis=1)
    device = ranker.device
    encoders = Encoders(
        device,
        Processes.current(device),
        bf16=bf16_is_faster(device) if args.bf16 is None else args.bf16,
        budget=args.batch_tokens or (65536 if device.type == "cuda" else 2048),
        show_progress=False,
    )
    inputs = RankerInputs(ranker.eval(), collection, work / "cache", args, processes=encoders.processes)
    scores = _scores(encoders, ranker, inputs, pool.query_rows, rows, work / "scores")
    if encoders.processes.is_first:
        real = rows >= 0
        offsets = np.append(0, np.cumsum(real.sum(axis=1))).astype(np.int32)
        kept = ("query_id", "positive_ids", "negative_ids", "kind")
        columns = {column: arrow_column(lists.dataset, column) for column in kept}
        columns["scores"] = pa.ListArray.from_arrays(offsets, pa.array(scores[real], type=pa.float32()))
        manifest = {key: of for key, of in lists.manifest.items() if key not in ("format", "fingerprint")}
        manifest["teacher"] = {
            "written_by": f"hf-ar2 {version('hf-ar2')}",
            "name": name,
            "weights": weights_fingerprint(ranker),
            "max_query_length": args.max_query_length,
            "max_pair_length": inputs.max_pair_length,
            "bf16": encoders.bf16,
        }
        save_training_lists(folder, Dataset(pa.table(columns)), manifest, lists.queries)
    encoders.processes.share(folder, "*")
    return load_training_lists(folder)


def _scores(
    encoders: Encoders,
    ranker: CrossEncoder,
    inputs: RankerInputs,
    query_rows: np.ndarray,
    rows: np.ndarray,
    folder: Path,
) -> np.ndarray:
    """The ranker's scores of passages `[Q, L]`, float32, -inf under row -1; blocks on disk are reused."""
    folder.mkdir(parents=True, exist_ok=True)
    stores = inputs.query_store.fingerprint, inputs.passage_store.fingerprint
    settings = f"{inputs.max_pair_length} {encoders.precision}"
    fingerprint = "\0".join((weights_fingerprint(ranker), *stores, settings)).encode()
    scores = np.full(rows.shape, -np.inf, np.float32)

    def score(block: slice) -> dict[str, np.ndarray]:
        return {"scores": encoders.rank(ranker, inputs, query_rows[block], rows[block])}

    with progress_bar(total=len(rows), description="Scoring", unit="lists") as bar:
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            path = folder / f"{content_hash(fingerprint, query_rows[block], rows[block])}.npz"
            scores[block] = cached_block(path, encoders.processes, partial(score, block))["scores"]
            bar.update(len(rows[block]))
    return scores
