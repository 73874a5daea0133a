"""Files that are written completely or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from hf_ar2 import files
from hf_ar2.files import (
    DamagedFile,
    allocate,
    check_files,
    check_size,
    check_space,
    checksum,
    read_json,
    write_json,
    write_note,
    write_text,
    writing,
)
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


def damaged_in_turn(content: bytes):
    """The content with a bit flipped, cut, and replaced."""
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    return {"flipped": bytes(flipped), "cut": content[:-1], "replaced": b"x" * len(content)}


def test_a_note_finds_every_damage_to_its_files_and_to_itself(tmp_path):
    file, note = tmp_path / "files" / "a.bin", tmp_path / "notes" / "note.json"
    file.parent.mkdir()
    file.write_bytes(bytes(range(200)))
    write_note(note, {"rows": [1.5, None], "name": "ä"}, [file])
    noted = read_json(note)
    assert noted == {"rows": [1.5, None], "name": "ä", "checksums": {"../files/a.bin": checksum(file)}}
    check_files(note.parent, noted["checksums"], "")
    for content in damaged_in_turn(bytes(range(200))).values():
        file.write_bytes(content)
        files._known.clear()
        with pytest.raises(
            DamagedFile, match=r"files.a.bin: the file is damaged or was replaced.*Build it again"
        ):
            check_files(note.parent, noted["checksums"], "Build it again")
    file.unlink()
    with pytest.raises(DamagedFile, match=r"a.bin: this file is missing. Build it again"):
        check_files(note.parent, noted["checksums"], "Build it again")
    written = note.read_bytes()
    for place in range(0, len(written), 3):
        note.write_bytes(written[:place] + bytes([written[place] ^ 4]) + written[place + 1 :])
        try:
            assert read_json(note).items() >= noted.items(), "a changed key of the checksum or white space"
        except DamagedFile as error:
            assert str(note) in str(error)


def test_a_note_with_checksums_of_the_earlier_algorithm_is_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    earlier = {"a": "e649979ea897f306d85a4a48681e7e3c"}
    check_files(tmp_path, earlier, "")
    (tmp_path / "a").write_bytes(bytes(999) + b"\1")
    with pytest.raises(DamagedFile, match="a: the file is damaged or was replaced"):
        check_files(tmp_path, earlier, "")


def test_a_large_file_is_hashed_in_pieces_and_once(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 4)
    monkeypatch.setattr(files, "_PIECE", 100)
    found = checksum(path)
    path.rename(tmp_path / "moved")
    monkeypatch.setattr(files, "_digest_of_piece", None)
    assert checksum(tmp_path / "moved") == found


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        OSError("120 requested and 12 written"),
        RuntimeError(
            "[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0"
        ),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 150912 vs 150800"),
        RuntimeError("basic_ios::clear: iostream error"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_what_libraries_raise_on_a_full_disk_becomes_one_line(tmp_path, error):
    with (
        pytest.raises(OSError, match=r"about 3.0 MB needed, [\d,.]+ MB free.*model") as raised,
        writing(tmp_path / "a" / "model", 3_000_000),
    ):
        raise error
    assert raised.value.filename == str(tmp_path / "a" / "model") and "\n" not in str(raised.value)


def test_other_errors_are_left_alone(tmp_path):
    for error in (RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "no such file", "x")):
        with pytest.raises(type(error)) as raised, writing(tmp_path):
            raise error
        assert raised.value is error


def test_space_is_checked_and_allocated(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: about 1,000,000,000,000.0 MB needed"):
        check_space(tmp_path / "new" / "embeddings", 10**18)
    path = tmp_path / "sparse"
    path.write_bytes(b"header")
    os.truncate(path, 1 << 20)
    allocate(path)
    assert path.read_bytes()[:6] == b"header" and path.stat().st_blocks * 512 >= 1 << 20
    with pytest.raises(OSError, match="sparse"):
        check_size(path, (1 << 20) + 1)
