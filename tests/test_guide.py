"""The guide *bring your own corpus*: its commands run in their order, on a few sentences and with tiny models.

Each command is run as it stands, but for this: training gets the overrides of `TINY` (a recipe takes any setting on the
command line), the server a free port, and publishing goes to a stub of the Hub on the loopback address, as its user.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import ADJECTIVES, ANIMALS, OBJECTS, PLACES, VERBS, make_tiny_retriever
from tiny_writers import make_tiny_writers

from hf_ar2.collections import load_collection
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.launch import find_recipe
from hf_ar2.recipes.loading import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
TEXT = (RECIPES / "bring-your-own-corpus.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
# Settings, not another recipe: what the guide trains is trained, for a few steps.
TINY = (
    "--models.base.max_length 32 --max_passage_length 32 --max_pair_length 48 --use_cpu true --bf16 false "
    "--disable_tqdm true --per_device_train_batch_size 4 --warm-up.max_steps 2 --hard-negatives.max_steps 2 "
    "--ranker.max_steps 2 --ar2.num_rounds 1 --ar2.ranker_steps 1 --ar2.retriever_steps 1 --merged.share 0.3 "
    "--ltre.max_steps 2 "
    # Two steps do not make a model better: what was trained is served all the same.
    "--evaluation.choose_on null"
).split()
CTRL_C = (
    "import signal, sys; from hf_ar2.command_line.main import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
)


def write_corpus(folder: Path) -> None:
    """Twelve files of a heading and three sections each, and a question for each section."""
    questions = []
    (folder / "docs").mkdir()
    for number, animal in enumerate(ANIMALS):
        text = f"# The {animal}\n\n"
        for part in range(3):
            verb, thing = VERBS[(number + part) % 6], OBJECTS[(3 * number + part) % 10]
            place, adjective = PLACES[(number + 3 * part) % 10], ADJECTIVES[(number + part) % 6]
            text += f"## What the {adjective} {animal} {verb}\n\nThe {animal} {verb} a {thing} in the {place}.\n\n"
            heading = f"#What the {adjective} {animal} {verb}"
            questions.append(f"where does the {animal} {verb} the {thing}?\t{animal}.md{heading}")
        (folder / "docs" / f"{animal}.md").write_text(text)
    (folder / "questions.tsv").write_text("\n".join(questions) + "\n")
    asked = [
        f"where is it that the {animal} {VERBS[number]} something?"
        for number, animal in enumerate(ANIMALS[:3])
    ]
    (folder / "asked.txt").write_text("\n".join(asked) + "\n")


class Guide:
    """Runs the guide's commands in the folder it is given, and keeps what they printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: subprocess.Popen[str] | None = None

    def run(self, command: str) -> None:
        """Run one command; an exception or a failed assertion where it fails."""
        program, *arguments = shlex.split(command)
        if program == "curl":
            self.ask_server(arguments[0].removeprefix("http://127.0.0.1:8000"))
        elif program != "hf-ar2":
            subprocess.run([program, *arguments], check=True)
        elif arguments[0] == "serve":
            words = [sys.executable, "-c", CTRL_C, *arguments, "--port", "0"]
            self.server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        elif arguments[0] == "push":
            push(arguments)
        elif arguments[0] == "label":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stdin", io.StringIO("1 2\n\n3\n"))
                assert cli.main(arguments) == 0
        elif "--generate-queries" in arguments:
            arguments[arguments.index("--generate-queries") + 1] = str(self.folder / "writers" / "seq2seq")
            assert cli.main([*arguments, "--filter-model", str(self.folder / "tiny")]) == 0
        else:
            tiny = ["--models.base.model", str(self.folder / "tiny"), *TINY]
            assert cli.main([*arguments, *(tiny if arguments[0] == "train" else [])]) == 0

    def ask_server(self, path: str) -> None:
        """Ask as curl would, and end the server as the guide says: by Ctrl-C."""
        assert self.server is not None and self.server.stdout is not None
        url = re.search(r"http://\S+:\d+", "".join(self.server.stdout.readline() for _ in range(2)))
        assert url is not None
        with urlopen(url[0] + path, timeout=60) as reply:
            assert len(json.load(reply)["hits"]) == 3
        self.server.send_signal(signal.SIGINT)
        self.server.communicate(timeout=60)
        assert self.server.returncode == 0


def push(arguments: list[str]) -> None:
    """Publish to the stub, whose one user is `tester`; huggingface_hub reads its address when it is imported."""
    hub = [sys.executable, str(Path(__file__).with_name("hub_stub.py"))]
    with subprocess.Popen(hub, stdout=subprocess.PIPE, text=True) as stub:
        assert stub.stdout is not None
        endpoint = f"http://127.0.0.1:{stub.stdout.readline().strip()}"
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_dummy", "HF_HUB_OFFLINE": "0"}
        words = [
            sys.executable,
            "-m",
            "hf_ar2.command_line.main",
            *(text.replace("me/", "tester/") for text in arguments),
        ]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        stub.terminate()
    assert done.returncode == 0, done.stderr
    assert "tester/mine-retriever" in done.stdout and "tester/mine-ranker" in done.stdout


@pytest.mark.slow
def test_the_guide_runs_from_its_first_command_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    make_tiny_retriever(tmp_path / "tiny", positions=160)  # own-corpus ranks pairs of that length
    make_tiny_writers(tmp_path / "writers")
    guide, said = Guide(tmp_path), {}
    for command in COMMANDS:
        try:
            guide.run(command)
        except BaseException as error:
            shown = capfd.readouterr()
            raise AssertionError(f"{command}\n{shown.out}\n{shown.err}") from error
        said[command] = capfd.readouterr().out

    mine, headings = load_collection("data/mine"), load_collection("data/headings")
    assert len(mine.corpus) == len(mine.queries) == len(headings.queries) == 36
    assert mine.splits == headings.splits == ["train", "dev", "test"]
    trained = said["hf-ar2 train own-corpus --collection data/mine --output_dir runs/mine"]
    assert "zero-shot" in trained and "AR2 over hard-negatives" in trained
    assert "LTRe pipeline" in said["hf-ar2 compare runs/mine"]
    written = load_collection("data/written")
    assert set(written.queries["source"]) == {"generated:seq2seq"} and len(written.corpus) == 36
    assert "3 of 3 questions judged" in said["hf-ar2 label runs/mine asked.txt"]
    evaluated = said["hf-ar2 evaluate runs/mine --questions asked.txt"]
    assert re.search(r"^pipeline \(served\) +\d of 3$", evaluated, re.MULTILINE)
    again = said[
        "hf-ar2 train own-corpus --collection data/mine --output_dir runs/mine --questions asked.txt"
    ]
    assert again.count("done before") == 6 and "questions: 3 queries" in again
    assert Path("runs/mine/report.html").is_file()
    assert "36 passages, index in" in said['hf-ar2 search runs/mine "how do bees tell where food is" -k 3']

    # "When your texts change, write the collection again"
    Path("docs/new.txt").write_text(
        "About gardens\n\nThe hungry viper hides a ribbon in the garden at dusk.\n"
    )
    guide.run("hf-ar2 collection text:docs data/mine --queries questions.tsv")
    guide.run('hf-ar2 search runs/mine "the hungry viper hides a ribbon" -k 37')
    shown = capfd.readouterr().out
    assert "37 passages, index in" in shown and "new.txt:1" in shown


def test_the_guide_writes_questions_as_they_are_read() -> None:
    """With tabs, also where they cannot be told from spaces."""
    [example] = re.findall(r"\n\n```\n(.*?)```", TEXT, re.DOTALL)
    for line in example.splitlines():
        question, answer = re.split("\t+", line)
        assert question.endswith("?") and answer.startswith("bees.md")


def test_what_the_recipe_says_of_a_gpu_is_accepted() -> None:
    path = find_recipe("own-corpus")
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    options = re.findall(r"--([\w.-]+) (\S+)", comment.split("With a GPU")[1])
    assert len(options) >= 8
    recipe = load_recipe(path, dict(options))
    assert recipe.models["base"]["model"] == "BAAI/bge-base-en-v1.5"
    assert recipe.stage_args("warm-up")["per_device_train_batch_size"] == 128


def test_links_of_the_guide_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (RECIPES / link.partition("#")[0]).is_file(), link
