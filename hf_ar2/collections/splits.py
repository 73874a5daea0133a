"""Splits by a hash, so that they are the same on every machine and for any other data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

SPLITS = ("train", "dev", "test")


def hash_of(text: str) -> int:
    """The first 64 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(text: str) -> str:
    """train for 80 % of all texts, dev and test for 10 % each."""
    tenth = hash_of(text) % 10
    return "train" if tenth < 8 else "dev" if tenth == 8 else "test"


def nonempty_splits(texts: Mapping[str, str]) -> dict[str, str]:
    """Id -> split, given id -> text.

    With three or more texts, a split that would be empty gets the text with the smallest hash from the largest split.
    """
    splits = {id: split_of(text) for id, text in texts.items()}
    for split in SPLITS:
        if split not in splits.values() and len(splits) >= 3:
            largest = Counter(splits.values()).most_common(1)[0][0]
            candidates = (id for id in splits if splits[id] == largest)
            splits[min(candidates, key=lambda id: hash_of(texts[id]))] = split
    return splits
