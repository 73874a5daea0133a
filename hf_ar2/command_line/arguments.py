"""The arguments of the commands that train, measure, search and convert: one parser each, standard library alone."""

from __future__ import annotations

from hf_ar2.command_line.parser import Parser, not_negative, positive

PROGRAM = "hf-ar2"
RECIPE_KEYS = """\
Any further --key value goes to the recipe: a field (--seed 7), a setting of
every stage (--bf16 true), or one of a stage (--ar2.num_rounds 3). --guard
COLLECTION measures search in other texts too, before and after. A run that
was interrupted goes on where it was when the same command is given again."""
ANY_COLLECTION = "a folder, a Hub id, text:FOLDER or python-packages:NAME,NAME"
ANY_MODEL = "a folder, a Hub id, or package:NAME/FOLDER"


def command(name: str, does: str, more: str, example: str) -> Parser:
    """A parser without arguments yet.

    Args:
        name: of the command.
        does: what it does, in a line without a full stop.
        more: what else `--help` says.
        example: a command line, without the program's name.
    """
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        description=f"{does[0].upper()}{does[1:]}.\n\n{more}",
        epilog=f"example:\n  {PROGRAM} {example}",
    )
    parser.does = does
    return parser


def quickstart_parser() -> Parser:
    """The arguments of `quickstart`."""
    parser = command(
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


def train_parser() -> Parser:
    """The arguments of `train`."""
    parser = command(
        "train",
        "run a recipe: warm-up, joint training, evaluation",
        f"{RECIPE_KEYS}\n\n--questions FILE measures every row on real questions as well, one a line, as\n"
        f"judged with `{PROGRAM} label`; they are not trained on.",
        "train ar2/scifact --output_dir runs/scifact",
    )
    parser.usage = f"{PROGRAM} train RECIPE [--config_file FILE] [--key value ...]"
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that is shipped"
    )
    _add_config_file(parser)
    return parser


def tune_queries_parser() -> Parser:
    """The arguments of `tune-queries`."""
    parser = command(
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
    given = "a FAISS file of the model's passage vectors, or what `index` wrote (else one is built)"
    add("--index", metavar="FILE", help=given)
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


def evaluate_parser() -> Parser:
    """The arguments of `evaluate`."""
    parser = command(
        "evaluate",
        "measure retriever, ranker and pipeline on a split",
        "RUN is the folder that training left. Models without one are named by\n"
        "--retriever, --ranker and --collection; with one, these replace its own.",
        "evaluate runs/scifact --split test --output results",
    )
    _add_models(parser)
    parser.add_argument("--split", help="split of the qrels (the recipe's, or test)")
    asked = f"measure on these questions, one a line, as judged with `{PROGRAM} label`"
    parser.add_argument("--questions", metavar="FILE", help=asked)
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="such as mrr@10 recall@100; the first is tested"
    )
    parser.add_argument(
        "--depth", type=positive, metavar="N", help="passages the retriever finds per query (100)"
    )
    parser.add_argument(
        "--rerank_depth",
        type=not_negative,
        metavar="N",
        help="how many of them the ranker reorders (20); 0: the retriever alone",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="write TREC run files, qrels and metrics.json there"
    )
    parser.add_argument(
        "--index", metavar="FOLDER", help="an index made before, or where to keep the one made now"
    )
    _add_lengths(parser, ranker=True)
    return parser


def augment_parser() -> Parser:
    """The arguments of `augment`."""
    parser = command(
        "augment",
        "write training lists, denoised by the ranker",
        "The retriever finds passages, the ranker scores them; a trainer takes the lists\n"
        "by train_lists. What was scored is kept: another threshold takes seconds.",
        "augment runs/scifact --output lists/scifact --calibrate dev --audit",
    )
    _add_models(parser)
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="the folder to write")
    add(
        "--split",
        dest="train_split",
        metavar="SPLIT",
        help="split that gets undenoised and denoised lists (train)",
    )
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


def encode_parser() -> Parser:
    """The arguments of `encode`."""
    parser = command(
        "encode",
        "write the embedding of every passage of a collection",
        "OUT gets embeddings.npy [passages, dimensions] and ids.json, in the same order.",
        "encode runs/scifact/retriever BeIR/scifact embeddings/",
    )
    _add_encoding(parser)
    return parser


def index_parser() -> Parser:
    """The arguments of `index`."""
    parser = command(
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


def search_parser() -> Parser:
    """The arguments of `search`."""
    parser = command(
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
        "--rerank_depth",
        type=not_negative,
        metavar="N",
        help="passages the ranker chooses from (20); 0: the retriever alone",
    )
    parser.add_argument("--index", metavar="FOLDER", help=f"an index made by `{PROGRAM} index` (RUN/index)")
    return parser


def collection_parser() -> Parser:
    """The arguments of `collection`."""
    parser = command(
        "collection",
        "write any collection as a BEIR folder",
        "Of text:FOLDER, a passage is about 100 words of one section of a text file:\n"
        "Markdown, plain text, reStructuredText, HTML, or a man page. Queries are a file\n"
        "of questions, or the headings that somebody might ask; training then reads the\n"
        "passages without them. Of Python packages, a passage is a function without its\n"
        "docstring, its query the docstring's first sentence. What is skipped is counted.",
        "collection text:docs data/mine --queries questions.tsv",
    )
    forms = "text:FOLDER, python-packages:NAME,NAME, a BEIR, MS MARCO or DPR folder, or a Hub id like BeIR/scifact"
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
    parser.add_argument(
        "--endings",
        type=lambda given: given.split(","),
        metavar="LIST",
        help="for text:FOLDER: which files are read, such as .md,.txt,README (all that can be)",
    )
    parser.add_argument(
        "--all-headings",
        action="store_true",
        help="for text:FOLDER: queries also of headings that are versions, signatures, or say little",
    )
    return parser


def import_parser() -> Parser:
    """The arguments of `import`."""
    parser = command(
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
