"""Files that are written completely or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from hf_ar2.files import DamagedFile, checksum, read_json, write_json, write_text
from hf_ar2.folders import remove_leftovers


def test_what_is_written_is_read_again(tmp_path):
    write_json(tmp_path / "new" / "note.json", {"ä": [1, None]})
    assert read_json(tmp_path / "new" / "note.json") == {"ä": [1, None]}


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "note.json").write_bytes(content)
    with pytest.raises(DamagedFile, match="note.json: not a complete JSON file"):
        read_json(tmp_path / "note.json")


def test_an_interrupted_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    write_text(tmp_path / "note", "earlier")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*note"):
        write_text(tmp_path / "note", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_text() == "earlier"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_file(tmp_path, moment):
    note = tmp_path / "note"
    write_text(note, "earlier")
    kill = f"import os, signal; os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    code = f"{kill}; from pathlib import Path; from hf_ar2.files import *; write_text(Path({str(note)!r}), 'new')"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert note.read_text() == "earlier"
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [note]


def test_checksums_differ_where_one_bit_differs(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").write_bytes(bytes(999) + b"\1")
    assert checksum(tmp_path / "a") != checksum(tmp_path / "b")
    assert len(checksum(tmp_path / "a")) == 32
