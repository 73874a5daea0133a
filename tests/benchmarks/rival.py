"""The rival: what an expert writes with sentence-transformers alone, within a budget of processor seconds.

Zero-shot on dev; warm-up with in-batch negatives; hard negatives mined with the warmed-up model; training on them; the
best of the three retrievers on dev stays. Then a cross-encoder on lists of mined and random negatives, and how deep it
re-ranks, and with what weight beside the retriever's score, is chosen on dev too. Nothing here but the reading of the
collection and the metrics is ours.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from processor_budget import Allowance, Budget, affordable
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import ListNetLoss
from sentence_transformers.cross_encoder.model_card import CrossEncoderModelCardData
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
from sentence_transformers.util import mine_hard_negatives
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from hf_ar2.collections import Collection
from hf_ar2.evaluation.systems import evaluated_queries, measure
from hf_ar2.models.loading import resolve_model_name

METRICS = ("mrr@10", "ndcg@10")
DEPTHS = (0, 5, 10, 20, 50)
WEIGHTS = (None, 0.25, 0.5, 1.0, 2.0)  # of the ranker's logit beside cosine / 0.05; None: the ranker's alone


@dataclass
class Rules:
    """The settings that were tuned on the dev splits of squad-small and scifact."""

    passage_length: int = 128
    pair_length: int = 160
    warmup_batch: int = 64
    warmup_rate: float = 5e-5
    hard_batch: int = 32
    hard_rate: float = 2e-5
    negatives: int = 2
    margin: float = 0.05
    ranker_queries: int = 4
    ranker_negatives: int = 5
    ranker_random: int = 1
    ranker_rate: float = 5e-5
    ranker_head_rate: float = 1e-3
    ranker_from: str = "retriever"
    encoding_share: float = 0.06  # of the budget, for one encoding of the passages that dev is measured on
    rerank_share: float = 0.08  # of the budget, for the pairs that the ranker scores on dev
    ranker_part: float = (
        0.4  # of what is left for training; the warm-up and the hard negatives share the rest
    )
    ranker_least_steps: int = 100  # after 46 steps the loss of a fresh head was still that of chance


@dataclass
class Retrieved:
    """A retriever with its embeddings of the passages in `rows` of the corpus."""

    model: SentenceTransformer
    rows: np.ndarray
    embeddings: np.ndarray
    dev: float = float("nan")

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and corpus rows `[Q, depth]`, best first."""
        scores = queries @ self.embeddings.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return np.take_along_axis(scores, order, axis=1), self.rows[order]


@dataclass
class Rival:
    """Trains on a collection within a budget. `train` does it all; `rankings` then searches a split."""

    collection: Collection
    model: str
    budget: Budget
    seed: int = 42
    bf16: bool = True
    rules: Rules = field(default_factory=Rules)
    split: str = "dev"

    def __post_init__(self) -> None:
        self.passages = self.collection.passage_texts()
        self.queries = list(self.collection.queries["text"])
        self.random = np.random.default_rng(self.seed)
        self.dev: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        judgments = self.collection.judgments("train").positives()
        self.pairs = [
            (int(query), int(row))
            for i, query in enumerate(judgments.query_rows)
            for row in judgments.of(i)[0]
        ]

    # ---- the whole

    def train(self) -> None:
        """Everything that the budget pays for."""
        rules, budget = self.rules, self.budget
        base = self.load_retriever()
        rows = self.dev_passages(base)
        self.zero_shot = self.measured("zero-shot", base, rows)
        encoding = budget.parts["dev: zero-shot"]
        rerank = rules.rerank_share * budget.seconds
        training = budget.left - 2 * encoding - rerank
        steps = rules.ranker_part * training / self.ranker_step_seconds()
        ranks = steps >= rules.ranker_least_steps
        if not ranks:  # too few for a fresh head to learn to order: the retriever has better use for the time
            rerank = 0.0
            training = budget.left - 2 * encoding
        part = training * (1 - rules.ranker_part * ranks) / 2
        self.facts |= {"passages on dev": len(rows), "ranker steps that would fit": round(steps)}
        with budget.part("warm-up"):
            warmed = self.train_retriever(copy.deepcopy(base), self.pair_dataset(), part, "warm-up")
        mined, warm = self.mine(warmed, rows, part)
        with budget.part("hard negatives"):
            seconds = part if ranks else budget.left - encoding
            hard = self.train_retriever(copy.deepcopy(warmed), mined, seconds, "hard negatives")
        hardened = self.measured("hard negatives", hard, rows)
        self.best = max((self.zero_shot, warm, hardened), key=lambda found: found.dev)
        self.depth, self.weight, self.tries = 0, None, {(0, None): self.best.dev}
        if ranks:
            with budget.part("ranker"):
                self.train_ranker(budget.left - rerank)
            with budget.part("dev: re-ranking"):
                self.choose_depth(rerank)
        self.facts |= {"depth": self.depth, "weight": self.weight}
        print(f"  {self.budget.spent:.0f} s: {self.facts}", flush=True)

    def ranker_step_seconds(self) -> float:
        """What a step of the ranker will cost: a trained token costs three and a half that are encoded."""
        pairs = self.rules.ranker_queries * (1 + self.rules.ranker_negatives)
        return 3.5 * pairs * self.seconds_each * self.rules.pair_length / self.rules.passage_length

    # ---- retriever

    def load_retriever(self) -> SentenceTransformer:
        model = SentenceTransformer(
            resolve_model_name(self.model), device="cpu", **loading(SentenceTransformerModelCardData)
        )
        model.max_seq_length = self.rules.passage_length
        return without_dropout(model)

    def dev_passages(self, model: SentenceTransformer) -> np.ndarray:
        """The judged passages of dev and as many others as one encoding may cost: all where that is enough."""
        with self.budget.part("dev: zero-shot"):
            judged = np.unique(self.collection.judgments(self.split).passage_rows)
            others = self.others_than(judged)
            sample = self.random.permutation(len(self.passages))[:64]
            before = self.budget.clock()
            self.encode(model, [self.passages[row] for row in sample])
            self.seconds_each = (self.budget.clock() - before) / len(sample)
            seconds = self.rules.encoding_share * self.budget.seconds
            number = affordable(len(self.passages), self.seconds_each, seconds, at_least=2 * len(judged))
        return np.sort(np.concatenate([judged, others[: max(0, number - len(judged))]]))

    def others_than(self, judged: np.ndarray) -> np.ndarray:
        """The other passages in random order, the positives of training pairs first: mining has to encode those."""
        every = np.arange(len(self.passages))
        positives = self.random.permutation(np.setdiff1d(np.unique([row for _, row in self.pairs]), judged))
        rest = self.random.permutation(np.setdiff1d(every, np.union1d(judged, positives)))
        return np.concatenate([positives, rest]).astype(np.int64)

    def measured(self, name: str, model: SentenceTransformer, rows: np.ndarray) -> Retrieved:
        with self.budget.part(f"dev: {name}"):
            found = Retrieved(model, rows, self.encode(model, [self.passages[row] for row in rows]))
            return self.on_dev(name, found)

    def on_dev(self, name: str, found: Retrieved) -> Retrieved:
        queries = evaluated_queries(self.collection, self.split)
        _, rows = found.search(self.encode_queries(found.model, queries), 10)
        found.dev = self.dev[name] = float(
            measure(self.collection, self.split, rows, ["mrr@10"])["mrr@10"].mean()
        )
        print(f"  {self.budget.spent:.0f} s: {name}, dev MRR@10 {found.dev:.4f}", flush=True)
        return found

    def pair_dataset(self) -> Dataset:
        return Dataset.from_dict(
            {
                "anchor": [self.queries[query] for query, _ in self.pairs],
                "positive": [self.passages[row] for _, row in self.pairs],
            }
        )

    def mine(self, model: SentenceTransformer, rows: np.ndarray, seconds: float) -> tuple[Dataset, Retrieved]:
        """Hard negatives for the queries that training will reach, and dev measured on the same embeddings."""
        with self.budget.part("mining and dev: warm-up"), tempfile.TemporaryDirectory() as cache:
            # A step on hard negatives costs about what its passages cost in the warm-up.
            steps = self.facts["warm-up steps"] / max(1.0, self.budget.parts["warm-up"])
            passages = seconds * steps * self.rules.warmup_batch
            wanted = max(self.rules.hard_batch * 4, int(1.2 * passages / (1 + self.rules.negatives)))
            order = self.random.permutation(len(self.pairs))
            encoded = np.isin([self.pairs[i][1] for i in order], rows)
            chosen = np.concatenate([order[encoded], order[~encoded]])[: max(wanted, 400)]
            corpus = list(dict.fromkeys(self.passages[row] for row in rows))
            # A margin can leave too little; the embeddings are still in the cache then.
            for margin in (self.rules.margin, None):
                with self.precision():
                    lists = mine_hard_negatives(
                        self.pair_dataset().select(chosen),
                        model,
                        corpus=corpus,
                        range_max=30,
                        relative_margin=margin,
                        num_negatives=self.rules.ranker_negatives - self.rules.ranker_random,
                        sampling_strategy="top",
                        output_format="n-tuple",
                        batch_size=64,
                        cache_folder=cache,
                        verbose=False,
                    )
                if len(lists) >= 0.5 * len(chosen):
                    break
            # The cache is made anew by every mining: its key would not know the weights.
            stored = np.load(next(Path(cache).glob("corpus_embeddings_*.npy")))
            place = {text: i for i, text in enumerate(corpus)}
            embeddings = stored[[place[self.passages[row]] for row in rows]]
            warm = self.on_dev("warm-up", Retrieved(model, rows, embeddings))
        self.lists = lists
        columns = ["anchor", "positive", *(f"negative_{i + 1}" for i in range(self.rules.negatives))]
        self.facts["mined lists"] = len(lists)
        return lists.select_columns(columns), warm

    def train_retriever(
        self, model: SentenceTransformer, dataset: Dataset, seconds: float, name: str
    ) -> SentenceTransformer:
        rules = self.rules
        first = name == "warm-up"
        batch = rules.warmup_batch if first else rules.hard_batch
        allowance = Allowance(self.budget, seconds)
        # The last batches without duplicates can have one pair, which teaches nothing: they are dropped.
        args = SentenceTransformerTrainingArguments(
            **self.arguments(),
            per_device_train_batch_size=batch,
            learning_rate=rules.warmup_rate if first else rules.hard_rate,
            batch_sampler="no_duplicates",
            dataloader_drop_last=len(dataset) > 4 * batch,
        )
        trainer = TimedRetrieverTrainer(
            model=model, args=args, train_dataset=dataset, loss=MultipleNegativesRankingLoss(model)
        )
        trainer.train_within(allowance)
        self.facts[f"{name} steps"] = allowance.steps
        return model.eval()

    # ---- ranker

    def train_ranker(self, seconds: float) -> None:
        rules = self.rules
        allowance = Allowance(self.budget, seconds)
        with tempfile.TemporaryDirectory() as folder:
            start = resolve_model_name(self.model)
            if rules.ranker_from == "retriever":
                self.best.model.save_pretrained(folder, create_model_card=False)
                start = folder
            torch.manual_seed(self.seed)
            self.ranker = CrossEncoder(
                start,
                num_labels=1,
                device="cpu",
                activation_fn=torch.nn.Identity(),
                max_length=rules.pair_length,
                **loading(CrossEncoderModelCardData),
            )
        without_dropout(self.ranker)
        args = CrossEncoderTrainingArguments(
            **self.arguments(),
            per_device_train_batch_size=rules.ranker_queries,
            learning_rate=rules.ranker_rate,
            learning_rate_mapping={r"classifier|pooler": rules.ranker_head_rate},
        )
        loss = ListNetLoss(self.ranker, mini_batch_size=-1)
        trainer = TimedRankerTrainer(
            model=self.ranker, args=args, train_dataset=self.ranker_lists(), loss=loss
        )
        trainer.train_within(allowance)
        self.facts["ranker steps"] = allowance.steps
        self.ranker.eval()

    def ranker_lists(self) -> Dataset:
        """One positive, mined negatives and random ones. ListNet takes the softmax of labels: 10 leaves one winner."""
        mined = [name for name in self.lists.column_names if name.startswith("negative")]
        table: dict[str, list[Any]] = {"query": [], "documents": [], "labels": []}
        for entry in self.lists:
            random = self.random.integers(len(self.passages), size=self.rules.ranker_random)
            documents = [
                entry["positive"],
                *(entry[name] for name in mined),
                *(self.passages[row] for row in random),
            ]
            documents = list(dict.fromkeys(documents))
            table["query"].append(entry["anchor"])
            table["documents"].append(documents)
            table["labels"].append([10.0] + [0.0] * (len(documents) - 1))
        return Dataset.from_dict(table)

    def choose_depth(self, seconds: float) -> None:
        """Depth and weight with the best dev MRR@10 on the dev queries whose pairs fit into the seconds."""
        every = evaluated_queries(self.collection, self.split)
        scores, rows = self.best.search(self.encode_queries(self.best.model, every), 50)
        before = self.budget.clock()
        self.score(every[:2], rows[:2, :10])
        each = (self.budget.clock() - before) / 20
        number = affordable(50 * len(every), each, max(0.0, seconds))
        depth = next(d for d in (50, 20, 10, 5) if number >= d * min(100, len(every)) or d == 5)
        places = np.sort(
            self.random.permutation(len(every))[: affordable(len(every), depth * each, max(1.0, seconds))]
        )
        logits = self.score(every[places], rows[places, :depth])
        tries = {}
        for k in [k for k in DEPTHS if k <= depth]:
            for weight in WEIGHTS if k else WEIGHTS[:1]:
                ranked = np.array(rows)
                ranked[places] = reranked(scores[places], rows[places], logits[:, :k], weight)
                values = measure(self.collection, self.split, ranked[:, :10], ["mrr@10"])["mrr@10"]
                tries[k, weight] = float(values[places].mean())
        self.depth, self.weight = max(tries, key=lambda key: (tries[key], -key[0]))
        self.tries = tries
        self.dev["retrieve and re-rank"] = tries[self.depth, self.weight]
        self.dev["retriever on the same queries"] = tries[0, None]
        self.facts["re-ranked dev queries"] = len(places)

    def score(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The ranker's logits `[Q, k]` of some corpus rows."""
        pairs = [
            (self.queries[query], self.passages[row])
            for query, line in zip(queries, rows, strict=True)
            for row in line
        ]
        with self.precision():
            logits = self.ranker.predict(
                pairs, batch_size=64, convert_to_tensor=True, show_progress_bar=False
            )
        return logits.float().numpy().reshape(rows.shape)

    # ---- afterwards

    def rankings(self, split: str) -> dict[str, np.ndarray]:
        """Corpus rows `[Q, 100]` of zero-shot, the retriever and the full system over the whole corpus."""
        queries = evaluated_queries(self.collection, split)
        found: dict[str, np.ndarray] = {}
        for name, kept in (("zero-shot", self.zero_shot), ("retriever", self.best)):
            if name == "zero-shot" or kept is not self.zero_shot:
                self.encode_the_rest(kept)
            scores, found[name] = kept.search(self.encode_queries(kept.model, queries), 100)
        found["system"] = found["retriever"]
        if self.depth:
            logits = self.score(queries, found["retriever"][:, : self.depth])
            found["system"] = reranked(scores, found["retriever"], logits, self.weight)
        return found

    def encode_the_rest(self, kept: Retrieved) -> None:
        """The passages that dev did without."""
        rest = np.setdiff1d(np.arange(len(self.passages)), kept.rows)
        if len(rest):
            more = self.encode(kept.model, [self.passages[row] for row in rest])
            kept.rows = np.concatenate([kept.rows, rest])
            kept.embeddings = np.concatenate([kept.embeddings, more])

    # ---- what the parts share

    def encode(self, model: SentenceTransformer, texts: Sequence[str]) -> np.ndarray:
        with self.precision():
            vectors = model.encode_document(
                list(texts),
                batch_size=64,
                normalize_embeddings=True,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        return vectors.float().numpy()

    def encode_queries(self, model: SentenceTransformer, queries: np.ndarray) -> np.ndarray:
        with self.precision():
            vectors = model.encode_query(
                [self.queries[query] for query in queries],
                batch_size=64,
                normalize_embeddings=True,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        return vectors.float().numpy()

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def arguments(self) -> dict[str, Any]:
        return {
            "output_dir": tempfile.gettempdir(),
            "max_steps": 100_000,  # the allowance ends training
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "bf16": self.bf16,
            "use_cpu": True,
            "seed": self.seed,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }


class _Stop(TrainerCallback):
    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = self.allowance.step_done()


class _Timed:
    """A trainer whose schedule follows an allowance of processor seconds."""

    def train_within(self: Any, allowance: Allowance) -> None:
        if allowance.seconds <= 0:
            return
        self.allowance = allowance
        self.add_callback(_Stop(allowance))
        self.train()

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: self.allowance.factor())
        return self.lr_scheduler


class TimedRetrieverTrainer(_Timed, SentenceTransformerTrainer):
    pass


class TimedRankerTrainer(_Timed, CrossEncoderTrainer):
    pass


def loading(card: type) -> dict[str, Any]:
    """The attention that trains fastest in bf16 on a CPU, and no examples for a model card, which cost seconds."""
    return {
        "model_kwargs": {"attn_implementation": "eager"},
        "model_card_data": card(generate_widget_examples=False),
    }


def without_dropout(model: Any) -> Any:
    """Dropout is a fifth of a small model's training time on a CPU; so short a training does as well without it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def reranked(scores: np.ndarray, rows: np.ndarray, logits: np.ndarray, weight: float | None) -> np.ndarray:
    """Rows with the first k, those with logits, in the order of cosine / 0.05 + weight × logit.

    Args:
        scores, rows: `[Q, K]`, the retriever's cosines and what it found, best first.
        logits: `[Q, k]` of the first k; k may be 0.
        weight: None takes the logits alone.
    """
    depth = logits.shape[1]
    mixed = logits if weight is None else scores[:, :depth] / 0.05 + weight * logits
    order = np.argsort(-mixed, axis=1, kind="stable")
    return np.concatenate([np.take_along_axis(rows[:, :depth], order, axis=1), rows[:, depth:]], axis=1)
