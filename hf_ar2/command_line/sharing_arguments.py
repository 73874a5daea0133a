"""The arguments of the commands that compare, show and publish. Imports no torch."""

from __future__ import annotations

from hf_ar2.command_line.arguments import ANY_COLLECTION, RELEVANCE_LEVEL, add_models, add_searched
from hf_ar2.command_line.parser import Parser, add


def compare(parser: Parser) -> None:
    """Compare runs and TREC files in one table, with significance.

    A run folder adds a row for each of its retrievers and pipelines, a TREC run
    file one row. Judgments: --qrels or --collection (the runs' collection).
    Every system is tested against one of them on the first metric: a two-sided
    paired randomisation test over the queries, with Holm's correction.

    example:
      hf-ar2 compare runs/scifact bm25.trec --against bm25 --latex
    """
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="a run folder, or a TREC run file (.gz)")
    add(parser, "--metrics METRIC", "such as mrr@10 recall@100 (the run's)", nargs="+")
    add(parser, "--relevance-level GRADE", RELEVANCE_LEVEL, type=int)
    add(parser, "--split", "split of run folders and of the collection (the run's, or test)")
    judged = parser.add_mutually_exclusive_group()
    add(judged, "--qrels FILE", "TREC qrels: query_id 0 passage_id relevance")
    add(judged, "--collection SOURCE", ANY_COLLECTION)
    add(parser, "--against NAME", "the system the others are tested against (the first)")
    form = parser.add_mutually_exclusive_group()
    add(form, "--markdown", "a Markdown table", action="store_true")
    add(form, "--latex", "a LaTeX table (needs the package booktabs)", action="store_true")
    add(parser, "--output FILE", "also write the table to this file")


def report(parser: Parser) -> None:
    """Write one HTML page about a run, or comparing several.

    Shows results and their significance, losses, times, and for every query the
    first 10 passages before and after training, with both models' scores. The page
    is one file and needs no network. Runs must have the same collection.

    example:
      hf-ar2 report runs/scifact --output report.html
    """
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder whose recipe is finished")
    add(parser, "--output FILE", "the page to write (report.html in the first RUN)")


def serve(parser: Parser) -> None:
    """Serve search in a browser and over HTTP.

    GET / is a search page, GET /search?q=TEXT&k=10 returns JSON with the scores of
    both models, GET /health its status. Stop it with Ctrl-C.
    For trusted networks only: there is no password. Requests must name this machine
    by its address, as localhost, or by a name that --allow-host gives.

    Without RUN, name --retriever and --collection, as in `hf-ar2 search --help`.

    example:
      hf-ar2 serve runs/scifact --port 8080
    """
    add_models(parser)
    add(parser, "--port N", "port to listen on; 0: any free port (%(default)s)", type=int, default=8000)
    add(parser, "--host HOST", "0.0.0.0 to allow other machines (%(default)s)", default="127.0.0.1")
    name = "another name of this machine that browsers may use, next to localhost and addresses; repeatable"
    add(parser, "--allow-host NAME", name, action="append", default=[])
    add_searched(parser)


def push(parser: Parser) -> None:
    """Publish a run's models on the Hugging Face Hub.

    The retriever goes to NAME-retriever, the ranker to NAME-ranker, the index to
    the dataset NAME-index, each in one commit, with a card written from the run
    (`hf-ar2 card RUN` shows it). Log in first with: hf auth login

    example:
      hf-ar2 push runs/scifact me/scifact-ar2 --private
    """
    add(parser, "RUN", "a run folder")
    add(parser, "NAME", "user or organisation, a slash, and a name: me/scifact-ar2")
    add(parser, "--private", "visible only to you", action="store_true")
    replaced = "also replace a README.md on the Hub that a person has written or edited"
    add(parser, "--replace-card", replaced, action="store_true")
    published = "what to publish (all models of the run; `all` includes the index)"
    add(parser, "--what", published, choices=("retriever", "ranker", "index", "all"))
    _add_licences(parser)


def card(parser: Parser) -> None:
    """Show the model cards of a run.

    A card says what a model is for, how to use it, its results and its training. It
    is also in README.md of RUN/retriever and RUN/ranker.

    example:
      hf-ar2 card runs/scifact --what ranker
    """
    add(parser, "RUN", "a run folder")
    add(parser, "--what", "which card (all models of the run)", choices=("retriever", "ranker"))
    add(parser, "--markdown", "print the Markdown source with its metadata", action="store_true")
    _add_licences(parser)


def _add_licences(parser: Parser) -> None:
    add(parser, "--license ID", "licence of the models, such as apache-2.0 (the base model's, if known)")
    add(parser, "--data_license TEXT", "licence of the training data (unknown)")
