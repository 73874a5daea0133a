"""The arguments about questions that a model writes and that people judge. Imports no torch."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from hf_ar2.command_line.options import add_setting, given_settings
from hf_ar2.command_line.parser import Parser, add, positive
from hf_ar2.settings.generation import GenerationConfig
from hf_ar2.settings.text import names_of


def add_generation(parser: Parser) -> None:
    """Add the options with which `collection` has a model write questions."""
    group = parser.add_argument_group("questions written by a model")
    writer = "a seq2seq or chat model (folder or Hub id), or an endpoint's URL"
    add(group, "--generate-queries MODEL", f"write questions for the passages with {writer}")
    metavars = {"generate_model": "NAME", "filter_model": "MODEL"}
    for name in names_of(GenerationConfig):
        shown = {"metavar": metavars[name]} if name in metavars else {}
        add_setting(group, GenerationConfig, name, f"--{name.replace('_', '-')}", **shown)


def check_generation(parser: Parser, options: Namespace) -> None:
    """Check the options, and fill in their defaults. Exits with code 2 if they contradict each other."""
    given = given_settings(options, GenerationConfig)
    if options.generate_queries is None:
        for name in given:
            parser.error(f"--{name.replace('_', '-')} requires --generate-queries MODEL")
        return
    if is_url(options.generate_queries) != (options.generate_model is not None):
        parser.error("--generate-model is required with --generate-queries URL, and only valid with it")
    if options.generate_prompt is not None and "{passage}" not in options.generate_prompt:
        parser.error("--generate-prompt: expected {passage} in it, which is replaced by the passage")
    vars(options).update(vars(GenerationConfig(**given)))


def is_url(model: str) -> bool:
    """Whether a model's name is an endpoint's URL."""
    return model.startswith(("http://", "https://"))


def label(parser: Parser) -> None:
    """Judge search results for real questions, to evaluate on them.

    For each question of FILE (one per line) it shows the first results of the run's
    models and of the model before training, mixed, and asks which are relevant.
    Judgments are saved in FILE.qrels.tsv after every question; the same command
    continues. Then: hf-ar2 evaluate RUN --questions FILE

    example:
      hf-ar2 label runs/mine asked.txt
    """
    add(parser, "RUN", "a run folder")
    add(parser, "FILE", "questions, one per line")
    add(parser, "-k N", "results per model (%(default)s)", type=positive, default=5)
    order = "seed of the order in which they are shown (%(default)s)"
    add(parser, "--seed N", order, type=partial(positive, minimum=0), default=42)
    add(parser, "--browser", "ask on a local web page, not in the terminal", action="store_true")
    add(parser, "--port N", "port of that page (any free port)", type=int, default=0)
