"""Building, writing and reading FAISS indexes.

FAISS comes in two packages (CPU and GPU), so it is an optional dependency, imported when it is needed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.files import writing
from hf_ar2.index.shards import Shards

_ROWS_PER_BLOCK = 65_536
_POINTS_PER_CENTROID = 256  # FAISS's k-means uses no more


def import_faiss() -> Any:
    """The module `faiss`; an ImportError names the two extras that install it."""
    try:
        import faiss
    except (ImportError, RuntimeError) as error:  # faiss-gpu raises RuntimeError without its CUDA libraries
        raise ImportError(
            f"FAISS cannot be imported ({error}). In the checkout of hf_ar2, install it for the CPU "
            'with `pip install -e ".[cpu]"`, or for an NVIDIA GPU on Linux x86_64 with '
            '`pip install -e ".[gpu]"`; not both, they overwrite each other.'
        ) from error
    return faiss


def faiss_has_gpu(faiss: Any) -> bool:
    """Whether this build of FAISS can search on a GPU of this machine.

    A GPU build can be imported on a machine without a GPU and fails only later, so the GPUs are counted.
    """
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def new_faiss_index(factory: str, dim: int) -> Any:
    """An empty inner-product index of a FAISS factory string; ValueError if FAISS cannot build it for `dim`."""
    faiss = import_faiss()
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot make an inner-product index {factory!r} of {dim}-dimensional vectors: {error}. Common "
            "factories are 'Flat', 'IVF256,Flat', 'HNSW32', 'SQ8', 'PQ48'; a PQ's number must divide the dimension."
        ) from error


def fill_faiss_index(index: Any, embeddings: np.ndarray | Shards, seed: int) -> None:
    """Train an empty index if its type needs it, and add embeddings [N, d] of any float dtype.

    The training sample is drawn from all rows, because the beginning of an ordered corpus is unlike the rest.
    Polysemous
    codes are left out: they take a second or more for each byte of a vector and change no result of the searches here.

    Raises:
        ValueError: too few embeddings to train on.
    """
    faiss = import_faiss()
    if not index.is_trained:
        inverted_lists = faiss.try_extract_index_ivf(index)
        centroids = max(256, inverted_lists.nlist if inverted_lists is not None else 0)
        size = min(len(embeddings), centroids * _POINTS_PER_CENTROID)
        _set_training(index)
        sample = np.sort(np.random.default_rng(seed).choice(len(embeddings), size, replace=False))
        try:
            index.train(np.ascontiguousarray(embeddings[sample], np.float32))
        except RuntimeError as error:
            raise ValueError(
                f"{len(embeddings)} passages are too few to train this {type(index).__name__}: {error}. "
                "Use a factory with fewer lists or centroids, or 'Flat', which needs no training."
            ) from error
    for start in range(0, len(embeddings), _ROWS_PER_BLOCK):
        index.add(np.ascontiguousarray(embeddings[start : start + _ROWS_PER_BLOCK], np.float32))


def _set_training(index: Any) -> None:
    """Leave out polysemous codes, and the hundreds of warnings that 256 centroids need 9,984 passages."""
    faiss = import_faiss()
    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            transform = faiss.downcast_VectorTransform(index.chain.at(number))
            if isinstance(transform, faiss.OPQMatrix) and transform.pq is None:
                transform.pq = faiss.ProductQuantizer(transform.d_out, transform.M, 8)
                transform.pq.this.disown()  # the index keeps the bare pointer
                transform.pq.cp.min_points_per_centroid = 1
        index = faiss.downcast_index(index.index)
    holders: list[Any] = [index, getattr(index, "pq", None)]
    for holder in holders:
        if getattr(holder, "cp", None) is not None:
            holder.cp.min_points_per_centroid = 1
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False


def faiss_bytes(index: Any, passages: int) -> int:
    """About how many bytes the file of an index takes with this many passages."""
    faiss = import_faiss()
    try:
        code = index.sa_code_size()
    except RuntimeError:  # an index without codes of a fixed size
        code = 4 * index.d
    graph = faiss.downcast_index(index)
    links = 4 * graph.hnsw.nb_neighbors(0) if hasattr(graph, "hnsw") else 0
    return int(passages * (code + links))


def write_faiss_index(index: Any, path: Path) -> None:
    """Write an index to `path`; an interrupted write, or an OSError of a full disk, leaves no file there."""
    faiss, temporary = import_faiss(), path.with_name(path.name + ".tmp")
    try:
        # Python's own file: FAISS does not check whether the end of its file was written.
        with writing(path, faiss_bytes(index, index.ntotal)), open(temporary, "wb") as file:
            try:
                faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
            except RuntimeError as error:
                raise OSError(f"write error: {error}") from error
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_faiss_index(path: Path) -> Any:
    """Open an index, mapped if FAISS can map its type, so that processes share its pages; ValueError if it is
    unreadable.
    """
    faiss = import_faiss()
    try:
        # The flag maps large arrays (Flat, codes, graphs); other types are read into memory.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:
        try:
            return faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(
                f"{path} is not a FAISS index that can be read: {error}. Build it again."
            ) from error
