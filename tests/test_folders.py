"""Temporary folders, and what killed processes leave of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ar2 import folders
from hf_ar2.folders import temporary_folder
from hf_ar2.lock import machine_name

HOLD = """
import sys, time; from hf_ar2.folders import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder / "weights.bin").write_text("content")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which has a temporary folder in `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one_and_not_before(holder, tmp_path):
    assert holder.stdout is not None
    left = Path(holder.stdout.readline().strip())
    assert left.parent == tmp_path
    with temporary_folder(tmp_path) as own:
        assert (left / "weights.bin").is_file(), "its process lives"
        assert own != left
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (left / "weights.bin").is_file() and list(tmp_path.iterdir()) == [left]
    with temporary_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert not list(tmp_path.iterdir())


def test_the_system_s_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0


def test_what_may_be_in_use_or_is_another_s_is_kept(tmp_path, monkeypatch):
    ended = 2**22 + 1  # no system gives such an id
    names = [
        f"hf-ar2-{machine_name()}-{os.getpid()}-abcd1234",
        f"hf-ar2-{'0' * 8}-{ended}-abcd1234",  # of another machine
        f"hf-ar2-{machine_name()}-{ended}",
        "hf-ar2-mine",
    ]
    for name in names:
        (tmp_path / name / "deep").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / f"hf-ar2-{machine_name()}-{ended}-abcd1234"
    link.symlink_to(elsewhere)
    expected = {*names, "elsewhere", link.name}
    folders.remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == expected
    link.unlink()
    link.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)  # another user
    folders.remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == expected
    monkeypatch.undo()
    folders.remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == expected - {link.name}
