"""Damages every file of runs, checkpoints and an index in turn: python tests/attacks/damage.py [PATTERN ...]

What is read afterwards must be the same metrics and weights, or one error that names the file or its folder; other
results in silence, and tracebacks, are findings (exit code 1). Patterns, such as 'checkpoint/*.pth', choose files. The
run "two" and the checkpoint "trainer", which no recipe wrote, are those of two processes.
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_ar2
from conftest import make_tiny_collection, make_tiny_ranker, make_tiny_retriever, write_recipe
from two_processes import launch_two

from hf_ar2.command_line import main as command_line
from hf_ar2.files import checksum
from hf_ar2.recipes import run as recipe_command
from hf_ar2.trainers.checkpoints import fingerprints

# What no result depends on, or what a person may edit.
IGNORED = (
    "README.md",
    "report.png",
    "environment.json",
    "recipe.yaml",
    "*/checkpoint-*",
    "*/training_args.bin",
)
ARGS = {
    "per_device_train_batch_size": 4,
    "eval_strategy": "no",
    "eval_on_start": False,
    "disable_tqdm": True,
    "max_passage_length": 32,
    "max_pair_length": 48,
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1e-3,
    "report_to": "none",
}
# Of a trainer that no recipe started: the checkpoint is in the second round, after the ranker's phase.
TRAINER = tiny_ar2.QUIET | {"num_rounds": 2, "ranker_steps": 2, "retriever_steps": 2}
TRAINER |= {"save_strategy": "steps", "save_steps": 6, "seed": 3}
CHECKPOINT = "checkpoint-6"


@dataclass(frozen=True)
class Target:
    """A folder to damage.

    Attributes:
        folder: whose files are damaged, on a copy.
        other: the same of another run.
        outcome: reads or continues a copy, and returns what must stay the same.
        part: the files are in this folder of it.
    """

    folder: Path
    other: Path
    outcome: Callable[[Path], object]
    part: str = "."

    def names(self) -> list[str]:
        """The files, by their path in the part."""
        part = self.folder / self.part
        found = [path.relative_to(part).as_posix() for path in sorted(part.rglob("*")) if path.is_file()]
        return [name for name in found if not any(fnmatch.fnmatch(f"/{name}", f"*/{i}") for i in IGNORED)]

    def of_other(self, name: str) -> bytes | None:
        """What the file holds in the other run, where a hash in its name may be another; None: there is none."""
        other = self.other / self.part
        path = other / name
        if not path.is_file():
            path = next(iter(sorted(other.glob(re.sub(r"[0-9a-f]{16,}", "*", name)))), path)
        return path.read_bytes() if path.is_file() else None


def flipped(content: bytes, other: bytes | None) -> bytes:
    """One bit in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :] if content else b"x"


def cut(content: bytes, other: bytes | None) -> bytes:
    """Half of it."""
    return content[: len(content) // 2]


def deleted(content: bytes, other: bytes | None) -> bytes | None:
    """There is no file."""
    return None


def replaced(content: bytes, other: bytes | None) -> bytes | None:
    """The file of another run."""
    return other


DAMAGES = (flipped, cut, deleted, replaced)


def make_targets(home: Path) -> dict[str, Target]:
    """Two runs that differ in their seed, and what can be damaged of them."""
    make_tiny_retriever(home / "tiny-retriever")
    make_tiny_ranker(home / "tiny-ranker")
    make_tiny_collection().save(home / "data")
    row = {"retriever": "warm", "ranker": "heavy"}
    body = {
        "name": "tiny",
        "collection": str(home / "data"),
        "seed": 3,
        "models": {
            "light": {"model": str(home / "tiny-retriever")},
            "heavy": {"model": str(home / "tiny-ranker")},
        },
        "args": ARGS,
        "stages": {"warm": {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 4}}},
        "evaluation": {
            "metrics": ["mrr@10"],
            "depth": 20,
            "rerank_depth": 10,
            "lexical": True,
            "rows": {"before": {"retriever": "light"}, "after": row},
        },
    }
    recipe = write_recipe(home / "tiny.yaml", body)

    def run(folder: Path, *more: str) -> object:
        """The metrics, and the checksums of the weights, after the recipe was run to its end in a folder."""
        recipe_command.main([str(recipe), "--output_dir", str(folder), *more])
        weights = [checksum(path) for path in sorted(folder.glob("r*/*.safetensors"))]
        return (folder / "metrics.json").read_text(), weights

    def evaluated(*arguments: str | Path) -> object:
        """The table that `hf-ar2 evaluate` prints."""
        with redirect_stdout(io.StringIO()) as printed:
            code = command_line.main(["evaluate", *map(str, arguments), "--split", "test"])
        if code:
            raise SystemExit(code)
        return [line for line in printed.getvalue().splitlines() if "│" in line or " 0." in line]

    def index(folder: Path, retriever: str) -> None:
        assert command_line.main(["index", str(home / retriever), str(home / "data"), str(folder)]) == 0

    def resumed(folder: Path) -> object:
        """The losses and the weights of a trainer that continues from its checkpoint, in one process."""
        trainer = tiny_ar2.make_trainer("ar2", home, folder, make_tiny_collection(), **TRAINER)
        try:
            trainer.train(resume_from_checkpoint=str(folder / CHECKPOINT))
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from error
        return tiny_ar2.losses(trainer.state.log_history), fingerprints(trainer.model)

    run(home / "run")
    run(home / "other", "--seed", "4")
    for name in ("run", "other"):  # as a kill leaves it after its first checkpoint
        begun = home / f"{name}-begun"
        shutil.copytree(home / name / "stages/warm/checkpoint-2", begun / "stages/warm/checkpoint-2")
        for file in ("key.txt", "inputs.json"):
            shutil.copy(home / name / "stages/warm" / file, begun / "stages/warm" / file)
    for name, seed in (("two", 3), ("other-two", 4)):
        launch_two(recipe_command.__file__, recipe, "--output_dir", home / name, "--seed", str(seed))
    for name, seed in (("trainer", 3), ("other-trainer", 4)):
        settings = {**TRAINER, "per_device_train_batch_size": 2, "seed": seed}  # of each process
        launch_two(tiny_ar2.__file__, home, home / name, "--settings", json.dumps(settings))
        shutil.copytree(home / name / CHECKPOINT, home / f"{name}-begun" / CHECKPOINT)
    index(home / "index", "tiny-retriever")
    make_tiny_retriever(home / "second", seed=5)
    index(home / "other-index", "second")
    of_index = ("--retriever", home / "tiny-retriever", "--collection", home / "data", "--index")
    return {
        "run": Target(home / "run", home / "other", run),
        "served": Target(home / "run", home / "other", evaluated),
        "checkpoint": Target(home / "run-begun", home / "other-begun", run, "stages/warm/checkpoint-2"),
        "two": Target(home / "two", home / "other-two", lambda folder: (run(folder), evaluated(folder))),
        "trainer": Target(home / "trainer-begun", home / "other-trainer-begun", resumed, CHECKPOINT),
        "index": Target(home / "index", home / "other-index", lambda folder: evaluated(*of_index, folder)),
    }


def outcome_of(target: Target, folder: Path) -> tuple[object, str, bool]:
    """What must stay the same (None after an error), what was printed, and whether there was a traceback."""
    receive, send = os.pipe()
    child = os.fork()  # so that nothing is remembered, and the slow imports are not repeated
    if child == 0:
        found, code = io.StringIO(), 1
        with redirect_stderr(found), redirect_stdout(found):
            try:
                found.write(f"\0{target.outcome(folder)}")
                code = 0
            except SystemExit as error:
                if isinstance(error.code, str):
                    found.write(error.code)
            except BaseException:
                traceback.print_exc(file=found)
                code = 2
        with os.fdopen(send, "w") as stream:
            stream.write(found.getvalue())
        os._exit(code)
    os.close(send)
    with os.fdopen(receive) as stream:
        printed = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (printed.rpartition("\0")[2] if code == 0 else None), printed, code not in (0, 1)


def attack(target: Target, names: list[str], work: Path) -> Iterator[str]:
    """A line for each damage; those of findings begin with FINDING."""
    copy = work / "copy"
    for name in [None, *names]:
        for damage in DAMAGES if name is not None else (None,):
            shutil.copytree(target.folder, copy)
            if name is not None and damage is not None:
                path = copy / target.part / name
                content = damage(path.read_bytes(), target.of_other(name))
                if content == path.read_bytes() or (content is None and damage is replaced):
                    shutil.rmtree(copy)
                    continue  # the other run has the same, or none
                path.unlink()
                if content is not None:
                    path.write_bytes(content)
            found, printed, broke = outcome_of(target, copy)
            shutil.rmtree(copy)
            if name is None:
                assert found is not None, printed
                expected = found
                continue
            last = printed.strip().splitlines()[-1] if printed.strip() else ""
            said = f"{name} {damage.__name__}: "
            if found == expected:
                yield f"{said}the same results"
            elif found is not None:
                yield f"FINDING {said}other results: {found[-300:]}"
            elif broke or not (Path(name).name in last or str((copy / target.part / name).parent) in last):
                yield f"FINDING {said}{last[-300:]}"
            else:
                yield f"{said}{last[-300:]}"


def main(patterns: list[str]) -> int:
    """Attack the files that a pattern names, or all."""
    findings = 0
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(Path(folder))
        for kind, target in targets.items():
            names = [
                name
                for name in target.names()
                if not patterns or any(fnmatch.fnmatch(f"{kind}/{name}", pattern) for pattern in patterns)
            ]
            for line in attack(target, names, Path(folder)) if names else ():
                findings += line.startswith("FINDING")
                print(f"{kind}: {line}", flush=True)
    print(f"{findings} findings")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
