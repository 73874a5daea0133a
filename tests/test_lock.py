"""A folder is written by one run at a time."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from hf_ar2 import lock
from hf_ar2.command_line import launch, main
from hf_ar2.folders import remove_leftovers
from hf_ar2.lock import LOCK, FolderInUse, check_free, locked

HOLD = """
import sys, time; from pathlib import Path; from hf_ar2.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def write_lock(folder, **changes):
    """A lock of a process that has ended here, but for the changes."""
    holder = {"machine": lock._machine(), "process": 2**22 + 1, "started": 0.0, "since": "yesterday"}
    (folder / LOCK).write_text(json.dumps(holder | changes))


def test_who_holds_a_lock_is_named_and_a_killed_holder_is_replaced(holder, tmp_path):
    with pytest.raises(FolderInUse, match=rf"in use by another run \(process {holder.pid} on .*since 20"):
        with locked(tmp_path):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given", ["--output_dir {0}", "--output_dir={0}", "--seed 3 --output_dir other --output_dir {0}"]
)
def test_a_folder_in_use_is_named_before_anything_is_loaded(given, holder, tmp_path, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("the launcher was started")

    monkeypatch.setattr(main, "launch_command", never)
    assert main.main(["train", "own-corpus", *given.format(tmp_path).split()]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"hf-ar2 train: {tmp_path}: in use by another run (process {holder.pid} on ")
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK], "nothing is written"


def test_only_a_process_of_this_machine_ends_a_run_before_it_has_loaded(tmp_path):
    """On several machines a run holds its folder on one of them."""
    check_free(tmp_path / "new")
    for changes in ({}, {"machine": ["elsewhere", ""]}):  # ended, and elsewhere
        write_lock(tmp_path, **changes)
        check_free(tmp_path)
    (tmp_path / LOCK).write_text('{"mach')
    check_free(tmp_path)


def test_the_folder_of_a_run_is_that_of_the_command_of_the_recipe_or_its_name(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: of/mine\n")
    assert str(launch.run_folder(recipe, [])) == "runs/of-mine"
    assert str(launch.run_folder(recipe, ["--name", "yours"])) == "runs/yours"
    recipe.write_text("output_dir: there\n")
    assert str(launch.run_folder(recipe, ["--seed", "1"])) == "there"
    assert str(launch.run_folder(recipe, ["--output_dir", "here"])) == "here"
    recipe.write_text("{")
    assert launch.run_folder(recipe, []) is None, "reading it for good says what is wrong"


def test_a_lock_that_does_not_fit_on_the_disk_is_not_left(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised, locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(tmp_path / ".lock") and not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).is_file()
    assert not (tmp_path / "run").exists()


def test_a_process_with_the_id_of_the_holder_is_another_one(tmp_path):
    write_lock(tmp_path, process=os.getpid())  # and another time at which it was started
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("changes", [{"machine": ["elsewhere", ""]}, None])
def test_where_nobody_can_tell_the_lock_has_to_be_silent_for_some_minutes(changes, tmp_path):
    if changes is None:
        (tmp_path / LOCK).write_text('{"mach')
    else:
        write_lock(tmp_path, **changes)
    with pytest.raises(FolderInUse, match=r"if it has ended, wait until that is 180 s, or delete .*\.lock"):
        with locked(tmp_path):
            pass
    os.utime(tmp_path / LOCK, (time.time() - 200,) * 2)
    with locked(tmp_path):
        pass


def test_a_held_lock_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    beats = []
    with locked(tmp_path, lambda: beats.append(time.time())):
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.monotonic() + 10
        while len(beats) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(beats) > 1 and time.time() - (tmp_path / LOCK).stat().st_mtime < 10


def test_one_of_many_gets_a_lock_that_was_left(tmp_path):
    write_lock(tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    until = time.monotonic() + 60
    while sum(process.poll() is None for process in processes) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.kill()
    errors = [process.communicate()[1] for process in processes]
    assert len(running) == 1 and sum(b"FolderInUse" in error for error in errors) == 3


def test_what_killed_writers_leave_is_removed_and_what_was_moved_away_is_moved_back(tmp_path):
    for folder in (
        "kept",
        ".pool-ab_12345.partial",
        "deep/.index-abcd1234.partial",
        "deep/.a-b-abcd1234.partial.old",
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_text("x")
    for file in (".done.json.17.partial", "deep/.0a1b.partial.npz", ".hidden"):
        (tmp_path / file).write_text("x")
    remove_leftovers(tmp_path)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == [".hidden", "deep/a-b/file", "kept/file"]
