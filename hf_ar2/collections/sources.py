"""Where the queries of a collection come from: people, headings, or a model that wrote them."""

from __future__ import annotations

from hf_ar2.collections.collection import Collection


def what_is_asked(collection: Collection, split: str, run: str) -> str:
    """What the queries of a split are where people did not ask them all, and how to measure on people's; else "".

    Args:
        run: the run folder, for the command.
    """
    counts = query_sources(collection).get(split, {})
    parts = []
    for source, count in counts.items():
        kind, _, model = source.partition(":")
        name = {"heading": "headings of your documents", "generated": f"written by {model}"}.get(kind, source)
        if source:
            parts.append(f"{name} ({count:,})")
    if not parts:
        return ""
    people = (
        f", beside {counts['']:,} that people asked" if counts.get("") else ", not questions of your users"
    )
    return (
        f"The queries of {split} are {' and '.join(parts)}{people}. Write twenty real questions\ninto a file, one a "
        f"line, and judge what is found: hf-ar2 label {run} FILE"
    )


def query_sources(collection: Collection) -> dict[str, dict[str, int]]:
    """Split -> source -> number of judged queries; "" for what people asked; `{}` where no source is noted."""
    if "source" not in collection.queries.column_names:
        return {}
    return {split: collection.query_sources(split) for split in collection.splits}
