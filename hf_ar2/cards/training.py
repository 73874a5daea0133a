"""What a card says of the training: data, stages, settings, machine, papers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hf_ar2.cards.facts import Stage, Training
from hf_ar2.cards.papers import Paper, papers_of
from hf_ar2.cards.query_sources import generated_told
from hf_ar2.cards.results import short_name, wrapped
from hf_ar2.settings.effects import affects_result

# What a stage does, for the table of stages.
_DOES = {
    "retriever": "a retriever, contrastively",
    "ranker": "a ranker, by cross-entropy over lists",
    "ar2": "a retriever and a ranker against each other",
    "rocketqa-v2": "a retriever and a ranker together",
    "ltre": "a query encoder against the whole corpus",
    "augment": "training lists, denoised by the ranker",
    "merge": "the retriever's weights averaged with its starting weights",
}


def training_section(training: Training) -> list[str]:
    """Paragraphs: the data, a table of the stages, all settings, hardware, time and versions."""
    corpus = next((stage for stage in reversed(training.stages) if stage.passages is not None), None)
    sizes = f": {corpus.passages:,} passages, {corpus.queries:,} training queries" if corpus else ""
    generated = generated_told(training.environment.get("query_sources") or {})
    stages = [f"{number}. {_stage_told(stage)}" for number, stage in enumerate(training.stages, 1)]
    return [
        wrapped(f"Data: {collection_told(training)}{sizes}. {generated}".rstrip()),
        "\n".join(wrapped(line, "   ") for line in stages),
        wrapped(
            "The settings that bear on the result; what is not named has its default in the version of hf-ar2 that is "
            "named below. Lengths are in tokens."
        ),
        f"```yaml\n{settings_text(training.stages)}```",
        _environment(training),
    ]


def _stage_told(stage: Stage) -> str:
    links = listed([paper.link for paper in papers_of(stage.trainer, stage.settings)])
    begun = "; ".join(f"{role} from {short_name(source)}" for role, source in stage.sources.items())
    steps = [f"{stage.steps:,} steps"] if stage.steps is not None else []
    time = [_duration(stage.seconds)] if stage.seconds is not None else []
    does = f"{_DOES.get(stage.trainer, stage.trainer)}{f' ({links})' if links else ''}"
    merged = [merge_told(stage)] if stage.trainer == "merge" else []
    return f"**{stage.name}**: {'; '.join([does, *merged, begun, *steps, *time])}"


def merge_told(stage: Stage) -> str:
    """How much of which weights a merge took."""
    return f"share {stage.settings.get('share')} of `{short_name(str(stage.settings.get('base')))}`"


def settings_text(stages: Sequence[Stage]) -> str:
    """The settings of stages as YAML: once what all share, then what each has to itself."""
    told = {
        stage.name: {
            key: _without_folders(value)
            for key, value in stage.settings.items()
            if value is not None and affects_result(key)
        }
        for stage in stages
    }
    first = next(iter(told.values()))
    shared = {
        key: value
        for key, value in first.items()
        if len(told) > 1 and all(key in settings and settings[key] == value for settings in told.values())
    }
    blocks = {"all": shared} if shared else {}
    for name, settings in told.items():
        blocks[name] = {key: value for key, value in settings.items() if key not in shared}
    return "".join(f"{name}:\n{_flowing(body)}" for name, body in blocks.items())


def _flowing(settings: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(
        dict(settings), default_flow_style=True, sort_keys=True, width=60, allow_unicode=True
    )
    return textwrap.indent(text, "  ")


def _environment(training: Training) -> str:
    known = training.environment
    if not known:
        return ""
    processes = known.get("processes") or 1
    hardware = (
        known.get("gpu") or f"{known['processor']}, {known['cores']} cores, threads used: {known['threads']}"
    )
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    time = (
        ""
        if training.seconds is None
        else f"- time: {_duration(training.seconds)} in all; energy was not measured\n"
    )
    return f"- hardware: {f'{processes} × ' if processes > 1 else ''}{hardware}\n{time}" + wrapped(
        f"- versions: Python {known['python']}, {packages}", "  "
    )


def bibliography(training: Training) -> list[str]:
    """Heading and BibTeX of the papers that the stages follow; empty where they follow none."""
    papers: dict[Paper, None] = {}
    for stage in reversed(training.stages):  # the method before its warm-ups
        papers |= dict.fromkeys(papers_of(stage.trainer, stage.settings))
    if not papers:
        return []
    entries = "\n\n".join(paper.bibtex for paper in papers)
    return ["## Papers", f"```bibtex\n{entries}\n```"]


def collection_told(training: Training) -> str:
    """What was trained on, in words: a link where it is on the Hub."""
    name = training.collection
    if name in training.on_the_hub:
        return f"[{name}](https://huggingface.co/datasets/{name})"
    kind, _, rest = name.partition(":")
    if kind == "python-packages":
        packages = listed(rest.split(","))
        return f"the code of {packages} (functions as passages, their docstrings' first sentences as queries)"
    return f"`{short_name(name)}`"


def listed(parts: Sequence[str]) -> str:
    """Parts as a sentence has them."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _without_folders(value: Any) -> Any:
    if isinstance(value, str):
        return short_name(value)
    return [_without_folders(part) for part in value] if isinstance(value, list | tuple) else value


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
