"""How long a training step and the encoding of a text take on this machine, measured without training."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.retrieval import Retrieval

Clock = Callable[[], float]
# A part of a step's lists is timed, because its weights' gradients are thrown away.
_PART = 4
# Passages that are encoded to learn the speed.
_SAMPLE = 128


def step_seconds(trainer: JointTrainer, step: int, clock: Clock) -> float:
    """Seconds of a training step, estimated from a quarter of its lists: batches, forward and backward passes.

    No weight moves. The trainer has begun its round (`begin_round`), so that its lists are there.

    Args:
        step: a global step; lists of it are timed.
        clock: returns seconds, as `time.monotonic` or `time.process_time`.

    Returns:
        The seconds on the slowest rank.
    """
    args, processes = trainer.args, trainer.encoders.processes
    generator = torch.get_rng_state()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    batch = args.per_device_train_batch_size
    timed = math.ceil(batch / _PART)
    start = step * trainer.global_batch + processes.rank * batch
    passes = []
    for lists in (math.ceil(timed / _PART), timed, timed):  # the first pass is slower, and not counted
        began = clock()
        inputs = trainer.collator(list(range(start, start + lists)))
        with trainer.encoders.autocast():  # as accelerate wraps the model once training begins
            trainer.training_step(trainer.model, inputs)
        passes.append(clock() - began)
    # Other work on the machine only ever adds to a pass.
    seconds = min(passes[1:]) * batch / timed * args.gradient_accumulation_steps
    trainer.model.zero_grad(set_to_none=True)
    trainer.step_log.sums.clear()
    torch.set_rng_state(generator)
    return max(processes.gather(seconds))


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
    return min(encoders.processes.gather(float(lengths.sum()) / max(spent, 1e-6)))
