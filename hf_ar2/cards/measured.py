"""Notes on the limits of a run's numbers: queries that no person asked, and a search of only a part of the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hf_ar2.collections.questions import source_text


def query_note(sources: Mapping[str, Mapping[str, int]], splits: Iterable[str]) -> str:
    """Which of the splits have queries that no person asked, and what their numbers mean; "" if none has.

    `sources` is split -> source -> number of queries, as `query_sources` counts them.

    Example:
        >>> query_note({"test": {"heading": 15}}, ["dev", "test"]).split(". ")[0]
        'Not all queries are questions that people asked: those of test are headings of the documents (15)'
    """
    parts = []
    for split in splits:
        counts = sources.get(split, {})
        asked = counts.get("", 0)
        if asked < sum(counts.values()):
            plus = f", plus {asked:,} asked" if asked else ""
            parts.append(f"those of {split} are {source_text(counts)}{plus}")
    if not parts:
        return ""
    return (
        f"Not all queries are questions that people asked: {'; '.join(parts)}. Such queries use the words of the "
        "passages. These numbers compare models; they do not say how well questions that people ask are answered."
    )


def part_note(plan: Mapping[str, Any], chosen: Mapping[str, Any], splits: Iterable[str]) -> str:
    """A note if one of the splits was searched in a part of the corpus only; "" if none was.

    With few minutes, a run chooses what it serves on a part of the corpus; its plan.json and chosen.json say so.
    """
    split = chosen.get("split")
    if plan.get("part") is None or split is None or split not in splits:
        return ""
    total = f" of {plan['of_passages']:,}" if "of_passages" in plan else ""
    return part_sentence(split, f"{plan['costs']['passages']:,}{total} passages")


def part_sentence(split: str, passages: str) -> str:
    """A note that a split was searched in only some `passages`, such as "50 of 900 passages"."""
    return (
        f"On {split} only a part of the corpus was searched, {passages}, to save time: its numbers are higher than in "
        "a search of all passages. Compare them with each other only."
    )
