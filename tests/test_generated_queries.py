"""Questions that a model writes: seq2seq, causal, chat and an endpoint; kept, filtered, gone on with, and told."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_tiny_retriever
from tiny_run import make_tiny_run
from tiny_writers import make_tiny_writers

from hf_ar2.cards.card import model_card
from hf_ar2.cards.facts import training_of_run
from hf_ar2.collections import Collection, CollectionError, load_collection
from hf_ar2.collections.questions import query_sources
from hf_ar2.command_line import main as cli
from hf_ar2.generation.endpoint import EndpointWriter
from hf_ar2.generation.models import ModelWriter
from hf_ar2.generation.prompts import extract_question
from hf_ar2.generation.questions import sample, with_generated, write_replies
from hf_ar2.generation.store import ReplyStore

SCENE = re.compile(r"the \w+ (\w+) (\w+) a (\w+) in the")


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `seq2seq`, `causal` and `chat`."""
    return make_tiny_writers(tmp_path_factory.mktemp("writers"))


class Endpoint(ThreadingHTTPServer):
    """Asks about the scene of a passage, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Completions)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: list[tuple[int, bytes]] = []  # given first, in place of a question
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Completions(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body | {"path": self.path})
        self.server.keys.append(self.headers["Authorization"])
        text = body["messages"][0]["content"]
        animal, verb, thing = (SCENE.search(text) or re.search("()()()", text)).groups()  # type: ignore[union-attr]
        content = f"Here you are:\n1. **where does the {animal} {verb} the {thing} ?**"
        status, reply = 200, json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        if self.server.answers:
            status, reply = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def texts(tmp_path: Path, tiny_collection: Collection, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of texts without headings or questions; the working folder is beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for row in tiny_collection.corpus:
        (tmp_path / "docs" / f"{row['id']}.txt").write_text(row["text"] + ".\n")
    return tmp_path


def generate(*options: str, source: str = "text:docs", out: str = "out") -> int:
    return cli.main(["collection", source, out, "--generate-queries", *options])


def test_a_folder_of_texts_gets_questions_that_find_their_passage(
    texts: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(endpoint.url, "--generate-model", "stub", "--filter-depth", "3") == 0
    said = capsys.readouterr().out
    assert "stub writes questions for 60 of 60 passages" in said
    collection = load_collection("out")
    assert collection.splits == ["train", "dev", "test"] and len(collection.corpus) == 60
    assert set(collection.queries["source"]) == {"generated:stub"}
    for split in collection.splits:
        for judged in collection.qrels[split]:
            text = collection.corpus[list(collection.corpus["id"]).index(judged["passage_id"])]["text"]
            scene = SCENE.search(text)
            assert scene is not None
            question = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))
            animal, verb, thing = scene.groups()
            assert question[judged["query_id"]] == f"where does the {animal} {verb} the {thing} ?"
    kept = len(collection.queries)
    counts = re.search(r"60 questions: (\d+) kept(.*)\n", said)
    assert counts and int(counts[1]) == kept > 50
    assert kept + sum(map(int, re.findall(r"(\d+) (?:dup|not)", counts[2]))) == 60
    asked = endpoint.asked[0]
    assert asked["path"] == "/v1/chat/completions" and asked["model"] == "stub" and asked["temperature"] == 0
    assert endpoint.keys[0] is None
    assert [path.name for path in Path("out/work").iterdir()] == ["generated.jsonl"]


def test_questions_that_find_other_passages_are_dropped(
    texts: Path, endpoint: Endpoint, tiny_retriever_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A retriever that has learnt nothing finds few of them first."""
    options = ("--generate-model", "stub", "--filter-model", str(tiny_retriever_path), "--filter-depth", "1")
    assert generate(endpoint.url, *options) == 0
    lost = re.search(r"(\d+) do not retrieve their passage \(among the first 1 of ", capsys.readouterr().out)
    assert lost and len(load_collection("out").queries) + int(lost[1]) == 60 and int(lost[1]) > 10


@pytest.mark.parametrize("kind", ["seq2seq", "causal", "chat"])
def test_models_write_the_same_again_and_samples_differ(writers: Path, kind: str) -> None:
    passages = ["the otter hides a shell", "the heron builds a drum in the garden at dusk", "a mirror"]
    greedy = ModelWriter(str(writers / kind))
    assert greedy.chat == (kind == "chat") and "{passage}" in greedy.prompt
    [batch] = greedy.batches(passages)
    assert sorted(batch.tolist()) == [0, 1, 2]
    one = greedy.write(0, passages)
    assert [len(replies) for replies in one] == [1, 1, 1] and one == greedy.write(1, passages)
    alone = [greedy.write(0, [passage])[0] for passage in passages]
    assert alone == one, "padding changes nothing"
    sampled = ModelWriter(str(writers / kind), count=3)
    several = sampled.write(0, passages)
    assert several == sampled.write(0, passages) != sampled.write(1, passages)
    assert all(len(set(replies)) > 1 for replies in several)


def test_a_long_passage_is_cut_and_the_prompt_is_not(writers: Path) -> None:
    writer = ModelWriter(str(writers / "causal"), prompt="{passage} what ?")
    tokens = writer._tokens("the otter hides a shell " * 100)
    assert len(tokens) <= writer.max_tokens
    assert writer.tokenizer.decode(tokens).endswith("what?")


class Counting:
    """Writes a fixed question per passage; ends the process, so to say, in batch `fails`."""

    name, prompt, count, seed = "counting", "{passage}", 1, 0

    def __init__(self, fails: int | None = None) -> None:
        self.fails, self.written = fails, 0

    def batches(self, passages: list[str]) -> list:
        import numpy as np

        return np.array_split(np.arange(len(passages)), 5)

    def write(self, batch: int, passages: list[str]) -> list[list[str]]:
        if batch == self.fails:
            raise KeyboardInterrupt
        self.written += len(passages)
        return [[f"what of {passage} ?"] for passage in passages]

    def close(self) -> None:
        """Nothing."""


def test_what_was_written_is_kept_and_a_damaged_last_line_is_written_again(tmp_path: Path) -> None:
    ids, passages = [f"p{number}" for number in range(10)], [f"text {number}" for number in range(10)]
    file = tmp_path / "work" / "generated.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_replies(Counting(fails=3), ids, passages, ReplyStore(file))
    assert len(ReplyStore(file).replies) == 6
    with open(file, "a") as stream:
        stream.write('{"key": "a line that was not wri')
    second = Counting()
    replies = write_replies(second, ids, passages, ReplyStore(file))
    assert second.written == 4 and [reply for [reply] in replies] == [
        f"what of {text} ?" for text in passages
    ]
    third = Counting()
    changed = [*passages[:-1], "another text"]
    write_replies(third, ids, changed, ReplyStore(file))
    assert third.written == 2, "the batch of the one text that has changed"
    assert len(file.read_text().splitlines()) == 11

    lines = file.read_text().splitlines()
    file.write_text("\n".join(["{", *lines]) + "\n")
    with pytest.raises(CollectionError, match=r"generated.jsonl:1: found a damaged line"):
        ReplyStore(file)


@pytest.mark.slow
def test_the_same_command_asks_nothing_again(
    texts: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (endpoint.url, "--generate-model", "stub", "--passages-limit", "20", "--generate-seed", "3")
    assert generate(*options) == 0
    assert "20 of 60 passages, drawn with seed 3 (--passages-limit 20)" in capsys.readouterr().out
    first, queries = len(endpoint.asked), Path("out/queries.jsonl").read_bytes()
    assert first == 20
    assert generate(*options) == 0
    assert len(endpoint.asked) == 20 and Path("out/queries.jsonl").read_bytes() == queries
    assert sample(60, 20, 3).tolist() != sample(60, 20, 4).tolist()


def test_generated_questions_join_train_where_people_asked_the_rest(tiny_collection: Collection) -> None:
    row = list(tiny_collection.corpus["id"]).index(tiny_collection.qrels["test"][0]["passage_id"])
    found = with_generated(tiny_collection, [(row, "what of it ?"), (0, "and what else ?")], "generated:m")
    assert query_sources(found) == {
        "train": {"": 24, "generated:m": 2},
        "dev": {"": 8},
        "test": {"": 8},
    }
    assert found.corpus_fingerprint == tiny_collection.corpus_fingerprint
    before = tiny_collection.judgments("test")
    assert (found.judgments("test").passage_rows == before.passage_rows).all()


def test_the_questions_of_a_passage_are_in_one_split(tiny_collection: Collection) -> None:
    bare = Collection("bare", tiny_collection.corpus, tiny_collection.queries.select([]), {})
    pairs = [(row, f"question {number} about {row}") for row in range(60) for number in range(3)]
    found = with_generated(bare, pairs, "generated:m")
    passages = [set(found.qrels[split]["passage_id"]) for split in ("train", "dev", "test")]
    assert sum(map(len, passages)) == len(set.union(*passages)) == 60
    assert len(passages[0]) > 30 and min(map(len, passages)) >= 1
    few = with_generated(bare, pairs[:9], "generated:m")
    assert [len(few.judgments(split)) for split in ("train", "dev", "test")] == [3, 3, 3]


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("Where do bees live?", "Where do bees live?"),
        ("Sure!\n\n- Question: where do bees live? I hope it helps.", "where do bees live?"),
        ("2) “蜜蜂住在哪里？”", "蜜蜂住在哪里？"),
        ("<think>Bees. What?</think>\n**Q1:** Do bees dance?", "Do bees dance?"),
        ("<think>it never ended", ""),
        ("what bees eat\nsomething else", "what bees eat"),
        ("100 bees: how many wings?", "100 bees: how many wings?"),
        (" \n", ""),
    ],
)
def test_the_question_is_found_in_what_models_say(reply: str, question: str) -> None:
    assert extract_question(reply) == question


@pytest.mark.slow
def test_the_key_is_sent_to_this_machine_and_written_nowhere(
    texts: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    assert generate(endpoint.url, "--generate-model", "stub") == 0
    assert set(endpoint.keys) == {"Bearer sk-very-secret"}
    endpoint.answers = [(401, b"the key sk-very-secret is not known")] * 8
    assert generate(endpoint.url, "--generate-model", "other", out="second") == 1
    shown = capfd.readouterr()
    assert "answered 401 Unauthorized: the key *** is not known. Set OPENAI_API_KEY to its key" in shown.err
    written = b"".join(path.read_bytes() for path in texts.rglob("*") if path.is_file())
    assert b"sk-very-secret" not in written and "sk-very-secret" not in shown.out + shown.err
    assert EndpointWriter("http://example.org/v1", "m").key_withheld
    assert not EndpointWriter("https://example.org/v1", "m").key_withheld


def test_an_endpoint_that_fails_is_asked_again_and_a_redirect_is_not_followed(endpoint: Endpoint) -> None:
    passage = "the calm otter hides a shell in the attic at dusk"
    writer = EndpointWriter(endpoint.url + "/", "stub", count=2, waits=(0, 0))
    endpoint.answers = [(503, b"loading"), (200, b"not json")]
    assert len(writer.write(0, [passage])[0]) == 2 and len(endpoint.asked) == 4
    assert {body["seed"] for body in endpoint.asked} == {42, 43}
    for status, message in ((500, "answered 500"), (302, "answered 302"), (404, "Correct the URL or --gen")):
        endpoint.answers = [(status, b"")] * 6
        with pytest.raises(ValueError, match=message):
            writer.write(0, [passage])
    with pytest.raises(
        ValueError, match="cannot be reached: .*Connection refused.*the replies so far are kept"
    ):
        EndpointWriter("http://127.0.0.1:9/v1", "stub", waits=()).write(0, [passage])
    with pytest.raises(ValueError, match="found a password or a query in its URL"):
        EndpointWriter("http://me:secret@127.0.0.1/v1", "stub")


def test_options_that_contradict_each_other_leave_before_anything_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for options, message in (
        (["--filter-depth", "3"], "--filter-depth requires --generate-queries MODEL"),
        (
            ["--generate-queries", "http://127.0.0.1/v1"],
            "--generate-model is required with --generate-queries URL",
        ),
        (["--generate-queries", "some/model", "--generate-model", "m"], "and only valid with it"),
        (["--generate-queries", "some/model", "--generate-prompt", "ask"], "expected {passage} in it"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["collection", "text:docs", "out", *options])
        assert message in capsys.readouterr().err


def test_what_cannot_be_used_is_said_before_a_model_writes(
    texts: Path, writers: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("full").mkdir()
    Path("full/something").touch()
    assert generate(str(writers / "seq2seq"), out="full") == 1
    assert "found something that is not a BEIR folder" in capsys.readouterr().err
    assert generate("no/such-model") == 1
    assert "--generate-queries 'no/such-model' cannot be loaded" in capsys.readouterr().err
    assert generate(str(writers / "seq2seq"), "--filter-model", "docs") == 1
    assert "--filter-model 'docs' cannot be loaded" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert generate(str(writers / "seq2seq")) == 1
    assert "Name one for the language of the texts with --filter-model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_transformers_writes_a_collection(
    texts: Path, writers: Path, tiny_retriever_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--queries-per-passage",
        "2",
        "--filter-model",
        str(tiny_retriever_path),
        "--filter-depth",
        "30",
    )
    assert generate(str(writers / "seq2seq"), *options, "--passages-limit", "10") == 0
    collection = load_collection("out")
    assert set(collection.queries["source"]) == {"generated:seq2seq"}, "not where it is on this machine"
    assert generate(str(writers / "seq2seq"), *options, source="out", out="out") == 0
    assert "duplicate" in capsys.readouterr().out and len(load_collection("out").corpus) == 60


def test_the_card_says_that_queries_were_generated(tmp_path: Path, tiny_collection: Collection) -> None:
    run = make_tiny_run(tmp_path / "run", "data", tiny_collection)
    make_tiny_retriever(run / "retriever")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["rows"]["AR2"] = {"retriever": "ar2", "ranker": "ar2"}
    environment = json.loads((run / "environment.json").read_text())
    for stage in recipe["stages"].values():
        stage |= {"retriever": "light"}
    recipe["models"] = {"light": {"model": "some/model"}}
    generated = with_generated(tiny_collection, [(0, "what is it ?")], "generated:some/writer")
    for sources in ({}, query_sources(generated)):
        (run / "environment.json").write_text(json.dumps(environment | {"query_sources": sources}))
        card = model_card(training_of_run(run, recipe, "retriever"), run / "retriever")
        sentence = "A model wrote some of the queries: 1 of the 25 of train by `some/writer`."
        assert (sentence in card) == bool(sources)
