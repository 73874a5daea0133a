"""Losses and scores that are not finite stop a run with the reason; what cannot be measured is not measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hf_ar2.evaluation import compare
from hf_ar2.evaluation.runs import run_of_scores
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.trainers import RankerConfig, RankerTrainer, RetrieverConfig, RetrieverTrainer

QUIET = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
QUIET |= {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "max_passage_length": 32,
    "eval_metrics": ["mrr@10"],
}


def spoiled(model):
    """The model with embeddings that are NaN."""
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


def test_a_loss_that_is_not_finite_stops_the_run(tiny_retriever_path, tiny_collection, tmp_path):
    args = RetrieverConfig(
        output_dir=str(tmp_path / "warm-up"), eval_strategy="no", eval_on_start=False, **QUIET
    )
    trainer = RetrieverTrainer(
        load_retriever(tiny_retriever_path, device="cpu"),
        args,
        tiny_collection,
        loss=lambda scores: scores.retriever_scores.sum() * float("nan"),
    )
    with pytest.raises(
        ValueError, match="^warm-up, step 1, retriever: the loss is nan. .*lower the learning rate"
    ):
        trainer.train()


def test_embeddings_and_scores_that_are_not_finite(
    tiny_retriever_path, tiny_ranker_path, tiny_collection, tmp_path
):
    args = RetrieverConfig(output_dir=str(tmp_path / "a"), **QUIET)
    retriever = spoiled(load_retriever(tiny_retriever_path, device="cpu"))
    with pytest.raises(ValueError, match="embedding of row .* not finite .*lower the learning rate"):
        RetrieverTrainer(retriever, args, tiny_collection).evaluate()
    ranker = spoiled(load_ranker(tiny_ranker_path, device="cpu"))
    args = RankerConfig(
        output_dir=str(tmp_path / "b"), num_negatives=2, eval_depth=20, rerank_depth=10, **QUIET
    )
    with pytest.raises(ValueError, match=r"the ranker's scores of \d+ of \d+ pairs are not finite"):
        RankerTrainer(tiny_retriever_path, ranker, args, tiny_collection).evaluate()


@pytest.mark.parametrize(("grades", "found"), [([], "0 judged"), ([0] * 8, "8 judged")])
def test_a_split_without_a_relevant_passage_is_not_measured(
    grades, found, tiny_retriever_path, tiny_collection, tmp_path
):
    table = tiny_collection.qrels["dev"].select(range(len(grades)))
    table = table.map(lambda row: {"relevance": 0}, load_from_cache_file=False) if grades else table
    collection = dataclasses.replace(tiny_collection, qrels={**tiny_collection.qrels, "dev": table})
    run = run_of_scores({}, collection.queries["id"], collection.corpus["id"])
    with pytest.raises(
        ValueError, match=f"split 'dev' of tiny has no relevant passage in its {found} queries"
    ):
        compare(collection, {"a": run}, "dev", ["mrr@10"])
    args = RetrieverConfig(output_dir=str(tmp_path), **QUIET)
    with pytest.raises(
        ValueError, match="eval_split='dev': this split of tiny has no query with a relevant passage"
    ):
        RetrieverTrainer(load_retriever(tiny_retriever_path, device="cpu"), args, collection)
