"""What `hf-ar2 evaluate`, `encode`, `index`, `search`, `augment` and `collection` do once the command line is read."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
from safetensors import SafetensorError
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.utils import logging as transformers_logging

from hf_ar2.collections import load_collection
from hf_ar2.collections.beir import check_writable
from hf_ar2.collections.load import TEXT_FOLDER
from hf_ar2.collections.questions import QUESTIONS, with_questions
from hf_ar2.command_line.asked import answered_text, check_judged
from hf_ar2.evaluation import paired_test, write_qrels, write_run
from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.systems import evaluated_queries, measure, out_of_reach
from hf_ar2.index import encode_rows
from hf_ar2.models import load_ranker, load_retriever
from hf_ar2.progress import on_terminal
from hf_ar2.report import display_name, format_p, format_table
from hf_ar2.run_index import RunIndex
from hf_ar2.search_system import Hit, Ranking, SearchSystem, Settings, read_run

# In a run folder, the index over passages without the headings that are queries; that of `search` is index/.
TRAINING_INDEX = "index_for_training"
Model = TypeVar("Model", SentenceTransformer, CrossEncoder)


def evaluate(arguments: argparse.Namespace) -> int:
    """Rank a split's queries, print the table, and write run files where asked to."""
    for metric in arguments.metrics or ():
        parse_metric(metric)  # a wrong name fails before anything is loaded
    if arguments.questions is not None:
        check_judged(arguments.questions, arguments.run)
        arguments.split = QUESTIONS
    with opened_system(arguments, for_training=True) as system:
        split = arguments.split or system.settings.report_split
        queries, passages = len(evaluated_queries(system.collection, split)), len(system.collection.corpus)
        note = f", {system.searched_place}" if system.run_index is not None else ""
        if system.index_name == TRAINING_INDEX:
            note += ", read as in training: without the headings that are queries"
        print(f"{system.collection.name}, {split}: {queries:,} queries, {passages:,} passages{note}")
        metrics = system.settings.metrics
        depth = min(system.settings.depth, passages)
        if arguments.metrics and (beyond := out_of_reach(metrics, depth, passages)):
            deep = max(parse_metric(metric)[1] or 0 for metric in beyond)
            raise ValueError(
                f"--metrics {' '.join(beyond)}: the retriever finds {depth} passages per query; ask for more with "
                f"--depth {min(deep, passages)}"
            )
        rankings = system.rankings(split)
        values = {
            name: measure(system.collection, split, rows, metrics) for name, (rows, _) in rankings.items()
        }
        means = {
            name: {metric: float(value.mean()) for metric, value in found.items()}
            for name, found in values.items()
        }
        table = [[name, *(found.get(metric) for metric in metrics)] for name, found in means.items()]
        print(f"\n{format_table(table, ['system', *map(display_name, metrics)])}")
        if "pipeline" in means and system.settings.pipeline_depth is not None:
            weight, reordered = system.settings.weight, system.settings.pipeline_depth
            print(f"pipeline: weight {weight:g} over the first {reordered} passages, as the run chose")
        if missing := left_out(
            {name: rows.shape[1] for name, (rows, _) in rankings.items()}, metrics, passages
        ):
            print(missing)
        if split == QUESTIONS:
            print(f"\n{answered_text(system.collection, rankings)}")
        chief = arguments.metrics[0] if arguments.metrics else system.settings.test_metric or metrics[0]
        if chief in values.get("pipeline", {}) and queries > 1:
            test = paired_test(values["pipeline"][chief], values["retriever"][chief])
            p = format_p(test.p_value, test.difference)
            print(
                f"\npipeline over retriever, {display_name(chief)}: {test.difference:+.3f}, {p} "
                f"(queries: {test.wins} better, {test.losses} worse, {test.ties} equal)"
            )
        if arguments.output:
            write_results(Path(arguments.output), system, split, rankings, means)
            print(f"\nIn {arguments.output}: run files, qrels, metrics.json")
    return 0


def left_out(depths: dict[str, int], metrics: Sequence[str], passages: int) -> str:
    """What a table of metrics lacks, and why, in a line; "" where it lacks nothing.

    Args:
        depths: system -> passages ranked per query.

    Example:
        >>> left_out({"retriever": 100, "ranker": 20}, ["mrr@10", "recall@100"], passages=5000)
        'Left out: recall@100 of the ranker, which orders 20 passages per query (--rerank_depth)'
    """
    parts = []
    for system, depth in depths.items():
        if beyond := out_of_reach(metrics, depth, passages):
            option = "--rerank_depth" if system == "ranker" else "--depth"
            parts.append(
                f"{', '.join(beyond)} of the {system}, which orders {depth} passages per query ({option})"
            )
    return f"Left out: {'; '.join(parts)}" if parts else ""


def write_results(
    folder: Path, system: SearchSystem, split: str, rankings: dict[str, Ranking], means: dict[str, Any]
) -> None:
    """Run files `SPLIT.SYSTEM.trec`, `SPLIT.qrels`, and `metrics.json` (split → system → metric)."""
    collection = system.collection
    query_ids, passage_ids = list(collection.queries["id"]), list(collection.corpus["id"])
    ids = [query_ids[row] for row in evaluated_queries(system.collection, split)]
    for name, (rows, scores) in rankings.items():
        write_run(folder / f"{split}.{name}.trec", ids, passage_ids, rows, scores, tag=name)
    if split in collection.qrels:
        write_qrels(folder / f"{split}.qrels", query_ids, passage_ids, collection.judgments(split))
    path = folder / "metrics.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | {split: means}, indent=1), encoding="utf-8")


def encode(arguments: argparse.Namespace) -> int:
    """Write the retriever's embedding of every passage, and the passages' ids in the same order."""
    out = Path(arguments.out)
    with opened_system(arguments, ranker=False) as system:
        dim, total = system.retriever.get_embedding_dimension(), len(system.collection.corpus)
        assert dim is not None
        inputs = system.retriever_inputs
        out.mkdir(parents=True, exist_ok=True)
        partial = out / "embeddings.npy.partial"
        embeddings = np.lib.format.open_memmap(
            partial, "w+", np.dtype(system.settings.index_dtype), (total, dim)
        )
        encode_rows(
            system.encoders.embedder(system.retriever, "document"),
            inputs.passage_builder,
            inputs.passage_store,
            np.arange(total),
            embeddings,
            budget=system.encoders.budget,
            device=system.encoders.device,
            description="Encoding passages",
        )
        embeddings.flush()
        write_ids(system, out)
        os.replace(partial, out / "embeddings.npy")
        print(
            f"{out / 'embeddings.npy'}: {total:,} passages × {dim}, {embeddings.dtype}; their ids: {out / 'ids.json'}"
        )
    print(f"Next: numpy.load({str(out / 'embeddings.npy')!r}, mmap_mode='r')")
    return 0


def index(arguments: argparse.Namespace) -> int:
    """Encode a collection and build its index in a folder."""
    with opened_system(arguments, ranker=False) as system:
        built = system.encoders.build_index(
            system.retriever,
            system.retriever_inputs,
            arguments.out,
            system.fingerprint,
            system.settings.index_factory,
            system.settings.index_dtype,
        )
        write_ids(system, built.folder)  # with which it is a FAISS file like anybody's
        print(built)
    if is_run(arguments.model):
        print(f'Next: hf-ar2 search {arguments.model} --index {arguments.out} "your query"')
    else:
        print(f"Next: hf-ar2 tune-queries {arguments.model} {arguments.collection} --index {arguments.out}")
        print(f"  or: hf_ar2.CorpusIndex.open({str(arguments.out)!r}).search(query_embeddings, k=10)")
    return 0


def write_ids(system: SearchSystem, folder: Path) -> None:
    """Write `ids.json`, the corpus's ids in its order, beside vectors in that order."""
    ids = json.dumps(list(system.collection.corpus["id"]), ensure_ascii=False)
    (folder / "ids.json").write_text(ids, encoding="utf-8")


def search(arguments: argparse.Namespace) -> int:
    """Answer one query, or one after the other until the input ends."""
    query = " ".join(arguments.query).strip()
    with opened_system(arguments) as system:
        total = system.searched.ntotal  # built before the first query, where it is not there yet
        print(f"{system.collection.name}: {total:,} passages, {system.searched_place}")
        if query:
            print_hits(system, query, arguments)
            return 0
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() a history and keys to edit with)
        print("Type a query; an empty line ends.")
        while query := _asked():
            print_hits(system, query, arguments)
    return 0


def _asked() -> str:
    try:
        return input("\nquery> ").strip()
    except EOFError:
        print()
        return ""


def print_hits(system: SearchSystem, query: str, arguments: argparse.Namespace) -> None:
    """Search and print what was found, as wide as the terminal."""
    hits = system.search(query, arguments.k)
    print(f"\n{hits_table(hits, shutil.get_terminal_size((100, 24)).columns)}")


def hits_table(hits: Sequence[Hit], width: int) -> str:
    """Hits for the terminal, both scores side by side, each with the beginning of its passage.

    Args:
        hits: in the order to show.
        width: of the terminal, in columns. Ids are never cut.

    Example:
        >>> print(hits_table([Hit("d7", "Colds", "Vitamin D did not prevent colds.", 2, 0.61, 4.2)], 66))
        rank   ranker  retriever         passage
        ──────────────────────────────────────────────────────────────────
           1    4.200      0.610  (2nd)  d7
                                         Colds · Vitamin D did not preven…
    """
    ranked = any(hit.ranker_score is not None for hit in hits)
    heading = f"rank{'   ranker  retriever         ' if ranked else '  retriever  '}passage"
    lines = [heading, "─" * max(width, len(heading))]
    for number, hit in enumerate(hits, 1):
        if ranked:
            place = f"({ordinal(hit.retriever_rank)})"
            ranker = "–" if hit.ranker_score is None else f"{hit.ranker_score:.3f}"
            start = f"{number:>4}{ranker:>9}{hit.retriever_score:>11.3f}  {place:<7}"
        else:
            start = f"{number:>4}{hit.retriever_score:>11.3f}  "
        first_line = next((line for line in hit.text.splitlines() if line.strip()), "")
        shown = " · ".join(" ".join(part.split()) for part in (hit.title, first_line) if part.strip())
        lines += [f"{start}{hit.passage_id}", " " * len(start) + clip(shown, max(20, width - len(start)))]
    return "\n".join(lines)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`, …, `11th`, …

    Example:
        >>> [ordinal(number) for number in (1, 2, 11, 23)]
        ['1st', '2nd', '11th', '23rd']
    """
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def clip(text: str, width: int) -> str:
    """The beginning of a text that fits into `width` columns of a terminal, with … where it was cut.

    Chinese, Japanese and Korean characters take two columns.

    Example:
        >>> clip("vitamin", 5), clip("维生素", 5), clip("cold", 5)
        ('vita…', '维生…', 'cold')
    """
    ends = np.cumsum([2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text])
    if not len(ends) or ends[-1] <= width:
        return text
    return text[: int(np.searchsorted(ends, width - 1, side="right"))] + "…"


def augment(arguments: argparse.Namespace) -> int:
    """Write training lists, and print what was kept, what was dropped, and where the labels may be wrong."""
    from hf_ar2.command_line.augment import augment_with

    with opened_system(arguments, for_training=True) as system:
        return augment_with(system, arguments)


def collection(arguments: argparse.Namespace) -> int:
    """Read a collection of any form and write it as a BEIR folder."""
    # what was skipped is in the summary below; not twice
    generate = arguments.generate_queries is not None
    no_queries = generate and arguments.queries is None and arguments.source.startswith(TEXT_FOLDER)
    if generate:
        check_writable(Path(arguments.out))  # before a model writes for hours
    reader = logging.getLogger("hf_ar2.collections")
    level = reader.level
    reader.setLevel(logging.ERROR)
    try:
        read = load_collection(
            arguments.source,
            skip=arguments.skip,
            max_passages=arguments.max_passages,
            queries=arguments.queries,
            endings=arguments.endings,
            headings=False if no_queries else None,
            all_headings=arguments.all_headings,
            dev_share=0,  # what is written is what was read; whoever opens it cuts the same split
        )
    finally:
        reader.setLevel(level)
    if generate:
        from hf_ar2.command_line.generate import with_generated_queries

        read = with_generated_queries(read, arguments)
    read.save(arguments.out)
    print(read)
    print(f"\nIn {arguments.out}: corpus.jsonl, queries.jsonl, qrels/")
    name = Path(arguments.out).name
    print(f"Next: hf-ar2 train own-corpus --collection {arguments.out} --output_dir runs/{name}")
    return 0


@contextlib.contextmanager
def opened_system(
    arguments: argparse.Namespace, *, ranker: bool = True, for_training: bool = False
) -> Iterator[SearchSystem]:
    """Models, collection and settings as the command line names them: by a run folder, one by one, or both.

    Tokens and the index are kept in the run folder. They go into a folder that is removed at the end where
    there is none, or where another retriever or collection than the run's is used. The index that a run was
    evaluated with is searched unless another is named, or other passages than it holds.

    Args:
        arguments: of the command.
        ranker: whether the ranker is loaded.
        for_training: read passages as training does (`Collection.for_training`), to measure what a run measured. Where
            they differ from what is searched, their index is kept in a folder of its own.
    """
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    run = given.get("run") or (given["model"] if is_run(given.get("model")) else None)
    run_index = None
    settings = Settings.of_models()
    retriever_name, ranker_name = given.get("retriever") or given.get("model"), given.get("ranker")
    source = given.get("collection")
    kept = run is not None and given.get("retriever") is None and source is None
    if run is not None:
        recipe = read_run(run)
        settings = Settings.of_recipe(recipe, run)
        if given.keys() & {"retriever", "ranker"}:  # what the run chose was chosen for its own models
            settings = settings.changed({"system": "pipeline", "weight": 1.0, "pipeline_depth": None})
        retriever_name = given.get("retriever") or str(Path(run) / "retriever")
        if ranker_name is None and (Path(run) / "ranker").is_dir():
            ranker_name = str(Path(run) / "ranker")
        source = source or recipe["collection"]
        if kept and not given.keys() & {"index", "max_passage_length", "title_separator"}:
            run_index = RunIndex.of_run(run, recipe)
        if given.get("split") == QUESTIONS and "questions" not in given and recipe.get("questions"):
            given["questions"] = recipe["questions"]
    assert retriever_name is not None and source is not None
    reranks = given.get("rerank_depth") != 0  # of the command line; 0 in a recipe is about its evaluation
    with contextlib.ExitStack() as stack:
        if not kept:
            temporary = tempfile.TemporaryDirectory(prefix="hf-ar2-", ignore_cleanup_errors=True)
        work_folder = stack.enter_context(temporary) if not kept else str(run)
        quiet()
        collection, index_name = load_collection(source), "index"
        if "questions" in given:
            collection = with_questions(collection, given["questions"])
        if for_training and (read := collection.for_training()) is not collection:
            collection, index_name = read, TRAINING_INDEX
        yield SearchSystem(
            _loaded("retriever", retriever_name, load_retriever),
            _loaded("ranker", ranker_name, load_ranker) if ranker and ranker_name and reranks else None,
            collection,
            settings.changed(given),
            work_folder,
            given.get("index"),
            run_index,
            index_name=index_name,
        )


def quiet() -> None:
    """Leave the terminal to our own progress bars and to results; warnings stay."""
    transformers_logging.disable_progress_bar()
    if not on_terminal():
        datasets.disable_progress_bars()
    logging.getLogger("httpx").setLevel(logging.WARNING)


def is_run(name: str | None) -> bool:
    """Whether a model's name is a run folder: then its retriever is meant, with the lengths of its recipe."""
    return name is not None and (Path(name) / "recipe.yaml").is_file()


def _loaded(role: str, name: str, load: Callable[[str], Model]) -> Model:
    try:
        return load(name)
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{role} {name!r} cannot be loaded: {reason} Name a folder with a model, a Hub id, or "
            "package:NAME/FOLDER"
        ) from error
