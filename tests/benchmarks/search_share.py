"""What searching the whole corpus costs in an LTRe step, by the size of the corpus, and what a refresh would cost.

    python tests/benchmarks/search_share.py --passages 2650 20958 100000 1000000

One thread, processor time, six layers of MiniLM's size, 32 queries of 16 tokens a step, lists of 50. Random unit
vectors stand for passages; only cost is measured. The last columns hold what ANCE-like training adds: encoding the
corpus anew (from a sample of passages of 64 tokens, times their number) for every 100 of its steps, whose own cost, 16
lists of 4, is measured too.
"""

from __future__ import annotations

from machine import describe_machine  # first: it fixes the number of threads  # isort: skip

import argparse
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from transformers import BertConfig, BertModel

from hf_ar2.evaluation.tables import format_table
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.losses import in_batch_contrastive_loss, retrieval_pairwise_loss
from hf_ar2.trainers.frozen_retrieval import with_missed

DIM, QUERIES, DEPTH = 384, 32, 50


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median processor time of a call, after one that is not counted."""
    call()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return float(np.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, nargs="+", default=[2650, 20958, 100_000, 1_000_000])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    print(describe_machine())
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=DIM, num_hidden_layers=options.layers, num_attention_heads=12, intermediate_size=1536
    )
    model = BertModel._from_config(config, add_pooling_layer=False, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def embed(texts: int, tokens: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            hidden = model(torch.randint(1000, 2000, (texts, tokens))).last_hidden_state
        return torch.nn.functional.normalize(hidden.float().mean(1), dim=-1)

    def contrastive() -> None:
        queries, passages = embed(16, 16), embed(64, 64).view(16, 4, DIM)
        in_batch_contrastive_loss(queries, passages, temperature=0.05).backward()
        optimizer.step()
        optimizer.zero_grad()

    def encode() -> None:
        with torch.inference_mode():
            embed(32, 64)

    contrastive_step, passage = seconds(contrastive, options.repeats), seconds(encode, options.repeats) / 32
    rows = []
    for count in options.passages:
        passages = np.random.default_rng(0).standard_normal((count, DIM), dtype=np.float32)
        passages /= np.linalg.norm(passages, axis=1, keepdims=True)
        for factory in ("Flat", f"IVF{int(4 * count**0.5)},Flat"):
            index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.cp.niter = 2  # good enough for a measure of cost
                index.cp.min_points_per_centroid = 1
                index.train(passages[: 64 * index.nlist])
            index.add(passages)
            given = "nprobe=16" if factory.startswith("IVF") else None
            frozen = FrozenIndex(index, "benchmark", embeddings=passages, search_parameters=given)

            def step(frozen: FrozenIndex = frozen, count: int = count) -> tuple[float, float]:
                """Processor seconds of a step, and of the search in it."""
                started = time.process_time()
                queries = embed(QUERIES, 16)
                before = time.process_time()
                _, found = frozen.search(queries.detach(), DEPTH)
                searching = time.process_time() - before
                listed, relevant = with_missed(found, np.random.randint(count, size=(QUERIES, 1)))
                scores = torch.einsum("bd,bld->bl", queries, frozen.vectors(listed)) / 0.05
                mask = torch.from_numpy(listed >= 0)
                retrieval_pairwise_loss(scores, torch.from_numpy(relevant), cut=DEPTH, mask=mask).backward()
                optimizer.step()
                optimizer.zero_grad()
                return time.process_time() - started, searching

            whole, searched = zip(*(step() for _ in range(options.repeats + 1)), strict=True)
            whole, searched = float(np.median(whole[1:])), float(np.median(searched[1:]))
            refresh = passage * count
            ance = contrastive_step * 100 + refresh
            shown = [f"{1000 * searched:.1f}", f"{1000 * whole:.0f}", f"{searched / whole:.1%}"]
            rows.append([f"{count:,}", factory, *shown, f"{refresh:.0f}", f"{ance / (100 * whole):.1f}"])
            del index, frozen, step
    columns = [
        "passages",
        "index",
        "search ms",
        "step ms",
        "share",
        "refresh s",
        "ANCE-like / LTRe, per step",
    ]
    print("\n" + format_table(rows, columns, markdown=True))
    print(
        f"A contrastive step of 16 lists of 4: {1000 * contrastive_step:.0f} ms; encoding: {1000 * passage:.2f} ms a "
        "passage"
    )


if __name__ == "__main__":
    main()
