"""`hf-ar2 label`: what is shown, what is kept after every question, and the same on a page."""

from __future__ import annotations

import html
import http.client
import io
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from conftest import make_tiny_ranker, make_tiny_retriever, served

from hf_ar2.collections import Collection
from hf_ar2.collections.questions import qrels_of, question_id, read_judged, write_judged
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.label import ask, passages_text
from hf_ar2.command_line.label_page import LabelServer
from hf_ar2.command_line.labelling import Labelling, pooled
from hf_ar2.search.system import Hit
from hf_ar2.terminal import visible

QUESTIONS = ["where do bees live ?", "who dances ?", "what is <b>honey</b> ?"]


def hit(id: str, text: str = "a text") -> Hit:
    return Hit(id, "", text, 1, 0.5, None)


def finds(*ids: str):
    """A system that finds these for the first question, and `ID-NUMBER` for the others."""

    def search(question: str) -> Sequence[Hit]:
        number = QUESTIONS.index(question)
        return [hit(f"{id}-{number}" if number else id) for id in ids]

    return search


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "asked.txt"
    path.write_text("\n".join(QUESTIONS))
    return path


@pytest.fixture
def labelling(file: Path) -> Labelling:
    return Labelling(file, [finds("a", "b", "c"), finds("b", "d", "e")], seed=1)


def answer(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in answers)))


# --- what is shown


def test_both_systems_are_shown_each_passage_once_in_an_order_that_says_nothing() -> None:
    one, other = [hit(id) for id in "abc"], [hit(id) for id in "bde"]
    orders = {"".join(found.passage_id for found in pooled([one, other], str(seed))) for seed in range(50)}
    assert {"".join(sorted(order)) for order in orders} == {"abcde"} and len(orders) > 20
    assert {order[0] for order in orders} == set("abcde"), "not always what one system found first"
    again = [found.passage_id for found in pooled([one, other], "7")]
    assert again == [found.passage_id for found in pooled([one, other], "7")]
    assert [found.passage_id for found in pooled([one[:1], []], "1")] == ["a"]


def test_a_terminal_obeys_nothing_that_a_passage_says() -> None:
    hostile = "red \x1b[31m\x07 \x9b2J back\rover \u202egnp.exe \ud800"
    shown = passages_text([Hit(hostile, hostile, f"{hostile}\nsecond", 1, 0.5, None)], 80)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800]", shown)
    assert r"red \x1b[31m\x07 \x9b2J back over \u202egnp.exe \ud800" in shown
    assert visible("Bienen, 蜜蜂, 🐝") == "Bienen, 蜜蜂, 🐝"
    assert max(map(len, passages_text([hit("a", "word " * 500)], 60).splitlines())) <= 60


# --- what is kept


def test_every_answer_is_in_the_file_at_once(labelling: Labelling, file: Path) -> None:
    ids = [question_id(text) for text in QUESTIONS]
    places = {found.passage_id: place for place, found in enumerate(labelling.shown)}
    labelling.judge([places["b"], places["d"]])
    first = {ids[0]: {"a": 0, "b": 1, "c": 0, "d": 1, "e": 0}}
    assert read_judged(file) == first and not file.with_name(f"{qrels_of(file).name}.partial").exists()
    labelling.skip()
    assert read_judged(file) == first and labelling.number == 3
    labelling.judge([])
    assert labelling.current is None and read_judged(file)[ids[2]].keys() == {f"{id}-2" for id in "abcde"}
    said = labelling.summary("runs/mine")
    assert said.startswith(
        "2 of 3 questions judged; 1 skipped, 2 relevant passages; no relevant passage for 1\n"
    )
    assert said.endswith(f"Next: hf-ar2 evaluate runs/mine --questions {file}")

    assert labelling.undo() and labelling.current == ids[2] and read_judged(file) == first
    assert labelling.undo() and labelling.current == ids[1] and not labelling.skipped
    assert labelling.undo() and labelling.current == ids[0] and read_judged(file) == {}
    assert not labelling.undo()


def test_it_goes_on_where_it_was_and_asks_about_what_is_new(labelling: Labelling, file: Path) -> None:
    labelling.judge([0])
    assert Labelling(file, [finds("a", "b")], seed=2).number == 2
    judged = read_judged(file)
    judged[question_id(QUESTIONS[0])]["a"] = 3  # a grade that somebody wrote
    write_judged(file, judged)
    other = Labelling(file, [finds("a", "new")], seed=2)
    assert other.number == 1 and [found.passage_id for found in other.shown] == ["new"]
    other.judge([0])
    assert read_judged(file)[question_id(QUESTIONS[0])] == judged[question_id(QUESTIONS[0])] | {"new": 1}
    assert other.undo() and read_judged(file) == judged


def test_the_terminal_asks_until_an_answer_means_something(
    labelling: Labelling, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "6", "none", "u", "1, 3", "", "u", "s", "\x1b[A", "q", "never read")
    ask(labelling)
    said = capsys.readouterr().out
    assert "[1 of 3] where do bees live ?" in said
    assert "'6': expected numbers from 1 to 5" in said and "'none': expected numbers" in said
    assert "There is nothing to undo." in said and r"'\x1b[a': expected" in said.replace("\\\\", "\\")
    assert said.count("[2 of 3]") == 2, "judged, undone, skipped"
    assert [sum(grades.values()) for grades in read_judged(file).values()] == [2]


def test_the_end_of_the_input_and_ctrl_c_end_it_and_keep_all(
    labelling: Labelling, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "2")
    ask(labelling)
    assert len(read_judged(file)) == 1

    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    ask(labelling)
    assert len(read_judged(file)) == 1


def test_without_a_judgment_there_is_no_file_to_name(
    labelling: Labelling, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "0 of 3 questions judged{}. Nothing was judged, and nothing was written\nNext: hf-ar2 label runs/mine {}"
    answer(monkeypatch, "q")
    ask(labelling)
    assert labelling.summary("runs/mine") == said.format("", file)
    answer(monkeypatch, "1", "u", "s", "q")
    ask(labelling)
    assert labelling.summary("runs/mine") == said.format("; 1 skipped", file) and not qrels_of(file).exists()


# --- the page


@pytest.fixture
def server(labelling: Labelling) -> Iterator[LabelServer]:
    with LabelServer(0) as server:
        server.labelling, server.run_folder = labelling, "runs/mine"
        with served(server):
            yield server


def request(
    server: LabelServer, method: str, path: str = "/", form: object = None, **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = urlencode(form, doseq=True) if form is not None else None  # type: ignore[call-overload]
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text


def send(server: LabelServer, action: str, *relevant: int, **changed: str) -> int:
    """Send the form of the page that is shown."""
    form = {"token": server.token, "question": server.labelling.current or "", "action": action}
    return request(server, "POST", form={**form, "relevant": relevant, **changed})[0]


def test_the_page_judges_skips_and_undoes(server: LabelServer, file: Path) -> None:
    status, page = request(server, "GET")
    assert status == 200 and "1 of 3" in page and page.count('type="checkbox"') == 5
    first = server.labelling.shown[0].passage_id
    assert send(server, "judge", 0) == 303
    [grades] = read_judged(file).values()
    assert grades[first] == 1 and sum(grades.values()) == 1
    assert send(server, "skip") == 303 and "3 of 3" in request(server, "GET")[1]
    assert send(server, "judge") == 303
    page = request(server, "GET")[1]
    assert "That was the last question" in page and "2 of 3 questions judged; 1 skipped" in page
    assert send(server, "undo") == 303 and len(read_judged(file)) == 1
    assert "3 of 3" in request(server, "GET")[1]


def test_the_page_shows_texts_escaped(server: LabelServer) -> None:
    server.labelling.judge([])
    server.labelling.judge([])
    hostile = '<script>alert(1)</script> "&'
    shown = [Hit(hostile, hostile, hostile, 1, 0.5, None)]
    server.labelling._found[question_id(QUESTIONS[2])] = shown
    page = request(server, "GET")[1]
    assert html.escape(QUESTIONS[2]) in page and page.count(html.escape(hostile)) == 2
    assert not re.search("<script|<b>", page)


def test_other_pages_and_pages_of_before_change_nothing(server: LabelServer, file: Path) -> None:
    port = server.port
    form = {"token": server.token, "question": server.labelling.current, "action": "judge", "relevant": 0}
    for changed, headers, status in (
        ({"token": "guessed"}, {}, 403),
        ({"token": ""}, {}, 403),
        ({"token": "ü"}, {}, 403),
        ({}, {"Origin": "http://example.org"}, 403),
        ({}, {"Origin": "null"}, 403),
        ({}, {"Host": "example.org"}, 403),
        ({}, {"Host": f"example.org:{port}"}, 403),
        ({}, {"Content_Length": "9999999"}, 400),
        ({"question": question_id(QUESTIONS[1])}, {}, 303),
        ({"action": "something"}, {}, 303),
    ):
        assert request(server, "POST", form=form | changed, **headers)[0] == status, (changed, headers)
        assert not qrels_of(file).exists() and server.labelling.number == 1
    assert request(server, "GET", Host=f"rebound.example.org:{port}")[0] == 403
    assert request(server, "GET", Host=f"localhost:{port}")[0] == 200
    assert request(server, "GET", "/other")[0] == 404
    assert request(server, "POST", form=form, Origin=f"http://127.0.0.1:{port}")[0] == 303
    assert qrels_of(file).exists()


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> Path:
    """A run folder whose first row is another retriever than what is served."""
    folder = tmp_path_factory.mktemp("run")
    make_tiny_retriever(folder / "retriever", seed=1)
    make_tiny_ranker(folder / "ranker")
    make_tiny_retriever(folder / "before", seed=0)
    tiny_collection.save(folder / "data")
    recipe = {
        "name": "tiny",
        "collection": str(folder / "data"),
        "models": {"light": {"model": str(folder / "before")}, "heavy": {"model": str(folder / "ranker")}},
        "args": {"bf16": False, "max_passage_length": 32, "max_pair_length": 48},
        "stages": {"g0": {"trainer": "retriever", "retriever": "light"}},
        "evaluation": {
            "metrics": ["mrr@10"],
            "depth": 20,
            "rerank_depth": 5,
            "rows": {"zero-shot": {"retriever": "light"}, "both": {"retriever": "g0", "ranker": "heavy"}},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.txt"
    path.write_text("where does the falcon hide ?\nwhat does the otter carry ?\n")
    return path


def test_the_command_shows_what_both_models_find_and_leads_to_the_measurement(
    run: Path, asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "1", "q")
    assert cli.main(["label", str(run), str(asked), "-k", "3"]) == 0
    said = capsys.readouterr().out
    assert "the first 3 results of the run's models and of zero-shot, mixed" in said
    assert "1 of 2 questions judged, 1 relevant passages" in said
    [grades] = read_judged(asked).values()
    assert 3 < len(grades) <= 6, "two models that agree on everything would be one"
    answer(monkeypatch, "")
    assert cli.main(["label", str(run), str(asked), "-k", "3"]) == 0
    said = capsys.readouterr().out
    assert "[2 of 2]" in said and "[1 of 2]" not in said and "2 of 2 questions judged" in said
    command = said.splitlines()[-1].removeprefix("Next: hf-ar2 ").split()
    assert cli.main(command) == 0
    assert "questions: 2 queries" in capsys.readouterr().out


def test_a_run_that_serves_the_start_encodes_it_once(
    run: Path,
    asked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("retriever", "index", "label"))
    shutil.copytree(run / "before", folder / "retriever")
    answer(monkeypatch, "1", "")
    assert cli.main(["label", str(folder), str(asked), "-k", "3"]) == 0
    assert (folder / "index").is_dir() and not (folder / "label").exists()
    assert "2 of 2 questions judged" in capsys.readouterr().out


def test_what_is_wrong_is_said_before_models_are_loaded(
    run: Path, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["label", str(run), str(asked.with_name("absent.txt"))]) == 1
    assert "absent.txt: no such file; expected a file of questions" in capsys.readouterr().err
    qrels_of(asked).write_text("nonsense\n")
    assert cli.main(["label", "no-run", str(asked)]) == 1
    assert "found the columns ['nonsense']" in capsys.readouterr().err
    qrels_of(asked).unlink()
    assert cli.main(["label", "no-run", str(asked)]) == 1
    assert "no-run is not a run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_is_served_until_ctrl_c(run: Path, asked: Path) -> None:
    start = (
        "import signal, sys; from hf_ar2.command_line.main import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", start, "label", str(run), str(asked), "--browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        url = re.search(r"Judge at http://127\.0\.0\.1:(\d+)/", said[1])
        assert url, said
        connection = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=60)
        connection.request("GET", "/")
        assert "where does the falcon hide ?" in connection.getresponse().read().decode()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "0 of 2 questions judged" in rest and "Traceback" not in errors
