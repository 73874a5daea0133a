"""The command line `hf-ar2`. Training runs in a separate process, started by `accelerate launch`.

Nothing here imports torch, so that help and usage errors appear at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_ar2.command_line import arguments, question_arguments, sharing_arguments
from hf_ar2.command_line.arguments import PROGRAM
from hf_ar2.command_line.errors import error_text
from hf_ar2.command_line.launch import (
    MACHINES,
    ended_by_interrupts,
    find_recipe,
    launch_command,
    run_to_end,
    shipped_recipes,
)
from hf_ar2.command_line.parser import USAGE_ERROR, Parser, nearest

TRAINING = ("quickstart", "train", "tune-queries")
# The functions of the other commands, as module:function. They take the options and return the exit code.
HANDLERS = {
    "evaluate": "hf_ar2.command_line.commands:evaluate",
    "encode": "hf_ar2.command_line.commands:encode",
    "index": "hf_ar2.command_line.commands:index",
    "search": "hf_ar2.command_line.commands:search",
    "score": "hf_ar2.command_line.score:score",
    "augment": "hf_ar2.command_line.commands:augment",
    "collection": "hf_ar2.command_line.commands:collection",
    "label": "hf_ar2.command_line.label:label",
    "import": "hf_ar2.command_line.commands:import_published",
    "compare": "hf_ar2.command_line.compare:compare",
    "serve": "hf_ar2.command_line.serve:serve",
    "report": "hf_ar2.command_line.report:report",
    "settings": "hf_ar2.command_line.about:settings",
    "env": "hf_ar2.command_line.about:env",
    "push": "hf_ar2.command_line.push:push",
    "card": "hf_ar2.command_line.push:card",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `hf-ar2`.

    Returns:
        0; 1 after an error; 2 for a wrong command line; 130 when interrupted; for training, the exit code of the
        training process.
    """
    try:
        return _command(arguments)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _command(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = build_parsers()
    if not given:
        parser.print_help()
        return USAGE_ERROR
    name = given[0]
    if name.startswith("-"):
        parser.parse_known_args([name])  # --help and --version exit here
        parser.reject([name])
    if name not in commands:
        parser.error(f"there is no command {name!r}{nearest(name, commands)}")
    command = commands[name]
    if name in TRAINING:
        return train(command, name, given[1:])
    # options may come before, between and after positional arguments
    options, unknown = command.parse_known_intermixed_args(given[1:])
    if unknown:
        command.reject(unknown)
    of_package = name == "evaluate" and (options.nanobeir is not None or options.mteb is not None)
    if of_package:
        _check_package_options(command, options)
    elif name == "evaluate" and options.run is None and not (options.retriever and options.collection):
        command.error("nothing to evaluate. Name a run folder, or --retriever and --collection")
    if name == "evaluate" and options.questions and options.split not in (None, "questions"):
        command.error(
            "--split (of the collection) and --questions (a file) exclude each other: give one of them"
        )
    if (
        name == "augment"
        and not options.run
        and not (options.retriever and options.ranker and options.collection)
    ):
        command.error("no models given. Name a run folder, or --retriever, --ranker and --collection")
    if name == "score" and (options.retriever is None) == (options.lists is None):
        command.error("give either --retriever MODEL, which finds the lists, or --lists FOLDER")
    if name == "collection":
        question_arguments.check_generation(command, options)
    return _run(name, options)


def _check_package_options(command: Parser, options: argparse.Namespace) -> None:
    """Exit with code 2 where --nanobeir or --mteb is given with what it does not use, or without a model."""
    if (options.run is None) == (options.retriever is None):
        command.error("--nanobeir and --mteb evaluate one model. Name it: hf-ar2 evaluate MODEL --nanobeir")
    used = (
        "run",
        "retriever",
        "nanobeir",
        "nanobeir_dataset",
        "mteb",
        "output",
        *arguments.RETRIEVER_LOADING,
    )
    for option, value in vars(options).items():
        if value != command.get_default(option) and option not in used:
            command.error(
                f"--{option} is not used by --nanobeir and --mteb, which evaluate a retriever on their own data"
            )


def _run(name: str, options: argparse.Namespace) -> int:
    try:
        module, function = HANDLERS[name].split(":")
        with ended_by_interrupts():
            handler = getattr(importlib.import_module(module), function)  # imports torch
        return int(handler(options))
    except BrokenPipeError:  # the reader of our output has closed it, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        text, advice = error_text(error), ""
        if isinstance(error, OSError) and error.filename is not None:  # a message of the operating system
            advice = ". Check the path, its permissions and the free space"
        print(f"{PROGRAM} {name}: {text}{advice}", file=sys.stderr)
        return 1


def train(parser: Parser, name: str, arguments: Sequence[str]) -> int:
    """Run a recipe with `accelerate launch`. Returns the exit code of its process."""
    if name == "train" and not {"-h", "--help"} & set(arguments):
        if not arguments or arguments[0].startswith("-"):
            parser.error(
                f"no recipe given. It comes first: {PROGRAM} train RECIPE. Recipes: {', '.join(shipped_recipes())}"
            )
    options, overrides = parser.parse_known_args(arguments)
    if overrides and not overrides[0].startswith("--"):
        parser.error(f"{overrides[0]!r}: expected --key value")
    if options.config_file and not Path(options.config_file).is_file():
        parser.error(f"--config_file {options.config_file}: no such file. Make one with: accelerate config")
    environment = dict(os.environ)
    if name == "quickstart":
        environment.setdefault("HF_HUB_OFFLINE", "1")  # model and text come from installed packages
        overrides = ["--output_dir", options.output_dir, *overrides]
    shipped = {"quickstart": "quickstart", "tune-queries": "ltre/tune"}
    if name == "tune-queries":
        try:
            overrides = [*tuning_overrides(options), *overrides]
        except ValueError as error:
            parser.error(str(error))
    try:
        recipe = find_recipe(shipped[name] if name in shipped else options.recipe)
        machines = {option: getattr(options, option, None) for option in MACHINES}
        with ended_by_interrupts():
            command = launch_command(recipe, overrides, options.config_file, machines)  # imports torch
    except ValueError as error:
        parser.error(str(error))
    return run_to_end(command, environment)


def tuning_overrides(options: argparse.Namespace) -> list[str]:
    """The options of `tune-queries` as keys of the recipe `ltre/tune`.

    Raises:
        ValueError: options that contradict each other.
    """
    keys = {
        "output_dir": options.output_dir,
        "collection": options.collection,
        "models.published.model": options.model,
    }
    if options.index and options.factory:
        raise ValueError("--index names an existing index, --factory builds one: give one of them")
    if options.ids and not options.index:
        raise ValueError("--ids belongs to --index: it names the passages of that file")
    if options.centroids and options.factory is None and options.index is None:
        raise ValueError("--centroids needs a product-quantised index: --factory OPQ48,PQ48 for example")
    if options.index:
        keys |= {"ltre.index": options.index, "ltre.vectors": "index"}
        for row in ("before", "after"):
            keys[f"evaluation.rows.{row}.index"] = options.index
        if options.ids:
            keys["ltre.index_ids"] = options.ids
            for row in ("before", "after"):
                keys[f"evaluation.rows.{row}.index_ids"] = options.ids
    if options.factory:
        keys |= {"ltre.index_factory": options.factory, "ltre.vectors": "index"}
        keys |= {
            "evaluation.rows.before.index_factory": options.factory,
            "evaluation.rows.after.index": "ltre",
        }
    if options.centroids:
        keys |= {"ltre.train_centroids": "true", "evaluation.rows.after.index": "ltre"}
        keys.pop("evaluation.rows.after.index_ids", None)  # the index that is saved has its own
    if options.search:
        for place in ("ltre", "evaluation.rows.before", "evaluation.rows.after"):
            keys[f"{place}.search_parameters"] = options.search
    if options.split:
        keys |= {"evaluation.splits": f"[{options.split}]", "evaluation.report_split": options.split}
    if options.steps:
        keys["ltre.max_steps"] = str(options.steps)
    return [part for key, value in keys.items() for part in (f"--{key}", value)]


def build_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of `hf-ar2` itself, and one for each command."""
    collection = arguments.collection_parser()
    question_arguments.add_generation(collection)
    groups = {
        "training": {
            "quickstart": arguments.quickstart_parser(),
            "train": arguments.train_parser(),
            "tune-queries": arguments.tune_queries_parser(),
            "augment": arguments.augment_parser(),
            "score": arguments.score_parser(),
        },
        "evaluating": {
            "evaluate": arguments.evaluate_parser(),
            "label": question_arguments.label_parser(),
            "compare": sharing_arguments.compare_parser(),
            "report": sharing_arguments.report_parser(),
        },
        "searching": {
            "search": arguments.search_parser(),
            "serve": sharing_arguments.serve_parser(),
            "index": arguments.index_parser(),
            "encode": arguments.encode_parser(),
        },
        "importing and sharing": {
            "collection": collection,
            "import": arguments.import_parser(),
            "card": sharing_arguments.card_parser(),
            "push": sharing_arguments.push_parser(),
        },
        "looking things up": {"settings": arguments.settings_parser(), "env": arguments.env_parser()},
    }
    lines = []
    for group, commands in groups.items():
        lines += ["", f"{group}:", *(f"  {name:<14}{parser.does}" for name, parser in commands.items())]
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Train a retriever and a ranker together, evaluate them, and search with them.\n"
        + "\n".join(lines),
        epilog=f"{PROGRAM} COMMAND --help describes a command. Set HF_AR2_TRACEBACK=1 in the\n"
        f"environment to see the traceback of an error.\n\nexample:\n  {PROGRAM} quickstart",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser, {name: found for commands in groups.values() for name, found in commands.items()}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('hf-ar2')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
