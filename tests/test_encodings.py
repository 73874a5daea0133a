"""Encodings of the corpus: named by what decides the vectors, made once in a run, deleted when no longer needed."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_recipe
from test_recipes import QUICK, changed, tiny_recipe, weights

from hf_ar2.command_line import main as cli
from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.encoding.processes import Processes
from hf_ar2.index import CorpusIndex, shards
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.encodings import Encodings, encoder_fingerprint, index_fingerprint
from hf_ar2.models.loading import load_retriever, one_tower, tower
from hf_ar2.recipes import runner
from hf_ar2.recipes.encodings import keep_served_index
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError, encodings_folder
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.settings.text import TextConfig
from hf_ar2.trainers import RankerConfig, RankerTrainer, RetrieverConfig, RetrieverTrainer

pytestmark = pytest.mark.slow

# ---- What an encoding is called ------------------------------------------------------------------------------------


@pytest.fixture
def plain(tiny_retriever_path):
    return load_retriever(tiny_retriever_path, device="cpu")


def test_a_retriever_is_known_again_whatever_does_not_decide_its_vectors(plain, tmp_path):
    name = encoder_fingerprint(plain)
    assert encoder_fingerprint(load_retriever(copy.deepcopy(plain), dropout=0.0)) == name
    plain.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    assert encoder_fingerprint(load_retriever(tmp_path / "saved", device="cpu", dropout=0.3)) == name

    towers = load_retriever(copy.deepcopy(plain), separate_towers=True)
    assert encoder_fingerprint(tower(towers, "document")) == name
    assert encoder_fingerprint(one_tower(towers, "document")) == name
    with torch.no_grad():
        next(tower(towers, "query").parameters()).add_(1)  # another query encoder, the same passages
    towers.save_pretrained(str(tmp_path / "towers"), create_model_card=False)
    loaded = load_retriever(tmp_path / "towers", device="cpu")
    assert encoder_fingerprint(tower(loaded, "document")) == name
    assert encoder_fingerprint(tower(loaded, "query")) != name


@pytest.mark.parametrize(
    "change",
    [
        lambda model: next(model.parameters()).data.view(-1)[:1].add_(1e-3),
        lambda model: load_retriever(model, pooling="cls"),
        lambda model: load_retriever(model, similarity="dot"),
        lambda model: load_retriever(model, layers=[0]),
        lambda model: setattr(model[0].model.config, "num_attention_heads", 4),  # same weights, other vectors
        lambda model: model.half(),
    ],
    ids=["weight", "pooling", "normalisation", "layers", "heads", "precision"],
)
def test_whatever_decides_the_vectors_gives_another_name(plain, change):
    before = encoder_fingerprint(plain)
    change(plain)
    assert encoder_fingerprint(plain) != before


def test_an_index_of_another_fingerprint_is_never_used(plain, tiny_collection, tmp_path):
    encoders = Encoders(torch.device("cpu"), Processes.current("cpu"), show_progress=False)
    encodings = Encodings(tmp_path / "encodings")

    def index(**lengths) -> CorpusIndex:
        texts = TextConfig(**lengths)
        inputs = RetrieverInputs(plain, tiny_collection, tmp_path / "cache", texts, show_progress=False)
        return encodings.index(encoders, plain, inputs, index_fingerprint(plain, inputs, precision="False"))

    first, again, shorter = index(), index(), index(max_passage_length=8)
    assert first.fingerprint == again.fingerprint != shorter.fingerprint and len(encodings.log()) == 2
    with torch.no_grad():
        next(plain.parameters())[2, 0].add_(1)  # of [CLS], which every passage has
    moved = index()
    assert len(encodings.log()) == 3 and not np.array_equal(moved.embeddings, first.embeddings)

    # one under a wrong name is found out by what is in it, and replaced
    (encodings.folder / moved.fingerprint).rename(tmp_path / "aside")
    (encodings.folder / first.fingerprint).rename(encodings.folder / moved.fingerprint)
    assert np.array_equal(index().embeddings, moved.embeddings) and len(encodings.log()) == 4


# ---- Trainers by themselves ----------------------------------------------------------------------------------------

ROUNDS = QUICK | {
    "num_train_epochs": 3,
    "learning_rate": 1e-3,
    "num_negatives": 2,
    "pool_depth": 8,
    "max_passage_length": 32,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
}


def encoded(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def test_a_trainer_does_not_pile_up_indexes(plain, tiny_collection, tmp_path):
    args = RetrieverConfig(str(tmp_path / "own"), **ROUNDS)
    trainer = RetrieverTrainer(copy.deepcopy(plain), args=args, collection=tiny_collection)
    trainer.train()
    assert len(trainer.retrieval.encodings.log()) == 3
    assert encoded(tmp_path / "own" / "index") == [trainer.retrieval.opened]

    # in a folder that others read, too, the encoding of the weights that all have stays
    args = RetrieverConfig(str(tmp_path / "other"), index_dir=str(tmp_path / "shared"), **ROUNDS)
    trainer = RetrieverTrainer(copy.deepcopy(plain), args=args, collection=tiny_collection)
    trainer.train()
    assert set(encoded(tmp_path / "shared")) == {trainer.retrieval.start, trainer.retrieval.opened}
    trainer = RetrieverTrainer(plain, args=args, collection=tiny_collection)
    trainer.retrieval.refresh()
    assert len(trainer.retrieval.encodings.log()) == 3, "the start was encoded before"


def test_a_frozen_retriever_is_searched_once(plain, tiny_ranker_path, tiny_collection, tmp_path):
    args = RankerConfig(str(tmp_path), max_pair_length=48, **ROUNDS)
    trainer = RankerTrainer(plain, tiny_ranker_path, args=args, collection=tiny_collection)
    trainer.train()
    assert sum("pool/outscored" in entry for entry in trainer.state.log_history) == 1
    assert len(trainer.retrieval.encodings.log()) == 1


# ---- A run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def body(home):
    """Warm-up, hard negatives (two rounds), ranker, AR2 (two rounds), LTRe, and rows for all of them."""
    body = tiny_recipe(home)
    measured = {"eval_depth": 20, "rerank_depth": 5, "eval_metrics": ["mrr@10"], "eval_strategy": "epoch"}
    hard = {"num_negatives": 2, "pool_depth": 8, "num_train_epochs": 2, "eval_on_start": True, **measured}
    stages = body["stages"]
    body["stages"] = {
        "warm-up": stages["retriever"],
        "hard": {"trainer": "retriever", "retriever": "warm-up", "args": hard},
        "ranker": stages["ranker"] | {"retriever": "hard", "ranker": {"from": "hard", "max_length": 48}},
        "ar2": stages["ar2"] | {"retriever": {"from": "hard", "dropout": 0.0}},
        "ltre": {
            "trainer": "ltre",
            "retriever": {"from": "ar2", "dropout": 0.0},
            "args": {"max_steps": 2, "list_depth": 10, **measured, "rerank_depth": 0, "eval_on_start": True},
        },
    }
    body["args"]["save_strategy"] = "epoch"
    body["evaluation"] |= {
        "splits": ["test"],
        "rows": {
            "zero-shot": {"retriever": "light"},
            "warm-up": {"retriever": "warm-up"},
            "hard": {"retriever": "hard", "ranker": "ranker"},
            "AR2": {"retriever": "ar2", "ranker": "ar2"},
            "AR2-SQ8": {"retriever": "ar2", "index_factory": "SQ8"},
            "LTRe": {"retriever": "ltre", "ranker": "ar2"},
        },
    }
    return body


# The warm-up encodes nothing. Its outcome is encoded for the first hard negatives and is there for its row; then come
# the weights after each of the two rounds of `hard`, of which the last are those that ranker, AR2 and a row start from;
# after each of AR2's two rounds, of which the last are LTRe's passages and those of three rows. And zero-shot.
DIFFERENT_WEIGHTS = 6


@pytest.fixture(scope="module")
def finished(body, tmp_path_factory):
    """The run without an interruption, and what it printed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    path = write_recipe(run.with_name("recipe.yaml"), body)
    seen: list[set[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        forget = runner.forget_encodings

        def forget_and_look(*given):
            forget(*given)
            seen.append(held(run))

        patch.setattr(runner, "forget_encodings", forget_and_look)
        run_recipe(load_recipe(path, {"output_dir": str(run)}))
    return run, seen


def held(run: Path) -> set[str]:
    folder = encodings_folder(run)
    return set(encoded(folder)) if folder.is_dir() else set()


def done(run: Path, stage: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((run / "stages" / stage / "done.json").read_text())["encodings"]
    return found


def test_every_set_of_weights_is_encoded_once(finished):
    run, _ = finished
    log = Encodings(encodings_folder(run)).log()
    assert len(log) == len({entry["encoding"] for entry in log}) == DIFFERENT_WEIGHTS


def test_after_a_stage_only_what_is_named_again_is_there(finished):
    run, seen = finished
    warm_up, hard, ar2 = done(run, "hard")["warm-up"], done(run, "hard")["hard"], done(run, "ar2")["ar2"]
    assert seen == [set(), {warm_up, hard}, {warm_up, hard}, {warm_up, hard, ar2}, {warm_up, hard, ar2}]
    assert done(run, "ltre") == {"ar2": ar2, "ltre": ar2}
    assert held(run) == set()


def test_search_finds_the_index_that_served_the_last_row(finished, monkeypatch, capsys):
    run, _ = finished
    assert CorpusIndex.open(run / "index").fingerprint == done(run, "ltre")["ltre"]

    def never(*given, **options):
        raise AssertionError("the corpus was encoded again")

    monkeypatch.setattr(shards, "encode_rows", never)
    assert cli.main(["search", str(run), "the falcon"]) == 0
    assert "falcon" in capsys.readouterr().out


def test_any_row_can_be_the_one_that_serves(finished, tmp_path):
    run, _ = finished
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "index").rename(encodings_folder(copied) / done(run, "hard")["hard"])
    keep_served_index(copied, "warm-up")  # whose encoding is not there any more: search will build one
    assert not (copied / "index").exists() and held(copied) == set()
    (encodings_folder(copied) / done(run, "hard")["hard"]).mkdir()
    (encodings_folder(copied) / done(run, "hard")["hard"] / "meta.json").write_text("{}")
    keep_served_index(copied, "hard")
    assert (copied / "index" / "meta.json").is_file() and held(copied) == set()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(body, finished, tmp_path, monkeypatch, capsys):
    """Stopped twice in a second round, with encodings of weights on disk that training then leaves behind."""
    whole, _ = finished
    run = tmp_path / "run"
    path = write_recipe(tmp_path / "recipe.yaml", body)
    make_trainer, to_stop = runner.make_trainer, ["hard", "ar2"]

    class Stopped(Exception):
        pass

    def stopping(recipe, name, *rest):
        trainer = make_trainer(recipe, name, *rest)
        begin = trainer.begin_round

        def stop_in_the_second_round():
            begin()
            if trainer.current_round == 1:
                to_stop.remove(name)
                raise Stopped

        if name in to_stop:
            trainer.begin_round = stop_in_the_second_round
        return trainer

    monkeypatch.setattr(runner, "make_trainer", stopping)
    for _ in ("hard", "ar2"):
        with pytest.raises(Stopped):
            run_recipe(load_recipe(path, {"output_dir": str(run)}))
    run_recipe(load_recipe(path, {"output_dir": str(run)}))
    printed = capsys.readouterr().out
    assert printed.count(f"Corpus encoded {DIFFERENT_WEIGHTS} times, ") == 1
    for name in ("hard", "ar2", "ltre"):
        assert all(weight.equal(weights(whole, name)[key]) for key, weight in weights(run, name).items())
        assert done(run, name) == done(whole, name)
    assert (run / "metrics.json").read_text() == (whole / "metrics.json").read_text()
    assert held(run) == set()
    assert CorpusIndex.open(run / "index").fingerprint == CorpusIndex.open(whole / "index").fingerprint


def test_a_finished_run_keeps_its_index_and_its_count(body, finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = (run / "index" / "meta.json").read_text()
    run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", body), {"output_dir": str(run)}))
    assert f"Corpus encoded {DIFFERENT_WEIGHTS} times, " in capsys.readouterr().out
    assert (run / "index" / "meta.json").read_text() == before


def test_augmentation_finds_the_encoding_of_its_retriever(body, tmp_path):
    lists = {"depth": 10, "thresholds": "quantile", "irrelevant": 0.7, "relevant": 0.8, "kinds": ["denoised"]}
    recipe = changed(body, "evaluation.rows", {"first": {"retriever": "light"}, "second": {"retriever": "g"}})
    start = {"trainer": "retriever", "retriever": "light"}
    heavy = str(Path(body["models"]["light"]["model"]).with_name("ranker"))
    recipe["models"]["heavy"] = {"model": heavy, "max_length": 48}
    recipe["stages"] = {
        "lists": {"trainer": "augment", "retriever": "light", "ranker": "heavy", "args": lists},
        "g": {**start, "lists": ["lists"], "args": {"max_steps": 2, "mine": False, "num_negatives": 1}},
        "again": {"trainer": "augment", "retriever": "g", "ranker": "heavy", "args": lists},
    }
    run = tmp_path / "run"
    run_recipe(load_recipe(write_recipe(tmp_path / "r.yaml", recipe), {"output_dir": str(run)}))
    assert [entry["encoding"] for entry in Encodings(encodings_folder(run)).log()] == [
        done(run, "lists")["light"],
        done(run, "again")["g"],
    ]


def test_a_recipe_does_not_say_where_encodings_are(body, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", changed(body, "args.index_dir", "elsewhere"))
    with pytest.raises(RecipeError, match="unknown key 'index_dir'"):
        load_recipe(path)
