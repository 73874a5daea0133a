"""Search with FAISS on the CPU or a GPU, or exact search by chunked matrix products in torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hf_ar2.index.faiss_build import faiss_has_gpu, import_faiss
from hf_ar2.index.shards import Shards

logger = logging.getLogger(__name__)

_FAISS_GPU_MAX_K = 2048
_OVER_FETCH = 32
_ROWS_PER_BLOCK = 131_072
NO_RANGES = (
    "cannot be searched in a part of its passages, which several collections need; expected index_factory 'Flat' "
    "(exact search) without search_parameters, and passages in the collections' order"
)


def query_matrix(queries: np.ndarray | torch.Tensor, dim: int) -> np.ndarray:
    """Queries [Q, dim] of any float dtype, numpy or torch, as a contiguous float32 array; ValueError if they do not
    fit.
    """
    if isinstance(queries, torch.Tensor):
        if queries.is_floating_point():
            queries = queries.float()  # numpy has no bfloat16
        queries = queries.detach().cpu().numpy()
    queries = np.asarray(queries)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(
            f"queries must be [Q, {dim}], one embedding per row; found shape {queries.shape}. "
            "A single query is queries[None]."
        )
    if not np.issubdtype(queries.dtype, np.floating):
        raise ValueError(f"queries must be embeddings of a float dtype, found {queries.dtype}")
    queries = np.ascontiguousarray(queries, np.float32)
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"query {int(np.argmin(finite))} has values that are not finite; check the weights for NaN"
        )
    return queries


def sort_ties(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort equal scores by row, lower first, in place; the [Q, k] arrays are already sorted by score."""
    unsorted = ((scores[:, 1:] == scores[:, :-1]) & (rows[:, 1:] < rows[:, :-1])).any(axis=1)
    if unsorted.any():
        order = np.lexsort((rows[unsorted], -scores[unsorted]), axis=1)
        rows[unsorted] = np.take_along_axis(rows[unsorted], order, axis=1)
        scores[unsorted] = np.take_along_axis(scores[unsorted], order, axis=1)
    return scores, rows


def merge(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of results `[Q, K]` that are sorted by `sort_ties` in parts of ascending rows, padded with -inf and
    -1.

    The higher score comes first, and of equal ones the lower row.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def search_in_ranges(
    search: Callable[..., tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray | torch.Tensor,
    k: int,
    ranges: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """What `search(queries, k, within=(start, stop))` finds for each query `[Q, d]` in its own range of rows.

    `ranges` are int64 `[Q, 2]`, see `Collection.searched_rows`; None: all rows.
    """
    if ranges is None:
        return search(queries, k)
    found = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for start, stop in np.unique(ranges, axis=0).tolist():
        own = np.flatnonzero((ranges == (start, stop)).all(axis=1))
        found[0][own], found[1][own] = search(queries[own], k, within=(start, stop))
    return found


def uses_torch(device: str | torch.device) -> bool:
    """Whether `TorchSearcher` does exact search on this device: a GPU that this build of FAISS cannot use."""
    return torch.device(device).type == "cuda" and not faiss_has_gpu(import_faiss())


class FaissSearcher:
    """Search in a FAISS index, on a GPU if FAISS can use one. The GPU path has not been run: it needs faiss-gpu and a
    GPU.

    Args:
        index: in memory or mapped. It is copied to a GPU if FAISS was built for GPUs and supports its type; HNSW, and
        PQ
            without IVF, are searched on the CPU, with a warning.
        search_parameters: such as "nprobe=16" or "efSearch=128"; None keeps the index's own.

    Raises:
        ValueError: the index does not have these search parameters.
    """

    def __init__(
        self, index: Any, device: str | torch.device = "cpu", search_parameters: str | None = None
    ) -> None:
        faiss = import_faiss()
        self.index = index
        self.on_gpu = False
        device = torch.device(device)
        if device.type == "cuda" and faiss_has_gpu(faiss):
            try:
                self._resources = faiss.StandardGpuResources()  # must live as long as the copy
                number = torch.cuda.current_device() if device.index is None else device.index
                self.index = faiss.index_cpu_to_gpu(self._resources, number, index)
                self.on_gpu = True
            except RuntimeError as error:
                kind = type(index).__name__
                logger.warning(f"FAISS cannot copy this {kind} to {device}, so the CPU searches it: {error}")
        if search_parameters:
            if "ht=" in search_parameters:
                raise ValueError("search_parameters: ht needs polysemous codes, which are not supported")
            space = faiss.GpuParameterSpace() if self.on_gpu else faiss.ParameterSpace()
            try:
                space.set_index_parameters(self.index, search_parameters)
            except RuntimeError as error:
                raise ValueError(
                    f"search_parameters {search_parameters!r} do not fit a {type(index).__name__}: {error}"
                ) from error

    def search(
        self, queries: np.ndarray, k: int, within: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [Q, k] and rows int64 [Q, k], best first, padded with -inf and -1; `within` is as for
        `CorpusIndex`.

        Raises:
            ValueError: k above 2048 on a GPU, FAISS's limit there; `within` for an index that is not `IndexFlat`.
        """
        if self.on_gpu and k > _FAISS_GPU_MAX_K:
            raise ValueError(
                f"k={k}: FAISS on a GPU returns at most {_FAISS_GPU_MAX_K} passages per query. "
                "Ask for fewer, or open the index with device='cpu'."
            )
        faiss, parameters = import_faiss(), None
        if within not in (None, (0, self.index.ntotal)):
            if not isinstance(self.index, faiss.IndexFlat):
                raise ValueError(f"a {type(self.index).__name__} {NO_RANGES}")
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorRange(*within))
        scores, rows = self.index.search(queries, k, params=parameters)
        scores[rows < 0] = -np.inf
        return sort_ties(scores, rows)


class FlatSearcher:
    """Exact inner-product search with FAISS on the CPU in float32 or float16 `[N, d]`; memory maps stay on the disk.

    Float16 embeddings are converted to float32 in blocks of 131,072.
    """

    def __init__(self, embeddings: np.ndarray | Shards) -> None:
        self.embeddings = embeddings

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [Q, k] and rows int64 [Q, k], best first, padded with -inf and -1."""
        faiss = import_faiss()
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        parts = self.embeddings.parts if isinstance(self.embeddings, Shards) else [self.embeddings]
        first = 0
        for part in parts if len(queries) else ():
            for start in range(0, len(part), _ROWS_PER_BLOCK):
                block = np.ascontiguousarray(part[start : start + _ROWS_PER_BLOCK], np.float32)
                found = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
                found_scores, found_rows = sort_ties(*found)
                both = np.hstack([scores, found_scores]), np.hstack([rows, found_rows + first])
                scores, rows = merge(*both, k)
                first += len(block)
        return scores, rows


class TorchSearcher:
    """Exact inner-product search with a half-precision copy of the embeddings on a device.

    Matrix products of half-precision embeddings, accumulated in float32, find k + 32 candidates, which are scored again
    in float32 against the stored embeddings. The result equals a float32 search unless rounding moves a passage of the
    best k by more than 32 places. That needs more than 32 passages within about 1e-5 (float16) or 1e-4 (bfloat16) of
    the k-th best score of unit vectors, so prefer float16 unless the embeddings exceed its range.

    Args:
        device: of the copy: N·d·2 bytes, and N·d·4 more for float32 embeddings if they need at most half of the GPU's
            free memory; else they are read from `embeddings` when scoring again.
        dtype: of the copy: torch.float16, or torch.bfloat16 if values exceed the range of float16 (ValueError).
        chunk_rows, chunk_queries: passages and queries of one matrix product of chunk_rows·chunk_queries·4 bytes.
    """

    def __init__(
        self,
        embeddings: np.ndarray | Shards,
        device: str | torch.device,
        dtype: torch.dtype = torch.float16,
        *,
        chunk_rows: int = 262_144,
        chunk_queries: int = 1024,
    ) -> None:
        self.embeddings = embeddings
        self.device = torch.device(device)
        self.chunk_rows = chunk_rows
        self.chunk_queries = chunk_queries
        self._half = torch.empty(embeddings.shape, dtype=dtype, device=self.device)
        exact_copy = embeddings.dtype == np.float16 and dtype == torch.float16
        self.stored = self._half if exact_copy else self._allocate_stored()
        for start in range(0, len(embeddings), chunk_rows):
            block = torch.from_numpy(np.array(embeddings[start : start + chunk_rows])).to(self.device)
            half = self._half[start : start + chunk_rows]
            half.copy_(block)
            if not torch.isfinite(half).all():
                raise ValueError(
                    f"embeddings of rows {start} to {start + len(block) - 1} exceed the range of {dtype}; "
                    "use dtype=torch.bfloat16"
                )
            if self.stored is not None and self.stored is not self._half:
                self.stored[start : start + chunk_rows].copy_(block)

    def _allocate_stored(self) -> torch.Tensor | None:
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        if self.embeddings.nbytes > free // 2:
            return None
        dtype = torch.float16 if self.embeddings.dtype == np.float16 else torch.float32
        return torch.empty(self.embeddings.shape, dtype=dtype, device=self.device)

    @torch.no_grad()
    def search(
        self, queries: np.ndarray, k: int, within: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [Q, k] and rows int64 [Q, k] of float32 queries, best first, padded with -inf and -1."""
        first, last = within or (0, len(self.embeddings))
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        found = min(k, last - first)
        for start in range(0, len(queries), self.chunk_queries):
            block = torch.from_numpy(queries[start : start + self.chunk_queries]).to(self.device)
            candidates = self._candidates(block, min(k + _OVER_FETCH, last - first), first, last)
            # Ascending rows and a stable sort put the lower row first where scores are equal.
            candidates = candidates.sort(dim=1).values
            exact = self._exact_scores(block, candidates)
            order = exact.argsort(dim=1, descending=True, stable=True)[:, :found]
            scores[start : start + len(block), :found] = exact.gather(1, order).cpu().numpy()
            rows[start : start + len(block), :found] = candidates.gather(1, order).cpu().numpy()
        return scores, rows

    def _candidates(self, queries: torch.Tensor, k: int, first: int, last: int) -> torch.Tensor:
        """Rows int64 [q, k] of the best half-precision scores among the rows from first to before last, unsorted."""
        half_queries = queries.to(self._half.dtype)
        best_scores = best_rows = None
        for start in range(first, last, self.chunk_rows):
            chunk = self._half[start : min(start + self.chunk_rows, last)]
            if self.device.type == "cuda":
                # Half-precision sums, rounded to 11 or 8 bits, are too coarse to rank by.
                products = torch.mm(half_queries, chunk.T, out_dtype=torch.float32)
            else:
                products = half_queries.float() @ chunk.float().T
            scores, rows = products.topk(min(k, len(chunk)), dim=1, sorted=False)
            rows += start
            if best_scores is not None and best_rows is not None:
                scores, rows = torch.cat([best_scores, scores], 1), torch.cat([best_rows, rows], 1)
                scores, kept = scores.topk(min(k, scores.shape[1]), dim=1, sorted=False)
                rows = rows.gather(1, kept)
            best_scores, best_rows = scores, rows
        assert best_rows is not None
        return best_rows

    def _exact_scores(self, queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """float32 [q, c] inner products with the stored embeddings, in blocks that bound the memory."""
        scores = torch.empty(candidates.shape, dtype=torch.float32, device=self.device)
        step = max(1, 2**26 // (candidates.shape[1] * self.embeddings.shape[1]))
        for start in range(0, len(candidates), step):
            rows = candidates[start : start + step]
            if self.stored is not None:
                vectors = self.stored[rows]
            else:
                vectors = torch.from_numpy(self.embeddings[rows.cpu().numpy()]).to(self.device)
            # A sum of products: a matrix product may run in reduced precision (TF32).
            scores[start : start + step] = (vectors.float() * queries[start : start + step, None]).sum(-1)
        return scores
