"""`hf-ar2 score`: the stored scores are the ranker's own, and the lists are found or taken over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_recipe
from sentence_transformers import CrossEncoder
from test_recipe_checks import QUICK

from hf_ar2.collections import Collection, load_collection
from hf_ar2.command_line import main as cli
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.trainers import RetrieverConfig, RetrieverTrainer
from hf_ar2.training_lists.stored import TrainingLists, load_training_lists, save_training_lists


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> str:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    tiny_collection.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory, data: str, tiny_retriever_path: Path, tiny_ranker_path: Path) -> Path:
    """Lists that the retriever found, scored by the ranker."""
    out = tmp_path_factory.mktemp("lists") / "found"
    models = ["--retriever", str(tiny_retriever_path), "--ranker", str(tiny_ranker_path)]
    assert cli.main(["score", data, *models, "--output", str(out), "--depth", "5"]) == 0
    return out


def assert_scored_by(lists: TrainingLists, ranker: Path, data: str) -> None:
    collection = load_collection(data).for_training()
    queries = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))
    passages = dict(zip(collection.corpus["id"], collection.passage_texts(), strict=True))
    model = CrossEncoder(str(ranker), device="cpu")
    for row in lists.dataset:
        for role in ("positive", "negative"):
            pairs = [(queries[row["query_id"]], passages[id]) for id in row[f"{role}_ids"]]
            np.testing.assert_allclose(row[f"{role}_scores"], model.predict(pairs), atol=1e-5)


def test_found_lists_have_the_rankers_scores(found: Path, data: str, tiny_ranker_path: Path) -> None:
    lists = load_training_lists(found)
    assert len(lists) == 24 and set(lists.dataset["kind"]) == {"undenoised"}
    assert_scored_by(lists, tiny_ranker_path, data)


def test_existing_lists_get_the_rankers_scores(
    found: Path, data: str, tiny_ranker_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = load_training_lists(found)
    bare = lists.dataset.remove_columns(["positive_scores", "negative_scores"])
    save_training_lists(tmp_path / "bare", bare, {"made by": "hand"})
    monkeypatch.setattr("hf_ar2.augmentation.teacher._BLOCK", 7)
    command = ["score", data, "--ranker", str(tiny_ranker_path), "--lists", str(tmp_path / "bare")]
    assert cli.main([*command, "--output", str(tmp_path / "scored")]) == 0
    scored = load_training_lists(tmp_path / "scored")
    assert scored.dataset["negative_ids"][:] == lists.dataset["negative_ids"][:]
    assert scored.manifest["made by"] == "hand" and scored.manifest["teacher"]["name"] == str(
        tiny_ranker_path
    )
    assert scored.manifest["fingerprint"] == scored.fingerprint
    assert_scored_by(scored, tiny_ranker_path, data)
    # An interrupted command continues: nothing that is on disk is scored again.
    monkeypatch.setattr("hf_ar2.index.encoders.Encoders.rank", None)
    assert cli.main([*command, "--output", str(tmp_path / "scored")]) == 0


def test_a_retriever_trains_on_what_was_written(
    found: Path, data: str, tiny_retriever_path: Path, tmp_path: Path
) -> None:
    args = RetrieverConfig(
        output_dir=str(tmp_path), train_lists=[str(found)], mine=False, distillation="margin_mse",
        num_negatives=3, max_steps=2, per_device_train_batch_size=4, eval_strategy="no", eval_on_start=False,
        save_strategy="no", report_to="none", logging_steps=1, bf16=False, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = RetrieverTrainer(str(tiny_retriever_path), args=args, collection=data)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss/distillation"])


@pytest.mark.parametrize("more", [[], ["--retriever", "r", "--lists", "l"]])
def test_lists_are_found_or_given(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["score", "data", "--ranker", "k", "--output", "out", *more])
    assert (
        "give either --retriever MODEL, which finds the lists, or --lists FOLDER" in capsys.readouterr().err
    )


def test_the_lists_are_not_written_over(
    found: Path, data: str, tiny_ranker_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", data, "--ranker", str(tiny_ranker_path), "--lists", str(found)]
    assert cli.main([*command, "--output", str(found)]) == 1
    assert "expected another folder to write to" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stage_of_a_recipe_learns_from_the_scores_of_the_one_before(
    data: str, tiny_retriever_path: Path, tiny_ranker_path: Path, tmp_path: Path
) -> None:
    """As in the recipe in METHODS.md."""
    body = {
        "collection": data,
        "models": {"light": {"model": str(tiny_retriever_path)}, "teacher": {"model": str(tiny_ranker_path)}},
        "args": {**QUICK, "max_pair_length": 64},
        "stages": {
            "scored": {
                "trainer": "augment",
                "retriever": "light",
                "ranker": "teacher",
                "args": {"kinds": ["undenoised"], "depth": 6},
            },
            "distilled": {
                "trainer": "retriever",
                "retriever": "light",
                "lists": ["scored"],
                "args": {"distillation": "kl", "mine": False, "max_steps": 2},
            },
        },
    }
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", body))
    recipe.output_dir = str(tmp_path / "run")
    run = run_recipe(recipe)
    assert_scored_by(load_training_lists(run / "stages" / "scored" / "lists"), tiny_ranker_path, data)
    log = json.loads((run / "stages" / "distilled" / "trainer_state.json").read_text())["log_history"]
    assert all(np.isfinite(entry["loss/distillation"]) for entry in log if "loss" in entry)
