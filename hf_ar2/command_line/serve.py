"""What `hf-ar2 serve` does: a search page and JSON answers over HTTP, with the standard library's server.

For a trusted network: there is no authentication, no encryption and no limit on how much is asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import html
import json
import re
import time
import traceback
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hf_ar2.command_line.open import opened_system
from hf_ar2.command_line.show import ordinal
from hf_ar2.search.system import Hit, SearchSystem

PLACES = "/ (the page), /search?q=TEXT&k=10 and /health"
# The page needs nothing from anywhere, and a browser is told to get nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222 }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere }}
h2 {{ font-size: 1.125rem; margin: 1.5rem 0 0; overflow-wrap: anywhere }}
form {{ display: flex; gap: .5rem }}
input {{ flex: 1; padding: .5rem; font: inherit }}
button {{ padding: .5rem 1rem; font: inherit }}
.scores, .note {{ color: #666; font-size: .875rem; margin: .25rem 0 }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; max-height: 12rem; overflow-y: auto }}
</style>
</head>
<body>
<h1>{title}</h1>
<form action="/" role="search">
<input type="search" name="q" value="{query}" aria-label="query" dir="auto" autofocus><button>Search</button>
</form>
<p class="note">{note}</p>
{hits}
</body>
</html>
"""
_HIT = """<article>
<h2 dir="auto">{number}. {title}</h2>
<p class="scores">{scores}</p>
<div class="text" dir="auto">{text}</div>
</article>"""


class SearchServer(ThreadingHTTPServer):
    """Listens from the beginning, and answers once `serve_forever` is called and `system` is there.

    Raises:
        ValueError: the port is taken or no port, or the host is not this machine's.
    """

    daemon_threads = True  # whoever is still being answered does not keep the process from ending
    system: SearchSystem

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        self.models = Lock()
        if not 0 <= port <= 65535:
            raise ValueError(f"--port {port}: expected a number from 0 to 65535, as in --port 8000")
        try:
            super().__init__((host, port), handler or PageHandler)
        except OSError as error:
            way_out = "Name an address of this machine: --host 127.0.0.1"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                way_out = f"Choose another port: --port {max(1024, min(port + 1, 65535))}"
            what = f"cannot listen at port {port} of {host}: {error.strerror or error}. {way_out}"
            raise ValueError(what) from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def search(self, query: str, k: int) -> list[Hit]:
        """Search with the models, one request at a time."""
        with self.models:
            return self.system.search(query, k)


class PageHandler(BaseHTTPRequestHandler):
    """Answers the requests of a `SearchServer`."""

    server: SearchServer
    timeout = 60  # seconds that a silent client is waited for

    def do_GET(self) -> None:
        """Answer; what goes wrong is answered, too, and its traceback printed here."""
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            if url.path == "/":
                self.page(asked.get("q", "").strip(), _k(asked))
            elif url.path == "/search":
                self.answer(HTTPStatus.OK, found(self.server, asked.get("q", "").strip(), _k(asked)))
            elif url.path == "/health":
                collection = self.server.system.collection
                state = {"status": "ok", "collection": collection.name, "passages": len(collection.corpus)}
                self.answer(HTTPStatus.OK, state)
            else:
                self.answer(
                    HTTPStatus.NOT_FOUND, {"error": f"there is nothing at {url.path}; there is {PLACES}"}
                )
        except ConnectionError:
            pass  # the client has left
        except _BadRequest as error:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except Exception:
            self.log_error("%s", traceback.format_exc())
            message = "the search failed; the terminal that runs the server says why"
            self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": message})

    def page(self, query: str, k: int) -> None:
        """The search page, with what was found where something was asked."""
        collection = self.server.system.collection
        result = found(self.server, query, k) if query else None
        note = f"{len(collection.corpus):,} passages"
        if result is not None:
            note = f"{len(result['hits'])} of {note}, {result['seconds']:.2f} s"
        text = _PAGE.format(
            title=html.escape(collection.name),
            query=html.escape(query),
            note=note,
            hits=hits_html(result["hits"]) if result else "",
        )
        self.send(HTTPStatus.OK, "text/html; charset=utf-8", text)

    def answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        """Send JSON."""
        self.send(status, "application/json", json.dumps(content, ensure_ascii=False))

    def send(self, status: HTTPStatus, kind: str, text: str) -> None:
        """Send a text."""
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Say nothing of what is asked; errors are printed."""


class _BadRequest(ValueError):
    """A request that cannot be answered; the message says what to ask instead."""


def _k(asked: dict[str, str]) -> int:
    text = asked.get("k", "10")
    if not re.fullmatch("[1-9][0-9]?|100", text):
        raise _BadRequest(f"k: found {text[:20]!r}; expected a whole number from 1 to 100, as in &k=10")
    return int(text)


def found(server: SearchServer, query: str, k: int) -> dict[str, Any]:
    """What /search answers: the query, the seconds it took, and the hits in the order to show."""
    if not query:
        raise _BadRequest("the query is empty; ask for something: /search?q=TEXT")
    started = time.perf_counter()
    hits = [
        {"rank": number} | dataclasses.asdict(hit) for number, hit in enumerate(server.search(query, k), 1)
    ]
    return {"query": query, "seconds": round(time.perf_counter() - started, 4), "hits": hits}


def hits_html(hits: Sequence[dict[str, Any]]) -> str:
    """Hits as they stand on the page, every text escaped."""
    articles = []
    for hit in hits:
        scores = [hit["passage_id"]] if hit["title"] else []
        place = ""
        if hit["ranker_score"] is not None:
            scores.append(f"ranker {hit['ranker_score']:.3f}")
            place = f" ({ordinal(hit['retriever_rank'])})"
        scores.append(f"retriever {hit['retriever_score']:.3f}{place}")
        articles.append(
            _HIT.format(
                number=hit["rank"],
                title=html.escape(hit["title"] or hit["passage_id"]),
                scores=html.escape(" · ".join(scores)),
                text=html.escape(hit["text"]),
            )
        )
    return "\n".join(articles)


def serve(arguments: argparse.Namespace) -> int:
    """Serve a run until Ctrl-C."""
    # A port that is taken is told before any model is loaded.
    with SearchServer(arguments.host, arguments.port) as server, opened_system(arguments) as system:
        server.system = system
        total = system.searched.ntotal  # built before the first query, where it is not there yet
        print(f"{system.collection.name}: {total:,} passages, {system.searched_place}")
        if not str(server.server_address[0]).startswith("127."):
            print("Other machines can reach this, without a password: for a trusted network only.")
        print(f"Search at {server.url} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nEnded.")
    return 0
