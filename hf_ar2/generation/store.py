"""The replies of a model so far, one JSON object per line, so that an interrupted command can resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hf_ar2.collections.problems import CollectionError


def store_key(passage_id: str, text: str, written_by: Mapping[str, str | int]) -> str:
    """32 hex digits of a passage, its text, and the writer: model, prompt, number of replies, seed."""
    content = json.dumps([passage_id, text, dict(sorted(written_by.items()))], ensure_ascii=False)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class ReplyStore:
    """Replies by key, in a file that is only appended to. An incomplete last line is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.replies: dict[str, list[str]] = {}
        if file.is_file():
            self._read()

    def _read(self) -> None:
        complete = 0  # bytes
        with open(self.file, "rb") as stream:
            lines = stream.readlines()
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self.replies[entry["key"]] = [str(reply) for reply in entry["replies"]]
                if not line.endswith(b"\n"):
                    raise ValueError("no end of line")
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise CollectionError(
                        f"{self.file}:{number}: found a damaged line ({error}); expected one JSON object. Delete the "
                        "line to generate its replies again"
                    ) from None
                os.truncate(self.file, complete)
            complete += len(line)

    def add(self, entries: Iterable[tuple[str, str, Sequence[str]]]) -> None:
        """Append (key, passage id, replies) as complete lines."""
        lines = []
        for key, passage, replies in entries:
            self.replies[key] = list(replies)
            entry = {"key": key, "passage": passage, "replies": list(replies)}
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8", errors="replace", newline="\n") as stream:
            stream.writelines(lines)
