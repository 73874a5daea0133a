"""FAISS comes in two packages (CPU and GPU), so it is an optional dependency, imported when it is needed."""

from __future__ import annotations

from typing import Any


def import_faiss() -> Any:
    """The module `faiss`.

    Raises:
        ImportError: it is missing or cannot be loaded; the message names the two extras that install it.
    """
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
