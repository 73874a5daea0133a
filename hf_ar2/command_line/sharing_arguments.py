"""The arguments of the commands that show and hand on what was trained: one parser each, standard library alone."""

from __future__ import annotations

from hf_ar2.command_line.arguments import ANY_COLLECTION, PROGRAM, command
from hf_ar2.command_line.parser import Parser, not_negative


def compare_parser() -> Parser:
    """The arguments of `compare`."""
    parser = command(
        "compare",
        "put runs and TREC files into one table, with significance",
        "A run folder gives a row for its every retriever and pipeline; a TREC run file\n"
        "is one system, judged by --qrels or --collection (else by the runs' collection).\n"
        "Every system is tested against one of them on the first metric: a two-sided\n"
        "paired randomisation test over the queries, p-values corrected by Holm.",
        "compare runs/scifact bm25.trec --against bm25 --latex",
    )
    add = parser.add_argument
    add("systems", nargs="+", metavar="SYSTEM", help="a run folder, or a TREC run file (maybe .gz)")
    add("--metrics", nargs="+", metavar="METRIC", help="such as mrr@10 recall@100 (the run's, or three)")
    add("--split", help="split of run folders and of the collection (the run's, or test)")
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument("--qrels", metavar="FILE", help="TREC qrels: query_id 0 passage_id relevance")
    judged.add_argument("--collection", metavar="SOURCE", help=ANY_COLLECTION)
    add("--against", metavar="NAME", help="the system the others are tested against (the first)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="a Markdown table")
    form.add_argument("--latex", action="store_true", help="a LaTeX table (needs the package booktabs)")
    add("--output", metavar="FILE", help="write the table there too")
    return parser


def report_parser() -> Parser:
    """The arguments of `report`."""
    parser = command(
        "report",
        "make one HTML page of a run, or of several to compare",
        "Results and their significance, losses and times, and for every query the top 10\n"
        "before and after, with both models' scores. The page is one file and needs no\n"
        "network. Runs that are compared must share a collection.",
        "report runs/scifact --output report.html",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run folder whose recipe has come to its end"
    )
    parser.add_argument("--output", metavar="FILE", help="the page to write (report.html in the first RUN)")
    return parser


def serve_parser() -> Parser:
    """The arguments of `serve`."""
    parser = command(
        "serve",
        "answer searches in a browser and over HTTP",
        "GET / is a search page, GET /search?q=TEXT&k=10 answers in JSON with the scores\n"
        "of both models, GET /health says that it runs. Ctrl-C ends it.\n"
        "For a trusted network: whoever reaches the port can search, without a password.",
        "serve runs/scifact --port 8080",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("--port", type=int, default=8000, metavar="N", help="to listen on; 0 takes a free one (%(default)s)")
    add("--host", default="127.0.0.1", metavar="HOST", help="0.0.0.0 for other machines too (%(default)s)")
    add(
        "--rerank_depth",
        type=not_negative,
        metavar="N",
        help="passages the ranker chooses from (20); 0: the retriever alone",
    )
    add("--index", metavar="FOLDER", help=f"an index made by `{PROGRAM} index` (RUN/index)")
    return parser


def push_parser() -> Parser:
    """The arguments of `push`."""
    parser = command(
        "push",
        "publish a run's models on the Hugging Face Hub",
        "The retriever goes to NAME-retriever, the ranker to NAME-ranker, the index to\n"
        "the dataset NAME-index, each in one commit, with a card that is written anew\n"
        f"from the run (`{PROGRAM} card RUN` shows it). Log in once with: hf auth login",
        "push runs/scifact me/scifact-ar2 --private",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("name", metavar="NAME", help="user or organisation, a slash, and a name: me/scifact-ar2")
    add("--private", action="store_true", help="visible to you alone")
    parts = ("retriever", "ranker", "index", "all")
    add("--what", choices=parts, help="a part, or all with the index (the models there are)")
    _add_licences(parser)
    return parser


def card_parser() -> Parser:
    """The arguments of `card`."""
    parser = command(
        "card",
        "show the card a run's models are published with",
        "What a model is for, how it is used, what it reaches, how it was trained. The\n"
        "same is in README.md of RUN/retriever and RUN/ranker.",
        "card runs/scifact --what ranker",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("--what", choices=("retriever", "ranker"), help="which card (those there are)")
    add("--markdown", action="store_true", help="the text that is published, metadata included")
    _add_licences(parser)
    return parser


def _add_licences(parser: Parser) -> None:
    parser.add_argument(
        "--license", metavar="ID", help="of the models, such as apache-2.0 (the base model's, where known)"
    )
    parser.add_argument("--data_license", metavar="TEXT", help="of the training data (not known)")
