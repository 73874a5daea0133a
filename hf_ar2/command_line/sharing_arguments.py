"""The arguments of the commands that compare, show and publish: one parser each. Imports no torch."""

from __future__ import annotations

from hf_ar2.command_line.arguments import ANY_COLLECTION, PROGRAM, RELEVANCE_LEVEL, command
from hf_ar2.command_line.options import add_settings
from hf_ar2.command_line.parser import Parser
from hf_ar2.settings.search import Settings


def compare_parser() -> Parser:
    """The arguments of `compare`."""
    parser = command(
        "compare",
        "compare runs and TREC files in one table, with significance",
        "A run folder adds a row for each of its retrievers and pipelines, a TREC run\n"
        "file one row. Judgments: --qrels or --collection (the runs' collection).\n"
        "Every system is tested against one of them on the first metric: a two-sided\n"
        "paired randomisation test over the queries, with Holm's correction.",
        "compare runs/scifact bm25.trec --against bm25 --latex",
    )
    add = parser.add_argument
    add("systems", nargs="+", metavar="SYSTEM", help="a run folder, or a TREC run file (also .gz)")
    add("--metrics", nargs="+", metavar="METRIC", help="such as mrr@10 recall@100 (the run's)")
    add(
        "--relevance-level",
        type=int,
        metavar="GRADE",
        help=RELEVANCE_LEVEL,
    )
    add("--split", help="split of run folders and of the collection (the run's, or test)")
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument("--qrels", metavar="FILE", help="TREC qrels: query_id 0 passage_id relevance")
    judged.add_argument("--collection", metavar="SOURCE", help=ANY_COLLECTION)
    add("--against", metavar="NAME", help="the system the others are tested against (the first)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="a Markdown table")
    form.add_argument("--latex", action="store_true", help="a LaTeX table (needs the package booktabs)")
    add("--output", metavar="FILE", help="also write the table to this file")
    return parser


def report_parser() -> Parser:
    """The arguments of `report`."""
    parser = command(
        "report",
        "write one HTML page about a run, or comparing several",
        "Shows results and their significance, losses, times, and for every query the\n"
        "first 10 passages before and after training, with both models' scores. The page\n"
        "is one file and needs no network. Runs must have the same collection.",
        "report runs/scifact --output report.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder whose recipe is finished")
    parser.add_argument("--output", metavar="FILE", help="the page to write (report.html in the first RUN)")
    return parser


def serve_parser() -> Parser:
    """The arguments of `serve`."""
    parser = command(
        "serve",
        "serve search in a browser and over HTTP",
        "GET / is a search page, GET /search?q=TEXT&k=10 returns JSON with the scores of\n"
        "both models, GET /health its status. Stop it with Ctrl-C.\n"
        "For trusted networks only: there is no password. Requests must name this machine\n"
        "by its address, as localhost, or by a name that --allow-host gives.",
        "serve runs/scifact --port 8080",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add(
        "--port",
        type=int,
        default=8000,
        metavar="N",
        help="port to listen on; 0: any free port (%(default)s)",
    )
    add("--host", default="127.0.0.1", metavar="HOST", help="0.0.0.0 to allow other machines (%(default)s)")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that browsers may use for this machine, besides localhost and its addresses; repeatable",
    )
    add_settings(parser, Settings, ["rerank_depth"])
    add("--index", metavar="FOLDER", help=f"an index made by `{PROGRAM} index` (RUN/index)")
    return parser


def push_parser() -> Parser:
    """The arguments of `push`."""
    parser = command(
        "push",
        "publish a run's models on the Hugging Face Hub",
        "The retriever goes to NAME-retriever, the ranker to NAME-ranker, the index to\n"
        "the dataset NAME-index, each in one commit, with a card written from the run\n"
        f"(`{PROGRAM} card RUN` shows it). Log in first with: hf auth login",
        "push runs/scifact me/scifact-ar2 --private",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("name", metavar="NAME", help="user or organisation, a slash, and a name: me/scifact-ar2")
    add("--private", action="store_true", help="visible only to you")
    add(
        "--replace-card",
        action="store_true",
        help="also replace a README.md on the Hub that a person has written or edited",
    )
    parts = ("retriever", "ranker", "index", "all")
    add("--what", choices=parts, help="what to publish (all models of the run; `all` includes the index)")
    _add_licences(parser)
    return parser


def card_parser() -> Parser:
    """The arguments of `card`."""
    parser = command(
        "card",
        "show the model cards of a run",
        "A card says what a model is for, how to use it, its results and its training. It\n"
        "is also in README.md of RUN/retriever and RUN/ranker.",
        "card runs/scifact --what ranker",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("--what", choices=("retriever", "ranker"), help="which card (all models of the run)")
    add("--markdown", action="store_true", help="print the Markdown source with its metadata")
    _add_licences(parser)
    return parser


def _add_licences(parser: Parser) -> None:
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of the models, such as apache-2.0 (the base model's, if known)",
    )
    parser.add_argument("--data_license", metavar="TEXT", help="licence of the training data (unknown)")
