"""How long `hf-ar2 serve` takes to answer many clients at once, beside one search of as many queries.

    python tests/benchmarks/serve_load.py --requests 5000 --at_once 200

The tiny models and collection of the tests, on the loopback address; the server is a process of its own, with one
thread for the models. Every request is a connection of its own. The aim: the slowest hundredth of the requests takes
at most 5 times as long as one search of `--at_once` queries together, without a server.
"""

from __future__ import annotations

from machine import describe_machine  # first: it fixes the number of threads  # isort: skip

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import quote

import numpy as np

from hf_ar2 import load_ranker, load_retriever
from hf_ar2.command_line.serve import SearchServer
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import make_tiny_collection, make_tiny_ranker, make_tiny_retriever


def system_in(folder: Path) -> SearchSystem:
    """The tiny models of a folder, which are written if it is empty."""
    for name, make in (("retriever", make_tiny_retriever), ("ranker", make_tiny_ranker)):
        if not (folder / name).is_dir():
            make(folder / name)
    retriever = load_retriever(str(folder / "retriever"), device="cpu")
    ranker = load_ranker(str(folder / "ranker"), device="cpu")
    settings = Settings(max_query_length=16, bf16=False, rerank_depth=10)
    return SearchSystem(retriever, ranker, make_tiny_collection(), settings, folder)


def serve(folder: Path, pipe: Connection) -> None:
    """What the other process does, until it is terminated."""
    with SearchServer("127.0.0.1", 0) as server:
        server.system = system_in(folder)
        server.system.search("falcon")
        pipe.send(server.port)
        server.run()


async def answered(port: int, queries: list[str], at_once: int) -> list[float]:
    """The seconds that each query's request took, with `at_once` clients that ask one query after another."""
    seconds, left = [], iter(queries)

    async def client() -> None:
        for query in left:
            started = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /search?q={quote(query)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
            seconds.append(time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--at_once", type=int, default=200)
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        system = system_in(Path(folder))
        known = list(system.collection.queries["text"])
        queries = [f"{number} {known[number % len(known)]}" for number in range(options.requests)]
        taken = []
        for _ in range(6):
            started = time.perf_counter()
            system.search_many(queries[: options.at_once])
            taken.append(time.perf_counter() - started)
        together = float(np.median(taken[1:]))
        print(f"{options.at_once} queries searched together, without a server: {together:.3f} s")
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(Path(folder), there), daemon=True)
        process.start()
        port = here.recv()
        for at_once, asked in ((1, queries[:100]), (options.at_once, queries)):
            started = time.perf_counter()
            seconds = asyncio.run(answered(port, asked, at_once))
            rate = len(asked) / (time.perf_counter() - started)
            median, slow = np.percentile(seconds, [50, 99])
            what = f"{len(asked):,} requests, {at_once} at once"
            print(f"{what}: p50 {median:.3f} s, p99 {slow:.3f} s, {rate:,.0f} per second")
        print(f"p99 / searched together: {slow / together:.1f}")
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
