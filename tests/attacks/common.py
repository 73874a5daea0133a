"""What the attacks share: commands in forked children, tiny recipes of all trainers, and what a run has found."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from attacks.damage import ARGS as DAMAGED_ARGS
from conftest import make_tiny_collection, make_tiny_ranker, make_tiny_retriever, write_recipe
from tqdm import tqdm

from hf_ar2.files import checksum
from hf_ar2.recipes import run as recipe_command
from hf_ar2.recipes import runner  # noqa: F401  # imported once, here, and not in every child

# Longer than any command here takes on a busy machine.
PATIENCE = 240.0
# Written at the end of a run's work on a file; nothing of them may be left.
LEFTOVERS = (".*.partial*", ".lock*")


@dataclass
class Tried:
    """What one attempt of an attack found: how often it tried, and a line for each failure."""

    count: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Attack:
    """One row of the table.

    Attributes:
        name: of the row.
        attempt: makes the attempt of a number.
        attempts: the largest number of attempts.
        share: of the time.
        enough: tries after which no attempt is begun.
        without: why it is left out; "": it is not.
    """

    name: str
    attempt: Callable[[int], Tried]
    attempts: int
    share: float
    enough: int = sys.maxsize
    without: str = ""


# ---- Children --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: by a signal), its error message, and all that it printed."""

    code: int
    message: str
    printed: str

    def fault(self, named: str = "") -> str:
        """What is wrong with it as an error: not one line, without `named`, or a traceback; "" if nothing is."""
        said = self.message or self.printed[-300:]
        if self.code < 0:
            return f"ended by signal {-self.code}: {said}"
        if "Traceback (most recent call last)" in self.printed:
            return f"a traceback: {self.printed[-300:]}"
        if not self.message or "\n" in self.message.strip():
            return f"exit code {self.code}, and no message of one line: {said}"
        return "" if named in self.message else f"the message does not name {named}: {self.message}"


def start(function: Callable[[], Any], log: Path) -> int:
    """Begin a function in a forked child, which leads a process group of its own; the child's id.

    Nothing is imported again, and nothing is remembered from one command to the next.
    """
    child = os.fork()
    if child:
        return child
    code = 98
    try:
        os.setsid()
        # tqdm's lock is shared with all forked processes: one that is killed while it holds it would stop the others.
        tqdm.set_lock(RLock())
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        try:
            function()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                log.with_suffix(".message").write_text(error.code)
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(code)


def finished(child: int, log: Path, seconds: float = PATIENCE) -> Ended | None:
    """Wait for a child; None if it takes longer. It stays for the next call then."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > end:
            return None
        time.sleep(0.005)
    message = log.with_suffix(".message")
    said = message.read_text() if message.exists() else ""
    message.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), said, said + log.read_text(errors="replace"))


def killed(child: int, log: Path) -> Ended:
    """Kill a child and all that it started."""
    os.killpg(child, signal.SIGKILL)
    ended = finished(child, log)
    assert ended is not None
    return ended


def called(function: Callable[[], Any], log: Path) -> Ended:
    """A function in a forked child, to its end; one that hangs is killed."""
    child = start(function, log)
    return finished(child, log) or killed(child, log)


def run_recipe(recipe: Path, run: Path, *more: str) -> Callable[[], None]:
    """The command that runs a recipe into a folder, for `start`."""

    def command() -> None:
        sys.argv = ["run.py", str(recipe), "--output_dir", str(run), *more]
        recipe_command.main(sys.argv[1:])

    return command


# ---- Recipes ---------------------------------------------------------------------------------------------------------

ARGS: dict[str, Any] = {
    **DAMAGED_ARGS,
    "eval_depth": 20,
    "rerank_depth": 10,
    "eval_metrics": ["mrr@10"],
}
_WARM = {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 5}}
_RANKER = {
    "trainer": "ranker",
    "retriever": "warm",
    "ranker": "heavy",
    "args": {"max_steps": 3, "num_negatives": 3, "pool_depth": 8},
}
_BOTH = {"retriever": "warm", "ranker": "ranker"}
_JOINT = {"max_steps": 4, "num_negatives": 3}
_AR2 = {"num_rounds": 2, "ranker_steps": 1, "retriever_steps": 2, "num_negatives": 3}
_LISTS = {"depth": 10, "thresholds": "quantile", "irrelevant": 0.7, "relevant": 0.8, "kinds": ["denoised"]}
# Every trainer is in one of them; name → stages and rows.
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ar2": (
        {
            "warm": _WARM,
            "ranker": _RANKER,
            "ar2": {
                **_BOTH,
                "trainer": "ar2",
                "args": _AR2,
            },
        },
        {"before": {"retriever": "light"}, "after": {"retriever": "ar2", "ranker": "ar2"}},
    ),
    "rocketqa-v2": (
        {
            "warm": _WARM,
            "ranker": _RANKER,
            "denoised": {**_BOTH, "trainer": "augment", "args": _LISTS},
            "both": {**_BOTH, "trainer": "rocketqa-v2", "lists": ["denoised"], "args": _JOINT},
        },
        {"warm": _BOTH, "after": {"retriever": "both", "ranker": "both"}},
    ),
    "ltre": (
        {
            "warm": _WARM,
            "merged": {"trainer": "merge", "retriever": "warm"},
            "ltre": {"trainer": "ltre", "retriever": "merged", "args": {"max_steps": 4, "list_depth": 10}},
        },
        {"merged": {"retriever": "merged"}, "after": {"retriever": "ltre", "index_factory": "SQ8"}},
    ),
}


def make_home(home: Path) -> None:
    """Tiny models, a collection, and the recipes above in a folder."""
    make_tiny_retriever(home / "retriever")
    make_tiny_ranker(home / "ranker")
    make_tiny_collection().save(home / "data")
    for name, (stages, rows) in RECIPES.items():
        body = {
            "name": name,
            "collection": str(home / "data"),
            "seed": 3,
            "models": {
                "light": {"model": str(home / "retriever"), "max_length": 32},
                "heavy": {"model": str(home / "ranker")},
            },
            "args": ARGS,
            "stages": stages,
            "evaluation": {
                "metrics": ["mrr@10"],
                "depth": 20,
                "rerank_depth": 10,
                "lexical": True,
                "rows": rows,
            },
        }
        write_recipe(home / f"{name}.yaml", body)


def outcome(run: Path) -> dict[str, str]:
    """The files of a run that no time goes into, with checksums: weights, metrics, rankings, notes."""
    found = {}
    for pattern in ("*.safetensors", "*.trec", "metrics.json", "chosen.json", "significance.json"):
        for path in run.rglob(pattern):
            if "checkpoint-" not in str(path.relative_to(run)):
                found[path.relative_to(run).as_posix()] = checksum(path)
    return found


def difference(run: Path, expected: dict[str, str]) -> str:
    """What is not as in the uninterrupted run, leftovers included; "" if all is."""
    left = [path.relative_to(run).as_posix() for pattern in LEFTOVERS for path in run.rglob(pattern)]
    if left:
        return f"left over: {', '.join(left)}"
    found = outcome(run)
    names = [name for name in sorted(found.keys() | expected) if found.get(name) != expected.get(name)]
    return f"not as in the uninterrupted run: {', '.join(names)}" if names else ""
