"""Running models outside training steps: embeddings of queries and passages, scores of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_ar2.encoding.batches import encode_rows, run_batches, token_budget_batches
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.inputs import RankerInputs, RetrieverInputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.search import merge, search_in_ranges
from hf_ar2.models.bf16_on_cpu import bf16_copy
from hf_ar2.models.joint import embed, score_pairs
from hf_ar2.models.loading import Task
from hf_ar2.progress import progress_bar

# Scores (4 bytes) and rows (8 bytes) that the ranks exchange at a time, those of all ranks together.
_CELLS_PER_EXCHANGE = 2**24


@dataclass(frozen=True)
class Encoders:
    """How models run outside a training step.

    Args:
        bf16: encode in bf16: on a CPU with a copy of the weights in bf16, elsewhere under autocast.
        budget: padded tokens of a batch.
        processes: the ranks that share the work.
        show_progress: progress bars, on rank 0.
    """

    device: torch.device
    processes: Processes
    bf16: bool = False
    budget: int = 8192
    show_progress: bool = True

    def autocast(self) -> torch.autocast:
        """bf16 autocast, if `bf16` is set."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def precision(self) -> str:
        """What `bf16` does to results, for fingerprints: "False" (nothing), "True" (autocast) or "bf16 weights"."""
        return "bf16 weights" if self._copies else str(self.bf16)

    @property
    def _copies(self) -> bool:
        # Autocast would convert the weights for every batch, and add and normalise in float32.
        return self.bf16 and self.device.type == "cpu"

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and not self._copies),
        ):
            yield

    @property
    def progress(self) -> bool:
        """Whether this rank shows progress bars."""
        return self.show_progress and self.processes.is_first

    def embedder(
        self, retriever: SentenceTransformer, task: Task
    ) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
        """A function from features to float32 embeddings, without gradient.

        In bf16 on a CPU it encodes with a copy of the weights that its first call makes; otherwise each call uses the
        current weights, in the mode that the caller has set.
        """
        # The copy is made at the first batch, because an existing index needs none.
        model = cache(lambda: bf16_copy(retriever) if self._copies else retriever)

        def encode(features: dict[str, torch.Tensor]) -> torch.Tensor:
            with self._inference():
                return embed(model(), features, task)

        return encode

    def embed_queries(
        self,
        retriever: SentenceTransformer,
        inputs: RetrieverInputs,
        rows: np.ndarray,
        description: str = "Queries",
    ) -> np.ndarray:
        """Embeddings of query rows `[Q]`: float32 `[Q, d]`, on every rank; each rank encodes its share."""
        out = self._embed(
            retriever,
            "query",
            inputs.query_builder,
            inputs.query_store,
            rows,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            description=description,
            show_progress=self.progress,
        )
        return self.processes.combine(out)

    def embed_passages(
        self, retriever: SentenceTransformer, inputs: RetrieverInputs, rows: np.ndarray
    ) -> np.ndarray:
        """Embeddings of a few passage rows `[P]`: float32 `[P, d]`; every rank encodes all of them."""
        builder, store = inputs.passage_builder, inputs.passage_store
        return self._embed(retriever, "document", builder, store, rows, show_progress=False)

    def _embed(
        self,
        retriever: SentenceTransformer,
        task: Task,
        builder: InputBuilder,
        store: TokenStore,
        rows: np.ndarray,
        **options: Any,
    ) -> np.ndarray:
        out = np.zeros((len(rows), _dimension(retriever)), np.float32)
        with _evaluation_mode(retriever):
            encode = self.embedder(retriever, task)
            encode_rows(encode, builder, store, rows, out, budget=self.budget, device=self.device, **options)
        return out

    def build_index(
        self,
        retriever: SentenceTransformer,
        inputs: RetrieverInputs,
        folder: str | Path,
        fingerprint: str,
        factory: str = "Flat",
        dtype: str = "float32",
        **options: Any,
    ) -> CorpusIndex:
        """Encode the corpus (each rank its share) and index it, or reuse the index with this fingerprint; see
        `CorpusIndex.build`.
        """
        with _evaluation_mode(retriever):
            return CorpusIndex.build(
                self.embedder(retriever, "document"),
                inputs.passage_builder,
                inputs.passage_store,
                folder,
                fingerprint=fingerprint,
                dim=_dimension(retriever),
                factory=factory,
                dtype=dtype,
                device=self.device,
                budget=self.budget,
                processes=self.processes,
                show_progress=self.progress,
                **options,
            )

    def search(
        self, index: Any, queries: np.ndarray, k: int, ranges: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `index.search`, on every rank: all call this with the same queries `[Q, d]`.

        Each rank searches its share of the rows of a `CorpusIndex` of the factory "Flat" for all queries, and its share
        of the queries in any other index. An exchange takes at most 200 MB in addition to the results. `ranges` are
        those of `search_in_ranges`.
        """
        return search_in_ranges(partial(self._search, index), queries, k, ranges)

    def _search(
        self, index: Any, queries: np.ndarray, k: int, within: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        ranks = self.processes
        if ranks.world_size == 1:
            return index.search(queries, k, within=within)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        by_rows = isinstance(index, CorpusIndex) and index.factory == "Flat"
        step = max(1, _CELLS_PER_EXCHANGE // (max(k, 1) * ranks.world_size))
        for start in range(0, len(queries), step):
            part, block = slice(start, start + step), queries[start : start + step]
            if by_rows:
                own = index.search(block, k, ranks.rank, ranks.world_size, within)
                both = [np.hstack(ranks.gather_arrays(array)) for array in own]
                scores[part], rows[part] = merge(both[0], both[1], k)
            else:
                found = np.zeros((len(block), k), np.float32), np.zeros((len(block), k), np.int64)
                share = slice(ranks.rank, None, ranks.world_size)
                found[0][share], found[1][share] = index.search(block[share], k, within=within)
                scores[part], rows[part] = ranks.combine(found[0]), ranks.combine(found[1])
        return scores, rows

    def rank(
        self,
        ranker: CrossEncoder,
        inputs: RankerInputs,
        query_rows: np.ndarray,
        passage_rows: np.ndarray,
        description: str = "Ranking",
    ) -> np.ndarray:
        """Ranker scores of each query's candidates: float32 `[Q, k]` on every rank, -inf under the padding.

        `query_rows` are int64 `[Q]`, and `passage_rows` int64 `[Q, k]`, padded with -1.
        """
        scores = np.zeros(passage_rows.shape, np.float32)
        cells = np.flatnonzero(passage_rows.reshape(-1) >= 0)
        queries = np.repeat(query_rows, passage_rows.shape[1])[cells]
        passages = passage_rows.reshape(-1)[cells]
        lengths = inputs.pair_lengths(queries, passages)
        batches = token_budget_batches(lengths, self.budget)[self.processes.rank :: self.processes.world_size]
        flat = scores.reshape(-1)
        total = int(sum(lengths[batch].sum() for batch in batches))
        model = bf16_copy(ranker) if self._copies else ranker

        def score(features: dict[str, torch.Tensor]) -> torch.Tensor:
            with self._inference():
                return score_pairs(model, features)

        def build(batch: np.ndarray) -> dict[str, torch.Tensor]:
            return inputs.pairs(queries[batch], passages[batch])

        with (
            _evaluation_mode(ranker),
            progress_bar(total=total, description=description, unit="tok", show=self.progress) as bar,
        ):
            for batch, found in run_batches(score, build, batches, self.device):
                flat[cells[batch]] = found
                bar.update(int(lengths[batch].sum()))
        scores = self.processes.combine(scores)
        if bad := int((~np.isfinite(scores.reshape(-1)[cells])).sum()):
            raise ValueError(
                f"the ranker's scores of {bad:,} of {len(cells):,} pairs are not finite. Check its weights for NaN; if "
                "it was being trained, it diverged: lower its learning rate"
            )
        scores[passage_rows < 0] = -np.inf
        return scores


@contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    yield
    model.train(training)


def _dimension(retriever: SentenceTransformer) -> int:
    dim = retriever.get_embedding_dimension()
    assert dim is not None
    return dim
