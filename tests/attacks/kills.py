"""Kills recipes at random moments; the same command, given again, ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from attacks.common import (
    PATIENCE,
    RECIPES,
    Tried,
    called,
    difference,
    finished,
    killed,
    outcome,
    run_recipe,
    start,
)

# Kills of a run, before it is left alone until its end. It lives up to half of its whole time until the next one.
KILLS = 6
# Seconds that processes whose launcher was killed have to end by themselves.
_ALONE = 60


class Kills:
    """Runs of every recipe, in one process each.

    Args:
        home: with the recipes, see `make_home`; the uninterrupted runs are written to `whole`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.expected: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Run every recipe without interruption."""
        for name in RECIPES:
            self.measure(name, name, self.command(name, self.home / "whole" / name))

    def measure(self, key: str, name: str, command: Callable[[], Any]) -> None:
        """Note what a command finds, and how long it takes."""
        started = time.monotonic()
        ended = called(command, self.home / f"{key}.log")
        assert ended.code == 0, ended.printed[-3000:]
        self.expected[key] = outcome(self.home / "whole" / key)
        self.seconds[key] = time.monotonic() - started

    def command(self, name: str, run: Path) -> Callable[[], Any]:
        """Runs a recipe into a folder."""
        return run_recipe(self.home / f"{name}.yaml", run)

    def attempt(self, number: int) -> Tried:
        """Kill a run several times, and continue it to its end."""
        random_of_run = random.Random(number)
        name = list(RECIPES)[number % len(RECIPES)]
        run, log = self.home / f"killed-{number}", self.home / f"killed-{number}.log"
        tried, moments = Tried(), []
        while True:
            child = start(self.command(name, run), log)
            moment = random_of_run.uniform(0, self.seconds[name] / 2)
            ended = finished(child, log, moment if len(moments) < KILLS else PATIENCE)
            if ended is None and len(moments) < KILLS:
                killed(child, log)
                moments.append(f"{moment:.2f}")
                tried.count += 1
                continue
            fault = (
                "it hangs"
                if ended is None
                else ""
                if ended.code == 0
                else ended.message or ended.printed[-400:]
            )
            if ended is None:
                killed(child, log)
            break
        if fault := fault or difference(run, self.expected[name]):
            tried.failed.append(f"{name} (number {number}), killed after {', '.join(moments)} s: {fault}")
        else:
            shutil.rmtree(run)
        return tried

    def at_once(self, number: int) -> Tried:
        """Start the same run twice, a moment apart: one of them is the run, the other one says so."""
        name = list(RECIPES)[number % len(RECIPES)]
        run = self.home / f"twice-{number}"
        logs = [self.home / f"twice-{number}-{which}.log" for which in range(2)]
        first = start(self.command(name, run), logs[0])
        time.sleep(random.Random(number).choice([0, random.Random(number).uniform(0, self.seconds[name])]))
        second = start(self.command(name, run), logs[1])
        ends = [
            finished(child, log) or killed(child, log)
            for child, log in zip((first, second), logs, strict=True)
        ]
        faults = [end.fault("in use by another run") for end in ends if end.code]
        if len(faults) == 2:
            faults.append("neither was the run")
        fault = "".join(faults) or difference(run, self.expected[name])
        shutil.rmtree(run)
        return Tried(1, [f"{name} (number {number}): {fault}"] if fault else [])


class KillsOfTwo(Kills):
    """Runs in two processes, started as torchrun does: a process or the launcher is killed."""

    def prepare(self) -> None:
        """Run the recipe without interruption."""
        self.measure("two", "ltre", self.command("ltre", self.home / "whole" / "two"))

    def command(self, name: str, run: Path) -> Callable[[], Any]:
        """The launcher; its processes are forked, too."""

        def launch() -> None:
            from torch.distributed.launcher.api import LaunchConfig, elastic_launch

            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=2,
                start_method="fork",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                run_id=str(os.getpid()),
                max_restarts=0,
                monitor_interval=0.05,
            )
            elastic_launch(config, run_recipe(self.home / f"{name}.yaml", run))()

        return launch

    def attempt(self, number: int) -> Tried:
        """Kill one of the three processes, several times, and continue the run to its end."""
        random_of_run = random.Random(number)
        run, log = self.home / f"two-{number}", self.home / f"two-{number}.log"
        tried, victims = Tried(), []
        fault = ""
        while not fault:
            child = start(self.command("ltre", run), log)
            moment = random_of_run.uniform(0, self.seconds["two"])
            ended = finished(child, log, moment if len(victims) < KILLS // 2 else PATIENCE)
            if ended is None and len(victims) < KILLS // 2:
                launcher = psutil.Process(child)
                launched = launcher.children(recursive=True)
                victim = random_of_run.choice([launcher, *launched])
                kind = "the launcher" if victim == launcher else "a process"
                victims.append(f"{kind} after {moment:.2f} s")
                victim.kill()
                tried.count += 1
                if left := finished(child, log) is None:
                    killed(child, log)
                _, alive = psutil.wait_procs(launched, _ALONE)
                for process in alive:
                    process.kill()
                if left or alive:
                    fault = f"{left + len(alive)} processes are left behind"
                continue
            if ended is None:
                killed(child, log)
                fault = "it hangs"
            elif ended.code:
                fault = ended.printed[-600:]
            break
        if fault := fault or difference(run, self.expected["two"]):
            tried.failed.append(f"number {number}, killed {', '.join(victims)}: {fault}")
        else:
            shutil.rmtree(run)
        return tried
