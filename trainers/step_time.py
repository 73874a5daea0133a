"""How long a training step and the encoding of a text take on this machine, measured without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from hf_ar2.models.bf16_on_cpu import train_fast_in_bf16
from hf_ar2.models.joint import embed
from hf_ar2.trainers.joint import JointTrainer
from hf_ar2.trainers.retrieval import Retrieval

Clock = Callable[[], float]
# Only a part of a step's lists is timed, because the gradients are discarded.
_PART = 4
# Passages that are encoded to measure the speed.
_SAMPLE = 128
# Passages of the forward and backward pass that is timed.
_TRAINED = 16


def step_seconds(trainer: JointTrainer, step: int, clock: Clock) -> float:
    """Seconds of a training step on the slowest rank, estimated from a quarter of its lists: batches, forward and
    backward.

    No weight changes. The trainer must have begun its round (`begin_round`). `step` is the global step whose lists are
    timed; `clock` returns seconds, as `time.monotonic` or `time.process_time` does.
    """
    args, processes = trainer.args, trainer.encoders.processes
    generator = torch.get_rng_state()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    batch = args.per_device_train_batch_size
    timed = math.ceil(batch / _PART)
    start = step * trainer.global_batch + processes.rank * batch

    def train(lists: int) -> None:
        inputs = trainer.collator(list(range(start, start + lists)))
        with trainer.encoders.autocast():  # as accelerate wraps the model once training begins
            trainer.training_step(trainer.model, inputs)

    seconds = _fastest(train, (math.ceil(timed / _PART), timed, timed), clock)
    seconds *= batch / timed * args.gradient_accumulation_steps
    trainer.model.zero_grad(set_to_none=True)
    trainer.step_log.sums.clear()
    torch.set_rng_state(generator)
    return max(processes.gather(seconds))


def tokens_per_second(retrieval: Retrieval, clock: Clock) -> float:
    """Tokens of passages that the retriever encodes per second on the slowest rank, from a sample of the corpus."""
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


def training_factor(retrieval: Retrieval, rate: float, clock: Clock) -> float:
    """How many times as long as encoding a text training on it takes, for the retriever on the slowest rank.

    A forward and a backward pass over a few passages is timed; no weight changes. `rate` is that of
    `tokens_per_second`.
    """
    retriever, inputs, encoders = retrieval.retriever, retrieval.retriever_inputs, retrieval.encoders
    assert retriever is not None and inputs is not None
    train_fast_in_bf16(retriever, encoders.device, encoders.bf16)
    trains = retriever.training
    retriever.train()
    rows = np.arange(min(_TRAINED, len(retrieval.collection.corpus)))
    features = inputs.passage_builder.single(inputs.passage_store, rows)
    features = {name: value.to(encoders.device) for name, value in features.items()}

    def train(_: int) -> None:
        with encoders.autocast():
            embed(retriever, features, "document").float().sum().backward()

    seconds = _fastest(train, (len(rows),) * 3, clock)
    retriever.zero_grad(set_to_none=True)
    retriever.train(trains)
    lengths = inputs.passage_builder.single_lengths(inputs.passage_store, rows)
    factor = seconds * rate / float(lengths.sum())
    return max(encoders.processes.gather(max(1.0, factor)))


def _fastest(run: Callable[[int], None], sizes: Sequence[int], clock: Clock) -> float:
    """Seconds of the fastest call after the first, which is slower; other work on the machine only ever adds time."""
    passes = []
    for size in sizes:
        began = clock()
        run(size)
        passes.append(clock() - began)
    return min(passes[1:])
