"""`hf-ar2 serve` on the loopback address: the page, the JSON, several clients at once, and the end by Ctrl-C."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import urlopen

import pytest
import yaml
from conftest import make_tiny_ranker, make_tiny_retriever, served
from datasets import Dataset

import hf_ar2
from hf_ar2.collections import Collection
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.serve import SearchServer, hits_html, marked, query_words
from hf_ar2.command_line.show import hits_table
from hf_ar2.search.system import Hit, SearchSystem
from hf_ar2.settings.search import Settings

HOSTILE = "<script>alert('falcon')</script> & \"quotes\""


@pytest.fixture(scope="module")
def hostile_collection(tiny_collection: Collection) -> Collection:
    """The tiny collection, with markup for a name, in a title, an id and a text."""
    rows = list(tiny_collection.corpus)
    rows[0] = {"id": "<i>p0</i>", "title": f"<b>{rows[0]['text']}</b>", "text": HOSTILE}
    kept = [row for row in tiny_collection.qrels["test"] if row["passage_id"] in {row["id"] for row in rows}]
    qrels = {"test": Dataset.from_list(kept)}
    return Collection("<tiny>", Dataset.from_list(rows), tiny_collection.queries, qrels)


@pytest.fixture(scope="module")
def system(
    hostile_collection: Collection, tiny_retriever_path: Path, tiny_ranker_path: Path, tmp_path_factory
) -> SearchSystem:
    return SearchSystem(
        hf_ar2.load_retriever(str(tiny_retriever_path), device="cpu"),
        hf_ar2.load_ranker(str(tiny_ranker_path), device="cpu"),
        hostile_collection,
        Settings(max_query_length=16, bf16=False, rerank_depth=5),
        tmp_path_factory.mktemp("work"),
    )


@contextlib.contextmanager
def serving(system: SearchSystem) -> Iterator[SearchServer]:
    with SearchServer("127.0.0.1", 0) as server:
        server.system = system
        with served(server):
            yield server


@pytest.fixture(scope="module")
def server(system: SearchSystem) -> Iterator[SearchServer]:
    with serving(system) as server:
        yield server


def got(server: SearchServer, path: str, **query: str | int) -> tuple[int, str]:
    """Status and body."""
    url = server.url.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
    try:
        with urlopen(url, timeout=30) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_search_answers_what_the_search_system_finds(server: SearchServer, system: SearchSystem) -> None:
    status, body = got(server, "/search", q="where does the falcon hide?", k=3)
    answer = json.loads(body)
    hits = system.search("where does the falcon hide?", 3)
    assert status == 200 and answer["query"] == "where does the falcon hide?" and answer["seconds"] > 0
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    for found, expected in zip(answer["hits"], hits, strict=True):
        assert {name: found[name] for name in vars(expected)} == vars(expected)
    assert len(json.loads(got(server, "/search", q="falcon")[1])["hits"]) == 10


def test_health_says_what_is_served(server: SearchServer) -> None:
    status, body = got(server, "/health")
    assert status == 200 and json.loads(body) == {"status": "ok", "collection": "<tiny>", "passages": 60}


def test_the_page_shows_everything_escaped_and_takes_nothing_from_elsewhere(server: SearchServer) -> None:
    status, page = got(server, "/", q=HOSTILE, k=60)
    assert status == 200
    assert "60 of 60 passages" in page and page.count("<article>") == 60
    assert page.count(html.escape(HOSTILE)) == 2, "in the search box and in the title of the page"
    assert unmarked(page).count(html.escape(HOSTILE)) == 3, "and as a passage"
    assert "&lt;i&gt;p0&lt;/i&gt;" in page and "&lt;b&gt;" in page and "<h1>&lt;tiny&gt;</h1>" in page
    places = re.findall('(?:src|href|action)="([^"]*)', page)
    for shown in (page, got(server, "/passage", id="<i>p0</i>")[1]):
        assert not re.search("<script|<b>|<i>|<tiny>", shown)
        assert not re.search(r"https?:|url\(|@import", shown)
    assert places.pop(0) == "/" and all(re.fullmatch(r"/passage\?id=[\w%]+", place) for place in places)
    with urlopen(server.url) as reply:
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert "<article>" not in reply.read().decode()


def unmarked(page: str) -> str:
    return re.sub("</?mark>", "", page)


def test_the_words_of_the_query_are_marked() -> None:
    words = query_words("Where is the FALCON's straße & <b>?")
    text = "The Falcon, where? <b>STRASSE</b> falconry"
    assert marked(text, words) == (
        "The <mark>Falcon</mark>, <mark>where</mark>? &lt;<mark>b</mark>&gt;<mark>STRASSE</mark>"
        "&lt;/<mark>b</mark>&gt; falconry"
    )
    assert marked("to be", query_words("to be or not to be")) == "<mark>to</mark> <mark>be</mark>"
    assert marked("蜜蜂のダンス", query_words("蜂")) == "蜜<mark>蜂</mark>のダンス"
    assert marked("<a> &amp; amp", query_words("amp")) == "&lt;a&gt; &amp;<mark>amp</mark>; <mark>amp</mark>"
    assert marked("a <b>", query_words("?")) == "a &lt;b&gt;"


def test_the_score_that_sorts_is_in_bold(server: SearchServer, system: SearchSystem) -> None:
    """With a ranker the pipeline's score, which falls from hit to hit; else the score of the model that sorts."""
    page = got(server, "/", q="where does the falcon hide?", k=5)[1]
    bold = [float(score) for score in re.findall(r"<strong>pipeline ([-.0-9]+)</strong>", page)]
    hits = system.search("where does the falcon hide?", 5)
    assert bold == [round(hit.score, 3) for hit in hits] == sorted(bold, reverse=True)
    hit = {"rank": 1, **vars(hits[0])}
    for name, scores in {
        "ranker": {"score": hit["ranker_score"]},
        "retriever": {"score": hit["retriever_score"], "ranker_score": None},
    }.items():
        [bold] = re.findall("<strong>(.*?)</strong>", hits_html("", [hit | scores]))
        assert bold == f"{name} {(hit | scores)['score']:.3f}"


def test_with_bm25_every_score_has_its_name(system: SearchSystem) -> None:
    settings = {"lexical_weight": 0.3}
    models = system.retriever, system.ranker, system.collection
    both = SearchSystem(*models, system.settings.changed(settings), system.work_folder)
    query = "where does the falcon hide?"
    without = SearchSystem(*models, system.settings.changed({"rerank_depth": 0}), system.work_folder)
    alone = {hit.passage_id: hit for hit in without.search(query, 60)}
    for hit in both.search(query, 5):
        assert hit.retriever_score == pytest.approx(alone[hit.passage_id].retriever_score, abs=1e-5)
        total = hit.retriever_score + both.retriever_temperature * 0.3 * hit.bm25_score
        assert hit.hybrid_score == pytest.approx(total, abs=1e-5)
    [names] = {
        tuple(re.findall(r"(pipeline|ranker|hybrid|retriever|BM25) -?[0-9.]+(?:</strong>)?( \()?", article))
        for article in hits_html(query, [{"rank": 1, **vars(hit)} for hit in both.search(query, 5)]).split(
            "<article>"
        )[1:]
    }
    assert names == (("pipeline", ""), ("ranker", ""), ("hybrid", " ("), ("retriever", ""), ("BM25", ""))
    assert (
        hits_table(both.search(query, 5), 80).splitlines()[0].split()
        == "rank ranker hybrid retriever BM25 passage".split()
    )
    hybrid = SearchSystem(
        system.retriever, None, system.collection, system.settings.changed(settings), system.work_folder
    )
    [hit, *_] = hybrid.search(query, 5)
    assert hit.score == hit.hybrid_score != hit.retriever_score and hit.ranker_score is None
    page = hits_html(query, [{"rank": 1, **vars(hit)}])
    assert re.findall("<strong>([a-z]+)", page) == ["hybrid"]
    assert hits_table([hit], 80).splitlines()[0].split() == "rank hybrid retriever BM25 passage".split()
    with serving(hybrid) as server:
        answer = json.loads(got(server, "/search", q=query)[1])
    assert answer["system"] == "hybrid" and set(answer["hits"][0]) == {"rank", *vars(hit)}
    assert [one.served for one in (both, without, hybrid)] == ["pipeline", "retriever", "hybrid"]


def test_a_passage_is_shown_between_its_neighbours(server: SearchServer, system: SearchSystem) -> None:
    corpus = list(system.collection.corpus)
    for row, places in ((0, [0, 1]), (1, [0, 1, 2]), (30, [29, 30, 31]), (59, [58, 59])):
        page = got(server, "/passage", id=corpus[row]["id"])[1]
        articles = page.split("<article")[1:]
        assert ['class="chosen"' in article for article in articles] == [place == row for place in places]
        for place, article in zip(places, articles, strict=True):
            assert html.escape(corpus[place]["text"]) in article
            assert f"passage {place + 1} ·" in article and quote(corpus[place]["id"], safe="") in article
    linked = re.findall('href="(/passage[^"]*)', got(server, "/", q="falcon", k=60)[1])
    assert len(linked) == 60 and "chosen" in got(server, linked[0])[1]


def test_queries_of_any_script_are_understood(server: SearchServer) -> None:
    query = "維生素D prévient-elle … 🦅?"
    assert json.loads(got(server, "/search", q=query)[1])["query"] == query
    assert got(server, "/search?q=%ff%fe")[0] == 200, "bytes that are not UTF-8 are replaced"


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/search", 400, "the query is empty; expected /search?q=TEXT"),
        ("/search?q=%20", 400, "the query is empty"),
        ("/search?q=a&k=0", 400, "k: found '0'; expected a whole number from 1 to 100, as in &k=10"),
        ("/search?q=a&k=101", 400, "k: found '101'"),
        ("/search?q=a&k=ten", 400, "k: found 'ten'"),
        ("/?q=a&k=-1", 400, "k: found '-1'"),
        (f"/search?q={'a' * 4001}", 400, "q has 4,001 characters; expected at most 4,000"),
        ("/passage?id=p1", 404, "there is no passage 'p1'; expected /passage?id=ID"),
        (f"/{quote('<b>')}", 404, "nothing at /<b>; expected / (the page), /search?q=TEXT&k=10"),
    ],
)
def test_a_bad_request_is_answered_with_what_to_ask(
    server: SearchServer, path: str, status: int, message: str
) -> None:
    found, body = got(server, path)
    assert found == status and message in json.loads(body)["error"]


class Watched:
    """A system that notes the searches that are carried out, and waits before the first one."""

    def __init__(self, system: SearchSystem) -> None:
        self.system, self.collection, self.served = system, system.collection, system.served
        self.searches: list[tuple[int, int]] = []  # numbers of queries, and k
        self.released, self.inside = threading.Event(), threading.Lock()

    def search_many(self, queries: list[str], k: int) -> list[list[Hit]]:
        assert self.inside.acquire(blocking=False), "one search at a time"
        self.searches.append((len(queries), k))
        self.released.wait(30)
        self.inside.release()
        return self.system.search_many(queries, k)


def test_requests_that_wait_are_searched_together_and_find_the_same(system: SearchSystem) -> None:
    watched = Watched(system)
    asked = [
        (query, 3 if number % 4 else 5) for number, query in enumerate(system.collection.queries["text"])
    ]
    with serving(watched) as server, ThreadPoolExecutor(41) as clients:  # type: ignore[arg-type]
        first = clients.submit(got, server, "/search", q="falcon", k=1)
        while not watched.searches:
            time.sleep(0.01)
        answers = [clients.submit(got, server, "/search", q=query, k=k) for query, k in asked]
        while len(server.batches._waiting) < len(asked):
            time.sleep(0.01)
        watched.released.set()
        assert first.result()[0] == 200
    assert watched.searches[0] == (1, 1) and sorted(watched.searches[1:]) == [(10, 5), (30, 3)]
    for (query, k), answer in zip(asked, answers, strict=True):
        assert_equal(json.loads(answer.result()[1])["hits"], system.search(query, k))


def assert_equal(found: list[dict], expected: list[Hit]) -> None:
    """The same passages with the same scores up to rounding, which may change the order of ties."""
    assert len(found) == len(expected)
    alone = {hit.passage_id: hit for hit in expected}
    for hit, at_its_place in zip(found, expected, strict=True):
        for name in ("retriever_score", "ranker_score", "score"):
            same_passage = getattr(alone[hit["passage_id"]], name)
            assert hit[name] == pytest.approx(same_passage, abs=1e-5)
            if name == "score":
                assert hit[name] == pytest.approx(at_its_place.score, abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rerank_depth": 0},
        {"system": "ranker"},
        {"weight": 0.5, "pipeline_depth": 2},
        {"lexical_weight": 0.3},
        {"rerank_depth": 100},
    ],
)
def test_many_queries_find_what_each_finds_alone(system: SearchSystem, change: dict) -> None:
    changed = SearchSystem(
        system.retriever,
        system.ranker,
        system.collection,
        system.settings.changed(change),
        system.work_folder,
    )
    queries = [*system.collection.queries["text"][:5], "", "falcon " * 40, HOSTILE]
    for k in (4, 70):
        for query, found in zip(queries, changed.search_many(queries, k), strict=True):
            alone = changed.search(query, k)
            assert len(found) == min(k, 60)
            assert_equal([vars(hit) for hit in found], alone)
            first = [hit.score for hit in found if hit.score is not None]
            assert first == sorted(first, reverse=True) and len(first) == min(
                k, change.get("pipeline_depth", k), 60
            )


def test_what_fails_is_answered_and_told_in_the_terminal(
    system: SearchSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        collection = system.collection

        def search_many(self, queries: list[str], k: int) -> list:
            raise RuntimeError("out of memory")

    with serving(Broken()) as server:  # type: ignore[arg-type]
        status, body = got(server, "/search", q="falcon")
        assert status == 500 and "see the terminal of the server" in json.loads(body)["error"]
        assert got(server, "/health")[0] == 200, "and goes on"
    assert "RuntimeError: out of memory" in capsys.readouterr().err


# --- the command


@pytest.fixture
def run(tmp_path: Path, tiny_collection: Collection) -> Path:
    folder = tmp_path / "run"
    make_tiny_retriever(folder / "retriever")
    make_tiny_ranker(folder / "ranker")
    tiny_collection.save(tmp_path / "data")
    recipe = {"name": "tiny", "collection": str(tmp_path / "data"), "args": {"bf16": False}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.slow
def test_the_command_prints_where_it_is_and_ends_cleanly_on_ctrl_c(run: Path) -> None:
    # Who is started in the background may have been told to ignore Ctrl-C.
    start = (
        "import signal, sys; from hf_ar2.command_line.main import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        start,
        "serve",
        str(run),
        "--port",
        "0",
        "--allow-host",
        "here.example.org",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        assert "60 passages, index in" in said[0]
        url = re.fullmatch(r"Search at (http://127\.0\.0\.1:\d+/) \(stop with Ctrl-C\)\n", said[1])
        assert url, said
        for host, status in (("here.example.org", 200), ("example.org", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url[1]).port, timeout=30)
            connection.request("GET", "/search?q=falcon&k=1", headers={"Host": host})
            reply = connection.getresponse()
            assert reply.status == status and ("hits" in json.load(reply)) == (status == 200)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == "\nStopped.\n" and "Traceback" not in errors


def test_what_cannot_be_served_is_told_before_models_are_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, message in [
            (
                ["--port", str(port)],
                f"cannot listen at port {port} of 127.0.0.1: Address already in use. Choose",
            ),
            (["--host", "203.0.113.1", "--port", "0"], "Name an address of this machine: --host 127.0.0.1"),
            (["--port", "70000"], "--port 70000: expected a number from 0 to 65535"),
        ]:
            assert cli.main(["serve", str(tmp_path / "no-run"), *options]) == 1
            assert message in capsys.readouterr().err
    assert cli.main(["serve", str(tmp_path / "no-run"), "--port", "0"]) == 1
    assert "no-run is not a run folder" in capsys.readouterr().err
