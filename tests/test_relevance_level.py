"""The lowest grade that is relevant: in judgments, metrics, training and recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_tiny_collection, write_recipe
from datasets import Dataset
from test_truncate_dim import recipe_of
from tiny_ar2 import settings_of

from hf_ar2.command_line.main import main
from hf_ar2.files import read_json
from hf_ar2.models.loading import load_retriever
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer

QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "max_steps": 1}


def graded():
    """The tiny collection: its positives have grade 2, and the passage after each grade 1."""
    collection = make_tiny_collection()
    ids = list(collection.corpus["id"])
    qrels = {}
    for split, judged in collection.qrels.items():
        rows = [
            (query, passage, 2)
            for query, passage in zip(judged["query_id"], judged["passage_id"], strict=True)
        ]
        rows += [(query, ids[(ids.index(passage) + 1) % 60], 1) for query, passage, _ in rows]
        columns = zip(*rows, strict=True)
        features = judged.features
        qrels[split] = Dataset.from_dict(
            dict(zip(("query_id", "passage_id", "relevance"), map(list, columns), strict=True)), features
        )
    return collection.with_same_corpus(qrels=qrels)


def test_it_decides_what_is_positive_in_the_splits_it_is_given_for():
    collection = graded()
    strict = collection.with_relevance_level(2, ["train"])
    for of, counts in ((collection, (48, 16)), (strict, (24, 16))):
        assert (
            tuple(len(of.judgments(split).positives().passage_rows) for split in ("train", "dev")) == counts
        )
        assert tuple(len(of.for_training().judgments(split)) for split in ("train", "dev")) == (24, 8)
    part = strict.judgments("train").take([0, 3])
    assert part.level == part.positives().level == 2 and len(part.positives().passage_rows) == 2
    assert strict.fingerprint == collection.fingerprint
    assert "24 queries, 48 judgments (24 relevant)" in repr(strict)


def test_training_takes_positives_of_the_level_and_may_draw_others_as_negatives(
    tmp_path, tiny_retriever_path
):
    drawn = {}
    for level in (1, 2):
        args = RetrieverConfig(
            output_dir=str(tmp_path / str(level)),
            **{**settings_of(RetrieverConfig), **QUIET, "relevance_level": level, "pool_depth": 60},
        )
        trainer = RetrieverTrainer(load_retriever(tiny_retriever_path, device="cpu"), args, graded())
        trainer.train()
        pool, judged = trainer.pool, trainer.collection.judgments("train")
        assert (pool.positive_rows >= 0).sum() == (48 if level == 1 else 24)
        drawn[level] = [
            set(judged.passage_rows[part][judged.relevance[part] == 1]) <= set(pool.passage_rows[i].tolist())
            for i, part in enumerate(map(slice, judged.offsets[:-1], judged.offsets[1:]))
        ]
    assert not any(drawn[1]) and all(drawn[2])


@pytest.fixture
def body(tmp_path):
    body = recipe_of(tmp_path)
    graded().save(tmp_path / "graded")
    body["collection"] = str(tmp_path / "graded")
    del body["stages"]["ltre"]
    body["evaluation"]["rows"] = {"before": {"retriever": "light"}, "after": {"retriever": "warm-up"}}
    body["evaluation"]["metrics"] = ["mrr@10", "ndcg@10", "recall@10"]
    return body


def run(folder: Path, body):
    recipe = load_recipe(write_recipe(folder / "recipe.yaml", body))
    recipe.output_dir = str(folder / "run")
    return run_recipe(recipe)


@pytest.mark.slow
def test_a_recipe_measures_by_its_level_as_the_commands_do(body, tmp_path, capsys):
    folder = run(tmp_path, body | {"evaluation": {**body["evaluation"], "relevance_level": 2}})
    strict = read_json(folder / "metrics.json", {})["after"]["dev"]["retriever"]
    found = {}
    for level in (None, 1, 2):
        output = tmp_path / f"level-{level}"
        command = ["evaluate", str(folder), "--split", "dev", "--output", str(output)]
        assert main(command if level is None else [*command, "--relevance-level", str(level)]) == 0
        found[level] = read_json(output / "metrics.json", {})["dev"]["retriever"]
    assert found[None] == pytest.approx(strict) and found[2] == pytest.approx(strict)
    assert found[1]["ndcg@10"] == pytest.approx(strict["ndcg@10"])
    assert found[1]["recall@10"] != strict["recall@10"]
    capsys.readouterr()
    assert main(["compare", str(folder), "--split", "dev", "--metrics", "mrr@10"]) == 0
    assert f"{strict['mrr@10']:.3f}" in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize(
    ("place", "level", "message"),
    [
        (
            "evaluation",
            3,
            "evaluation: split 'dev' of graded has no relevant passage .* relevance_level=3, and the ",
        ),
        ("evaluation", 0, "evaluation.relevance_level: found 0, expected a whole number of at least 1"),
        ("evaluation", "2", "evaluation.relevance_level: found '2', expected a whole number"),
        ("args", 3, r"warm-up.args.train_split: split 'train' .*relevance_level=3, and the highest is 2"),
        ("args", 0, "args.relevance_level: found 0, expected a whole number of at least 1"),
        ("args", "two", "args.relevance_level: found 'two', expected a whole number"),
    ],
)
def test_a_level_without_relevant_passages_is_an_error_before_training(place, level, message, body, tmp_path):
    body[place]["relevance_level"] = level
    with pytest.raises(RecipeError, match=message):
        run(tmp_path, body)
    assert not (tmp_path / "run" / "stages").exists()
