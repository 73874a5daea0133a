"""What a terminal is sent: no control character of a text, and one line of an error."""

from __future__ import annotations

import os
import re

import pytest

from hf_ar2.command_line import main as cli
from hf_ar2.command_line import show
from hf_ar2.command_line.errors import error_text
from hf_ar2.evaluation.tables import format_table
from hf_ar2.recipes import run as script
from hf_ar2.search.system import Hit
from hf_ar2.terminal import counted, visible, visible_lines

HOSTILE = "\x1b]0;title\x07\x1b[2J red \x9b31m \u202egnp\u2066 \x7f\r\t back\x08 \u061c\u2028"
COMMANDS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def test_control_characters_are_escapes():
    assert not COMMANDS.search(visible(HOSTILE)) and r"\x1b[2J" in visible(HOSTILE)
    assert visible("Bienen, 蜜蜂, 🐝, عسل") == "Bienen, 蜜蜂, 🐝, عسل"
    assert visible_lines(f"a\n{HOSTILE}\nb").count("\n") == 2


def test_one_is_not_counted_in_the_plural():
    nouns = [
        "queries",
        "judged queries",
        "tab-separated columns",
        "empty passages",
        "files that are not UTF-8",
    ]
    singular = ["query", "judged query", "tab-separated column", "empty passage", "file that is not UTF-8"]
    assert [counted(1, noun) for noun in nouns] == [f"1 {noun}" for noun in singular]
    assert [counted(1200, noun) for noun in nouns] == [f"1,200 {noun}" for noun in nouns]
    assert counted(0, "tables of contents (a.md, …)") == "0 tables of contents (a.md, …)"
    assert counted(1, "tables of contents (a.md)") == "1 table of contents (a.md)"


def test_hits_and_tables_hold_none():
    hits = show.hits_table([Hit(HOSTILE, HOSTILE, HOSTILE, 1, 0.5, 0.1)], 80)
    table = format_table([[HOSTILE, 0.5]], ["system", "MRR@10"], width=400)
    for shown in (hits, table):
        assert not COMMANDS.search(shown) and r"\x1b[2J" in shown


def test_errors_hold_none(capsys):
    assert cli.main(["evaluate", HOSTILE.replace("\r", "")]) == 1
    with pytest.raises(SystemExit):
        cli.main(["search", "run", "--\x1b[2J"])
    with pytest.raises(SystemExit) as raised:
        script.main([f"{HOSTILE}.yaml"])
    assert not COMMANDS.search(capsys.readouterr().err + str(raised.value.code))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a.tsv:3: found 2 columns, expected 3"), "a.tsv:3: found 2 columns, expected 3"),
        (KeyError("model_type"), "KeyError: 'model_type' (set HF_AR2_TRACEBACK=1 to see the traceback)"),
        (
            RuntimeError("CUDA error:\n  at line 3"),
            "RuntimeError: CUDA error: at line 3 (set HF_AR2_TRACEBACK=1 ",
        ),
        (MemoryError(), "MemoryError: no message (set"),
        (ValueError(), "ValueError: no message (set"),
        (RuntimeError("x" * 10_000), "RuntimeError: xxx"),
        (ValueError("at https://me:1234@example.org"), "at https://<hidden>@example.org"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "a file is not UTF-8 text ('utf-8' codec",
        ),
    ],
)
def test_an_error_is_one_line(error, text):
    shown = error_text(error)
    assert shown.startswith(text) and "\n" not in shown and len(shown) < 800


def test_the_traceback_of_any_error(monkeypatch, capsys):
    def fails(options):
        raise IndexError("7")

    monkeypatch.setattr("hf_ar2.command_line.about.env", fails)
    assert cli.main(["env"]) == 1
    assert capsys.readouterr().err.startswith("hf-ar2 env: IndexError: 7 (set HF_AR2_TRACEBACK=1")
    monkeypatch.setenv("HF_AR2_TRACEBACK", "1")
    with pytest.raises(IndexError):
        cli.main(["env"])


def test_of_several_processes_the_first_prints_first(monkeypatch):
    waited = []
    monkeypatch.setattr(script.time, "sleep", waited.append)
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "1"})
    with pytest.raises(SystemExit, match="^recipe: process 1: absent.yaml: no such recipe"):
        script.main(["absent.yaml"])
    assert waited == [2]
