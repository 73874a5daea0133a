"""`hf-ar2 serve` on the loopback address: the page, the JSON, several clients at once, and the end by Ctrl-C."""

from __future__ import annotations

import contextlib
import html
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import pytest
import yaml
from conftest import make_tiny_ranker, make_tiny_retriever, served
from datasets import Dataset

import hf_ar2
from hf_ar2.collections import Collection
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.serve import SearchServer
from hf_ar2.search.system import SearchSystem
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
    assert got(server, "/health") == (200, '{"status": "ok", "collection": "<tiny>", "passages": 60}')


def test_the_page_shows_everything_escaped_and_takes_nothing_from_elsewhere(server: SearchServer) -> None:
    status, page = got(server, "/", q=HOSTILE, k=60)
    assert status == 200
    assert "60 of 60 passages" in page and page.count("<article>") == 60
    assert page.count(html.escape(HOSTILE)) == 2, "in the search box and as a passage"
    assert "&lt;i&gt;p0&lt;/i&gt;" in page and "&lt;b&gt;" in page and "<h1>&lt;tiny&gt;</h1>" in page
    assert not re.search("<script|<b>|<i>|<tiny>", page)
    assert not re.search(r"(src|href)=|https?:|url\(|@import", page)
    with urlopen(server.url) as reply:
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert "<article>" not in reply.read().decode()


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
        (f"/{quote('<b>')}", 404, "nothing at /%3Cb%3E; expected / (the page), /search?q=TEXT&k=10"),
    ],
)
def test_a_bad_request_is_answered_with_what_to_ask(
    server: SearchServer, path: str, status: int, message: str
) -> None:
    found, body = got(server, path)
    assert found == status and message in json.loads(body)["error"]


def test_one_client_at_a_time_reaches_the_models(system: SearchSystem) -> None:
    inside, most = 0, 0
    lock, both_have_asked = threading.Lock(), threading.Barrier(3)

    class Watched:
        collection = system.collection

        def search(self, query: str, k: int) -> list:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            hits = system.search(query, k)
            with lock:
                inside -= 1
            return hits

    def ask(query: str) -> str:
        both_have_asked.wait(timeout=30)
        answers = [got(server, "/search", q=query, k=1)[1] for _ in range(5)]
        return str(json.loads(answers[-1])["hits"][0]["passage_id"])

    queries = ["the quiet falcon", "a mirror in the attic", "salmon at dawn"]
    with serving(Watched()) as server, ThreadPoolExecutor(3) as clients:  # type: ignore[arg-type]
        found = list(clients.map(ask, queries))
    assert most == 1
    assert found == [system.search(query, 1)[0].passage_id for query in queries]


def test_what_fails_is_answered_and_told_in_the_terminal(
    system: SearchSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        collection = system.collection

        def search(self, query: str, k: int) -> list:
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
    command = [sys.executable, "-c", start, "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        assert "60 passages, index in" in said[0]
        url = re.fullmatch(r"Search at (http://127\.0\.0\.1:\d+/) \(stop with Ctrl-C\)\n", said[1])
        assert url, said
        with urlopen(f"{url[1]}search?q=falcon&k=1", timeout=30) as reply:
            assert len(json.load(reply)["hits"]) == 1
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
