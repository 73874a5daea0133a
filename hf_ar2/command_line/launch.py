"""Training from the command line: a recipe, run by `accelerate launch` in a separate process.

The recipes package is not imported here; its script is found by name.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ar2.lock import check_free
from hf_ar2.settings.plain_yaml import read_yaml

if TYPE_CHECKING:
    import psutil

# Environment variable: the script has to handle Ctrl-C itself, because its launcher ignores it.
INTERRUPTS = "HF_AR2_INTERRUPTS"
# Environment variable: the process that the script ends with.
STARTER = "HF_AR2_STARTER"
# Environment variables that `accelerate launch` and torchrun set.
_OF_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
# Options of `accelerate launch` that say on how many machines and processes to run.
MACHINES = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
# Seconds until interrupted processes are killed; one of them may wait for another forever.
_PATIENCE = 30


def recipe_runner() -> Path:
    """The script that `accelerate launch` runs."""
    spec = importlib.util.find_spec("hf_ar2.recipes.run")
    if spec is None or spec.origin is None:
        raise ImportError(
            'hf_ar2.recipes is missing: install the package again from the repository: pip install -e ".[cpu]"'
        )
    return Path(spec.origin)


def shipped_recipes() -> dict[str, Path]:
    """Name → file of the recipes of the package, such as `quickstart` and `ar2/scifact`."""
    folder = recipe_runner().parent
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def find_recipe(name: str) -> Path:
    """A recipe's file, by its path or by the name of a recipe of the package; ValueError if there is none."""
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    found = shipped.get(name.removesuffix(".yaml"))
    if found is None:
        near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"there is no file and no recipe {name!r}{hint} Recipes: {', '.join(shipped)}")
    return found


def is_run(name: str | Path | None) -> bool:
    """Whether a name is that of a run folder."""
    return name is not None and (Path(name) / "recipe.yaml").is_file()


def default_run_folder(name: str) -> Path:
    """The run folder of a recipe of this name that names none."""
    return Path("runs") / name.replace("/", "-")


def run_folder(recipe: Path, overrides: Sequence[str]) -> Path | None:
    """The run folder that a recipe and `--key value ...` name; None if the recipe cannot be read."""
    given, words = {}, iter(overrides)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        given[key] = value if equals else next(words, "")
    try:
        content = read_yaml(recipe.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    content = {"name": recipe.stem, **content, **given}
    folder = content.get("output_dir")
    return Path(str(folder)) if folder else default_run_folder(str(content["name"]))


def check_run_folder(recipe: Path, overrides: Sequence[str]) -> None:
    """Check that no other run of this machine writes to the run folder; FolderInUse if one does."""
    if (folder := run_folder(recipe, overrides)) is not None:
        check_free(folder)


def launch_command(
    recipe: Path,
    overrides: Sequence[str] = (),
    config_file: str | None = None,
    machines: Mapping[str, Any] | None = None,
) -> list[str]:
    """The command that runs a recipe on all GPUs of all machines, or without GPUs in one process on each.

    It sets every value that `accelerate launch` would otherwise guess with a warning, unless there is a configuration
    file of accelerate (by default its own default file); `machines`, values of `MACHINES` that are not None, override
    that file. `OMP_NUM_THREADS`, if set, is the number of threads.
    """
    machines = {name: value for name, value in (machines or {}).items() if value is not None}
    config_file = config_file or default_config_file()
    if config_file is None:
        machines = _with_defaults(machines)
    given = [word for name, value in machines.items() for word in (f"--{name}", str(value))]
    if config_file is not None:
        chosen = ["--config_file", config_file, *given]
    else:
        here = machines["num_processes"] // machines["num_machines"]
        threads = os.environ.get("OMP_NUM_THREADS") or max(1, number_of_cores() // here)
        chosen = ["--multi_gpu"] if machines["num_processes"] > 1 else []
        chosen += [*given, *"--mixed_precision no --dynamo_backend no".split()]
        chosen += ["--num_cpu_threads_per_process", str(threads)]
    # Without --quiet the launcher's own traceback would follow a recipe's error.
    launch = [sys.executable, "-m", "accelerate.commands.launch", *chosen, "--quiet"]
    return [*launch, str(recipe_runner()), str(recipe), *overrides]


def default_config_file() -> str | None:
    """The file that `accelerate config` writes without `--config_file`; None if there is none."""
    from accelerate.commands.config.config_args import default_config_file as path  # imports torch

    return path if Path(path).is_file() else None


def _with_defaults(machines: dict[str, Any]) -> dict[str, Any]:
    """The options of `MACHINES`, with one process for each GPU unless they say otherwise."""
    count = machines.get("num_machines", 1)
    alone = [name for name in MACHINES[2:4] if name not in machines]
    if count > 1 and alone:
        raise ValueError(
            f"--num_machines {count} needs {' and '.join(f'--{name}' for name in alone)} too: run the same command on "
            "every machine, with its own --machine_rank (0, 1, …) and the address of machine 0 as --main_process_ip"
        )
    if not 0 <= machines.get("machine_rank", 0) < count:
        raise ValueError(
            f"--machine_rank {machines['machine_rank']}: expected a number from 0 to {count - 1}, one for each machine"
        )
    processes = machines.get("num_processes", max(1, number_of_gpus()) * count)
    if processes % count:
        raise ValueError(
            f"--num_processes {processes} is the total of all machines; it must be a multiple of --num_machines {count}"
        )
    if count > 1:
        machines = {"main_process_port": 29500, **machines}
    return {"num_processes": processes, "num_machines": count} | machines


def run_to_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command in this terminal and wait until it and all its child processes have ended, also after Ctrl-C.

    The command is a launcher. It ignores Ctrl-C, so that it prints no traceback. The variable `INTERRUPTS` makes the
    processes that it launches handle Ctrl-C; they have half a minute to end. They also end when this process is
    terminated or killed, or its terminal is closed.

    Returns the exit code; 128 + n if signal n ended the command or this process, 130 after Ctrl-C.
    """
    came: list[int] = []
    waiting = False

    def handle(number: int, _: object) -> None:
        came.append(number)
        if waiting and len(came) == 1:  # a second signal must not interrupt the handling of the first
            raise KeyboardInterrupt

    foreground = not _ignored(signal.SIGINT)  # not a background job of a shell script
    if foreground:
        # Otherwise torchrun, the launcher of several processes, would handle it anyway.
        environment = {**environment, INTERRUPTS: "1", "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP,SIGQUIT"}
    environment = {**environment, STARTER: str(os.getpid())}
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {
        **{number: signal.signal(number, handle) for number in ends if not _ignored(number)},
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),  # inherited
    }
    try:
        with subprocess.Popen(command, env=environment) as child:
            if foreground:
                signal.signal(signal.SIGINT, handle)
            try:
                waiting = True
                if came:
                    raise KeyboardInterrupt
                code = child.wait()
            except KeyboardInterrupt:
                number = came[0] if came else signal.SIGINT
                _stop(child, number)
                code = -number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == -signal.SIGINT:
        print(
            "\nInterrupted. To continue, run the same command again: finished stages are kept, and the interrupted "
            "stage resumes from its last checkpoint, or starts again if it has none.",
            file=sys.stderr,
        )
    return code if code >= 0 else 128 - code


def _ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN  # as by nohup


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Ctrl-C ends the process immediately with code 130, for slow imports, which may swallow or print an exception."""
    usual, thread = signal.default_int_handler, threading.current_thread()
    if signal.getsignal(signal.SIGINT) is not usual or thread is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def end_with_launcher() -> None:
    """Terminate this process when the process that launched it ends, even if that was killed.

    The launching process is `hf-ar2`, else the launcher of accelerate or torchrun, if there is one.
    """
    starter = os.environ.pop(STARTER, None)
    if starter is None and not any(name in os.environ for name in _OF_LAUNCHERS):
        return
    import psutil

    def watch() -> None:
        with contextlib.suppress(psutil.Error):
            launcher = psutil.Process(int(starter or os.getppid()))
            while _left([launcher], 0):
                time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _stop(launcher: subprocess.Popen[bytes], number: int) -> None:
    """Kill a launcher, signal the processes that it launched, and kill those that still run after half a minute."""
    import psutil  # comes with accelerate

    launched: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):  # it has already ended
        psutil.Process(launcher.pid).suspend()  # so that it launches nothing else
        launched = psutil.Process(launcher.pid).children(recursive=True)
    for process in launched:
        with contextlib.suppress(psutil.Error, OSError):
            # The terminal sends Ctrl-C to its own session only; torchrun starts processes in other sessions.
            if number != signal.SIGINT or os.getsid(process.pid) != os.getsid(0):
                process.send_signal(number)
    launcher.kill()  # it would only print errors about the others
    launcher.wait()
    for process in _left(launched, _PATIENCE):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _left(launched, 5)


def _left(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that still run after some seconds; zombies do not count."""
    import psutil

    def runs(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    until = time.monotonic() + seconds
    while (left := list(filter(runs, processes))) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def number_of_gpus() -> int:
    """GPUs that training may use."""
    import torch

    return torch.cuda.device_count()


def number_of_cores() -> int:
    """Processor cores this process may use."""
    with contextlib.suppress(AttributeError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
