"""Collections of the package ir_datasets (MacAvaney et al. 2021), which is optional."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError, Problems
from hf_ar2.collections.readers.entries import Qrels, Queries
from hf_ar2.collections.readers.passages import check_passages
from hf_ar2.collections.splits import SPLITS
from hf_ar2.collections.tables import PASSAGE_FEATURES, arrow_column, dataset_of


def load_ir_datasets(dataset_id: str, *, name: str | None = None, skip: Iterable[str] = ()) -> Collection:
    """Reads a collection of the package ir_datasets.

    The splits are the subsets `<id>/train`, `<id>/dev` and `<id>/test` with judgments. Judgments of the dataset itself
    are the split that ends its id (`beir/scifact/test`), or `test`. The corpus is held in memory.

    Args:
        dataset_id: An id of ir_datasets, such as `beir/scifact`.
        name, skip: As in `load_collection`; the name is by default the id.

    Raises:
        ImportError: ir_datasets is not installed.
        CollectionError: There is no such dataset, it has no documents or no judgments, or an entry is invalid.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise ImportError(
            f"ir_datasets:{dataset_id} needs the package ir_datasets: pip install ir-datasets"
        ) from error
    problems = Problems(skip)
    place = f"ir_datasets:{dataset_id}"
    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise CollectionError(f"{place}: ir_datasets has no such dataset; see ir-datasets.com") from None
    judged: dict[str, Any] = {}
    if dataset.has_qrels():
        last = dataset_id.rsplit("/", 1)[-1]
        judged[last if last in SPLITS else "test"] = dataset
    else:
        for split in SPLITS:
            try:
                subset = ir_datasets.load(f"{dataset_id}/{split}")
            except KeyError:
                continue
            if subset.has_qrels() and subset.has_queries():
                judged[split] = subset
    if not dataset.has_docs() or not judged:
        missing = "judgments, nor a subset train, dev or test with any" if dataset.has_docs() else "documents"
        raise CollectionError(f"{place}: found no {missing}")
    columns: dict[str, list[str]] = {"id": [], "title": [], "text": []}
    for doc in dataset.docs_iter():
        columns["id"].append(doc.doc_id)
        titled = hasattr(doc, "title") and hasattr(doc, "text")
        columns["title"].append(doc.title or "" if titled else "")
        columns["text"].append(doc.text or "" if titled else doc.default_text())
    corpus = dataset_of(columns, PASSAGE_FEATURES)
    keep = check_passages(corpus, lambda row: row + 1, f"{place}, documents", problems)
    corpus = corpus if keep.all() else corpus.select(keep.nonzero()[0])
    queries = Queries(problems)
    for split, subset in judged.items():
        for row, query in enumerate(subset.queries_iter(), 1):
            queries.add(query.query_id, query.default_text(), f"{place}, queries of {split}", row)
    found, qrels = queries.dataset(), {}
    query_ids, passage_ids = arrow_column(found, "id"), arrow_column(corpus, "id")
    for split, subset in judged.items():
        judgments = Qrels(f"{place}, qrels of {split}", problems)
        for row, qrel in enumerate(subset.qrels_iter(), 1):
            judgments.add(qrel.query_id, qrel.doc_id, qrel.relevance, row)
        qrels[split] = judgments.dataset(query_ids, passage_ids)
    problems.log_skipped(place)
    return Collection(name or dataset_id, corpus, found, qrels, problems.skipped)
