"""The web servers of `serve` and `label`: who is answered, and what becomes of malformed, slow and many requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import served
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from hf_ar2.command_line import web
from hf_ar2.command_line.web import WebServer


class Server(WebServer):
    """Answers /, and /wait once it is released."""

    def __init__(self, *names: str, host: str = "127.0.0.1") -> None:
        self.released = threading.Event()
        pages = {"/": self.text, "/large": self.large, "/wait": self.wait, "/fail": self.fail}
        routes = [Route(path, page) for path, page in pages.items()]
        super().__init__(host, 0, routes, names)

    async def text(self, request: Request) -> Response:
        return PlainTextResponse("a private text")

    async def large(self, request: Request) -> Response:
        return PlainTextResponse("x" * 20_000_000 + "the end")

    async def wait(self, request: Request) -> Response:
        await asyncio.to_thread(self.released.wait, 30)
        return PlainTextResponse("released")

    async def fail(self, request: Request) -> Response:
        raise RuntimeError("out of memory")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("search.example.org") as server, served(server):
        yield server


def sent(server: WebServer, data: bytes, host: str = "127.0.0.1") -> bytes:
    """Everything that is answered, until the server closes the connection."""
    answer = b""
    with socket.create_connection((host, server.port), timeout=30) as connection:
        connection.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    return answer


def get(path: str = "/", host: str = "localhost", *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "\r\n"]).encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        *[(name, True) for name in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:9", "[::1]:8000")],
        *[(name, True) for name in ("search.example.org", "Search.Example.org:8000")],
        *[(name, False) for name in ("example.org", "localhost.example.org", "evil.search.example.org", "")],
        *[
            (name, False)
            for name in ("localhost:80@example.org", "example.org/localhost", "127.0.0.1.nip.io")
        ],
        *[(name, False) for name in ("localhost.", "0.0.0.0", "192.0.2.1", "[::2]", "[", "localhost:80:80")],
    ],
)
def test_only_names_of_this_machine_are_answered(server: Server, host: str, answered: bool) -> None:
    """A page of another name could be one that was made to lead here, and would read what it gets."""
    for path in ("/", "/wait?", "/nothing") if not answered else ("/",):
        answer = sent(server, get(path, host))
        assert status(answer) == (200 if answered else 403), answer
        assert (b"private" in answer) == answered


def test_a_request_without_a_host_or_with_two_is_not_answered(server: Server) -> None:
    assert status(sent(server, b"GET / HTTP/1.0\r\n\r\n")) == 403
    assert status(sent(server, b"GET / HTTP/1.1\r\n\r\n")) == 400
    assert status(sent(server, get("/", "localhost", "Host: example.org"))) == 400
    assert status(sent(server, get("http://example.org/", "localhost"))) == 400


def test_an_address_of_this_machine_is_answered_where_it_is_listened_on() -> None:
    with Server(host="0.0.0.0") as server, served(server):
        for address in ("127.0.0.1", "127.0.0.2"):  # any network address would do
            assert status(sent(server, get(host=f"{address}:{server.port}"), address)) == 200
        assert status(sent(server, get(host="192.0.2.1"))) == 403
        assert status(sent(server, get(host="example.org"))) == 403


@pytest.mark.parametrize(
    "data",
    [
        b"GET http://[x/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
        b"GET /\r\n\r\n",
        b"* HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"hello\r\n\r\n",
    ],
)
def test_what_is_malformed_is_answered_with_400(server: Server, data: bytes) -> None:
    answer = sent(server, data)
    assert status(answer) == 400
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])
    assert status(sent(server, get())) == 200, "and the server goes on"


def test_long_requests_are_not_answered(server: Server) -> None:
    long = "x" * web.MOST_BYTES
    for data in (get(f"/{long}"), get(f"/?q={long}"), get("/", "localhost", f"Cookie: {long}")):
        assert status(sent(server, data)) == 431
    assert status(sent(server, get("/", "localhost", *["Cookie: a"] * 5000))) in (400, 431)
    assert status(sent(server, b"GET /" + b"x" * 1_000_000)) in (400, 0)  # 0: closed while it was being sent
    assert status(sent(server, get())) == 200


def test_errors_are_pages_for_a_browser_and_json_for_a_program(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, code, message in (("/a", 404, "Not Found"), ("/fail", 500, "see the terminal of the server")):
        answer = sent(server, get(path, "localhost", "Accept: text/html,*/*;q=0.8"))
        assert status(answer) == code and b"<!doctype html>" in answer and message.encode() in answer
        answer = sent(server, get(path))
        assert status(answer) == code and message in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        for header in (b"nosniff", b"default-src 'none'", b"connection: close"):
            assert header in answer.lower()
    assert capsys.readouterr().err.count("RuntimeError: out of memory") == 2
    hostile = sent(server, get("/", "<script>", "Accept: text/html"))
    assert status(hostile) == 403 and b"&lt;script&gt;" in hostile and b"<script" not in hostile


def test_slow_clients_are_cut_off_after_a_time_in_total(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            for byte in get() * 9:  # a byte at a time, so that no single wait is long
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert 0.4 < time.monotonic() - started < 5
    assert sent(server, b"") == b"", "nor are silent ones kept"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as idle:
        idle.sendall(get("/large"))
        time.sleep(1.5)  # without reading
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := idle.recv(1 << 20):
                answer += part
        assert not answer.endswith(b"the end")
    with ThreadPoolExecutor(1) as clients:  # who waits for an answer is not slow
        waiting = clients.submit(sent, server, get("/wait"))
        time.sleep(1)
        server.released.set()
        assert waiting.result().endswith(b"released")


def test_more_requests_than_the_bound_get_503_and_more_connections_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MOST_REQUESTS", 3)
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(sent, server, get("/wait")) for _ in range(3)]
        busy = sent(server, get())
        while status(busy) == 200:  # the three are on their way
            busy = sent(server, get())
        assert status(busy) == 503 and b"retry-after: 1" in busy.lower()
        monkeypatch.setattr(web, "MOST_CONNECTIONS", 3)
        assert sent(server, get()) == b""
        server.released.set()
        assert all(answer.result().endswith(b"released") for answer in waiting)
    assert status(sent(server, get())) == 200
