"""`hf-ar2 serve`: a search page and a JSON interface over HTTP.

For trusted networks only: there is no authentication, no encryption and no rate limit.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import html
import re
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import quote

import pyarrow.compute as pc
from bm25s.stopwords import STOPWORDS_EN
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from hf_ar2.collections.tables import arrow_column
from hf_ar2.command_line.open import opened_system
from hf_ar2.command_line.show import ordinal, print_searched
from hf_ar2.command_line.web import LOOPBACK, WebServer, html_page
from hf_ar2.index.lexical import UNSPACED, terms
from hf_ar2.search.system import Hit, SearchSystem
from hf_ar2.terminal import counted

PLACES = "/ (the page), /search?q=TEXT&k=10, /passage?id=ID and /health"
_MOST_CHARACTERS = 4_000
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_STYLE = """h2 { font-size: 1.125rem; margin: 1.5rem 0 0; overflow-wrap: anywhere }
form { display: flex; gap: .5rem }
input { flex: 1; min-width: 0; padding: .5rem; font: inherit }
mark { background: var(--mark); color: inherit }
.note { margin: .25rem 0; overflow-wrap: anywhere }
.text { max-height: 12rem; overflow-y: auto }
.chosen { border-left: .25rem solid var(--link); padding-left: .75rem }
"""
_SEARCH = """<h1>{title}</h1>
<form action="/" role="search">
<input type="search" name="q" value="{query}" aria-label="query" dir="auto" autofocus><button>Search</button>
</form>
<p class="note">{note}</p>
{hits}"""
_PASSAGE = """<article{kind}>
<h2 dir="auto">{title}</h2>
<p class="note">{note}</p>
<div class="text" dir="auto">{text}</div>
</article>"""


class Batches:
    """Searches in one thread. Requests that arrive during a search are then searched together if their k is equal."""

    def __init__(self, search_many: Callable[[Sequence[str], int], list[list[Hit]]]) -> None:
        self._search_many = search_many
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[str, int, asyncio.Future[list[Hit]]]] = []
        self._work: asyncio.Task[None] | None = None

    async def search(self, query: str, k: int) -> list[Hit]:
        """The k best hits. Where the search fails, its traceback is printed and an HTTPException raised."""
        loop = asyncio.get_running_loop()
        found = loop.create_future()
        self._waiting.append((query, k, found))
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._search_all())
        return await found

    async def _search_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            k = self._waiting[0][1]
            batch = [(query, found) for query, its_k, found in self._waiting if its_k == k]
            self._waiting = [waiting for waiting in self._waiting if waiting[1] != k]
            queries = [query for query, _ in batch]
            results: list[list[Hit]] | None = None
            try:
                results = await loop.run_in_executor(self._thread, self._search_many, queries, k)
            except Exception:
                traceback.print_exc()
            for place, (_, found) in enumerate(batch):
                if found.done():  # cancelled, at the end of the server
                    continue
                if results is None:
                    message = "the search failed; see the terminal of the server"
                    found.set_exception(HTTPException(500, message))
                else:
                    found.set_result(results[place])


class SearchServer(WebServer):
    """Searches once `system` is set and `run` is called; the arguments are those of `WebServer`."""

    system: SearchSystem

    def __init__(self, host: str, port: int, names: Sequence[str] = ()) -> None:
        routes = [
            Route("/", self.page),
            Route("/search", self.answer),
            Route("/passage", self.passage),
            Route("/health", self.health),
            Route("/{path:path}", self.nothing),
        ]
        super().__init__(host, port, routes, names)
        self.batches = Batches(lambda queries, k: self.system.search_many(queries, k))

    async def page(self, request: Request) -> Response:
        """The search page, with the results of a query if there is one."""
        collection = self.system.collection
        query, hits = _query(request), ""
        title, note = collection.name, counted(len(collection.corpus), "passages")
        if query:
            result = await self.found(query, _k(request))
            title, hits = f"{query[:80]} · {title}", hits_html(query, result["hits"])
            note = f"{len(result['hits'])} of {note}, {result['seconds']:.2f} s"
        shown = {"title": html.escape(collection.name), "query": html.escape(query)}
        return HTMLResponse(html_page(title, _STYLE, _SEARCH.format(**shown, note=note, hits=hits)))

    async def answer(self, request: Request) -> Response:
        """The results as JSON."""
        query = _query(request)
        if not query:
            raise HTTPException(400, "the query is empty; expected /search?q=TEXT")
        return JSONResponse(await self.found(query, _k(request)))

    async def found(self, query: str, k: int) -> dict[str, Any]:
        """The query, the seconds that its search took, the system whose `score` sorts, and the hits in this order."""
        started = time.perf_counter()
        hits = await self.batches.search(query, k)
        return {
            "query": query,
            "seconds": round(time.perf_counter() - started, 4),
            "system": self.system.served,
            "hits": [{"rank": rank} | dataclasses.asdict(hit) for rank, hit in enumerate(hits, 1)],
        }

    async def passage(self, request: Request) -> Response:
        """A passage, between those before and after it in the corpus."""
        corpus, id = self.system.collection.corpus, request.query_params.get("id", "")
        row = pc.index(arrow_column(corpus, "id"), id).as_py()
        if row < 0:
            raise HTTPException(404, f"there is no passage {id[:100]!r}; expected /passage?id=ID")
        first = max(0, row - 1)
        shown = corpus.select(range(first, min(row + 2, len(corpus))))
        articles = [
            _PASSAGE.format(
                kind=' class="chosen"' if first + place == row else "",
                title=html.escape(passage["title"] or passage["id"]),
                note=f"passage {first + place + 1:,} · {_link(passage['id'], passage['id'])}",
                text=html.escape(passage["text"]),
            )
            for place, passage in enumerate(shown)
        ]
        name = self.system.collection.name
        back = f'<h1>{html.escape(name)}</h1>\n<p class="note"><a href="/">Search</a></p>\n'
        return HTMLResponse(html_page(f"{id} · {name}", _STYLE, back + "\n".join(articles)))

    async def health(self, request: Request) -> Response:
        """The status, and the collection that is served."""
        name, passages = self.system.collection.name, len(self.system.collection.corpus)
        return JSONResponse({"status": "ok", "collection": name, "passages": passages})

    async def nothing(self, request: Request) -> NoReturn:
        """404 for all other paths."""
        raise HTTPException(404, f"nothing at {request.url.path}; expected {PLACES}")


def _query(request: Request) -> str:
    query = request.query_params.get("q", "").strip()
    if len(query) > _MOST_CHARACTERS:
        raise HTTPException(400, f"q has {len(query):,} characters; expected at most {_MOST_CHARACTERS:,}")
    return query


def _k(request: Request) -> int:
    text = request.query_params.get("k", "10")
    if not re.fullmatch("[1-9][0-9]?|100", text):
        raise HTTPException(
            400, f"k: found {text[:20]!r}; expected a whole number from 1 to 100, as in &k=10"
        )
    return int(text)


def hits_html(query: str, hits: Sequence[dict[str, Any]]) -> str:
    """Hits as HTML, every text escaped, with the words of the query marked and the score that sorts in bold."""
    words = query_words(query)
    return "\n".join(
        _PASSAGE.format(
            kind="",
            title=f"{hit['rank']}. {marked(hit['title'] or hit['passage_id'], words)}",
            note=" · ".join([*_scores(hit), _link(hit["passage_id"], "before and after")]),
            text=marked(hit["text"], words),
        )
        for hit in hits
    )


def _scores(hit: dict[str, Any]) -> list[str]:
    score, names = hit["score"], ("ranker", "hybrid", "retriever", "bm25")
    values = {name: hit[f"{name}_score"] for name in names if hit[f"{name}_score"] is not None}
    if score is not None and score not in values.values():
        values = {"pipeline": score, **values}
    retrieved_by = "hybrid" if "hybrid" in values else "retriever"
    texts = [html.escape(hit["passage_id"])] if hit["title"] else []
    for name, value in values.items():
        text = f"{'BM25' if name == 'bm25' else name} {value:.3f}"
        place = f" ({ordinal(hit['retrieved_rank'])})" if name == retrieved_by and "ranker" in values else ""
        texts.append(f"<strong>{text}</strong>{place}" if value == score else f"{text}{place}")
    return texts


def _link(id: str, text: str) -> str:
    return f'<a href="/passage?id={quote(id, safe="")}">{html.escape(text)}</a>'


def query_words(query: str) -> set[str]:
    """The words of a query, without English stop words where there are others."""
    words = set(terms(query))
    return words - set(STOPWORDS_EN) or words


def marked(text: str, words: set[str]) -> str:
    """A text as HTML, with these words (in Chinese and Japanese, characters) in `<mark>`."""
    parts, end = [], 0
    for match in _WORD.finditer(text):
        if match[0].casefold() in words:
            parts += [html.escape(text[end : match.start()]), f"<mark>{html.escape(match[0])}</mark>"]
            end = match.end()
    return "".join([*parts, html.escape(text[end:])])


def serve(arguments: argparse.Namespace) -> None:
    """Serve a run until Ctrl-C."""
    # An error about the port appears before models are loaded.
    names = arguments.allow_host
    with SearchServer(arguments.host, arguments.port, names) as server, opened_system(arguments) as system:
        server.system = system
        print_searched(system)
        if arguments.host not in LOOPBACK and not arguments.host.startswith("127."):
            print("Other machines can search here without a password: use trusted networks only.")
        print(f"Search at {server.url} (stop with Ctrl-C)", flush=True)
        server.run()
