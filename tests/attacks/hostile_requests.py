"""Asks `hf-ar2 serve` much at once: searches, and requests that are malformed, slow, or for another host."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import sys
from pathlib import Path
from urllib.parse import quote

from attacks.common import Tried

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from serve_load import serve, system_in

from hf_ar2.command_line.web import SECONDS

AT_ONCE = 200
# Request → how its answer may begin; an answer b"" is a connection that the server closes.
_OF_HOST = "GET /search?q=otter HTTP/1.1\r\nHost: {}\r\n\r\n"
_HTTP = b"HTTP/1.1 "
BAD: list[tuple[bytes, tuple[bytes, ...]]] = [
    *(
        (_OF_HOST.format(host).encode(), (_HTTP + b"403", _HTTP + b"400"))
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil", "10.0.0.1:80", "[::2]", "")
    ),
    *(
        (f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), (_HTTP + b"4",))
        for path in (
            "/search",
            "/search?q=",
            "/search?q=a&k=0",
            "/search?q=a&k=1e3",
            "/search?q=a&k=-5",
            "/../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/passage?id=%00",
            "/search?q=" + "a" * 5000,
            "/search?q=" + "a" * 20_000,
            "http://evil.example/",
        )
    ),
    *(
        (content, (_HTTP + b"4", b""))
        for content in (
            b"\x00\xff\xfe\r\n\r\n",
            b"GET\r\n\r\n",
            b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        )
    ),
]
# Begun and never ended: the server closes the connection.
SLOW = (
    b"",
    b"G",
    b"GET /search?q=otter HTTP/1.1\r\nHost: localhost\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
)


def hostile_requests(home: Path, number: int, requests: int = 1000) -> Tried:
    """A server, and this many requests to it; half of them are searches."""
    folder = home / f"served-{number}"
    folder.mkdir()
    system = system_in(folder)
    texts = list(system.collection.queries["text"])
    expected = [[hit.passage_id for hit in system.search(text, 10)] for text in texts]
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(folder, there), daemon=True)
    server.start()
    try:
        return asyncio.run(_ask_all(here.recv(), number, requests, texts, expected))
    finally:
        server.kill()
        server.join()


async def _ask_all(port: int, seed: int, requests: int, texts: list[str], expected: list[list[str]]) -> Tried:
    tried, left = Tried(), iter(range(requests))
    chance = random.Random(seed)
    slow = [asyncio.create_task(_asked(port, request, SECONDS + 15)) for request in SLOW * 5]

    async def client() -> None:
        for number in left:
            place = number % len(texts)
            request, starts = chance.choice(BAD)
            if good := chance.random() < 0.5:
                request = f"GET /search?q={quote(texts[place])} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                starts = (_HTTP + b"200",)
            answer = await _asked(port, request, 120)
            tried.count += 1
            if answer is None or not any(
                answer.startswith(start) if start else not answer for start in starts
            ):
                tried.failed.append(f"{request[:80]!r}: {answer and answer[:80]!r}, expected {starts}")
            elif good:
                hits = json.loads(answer.partition(b"\r\n\r\n")[2])["hits"]
                if [hit["passage_id"] for hit in hits] != expected[place]:
                    tried.failed.append(f"{texts[place]!r}: other hits")

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    for request, answer in zip(SLOW * 5, await asyncio.gather(*slow), strict=True):
        tried.count += 1
        if answer is None:
            tried.failed.append(f"a slow client that sent {request!r} was not cut off")
    return tried


async def _asked(port: int, request: bytes, seconds: float) -> bytes | None:
    """The answer until the connection is closed; None: it is not closed in this time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), seconds)
    except TimeoutError:
        return None
    except ConnectionError:
        return b""
    finally:
        writer.close()
