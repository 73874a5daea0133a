"""The arguments of the commands that train, evaluate, search and convert. Imports no torch.

The docstring of each function is the command's help, see `hf_ar2.command_line.parser.command`.
"""

from __future__ import annotations

from hf_ar2.command_line.options import add_setting, add_settings
from hf_ar2.command_line.parser import Parser, add, positive
from hf_ar2.settings.augment import AugmentConfig, ScoreConfig
from hf_ar2.settings.search import Settings
from hf_ar2.settings.text import EncodingConfig, TextConfig, names_of

RECIPE_KEYS = """\
Any other --key value overrides the recipe: a field (--seed 7), a setting of
every stage (--bf16 true), or of one stage (--ar2.num_rounds 3). `hf-ar2
settings ar2` lists them. --guard COLLECTION also measures search in other
texts, before and after training. To continue an interrupted run, run the
same command again."""
ANY_COLLECTION = (
    "a folder, a file of pairs, a Hub id, text:FOLDER, ir_datasets:ID or python-packages:NAME,NAME; "
    "several: '{A: FOLDER, B: FOLDER}'"
)
RELEVANCE_LEVEL = (
    "the lowest grade that counts as relevant; nDCG uses the grades themselves (the run's, or 1; TREC DL: 2)"
)
ANY_MODEL = "a folder, a Hub id, or package:NAME/FOLDER"
# The trainers of a recipe's stages.
TRAINERS = ("retriever", "ranker", "ar2", "rocketqa-v2", "ltre", "augment", "merge")


def quickstart(parser: Parser) -> None:
    """Train on text that is already on this machine, in minutes.

    Two small models learn to find Python functions by their docstrings.
    Nothing is downloaded.

    example:
      hf-ar2 quickstart --output_dir runs/quickstart
    """
    parser.usage = "hf-ar2 quickstart [--output_dir FOLDER] [--key value ...]"
    parser.description = f"{parser.description}\n\n{RECIPE_KEYS}"
    add(parser, "--output_dir FOLDER", "the run folder (%(default)s)", default="runs/quickstart")
    _add_config_file(parser)


def train(parser: Parser) -> None:
    """Run a recipe: warm-up, joint training, evaluation.

    --questions FILE also evaluates on real questions, one per line, that were
    judged with `hf-ar2 label`; they are not trained on.

    example:
      hf-ar2 train ar2/scifact --output_dir runs/scifact
    """
    parser.usage = "hf-ar2 train RECIPE [options] [--key value ...]"
    parser.description = f"{parser.description}".replace("\n\n", f"\n\n{RECIPE_KEYS}\n\n")
    add(parser, "RECIPE", "a YAML file, or the name of a recipe of the package")
    _add_config_file(parser)
    group = parser.add_argument_group("several machines (see recipes/LAUNCHING.md)")
    add(group, "--num_processes N", "on all machines together (one for each GPU)", type=positive)
    add(group, "--num_machines N", "machines that run this command (1)", type=positive)
    add(group, "--machine_rank N", "which of them this one is, from 0", type=int)
    add(group, "--main_process_ip ADDRESS", "of machine 0")
    add(group, "--main_process_port PORT", "a free one of machine 0 (29500)", type=int)


def tune_queries(parser: Parser) -> None:
    """Train a model's query side against a fixed index.

    Every step searches the complete index with the batch's current query
    embeddings and trains on the results (LTRe). No passage is encoded again, so an
    index of millions of passages works as it is. At the end, the model is compared
    before and after training, with significance.

    Any other --key value overrides the recipe ltre/tune (--ltre.learning_rate 1e-5,
    --max_passage_length 128).

    example:
      hf-ar2 tune-queries sentence-transformers/all-MiniLM-L6-v2 BeIR/scifact \\
          --index passages.faiss --ids ids.json
    """
    parser.usage = "hf-ar2 tune-queries MODEL COLLECTION [options] [--key value ...]"
    add(parser, "MODEL", ANY_MODEL)
    add(parser, "COLLECTION", f"{ANY_COLLECTION}; its split train is used for training")
    add(parser, "--output_dir FOLDER", "the run folder (%(default)s)", default="runs/tuned")
    given = "a FAISS file of the model's passage vectors, or a folder that `index` wrote (one is built)"
    add(parser, "--index FILE", given)
    add(parser, "--ids FILE", "its passage ids in order: JSON, or one per line (ids.json next to it)")
    add(parser, "--factory FACTORY", "build a FAISS index of this kind (Flat, which is exact)")
    add(parser, "--centroids", "also train the centroids of a PQ index (JPQ)", action="store_true")
    add(parser, "--search TEXT", "how the index is searched: nprobe=16, efSearch=256")
    add(parser, "--split", "split to evaluate on (test)")
    add(parser, "--steps N", "steps of 32 queries (300)", type=positive)
    _add_config_file(parser)


def _add_config_file(parser: Parser) -> None:
    source = "from `accelerate config` (its default file; without one, all GPUs of this machine)"
    add(parser, "--config_file FILE", source)


def evaluate(parser: Parser) -> None:
    """Evaluate retriever, ranker and pipeline on a split.

    RUN is a folder that training wrote. Without it, name the models with
    --retriever, --ranker and --collection; with it, these replace the run's own.

    --nanobeir and --mteb evaluate the retriever alone, with the evaluators and data
    of sentence-transformers and mteb; RUN may then also be a model.

    example:
      hf-ar2 evaluate runs/scifact --split test --output results
    """
    add_models(parser)
    split = {"dest": "split", "metavar": "SPLIT"}
    add_setting(parser, Settings, "report_split", "--split", default="the recipe's, or test", **split)
    questions = "evaluate on these questions, one per line, judged with `hf-ar2 label`"
    add(parser, "--questions FILE", questions)
    add(parser, "--nanobeir NAME", "evaluate on these sets of NanoBEIR, such as msmarco (all)", nargs="*")
    other = "NanoBEIR in another language, or a folder (sentence-transformers/NanoBEIR-en)"
    add(parser, "--nanobeir_dataset ID", other)
    add(parser, "--mteb TASK", "evaluate on tasks of mteb, such as SciFact", nargs="+")
    add_setting(parser, Settings, "metrics", metavar="METRIC", default="the recipe's; the first is tested")
    add(parser, "--relevance-level GRADE", RELEVANCE_LEVEL, type=int)
    add_settings(parser, Settings, ("depth", "rerank_depth"))
    add(parser, "--output FOLDER", "write TREC run files, qrels and metrics.json there")
    add(parser, "--index FOLDER", "an existing index, or where to save the one that is built")
    _add_lengths(parser, names_of(TextConfig))


def augment(parser: Parser) -> None:
    """Write training lists, denoised by the ranker.

    The retriever finds passages and the ranker scores them. A trainer uses the
    lists with its setting train_lists. Scores are cached, so that trying
    other thresholds takes seconds.

    example:
      hf-ar2 augment runs/scifact --output lists/scifact --calibrate dev --audit
    """
    add_models(parser)
    add(parser, "--output FOLDER", "the folder to write", required=True)
    metavars = {"train_split": "SPLIT", "unlabelled": "FILE", "kinds": "KIND", "calibrate": "SPLIT"}
    for name in names_of(AugmentConfig):
        if name not in names_of(EncodingConfig):
            option = "--split" if name == "train_split" else f"--{name}"
            shown = {"metavar": metavars[name]} if name in metavars else {}
            add_setting(parser, AugmentConfig, name, option, **shown)
    likely = "print the most likely false negatives of N queries (20)"
    add(parser, "--audit N", likely, nargs="?", type=positive, const=20)
    add(parser, "--index FOLDER", "an index made by `hf-ar2 index` (`work/index` in its folder)")
    _add_lengths(parser, names_of(TextConfig))


def score(parser: Parser) -> None:
    """Write training lists with the scores of a ranker, to distil.

    The lists are those that --retriever finds, or those in the folder --lists.
    A retriever learns from the scores with the settings train_lists and
    distillation. To continue an interrupted command, run it again.

    example:
      hf-ar2 score BeIR/scifact --retriever sentence-transformers/all-MiniLM-L6-v2 \\
          --ranker BAAI/bge-reranker-v2-m3 --output lists/scored
    """
    parser.usage = "hf-ar2 score COLLECTION --ranker MODEL --output FOLDER [options]"
    add(parser, "COLLECTION", ANY_COLLECTION)
    add(parser, "--ranker MODEL", f"the teacher: {ANY_MODEL}", required=True)
    add(parser, "--output FOLDER", "the folder to write", required=True)
    add(parser, "--retriever MODEL", "finds the lists: labelled positives, other passages as negatives")
    add(parser, "--lists FOLDER", "existing training lists, or `collection`: its own")
    add_setting(parser, ScoreConfig, "train_split", "--split", metavar="SPLIT")
    add_settings(parser, ScoreConfig, ("depth", "batch_tokens"))
    _add_loading(parser, ranker=True)
    _add_lengths(parser, names_of(TextConfig))


def add_models(parser: Parser) -> None:
    """A run folder, or models and a collection, and how models are loaded."""
    add(parser, "RUN", "a run folder", nargs="?")
    add(parser, "--retriever MODEL", ANY_MODEL)
    add(parser, "--ranker MODEL", "as --retriever, for the ranker")
    add(parser, "--collection SOURCE", ANY_COLLECTION)
    _add_loading(parser, ranker=True)


def _add_loading(parser: Parser, *, ranker: bool) -> None:
    group = parser.add_argument_group("how models are loaded")
    dtypes = ("float32", "bfloat16", "float16")
    weights = "data type of the weights (as saved); float32 without RUN also turns off bf16"
    add(group, "--model_dtype", weights, choices=dtypes)
    add(group, "--attn_implementation NAME", "sdpa, eager, flash_attention_2, ... (transformers chooses)")
    truncated = "cut the retriever's embeddings to their first N dimensions (as saved)"
    add(group, "--truncate_dim N", truncated, type=positive)
    trusted = "run custom code from a model's repository"
    add(group, "--trust_remote_code", trusted, action="store_true", default=None)
    add(group, "--revision NAME", "branch, tag or commit of the retriever on the Hub")
    add(group, "--query_prompt TEXT", "put before queries by the retriever, such as 'query: ' (as saved)")
    add(group, "--passage_prompt TEXT", "put before passages by the retriever (as saved)")
    if ranker:
        add(group, "--ranker_revision NAME", "as --revision, for the ranker")
        add(group, "--ranker_prompt TEXT", "put before the queries of pairs by the ranker (as saved)")


def encode(parser: Parser) -> None:
    """Write the embedding of every passage of a collection.

    OUT gets embeddings.npy [passages, dimensions] and ids.json, in the same order.

    example:
      hf-ar2 encode runs/scifact/retriever BeIR/scifact embeddings/
    """
    _add_encoding(parser)


def index(parser: Parser) -> None:
    """Build a FAISS index over a collection.

    If MODEL is a run folder, its retriever and its recipe's lengths are used, and
    `hf-ar2 search RUN --index OUT` searches the index.

    example:
      hf-ar2 index runs/scifact BeIR/scifact indexes/scifact --factory HNSW32
    """
    _add_encoding(parser)
    add_setting(parser, EncodingConfig, "index_factory", "--factory", metavar="FACTORY")


def _add_encoding(parser: Parser) -> None:
    add(parser, "MODEL", "the retriever: a run folder, a model's folder, or a Hub id")
    add(parser, "COLLECTION", ANY_COLLECTION)
    add(parser, "OUT", "the folder to write")
    add_setting(parser, EncodingConfig, "index_dtype", "--dtype", choices=("float32", "float16"))
    _add_loading(parser, ranker=False)
    _add_lengths(parser, ("max_passage_length", "title_separator", "passage_template"))


def search(parser: Parser) -> None:
    """Search passages, with the scores of both models.

    The retriever finds passages and the ranker reorders them. Without QUERY, the
    command asks for queries.

    The index of a run is built once, in RUN. Without RUN, name the models, such as
    those that a trainer saved, and where to keep the index:
      hf-ar2 search --retriever runs/ar2/retriever --ranker runs/ar2/ranker \\
        --collection BeIR/scifact --index indexes/ar2 "vitamin D and colds"

    example:
      hf-ar2 search runs/scifact "does vitamin D prevent colds" -k 5
    """
    add_models(parser)
    add(parser, "QUERY", "what to search for", nargs="*", default=[])
    add(parser, "-k N", "passages to show (%(default)s)", type=positive, default=10)
    add_searched(parser)


def add_searched(parser: Parser) -> None:
    """The options of commands that search: how deep the ranker reads, the index, and how texts are read."""
    add_settings(parser, Settings, ["rerank_depth"])
    index = "an index made by `hf-ar2 index`, or where to save the one that is built"
    add(parser, "--index FOLDER", f"{index} (RUN/index, else a temporary folder)")
    _add_lengths(parser, names_of(TextConfig))


def collection(parser: Parser) -> None:
    """Write any collection as a BEIR folder.

    text:FOLDER: a passage is about 100 words of one section of a text file
    (Markdown, plain text, reStructuredText, HTML, or a man page). Queries come from
    a file of questions, or are headings, which training then removes from the
    passages. python-packages: a passage is a function without its docstring, its
    query the docstring's first sentence. Skipped rows are counted.

    example:
      hf-ar2 collection text:docs data/mine --queries questions.tsv
    """
    forms = "text:FOLDER, python-packages:NAME,NAME, a BEIR, MS MARCO or DPR folder, or a Hub id like BeIR/scifact"
    add(parser, "SOURCE", forms)
    add(parser, "OUT", "the folder to write")
    skipped = "skip rows with this problem; the error message names it"
    add(parser, "--skip CAUSE", skipped, nargs="+", default=[])
    add(parser, "--max_passages N", "keep this many passages, including all judged ones", type=positive)
    questions = "for text:FOLDER: lines of a question, a tab, and the file with its answer"
    add(parser, "--queries FILE", f"{questions} (the files' headings)")
    read = "for text:FOLDER: files to read, such as .md,.txt,README (all supported ones)"
    add(parser, "--endings LIST", read, type=lambda given: given.split(","))
    headings = "for text:FOLDER: also use headings that are versions, signatures or too short"
    add(parser, "--all-headings", headings, action="store_true")


def import_(parser: Parser) -> None:
    """Convert a paper's published checkpoint to a standard one.

    A missing or unexpected parameter is an error. Files that could run code when
    they are read (such as Paddle's pickles) are rejected.

    example:
      hf-ar2 import dpr bert-base-encoder.cp models/dpr --base bert-base-uncased
    """
    formats = ("ar2", "ar2-ranker", "dpr", "rocketqa", "rocketqa-ranker")
    add(parser, "FORMAT", ", ".join(formats), choices=formats)
    add(parser, "FILE", "the published file; for Paddle, its folder of parameters or an .npz")
    add(parser, "OUT", "the folder to write")
    base = "the model that it was trained from, for configuration and tokenizer"
    add(parser, "--base MODEL", base, required=True)
    add(parser, "--max_length N", "longest text or pair, in tokens (the tokenizer's)", type=positive)


def _add_lengths(parser: Parser, names: tuple[str, ...]) -> None:
    title = "how texts are read (as in the run's recipe, or up to the models' limits)"
    add_settings(parser.add_argument_group(title), TextConfig, names, default="")


def settings(parser: Parser) -> None:
    """List the settings of a trainer, or explain one of them.

    Shows type, default, unit and the values in papers. Set one in a recipe, or with
    `hf-ar2 train RECIPE --SETTING VALUE`. All arguments of transformers'
    TrainingArguments work too.

    example:
      hf-ar2 settings ar2 adversarial_weight
    """
    add(parser, "TRAINER", ", ".join(TRAINERS), choices=TRAINERS)
    parser.add_argument("name", nargs="?", metavar="SETTING", help="the setting to explain (a table of all)")


def env(parser: Parser) -> None:
    """Print versions and hardware, for a bug report.

    No paths, host names or user names are printed.

    example:
      hf-ar2 env
    """
