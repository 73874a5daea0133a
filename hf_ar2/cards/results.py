"""The results on a card: tables with significance, and the same numbers in the format of the Hub."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    constants,
    eval_result_entries_to_yaml,
    hf_hub_download,
)
from huggingface_hub.errors import HTTPError

from hf_ar2.cards.facts import Training
from hf_ar2.collections.joined import texts_of_sources
from hf_ar2.evaluation.tables import display_name, format_p, format_table
from hf_ar2.terminal import counted


def model_index(training: Training) -> list[EvalResult]:
    """The results of the published row for the metadata `model-index`; the tested metric comes first."""
    if not training.metrics:
        return []
    over = f", the first {training.rerank_depth} passages reordered" if training.role == "ranker" else ""
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information retrieval",
            **_dataset_of(training, split),
            metric_type=metric.replace("@", "_at_"),
            metric_name=f"{display_name(metric)}{over}",
            metric_value=round(float(value), 4),
        )
        for split, systems in training.metrics[training.served].items()
        for metric, value in sorted(
            systems.get(training.role, {}).items(), key=lambda found: found[0] != training.test_metric
        )
    ]


def _dataset_of(training: Training, split: str) -> dict[str, Any]:
    """The dataset of a split's results; with several collections, the one that the split belongs to."""
    source = training.collection
    for member, own in texts_of_sources(source).items():
        if member and split.endswith(f"-{member}"):
            source, split = own, split.removesuffix(f"-{member}")
    name = short_name(source)
    # A name that is not on the Hub must not look like an id on it.
    id = name if source in training.on_the_hub else name.rsplit("/", 1)[-1]
    return {
        "dataset_type": re.sub(r"[^A-Za-z0-9._/-]+", "-", id),
        "dataset_name": name,
        "dataset_split": split,
    }


def eval_result_files(card: str, repository: str, token: str | None = None) -> dict[str, bytes]:
    """The files in `.eval_results/` (path → YAML) for a card: the first metric of each split of a benchmark on the Hub.

    The Hub accepts such results only for a dataset that is registered as a benchmark, under an id of its `eval.yaml`
    (https://huggingface.co/docs/hub/eval-results). Other results are only in the card's `model-index`. `repository` is
    the id of the model's repository, the source of the results.
    """
    data = ModelCard(card).data
    files = {}
    for dataset in data.get("datasets") or []:
        entries = []
        results = [found for found in data.get("eval_results") or [] if found.dataset_type == dataset]
        for split, task in _benchmark_tasks(dataset, token).items():
            result = next((found for found in results if found.dataset_split == split), None)
            if result is not None:
                entry = EvalResultEntry(
                    dataset_id=dataset,
                    task_id=task,
                    value=result.metric_value,
                    source_url=f"https://huggingface.co/{repository}",
                    source_name="Model card",
                    notes=f"{result.metric_name}, split {split}",
                )
                entries.append(entry)
        if entries:
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            files[f"{constants.EVAL_RESULTS_FOLDER}/{dataset.split('/')[-1]}.yaml"] = text.encode()
    return files


def _benchmark_tasks(dataset: str, token: str | None) -> dict[str, str]:
    """Split → id of its only task in a dataset's `eval.yaml`; empty for a dataset that is not a benchmark."""
    try:
        path = Path(hf_hub_download(dataset, "eval.yaml", repo_type="dataset", token=token))
        tasks = yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"]
        splits = [task.get("split") for task in tasks]
        return {task["split"]: str(task["id"]) for task in tasks if splits.count(task.get("split", "")) == 1}
    except (OSError, ValueError, HTTPError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return {}  # no eval.yaml, or an unknown format


def result_tables(training: Training) -> list[str]:
    """The results before and after training as Markdown tables, one for each split; none without results."""
    splits = dict.fromkeys(split for systems in training.metrics.values() for split in systems)
    return [table for split in splits if (table := _table_of_split(training, split))]


def _table_of_split(training: Training, split: str) -> str:
    """A table of each row's retriever, or of each row's ranker and pipeline with the retriever they rerank.

    If the run serves a hybrid, its retriever's card shows every row with BM25 too.
    """
    ranker = training.role == "ranker"
    hybrid = not ranker and training.chosen.get("system") == "hybrid"
    systems = ("retriever", "ranker", "pipeline") if ranker else ("retriever", "hybrid")[: 1 + hybrid]
    measured = {row: found[split] for row, found in training.metrics.items() if split in found}
    if ranker:
        measured = {row: found for row, found in measured.items() if "pipeline" in found}
    if not measured:
        return ""
    shown = [metric for found in measured.values() for metric in next(iter(found.values()))]
    metrics = list(dict.fromkeys(shown))
    rows: list[list[Any]] = []
    before, sizes = "", set[int]()
    for row, found in measured.items():
        for system in filter(found.__contains__, systems):
            # A ranker alone and the retriever that it reranks are not tested.
            test = None
            if not ranker or system == "pipeline":
                test = training.tests.get(row, {}).get(split, {}).get(system)
            outcome = ""
            if test:
                sizes.add(test["wins"] + test["losses"] + test["ties"])
                against = "retriever" if ranker else before if system == "retriever" else "without"
                outcome = f"{against}: {test['difference']:+.3f}, {format_p(test['p_value'])}"
            name = f"{row}: {system}" if ranker else f"{row} with BM25" if system == "hybrid" else row
            values = [found[system].get(metric) for metric in metrics]
            rows.append([name, *values, *([outcome] if training.tests else [])])
        before = row
    columns = ["", *map(display_name, metrics)]
    if training.tests:
        columns.append(f"{display_name(training.test_metric)} against")
    queries = f", {counted(sizes.pop(), 'queries')}" if len(sizes) == 1 else ""
    title = f"`{short_name(training.collection)}`, {split}{queries}:"
    return f"{title}\n\n{format_table(rows, columns, markdown=True)}"


def short_name(name: str) -> str:
    """A name without local folders, which may contain a user name: the last part of a path, of any system.

    Example:
        >>> short_name("/home/me/data/scifact"), short_name("text:~/docs"), short_name("BeIR/scifact")
        ('scifact', 'text:docs', 'BeIR/scifact')
        >>> short_name("{nq: /home/me/nq, fact: BeIR/scifact}")  # several collections
        'nq+fact'
    """
    if len(several := texts_of_sources(name)) > 1:
        return "+".join(several)
    kind, path = re.fullmatch(r"(\w{2,}:)?(.*)", name, re.DOTALL).groups("")  # type: ignore[union-attr]
    local = PureWindowsPath(path).anchor or path.startswith((".", "~"))  # it splits at / and at \
    return kind + (PureWindowsPath(path).name if local else path)
