"""A mark at the end of each card that hf-ar2 writes, so that a card that a person wrote or edited is not replaced."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from hf_ar2.files import write_text

logger = logging.getLogger(__name__)

CARD = "README.md"
_MARK = re.compile(r"<!-- Written by hf-ar2, checksum (\w+)\. An edited card is not replaced\. -->\s*\Z")


def marked(card: str) -> str:
    """The card with a checksum of its text in a comment at the end."""
    card = card.rstrip()
    return (
        f"{card}\n\n<!-- Written by hf-ar2, checksum {_checksum(card)}. An edited card is not replaced. -->\n"
    )


def is_edited(card: str) -> bool:
    """Whether a person wrote or edited a card: it has no mark, or not the text that was marked."""
    found = _MARK.search(card)
    return found is None or found[1] != _checksum(card[: found.start()])


def edited_card(folder: Path) -> str | None:
    """The README.md of a folder if it is a card of hf-ar2 that a person edited; other programs write cards too."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return text if _MARK.search(text) and is_edited(text) else None


def write_card(folder: Path, card: str) -> None:
    """Write the README.md of a model's folder, unless a person has edited the one that is there."""
    path = folder / CARD
    if path.is_file() and is_edited(path.read_text(encoding="utf-8", errors="replace")):
        logger.warning(f"{path}: was edited; not replaced. Delete it to get a new card")
    else:
        write_text(path, card)


def _checksum(text: str) -> str:
    plain = text.replace("\r\n", "\n").strip()
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
