"""What the documents tell people to type is there: targets, commands, options, recipes, scripts; Python runs."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config import get_config_parser
from accelerate.commands.launch import launch_command_parser
from conftest import make_tiny_ranker, make_tiny_retriever
from examples import answer_hub_names, python_blocks, run_block
from tiny_run import make_tiny_run
from torch.distributed.run import get_args_parser as torchrun_parser

from hf_ar2.collections import Collection
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.launch import shipped_recipes
from hf_ar2.recipes import study
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.run import parse_arguments

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    ".github/CONTRIBUTING.md",
    "recipes/README.md",
    "recipes/RESULTS.md",
    "recipes/METHODS.md",
    "recipes/CUSTOMISING.md",
    "recipes/LAUNCHING.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Programs that are not ours, and are taken at their word.
OUTSIDE = ("cd", "curl", "git", "mkdir", "pre-commit", "pytest", "sbatch", "source")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def shell_lines(document: str) -> Iterator[str]:
    """Commands of the bash blocks, those on several lines joined."""
    for language, body in FENCE.findall(read(document)):
        if language in ("bash", "sh"):
            lines = body.replace("\\\n", " ").replace(" && ", "\n").splitlines()
            yield from filter(None, map(str.strip, lines))


def inline_commands(document: str) -> Iterator[str]:
    """Whole commands between backticks; a mention such as `hf-ar2 search` is not one."""
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", read(document))):
        if re.match(r"(make|python|accelerate launch) [\w-]+(/|$)", code):
            yield " ".join(code.split())


COMMANDS = [
    pytest.param(line, id=f"{document}: {line}")
    for document in DOCUMENTS
    for line in dict.fromkeys([*shell_lines(document), *inline_commands(document)])
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)
    words = list(itertools.takewhile(lambda word: word not in ("|", ">", "&"), words))
    words = list(itertools.dropwhile(re.compile(r"[A-Z_]+=|srun$").match, words))
    if not words or Path(words[0]).name in OUTSIDE:
        return
    program, arguments = Path(words[0]).name, words[1:]
    if program.startswith("python") and arguments[:2] == ["-m", "pip"]:
        program, arguments = "pip", arguments[2:]
    checks = {
        "make": check_make,
        "pip": check_pip,
        "accelerate": check_launch,
        "torchrun": check_torchrun,
        "python": check_script,
    }
    if program == "hf-ar2":
        check_cli(arguments, monkeypatch)
    elif program == "python" and arguments[0].startswith("tests/benchmarks/"):
        check_benchmark(arguments, monkeypatch)
    else:
        assert program in checks, f"teach this test what {program!r} is"
        checks[program](arguments)


def check_make(arguments: list[str]) -> None:
    makefile = read("Makefile")
    for argument in arguments:
        name, assigned, _ = argument.partition("=")
        pattern = rf"^{re.escape(name)} \?=" if assigned else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"


def check_pip(arguments: list[str]) -> None:
    known = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    for extras in re.findall(r"(?:\.|hf.ar2)\[(.*?)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(known)


def check_recipe(arguments: list[str]) -> None:
    path, overrides = parse_arguments(arguments)
    load_recipe(ROOT / path, overrides)


def check_launch(arguments: list[str]) -> None:
    if arguments[0] == "config":
        get_config_parser().parse_args(arguments[1:])
        return
    launched = launch_command_parser().parse_args(arguments[1:])
    assert arguments[0] == "launch" and launched.training_script == "recipes/run.py"
    check_recipe(launched.training_script_args)


def check_torchrun(arguments: list[str]) -> None:
    launched = torchrun_parser().parse_args(arguments)
    assert launched.training_script == "recipes/run.py"
    check_recipe(launched.training_script_args)


def check_script(arguments: list[str]) -> None:
    """A study: everything but the runs and their table."""
    script, path, *options = arguments
    assert script == "recipes/study.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "run_seed", lambda path, overrides, folder, seed: folder.mkdir(parents=True))
        patch.setattr(study, "summarise", lambda recipe, folders, against: f"{len(folders)} seeds")
        study.main([str(ROOT / path), *options])


def check_cli(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the command line refuses before it carries a command out; recipes are read, too."""
    launched: list[list[str]] = []
    if "--config_file" in arguments:  # written by `accelerate config`
        Path(arguments[arguments.index("--config_file") + 1]).touch()
    monkeypatch.setattr(cli, "HANDLERS", dict.fromkeys(cli.HANDLERS, f"{__name__}:carried_out"))
    monkeypatch.setattr(cli, "run_to_end", lambda command, environment: launched.append(list(command)) or 0)
    try:
        code: object = cli.main(arguments)
    except SystemExit as left:  # --help and --version
        code = left.code
    assert code == 0
    for command in launched:
        check_recipe(command[command.index(next(word for word in command if word.endswith("run.py"))) + 1 :])


def carried_out(options: argparse.Namespace) -> int:
    return 0


# What the quickstart's commands leave or say; `serve` and `push` are carried out by other tests.
SAID = {
    "report": "report.html: ",
    "search": "60 passages, index in",
    "compare": r"\begin{table}",
    "card": "A dense retriever",
}


def test_what_the_quickstart_leads_to_is_carried_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_collection: Collection,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_collection.save("data")
    run = make_tiny_run(Path("runs/quickstart"), "data", tiny_collection)
    make_tiny_retriever(run / "retriever")
    make_tiny_ranker(run / "ranker")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["rows"]["AR2"] = {"retriever": "ar2", "ranker": "ar2"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"args": {"bf16": False}}, sort_keys=False))

    carried: dict[str, str] = {}
    for line in shell_lines("README.md"):
        program, *arguments = shlex.split(line, comments=True) or [""]
        if Path(program).name == "hf-ar2" and "runs/quickstart" in arguments and arguments[0] in SAID:
            assert cli.main(arguments) == 0, line
            carried[arguments[0]] = capsys.readouterr().out
    assert set(carried) == set(SAID)
    for command, said in SAID.items():
        assert said in carried[command], command
    assert (run / "report.html").is_file()


class Parsed(Exception):
    """Ends a script where it has read its arguments."""


def check_benchmark(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_leave(parser: argparse.ArgumentParser, given: list[str] | None = None) -> None:
        parse(parser, given)
        raise Parsed

    path = ROOT / arguments[0]
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(Parsed):
        module.main()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_that_are_mentioned_exist(document: str) -> None:
    _, commands = cli.build_parsers()
    mentioned = re.findall(r"`hf-ar2 ([a-z-]+)", read(document))
    assert set(mentioned) <= set(commands)


def recipes_in(document: str) -> set[str]:
    """Recipes in the first column of a table: `ar2/scifact`, `…/squad` of the same folder; `pair/…` is all of it."""
    found: set[str] = set()
    for table in re.findall(r"^\| recipe .*\n\|.*\n((?:\|.*\n)+)", read(document), re.MULTILINE):
        for row in table.splitlines():
            folder = ""
            for name in re.findall(r"`([^`]+)`", row.split("|")[1]):
                head, _, last = name.rpartition("/")
                folder = folder if head == "…" else head
                whole = f"{folder}/{last}" if folder else last
                inside = {recipe for recipe in shipped_recipes() if recipe.startswith(f"{folder}/")}
                found |= inside if last == "…" and inside else {whole}
    return found


def test_recipes_in_tables_are_there_and_all_of_them_are_described() -> None:
    assert recipes_in("README.md") <= set(shipped_recipes())
    assert recipes_in("recipes/README.md") == set(shipped_recipes())


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_the_repository_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)]+)", read(document)):
        name, _, anchor = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        assert target.exists(), f"{document} links to {link}"
        assert not anchor or anchor in anchors(target), f"{document} links to {link}"


SCRIPTS = [
    pytest.param(document, line, id=f"{document}:{line}")
    for document in DOCUMENTS
    for line, _ in python_blocks(read(document))
]


@pytest.mark.slow
@pytest.mark.parametrize(("document", "line"), SCRIPTS)
def test_python_runs(
    document: str, line: int, tmp_path, monkeypatch, tiny_retriever_path, tiny_ranker_path, tiny_collection
) -> None:
    monkeypatch.chdir(tmp_path)
    answer_hub_names(monkeypatch, tiny_retriever_path, tiny_ranker_path, tiny_collection)
    run_block(dict(python_blocks(read(document)))[line], document, line)
