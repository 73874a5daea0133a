"""Machines that do not see each other's disks: what one rank wrote reaches the others through the process group."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from two_processes import in_processes, in_two_processes, launch

from hf_ar2.encoding import nodes
from hf_ar2.encoding.processes import Processes
from hf_ar2.lock import FolderInUse, locked
from hf_ar2.training_lists.pool import CandidatePool

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
SAVES = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
SAVES |= {"per_device_train_batch_size": 2, "save_total_limit": 2}


def on_own_disk(rank: int, folder: str) -> None:
    """Each rank has a folder of its own."""
    ranks, place = Processes.current("cpu"), Path(folder, f"disk-{rank}")
    nodes._BLOCK = 10  # bytes
    if ranks.is_first:
        (place / "model" / "empty").mkdir(parents=True)
        (place / "model" / "weights.bin").write_bytes(bytes(range(25)))
        (place / "model" / ".lock").write_text("mine")
        (place / "note.json").write_text("")
        (place / "other").write_text("not shared")
    else:
        (place / "model" / "old").mkdir(parents=True)
        (place / "model" / "old" / "file").write_text("of an earlier run")
        (place / "model" / "weights.bin").write_text("of an earlier run")
        (place / "mine").write_text("of this machine")
    ranks.share(place, "model", "*.json")
    assert (place / "model" / "weights.bin").read_bytes() == bytes(range(25))
    assert (place / "model" / "empty").is_dir() and not (place / "model" / "old").exists()
    assert (place / "note.json").read_text() == ""
    assert (place / "model" / ".lock").exists() == (place / "other").exists() == ranks.is_first
    assert (place / "mine").exists() != ranks.is_first
    ranks.barrier()
    assert not [path for path in place.rglob(".*") if path.name != ".lock"]

    there = place / "model" / "weights.bin"
    written = there.stat().st_mtime_ns
    ranks.share(place, "model")  # nothing has changed, so nothing is written
    assert there.stat().st_mtime_ns == written

    (place / "shards").mkdir()
    (place / "shards" / f"{rank}.npy").write_text(str(rank))
    for source in range(ranks.world_size):
        ranks.share(place / "shards", f"{source}.npy", source=source)
    assert [path.read_text() for path in sorted((place / "shards").iterdir())] == ["0", "1"]
    assert ranks.of_first(rank) == 0


@pytest.mark.slow
def test_every_machine_gets_the_files_of_one(tmp_path: Path) -> None:
    in_two_processes(on_own_disk, tmp_path)


def two_machines_of_two(rank: int, folder: str) -> None:
    ranks, place = Processes.current("cpu"), Path(folder, f"machine-{rank // 2}")
    if ranks.is_first:
        place.mkdir()
        (place / "file").write_text("content")
    ranks.share(place, "file")
    ranks.barrier()
    assert (place / "file").read_text() == "content" and [path.name for path in place.iterdir()] == ["file"]
    ranks.barrier()
    assert nodes._leaders(ranks, place, 0) == {2}
    assert nodes._leaders(ranks, place, 3) == {0}
    assert nodes._leaders(ranks, Path(folder, "shared"), 0) == set()


@pytest.mark.slow
def test_one_process_of_a_machine_writes_for_all_of_it(tmp_path: Path) -> None:
    in_processes(4, two_machines_of_two, tmp_path)


def where_something_is_wrong(rank: int, folder: str) -> None:
    ranks, place = Processes.current("cpu"), Path(folder, f"disk-{rank}")
    place.mkdir()
    if rank:
        (place / "done.json").write_text("{}")
    with pytest.raises(OSError, match=r"done.json is on .*, and nothing like it on the machine of rank 0"):
        ranks.share(place, "*.json")
    assert (place / "done.json").exists() == bool(rank)

    if rank:
        (place / "model").write_text("a file, where the other machine has a folder")
    else:
        (place / "model").mkdir()
        (place / "model" / "weights.bin").write_text("content")
    with pytest.raises(OSError, match="disk-1/model"):
        ranks.share(place, "model")


@pytest.mark.slow
def test_an_error_on_one_machine_is_raised_on_all(tmp_path: Path) -> None:
    in_two_processes(where_something_is_wrong, tmp_path)


def after_a_kill(rank: int, folder: str) -> None:
    ranks, place = Processes.current("cpu"), Path(folder, f"disk-{rank}")
    for name in (".pool-abcd1234.partial", "cache/.tokens-abcd1234.partial", "kept"):
        (place / name).mkdir(parents=True)
        (place / name / "file").write_text("content")
    (place / ".seen-0123456789abcdef.partial-1").touch()
    ranks.remove_leftovers(place)
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["file"]
    assert (place / "kept" / "file").is_file()

    (place / ".pool-abcd1234.partial").mkdir()
    with locked(place) if rank else nullcontext():  # another run writes to the folder of the second machine
        with pytest.raises(FolderInUse, match=r"disk-1: in use by another run"):
            ranks.remove_leftovers(place)
    assert (place / ".pool-abcd1234.partial").exists() == bool(rank)


@pytest.mark.slow
def test_what_a_kill_left_is_removed_on_every_machine(tmp_path: Path) -> None:
    in_two_processes(after_a_kill, tmp_path)


# ---- Runs -----------------------------------------------------------------------------------------------------------


def runs(models: Path, folder: Path, *options: str, number: int = 2, **settings: object) -> list[dict]:
    """The results of the same run with a folder that all processes see, and with one for each; the latter's first."""
    given = ["--settings", json.dumps({**SAVES, **settings}), *options]
    for name, own in (("shared", []), ("own", ["--own_disks"])):
        launch(number, SCRIPT, models, folder / name, *given, *own)
    places = (folder / "own" / "disk-0", folder / "shared")
    return [json.loads((place / "result.json").read_text()) for place in places]


def assert_same(found: dict, expected: dict) -> None:
    """Losses, metrics and pools' statistics of every step, without shares of time, and the weights at the end."""
    entries = [
        [
            {name: value for name, value in entry.items() if not name.endswith("_share")}
            for entry in result["log"]
            if "train_runtime" not in entry
        ]
        for result in (found, expected)
    ]
    assert entries[0] == entries[1] and found["weights"] == expected["weights"]


def assert_same_files(folder: Path, names: tuple[str, ...]) -> None:
    """Both disks have the same files of these names, with the same contents."""
    for name in names:
        first, second = (
            {
                path.relative_to(disk): path.read_bytes()
                for path in sorted(disk.glob(f"{name}/**/*"))
                if path.is_file()
            }
            for disk in (folder / "own" / "disk-0", folder / "own" / "disk-1")
        )
        assert first and first == second, name


@pytest.mark.slow
def test_ar2_trains_with_a_disk_for_each_process_as_with_one(models: Path, tmp_path: Path) -> None:
    found, expected = runs(models, tmp_path, index_factory="Flat")
    assert_same(found, expected)
    assert_same_files(tmp_path, ("pool", "index/*", "cache", "checkpoint-12", "checkpoint-14"))
    pools = [CandidatePool.open(tmp_path / name / "pool") for name in ("own/disk-1", "shared")]
    assert np.array_equal(pools[0].passage_rows, pools[1].passage_rows)
    assert np.array_equal(pools[0].scores, pools[1].scores)
    # A checkpoint that a machine has lost, or that was never there, comes from the first one.
    (tmp_path / "own" / "disk-0" / "result.json").unlink()
    for disk in (0, 1):
        shutil.rmtree(tmp_path / "own" / f"disk-{disk}" / "checkpoint-12", "checkpoint-14")
    shutil.rmtree(tmp_path / "own" / "disk-1")
    launch(
        2,
        SCRIPT,
        models,
        tmp_path / "own",
        "--own_disks",
        "--resume",
        "--settings",
        json.dumps({**SAVES, "index_factory": "Flat"}),
    )
    assert_same(json.loads((tmp_path / "own" / "disk-0" / "result.json").read_text()), expected)


@pytest.mark.slow
def test_ltre_searches_a_copy_of_the_index_on_each_disk(models: Path, tmp_path: Path) -> None:
    settings = {"index_factory": "PQ8", "train_centroids": True, "num_negatives": 0, "list_depth": 10}
    settings |= {"max_steps": 6, "steps_per_round": 3}
    options = ["--trainer", "ltre", "--passages", "300"]
    found, expected = runs(models, tmp_path, *options, **settings)
    assert_same(found, expected)
    assert found["centroids"] == expected["centroids"]
    assert_same_files(tmp_path, ("checkpoint-4", "index/*"))


@pytest.mark.slow
def test_an_asynchronous_refresh_gathers_what_each_process_encoded(models: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 8, "steps_per_round": 4, "num_negatives": 3, "mine": True}
    settings |= {"refresh_mode": "async", "max_staleness": 2, "eval_steps": 4}
    found, expected = runs(models, tmp_path, "--trainer", "retriever", **settings)
    assert_same(found, expected)
    assert sum("pool/top_score" in entry for entry in found["log"]) == 2
    assert_same_files(tmp_path, ("pool", "index/*"))
