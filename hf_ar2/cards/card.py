"""The cards of a published retriever, ranker or index, rendered from model_card.md and index_card.md.

Everything on a card comes from the run (`Training`) and from the saved files; nothing is computed. Only licence and
languages are copied from the base model's card.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HTTPError

from hf_ar2.cards.facts import Stage, Training, hub_id
from hf_ar2.cards.mark import marked
from hf_ar2.cards.papers import TRAINERS, Paper, papers_of
from hf_ar2.cards.results import model_index, result_tables, short_name
from hf_ar2.collections.joined import texts_of_sources
from hf_ar2.files import read_json
from hf_ar2.models.loading import resolve_model_name
from hf_ar2.models.saved import read_ranker, read_retriever
from hf_ar2.progress import format_duration
from hf_ar2.settings.effects import affects_result
from hf_ar2.terminal import counted

# Prefix of the source of a query that a model wrote.
GENERATED = "generated:"


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
    """The README.md of a saved retriever or ranker: YAML metadata, Markdown, and the mark of `hf_ar2.cards.mark`.

    Args:
        training: how the model was trained.
        folder: the saved model; its files say how it is used. ValueError if it is not complete.
        name: what users load it by, an id on the Hub; None: the folder, by its last part.
        partner: the id of the run's other model, or its folder if `name` is None; None: there is none.
        license: of the model, by its short name on the Hub (`"apache-2.0"`); None: the base model's, if known.
        data_license: of the training data, in words; None: not known.
        query_side_of: the retriever that still encodes the passages, if the folder has only its query encoder.
    """
    ranker = training.role == "ranker"
    saved = read_ranker(folder) if ranker else read_retriever(folder)
    partner = _linked(partner, published=name is not None)
    name = name or Path(folder).absolute().name
    base = base_metadata(training.base)
    stages = list(reversed(training.stages))  # the method's papers before those of its warm-ups
    papers = dict.fromkeys(paper for stage in stages for paper in papers_of(stage.trainer, stage.settings))
    card = ModelCard.from_template(
        _metadata(training, base, license, name, list(papers)),
        template_path=str(Path(__file__).with_name("model_card.md")),
        training=training,
        ranker=ranker,
        saved=saved,
        name=name,
        partner=partner,
        query_side_of=short_name(query_side_of) if query_side_of else None,
        collection=_collection(training),
        index=None if ranker else training.last.index,
        tables=result_tables(training),
        corpus=next((stage for stage in stages if stage.passages is not None), None),
        generated=_generated(training.environment.get("query_sources") or {}),
        settings=_settings(training.stages),
        machine=training.environment,
        license=license,
        base_license=base.get("license"),
        data_license=data_license,
        cut=_length_limits(training),
        bibtex="\n\n".join(paper.bibtex for paper in papers),
        trainers=TRAINERS,
        links=lambda stage: _listed([paper.link for paper in papers_of(stage.trainer, stage.settings)]),
        share=lambda stage: (
            f"share {stage.settings.get('share')} of `{short_name(str(stage.settings.get('base')))}`"
        ),
        short=short_name,
        listed=_listed,
        listed_names=lambda names: names if isinstance(names, str) else _listed(names),
        counted=counted,
        duration=format_duration,
        repr=repr,
    )
    return marked(str(card))


def index_card(
    training: Training, about: Mapping[str, Any], name: str, retriever: str, *, normalised: bool
) -> str:
    """The README.md of a published index, a dataset repository with `index.faiss`, `ids.json` and `index.json`.

    Args:
        about: contents of `index.json`: `passages`, `dimension`, `type`, `made_from`.
        name, retriever: ids of the repository and of the retriever that encoded the passages.
        normalised: whether queries are scaled to unit length, as for a cosine.
    """
    card = DatasetCard.from_template(
        DatasetCardData(tags=["hf-ar2", "faiss", "dense-retrieval"], pretty_name=f"{training.name}: index"),
        template_path=str(Path(__file__).with_name("index_card.md")),
        training=training,
        about=about,
        name=name,
        retriever=retriever,
        normalised=normalised,
        counted=counted,
        collection=_collection(training),
    )
    return marked(str(card))


def published_card(
    what: str,
    ids: Mapping[str, str],
    trainings: Mapping[str, Training],
    folders: Mapping[str, Path],
    retriever: Path,
    licences: Mapping[str, str | None],
) -> str:
    """The README.md of a `"retriever"`, a `"ranker"` or an `"index"` (`what`) that is published together with others.

    Args:
        ids, trainings, folders: by the same words: of the repositories, and of what is published.
        retriever: folder of the retriever that encoded the passages of the index.
        licences: `license` and `data_license` of `model_card`.
    """
    if what == "index":
        about = read_json(folders["index"] / "index.json", {})
        name = ids.get("retriever", f"{ids['index'].removesuffix('-index')}-retriever")
        unit = read_retriever(retriever).similarity == "cosine"
        return index_card(trainings["retriever"], about, ids["index"], name, normalised=unit)
    partner = ids.get("ranker" if what == "retriever" else "retriever")
    return model_card(trainings[what], folders[what], name=ids[what], partner=partner, **licences)


@functools.cache
def base_metadata(base: str) -> dict[str, Any]:
    """The licence and the languages that the README of a base model (a folder, package or Hub id) states."""
    try:
        folder = Path(resolve_model_name(base))
        if folder.is_dir():
            path = folder / "README.md"
        elif hub_id(base):
            path = Path(hf_hub_download(base, "README.md"))
        else:
            return {}
        stated = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, HTTPError):  # no such package, no README, no connection
        return {}
    kinds = {"license": str, "language": str | list}
    return {
        key: stated[key] for key, kind in kinds.items() if stated.get(key) and isinstance(stated[key], kind)
    }


def _metadata(
    training: Training, base: Mapping[str, Any], license: str | None, name: str, papers: Sequence[Paper]
) -> ModelCardData:
    ranker = training.role == "ranker"
    results = model_index(training)
    sources = texts_of_sources(training.collection).values()
    methods: dict[str, None] = {}
    for stage in training.stages:
        if stage.trainer not in ("retriever", "ranker", "augment"):
            methods[stage.trainer] = None
        methods |= {f"arxiv:{paper.arxiv}": None for paper in papers_of(stage.trainer, stage.settings)}
    kinds = ["cross-encoder", "reranker"] if ranker else ["feature-extraction", "dense-retrieval"]
    return ModelCardData(
        license=license or base.get("license"),
        language=base.get("language"),
        library_name="sentence-transformers",
        pipeline_tag="text-ranking" if ranker else "sentence-similarity",
        tags=["sentence-transformers", *kinds, "hf-ar2", *methods],
        base_model=training.base if training.base in training.on_the_hub else None,
        datasets=[source for source in sources if source in training.on_the_hub] or None,
        model_name=name.rsplit("/", 1)[-1] if results else None,
        eval_results=results or None,
    )


def _collection(training: Training) -> str:
    """The training data in words, with links to what is on the Hub."""
    kind, _, packages = training.collection.partition(":")
    if kind == "python-packages":
        return (
            f"the code of {_listed(packages.split(','))} (functions as passages, the first sentences of their "
            "docstrings as queries)"
        )
    names = []
    for name in texts_of_sources(training.collection).values():
        link = f"[{name}](https://huggingface.co/datasets/{name})"
        names.append(link if name in training.on_the_hub else f"`{short_name(name)}`")
    return _listed(names)


def _generated(sources: Mapping[str, Mapping[str, int]]) -> list[str]:
    """How many queries of each split a model wrote, and which model; `sources` as `query_sources` counts them."""
    return [
        f"{count:,} of the {sum(counts.values()):,} of {split} by `{source.removeprefix(GENERATED)}`"
        for split, counts in sources.items()
        for source, count in counts.items()
        if source.startswith(GENERATED)
    ]


def _settings(stages: Sequence[Stage]) -> str:
    """The settings of stages as YAML: under `all` those that all stages share, then the others of each stage."""
    blocks = {
        stage.name: {
            key: _without_folders(value)
            for key, value in stage.settings.items()
            if value is not None and affects_result(key)
        }
        for stage in stages
    }
    if len(blocks) > 1:
        first, *others = blocks.values()
        shared = {
            key: value
            for key, value in first.items()
            if all(key in other and other[key] == value for other in others)
        }
        if shared:
            alone = {
                name: {key: block[key] for key in block if key not in shared}
                for name, block in blocks.items()
            }
            blocks = {"all": shared, **alone}
    text = ""
    for name, block in blocks.items():
        lines = yaml.safe_dump(block, default_flow_style=True, sort_keys=True, width=60, allow_unicode=True)
        text += f"{name}:\n{textwrap.indent(lines, '  ')}"
    return text


def _without_folders(value: Any) -> Any:
    if isinstance(value, str):
        return short_name(value)
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    return [_without_folders(part) for part in value] if isinstance(value, list | tuple) else value


def _length_limits(training: Training) -> list[str]:
    settings = training.last.settings
    names = {"max_query_length": "queries", "max_passage_length": "passages"}
    if training.role == "ranker":
        names = {"max_query_length": "queries", "max_pair_length": "query and passage together"}
    return [f"{what} at {settings[key]}" for key, what in names.items() if settings.get(key)]


def _linked(name: str | None, published: bool) -> str:
    if name and published:
        return f"[{name}](https://huggingface.co/{name})"
    return f"`{Path(name).name}`" if name else ""


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
