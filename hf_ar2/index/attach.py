"""`CorpusIndex.attach`: a corpus index as the FAISS index of a `datasets.Dataset`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import datasets
import numpy as np
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hf_ar2.terminal import counted

if TYPE_CHECKING:
    from hf_ar2.index.corpus_index import CorpusIndex


def attach(self: CorpusIndex, corpus: datasets.Dataset, name: str = "embeddings") -> datasets.Dataset:
    """Make `corpus.search_batch(name, ...)`, `get_nearest_examples_batch`, `save_faiss_index` work on this index.

    Nothing is copied: the dataset, which is returned, refers to `faiss_index`. An index of this name is replaced.
    Attach last: `select`, `filter` and `shuffle` fail on a dataset with an index, `map` drops it, and
    `remove_columns` or `with_format` copy it.

    Raises:
        ValueError: the corpus has another number of passages.
    """
    if len(corpus) != self.ntotal:
        raise ValueError(
            f"the index holds {counted(self.ntotal, 'passages')}, but the corpus to attach it to has {len(corpus)}: "
            "it was built from another corpus"
        )
    if name in corpus.list_indexes():
        corpus.drop_index(name)
    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # of adding no vectors
    try:
        # An empty array: the vectors are in the index already, and datasets would add them again.
        corpus.add_faiss_index_from_external_arrays(
            np.empty((0, self.dim), np.float32), name, custom_index=self.faiss_index
        )
    finally:
        if shown:
            enable_progress_bars()
    return corpus
