"""Shared by the servers of `serve` and `label`: address, accepted host names, limits, and pages."""

from __future__ import annotations

import asyncio
import errno
import html
import re
import socket
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds that a client has to send its request, and again to read the answer.
SECONDS = 20.0
MOST_REQUESTS = 256  # at once; more are answered with 503
MOST_CONNECTIONS = 512  # more are closed without an answer
MOST_BYTES = 16_384  # of path, query and headers together

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# The pages need no other files, and browsers must not load any. Every answer ends its connection.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Connection": "close",
}
_NOT_HTTP = b'{"error":"this is not a valid HTTP request"}'
_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
:root {{ --quiet: #5c5c5c; --line: #ccc; --link: #0550ae; --chosen: #f0f6ff; --mark: #ffe58a }}
@media (prefers-color-scheme: dark) {{
:root {{ --quiet: #a8a8a8; --line: #555; --link: #8ac0ff; --chosen: #16283d; --mark: #6b5600 }}
}}
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere }}
a {{ color: var(--link) }}
button {{ padding: .5rem 1rem; font: inherit }}
.note {{ color: var(--quiet); font-size: .875rem }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere }}
{style}</style>
</head>
<body>
{content}
</body>
</html>
"""


class WebServer:
    """Listens once constructed (port 0: any free port), and answers requests once `run` is called.

    Requests may use the `names` of this host, the loopback names, `host`, and the address at which they arrive. Others
    are rejected, because a web page could point its own name here (DNS rebinding) and read everything.
    """

    def __init__(self, host: str, port: int, routes: Sequence[Route], names: Sequence[str] = ()) -> None:
        self._socket = _listening(host, port)
        allowed = {name.casefold() for name in (*LOOPBACK, host, *names)}
        app = Starlette(
            routes=routes,
            middleware=[Middleware(_Guard, allowed)],
            exception_handlers={HTTPException: _on_known, Exception: _on_unknown},
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # queries are not logged, and `_on_unknown` prints tracebacks
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=list(_HEADERS.items()),
                timeout_graceful_shutdown=5,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where the page is."""
        host = self._socket.getsockname()[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def run(self) -> None:
        """Answer requests until Ctrl-C, or until `stop` is called."""
        try:
            self._server.run([self._socket])
        except KeyboardInterrupt:
            print("\nStopped.")

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.should_exit = True


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: expected a number from 0 to 65535, as in --port 8000")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        advice = "Name an address of this machine: --host 127.0.0.1"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            advice = f"Choose another port: --port {max(1024, min(port + 1, 65535))}"
        reason = (error.strerror or str(error)).partition(" (while ")[0]
        raise ValueError(f"cannot listen at port {port} of {host}: {reason}. {advice}") from None


class _Connection(H11Protocol):
    """A connection that a slow client cannot keep open."""

    limit: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.limit = self.loop.call_later(SECONDS, transport.abort)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limit.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        # When the request is complete, the client waits.
        if self.cycle is not None and not self.cycle.more_body:
            self.limit.cancel()

    def on_response_complete(self) -> None:
        self.limit.cancel()
        self.limit = self.loop.call_later(SECONDS, self.transport.abort)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        headers = {"Content-Type": "application/json", "Content-Length": len(_NOT_HTTP), **_HEADERS}
        lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {value}" for name, value in headers.items())]
        self.transport.write("\r\n".join([*lines, "\r\n"]).encode() + _NOT_HTTP)
        self.transport.close()


class _Guard:
    """Passes on requests with an accepted host name that are within the limits."""

    def __init__(self, app: ASGIApp, names: set[str]) -> None:
        self.app, self.names, self.open = app, names, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.open += 1
        try:
            await (self.fault(Request(scope)) or self.app)(scope, receive, send)
        finally:
            self.open -= 1

    def fault(self, request: Request) -> Response | None:
        scope = request.scope
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(map(len, sum(scope["headers"], ())))
        name = _host_name(request.headers.get("host", ""))
        if name not in self.names and name != scope["server"][0]:
            message = (
                f"the request names the host {name[:100]!r}; this server answers to {', '.join(sorted(self.names))} "
                "and to names that `hf-ar2 serve --allow-host NAME` adds"
            )
            return problem(request, HTTPStatus.FORBIDDEN, message)
        if size > MOST_BYTES:
            message = f"path, query and headers have {size:,} bytes; expected at most {MOST_BYTES:,}"
            return problem(request, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)
        if not scope["path"].startswith("/"):
            return problem(request, HTTPStatus.BAD_REQUEST, "expected a path that starts with /")
        if self.open > MOST_REQUESTS:
            message = f"{MOST_REQUESTS} requests are being answered; try again in a moment"
            return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, message, {"Retry-After": "1"})
        return None


def _host_name(header: str) -> str:
    """The name or address in a Host header, without its port; "" if there is none."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/@]+))(?::[0-9]{1,5})?", header.casefold())
    return (found[1] or found[2]) if found else ""


async def _on_known(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(request, error.status_code, error.detail, error.headers)


async def _on_unknown(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    message = "the request failed; see the terminal of the server"
    return problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def problem(
    request: Request, status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error, as a page for a browser and as JSON for a program."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": message}, status, headers)
    phrase = HTTPStatus(status).phrase
    content = f'<h1>{phrase}</h1>\n<p>{html.escape(message)}</p>\n<p><a href="/">Back to the start</a></p>'
    return HTMLResponse(html_page(phrase, "", content), status, headers)


def html_page(title: str, style: str, content: str) -> str:
    """A page of this server; `content` is HTML, `style` is CSS added to that of all pages."""
    return _DOCUMENT.format(title=html.escape(title), style=style, content=content)
