"""The command line: what it refuses, what it starts, and its commands end to end on tiny models."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import getpass
import json
import os
import pty
import pydoc
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import make_tiny_ranker, make_tiny_retriever
from sentence_transformers import SentenceTransformer

import hf_ar2
from hf_ar2.collections import Collection, load_collection
from hf_ar2.command_line import launch
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.arguments import TRAINERS
from hf_ar2.command_line.show import hits_table
from hf_ar2.evaluation import read_run
from hf_ar2.evaluation.systems import evaluated_queries, measure
from hf_ar2.index import CorpusIndex
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.recipes.recipe import CONFIGS
from hf_ar2.search.runs import settings_of_run
from hf_ar2.search.system import Hit, SearchSystem
from hf_ar2.settings.augment import AugmentConfig, ScoreConfig
from hf_ar2.settings.fields import settings_of_class
from hf_ar2.settings.generation import GenerationConfig
from hf_ar2.settings.search import OF_EVALUATION, Settings
from hf_ar2.settings.text import TextConfig

COMMANDS = list(cli.build_parsers()[1])
COMMANDS += ["push", "card"]
# So short that queries and passages are cut: whoever ignores a recipe's lengths gets other scores.
LENGTHS = {"max_query_length": 7, "max_passage_length": 11, "max_pair_length": 16, "title_separator": " : "}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run folder as training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    make_tiny_retriever(folder / "retriever")
    make_tiny_ranker(folder / "ranker")
    recipe = {
        "name": "tiny",
        "collection": str(data),
        "args": {**LENGTHS, "bf16": False, "learning_rate": 1e-3},
        "evaluation": {"rows": {}, "metrics": ["mrr@10", "recall@20"], "depth": 30, "rerank_depth": 10},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


class Launched:
    """Stands in for the process that trains; remembers what it was started with."""

    calls: list[tuple[list[str], dict[str, str]]] = []  # noqa: RUF012 (emptied by the fixture)
    outcomes: list[object] = []  # noqa: RUF012

    pid = 2**31 - 1  # no such process

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.calls.append((command, env))

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        outcome = self.outcomes.pop(0) if self.outcomes else 0
        if isinstance(outcome, type):
            raise outcome
        return int(str(outcome))

    def kill(self) -> None:
        """So that a launcher does not comment on the end of what it launched."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> type[Launched]:
    monkeypatch.setattr(subprocess, "Popen", Launched)
    monkeypatch.setattr(launch, "number_of_gpus", lambda: 0)
    monkeypatch.setattr(launch, "number_of_cores", lambda: 8)
    monkeypatch.setattr(launch, "default_config_file", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(Launched, "calls", [])
    monkeypatch.setattr(Launched, "outcomes", [])
    return Launched


# --- reading the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serach", "runs/x"], "there is no command 'serach'; did you mean 'search'?"),
        (["--versoin"], "there is no option '--versoin'; did you mean '--version'?"),
        (["evaluate", "runs/x", "--splits", "dev"], "no option '--splits'; did you mean '--split'?"),
        (["index", "m", "c", "o", "--factry=Flat"], "no option '--factry'; did you mean '--factory'?"),
        (["index", "m", "c", "o", "p"], "unexpected argument 'p'"),
        (["index", "m", "c", "o", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["search"], "the following arguments are required: RUN"),
        (["search", "runs/x", "q", "-k", "0"], "'0': expected a whole number of at least 1"),
        (["evaluate"], "Name a run folder, or --retriever and --collection"),
        (["evaluate", "--retriever", "m"], "Name a run folder, or --retriever and --collection"),
        (["train"], "no recipe given"),
        (["train", "--seed", "1", "quickstart"], "no recipe given. It comes first"),
        (["train", "quikstart"], "no recipe 'quikstart'; did you mean 'quickstart'? Recipes: own-corpus,"),
        (["train", "quickstart", "seed", "1"], "'seed': expected --key value"),
        (
            ["train", "quickstart", "--config_file", "no.yaml"],
            "no such file. Make one with: accelerate config",
        ),
    ],
)
def test_a_wrong_command_line_ends_with_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.rstrip().splitlines()[-1].startswith("See: hf-ar2") and said.rstrip().endswith("--help")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_shows_an_example(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"] if command else ["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    example = shown.rstrip().split("\n\n")[-1]
    assert example.startswith(f"example:\n  hf-ar2 {command or 'quickstart'}")
    if not command:
        assert all(f"\n  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_each_help_is_accepted(
    command: str, launched: type[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "HANDLERS", dict.fromkeys(cli.HANDLERS, f"{__name__}:carried_out"))
    example = cli.build_parsers()[1][command].epilog.removeprefix("example:\n").replace("\\\n", " ")
    program, *arguments = shlex.split(example)
    assert program == "hf-ar2" and arguments[0] == command
    assert cli.main(arguments) == 0
    assert len(launched.calls) == (command in cli.TRAINING)


def carried_out(options: argparse.Namespace) -> int:
    return 0


def test_errors_of_the_system_end_with_what_to_do(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["collection", str(data), str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err.endswith("Check the path, its permissions and the free space\n")


@pytest.mark.slow
def test_who_reads_no_further_is_not_told_of_it(data: Path) -> None:
    """As in `hf-ar2 compare ... | head -1`: the rest of the output is dropped in silence."""
    code = (
        "import sys; from hf_ar2.command_line import main as cli; "
        "cli.HANDLERS['search'] = 'test_cli:endless'; sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", code, "search", str(data)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"hit\n"
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def endless(options: argparse.Namespace) -> int:
    while True:
        print("hit")


@pytest.mark.slow
def test_help_and_the_package_come_without_torch() -> None:
    code = (
        "import sys, hf_ar2, hf_ar2.command_line.main\n"
        "try: hf_ar2.command_line.main.main(['search', '--help'])\n"
        "finally: print([name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("[]")


def test_names_are_handed_on_when_they_are_used() -> None:
    assert set(hf_ar2.__all__) <= set(dir(hf_ar2))
    for name in hf_ar2.__all__:
        assert getattr(hf_ar2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'AR3Trainer'"):
        _ = hf_ar2.AR3Trainer


def test_what_a_recipe_leaves_unsaid_means_what_it_means_to_the_trainers() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(hf_ar2.AR2Config)}
    for field in dataclasses.fields(Settings):
        if field.name not in OF_EVALUATION:
            assert field.default == defaults[field.name], field.name
    settings = settings_of_run(
        {"args": {"max_pair_length": None, "rerank_depth": 5}, "evaluation": {"depth": 7}}
    )
    assert (settings.max_pair_length, settings.rerank_depth, settings.depth) == (None, 20, 7)
    assert settings.report_split == "test"
    assert settings_of_run({"evaluation": {"splits": ["dev"]}}).report_split == "dev"  # the run's own table
    rows = {
        "exact": {"index_factory": "Flat"},
        "lists": {"index_factory": "IVF4", "search_parameters": "nprobe=2"},
    }
    settings = settings_of_run({"args": {"index_factory": "Flat"}, "evaluation": {"rows": rows}})
    assert (settings.index_factory, settings.search_parameters) == ("IVF4", "nprobe=2"), (
        "as the last row says"
    )


# --- looking things up


@pytest.mark.parametrize("trainer", TRAINERS)
def test_settings_of_a_trainer_are_listed_in_80_columns(
    trainer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["settings", trainer]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    listed = {line.split()[0] for line in shown.splitlines()[2:-2] if not line.startswith(" ")}
    assert listed == set(settings_of_class(CONFIGS[trainer]))


def test_the_trainers_whose_settings_are_shown_are_those_of_recipes() -> None:
    assert tuple(CONFIGS) == TRAINERS


def test_options_are_those_of_the_settings() -> None:
    """Whatever is not given is None, so that a run's own settings count."""
    parsers = cli.build_parsers()[1]
    for command, config in {
        "augment": AugmentConfig,
        "collection": GenerationConfig,
        "score": ScoreConfig,
        "evaluate": TextConfig,
    }.items():
        options = {action.dest: action for action in parsers[command]._actions}
        for name, known in settings_of_class(config).items():
            if known.declared_in is config:
                assert options[name].default is None, name
                assert known.help.split(".")[0][1:] in str(options[name].help)


def test_a_setting_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings", "ar2", "pool_depth"]) == 0
    explained = "default      100 passages\nin papers    AR2: 100 (MS MARCO: 200)\ndeclared in  JointConfig\n"
    assert capsys.readouterr().out == (
        f"pool_depth\nCandidates kept per training query.\n\ntype         int\n{explained}"
    )
    assert cli.main(["settings", "ar2", "pool_dept"]) == 1
    assert "ar2 has no setting 'pool_dept'; did you mean 'pool_depth'?" in capsys.readouterr().err


def test_help_of_a_configuration_shows_its_settings() -> None:
    shown = pydoc.render_doc(hf_ar2.AR2Config, renderer=pydoc.plaintext)
    for name, known in settings_of_class(hf_ar2.AR2Config).items():
        assert f"{name} ({known.annotation}" in shown
        assert known.help[:30] in " ".join(shown.replace("|", "").split())


def test_env_prints_versions_and_hardware_and_nothing_private(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["hf-ar2"] == hf_ar2.__version__ and shown["torch"] == torch.__version__
    assert {"python", "platform", "processor", "AMX", "AVX512-BF16", "GPUs", "bf16"} <= shown.keys()
    told = " ".join(shown.values())
    assert getpass.getuser() not in told.split() and str(Path.home()) not in told


# --- training


def test_training_is_started_by_accelerate_in_one_process(launched: type[Launched], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.touch()
    overrides = [
        "--seed",
        "7",
        "--ar2.num_rounds",
        "3",
        "--ar2.simans_b",
        "-1",
        "--title_separator",
        " [SEP] ",
    ]
    assert cli.main(["train", str(recipe), *overrides]) == 0
    [(command, _)] = launched.calls
    runner = Path(hf_ar2.__file__).parent / "recipes" / "run.py"
    flags = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
    assert command == [
        *[sys.executable, "-m", "accelerate.commands.launch"],
        *[*flags.split(), "--num_cpu_threads_per_process", "8", "--quiet"],
        *[str(runner), str(recipe), *overrides],
    ]


def test_several_gpus_and_the_threads_of_the_environment(
    launched: type[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "number_of_gpus", lambda: 4)
    command = launch.launch_command(Path("r.yaml"))
    assert "--multi_gpu --num_processes 4" in " ".join(command)
    assert command[command.index("--num_cpu_threads_per_process") + 1] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    command = launch.launch_command(Path("r.yaml"))
    assert command[command.index("--num_cpu_threads_per_process") + 1] == "5"


def test_a_configuration_file_of_accelerate_alone_decides(launched: type[Launched], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").touch()
    (tmp_path / "two.yaml").touch()
    cli.main(["train", str(tmp_path / "r.yaml"), "--config_file", str(tmp_path / "two.yaml"), "--seed", "1"])
    [(command, _)] = launched.calls
    assert command[3:6] == ["--config_file", str(tmp_path / "two.yaml"), "--quiet"]
    assert command[-3:] == [str(tmp_path / "r.yaml"), "--seed", "1"] and "--num_processes" not in command


def test_the_default_file_of_accelerate_config_counts_and_options_come_on_top(
    launched: type[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "default_config_file", lambda: "default.yaml")
    assert launch.launch_command(Path("r.yaml"))[3:6] == ["--config_file", "default.yaml", "--quiet"]
    command = launch.launch_command(Path("r.yaml"), config_file="mine.yaml", machines={"machine_rank": 1})
    assert command[3:8] == ["--config_file", "mine.yaml", "--machine_rank", "1", "--quiet"]


def test_two_machines_of_four_gpus(launched: type[Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "number_of_gpus", lambda: 4)
    options = "--num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1"
    assert cli.main(["train", "quickstart", *options.split(), "--seed", "3"]) == 0
    [(command, _)] = launched.calls
    line = " ".join(command)
    assert "--multi_gpu --num_processes 8 --num_machines 2 --main_process_port 29500 --machine_rank 1" in line
    assert line.endswith("--seed 3") and "--num_cpu_threads_per_process 2 " in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--num_machines 2", "needs --machine_rank and --main_process_ip too"),
        (
            "--num_machines 2 --main_process_ip x --machine_rank 2",
            "--machine_rank 2: expected a number from 0 to 1",
        ),
        (
            "--num_machines 2 --main_process_ip x --machine_rank 0 --num_processes 3",
            "it must be a multiple of --num_machines",
        ),
        ("--num_machines 0", "'0': expected a whole number of at least 1"),
    ],
)
def test_machines_that_do_not_fit_together(
    options: str, message: str, launched: type[Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "quickstart", *options.split()])
    assert message in " ".join(capsys.readouterr().err.split()) and not launched.calls


def test_the_quickstart_is_a_recipe_that_needs_no_hub(
    launched: type[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert cli.main(["quickstart", "--seed", "3"]) == 0
    [(command, environment)] = launched.calls
    recipe = str(launch.shipped_recipes()["quickstart"])
    assert command[-5:] == [recipe, "--output_dir", "runs/quickstart", "--seed", "3"]
    assert environment["HF_HUB_OFFLINE"] == "1" and "HF_HUB_OFFLINE" not in os.environ


def test_recipes_that_come_with_the_package_are_found_by_name() -> None:
    folder = launch.recipe_runner().parent
    shipped = launch.shipped_recipes()
    assert "quickstart" in shipped and any(name.startswith("ar2/") for name in shipped)
    for name, path in shipped.items():
        assert path == folder / f"{name}.yaml"
        assert launch.find_recipe(name) == launch.find_recipe(f"{name}.yaml") == path


@pytest.mark.parametrize(("outcomes", "code"), [([3], 3), ([-9], 137), ([KeyboardInterrupt, 1], 130)])
def test_the_exit_code_is_that_of_the_process(launched: type[Launched], outcomes: list, code: int) -> None:
    launched.outcomes = list(outcomes)
    assert cli.main(["quickstart"]) == code
    assert not launched.outcomes, "did not wait for the process to end"


@pytest.mark.slow
def test_who_terminates_the_command_terminates_what_it_started(tmp_path: Path) -> None:
    sleep = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    start = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}], cwd={str(tmp_path)!r})"
    )

    over = threading.Event()

    def terminate() -> None:
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            if over.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    try:
        assert launch.run_to_end([sys.executable, "-c", start], os.environ) == 128 + signal.SIGTERM
    finally:
        over.set()
    with contextlib.suppress(psutil.NoSuchProcess):  # or nobody has asked about its end yet
        assert psutil.Process(int((tmp_path / "pid").read_text())).status() == psutil.STATUS_ZOMBIE


def test_a_process_ends_when_the_command_that_started_it_was_killed() -> None:
    sleep = "import time; time.sleep(60)"
    starter = subprocess.Popen([sys.executable, "-c", sleep])
    watch = (
        f"from hf_ar2.command_line.launch import end_with_launcher as end; end(); print(flush=True); {sleep}"
    )
    started = {**os.environ, launch.STARTER: str(starter.pid)}
    worker = subprocess.Popen([sys.executable, "-c", watch], env=started, stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None and worker.stdout.readline() == b"\n"
        starter.kill()  # and nobody has asked about its end yet
        assert worker.wait(20) == -signal.SIGTERM
    finally:
        for process in (starter, worker):
            process.kill()
            process.wait()


@pytest.mark.parametrize("variable", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
def test_a_process_ends_when_its_launcher_was_killed(variable: str) -> None:
    worker = (
        "from hf_ar2.command_line.launch import end_with_launcher as end; end(); print(flush=True); "
        "import time; time.sleep(60)"
    )
    launch_it = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    environment = {name: value for name, value in os.environ.items() if name != launch.STARTER}
    command = [sys.executable, "-c", launch_it]
    started = time.monotonic()
    with subprocess.Popen(command, env={**environment, variable: "no"}, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == b"\n"
        launcher.kill()
        assert launcher.stdout.read() == b"", "until the worker has ended"
    assert time.monotonic() < started + 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "way"),
    [(1, "Ctrl-C twice"), (2, "Ctrl-C"), (2, "SIGTERM"), (1, "SIGHUP"), (1, "SIGQUIT")],
)
def test_training_that_is_stopped_ends_with_all_it_started_and_no_traceback(
    data: Path, tiny_retriever_path: Path, tmp_path: Path, processes: int, way: str
) -> None:
    """As in a terminal, which sends Ctrl-C to all that it controls; torchrun takes its processes out of that."""
    stage = {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 10_000, "use_cpu": True}}
    recipe = {
        "collection": str(data),
        "models": {"light": {"model": str(tiny_retriever_path)}},
        "args": {"report_to": "none", "eval_strategy": "no", "eval_on_start": False},
        "stages": {"warm-up": stage},
    }
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "hf_ar2.command_line.main", "train", str(tmp_path / "long.yaml")]
    command += ["--output_dir", str(tmp_path / "run")]
    if processes > 1:
        machine = {"distributed_type": "MULTI_GPU", "num_machines": 1, "mixed_precision": "no"}
        machine |= {"num_processes": processes, "main_process_port": 0}
        (tmp_path / "machine.yaml").write_text(yaml.safe_dump(machine))
        command += ["--config_file", str(tmp_path / "machine.yaml")]
    process, terminal = pty.fork()
    if process == 0:
        for number in (
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGQUIT,
        ):  # ignored where tests run in the background
            signal.signal(number, signal.SIG_DFL)
        os.execv(command[0], command)
    shown, stopped = "", False
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(terminal, 4096).decode(errors="replace"):
            shown += part
            if "[1/1] warm-up" in shown and not stopped:
                stopped = True
                if way.startswith("SIG"):
                    os.kill(process, signal.Signals[way])
                for _ in range({"Ctrl-C": 1, "Ctrl-C twice": 2}.get(way, 0)):
                    os.write(terminal, b"\x03")
                    time.sleep(0.3)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    codes = {"SIGTERM": 143, "SIGHUP": 129, "SIGQUIT": 131}
    assert os.waitstatus_to_exitcode(status) == codes.get(way, 130), shown
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert "Traceback" not in shown
    assert ("Interrupted. To continue, run the same command again" in shown) is way.startswith("Ctrl-C")


# --- collections


def test_collection_writes_the_functions_of_a_package_as_a_beir_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site" / "orchard"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "\n\n".join(
            f'def f{i}(x):\n    """Counts how many {fruit} trees grow on one hectare."""\n'
            f"    rows = x * {i}\n    columns = x + {i}\n    return rows * columns"
            for i, fruit in enumerate(["apple", "cherry", "peach"])
        )
        + "\n\ndef g(x):\n    return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    out = tmp_path / "out"
    assert cli.main(["collection", "python-packages:orchard", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 passages, 3 queries" in shown and "skipped: " in shown
    assert f"Next: hf-ar2 train own-corpus --collection {out}" in shown
    assert load_collection(out).queries["text"][0].startswith("Counts how many")


def test_collection_skips_what_it_is_told_to(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    load_collection(data).save(broken)
    with open(broken / "corpus.jsonl", "a", encoding="utf-8") as file:
        file.write('{"_id": "empty", "title": "", "text": ""}\n')
    assert cli.main(["collection", str(broken), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("hf-ar2 collection: ")
        and "corpus.jsonl:61" in said
        and "skip=['empty passages']" in said
    )
    assert cli.main(["collection", str(broken), str(tmp_path / "out"), "--skip", "empty passages"]) == 0
    assert "skipped: 1 empty passage" in capsys.readouterr().out


# --- models at work


def evaluated(run: Path, folder: Path, *options: str) -> dict:
    assert cli.main(["evaluate", str(run), "--output", str(folder), *options]) == 0
    return json.loads((folder / "metrics.json").read_text())


def test_evaluate_prints_a_table_and_writes_run_files(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluated(run, tmp_path)["test"]
    shown = capsys.readouterr().out
    assert "tiny, test: 8 queries, 60 passages" in shown
    assert "pipeline over retriever, MRR@10" in shown and "p = " in shown
    assert f"{metrics['retriever']['mrr@10']:.3f}" in shown
    assert set(metrics) == {"retriever", "ranker", "pipeline"}
    assert set(metrics["retriever"]) == {"mrr@10", "recall@20"}
    assert set(metrics["ranker"]) == {"mrr@10"}, "of ten ranked passages there is no recall@20"
    said = "Left out: recall@20 of the ranker, which orders 10 passages per query (--rerank_depth)\n"
    assert shown.count("Left out") == 1 and said in shown

    collection = load_collection(data)
    ids = collection.queries["id"], collection.corpus["id"]
    runs = {name: read_run(tmp_path / f"test.{name}.trec", *ids) for name in metrics}
    assert (tmp_path / "test.qrels").read_text().count("\n") == 8
    assert [runs[name].passage_rows.shape[1] for name in metrics] == [30, 10, 30]
    first = runs["retriever"].passage_rows[:, :10]
    assert np.array_equal(np.sort(first), np.sort(runs["ranker"].passage_rows))
    assert np.array_equal(runs["pipeline"].passage_rows[:, 10:], runs["retriever"].passage_rows[:, 10:])
    assert (np.diff(runs["pipeline"].scores, axis=1) <= 0).all()

    # The same with nothing but sentence-transformers.
    retriever = SentenceTransformer(str(run / "retriever"), device="cpu")
    judged = collection.judgments("test").query_rows
    retriever.max_seq_length = LENGTHS["max_query_length"]
    queries = retriever.encode_query([collection.queries["text"][row] for row in judged])
    retriever.max_seq_length = LENGTHS["max_passage_length"]
    passages = retriever.encode_document(collection.passage_texts(" : "))
    expected = -np.sort(-queries @ passages.T)[:, :30]
    np.testing.assert_allclose(runs["retriever"].scores, expected, atol=1e-5)


def named(run: Path, data: Path) -> list[str]:
    """The options that name the models and the collection of a run one by one."""
    models = [part for role in ("retriever", "ranker") for part in (f"--{role}", str(run / role))]
    return [*models, "--collection", str(data)]


def lengths_of_recipe() -> list[str]:
    return [text for name, value in LENGTHS.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is encoded without a recipe takes bf16 where that pays, so that another processor gives other digits."""
    monkeypatch.setattr("hf_ar2.search.system.bf16_is_faster", lambda device: False)


def test_evaluate_takes_models_without_a_run_folder(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_fp32: None
) -> None:
    """With the run's lengths they reach what the run folder reaches; nothing is written but what was asked for."""
    models, lengths = named(run, data), lengths_of_recipe()
    options = ["--split", "dev", "--metrics", "mrr@10", "--rerank_depth", "10", "--depth", "30"]
    out = tmp_path / "bare"
    assert cli.main(["evaluate", *models, *options, *lengths, "--output", str(out)]) == 0
    bare = json.loads((out / "metrics.json").read_text())
    assert bare == evaluated(run, tmp_path / "run", "--split", "dev", "--metrics", "mrr@10")
    assert not (run / "retriever" / "index").exists()
    capsys.readouterr()


def test_evaluate_says_what_is_wrong(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run / "ranker", cut)
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    saved = tmp_path / "saved"  # as a trainer in Python leaves it
    shutil.copytree(run / "retriever", saved / "retriever")
    advice = "Run folders come from hf-ar2 train; to measure the model: hf-ar2 evaluate --retriever"
    for arguments, message in [
        ([str(run), "--split", "tset"], "has no split 'tset'; it has train, dev, test"),
        ([str(run), "--metrics", "mr@10"], "did you mean 'mrr@10'?"),
        (
            [str(run.parent / "tny")],
            f"tny is not a run folder: there is no such folder. Run folders here: {run}",
        ),
        ([str(run / "retriever")], f"is a model. {advice} {run / 'retriever'} --collection"),
        ([str(saved)], f"holds a model. {advice} {saved / 'retriever'} --collection"),
        ([str(run), "--ranker", str(tmp_path)], "cannot be loaded"),
        (
            [str(run), "--ranker", str(cut)],
            f"ranker {str(cut)!r} cannot be loaded: Error while deserializing",
        ),
        (
            [str(run), "--metrics", "mrr@10", "mrr@1000"],
            "--metrics mrr@1000: the retriever finds 30 passages per query; ask for more with --depth 60",
        ),
        ([str(run), "--collection", str(tmp_path)], "expected a folder with corpus.jsonl"),
    ]:
        assert cli.main(["evaluate", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_with_a_rerank_depth_of_0_the_retriever_is_alone(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluated(run, tmp_path, "--rerank_depth", "0")["test"]
    shown = capsys.readouterr().out
    assert set(metrics) == {"retriever"} and "pipeline" not in shown and "ranker" not in shown
    collection = load_collection(data)
    retrieved = read_run(tmp_path / "test.retriever.trec", collection.queries["id"], collection.corpus["id"])
    query = collection.queries["text"][int(retrieved.query_rows[0])]
    assert cli.main(["search", str(run), "-k", "3", "--rerank_depth", "0", *query.split()]) == 0
    found = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("   ")]
    first = [collection.corpus["id"][row] for row in retrieved.passage_rows[0, :3]]
    assert [hit[2] for hit in found if hit[0] in "123"] == first, "rank, retriever's score, passage"
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(run), "--rerank_depth", "-1"])
    assert "expected a whole number of at least 0" in capsys.readouterr().err


def test_search_shows_both_scores_and_agrees_with_evaluate(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(run, tmp_path)
    collection = load_collection(data)
    ids = collection.queries["id"], collection.corpus["id"]
    names = ("retriever", "ranker", "pipeline")
    retrieved, ranked, together = (read_run(tmp_path / f"test.{name}.trec", *ids) for name in names)
    query = collection.queries["text"][int(ranked.query_rows[0])]
    capsys.readouterr()

    monkeypatch.setenv("COLUMNS", "70")
    assert cli.main(["search", str(run), "-k", "4", *query.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("rank"))
    hits = lines[heading + 2 :: 2]
    assert max(map(len, lines[heading:])) <= 70 and len(hits) == 4
    for number, line in enumerate(hits):
        rank, ranker_score, retriever_score, place, passage_id = line.split()
        row = int(together.passage_rows[0, number])
        position = int(np.flatnonzero(retrieved.passage_rows[0] == row)[0])
        of_ranker = int(np.flatnonzero(ranked.passage_rows[0] == row)[0])
        assert int(rank) == number + 1
        assert passage_id == collection.corpus["id"][row]
        assert float(ranker_score) == pytest.approx(float(ranked.scores[0, of_ranker]), abs=6e-4)
        assert float(retriever_score) == pytest.approx(float(retrieved.scores[0, position]), abs=6e-4)
        assert int(place.strip("(stndrh)")) == position + 1


def test_the_index_is_built_once_and_rejected_where_it_does_not_fit(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", str(run), "falcon"]) == 0
    written = {path.name: path.stat().st_mtime_ns for path in (run / "index").iterdir()}
    assert cli.main(["search", str(run), "falcon"]) == 0
    assert written == {path.name: path.stat().st_mtime_ns for path in (run / "index").iterdir()}

    own = tmp_path / "own"
    assert cli.main(["index", str(run), str(data), str(own), "--factory", "HNSW8", "--dtype", "float16"]) == 0
    assert f"Next: hf-ar2 search {run} --index {own}" in capsys.readouterr().out
    index = CorpusIndex.open(own)
    assert (index.factory, index.embeddings.dtype, index.ntotal) == ("HNSW8", np.float16, 60)
    # as `tune-queries --index` opens it
    frozen = FrozenIndex.from_files(own, load_collection(data).corpus["id"])
    assert frozen.ntotal == 60 and frozen.corpus_rows is None
    assert cli.main(["search", str(run), "falcon", "--index", str(own)]) == 0
    assert f"index in {own}" in capsys.readouterr().out

    other = tmp_path / "other"  # the same retriever, without the recipe's lengths
    assert cli.main(["index", str(run / "retriever"), str(data), str(other)]) == 0
    assert cli.main(["search", str(run), "falcon", "--index", str(other)]) == 1
    said = capsys.readouterr().err
    assert index.fingerprint in said and CorpusIndex.open(other).fingerprint in said


def test_search_with_models_that_are_named_keeps_the_index(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def first_hits(*command: str) -> list[str]:
        assert cli.main([*command, "-k", "3"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return lines[next(i for i, line in enumerate(lines) if line.startswith("rank")) :]

    models, lengths = named(run, data), lengths_of_recipe()
    own = tmp_path / "own"
    search = ["search", *models, *lengths, "--model_dtype", "float32", "--index", str(own), "the", "falcon"]
    found = first_hits(*search)
    assert found == first_hits("search", str(run), "the falcon")
    written = {path.name: path.stat().st_mtime_ns for path in own.iterdir()}
    assert first_hits(*search) == found
    assert written == {path.name: path.stat().st_mtime_ns for path in own.iterdir()}

    assert cli.main(["search", str(run / "retriever"), "falcon"]) == 1
    assert "to search with it: hf-ar2 search with the same options" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["serve", "--retriever", str(run / "retriever")])
    assert "RUN, or --retriever and --collection" in capsys.readouterr().err


def test_search_asks_for_queries_and_does_without_a_ranker(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    (alone / "retriever").symlink_to(run / "retriever")
    asked = iter(["the falcon", "a mirror", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    assert cli.main(["search", str(alone), "-k", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("rank  retriever  passage") == 2 and "   2  " in shown

    (alone / "retriever").unlink()
    assert cli.main(["search", str(alone)]) == 1
    assert "has no retriever/ yet" in capsys.readouterr().err


def test_encode_writes_what_sentence_transformers_would(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_fp32: None
) -> None:
    assert cli.main(["encode", str(run / "retriever"), str(data), str(tmp_path)]) == 0
    assert "60 passages × 32, float32" in capsys.readouterr().out
    collection = load_collection(data)
    embeddings = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    assert json.loads((tmp_path / "ids.json").read_text()) == collection.corpus["id"][:]
    expected = SentenceTransformer(str(run / "retriever"), device="cpu").encode(collection.passage_texts())
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.npy", "ids.json"]


def test_hits_are_clipped_to_the_terminal_by_what_characters_take_there() -> None:
    text = "\n  維生素D不能預防感冒,研究人員在五年間觀察了兩萬五千名參與者\nand more"
    hit = Hit("a-very-long-id-that-is-never-cut:0001", "", text, 11, 0.5, -1.25)
    _, rule, first, second = hits_table([hit], 60).splitlines()
    assert first.endswith(hit.passage_id) and "(11th)" in first and "-1.250" in first
    columns = sum(2 if ord(character) > 0x2E80 else 1 for character in second)
    assert 58 <= columns <= 60 == len(rule) and second.endswith("…")


def test_search_agrees_with_rankings_for_two_towers_and_dot_products(
    run: Path, tmp_path: Path, data: Path
) -> None:
    """Also under bf16 autocast, with prompts, and for a split that is known by its answers alone."""
    retriever = hf_ar2.load_retriever(
        str(run / "retriever"), similarity="dot", separate_towers=True, device="cpu"
    )
    with torch.no_grad():
        tower = next(
            p for name, p in retriever.named_parameters() if "document" in name and "word_emb" in name
        )
        tower.add_(torch.randn(tower.shape, generator=torch.Generator().manual_seed(0)) / 10)
    retriever.prompts = {"query": "falcon ", "document": "raven "}
    ranker = hf_ar2.load_ranker(str(run / "ranker"), device="cpu")
    tiny = load_collection(data)
    answers = [[text.split()[-2]] for text in tiny.queries["text"]]
    answered = Collection(
        tiny.name,
        tiny.corpus,
        tiny.queries.add_column("answers", answers),
        tiny.qrels,
        {},
        {"quiz": np.arange(3, 6)},
    )
    settings = settings_of_run({"args": {**LENGTHS, "bf16": True}, "evaluation": {"rerank_depth": 5}})
    system = SearchSystem(retriever, ranker, answered, settings, tmp_path)

    rankings = system.rankings("quiz")
    rows, scores = rankings["ranker"]
    for number, query_row in enumerate(evaluated_queries(system.collection, "quiz")):
        hits = system.search(tiny.queries["text"][int(query_row)], k=5)
        found = [tiny.corpus["id"].index(hit.passage_id) for hit in hits]
        ranked = sorted((hit.ranker_score for hit in hits), reverse=True)
        np.testing.assert_allclose(ranked, scores[number], atol=2e-3)
        assert set(found) == set(rows[number].tolist())
    measured = measure(system.collection, "quiz", rankings["retriever"][0], ["hit_rate@20", "mrr@60"])
    assert set(measured) == {"hit_rate@20", "mrr@60"} and len(measured["mrr@60"]) == 3
    assert measured["mrr@60"].min() > 0, "every answer is somewhere in the corpus"
    with pytest.raises(ValueError, match=r"has answers but no judgments, so ndcg@10 cannot"):
        measure(system.collection, "quiz", rankings["retriever"][0], ["ndcg@10"])
