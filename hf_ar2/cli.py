"""The command line `hf-ar2`. What trains is started by `accelerate launch` in a process of its own.

Only the standard library is imported here, so that help and usage errors are there at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_ar2.cli_parser import USAGE_ERROR, Parser, nearest, positive
from hf_ar2.launch import find_recipe, launch_command, run_to_end, shipped_recipes

PROGRAM = "hf-ar2"
TRAINING = ("quickstart", "train", "tune-queries")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `hf-ar2`.

    Returns:
        0; 1 when something failed; 2 for a wrong command line; 130 when interrupted; for training the exit code
        of the process that trained.

    Example:
        >>> main(["serach"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = build_parsers()
    if not given:
        parser.print_help()
        return USAGE_ERROR
    name = given[0]
    if name.startswith("-"):
        parser.parse_known_args([name])  # --help and --version leave here
        parser.refuse([name])
    if name not in commands:
        parser.error(f"there is no command {name!r}{nearest(name, commands)}")
    command = commands[name]
    if name in TRAINING:
        return train(command, name, given[1:])
    # options may stand before, between and after the others
    options, unknown = command.parse_known_intermixed_args(given[1:])
    if unknown:
        command.refuse(unknown)
    if name == "evaluate" and options.run is None and not (options.retriever and options.collection):
        command.error("what is to be evaluated? Name a run folder, or --retriever and --collection")
    if (
        name == "augment"
        and not options.run
        and not (options.retriever and options.ranker and options.collection)
    ):
        command.error("with which models? Name a run folder, or --retriever, --ranker and --collection")
    return _run(name, options)


def _run(name: str, options: argparse.Namespace) -> int:
    try:
        if name == "import":
            from hf_ar2.import_command import import_published

            return import_published(options)
        from hf_ar2 import commands  # imports torch and all that

        return int(getattr(commands, name)(options))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_AR2_TRACEBACK"):
            raise
        print(f"{PROGRAM} {name}: {error}", file=sys.stderr)
        return 1


def train(parser: Parser, name: str, arguments: Sequence[str]) -> int:
    """Run a recipe through `accelerate launch`; what is shown and the exit code are those of its process."""
    if name == "train" and not {"-h", "--help"} & set(arguments):
        if not arguments or arguments[0].startswith("-"):
            parser.error(
                f"which recipe? It comes first: {PROGRAM} train RECIPE. Recipes: {', '.join(shipped_recipes())}"
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
    except ValueError as error:
        parser.error(str(error))
    return run_to_end(launch_command(recipe, overrides, options.config_file), environment)


def tuning_overrides(options: argparse.Namespace) -> list[str]:
    """What `tune-queries` was told, as keys of the recipe `ltre/tune`.

    Raises:
        ValueError: options that contradict each other.

    Example:
        >>> options = build_parsers()[1]["tune-queries"].parse_args(["me/model", "data/mine", "--steps", "50"])
        >>> tuning_overrides(options)[-2:]
        ['--ltre.max_steps', '50']
    """
    keys = {
        "output_dir": options.output_dir,
        "collection": options.collection,
        "models.published.model": options.model,
    }
    if options.index and options.factory:
        raise ValueError("--index is an index that is there, --factory one to be built: give one of them")
    if options.ids and not options.index:
        raise ValueError("--ids belongs to --index: it names the passages of that file")
    if options.centroids and options.factory is None and options.index is None:
        raise ValueError("--centroids trains those of a product quantiser: --factory OPQ48,PQ48 for example")
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
    commands = {
        "quickstart": _quickstart(),
        "train": _train(),
        "evaluate": _evaluate(),
        "encode": _encode(),
        "index": _index(),
        "search": _search(),
        "augment": _augment(),
        "tune-queries": _tune_queries(),
        "collection": _collection(),
        "import": _import(),
    }
    lines = [f"  {name:<14}{parser.does}" for name, parser in commands.items()]
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Train a retriever and a ranker together, evaluate them, and search with them.\n\n"
        + "\n".join(["commands:", *lines]),
        epilog=f"{PROGRAM} COMMAND --help says more about a command. Start with: {PROGRAM} quickstart\n"
        "HF_AR2_TRACEBACK=1 in the environment shows where an error came from.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    return parser, commands


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('hf-ar2')}")
        parser.exit()


RECIPE_KEYS = """\
Any further --key value goes to the recipe: a field (--seed 7), a setting of
every stage (--bf16 true), or one of a stage (--ar2.num_rounds 3). A run that
was interrupted goes on where it was when the same command is given again."""
ANY_COLLECTION = "a folder, a Hub id, or python-packages:NAME,NAME"
ANY_MODEL = "a folder, a Hub id, or package:NAME/FOLDER"


def _command(name: str, does: str, more: str, example: str) -> Parser:
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        description=f"{does[0].upper()}{does[1:]}.\n\n{more}",
        epilog=f"example:\n  {PROGRAM} {example}",
    )
    parser.does = does
    return parser


def _quickstart() -> Parser:
    parser = _command(
        "quickstart",
        "train on text that is on this machine already, in minutes",
        "Two small models learn to find Python functions by what their docstrings say.\n"
        f"Nothing is downloaded.\n\n{RECIPE_KEYS}",
        "quickstart --output_dir runs/quickstart",
    )
    parser.usage = f"{PROGRAM} quickstart [--output_dir FOLDER] [--key value ...]"
    default = "runs/quickstart"
    parser.add_argument(
        "--output_dir", default=default, metavar="FOLDER", help="the run folder (%(default)s)"
    )
    _add_config_file(parser)
    return parser


def _train() -> Parser:
    parser = _command(
        "train",
        "run a recipe: warm-up, joint training, evaluation",
        RECIPE_KEYS,
        "train ar2/scifact --output_dir runs/scifact",
    )
    parser.usage = f"{PROGRAM} train RECIPE [--config_file FILE] [--key value ...]"
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that is shipped"
    )
    _add_config_file(parser)
    return parser


def _tune_queries() -> Parser:
    parser = _command(
        "tune-queries",
        "train a model's query side against an index that stays",
        "Every step searches the whole index with the batch's queries as they are now\n"
        "and trains on what comes back (LTRe). No passage is encoded again: an index of\n"
        "millions serves as it is. Ends with before and after, and their significance.\n\n"
        "Any further --key value goes to the recipe ltre/tune (--ltre.learning_rate 1e-5,\n"
        "--max_passage_length 128).",
        "tune-queries sentence-transformers/all-MiniLM-L6-v2 BeIR/scifact \\\n"
        "      --index passages.faiss --ids ids.json",
    )
    parser.usage = f"{PROGRAM} tune-queries MODEL COLLECTION [options] [--key value ...]"
    add = parser.add_argument
    add("model", metavar="MODEL", help=ANY_MODEL)
    add("collection", metavar="COLLECTION", help=f"{ANY_COLLECTION}; its split train is trained on")
    add("--output_dir", default="runs/tuned", metavar="FOLDER", help="the run folder (%(default)s)")
    add("--index", metavar="FILE", help="a FAISS file of the model's passage vectors (else one is built)")
    add("--ids", metavar="FILE", help="its passage ids in order: JSON, or one a line (ids.json beside it)")
    add("--factory", metavar="FACTORY", help="build a FAISS index of this kind (Flat, which is exact)")
    add("--centroids", action="store_true", help="train a PQ index's centroids too (JPQ)")
    add("--search", metavar="TEXT", help="how the index is searched: nprobe=16, efSearch=256")
    add("--split", help="split to report on (test)")
    add("--steps", type=positive, metavar="N", help="steps of 32 queries (300)")
    _add_config_file(parser)
    return parser


def _add_config_file(parser: Parser) -> None:
    parser.add_argument(
        "--config_file",
        metavar="FILE",
        help="from `accelerate config`: machines and GPUs to use; without it, all GPUs of this machine",
    )


def _evaluate() -> Parser:
    parser = _command(
        "evaluate",
        "measure retriever, ranker and pipeline on a split",
        "RUN is the folder that training left. Models without one are named by\n"
        "--retriever, --ranker and --collection; with one, these replace its own.",
        "evaluate runs/scifact --split test --output results",
    )
    _add_models(parser)
    parser.add_argument("--split", help="split of the qrels (the recipe's, or test)")
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="such as mrr@10 recall@100; the first is tested"
    )
    parser.add_argument(
        "--depth", type=positive, metavar="N", help="passages the retriever finds per query (100)"
    )
    parser.add_argument(
        "--rerank_depth", type=positive, metavar="N", help="how many of them the ranker reorders (20)"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="write TREC run files, qrels and metrics.json there"
    )
    parser.add_argument(
        "--index", metavar="FOLDER", help="an index made before, or where to keep the one made now"
    )
    _add_lengths(parser, ranker=True)
    return parser


def _augment() -> Parser:
    parser = _command(
        "augment",
        "write training lists, denoised by the ranker",
        "The retriever finds passages, the ranker scores them; a trainer takes the lists\n"
        "by train_lists. What was scored is kept: another threshold takes seconds.",
        "augment runs/scifact --output lists/scifact --calibrate dev --audit",
    )
    _add_models(parser)
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="the folder to write")
    add("--split", dest="train_split", help="split that gets undenoised and denoised lists (train)")
    add("--unlabelled", metavar="FILE", help="queries for pseudo lists: JSON lines with _id and text")
    add("--kinds", nargs="+", metavar="KIND", help="of undenoised, denoised and pseudo (all there can be)")
    add("--depth", type=positive, metavar="N", help="passages retrieved per query (50)")
    add("--thresholds", metavar="KIND", help="absolute (the default), quantile or margin")
    add("--relevant", type=float, metavar="X", help="above it a passage is a positive (.9, .99 or 2)")
    add("--irrelevant", type=float, metavar="X", help="below it a passage is a negative (.1, .5 or 2)")
    add("--calibrate", metavar="SPLIT", help="held-out split that makes probabilities of the ranker's logits")
    add(
        "--pointwise",
        action="store_true",
        default=None,
        help="the ranker was trained pointwise: its logits are log-odds",
    )
    add("--added_positives", type=int, metavar="N", help="passages the ranker adds to the labelled (1)")
    add("--stored_negatives", type=positive, metavar="N", help="negatives kept per list, at random (all)")
    add("--seed", type=int, metavar="N", help="of that draw (42)")
    add(
        "--audit",
        nargs="?",
        type=positive,
        const=20,
        metavar="N",
        help="print the likeliest false negatives of N queries (20)",
    )
    add("--index", metavar="FOLDER", help=f"an index made by `{PROGRAM} index` (FOLDER/work/index)")
    _add_lengths(parser, ranker=True)
    return parser


def _add_models(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder")
    parser.add_argument("--retriever", metavar="MODEL", help=ANY_MODEL)
    parser.add_argument("--ranker", metavar="MODEL", help="the same for the ranker")
    parser.add_argument("--collection", metavar="SOURCE", help=ANY_COLLECTION)


def _encode() -> Parser:
    parser = _command(
        "encode",
        "write the embedding of every passage of a collection",
        "OUT gets embeddings.npy [passages, dimensions] and ids.json, in the same order.",
        "encode runs/scifact/retriever BeIR/scifact embeddings/",
    )
    _add_encoding(parser)
    return parser


def _index() -> Parser:
    parser = _command(
        "index",
        "build a FAISS index over a collection",
        "MODEL may be a run folder: its retriever and its recipe's lengths are used then,\n"
        f"and `{PROGRAM} search RUN --index OUT` finds with it.",
        "index runs/scifact BeIR/scifact indexes/scifact --factory HNSW32",
    )
    _add_encoding(parser)
    parser.add_argument(
        "--factory",
        dest="index_factory",
        metavar="FACTORY",
        help="FAISS factory string (Flat, which is exact)",
    )
    return parser


def _add_encoding(parser: Parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="the retriever: a run folder, a model's folder, or a Hub id"
    )
    parser.add_argument("collection", metavar="COLLECTION", help=ANY_COLLECTION)
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--dtype", dest="index_dtype", choices=("float32", "float16"), help="of what is stored (float32)"
    )
    _add_lengths(parser, ranker=False)


def _search() -> Parser:
    parser = _command(
        "search",
        "find passages; shows the scores of both models",
        "The retriever finds passages and the ranker puts them in order. The index is\n"
        "built once, into the run folder. Without a query, queries are asked for.",
        'search runs/scifact "does vitamin D prevent colds" -k 5',
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("query", nargs="*", default=[], metavar="QUERY", help="what to search for")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="passages to show (%(default)s)")
    parser.add_argument(
        "--rerank_depth", type=positive, metavar="N", help="passages the ranker chooses from (20)"
    )
    parser.add_argument("--index", metavar="FOLDER", help=f"an index made by `{PROGRAM} index` (RUN/index)")
    return parser


def _collection() -> Parser:
    parser = _command(
        "collection",
        "write any collection as a BEIR folder",
        "From Python packages: a passage is a function without its docstring, its query\n"
        "the docstring's first sentence. What is skipped is counted.",
        "collection python-packages:numpy,pandas data/numpy-pandas",
    )
    forms = "python-packages:NAME,NAME, text:FOLDER, a BEIR, MS MARCO or DPR folder, or a Hub id like BeIR/scifact"
    parser.add_argument("source", metavar="SOURCE", help=forms)
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        metavar="CAUSE",
        help="leave out what would be an error; the error names it",
    )
    parser.add_argument(
        "--max_passages", type=positive, metavar="N", help="keep this many, all judged ones included"
    )
    questions = "for text:FOLDER: lines of a question, a tab, and the file that answers it"
    parser.add_argument("--queries", metavar="FILE", help=f"{questions} (the files' headings)")
    return parser


def _import() -> Parser:
    parser = _command(
        "import",
        "make a standard checkpoint of one that a paper published",
        "Every parameter is accounted for: a missing or unexpected one is an error. What\n"
        "could run code when it is read (a pickle of Paddle's, say) is refused.",
        "import dpr bert-base-encoder.cp models/dpr --base bert-base-uncased",
    )
    add = parser.add_argument
    formats = ("ar2", "ar2-ranker", "dpr", "rocketqa", "rocketqa-ranker")
    add("format", metavar="FORMAT", choices=formats, help=", ".join(formats))
    add("file", metavar="FILE", help="the published file; of Paddle, its folder of parameters or an .npz")
    add("out", metavar="OUT", help="the folder to write")
    add(
        "--base",
        required=True,
        metavar="MODEL",
        help="gives configuration and tokenizer: the model it began as",
    )
    add("--max_length", type=positive, metavar="N", help="tokens a text or pair is cut at (the tokenizer's)")
    return parser


def _add_lengths(parser: Parser, *, ranker: bool) -> None:
    group = parser.add_argument_group(
        "how texts are read (as the run's recipe says, or up to the models' limits)"
    )
    if ranker:
        group.add_argument("--max_query_length", type=positive, metavar="N", help="tokens of a query")
        group.add_argument("--max_pair_length", type=positive, metavar="N", help="tokens the ranker reads")
    group.add_argument("--max_passage_length", type=positive, metavar="N", help="tokens of a passage")
    group.add_argument(
        "--title_separator", metavar="TEXT", help="between a passage's title and its text (a space)"
    )


if __name__ == "__main__":
    sys.exit(main())
