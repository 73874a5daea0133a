"""Functions of installed Python packages as passages, the first sentences of their docstrings as queries.

The text is already on the machine. The packages are parsed, never imported.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import logging
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hf_ar2.collections.collection import Collection
from hf_ar2.collections.problems import CollectionError
from hf_ar2.collections.splits import SPLITS, split_of
from hf_ar2.collections.tables import PASSAGE_FEATURES, QUERY_FEATURES, dataset_of, relevant_qrels

logger = logging.getLogger(__name__)

MIN_WORDS, MAX_WORDS = 5, 30
MIN_BODY_LINES = 3

_OTHER_CODE = re.compile(
    r"_?(tests?|testing|vendor|vendored|externals?|extern|third_?party|conftest|test_.*|.*_tests?"
    # Vendored code under other names, in the packages of the default collection.
    r"|array_api.*|cobyqa|pyprima|uarray|pep440|clipboard)"
)
_CODE_MARK = re.compile(r"""[`=\[\]{}<>|\\@#$^*~]|::|\(\)|_\w|\w_""")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)[.!?]\s")


class Pair(NamedTuple):
    """A function: qualified name, first sentence of its docstring, and source without the docstring."""

    name: str
    sentence: str
    source: str


def load_python_packages(packages: Iterable[str], *, name: str | None = None) -> Collection:
    """Builds a collection from installed packages.

    A passage is the source of a function or method without docstring, decorators and common indentation; its title is
    empty. Its query is the first sentence of the docstring. Skipped, and counted in `Collection.skipped`: sentences
    that do not have 5 to 30 words, are not ASCII, have code marks or name the function; bodies under three lines;
    sentences and sources that occur more than once. Tests and vendored code are ignored. A hash of the qualified name
    puts 80 % of the pairs into train, 10 % into dev and 10 % into test. The result depends only on the installed
    versions.

    Args:
        packages: Names of distributions (`scikit-learn`) or of modules (`sklearn`).
        name: The collection's name; by default `python-packages:` and the names.

    Returns:
        The collection; passage ids are qualified names, query ids the same after `q:`.

    Raises:
        CollectionError: A package is not installed, or has no usable function.

    Example:
        >>> collection = load_python_packages(["json"])
        >>> collection.queries[0]["id"] == "q:" + collection.corpus[0]["id"]
        True
    """
    names = [package.strip() for package in packages if package.strip()]
    if not names:
        raise CollectionError("python-packages: found no package name; expected some, as in numpy,pandas")
    source = f"python-packages:{','.join(names)}"
    dropped: Counter[str] = Counter()
    modules = sorted({item for package in names for item in _modules(package)})
    with _without_garbage_collection():
        pairs = [pair for module, file in modules for pair in _pairs_of(module, file, dropped)]
    pairs = _without_repeats(pairs, dropped)
    if not pairs:
        raise CollectionError(
            f"{source}: found no function with a usable docstring; skipped: {dict(dropped)}"
        )
    skipped = {cause: dropped[cause] for cause in sorted(dropped)}
    logger.info("%s: kept %d pairs, skipped %s", source, len(pairs), skipped)
    ids = [pair.name for pair in pairs]
    query_ids = [f"q:{id}" for id in ids]
    qrels = {}
    for split in SPLITS:
        of_split = [id for id in ids if split_of(id) == split]
        qrels[split] = relevant_qrels([f"q:{id}" for id in of_split], of_split)
    passages = {"id": ids, "title": [""] * len(ids), "text": [pair.source for pair in pairs]}
    queries = {"id": query_ids, "text": [pair.sentence for pair in pairs]}
    return Collection(
        name or source,
        dataset_of(passages, PASSAGE_FEATURES),
        dataset_of(queries, QUERY_FEATURES),
        qrels,
        skipped,
    )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Parsing creates millions of nodes without cycles; searching them for cycles takes longer than parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Qualified name and file of the modules of an installed package, without tests and vendored code."""
    for root in _import_names(package):
        spec = importlib.util.find_spec(root)  # runs no code of the package, as it is a top-level name
        if spec is None:
            continue
        if spec.submodule_search_locations is None:
            if spec.origin and spec.origin.endswith(".py"):
                yield root, Path(spec.origin)
            continue
        for folder in map(Path, spec.submodule_search_locations):
            for file in folder.rglob("*.py"):
                parts = file.relative_to(folder).with_suffix("").parts
                if any(_OTHER_CODE.fullmatch(part) or not part.isidentifier() for part in parts):
                    continue
                yield ".".join([root, *(parts[:-1] if parts[-1] == "__init__" else parts)]), file


def _import_names(package: str) -> list[str]:
    """The package itself if it is a module, else the top-level modules that it installs."""
    if package.isidentifier() and importlib.util.find_spec(package) is not None:
        return [package]
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise CollectionError(
            f"python-packages: {package!r} is not installed here, neither as a distribution nor as a module; "
            f"install it (pip install {package}), or leave it out of the list"
        ) from error
    listed = (distribution.read_text("top_level.txt") or "").split()
    files = distribution.files or []
    shipped = {file.parts[0] for file in files if len(file.parts) == 2 and file.name == "__init__.py"}
    shipped |= {file.stem for file in files if len(file.parts) == 1 and file.suffix == ".py"}
    names = {name for name in shipped.union(listed) if name.isidentifier()}
    own = sorted(name for name in names if not _OTHER_CODE.fullmatch(name))
    return own or [package.replace("-", "_")]


def _pairs_of(module: str, file: Path, dropped: Counter[str]) -> Iterator[Pair]:
    try:
        with tokenize.open(file) as stream:
            source = stream.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # for invalid escape sequences
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        dropped["files that do not parse"] += 1
        return
    lines = source.split("\n")
    for name, node in _functions(module, tree):
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            dropped["functions without a docstring"] += 1
            continue
        sentence = _first_sentence(docstring)
        passage = _source_without_docstring(node, lines)
        cause = _reason_to_skip(node.name, sentence, passage, node)
        if cause:
            dropped[cause] += 1
        else:
            yield Pair(name, sentence, passage)


def _functions(prefix: str, parent: ast.AST) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods with their qualified names; nested functions belong to the outer one."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(f"{prefix}.{node.name}", node)
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            yield from _functions(prefix, node)


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(_PARAGRAPH_END.split(docstring.strip(), maxsplit=1)[0].split())
    end = _SENTENCE_END.search(paragraph)
    return (paragraph[: end.start()] if end else paragraph).rstrip(".").strip()


def _source_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    docstring = node.body[0]
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    margin = " " * node.col_offset
    return "\n".join(line.removeprefix(margin).rstrip() for line in kept).strip("\n")


def _reason_to_skip(
    name: str, sentence: str, passage: str, node: ast.FunctionDef | ast.AsyncFunctionDef
) -> str | None:
    """Why a function is skipped, or None."""
    docstring, rest = node.body[0], node.body[1:]
    if docstring.lineno == node.lineno or (rest and rest[0].lineno <= (docstring.end_lineno or 0)):
        return "docstrings that share a line with code"
    if not MIN_WORDS <= len(sentence.split()) <= MAX_WORDS:
        return f"sentences not of {MIN_WORDS} to {MAX_WORDS} words"
    if not sentence.isascii():
        return "sentences that are not ASCII"
    if _CODE_MARK.search(sentence):
        return "sentences with code marks"
    if name.strip("_").lower() in re.findall(r"\w+", sentence.lower()):
        return "sentences that name the function"
    body = passage.split("\n")[docstring.lineno - node.lineno :]
    if sum(1 for line in body if line.strip() and not line.lstrip().startswith("#")) < MIN_BODY_LINES:
        return f"bodies under {MIN_BODY_LINES} lines"
    return None


def _without_repeats(pairs: list[Pair], dropped: Counter[str]) -> list[Pair]:
    """Drops later definitions of a name, and all pairs that share their sentence or source with another."""
    by_name: dict[str, Pair] = {}
    for pair in pairs:
        by_name.setdefault(pair.name, pair)
    if len(by_name) < len(pairs):
        dropped["names defined before"] += len(pairs) - len(by_name)
    sentences = Counter(pair.sentence.casefold() for pair in by_name.values())
    sources = Counter(pair.source for pair in by_name.values())
    kept = []
    for pair in by_name.values():
        if sentences[pair.sentence.casefold()] > 1:
            dropped["sentences of several functions"] += 1
        elif sources[pair.source] > 1:
            dropped["sources of several functions"] += 1
        else:
            kept.append(pair)
    return kept
