"""Our own card for a published retriever, ranker or index: how it was trained, what it reaches, how it is used.

Never the base model's card. Everything comes from the run (`Training`) and from the saved files; nothing is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, ModelCardData

from hf_ar2.cards.facts import Training
from hf_ar2.cards.papers import papers_of
from hf_ar2.cards.results import model_index, results_section, short_name, wrapped
from hf_ar2.cards.training import bibliography, collection_told, listed, merge_told, training_section
from hf_ar2.cards.usage import ranker_usage, retriever_usage
from hf_ar2.models.saved import SavedRanker, SavedRetriever, read_ranker, read_retriever
from hf_ar2.settings.text import TextConfig

_UNKNOWN = "not known"


def model_card(
    training: Training,
    folder: str | Path,
    *,
    name: str | None = None,
    partner: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    query_side_of: str | None = None,
) -> str:
    """The README.md of a saved retriever or ranker.

    Args:
        training: how it came about.
        folder: the saved model; its files say how it is used.
        name: what users load it by, an id on the Hub; None: the folder.
        partner: the same of the other model of the run, where there is one.
        license: of the model, by its short name on the Hub (`"apache-2.0"`); None: the base model's, where its own
            README says it.
        data_license: of the training data, in words; None: not known.
        query_side_of: the retriever whose query encoder the folder holds by itself; it still encodes passages.

    Returns:
        YAML metadata between lines of `---`, then Markdown.

    Raises:
        ValueError: the folder holds no complete model.
    """
    saved = read_ranker(folder) if training.role == "ranker" else read_retriever(folder)
    name = name or str(folder)
    base_license = license_of(training.base)
    metadata = _metadata(training, license or base_license, name)
    if isinstance(saved, SavedRanker):
        use = ranker_usage(name, saved)
    else:
        use = retriever_usage(name, saved, query_side_of)
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {training.name}: {'query encoder' if query_side_of else training.role}",
        _introduction(training, saved, partner, query_side_of is not None),
        _belonging(training),
        "## Use",
        use,
        "## Results",
        results_section(training),
        "## How it was trained",
        *training_section(training),
        "## Licence",
        _licences(training, base_license, license, data_license),
        "## Limits",
        _limits(training, saved),
        *bibliography(training),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index_card(
    training: Training, about: Mapping[str, Any], name: str, retriever: str, *, normalised: bool
) -> str:
    """The README.md of a published index, a dataset repository with `index.faiss`, `ids.json` and `index.json`.

    Args:
        training: of the retriever.
        about: contents of `index.json`: `passages`, `dimension`, `type`, `made_from`.
        name: id of the repository.
        retriever: id, name or folder of the retriever whose passages it holds.
        normalised: whether queries are brought to unit length, as for a cosine.
    """
    metadata = DatasetCardData(
        tags=["hf-ar2", "faiss", "dense-retrieval"], pretty_name=f"{training.name}: index"
    )
    does = wrapped(
        f"A FAISS index of {about['passages']:,} passages of {collection_told(training)}, encoded by `{retriever}`: "
        f"{about['dimension']} dimensions, {about['type']}, compared by inner product. It serves queries of that "
        "encoder, and of a query encoder trained against it, and no others."
    )
    return f"""---
{metadata.to_yaml()}
---

# {training.name}: index

{does}

- `index.faiss`: read by plain FAISS
- `ids.json`: the passages' ids, in the order of the index; the passages themselves are not here
- `index.json`: what it was made from (`made_from`: `{about["made_from"]}`)

```python
import faiss, json
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer

folder = snapshot_download("{name}", repo_type="dataset")
index, ids = faiss.read_index(f"{{folder}}/index.faiss"), json.load(open(f"{{folder}}/ids.json"))
queries = SentenceTransformer("{retriever}").encode_query(["a query"], normalize_embeddings={normalised})
scores, places = index.search(queries, 10)
found = [ids[place] for place in places[0]]
```

To train a query encoder against it: `hf-ar2 tune-queries MODEL COLLECTION --index FOLDER/index.faiss`.
"""


@functools.cache
def license_of(base: str) -> str | None:
    """The licence that a base model's own README states in its metadata; None where there is none to be had.

    Args:
        base: a folder, a `package:NAME/FOLDER`, or a Hub id, whose README is fetched, or taken from the cache.
    """
    from huggingface_hub import ModelCard, hf_hub_download
    from huggingface_hub.errors import HTTPError

    from hf_ar2.cards.facts import hub_id
    from hf_ar2.models.loading import resolve_model_name

    try:
        folder = Path(resolve_model_name(base))
        if folder.is_dir():
            path = folder / "README.md"
        elif hub_id(base):
            path = Path(hf_hub_download(base, "README.md"))
        else:
            return None
        said = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError, HTTPError):  # no such package, no README, no connection
        return None
    return str(said) if isinstance(said, str) and said else None


def _metadata(training: Training, license: str | None, name: str) -> ModelCardData:
    methods = dict.fromkeys(stage.trainer for stage in training.stages)
    dense = ["sentence-transformers", "feature-extraction", "dense-retrieval"]
    ranks = training.role == "ranker"
    results = model_index(training)
    kinds = ["sentence-transformers", "cross-encoder", "reranker"] if ranks else dense
    return ModelCardData(
        license=license,
        library_name="sentence-transformers",
        pipeline_tag="text-ranking" if ranks else "sentence-similarity",
        tags=[
            *kinds,
            "hf-ar2",
            *(method for method in methods if method not in ("retriever", "ranker", "augment")),
        ],
        base_model=training.base if training.base in training.on_the_hub else None,
        datasets=[training.collection] if training.collection in training.on_the_hub else None,
        model_name=name.rsplit("/", 1)[-1] if results else None,
        eval_results=results or None,
    )


def _introduction(
    training: Training, saved: SavedRetriever | SavedRanker, partner: str | None, query_side: bool
) -> str:
    papers = papers_of(training.last.trainer, training.last.settings)
    method = f"by {listed([paper.link for paper in papers])}" if papers else "by cross-entropy over lists"
    trained = f"Trained {method} on {collection_told(training)}, with hf_ar2."
    if training.merge is not None:
        trained += (
            f" Then its weights were averaged with those it started from ({merge_told(training.merge)})."
        )
    if isinstance(saved, SavedRanker):
        other = f", such as {_linked(partner)}" if partner else ""
        return wrapped(
            "A cross-encoder: it reads a query and a passage together and gives one number, the higher the better the "
            "passage answers the query. It is for the second stage of a search: to reorder the first passages of a "
            f"retriever{other}. {trained}"
        )
    what = "The query side of a dense retriever" if query_side else "A dense retriever"
    compared = "cosine" if saved.similarity == "cosine" else "inner product"
    other = f" A ranker that reorders what it finds: {_linked(partner)}." if partner else ""
    return wrapped(
        f"{what}: it turns {'a query' if query_side else 'a query or a passage'} into a vector of {saved.dimension} "
        f"numbers, and the {compared} of two vectors says how well the passage answers the query. It is for the first "
        f"stage of a search, over an index of a whole collection. {trained}{other}"
    )


def _belonging(training: Training) -> str:
    """What a query encoder belongs to, where the passages stayed as they were."""
    index = training.last.index
    if index is None or training.role == "ranker":
        return ""
    encoder = short_name(str(index["retriever"]))
    return wrapped(
        f"**It belongs to the passages of one encoder**, that of `{encoder}`, which did not change; with passages that "
        "another model encoded its queries find nothing of use. It was trained against this index: "
        f"{index['type']}, {index['passages']:,} passages of {index['dimension']} dimensions, fingerprint "
        f"`{index['fingerprint']}`."
    )


def _licences(
    training: Training, base_license: str | None, license: str | None, data_license: str | None
) -> str:
    given = f"- this model: {license}, as its publisher says\n" if license else ""
    stated = f"{base_license}, as its own card says" if base_license else _UNKNOWN
    return (
        f"{given}- base model, `{short_name(training.base)}`: {stated}\n"
        f"- data, `{short_name(training.collection)}`: {data_license or _UNKNOWN}"
    )


def _limits(training: Training, saved: SavedRetriever | SavedRanker) -> str:
    settings, ranks = training.last.settings, training.role == "ranker"
    lengths = {
        "queries": settings.get("max_query_length"),
        "passages": None if ranks else settings.get("max_passage_length"),
        "query and passage together": settings.get("max_pair_length") if ranks else None,
    }
    separator = settings.get("title_separator", TextConfig.title_separator)
    cut = listed([f"{what} at {limit}" for what, limit in lengths.items() if limit])
    own = f" (the model's own limit is {saved.max_length})" if saved.max_length else ""
    collection = f"one collection, `{short_name(training.collection)}`"
    lines = [
        f"Trained on {collection}. {training.other_texts} How it does in other languages than the collection's was "
        "not measured."
        if training.other_texts
        else f"Trained and measured on {collection}. How it does on other texts, or in other languages than the "
        "collection's, was not measured.",
        f"In training, texts were cut, in tokens: {cut}{own}." if cut else "",
        f"Titles were put before their passages, with {separator!r} between.",
    ]
    if ranks and settings.get("ranker_loss") == "pointwise":
        lines.append(
            "Its logits are log-odds of relevance only as far as all relevant passages were labelled."
        )
    elif ranks:
        lines.append(
            "Its logits order the passages of one query. They are no probabilities, nor comparable between queries."
        )
    else:
        lines.append("Its scores order the passages for one query. They are no probabilities.")
    lines += [
        "Passages that nobody judged counted as wrong, in training and in the results; some of them are not.",
        "It has the biases of its base model and of the texts. They were not examined.",
    ]
    return "\n".join(wrapped(f"- {line}", "  ") for line in lines if line)


def _linked(name: str | None) -> str:
    return (
        f"[{name}](https://huggingface.co/{name})"
        if name and "/" in name and not Path(name).exists()
        else f"`{name}`"
    )
