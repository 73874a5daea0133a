"""Product quantisation with trained centroids (JPQ); the codes and the rotation are not trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_ar2.index.faiss_build import import_faiss


class Codebook(nn.Module):
    """The centroids of a FAISS product quantiser as a parameter, with differentiable scores.

    The code of passage n selects a centroid in each of M subspaces. With the index's rotation A (the identity if it has
    none), the inner product with a query q is

    .. math:: s(q, n) = \\sum_m (A q)_m \\cdot C_{m, code(n, m)}

    The codes are not a buffer, so that neither checkpoints nor `DistributedDataParallel` copy them.

    Args:
        index: a `faiss.IndexPQ` of 8 bits with inner products, in memory (not mapped), with or without linear
            transforms before it (`OPQ48,PQ48`). `write_back` changes it; another type raises ValueError.

    Attributes:
        centroids: parameter float32 `[M, 256, d/M]`. codes: uint8 `[N, M]`.

    Source: JPQ (arXiv 2108.00644); jingtaozhan/JPQ.
    """

    def __init__(self, index: Any) -> None:
        super().__init__()
        faiss = import_faiss()
        rotation, inner = None, index
        if isinstance(index, faiss.IndexPreTransform):
            rotation = _rotation(index)
            inner = faiss.downcast_index(index.index)
        if not isinstance(inner, faiss.IndexPQ) or inner.pq.nbits != 8:
            raise ValueError(
                f"only the centroids of an 8-bit product quantiser can be trained, found {type(inner).__name__}; use "
                f"an index like 'PQ48' or 'OPQ48,PQ48', which keeps 48 bytes per passage"
            )
        if inner.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("the index compares by L2 distance, expected inner products")
        self._inner = inner
        self._index = index  # owns what `_inner` points to
        pq = inner.pq
        self.codes = torch.from_numpy(faiss.vector_to_array(inner.codes).reshape(inner.ntotal, pq.M))
        values = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)
        self.centroids = nn.Parameter(torch.from_numpy(values.copy()))
        self.rotation: Tensor | None
        self.register_buffer("rotation", rotation, persistent=False)

    def forward(self, queries: Tensor, positions: Tensor, centroids: Tensor | None = None) -> Tensor:
        """Scores float32 `[B, L]` that the index gives after `write_back`.

        Args:
            queries: float32 `[B, d]`. positions: int64 `[B, L]`, in the index.
            centroids: as returned by the joint model's forward; None: the parameter itself.
        """
        centroids = self.centroids if centroids is None else centroids
        rotated = queries if self.rotation is None else queries @ self.rotation.T
        subspaces, _, width = centroids.shape
        # [B, M, 256]: each query against every centroid of its subspace
        table = torch.einsum("bmd,mkd->bmk", rotated.view(len(queries), subspaces, width), centroids)
        codes = self.codes[positions.cpu()].to(positions.device).long()
        return table.gather(2, codes.transpose(1, 2)).sum(dim=1)

    def write_back(self) -> None:
        """Copy the current centroids into the index."""
        values = np.ascontiguousarray(self.centroids.detach().float().cpu().numpy()).reshape(-1)
        import_faiss().copy_array_to_vector(values, self._inner.pq.centroids)


def _rotation(index: Any) -> Tensor:
    """The linear transforms before an index as one matrix, float32 `[d_out, d_in]`."""
    faiss = import_faiss()
    matrix = np.eye(index.d, dtype=np.float32)
    for number in range(index.chain.size()):
        transform = faiss.downcast_VectorTransform(index.chain.at(number))
        if not isinstance(transform, faiss.LinearTransform) or transform.have_bias:
            raise ValueError(
                f"a {type(transform).__name__} comes before the product quantiser; expected only rotations (OPQ)"
            )
        step = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
        matrix = step @ matrix
    return torch.from_numpy(np.ascontiguousarray(matrix))
