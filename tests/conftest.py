"""What the tests share: tiny models built offline and a tiny collection that such models can learn."""

from __future__ import annotations

import os

# Before transformers and datasets are imported, which read these once: the tests must not reach for the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import contextlib
import itertools
import string
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml

if TYPE_CHECKING:
    from transformers import BertConfig, BertTokenizer

    from hf_ar2.collections import Collection
    from hf_ar2.command_line.web import WebServer

ANIMALS = "badger crane falcon heron lynx marten otter raven salmon turtle viper weasel".split()
VERBS = "builds carries follows guards hides watches".split()
OBJECTS = "apple basket candle drum feather lantern mirror pebble ribbon shell".split()
PLACES = "attic bakery castle desert forest garden harbour island meadow valley".split()
ADJECTIVES = "brave calm eager gentle hungry quiet".split()
FILLERS = "the a in near at dawn dusk night noon and while it rains snows does what where . ?".split()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests for a GPU unless they are asked for: `-m gpu`."""
    if "gpu" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(scope="session", autouse=True)
def float32_by_default() -> Iterator[None]:
    """Results do not depend on whether this processor is fast in bf16; tests of bf16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("search.system", "augmentation.teacher", "trainers.config"):
            patch.setattr(f"hf_ar2.{module}.bf16_is_faster", lambda device: False)
        yield


@pytest.fixture(scope="session")
def tiny_collection() -> Collection:
    """60 passages and 40 queries; a query shares its animal, verb and object with its one positive.

    Splits: train 24, dev 8, test 8 queries. Ids are strings that say nothing of rows ("p100", "q200", ...).
    """
    return make_tiny_collection()


@pytest.fixture(scope="session")
def tiny_retriever_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder SentenceTransformer loads: 2-layer random BERT of width 32, mean pooling, normalised."""
    return make_tiny_retriever(tmp_path_factory.mktemp("models") / "tiny-retriever")


@pytest.fixture(scope="session")
def tiny_ranker_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder CrossEncoder loads: the same BERT with one logit and identity activation."""
    return make_tiny_ranker(tmp_path_factory.mktemp("models") / "tiny-ranker")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny-retriever` and `tiny-ranker`, for scripts."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_retriever(folder / "tiny-retriever")
    make_tiny_ranker(folder / "tiny-ranker")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> Path:
    """A folder with the tiny collection in `data/`, and the tiny models in `retriever/` and `ranker/`."""
    folder = tmp_path_factory.mktemp("home")
    tiny_collection.save(folder / "data")
    make_tiny_retriever(folder / "retriever")
    make_tiny_ranker(folder / "ranker")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> Path:
    """A folder `tiny/` with the tiny collection."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    tiny_collection.save(folder)
    return folder


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """Writes the YAML file of a recipe; returns its path."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@contextlib.contextmanager
def served(server: WebServer) -> Iterator[None]:
    """A server answers in a thread meanwhile."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


def make_tiny_collection(seed: int = 0) -> Collection:
    """The collection of the fixture; also for scripts that tests start in a process of their own."""
    from datasets import Dataset, Features, Value

    from hf_ar2.collections import Collection

    rng = np.random.default_rng(seed)
    scenes = list(itertools.product(ANIMALS, VERBS, OBJECTS))
    passages, queries = [], []
    for number, scene in enumerate(rng.permutation(len(scenes))[:60]):
        animal, verb, thing = scenes[scene]
        adjective, place = rng.choice(ADJECTIVES), rng.choice(PLACES)
        text = f"the {adjective} {animal} {verb} a {thing} in the {place} at {rng.choice(['dawn', 'dusk'])}"
        passages.append({"id": f"p{100 + number}", "title": animal if number % 3 else "", "text": text})
        queries.append({"id": f"q{200 + number}", "text": f"where does the {animal} {verb} the {thing} ?"})
    queries = queries[:40]
    bounds = {"train": (0, 24), "dev": (24, 32), "test": (32, 40)}
    features = Features(query_id=Value("string"), passage_id=Value("string"), relevance=Value("int32"))
    qrels = {
        split: Dataset.from_list(
            [
                {"query_id": queries[i]["id"], "passage_id": passages[i]["id"], "relevance": 1}
                for i in range(start, stop)
            ],
            features=features,
        )
        for split, (start, stop) in bounds.items()
    }
    # Shuffled, so that a row of the corpus is not the row of the query that belongs to it.
    corpus = Dataset.from_list([passages[i] for i in rng.permutation(len(passages))])
    return Collection(name="tiny", corpus=corpus, queries=Dataset.from_list(queries), qrels=qrels, skipped={})


def with_passages(collection: Collection, count: int, seed: int = 7) -> Collection:
    """The collection with unjudged passages added until there are `count`, enough for 256 centroids."""
    import dataclasses

    from datasets import Dataset

    rng = np.random.default_rng(seed)
    rows = list(collection.corpus)
    rows += [
        {"id": f"x{number}", "title": "", "text": " ".join(rng.choice([*ANIMALS, *VERBS, *OBJECTS], 8))}
        for number in range(count - len(rows))
    ]
    return dataclasses.replace(collection, corpus=Dataset.from_list(rows))


def make_tiny_tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer that knows the words above whole and spells every other word out."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{character}" for character in characters), *string.punctuation]
    words = [*FILLERS, *ADJECTIVES, *ANIMALS, *VERBS, *OBJECTS, *PLACES]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*special, *pieces, *words]))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=64)


def make_tiny_retriever(folder: Path, seed: int = 0, positions: int = 64) -> Path:
    """Writes the retriever of the fixture to ``folder``, with positions for this many tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertModel

    encoder = folder.with_name(folder.name + "-encoder")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(tiny_config(positions)).save_pretrained(encoder)
    make_tiny_tokenizer().save_pretrained(encoder)
    transformer = Transformer(str(encoder))
    modules = [transformer, Pooling(32, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


def make_tiny_ranker(folder: Path, seed: int = 1) -> Path:
    """Writes the ranker of the fixture to ``folder``."""
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification

    encoder = folder.with_name(folder.name + "-encoder")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(encoder)
    make_tiny_tokenizer().save_pretrained(encoder)
    ranker = CrossEncoder(str(encoder), activation_fn=torch.nn.Identity(), device="cpu")
    ranker.save_pretrained(str(folder))
    return folder


def tiny_config(positions: int = 64, **options: float) -> BertConfig:
    """The configuration of the tiny models."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(make_tiny_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        **options,
    )
