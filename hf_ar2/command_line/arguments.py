"""The arguments of the commands that train, evaluate, search and convert: one parser each. Imports no torch."""

from __future__ import annotations

from hf_ar2.command_line.options import add_setting, add_settings
from hf_ar2.command_line.parser import Parser, positive
from hf_ar2.settings.augment import AugmentConfig
from hf_ar2.settings.score import ScoreConfig
from hf_ar2.settings.search import Settings
from hf_ar2.settings.text import EncodingConfig, TextConfig, names_of

PROGRAM = "hf-ar2"
RECIPE_KEYS = """\
Any other --key value overrides the recipe: a field (--seed 7), a setting of
every stage (--bf16 true), or of one stage (--ar2.num_rounds 3). `hf-ar2
settings ar2` lists them. --guard COLLECTION also measures search in other
texts, before and after training. To continue an interrupted run, give the
same command again."""
ANY_COLLECTION = (
    "a folder, a file of pairs, a Hub id, text:FOLDER, ir_datasets:ID or python-packages:NAME,NAME; "
    "several: '{A: FOLDER, B: FOLDER}'"
)
RELEVANCE_LEVEL = (
    "the lowest grade that is relevant; nDCG reads the grades themselves (the run's, or 1; TREC DL: 2)"
)
ANY_MODEL = "a folder, a Hub id, or package:NAME/FOLDER"
# What a stage of a recipe may be.
TRAINERS = ("retriever", "ranker", "ar2", "rocketqa-v2", "ltre", "augment", "merge")


# Options about how a retriever is loaded.
RETRIEVER_LOADING = (
    "model_dtype",
    "attn_implementation",
    "trust_remote_code",
    "revision",
    "truncate_dim",
    "query_prompt",
    "passage_prompt",
)


def command(name: str, does: str, more: str, example: str) -> Parser:
    """A parser without arguments.

    Args:
        name: of the command.
        does: what it does, in a line without a full stop.
        more: the rest of the description.
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
        "train on text that is already on this machine, in minutes",
        "Two small models learn to find Python functions by their docstrings.\n"
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
        f"{RECIPE_KEYS}\n\n--questions FILE also evaluates on real questions, one per line, that were\n"
        f"judged with `{PROGRAM} label`; they are not trained on.",
        "train ar2/scifact --output_dir runs/scifact",
    )
    parser.usage = f"{PROGRAM} train RECIPE [options] [--key value ...]"
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of the package"
    )
    _add_config_file(parser)
    add = parser.add_argument_group("several machines (see recipes/LAUNCHING.md)").add_argument
    add("--num_processes", type=positive, metavar="N", help="on all machines together (one for each GPU)")
    add("--num_machines", type=positive, metavar="N", help="machines that run this command (1)")
    add("--machine_rank", type=int, metavar="N", help="which of them this one is, from 0")
    add("--main_process_ip", metavar="ADDRESS", help="of machine 0")
    add("--main_process_port", type=int, metavar="PORT", help="a free one of machine 0 (29500)")
    return parser


def tune_queries_parser() -> Parser:
    """The arguments of `tune-queries`."""
    parser = command(
        "tune-queries",
        "train a model's query side against a fixed index",
        "Every step searches the whole index with the current embeddings of the batch's\n"
        "queries and trains on the results (LTRe). No passage is encoded again, so an\n"
        "index of millions of passages works as it is. At the end, the model is compared\n"
        "before and after training, with significance.\n\n"
        "Any other --key value overrides the recipe ltre/tune (--ltre.learning_rate 1e-5,\n"
        "--max_passage_length 128).",
        "tune-queries sentence-transformers/all-MiniLM-L6-v2 BeIR/scifact \\\n"
        "      --index passages.faiss --ids ids.json",
    )
    parser.usage = f"{PROGRAM} tune-queries MODEL COLLECTION [options] [--key value ...]"
    add = parser.add_argument
    add("model", metavar="MODEL", help=ANY_MODEL)
    add("collection", metavar="COLLECTION", help=f"{ANY_COLLECTION}; its split train is used for training")
    add("--output_dir", default="runs/tuned", metavar="FOLDER", help="the run folder (%(default)s)")
    given = "a FAISS file of the model's passage vectors, or a folder that `index` wrote (one is built)"
    add("--index", metavar="FILE", help=given)
    add("--ids", metavar="FILE", help="its passage ids in order: JSON, or one per line (ids.json beside it)")
    add("--factory", metavar="FACTORY", help="build a FAISS index of this kind (Flat, which is exact)")
    add("--centroids", action="store_true", help="also train the centroids of a PQ index (JPQ)")
    add("--search", metavar="TEXT", help="how the index is searched: nprobe=16, efSearch=256")
    add("--split", help="split to evaluate on (test)")
    add("--steps", type=positive, metavar="N", help="steps of 32 queries (300)")
    _add_config_file(parser)
    return parser


def _add_config_file(parser: Parser) -> None:
    parser.add_argument(
        "--config_file",
        metavar="FILE",
        help="from `accelerate config` (its default file; without one, all GPUs of this machine)",
    )


def evaluate_parser() -> Parser:
    """The arguments of `evaluate`."""
    parser = command(
        "evaluate",
        "evaluate retriever, ranker and pipeline on a split",
        "RUN is a folder that training wrote. Without it, name the models with\n"
        "--retriever, --ranker and --collection; with it, these replace the run's own.\n\n"
        "--nanobeir and --mteb evaluate the retriever alone, with the evaluators and data\n"
        "of sentence-transformers and mteb; RUN may then also be a model.",
        "evaluate runs/scifact --split test --output results",
    )
    _add_models(parser)
    add_setting(
        parser,
        Settings,
        "report_split",
        "--split",
        dest="split",
        metavar="SPLIT",
        default="the recipe's, or test",
    )
    asked = f"evaluate on these questions, one per line, judged with `{PROGRAM} label`"
    parser.add_argument("--questions", metavar="FILE", help=asked)
    parser.add_argument(
        "--nanobeir",
        nargs="*",
        metavar="NAME",
        help="evaluate on these sets of NanoBEIR, such as msmarco (all)",
    )
    parser.add_argument(
        "--nanobeir_dataset",
        metavar="ID",
        help="NanoBEIR in another language, or a folder (sentence-transformers/NanoBEIR-en)",
    )
    parser.add_argument(
        "--mteb", nargs="+", metavar="TASK", help="evaluate on tasks of mteb, such as SciFact"
    )
    add_setting(parser, Settings, "metrics", metavar="METRIC", default="the recipe's; the first is tested")
    parser.add_argument("--relevance-level", type=int, metavar="GRADE", help=RELEVANCE_LEVEL)
    add_settings(parser, Settings, ("depth", "rerank_depth"))
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
        "The retriever finds passages and the ranker scores them. A trainer uses the\n"
        "lists with its setting train_lists. Scores are kept, so that other thresholds\n"
        "take seconds.",
        "augment runs/scifact --output lists/scifact --calibrate dev --audit",
    )
    _add_models(parser)
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="the folder to write")
    options = {"train_split": "--split"}
    metavars = {"train_split": "SPLIT", "unlabelled": "FILE", "kinds": "KIND", "calibrate": "SPLIT"}
    for name in names_of(AugmentConfig):
        if name not in names_of(EncodingConfig):
            shown = {"metavar": metavars[name]} if name in metavars else {}
            add_setting(parser, AugmentConfig, name, options.get(name, ""), **shown)
    add(
        "--audit",
        nargs="?",
        type=positive,
        const=20,
        metavar="N",
        help="print the most likely false negatives of N queries (20)",
    )
    add("--index", metavar="FOLDER", help=f"an index made by `{PROGRAM} index` (FOLDER/work/index)")
    _add_lengths(parser, ranker=True)
    return parser


def score_parser() -> Parser:
    """The arguments of `score`."""
    parser = command(
        "score",
        "write training lists with the scores of a ranker, to distil",
        "The lists are those that --retriever finds, or those in the folder --lists.\n"
        "A retriever learns from the scores with the settings train_lists and\n"
        "distillation. An interrupted command continues when it is given again.",
        "score BeIR/scifact --retriever sentence-transformers/all-MiniLM-L6-v2 \\\n"
        "      --ranker BAAI/bge-reranker-v2-m3 --output lists/scored",
    )
    parser.usage = f"{PROGRAM} score COLLECTION --ranker MODEL --output FOLDER [options]"
    add = parser.add_argument
    add("collection", metavar="COLLECTION", help=ANY_COLLECTION)
    add("--ranker", required=True, metavar="MODEL", help=f"the teacher: {ANY_MODEL}")
    add("--output", required=True, metavar="FOLDER", help="the folder to write")
    add(
        "--retriever",
        metavar="MODEL",
        help="finds the lists: labelled positives, other passages as negatives",
    )
    add("--lists", metavar="FOLDER", help="existing training lists, or `collection`: its own")
    add_setting(parser, ScoreConfig, "train_split", "--split", metavar="SPLIT")
    add_settings(parser, ScoreConfig, ("depth", "batch_tokens"))
    _add_loading(parser, ranker=True)
    _add_lengths(parser, ranker=True)
    return parser


def _add_models(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder")
    parser.add_argument("--retriever", metavar="MODEL", help=ANY_MODEL)
    parser.add_argument("--ranker", metavar="MODEL", help="the same for the ranker")
    parser.add_argument("--collection", metavar="SOURCE", help=ANY_COLLECTION)
    _add_loading(parser, ranker=True)


def _add_loading(parser: Parser, *, ranker: bool) -> None:
    add = parser.add_argument_group("how models are loaded").add_argument
    add(
        "--model_dtype",
        choices=("float32", "bfloat16", "float16"),
        help="data type of the weights (as saved)",
    )
    add(
        "--attn_implementation",
        metavar="NAME",
        help="sdpa, eager, flash_attention_2, ... (transformers chooses)",
    )
    trusted = "run the code that a model's repository brings along"
    add(
        "--truncate_dim",
        type=positive,
        metavar="N",
        help="cut the retriever's embeddings to their first N dimensions (as saved)",
    )
    add("--trust_remote_code", action="store_true", default=None, help=trusted)
    add("--revision", metavar="NAME", help="branch, tag or commit of the retriever on the Hub")
    add(
        "--query_prompt",
        metavar="TEXT",
        help="put before queries by the retriever, such as 'query: ' (as saved)",
    )
    add("--passage_prompt", metavar="TEXT", help="put before passages by the retriever (as saved)")
    if ranker:
        add("--ranker_revision", metavar="NAME", help="the same for the ranker")
        add(
            "--ranker_prompt", metavar="TEXT", help="put before the queries of pairs by the ranker (as saved)"
        )


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
        "If MODEL is a run folder, its retriever and its recipe's lengths are used, and\n"
        f"`{PROGRAM} search RUN --index OUT` searches the index.",
        "index runs/scifact BeIR/scifact indexes/scifact --factory HNSW32",
    )
    _add_encoding(parser)
    add_setting(parser, EncodingConfig, "index_factory", "--factory", metavar="FACTORY")
    return parser


def _add_encoding(parser: Parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="the retriever: a run folder, a model's folder, or a Hub id"
    )
    parser.add_argument("collection", metavar="COLLECTION", help=ANY_COLLECTION)
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    add_setting(parser, EncodingConfig, "index_dtype", "--dtype", choices=("float32", "float16"))
    _add_loading(parser, ranker=False)
    _add_lengths(parser, ranker=False)


def search_parser() -> Parser:
    """The arguments of `search`."""
    parser = command(
        "search",
        "search passages, with the scores of both models",
        "The retriever finds passages and the ranker reorders them. The index is built\n"
        "once, in the run folder. Without QUERY, the command asks for queries.",
        'search runs/scifact "does vitamin D prevent colds" -k 5',
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("query", nargs="*", default=[], metavar="QUERY", help="what to search for")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="passages to show (%(default)s)")
    add_settings(parser, Settings, ["rerank_depth"])
    _add_loading(parser, ranker=False)
    parser.add_argument("--index", metavar="FOLDER", help=f"an index made by `{PROGRAM} index` (RUN/index)")
    return parser


def collection_parser() -> Parser:
    """The arguments of `collection`."""
    parser = command(
        "collection",
        "write any collection as a BEIR folder",
        "text:FOLDER: a passage is about 100 words of one section of a text file\n"
        "(Markdown, plain text, reStructuredText, HTML, or a man page). Queries come from\n"
        "a file of questions, or are headings, which training then removes from the\n"
        "passages. python-packages: a passage is a function without its docstring, its\n"
        "query the docstring's first sentence. Skipped rows are counted.",
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
        help="skip rows with this problem; the error message names it",
    )
    parser.add_argument(
        "--max_passages",
        type=positive,
        metavar="N",
        help="keep this many passages, including all judged ones",
    )
    questions = "for text:FOLDER: lines of a question, a tab, and the file with its answer"
    parser.add_argument("--queries", metavar="FILE", help=f"{questions} (the files' headings)")
    parser.add_argument(
        "--endings",
        type=lambda given: given.split(","),
        metavar="LIST",
        help="for text:FOLDER: files to read, such as .md,.txt,README (all supported ones)",
    )
    parser.add_argument(
        "--all-headings",
        action="store_true",
        help="for text:FOLDER: also use headings that are versions, signatures or too short",
    )
    return parser


def import_parser() -> Parser:
    """The arguments of `import`."""
    parser = command(
        "import",
        "convert a paper's published checkpoint to a standard one",
        "A missing or unexpected parameter is an error. Files that could run code when\n"
        "they are read (such as Paddle's pickles) are rejected.",
        "import dpr bert-base-encoder.cp models/dpr --base bert-base-uncased",
    )
    add = parser.add_argument
    formats = ("ar2", "ar2-ranker", "dpr", "rocketqa", "rocketqa-ranker")
    add("format", metavar="FORMAT", choices=formats, help=", ".join(formats))
    add("file", metavar="FILE", help="the published file; for Paddle, its folder of parameters or an .npz")
    add("out", metavar="OUT", help="the folder to write")
    add(
        "--base",
        required=True,
        metavar="MODEL",
        help="the model that it was trained from, for configuration and tokenizer",
    )
    add("--max_length", type=positive, metavar="N", help="longest text or pair, in tokens (the tokenizer's)")
    return parser


def _add_lengths(parser: Parser, *, ranker: bool) -> None:
    group = parser.add_argument_group(
        "how texts are read (as in the run's recipe, or up to the models' limits)"
    )
    names = names_of(TextConfig) if ranker else ("max_passage_length", "title_separator", "passage_template")
    add_settings(group, TextConfig, names, default="")


def settings_parser() -> Parser:
    """The arguments of `settings`."""
    parser = command(
        "settings",
        "list the settings of a trainer, or explain one of them",
        "Shows type, default, unit and the values in papers. Set one in a recipe, or with\n"
        f"`{PROGRAM} train RECIPE --SETTING VALUE`. All arguments of transformers'\n"
        "TrainingArguments work too.",
        "settings ar2 adversarial_weight",
    )
    parser.add_argument("trainer", metavar="TRAINER", choices=TRAINERS, help=", ".join(TRAINERS))
    parser.add_argument("name", nargs="?", metavar="SETTING", help="the setting to explain (a table of all)")
    return parser


def env_parser() -> Parser:
    """The arguments of `env`."""
    return command(
        "env",
        "print versions and hardware, for a bug report",
        "No paths, host names or user names are printed.",
        "env",
    )
