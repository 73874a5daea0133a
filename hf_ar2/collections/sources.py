"""The sources of queries: people, headings, or a model."""

from __future__ import annotations

from hf_ar2.collections.collection import Collection


def query_source_note(collection: Collection, split: str, run: str) -> str:
    """A note on a split whose queries people did not all ask, with the command to judge real ones; else "".

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
    people = f", plus {counts['']:,} that people asked" if counts.get("") else ", not questions of your users"
    return (
        f"The queries of {split} are {' and '.join(parts)}{people}. Write twenty real questions\nto a file, one per "
        f"line, and judge the results: hf-ar2 label {run} FILE"
    )


def query_sources(collection: Collection) -> dict[str, dict[str, int]]:
    """Split -> source -> number of judged queries, "" for those that people asked; `{}` without sources."""
    if "source" not in collection.queries.column_names:
        return {}
    return {split: collection.query_sources(split) for split in collection.splits}
