"""Where the queries of a collection come from: people, headings, or a model that wrote them."""

from __future__ import annotations

from hf_ar2.collections.collection import Collection


def query_sources(collection: Collection) -> dict[str, dict[str, int]]:
    """Split -> source -> number of judged queries; "" for what people asked; `{}` where no source is noted.

    Example:
        >>> from hf_ar2.collections import load_collection
        >>> query_sources(load_collection("python-packages:json"))
        {}
    """
    if "source" not in collection.queries.column_names:
        return {}
    return {split: collection.query_sources(split) for split in collection.splits}
