"""Encoding many stored texts in length-sorted batches with about the same number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.progress import progress_bar

Encode = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def token_budget_batches(lengths: np.ndarray, budget: int, max_rows: int | None = None) -> list[np.ndarray]:
    """Split rows into batches of similar length whose padded size stays within a budget of tokens.

    Args:
        lengths: int [N], tokens per row, special tokens included.
        budget: most tokens of a padded batch (rows × longest); a single row may exceed it. max_rows: most rows.

    Returns:
        int64 indices, each of 0..N-1 once, the longest rows first, so that memory runs out at once or never.

    Example:
        >>> [batch.tolist() for batch in token_budget_batches(np.array([2, 9, 3, 2]), budget=9)]
        [[1], [2, 0, 3]]
    """
    if budget < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(f"budget and max_rows must be at least 1, found {budget} and {max_rows}")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, int(lengths[order[start]])))
        if max_rows is not None:
            rows = min(rows, max_rows)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def encode_rows(
    encode: Encode,
    builder: InputBuilder,
    store: TokenStore,
    rows: np.ndarray | Sequence[int],
    out: np.ndarray,
    *,
    budget: int = 16384,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world_size: int = 1,
    description: str = "Encoding",
    show_progress: bool = True,
) -> np.ndarray:
    """Encode stored texts without gradient: `out[i]` becomes the embedding of row `rows[i]`.

    Args:
        encode: from model inputs on `device` to embeddings [b, d] of any float dtype, in evaluation mode and
        normalised.
        out: float32 or float16 [N, d], an array or a memory map opened for writing.
        budget: most tokens of a padded batch.
        rank, world_size: this process encodes every world_size-th batch, from `rank` on, and leaves the other rows of
            `out` unchanged.

    Returns:
        uint64 [N]: `word_sums` of the embeddings written to `out`; 0 for rows of other processes.

    Raises:
        ValueError: embeddings of another shape than `out`, or not finite; the message names the row.
    """
    rows = np.asarray(rows, np.int64)
    if out.ndim != 2 or len(out) != len(rows):
        raise ValueError(f"out must be [{len(rows)}, d]; found shape {out.shape}")
    lengths = builder.single_lengths(store, rows)
    batches = token_budget_batches(lengths, budget)[rank::world_size]
    total = int(sum(lengths[batch].sum() for batch in batches))
    sums = np.zeros(len(rows), np.uint64)
    with (
        torch.no_grad(),
        progress_bar(total=total, description=description, unit="tok", show=show_progress) as progress,
    ):
        for batch, embeddings in run_batches(
            encode, lambda b: builder.single(store, rows[b]), batches, device
        ):
            sums[batch] = word_sums(_write(batch, embeddings, rows, out))
            progress.update(int(lengths[batch].sum()))
    return sums


def word_sums(vectors: np.ndarray) -> np.ndarray:
    """A checksum of each vector, float32 or float16 [N, d]: the sum of its bits in words of 32 or 16, uint64 [N]."""
    return vectors.view(f"u{vectors.itemsize}").sum(axis=1, dtype=np.uint64)


def run_batches(
    encode: Encode,
    build: Callable[[np.ndarray], dict[str, torch.Tensor]],
    batches: Sequence[np.ndarray],
    device: str | torch.device,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each batch with its outputs, float32, while a GPU works on the next one.

    `build` makes the inputs of a batch, and `encode` turns inputs on `device` into outputs `[b, ...]` of any float
    dtype.
    """
    waiting: tuple[np.ndarray, Callable[[], np.ndarray]] | None = None
    for batch in batches:
        started = batch, _arriving(encode(_on_device(build(batch), torch.device(device))))
        if waiting is not None:
            yield waiting[0], waiting[1]()
        waiting = started
    if waiting is not None:
        yield waiting[0], waiting[1]()


def _on_device(inputs: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    if device.type == "cuda":
        return {name: t.pin_memory().to(device, non_blocking=True) for name, t in inputs.items()}
    return {name: t.to(device) for name, t in inputs.items()}


def _arriving(outputs: torch.Tensor) -> Callable[[], np.ndarray]:
    """A function that waits for outputs to arrive from the device."""
    # numpy has no bfloat16
    values = outputs.detach().float().to("cpu", non_blocking=outputs.is_cuda)
    if not outputs.is_cuda:
        return values.numpy
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(outputs.device))

    def wait() -> np.ndarray:
        arrived.synchronize()
        return values.numpy()

    return wait


def _write(batch: np.ndarray, embeddings: np.ndarray, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write a batch's embeddings to `out`; returns them in its dtype, for the checksums."""
    expected = (len(batch), out.shape[1])
    if embeddings.shape != expected:
        raise ValueError(
            f"encode returned embeddings of shape {embeddings.shape}, expected {expected}: "
            "one vector per row, of the dimension of out"
        )
    with np.errstate(over="ignore"):
        values = embeddings.astype(out.dtype, copy=False)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(rows[batch[np.argmin(finite)]])
        raise ValueError(
            f"the embedding of row {row} has values that are not finite in {out.dtype} "
            f"({int((~finite).sum())} of {len(values)} rows of its batch). Check the weights for NaN, "
            "or encode and store in float32. If the model was being trained, it diverged: lower the learning rate."
        )
    out[batch] = values
    return values
