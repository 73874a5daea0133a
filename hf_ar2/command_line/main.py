"""The command line `hf-ar2`. Training runs in a separate process, started by `accelerate launch`.

Nothing here imports torch, so that help and usage errors appear quickly.
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
from hf_ar2.command_line.errors import error_text
from hf_ar2.command_line.launch import (
    MACHINES,
    check_run_folder,
    ended_by_interrupts,
    find_recipe,
    is_run,
    launch_command,
    run_to_end,
    shipped_recipes,
)
from hf_ar2.command_line.parser import PROGRAM, USAGE_ERROR, Parser, command, nearest
from hf_ar2.lock import FolderInUse

# The commands in the groups of `hf-ar2 --help`, by the functions that add their arguments.
GROUPS = {
    "training": (
        arguments.quickstart,
        arguments.train,
        arguments.tune_queries,
        arguments.augment,
        arguments.score,
    ),
    "evaluating": (
        arguments.evaluate,
        question_arguments.label,
        sharing_arguments.compare,
        sharing_arguments.report,
    ),
    "searching": (arguments.search, sharing_arguments.serve, arguments.index, arguments.encode),
    "importing and sharing": (
        arguments.collection,
        arguments.import_,
        sharing_arguments.card,
        sharing_arguments.push,
    ),
    "looking things up": (arguments.settings, arguments.env),
}
TRAINING = ("quickstart", "train", "tune-queries")
# The functions of the other commands, as module:function. They take the options.
HANDLERS = {
    "evaluate": "hf_ar2.command_line.commands:evaluate",
    "encode": "hf_ar2.command_line.commands:encode",
    "index": "hf_ar2.command_line.commands:index",
    "search": "hf_ar2.command_line.commands:search",
    "score": "hf_ar2.command_line.augment:score",
    "augment": "hf_ar2.command_line.augment:augment_lists",
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

    Returns 0; 1 after an error; 2 for a wrong command line; 130 after Ctrl-C; for training, its process's exit code.
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
    check = CHECKS.get(name)
    if check is not None:
        check(command, options)
    return _run(name, options)


def _check_evaluate(parser: Parser, options: argparse.Namespace) -> None:
    if options.nanobeir is not None or options.mteb is not None:
        _check_package_options(parser, options)
    elif options.run is None and not (options.retriever and options.collection):
        parser.error("nothing to evaluate. Name a run folder, or --retriever and --collection")
    if options.questions and options.split not in (None, "questions"):
        parser.error("--split and --questions cannot be combined: the questions are a separate split")


def _check_search(parser: Parser, options: argparse.Namespace) -> None:
    # argparse takes the first word for RUN; where options name the models, it belongs to the query.
    if options.run is not None and options.retriever and not is_run(options.run):
        options.query = [options.run, *options.query]
        options.run = None
    _check_serve(parser, options)


def _check_serve(parser: Parser, options: argparse.Namespace) -> None:
    if options.run is None and not (options.retriever and options.collection):
        parser.error("the following arguments are required: RUN, or --retriever and --collection")


def _check_package_options(parser: Parser, options: argparse.Namespace) -> None:
    if (options.run is None) == (options.retriever is None):
        parser.error("--nanobeir and --mteb evaluate one model. Name it: hf-ar2 evaluate MODEL --nanobeir")
    used = {"run", "retriever", "nanobeir", "nanobeir_dataset", "mteb", "output", "model_dtype", "revision"}
    used |= {"attn_implementation", "trust_remote_code", "truncate_dim", "query_prompt", "passage_prompt"}
    for option, value in vars(options).items():
        if value != parser.get_default(option) and option not in used:
            parser.error(f"--{option} cannot be combined with --nanobeir or --mteb")


def _check_augment(parser: Parser, options: argparse.Namespace) -> None:
    if not options.run and not (options.retriever and options.ranker and options.collection):
        parser.error("no models given. Name a run folder, or --retriever, --ranker and --collection")


def _check_score(parser: Parser, options: argparse.Namespace) -> None:
    if (options.retriever is None) == (options.lists is None):
        parser.error("give either --retriever MODEL, which finds the lists, or --lists FOLDER")


# Each exits with code 2 where options contradict each other.
CHECKS = {
    "evaluate": _check_evaluate,
    "search": _check_search,
    "serve": _check_serve,
    "augment": _check_augment,
    "score": _check_score,
    "collection": question_arguments.check_generation,
}


def _run(name: str, options: argparse.Namespace) -> int:
    try:
        module, function = HANDLERS[name].split(":")
        with ended_by_interrupts():
            handler = getattr(importlib.import_module(module), function)  # imports torch
        handler(options)
        return 0
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
    without_recipe = name == "train" and (not arguments or arguments[0].startswith("-"))
    if without_recipe and not {"-h", "--help"} & set(arguments):
        parser.error(
            f"no recipe given. It comes first: {PROGRAM} train RECIPE. Recipes: {', '.join(shipped_recipes())}"
        )
    options, overrides = parser.parse_known_args(arguments)
    if overrides and not overrides[0].startswith("--"):
        parser.error(f"{overrides[0]!r}: expected --key value")
    if options.config_file and not Path(options.config_file).is_file():
        parser.error(f"--config_file {options.config_file}: no such file. Make one with: accelerate config")
    environment, recipe_name = dict(os.environ), getattr(options, "recipe", name)
    try:
        if name == "quickstart":
            environment.setdefault("HF_HUB_OFFLINE", "1")  # model and text come from installed packages
            overrides = ["--output_dir", options.output_dir, *overrides]
        elif name == "tune-queries":
            recipe_name, overrides = "ltre/tune", [*tuning_overrides(options), *overrides]
        recipe = find_recipe(recipe_name)
        machines = {option: getattr(options, option, None) for option in MACHINES}
        if not machines["machine_rank"]:  # the other machines are parts of the run that holds the folder
            check_run_folder(recipe, overrides)
        with ended_by_interrupts():
            command = launch_command(recipe, overrides, options.config_file, machines)  # imports torch
    except ValueError as error:
        parser.error(str(error))
    except FolderInUse as error:
        print(f"{PROGRAM} {name}: {error}", file=sys.stderr)
        return 1
    return run_to_end(command, environment)


def tuning_overrides(options: argparse.Namespace) -> list[str]:
    """The options of `tune-queries` as keys of the recipe `ltre/tune`; ValueError if they contradict each other."""
    if options.index and options.factory:
        raise ValueError("--index names an existing index, --factory builds one: give one of them")
    if options.ids and not options.index:
        raise ValueError("--ids requires --index: it gives the ids of the passages in that file")
    if options.centroids and options.factory is None and options.index is None:
        raise ValueError("--centroids needs a product-quantised index: --factory OPQ48,PQ48 for example")
    before, after = "evaluation.rows.before", "evaluation.rows.after"
    # The row after training searches the index that is saved, which has its own ids.
    saves_index = options.factory or options.centroids
    keys = {
        "output_dir": options.output_dir,
        "collection": options.collection,
        "models.published.model": options.model,
        "ltre.vectors": "index" if options.index or options.factory else None,
        "ltre.index": options.index,
        f"{before}.index": options.index,
        f"{after}.index": "ltre" if saves_index else options.index,
        "ltre.index_ids": options.ids,
        f"{before}.index_ids": options.ids,
        f"{after}.index_ids": None if saves_index else options.ids,
        "ltre.index_factory": options.factory,
        f"{before}.index_factory": options.factory,
        "ltre.train_centroids": "true" if options.centroids else None,
        **{f"{place}.search_parameters": options.search for place in ("ltre", before, after)},
        "evaluation.splits": f"[{options.split}]" if options.split else None,
        "evaluation.report_split": options.split,
        "ltre.max_steps": options.steps,
    }
    return [part for key, value in keys.items() if value for part in (f"--{key}", str(value))]


def build_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of `hf-ar2` itself, and one for each command."""
    lines: list[str] = []
    commands: dict[str, Parser] = {}
    for group, functions in GROUPS.items():
        lines += ["", f"{group}:"]
        for function in functions:
            of_command = command(function)
            name = of_command.prog.removeprefix(f"{PROGRAM} ")
            commands[name] = of_command
            lines.append(f"  {name:<14}{of_command.does}")
    question_arguments.add_generation(commands["collection"])
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Train a retriever and a ranker together, evaluate them, and search with them.\n"
        + "\n".join(lines),
        epilog=f"{PROGRAM} COMMAND --help describes a command. Set HF_AR2_TRACEBACK=1 in the\n"
        f"environment to see the traceback of an error.\n\nexample:\n  {PROGRAM} quickstart",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser, commands


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('hf-ar2')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
