"""Where the queries of a collection come from: people, headings, or a model that wrote them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hf_ar2.collections.collection import Collection


def query_sources(collection: Collection) -> dict[str, dict[str, int]]:
    """Split -> source -> number of judged queries; "" where a source is not known; `{}` where none is.

    Example:
        >>> from hf_ar2.collections import load_collection
        >>> query_sources(load_collection("python-packages:json"))
        {}
    """
    if "source" not in collection.queries.column_names:
        return {}
    sources = np.asarray(collection.queries["source"], object)
    return {
        split: dict(Counter(sources[collection.judgments(split).query_rows].tolist()).most_common())
        for split in collection.splits
    }
