"""The commands `evaluate`, `encode`, `index`, `search`, `augment`, `collection` and `import`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.collections import Collection, load_collection
from hf_ar2.collections.questions import QUESTIONS, qrels_of, read_judged, read_questions
from hf_ar2.collections.readers.load import TEXT_FOLDER
from hf_ar2.collections.write import LISTS, check_writable
from hf_ar2.command_line.launch import is_run
from hf_ar2.command_line.open import opened_system
from hf_ar2.command_line.show import left_out, print_hits, print_searched
from hf_ar2.encoding.batches import encode_rows
from hf_ar2.evaluation import paired_test, write_qrels, write_run
from hf_ar2.evaluation.metrics import parse_metric
from hf_ar2.evaluation.runs import check_run_ids
from hf_ar2.evaluation.success import answered_table, questions_answered
from hf_ar2.evaluation.systems import check_relevant, evaluated_queries, measure, out_of_reach
from hf_ar2.evaluation.tables import display_name, format_p, format_table
from hf_ar2.files import read_json, write_json
from hf_ar2.index.shards import new_array
from hf_ar2.search.run_index import TRAINING_INDEX
from hf_ar2.search.system import Ranking, SearchSystem
from hf_ar2.terminal import visible, visible_lines


def evaluate(arguments: argparse.Namespace) -> None:
    """Rank a split's queries, print the table, and write run files on request."""
    if arguments.nanobeir is not None or arguments.mteb is not None:
        from hf_ar2.command_line.packages import evaluate_with_packages

        evaluate_with_packages(arguments)
        return
    for metric in arguments.metrics or ():
        parse_metric(metric)  # a wrong name fails before models are loaded
    if arguments.questions is not None:
        check_judged(arguments.questions, arguments.run)
        arguments.split = QUESTIONS
    # Users search passages with the headings that training hides.
    with opened_system(arguments, for_training=arguments.split != QUESTIONS) as system:
        split = arguments.split or system.settings.report_split
        check_relevant(system.collection, split, arguments.relevance_level)
        if arguments.output:
            check_run_ids(system.collection)
        query_rows = evaluated_queries(system.collection, split)
        queries, passages = len(query_rows), len(system.collection.corpus)
        note = f", {system.searched_place}" if system.run_index is not None else ""
        if system.index_name == TRAINING_INDEX:
            note += ", read as in training: without the headings that are queries"
        print(f"{visible(system.collection.name)}, {split}: {queries:,} queries, {passages:,} passages{note}")
        metrics = system.settings.metrics
        depth = min(system.settings.depth, passages)
        if arguments.metrics and (beyond := out_of_reach(metrics, depth, passages)):
            deep = max(parse_metric(metric)[1] or 0 for metric in beyond)
            raise ValueError(
                f"--metrics {' '.join(beyond)}: the retriever finds {depth} passages per query; ask for more with "
                f"--depth {min(deep, passages)}"
            )
        rankings = system.rankings(split)
        level, values, depths = arguments.relevance_level, {}, {}
        for name, (rows, _) in rankings.items():
            values[name] = measure(system.collection, split, rows, metrics, level)
            depths[name] = rows.shape[1]
        means: dict[str, Any] = {}
        for part in (split, *system.collection.by_member(split).values()):
            own = np.isin(query_rows, evaluated_queries(system.collection, part))
            means[part] = {
                name: {metric: float(value[own].mean()) for metric, value in of_system.items()}
                for name, of_system in values.items()
            }
            table = [[name, *map(found.get, metrics)] for name, found in means[part].items()]
            heading = "" if part == split else f"{part}: {own.sum():,} queries\n"
            print(f"\n{heading}{format_table(table, ['system', *map(display_name, metrics)])}")
        if "pipeline" in values and system.settings.pipeline_depth is not None:
            weight, reordered = system.settings.weight, system.settings.pipeline_depth
            print(f"pipeline: weight {weight:g} over the first {reordered} passages, as the run chose")
        if missing := left_out(depths, metrics, passages):
            print(missing)
        if split == QUESTIONS:
            print(f"\n{answered_text(system.collection, rankings, system.served)}")
        primary_metric = (arguments.metrics or [system.settings.test_metric or metrics[0]])[0]
        if primary_metric in values.get("pipeline", {}) and queries > 1:
            test = paired_test(values["pipeline"][primary_metric], values["retriever"][primary_metric])
            p = format_p(test.p_value, test.difference)
            print(
                f"\npipeline over retriever, {display_name(primary_metric)}: {test.difference:+.3f}, {p} "
                f"(queries: {test.wins} better, {test.losses} worse, {test.ties} equal)"
            )
        if arguments.output:
            write_results(Path(arguments.output), system, split, rankings, means)
            print(f"\nIn {arguments.output}: run files, qrels, metrics.json")


def check_judged(file: str, run: str | None) -> None:
    """Check that a file of questions has judgments; ValueError if not."""
    questions, judged = read_questions(file), read_judged(file)
    if not any(judged.get(id) for id in questions):
        raise ValueError(
            f"{file}: none of its {len(questions):,} questions is judged in {qrels_of(file)}. Judge them "
            f"with: hf-ar2 label {run or 'RUN'} {file}"
        )


def answered_text(collection: Collection, rankings: Mapping[str, Ranking], served: str) -> str:
    """A table of the number of questions that each system answers, with the one that is served marked."""
    rows = [
        ([f"{name} (served)" if name == served else name], questions_answered(collection, QUESTIONS, found))
        for name, (found, _) in rankings.items()
    ]
    return answered_table(rows, ["system"], len(collection.judgments(QUESTIONS)))


def write_results(
    folder: Path, system: SearchSystem, split: str, rankings: dict[str, Ranking], means: dict[str, Any]
) -> None:
    """Run files `SPLIT.SYSTEM.trec`, `SPLIT.qrels`, and `metrics.json` with `means` (split → system → metric)."""
    collection = system.collection
    query_ids, passage_ids = collection.queries["id"][:], collection.corpus["id"][:]
    ids = [query_ids[row] for row in evaluated_queries(system.collection, split)]
    for name, (rows, scores) in rankings.items():
        write_run(folder / f"{split}.{name}.trec", ids, passage_ids, rows, scores, tag=name)
    if split in collection.qrels:
        write_qrels(folder / f"{split}.qrels", query_ids, passage_ids, collection.judgments(split))
    path = folder / "metrics.json"
    write_json(path, read_json(path, {}) | means)


def encode(arguments: argparse.Namespace) -> None:
    """Write the retriever's embedding of every passage, and the passages' ids in the same order."""
    out = Path(arguments.out)
    with opened_system(arguments, ranker=False) as system:
        dim, total = system.retriever.get_embedding_dimension(), len(system.collection.corpus)
        assert dim is not None
        inputs, encoders = system.retriever_inputs, system.encoders
        out.mkdir(parents=True, exist_ok=True)
        file, ids, partial = out / "embeddings.npy", out / "ids.json", out / "embeddings.npy.partial"
        new_array(partial, system.settings.index_dtype, (total, dim))
        embeddings = np.load(partial, mmap_mode="r+")
        encode_rows(
            encoders.embedder(system.retriever, "document"),
            inputs.passage_builder,
            inputs.passage_store,
            np.arange(total),
            embeddings,
            budget=encoders.budget,
            device=encoders.device,
            description="Encoding passages",
        )
        embeddings.flush()
        write_json(ids, system.collection.corpus["id"][:])
        os.replace(partial, file)
        print(f"{file}: {total:,} passages × {dim}, {embeddings.dtype}; their ids: {ids}")
    print(f"Next: numpy.load({str(file)!r}, mmap_mode='r')")


def index(arguments: argparse.Namespace) -> None:
    """Encode a collection and build its index in a folder."""
    with opened_system(arguments, ranker=False) as system:
        settings = system.settings
        kind = system.fingerprint, settings.index_factory, settings.index_dtype
        models = system.retriever, system.retriever_inputs
        built = system.encoders.build_index(*models, arguments.out, *kind)
        built.save_ids(system.collection.corpus["id"])  # so that other tools can use the FAISS file
        print(built)
    if is_run(arguments.model):
        print(f'Next: hf-ar2 search {arguments.model} --index {arguments.out} "your query"')
    else:
        print(f"Next: hf-ar2 tune-queries {arguments.model} {arguments.collection} --index {arguments.out}")
        print(f"  or: hf_ar2.CorpusIndex.open({str(arguments.out)!r}).search(query_embeddings, k=10)")


def search(arguments: argparse.Namespace) -> None:
    """Answer one query, or ask for queries until the input ends."""
    query = " ".join(arguments.query).strip()
    with opened_system(arguments) as system:
        print_searched(system)
        if query:
            print_hits(system, query, arguments)
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() a history and editing keys)
        print("Type a query; an empty line quits.")
        try:
            while query := input("\nquery> ").strip():
                print_hits(system, query, arguments)
        except EOFError:
            print()


_READER_OPTIONS = ("skip", "max_passages", "queries", "endings", "all_headings")


def collection(arguments: argparse.Namespace) -> None:
    """Read a collection of any format and write it as a BEIR folder."""
    generate = arguments.generate_queries is not None
    no_queries = generate and arguments.queries is None and arguments.source.startswith(TEXT_FOLDER)
    if generate:
        check_writable(Path(arguments.out))  # not only after hours of generation
    # The summary below has the skipped rows already.
    reader = logging.getLogger("hf_ar2.collections")
    level = reader.level
    reader.setLevel(logging.ERROR)
    named = {name: getattr(arguments, name) for name in _READER_OPTIONS}
    try:
        # Without a dev_share, the split is made when the folder is loaded.
        read = load_collection(arguments.source, headings=False if no_queries else None, dev_share=0, **named)
    finally:
        reader.setLevel(level)
    if generate:
        from hf_ar2.command_line.generate import with_generated_queries

        read = with_generated_queries(read, arguments)
    read.save(arguments.out)
    print(visible_lines(str(read)))
    out, lists = arguments.out, "" if read.lists is None else f", {LISTS}"
    print(f"\nIn {out}: corpus.jsonl, queries.jsonl, qrels/{lists}")
    print(f"Next: hf-ar2 train own-corpus --collection {out} --output_dir runs/{Path(out).name}")


def import_published(arguments: argparse.Namespace) -> None:
    """Convert a published checkpoint to a standard one, and report on every parameter."""
    from hf_ar2.importing.checkpoints import import_checkpoint

    result = import_checkpoint(
        arguments.format, arguments.file, arguments.out, base=arguments.base, max_length=arguments.max_length
    )
    print(result)
    role = "--ranker" if result.kind == "ranker" else "--retriever"
    print(f"Next: hf-ar2 evaluate {role} {arguments.out} --collection ...")
