"""`hf-ar2 evaluate --nanobeir` and `--mteb`: a retriever, measured by other packages' evaluators."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator

from hf_ar2.command_line.launch import is_run
from hf_ar2.command_line.open import loaded_model, quiet
from hf_ar2.evaluation.tables import display_name, format_table
from hf_ar2.files import read_json, write_json
from hf_ar2.progress import on_terminal

NANOBEIR = "sentence-transformers/NanoBEIR-en"
_METRICS = ("ndcg@10", "mrr@10", "recall@10", "map@100")


def evaluate_with_packages(arguments: argparse.Namespace) -> None:
    """Evaluate a model on NanoBEIR or mteb tasks, print the tables, and write metrics.json on request."""
    if arguments.nanobeir is None and arguments.nanobeir_dataset is not None:
        raise ValueError("--nanobeir_dataset requires --nanobeir")
    name = arguments.retriever or arguments.run
    quiet()
    retriever = loaded_model(arguments, "retriever", str(Path(name) / "retriever") if is_run(name) else name)
    found: dict[str, Mapping[str, Mapping[str, float]]] = {}
    if arguments.nanobeir is not None:
        found["nanobeir"] = nanobeir(retriever, arguments.nanobeir, arguments.nanobeir_dataset or NANOBEIR)
        table = [[of, *(values[metric] for metric in _METRICS)] for of, values in found["nanobeir"].items()]
        print(format_table(table, ["NanoBEIR", *map(display_name, _METRICS)]))
    if arguments.mteb is not None:
        found["mteb"] = mteb_tasks(retriever, arguments.mteb)
        table = [[of, *score] for of, values in found["mteb"].items() for score in values.items()]
        print(format_table(table, ["mteb", "metric", "score"]))
    if arguments.output:
        path = Path(arguments.output) / "metrics.json"
        write_json(path, read_json(path, {}) | found)
        print(f"\nIn {path.parent}: metrics.json")


def nanobeir(
    retriever: SentenceTransformer, names: Sequence[str], dataset: str
) -> dict[str, dict[str, float]]:
    """sentence-transformers' metrics of a retriever on NanoBEIR: set (of several also "mean") → metric → value.

    The model's own prompts and similarity are used. Without `names`, such as "msmarco", all sets are measured. The
    dataset is on the Hub, or a folder that `datasets.load_dataset` reads.
    """
    evaluator = NanoBEIREvaluator(
        dataset_names=list(names) or None,
        dataset_id=dataset,
        show_progress_bar=on_terminal(),
        write_csv=False,
    )
    similarity = retriever.similarity_fn_name
    values = evaluator(retriever)
    sets = {of.name: of.name for of in evaluator.evaluators}
    if len(sets) > 1:
        sets["mean"] = evaluator.name
    found: dict[str, dict[str, float]] = {}
    for shown, name in sets.items():
        prefix = f"{name}_{similarity}_"
        of_set = {key: value for key, value in values.items() if key.startswith(prefix)}
        found[shown] = {key.removeprefix(prefix): float(value) for key, value in of_set.items()}
    return found


def mteb_tasks(retriever: SentenceTransformer, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """mteb's main score of a retriever on each task, with the model's own prompts; nothing is cached."""
    try:
        import mteb
    except ImportError as error:
        raise ImportError("--mteb needs the package mteb. Install it with: pip install mteb") from error
    try:
        tasks = mteb.get_tasks(tasks=list(names))
    except KeyError as error:
        raise ValueError(f"--mteb {' '.join(names)}: {error.args[0]}") from error
    found = mteb.evaluate(retriever, tasks, cache=None, show_progress_bar=on_terminal())
    return {
        result.task_name: {task.metadata.main_score: float(result.get_score())}
        for task, result in zip(tasks, found.task_results, strict=True)
    }
