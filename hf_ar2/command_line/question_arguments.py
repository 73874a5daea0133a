"""The arguments about questions: those a model writes, and those that people judge; standard library alone."""

from __future__ import annotations

from argparse import Namespace

from hf_ar2.command_line.arguments import PROGRAM, command
from hf_ar2.command_line.parser import Parser, positive

# Option -> its default, of those that mean something with --generate-queries alone.
GENERATION = {
    "generate_model": None,
    "generate_prompt": None,
    "queries_per_passage": 1,
    "passages_limit": 5_000,
    "generate_seed": 42,
    "filter_model": None,
    "filter_depth": 10,
}


def add_generation(parser: Parser) -> None:
    """Add the options with which `collection` has a model write questions."""
    add = parser.add_argument_group("questions written by a model").add_argument
    writes = "a seq2seq or chat model (folder or Hub id), or an endpoint's URL"
    add("--generate-queries", metavar="MODEL", help=f"write questions per passage with {writes}")
    add("--generate-model", metavar="NAME", help="the endpoint's model; its key: OPENAI_API_KEY")
    add("--generate-prompt", metavar="TEXT", help="what is asked, with {passage} in it (one for its kind)")
    add("--queries-per-passage", type=positive, metavar="N", help="more than one are sampled (1)")
    add("--passages-limit", type=positive, metavar="N", help="passages written for, drawn at random (5000)")
    add("--generate-seed", type=int, metavar="N", help="of sampling and of that draw (42)")
    kept = "keeps questions that find their passage: a retriever (all-MiniLM-L6-v2, English)"
    add("--filter-model", metavar="MODEL", help=kept)
    add("--filter-depth", type=positive, metavar="N", help="among so many results (10)")


def check_generation(parser: Parser, options: Namespace) -> None:
    """Leave with exit code 2 where the options contradict each other; fill in the defaults."""
    given = [name for name in GENERATION if getattr(options, name) is not None]
    if options.generate_queries is None:
        if given:
            parser.error(f"--{given[0].replace('_', '-')} belongs to --generate-queries MODEL: name a model")
        return
    if is_url(options.generate_queries) != (options.generate_model is not None):
        parser.error(
            "--generate-model names the model of an endpoint: give it with --generate-queries URL, and only there"
        )
    if options.generate_prompt is not None and "{passage}" not in options.generate_prompt:
        parser.error("--generate-prompt: expected {passage} in it, where the passage is put")
    for name, default in GENERATION.items():
        if getattr(options, name) is None:
            setattr(options, name, default)


def is_url(model: str) -> bool:
    """Whether a model's name is an endpoint's URL."""
    return model.startswith(("http://", "https://"))


def label_parser() -> Parser:
    """The arguments of `label`."""
    parser = command(
        "label",
        "judge what is found for real questions, to measure on them",
        "For each question of FILE (one a line) it shows the first results of the run's\n"
        "models and of the model before training, mixed, and asks which are relevant.\n"
        "The judgments are in FILE.qrels.tsv after every question; the same command goes\n"
        f"on. `{PROGRAM} evaluate RUN --questions FILE` measures on them.",
        "label runs/mine asked.txt",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("file", metavar="FILE", help="questions, one a line")
    add("-k", type=positive, default=5, metavar="N", help="results of each model (%(default)s)")
    add("--seed", type=int, default=42, metavar="N", help="of the order they are shown in (%(default)s)")
    add("--browser", action="store_true", help="ask on a page of this machine, not in the terminal")
    add("--port", type=int, default=0, metavar="N", help="of that page (a free one)")
    return parser
