"""`hf-ar2 serve`: a search page and a JSON interface over HTTP, with the standard library's server.

For trusted networks only: there is no authentication, no encryption and no rate limit.
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
from hf_ar2.command_line.show import ordinal, print_searched
from hf_ar2.search.system import Hit, SearchSystem

PLACES = "/ (the page), /search?q=TEXT&k=10 and /health"
# The page needs no other files, and browsers must not load any.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222 }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere }}
button {{ padding: .5rem 1rem; font: inherit }}
.note {{ color: #666; font-size: .875rem }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere }}
{style}</style>
</head>
<body>
{content}
</body>
</html>
"""
_STYLE = """h2 { font-size: 1.125rem; margin: 1.5rem 0 0; overflow-wrap: anywhere }
form { display: flex; gap: .5rem }
input { flex: 1; padding: .5rem; font: inherit }
.scores { color: #666; font-size: .875rem }
.scores, .note { margin: .25rem 0 }
.text { max-height: 12rem; overflow-y: auto }
"""
_SEARCH = """<h1>{title}</h1>
<form action="/" role="search">
<input type="search" name="q" value="{query}" aria-label="query" dir="auto" autofocus><button>Search</button>
</form>
<p class="note">{note}</p>
{hits}"""
_HIT = """<article>
<h2 dir="auto">{number}. {title}</h2>
<p class="scores">{scores}</p>
<div class="text" dir="auto">{text}</div>
</article>"""


class SearchServer(ThreadingHTTPServer):
    """Listens from its construction on, and answers once `system` is set and `run` is called.

    Raises:
        ValueError: the port is in use or invalid, or the host is not this machine's.
    """

    daemon_threads = True  # open requests do not keep the process alive
    system: SearchSystem

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        self.models = Lock()
        if not 0 <= port <= 65535:
            raise ValueError(f"--port {port}: expected a number from 0 to 65535, as in --port 8000")
        try:
            super().__init__((host, port), handler or PageHandler)
        except OSError as error:
            advice = "Name an address of this machine: --host 127.0.0.1"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                advice = f"Choose another port: --port {max(1024, min(port + 1, 65535))}"
            what = f"cannot listen at port {port} of {host}: {error.strerror or error}. {advice}"
            raise ValueError(what) from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def run(self) -> None:
        """Answer requests until Ctrl-C."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            print("\nStopped.")

    def search(self, query: str, k: int) -> list[Hit]:
        """Search with the models, one request at a time."""
        with self.models:
            return self.system.search(query, k)


class PageHandler(BaseHTTPRequestHandler):
    """Answers the requests of a `SearchServer`."""

    server: SearchServer
    timeout = 60  # seconds without data from a client

    def do_GET(self) -> None:
        """Answer the request, also after an error, whose traceback is printed to the terminal."""
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
                self.answer(HTTPStatus.NOT_FOUND, {"error": f"nothing at {url.path}; expected {PLACES}"})
        except ConnectionError:
            pass  # the client closed the connection
        except _BadRequest as error:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except Exception:
            self.log_error("%s", traceback.format_exc())
            message = "the search failed; see the terminal of the server"
            self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": message})

    def page(self, query: str, k: int) -> None:
        """The search page, with the results of a query if there is one."""
        collection = self.server.system.collection
        result = found(self.server, query, k) if query else None
        note = f"{len(collection.corpus):,} passages"
        if result is not None:
            note = f"{len(result['hits'])} of {note}, {result['seconds']:.2f} s"
        content = _SEARCH.format(
            title=html.escape(collection.name),
            query=html.escape(query),
            note=note,
            hits=hits_html(result["hits"]) if result else "",
        )
        self.send(HTTPStatus.OK, "text/html; charset=utf-8", html_page(collection.name, _STYLE, content))

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
        """Do not log queries; errors are still printed."""


class _BadRequest(ValueError):
    """An invalid request; the message says what was expected."""


def _k(asked: dict[str, str]) -> int:
    text = asked.get("k", "10")
    if not re.fullmatch("[1-9][0-9]?|100", text):
        raise _BadRequest(f"k: found {text[:20]!r}; expected a whole number from 1 to 100, as in &k=10")
    return int(text)


def found(server: SearchServer, query: str, k: int) -> dict[str, Any]:
    """The answer of /search: the query, the seconds it took, and the hits in the order to show."""
    if not query:
        raise _BadRequest("the query is empty; expected /search?q=TEXT")
    started = time.perf_counter()
    hits = [
        {"rank": number} | dataclasses.asdict(hit) for number, hit in enumerate(server.search(query, k), 1)
    ]
    return {"query": query, "seconds": round(time.perf_counter() - started, 4), "hits": hits}


def html_page(title: str, style: str, content: str) -> str:
    """A page of this server.

    Args:
        title: as text.
        style: CSS beside that of all pages.
        content: HTML of the body, its texts escaped.
    """
    return _DOCUMENT.format(title=html.escape(title), style=style, content=content)


def hits_html(hits: Sequence[dict[str, Any]]) -> str:
    """Hits as HTML, every text escaped."""
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
    # An error about the port appears before models are loaded.
    with SearchServer(arguments.host, arguments.port) as server, opened_system(arguments) as system:
        server.system = system
        print_searched(system)
        if not str(server.server_address[0]).startswith("127."):
            print("Other machines can search here without a password: use trusted networks only.")
        print(f"Search at {server.url} (stop with Ctrl-C)", flush=True)
        server.run()
    return 0
