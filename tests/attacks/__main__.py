"""Attacks tiny runs and a server, and prints how often they held: python tests/attacks [--minutes 20] [--seed 0]

Kills at random moments, full disks, bad values, hostile requests, damaged files; two processes at a time. Exit code 1
if anything failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "benchmarks")]

from machine import describe_machine  # first: it fixes the number of threads  # isort: skip

import argparse
import gc
import io
import multiprocessing
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

from attacks.bad_recipes import CASES, bad_recipe
from attacks.common import Attack, Tried, make_home
from attacks.damage import Target, attack, make_targets
from attacks.full_disks import FullDisks, can_mount
from attacks.hostile_requests import hostile_requests
from attacks.kills import Kills, KillsOfTwo

# Attempts at a time, and the largest number of attempts where only the time ends them.
_PROCESSES, _MANY = 2, 10_000


_attempt: list[Callable[[int], Tried]] = []  # of the attack under way; forked processes inherit it


def attempted(number: int) -> Tried:
    """The attempt of this number, in a process of the pool."""
    return _attempt[0](number)


def carried_out(attack: Attack, seconds: float, seed: int) -> Tried:
    """Make attempts, in a random order, as long as there is time to begin another one."""
    numbers = iter(random.Random(seed).sample(range(attack.attempts), attack.attempts))
    end, tried = time.monotonic() + seconds, Tried()
    running: dict[Future[Tried], int] = {}
    said = time.monotonic()
    _attempt[:] = [attack.attempt]
    with ProcessPoolExecutor(_PROCESSES, multiprocessing.get_context("fork")) as pool:
        while True:
            while len(running) < _PROCESSES and tried.count < attack.enough and time.monotonic() < end:
                if (number := next(numbers, None)) is None:
                    break
                running[pool.submit(attempted, number)] = number
            if not running:
                return tried
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(done)
                try:
                    found = done.result()
                except Exception:
                    found = Tried(1, [f"number {number}: {traceback.format_exc()[-1500:]}"])
                tried.count += found.count
                tried.failed += found.failed
                for line in found.failed:
                    print(f"  FAILED {attack.name}: {line}", flush=True)
                if time.monotonic() > said + 15:
                    said = time.monotonic()
                    print(f"  {tried.count:,} tried, {len(tried.failed)} failed", flush=True)


def damaged(targets: dict[str, Target], names: list[tuple[str, str]], home: Path, number: int) -> Tried:
    """All damages of one file."""
    kind, name = names[number]
    work = home / f"damaged-{number}"
    work.mkdir()
    lines = list(attack(targets[kind], [name], work))
    return Tried(len(lines), [f"{kind}: {line}" for line in lines if line.startswith("FINDING")])


def attacks(home: Path, kills: int) -> list[Callable[[], list[Attack]]]:
    """The attacks; those of a group share what is prepared for it."""

    def of_values() -> list[Attack]:
        return [
            Attack("recipes with a bad value", partial(bad_recipe, home), len(CASES), 0.1),
            Attack("requests, 200 at once", partial(hostile_requests, home), _MANY, 0.05, enough=5000),
        ]

    def of_runs() -> list[Attack]:
        runs = Kills(home)
        runs.prepare()
        disks = FullDisks(home, runs.expected)
        without = "" if can_mount(home) else "may not mount a file system"
        return [
            Attack("kills of a run", runs.attempt, _MANY, 0.35, enough=kills),
            Attack("two runs into one folder", runs.at_once, 20, 0.05),
            Attack("files that grow too large", disks.file_size, _MANY, 0.1, enough=100),
            Attack("full disks", disks.disk_size, _MANY, 0.1, enough=100, without=without),
        ]

    def of_two() -> list[Attack]:
        runs = KillsOfTwo(home)
        runs.prepare()
        return [Attack("kills of a run of two processes", runs.attempt, _MANY, 0.12, enough=30)]

    def of_files() -> list[Attack]:  # last: it trains in this process
        (home / "damage").mkdir()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            targets = make_targets(home / "damage")
        names = [(kind, name) for kind, target in targets.items() for name in target.names()]
        return [Attack("damaged files", partial(damaged, targets, names, home), len(names), 0.13)]

    return [of_values, of_runs, of_two, of_files]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=20, help="no attempt begins after them (default: 20)"
    )
    parser.add_argument("--kills", type=int, default=200, help="kills of runs in one process (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, sizes and orders (default: 0)")
    parser.add_argument("--only", default="", help="attacks with this in their names, such as 'disks'")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    end, left, failed = time.monotonic() + 60 * options.minutes, 1.0, 0
    rows = ["| attack | tried | held | failed | seconds |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory(prefix="hf-ar2-attacks-") as folder:
        make_home(Path(folder))
        for prepare in attacks(Path(folder), options.kills):
            group = prepare()
            gc.freeze()  # what is forked from here copies less
            for attack in (attack for attack in group if options.only in attack.name):
                if attack.without:
                    rows.append(f"| {attack.name} | skipped: {attack.without} | | | |")
                else:
                    print(f"{attack.name} …", flush=True)
                    started = time.monotonic()
                    share = 1 if options.only else attack.share / left
                    tried = carried_out(attack, max(0, end - started) * share, options.seed)
                    seconds, faults = time.monotonic() - started, len(tried.failed)
                    row = (
                        attack.name,
                        f"{tried.count:,}",
                        f"{tried.count - faults:,}",
                        faults,
                        f"{seconds:.0f}",
                    )
                    rows.append(f"| {' | '.join(map(str, row))} |")
                    print(rows[-1], flush=True)
                    failed += faults
                left -= attack.share
    print("\n" + "\n".join(rows))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
