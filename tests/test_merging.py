"""Merging: a trained retriever's weights averaged with those it started from, by hand, by rule, and in a recipe."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_tiny_collection, make_tiny_retriever, with_passages
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from hf_ar2.collections import Collection
from hf_ar2.models.loading import load_retriever
from hf_ar2.models.merging import merge_retrievers
from hf_ar2.recipes import merging, runner
from hf_ar2.recipes.guard import Guard, GuardSplit
from hf_ar2.recipes.inputs import Inputs
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.merging import SHARES, choose_share, merge, values_of_shares
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.runner import load_model, run_recipe
from hf_ar2.recipes.sampled import reduced, values_among
from hf_ar2.search.system import SearchSystem
from hf_ar2.settings.search import Settings


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a retriever of its architecture with other weights."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_retriever(folder / "base", seed=0)
    make_tiny_retriever(folder / "trained", seed=1)
    return folder


def loaded(models: Path) -> tuple[SentenceTransformer, SentenceTransformer]:
    return tuple(load_retriever(models / name, device="cpu") for name in ("trained", "base"))


# ---- Weights -------------------------------------------------------------------------------------------------------


def test_every_weight_is_the_weighted_mean(models: Path) -> None:
    trained, base = loaded(models)
    merged = merge_retrievers(trained, base, 0.3)
    weights = [dict(model.named_parameters()) for model in (merged, base, trained)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        expected = 0.3 * weights[1][name].detach().numpy() + 0.7 * weights[2][name].detach().numpy()
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5, atol=1e-8, err_msg=name)
    again = loaded(models)
    for model, other in zip((trained, base), again, strict=True):  # the two stay as they are
        for (name, weight), before in zip(model.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(weight, before), name


@pytest.mark.parametrize(("share", "name"), [(0.0, "trained"), (1.0, "base")])
def test_at_the_ends_it_is_the_one_or_the_other_digit_for_digit(
    models: Path, tmp_path: Path, share: float, name: str
) -> None:
    merge_retrievers(*loaded(models), share).save_pretrained(str(tmp_path), create_model_card=False)
    merged, end = (SentenceTransformer(str(path), device="cpu") for path in (tmp_path, models / name))
    for weight, expected in zip(merged.parameters(), end.parameters(), strict=True):
        assert torch.equal(weight, expected)
    texts = ["the calm otter hides a ribbon", "where does the raven guard the lantern ?"]
    assert np.array_equal(merged.encode(texts), end.encode(texts))


def test_other_architectures_raise_an_error_with_the_first_parameter_that_differs(models: Path) -> None:
    trained, base = loaded(models)
    cut = load_retriever(models / "base", layers=[0], device="cpu")
    with pytest.raises(
        ValueError, match=r"parameter '0.model.encoder.layer.1.\S+' is only in the trained one"
    ):
        merge_retrievers(trained, cut, 0.5)
    with torch.no_grad():
        base[0].model.embeddings.word_embeddings.weight = torch.nn.Parameter(torch.zeros(5, 32))
    with pytest.raises(
        ValueError, match=r"word_embeddings.weight' has the shape .* and \[5, 32\] in the base"
    ):
        merge_retrievers(trained, base, 0.5)
    towers = load_retriever(models / "trained", separate_towers=True, device="cpu")
    with pytest.raises(ValueError, match="merge before LTRe"):
        merge_retrievers(towers, base, 0.5)


# ---- The rule ------------------------------------------------------------------------------------------------------

QUERIES = 20
GOOD = np.linspace(0.5, 1.0, QUERIES)
# On one query in twenty lower: as good as luck can tell. On all of them: significantly lower.
LUCK, WORSE, MUCH_WORSE = GOOD - 0.1 * (np.arange(QUERIES) == 3), GOOD - 0.05, GOOD - 0.2


def test_without_a_guard_more_of_the_start_is_taken_up_to_three_tenths_where_dev_allows_it() -> None:
    flat = dict.fromkeys(SHARES, GOOD)
    assert choose_share(flat)[0] == 0.3
    assert choose_share(flat | {0.2: LUCK, 0.3: LUCK})[0] == 0.1
    assert choose_share(flat | {0.0: LUCK, 0.1: LUCK, 0.2: LUCK})[0] == 0.3
    assert choose_share(flat | {0.3: WORSE, 0.5: WORSE, 0.7: WORSE})[0] == 0.2
    assert choose_share(dict.fromkeys(SHARES, WORSE) | {0.0: GOOD})[0] == 0.0
    # Training has done harm.
    assert choose_share(dict.fromkeys(SHARES, WORSE) | {0.7: GOOD})[0] == 0.7
    # That .7 is better than .3 may be luck.
    assert choose_share(dict.fromkeys(SHARES, LUCK) | {0.7: GOOD})[0] == 0.3
    assert choose_share({0.0: np.ones(1), 0.3: np.zeros(1)})[0] == 0.0


def test_with_a_guard_the_best_there_of_those_that_dev_allows() -> None:
    dev = {0.0: GOOD, 0.1: GOOD, 0.2: LUCK, 0.3: LUCK, 0.5: WORSE, 0.7: MUCH_WORSE}
    guard = {share: GOOD * (0.5 + share / 2) for share in SHARES}
    assert choose_share(dev, guard)[0] == 0.3
    assert choose_share(dict.fromkeys(SHARES, GOOD), guard)[0] == 0.7
    # Few queries: no difference is significant, but .5 and .7 lose too much to be taken for the guard's sake.
    few = {share: values[:3] for share, values in dev.items()} | {0.5: LUCK[:3], 0.7: GOOD[:3] - 0.1}
    assert choose_share(few, guard)[0] == 0.5
    assert choose_share(few | {0.5: GOOD[:3] - 0.1}, guard)[0] == 0.3
    # Equal on the guard: the one that is better on dev.
    assert choose_share(dev, dict.fromkeys(SHARES, GOOD))[0] == 0.1


def test_where_people_asked_nothing_half_is_taken_unless_the_guard_is_sure() -> None:
    assert choose_share(None)[0] == 0.5
    assert choose_share(None, dict.fromkeys(SHARES, GOOD) | {0.7: GOOD})[0] == 0.5
    assert choose_share(None, dict.fromkeys(SHARES, LUCK) | {0.2: GOOD})[0] == 0.5
    assert choose_share(None, dict.fromkeys(SHARES, WORSE) | {0.7: GOOD})[0] == 0.7


# ---- A part of the corpus ------------------------------------------------------------------------------------------


def test_a_part_of_the_corpus_orders_the_shares_as_the_whole_one(
    models: Path, tmp_path: Path, tiny_collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    collection, settings = with_passages(tiny_collection, 1000), Settings(max_passage_length=32, bf16=False)
    systems = [
        SearchSystem(model, None, collection, settings, tmp_path, tmp_path / str(number))
        for number, model in enumerate(loaded(models))
    ]
    judgments = collection.judgments("train")
    of_part = values_of_shares(systems, judgments, "mrr@10", 0, "train")
    said = re.search(r"train: 24 queries among (\d+) of 1,000 passages", capsys.readouterr().out)
    assert said and int(said[1]) < 500
    of_whole = {}
    for share in SHARES:
        model = merge_retrievers(systems[0].retriever, systems[1].retriever, share)
        found = values_among(systems[0], model, judgments, np.arange(1000), ["mrr@10"])
        of_whole[share] = float(found["mrr@10"].mean())
    assert len(set(of_whole.values())) > 3
    part = {share: values.mean() for share, values in of_part.items()}
    assert sorted(SHARES, key=lambda share: part[share]) == sorted(SHARES, key=lambda share: of_whole[share])


def test_where_the_part_would_be_most_of_the_corpus_fewer_queries_are_taken(
    tiny_collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    judgments = tiny_collection.judgments("train")
    rng = np.random.default_rng(0)
    found = [np.stack([rng.permutation(60)[:5] for _ in range(len(judgments))]) for _ in range(2)]
    whole, _ = reduced(judgments, found, 60, queries=24, seed=0)
    assert len(whole) == 24  # a small corpus may be taken whole
    monkeypatch.setattr("hf_ar2.recipes.sampled.MOST_PASSAGES", 0)
    monkeypatch.setattr("hf_ar2.recipes.sampled._FEWEST_QUERIES", 2)
    part, rows = reduced(judgments, found, 60, queries=24, seed=0)
    assert 2 <= len(part) < 24 and len(rows) <= 30
    assert set(part.passage_rows) <= set(rows)


# ---- In a recipe ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> dict:
    """A warm-up and a merge over tiny models and the tiny collection."""
    folder = tmp_path_factory.mktemp("recipe")
    make_tiny_retriever(folder / "light")
    make_tiny_retriever(folder / "other", seed=5)
    tiny_collection.save(folder / "data")
    make_tiny_collection(seed=1).save(folder / "others")
    args = {"max_passage_length": 32, "use_cpu": True, "bf16": False, "disable_tqdm": True}
    args |= {"eval_strategy": "no", "eval_on_start": False, "learning_rate": 1e-3}
    warm_up = {"trainer": "retriever", "retriever": "light"}
    return {
        "name": "tiny",
        "collection": str(folder / "data"),
        "models": {
            "light": {"model": str(folder / "light"), "max_length": 32, "dropout": 0.0},
            "other": {"model": str(folder / "other")},
        },
        "args": args,
        "stages": {
            "retriever": {**warm_up, "args": {"max_steps": 6, "per_device_train_batch_size": 8}},
            "merged": {"trainer": "merge", "retriever": "retriever", "args": {"share": 0.25}},
        },
        "evaluation": {
            "splits": ["test"],
            "choose_on": None,
            "metrics": ["mrr@10"],
            "depth": 20,
            "rows": {
                "zero-shot": {"retriever": "light"},
                "warm-up": {"retriever": "retriever"},
                "merged": {"retriever": "merged"},
            },
        },
    }


def recipe_of(body: dict, folder: Path, **overrides: str) -> Recipe:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return load_recipe(path, {"output_dir": str(folder / "run"), **overrides})


def with_merge(body: dict, **fields: object) -> dict:
    """The recipe with other fields of its merge."""
    merged = {**body["stages"]["merged"], **fields}
    return {**body, "stages": {**body["stages"], "merged": merged}}


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    return dict(SentenceTransformer(str(folder), device="cpu").named_parameters())


@pytest.mark.slow
def test_a_recipe_merges_evaluates_and_says_so_on_the_card(
    body: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_recipe(recipe_of(body, tmp_path))
    printed = capsys.readouterr().out
    assert "merged: 25% of the starting weights" in printed and "merged over warm-up" in printed
    base, trained = (
        weights_of(body["models"]["light"]["model"]),
        weights_of(run / "stages/retriever/retriever"),
    )
    for name, weight in weights_of(run / "retriever").items():
        assert torch.allclose(weight, 0.25 * base[name] + 0.75 * trained[name], atol=1e-6), name
    assert any(not torch.equal(base[name], trained[name]) for name in base)
    done = json.loads((run / "stages/merged/done.json").read_text())
    assert done["settings"]["share"] == 0.25
    card = " ".join((run / "retriever/README.md").read_text(encoding="utf-8").split())
    assert "Then its weights were averaged with its starting weights (share 0.25 of `" in card
    assert "**merged**: the retriever's weights averaged with its starting weights" in card
    assert "Trained with [DPR]" in card

    run_recipe(recipe_of(body, tmp_path))
    assert "2/2] merged: done before" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="merged: this stage was run with other settings"):
        run_recipe(recipe_of(body, tmp_path, **{"merged.share": "0.5"}))


@pytest.mark.slow
def test_the_base_is_cut_as_the_trained_one_was(body: dict, tmp_path: Path) -> None:
    stages = {**body["stages"]["retriever"], "retriever": {"from": "light", "layers": [1]}}
    cut = {**body, "stages": {**body["stages"], "retriever": stages}}
    cut = with_merge(cut, retriever={"from": "retriever", "max_length": 24}, args={"share": 1})
    run = run_recipe(recipe_of(cut, tmp_path))
    base = load_retriever(body["models"]["light"]["model"], layers=[1], device="cpu")
    merged = SentenceTransformer(str(run / "retriever"), device="cpu")
    assert merged.max_seq_length == 24
    for weight, expected in zip(merged.parameters(), base.parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.slow
def test_auto_says_what_it_chose_by_and_comes_to_the_same_after_an_interruption(
    body: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = with_merge({**body, "guard": body["collection"].replace("data", "others")}, args={})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    run_recipe(recipe_of(auto, whole))
    printed = capsys.readouterr().out
    assert "dev: 8 queries among" in printed and "guard: 8 queries among" in printed
    assert "starting weights  MRR@10, dev  MRR@10, guard" in printed and "70 %" in printed
    done = json.loads((whole / "run/stages/merged/done.json").read_text())
    assert done["settings"]["share"] in SHARES and set(done["chosen"]["dev"]) == {str(s) for s in SHARES}
    assert not (whole / "run/stages/merged/index").exists()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merging, "merge_retrievers", interrupted)
        run_recipe(recipe_of(auto, stopped))
    assert not (stopped / "run/stages/merged/retriever").exists()
    run_recipe(recipe_of(auto, stopped))
    resumed = weights_of(stopped / "run/retriever")
    for name, weight in weights_of(whole / "run/retriever").items():
        assert torch.equal(weight, resumed[name]), name
    # What it was chosen on is part of what was done.
    with pytest.raises(RecipeError, match="merged: this stage was run with other settings"):
        run_recipe(recipe_of({**auto, "guard": None}, whole))


def test_headings_choose_no_share(
    body: dict, tmp_path: Path, tiny_collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(sources: list[str], guard: Guard | None = None) -> dict:
        queries = {**tiny_collection.queries.to_dict(), "source": sources}
        collection = dataclasses.replace(tiny_collection, queries=Dataset.from_dict(queries))
        recipe = recipe_of(with_merge(body, retriever="other", args={"base": "light"}), tmp_path)
        run = tmp_path / "run"
        (run / "stages" / "merged").mkdir(parents=True, exist_ok=True)
        return merge(recipe, "merged", run, collection, guard, partial(load_model, recipe, run))

    report = choose(["heading"] * 40)
    assert report["settings"]["share"] == 0.5 and "dev" not in report["chosen"]
    assert "come from the texts' structure (headings, say), not from people" in capsys.readouterr().out
    some = choose(["" if row % 2 else "heading" for row in range(40)])  # people's own are measured on
    assert "dev" in some["chosen"] and "dev: 4 queries among" in capsys.readouterr().out
    part = GuardSplit("dev", make_tiny_collection(seed=1), 8, 60)
    guarded = choose(["heading"] * 40, Guard("others", part, part))
    assert list(guarded["chosen"]) == ["metric", "guard", "reason"]
    assert "one split with judgments" in capsys.readouterr().out


def test_merges_that_cannot_be_raise_an_error_before_anything_is_trained(body: dict, tmp_path: Path) -> None:
    cases = [
        ({"args": {"share": "half"}}, r"stages.merged.args: share='half': expected a number between 0 and 1"),
        ({"args": {"base": "ligth"}}, r"args.base: 'ligth' is not a model; did you mean 'light'"),
        ({"args": {"shares": 0.3}}, "unknown key 'shares'; did you mean 'share'"),
        ({"ranker": "retriever"}, "merged.ranker: a stage that merges takes a retriever"),
        ({"retriever": "light"}, "merged.retriever: 'light' is also the base"),
        ({"retriever": {"from": "retriever", "separate_towers": True}}, "it has separate_towers"),
    ]
    for fields, message in cases:
        with pytest.raises(RecipeError, match=message):
            recipe_of(with_merge(body, **fields), tmp_path)
    ltre = {"trainer": "ltre", "retriever": "retriever"}
    stages = {
        "retriever": body["stages"]["retriever"],
        "ltre": ltre,
        "merged": {"trainer": "merge", "retriever": "ltre"},
    }
    with pytest.raises(RecipeError, match=r"stage 'ltre' \(ltre\) leaves a tower .* Merge before LTRe"):
        recipe_of({**body, "stages": stages}, tmp_path)

    cut = {**body, "models": {**body["models"], "other": {**body["models"]["other"], "layers": [0]}}}
    with pytest.raises(RecipeError, match=r"stages.merged: .*layer.1.\S+' is only in the trained one"):
        run_recipe(recipe_of(with_merge(cut, args={"base": "other"}), tmp_path))
    with pytest.raises(
        RecipeError, match="stages.merged.args.eval_split: data has no judgments of a split 'dve'"
    ):
        run_recipe(recipe_of(with_merge(body, args={"eval_split": "dve"}), tmp_path))
    assert not (tmp_path / "run" / "stages").exists()


def test_another_base_makes_another_stage(body: dict, tmp_path: Path) -> None:
    keys = set()
    for models in (body["models"], {**body["models"], "other": {"model": "elsewhere"}}):
        for args in ({"share": 0.3}, {"share": 0.3, "base": "other"}):
            keys.add(
                recipe_of(with_merge({**body, "models": models}, args=args), tmp_path).stage_key("merged")
            )
    assert len(keys) == 3  # without naming it, what the other model is makes no difference


def test_a_base_whose_files_have_changed_is_noticed(
    body: dict, tmp_path: Path, tiny_collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(with_merge(body, args={"share": 0.3, "base": "other"}), tmp_path)
    assert "models.other" in Inputs(recipe, tiny_collection).of_stage("merged")
    assert runner.load_guard(recipe) is None
