"""Peak memory per process of building and searching an exact index, by the number of processes.

    python tests/benchmarks/shard_memory.py [--passages 300000 1000000] [--dim 384] [--queries 64] [--ranks 1 2 4]
        [--plot memory.png]

Passages are random vectors, made as they are encoded. Each number of processes is a run of torchrun with gloo and one
thread each. Peak memory is the most that a process had resident during the part, above what it had before: once all of
it, and once without the pages of mapped files, which the system may drop. Several processes stay below a bound: the
vectors of their share, 64 MiB, and 128 bytes for each vector of the whole corpus. The exit code is 1 if one does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from machine import describe_machine  # first: it fixes the number of threads

# isort: split
import numpy as np
import torch
import torch.distributed as dist
from transformers import BertTokenizer

from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.processes import Processes, end_processes
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.index import CorpusIndex
from hf_ar2.index.encoders import Encoders

K = 200
# What a process may need in addition to the vectors of its share: MiB, and bytes for each vector of the whole corpus,
# such as its place in a batch.
_EXTRA, _EACH = 64, 128


def resident() -> np.ndarray:
    """MiB that this process has resident: all, and without the pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return np.array([int(values["VmRSS"]), int(values["RssAnon"])]) / 1024


class Peak:
    """The most memory in a block, above that at its start, looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self.before = self.most = resident()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.005):
            self.most = np.maximum(self.most, resident())

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self.above = (self.most - self.before).tolist()


def measure(folder: str, passages: int, dim: int, queries: int) -> None:
    """One process's part: build and search; the first prints what each needed."""
    dist.init_process_group("gloo")
    ranks = Processes.current("cpu")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    builder = InputBuilder(BertTokenizer(vocab=vocabulary), 8)
    store = TokenStore(np.arange(passages, dtype=np.int32), np.arange(passages + 1))

    def encode(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(inputs["input_ids"][0, 1]))
        return torch.randn(len(inputs["input_ids"]), dim, generator=generator)

    wanted = np.random.default_rng(0).standard_normal((queries, dim)).astype(np.float32)
    ranks.barrier()
    with Peak() as building:
        index = CorpusIndex.build(
            encode,
            builder,
            store,
            folder,
            fingerprint="random",
            dim=dim,
            processes=ranks,
            show_progress=False,
        )
    ranks.barrier()
    with Peak() as searching:
        Encoders(torch.device("cpu"), ranks, show_progress=False).search(index, wanted, K)
    found = ranks.gather([building.above, searching.above])
    if ranks.is_first:
        print(json.dumps(found))
    end_processes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, nargs="+", default=[300_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--plot", help="a PNG of the peaks and the bound")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        measure(options.folder, options.passages[0], options.dim, options.queries)
        return
    print(describe_machine())
    print(f"Vectors of {options.dim} float32; MiB of the process that needed most\n")
    print("| vectors | processes | build | of it not in files | search | of it not in files | bound |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    peaks: dict[int, list[float]] = {}
    held = True
    for passages in options.passages:
        for ranks in options.ranks:
            most = measured(passages, ranks, options)
            bound = bound_of(passages, ranks, options.dim)
            peaks.setdefault(passages, []).append(max(most))
            held = held and (ranks == 1 or max(most) <= bound)
            cells = [passages, ranks, *most, *([bound] if ranks > 1 else [])]
            print(
                f"| {' | '.join(f'{value:,.0f}' for value in cells)}{'' if ranks > 1 else ' | –'} |",
                flush=True,
            )
    if options.plot:
        plot(peaks, options)
    if not held:
        sys.exit("shard_memory: a process needed more than its bound")


def bound_of(passages: int, ranks: int, dim: int) -> float:
    """MiB that each of several processes stays below."""
    return passages / ranks * dim * 4 / 2**20 + _EXTRA + passages * _EACH / 2**20


def measured(passages: int, ranks: int, options: argparse.Namespace) -> list[float]:
    """MiB for building and searching, each in total and not in files, of the process that needed most."""
    with tempfile.TemporaryDirectory(prefix="shards-") as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command += [__file__, "--folder", folder, "--passages", str(passages)]
        command += ["--dim", str(options.dim), "--queries", str(options.queries)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    most = np.array(json.loads(done.stdout.splitlines()[-1])).max(axis=0).reshape(-1)
    return [float(value) for value in most]


def plot(peaks: dict[int, list[float]], options: argparse.Namespace) -> None:
    """Peak memory of a process against the number of processes, a line for each number of vectors, with the bounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for passages, of_ranks in peaks.items():
        (line,) = axes.plot(options.ranks, of_ranks, marker="o", label=f"{passages:,} vectors")
        several = [ranks for ranks in options.ranks if ranks > 1]
        bounds = [bound_of(passages, ranks, options.dim) for ranks in several]
        axes.plot(several, bounds, linestyle="--", color=line.get_color(), label="bound")
    axes.set_xticks(options.ranks)
    axes.set_xlabel("processes")
    axes.set_ylabel("MiB of the process that needs most")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(options.plot, dpi=120, bbox_inches="tight")
    print(f"In {options.plot}")


if __name__ == "__main__":
    main()
