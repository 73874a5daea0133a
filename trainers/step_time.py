"""How long a training step and the encoding of a text take on this machine, measured without training."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.retrieval import Retrieval

Clock = Callable[[], float]
# Steps that are timed after the first one, which is slower.
_TIMED = 2
# Passages that are encoded to learn the speed.
_SAMPLE = 128


def step_seconds(trainer: JointTrainer, step: int, clock: Clock) -> float:
    """Seconds of a training step: batches, forward and backward passes; no weight moves.

    The trainer has begun its round (`begin_round`), so that its lists are there.

    Args:
        step: a global step; it and the next ones, of the same phase, are timed.
        clock: returns seconds, as `time.monotonic` or `time.process_time`.

    Returns:
        The median of two steps, on the slowest rank.
    """
    args, processes = trainer.args, trainer.encoders.processes
    generator = torch.get_rng_state()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    batch, seconds = args.per_device_train_batch_size, []
    for number in range(_TIMED + 1):
        began = clock()
        first = (step + number) * trainer.global_batch
        for part in range(args.gradient_accumulation_steps):
            start = first + (part * processes.world_size + processes.rank) * batch
            inputs = trainer.collator(list(range(start, start + batch)))
            with trainer.encoders.autocast():  # as accelerate wraps the model once training begins
                trainer.training_step(trainer.model, inputs)
        seconds.append(clock() - began)
    trainer.model.zero_grad(set_to_none=True)
    trainer.step_log.sums.clear()
    torch.set_rng_state(generator)
    slowest = processes.combine(_at(processes.rank, processes.world_size, statistics.median(seconds[1:])))
    return float(slowest.max())


def tokens_per_second(retrieval: Retrieval, clock: Clock) -> float:
    """Tokens of passages that the retriever encodes in a second, on the slowest rank; from a sample of the corpus."""
    inputs, encoders = retrieval.retriever_inputs, retrieval.encoders
    assert retrieval.retriever is not None and inputs is not None
    total = len(retrieval.collection.corpus)
    rows = np.sort(np.random.default_rng(0).choice(total, min(_SAMPLE, total), replace=False))
    encoders.embed_passages(retrieval.retriever, inputs, rows[:8])  # the first pass is slower
    began = clock()
    encoders.embed_passages(retrieval.retriever, inputs, rows)
    spent = clock() - began
    lengths = inputs.passage_builder.single_lengths(inputs.passage_store, rows)
    processes = encoders.processes
    rate = float(lengths.sum()) / max(spent, 1e-6)
    return float(processes.combine(_at(processes.rank, processes.world_size, rate)).min())


def _at(rank: int, world_size: int, value: float) -> Any:
    values = np.zeros(world_size, np.float64)
    values[rank] = value
    return values
