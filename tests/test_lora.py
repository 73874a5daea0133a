"""Adapters (LoRA): only they are trained, runs resume exactly, saved folders load anywhere, merging keeps scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny_ar2 import settings_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_ar2.index.encodings import encoder_fingerprint
from hf_ar2.models.loading import load_ranker, load_retriever, weights_fingerprint
from hf_ar2.models.lora import check_peft, has_adapters, merge_adapters
from hf_ar2.models.merging import merge_retrievers
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    LTReConfig,
    LTReTrainer,
    RocketQAv2Config,
    RocketQAv2Trainer,
)
from hf_ar2.trainers.checkpoints import fingerprints

try:
    check_peft()
except ValueError as error:
    pytestmark = [pytest.mark.slow, pytest.mark.skip(reason=str(error))]
else:
    pytestmark = pytest.mark.slow

LORA = {"r": 4, "lora_alpha": 8}
QUERIES = ["where does the otter hide the drum ?", "the calm lynx"]
PASSAGES = ["the otter hides a drum in the attic .", "a gentle heron watches the meadow ."]
PAIRS = list(zip(QUERIES, PASSAGES, strict=True))


def retriever_of(models: Path, **options: Any) -> SentenceTransformer:
    torch.manual_seed(0)  # of LoRA's A
    return load_retriever(models / "tiny-retriever", device="cpu", lora=LORA, **options)


def ranker_of(models: Path, **options: Any) -> CrossEncoder:
    torch.manual_seed(0)
    return load_ranker(models / "tiny-ranker", device="cpu", lora=LORA, **options)


def test_a_config_of_peft_gives_the_adapters_of_its_fields(models):
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query"])
    torch.manual_seed(0)
    found = load_retriever(models / "tiny-retriever", device="cpu", lora=config)
    torch.manual_seed(0)
    fields = {**LORA, "target_modules": ["query"]}
    expected = load_retriever(models / "tiny-retriever", device="cpu", lora=fields)
    assert weights_fingerprint(found) == weights_fingerprint(expected)
    assert {
        name for name, _ in found.named_parameters() if "lora_A" in name and ".query." not in name
    } == set()
    assert has_adapters(load_ranker(models / "tiny-ranker", device="cpu", lora=LoraConfig(r=2)))


def trained_retriever(models: Path) -> SentenceTransformer:
    """With random adapters in place of trained ones."""
    retriever = retriever_of(models)
    for name, weight in retriever.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return retriever


def ar2(
    models: Path, output: Path, collection: Any, retriever: Any = None, ranker: Any = None, **settings: Any
):
    args = AR2Config(output_dir=str(output), **{**settings_of(AR2Config), **settings})
    return AR2Trainer(retriever or retriever_of(models), ranker or ranker_of(models), args, collection)


def rocketqa_v2(models: Path, output: Path, collection: Any, **settings: Any) -> RocketQAv2Trainer:
    args = RocketQAv2Config(output_dir=str(output), **{**settings_of(RocketQAv2Config), **settings})
    return RocketQAv2Trainer(retriever_of(models), ranker_of(models), args, collection)


def ltre(models: Path, output: Path, collection: Any, retriever: Any = None, **settings: Any) -> LTReTrainer:
    given = {"num_negatives": 0, "list_depth": 10, "max_steps": 6, "steps_per_round": 3}
    args = LTReConfig(output_dir=str(output), **{**settings_of(LTReConfig), **given, **settings})
    return LTReTrainer(retriever or retriever_of(models), args, collection)


TRAINERS = {"ar2": ar2, "rocketqa-v2": rocketqa_v2, "ltre": ltre}


# ---- Training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_only_adapters_and_the_rankers_head_are_trained(name, models, tmp_path, tiny_collection):
    trainer = TRAINERS[name](models, tmp_path, tiny_collection, eval_strategy="no", save_strategy="no")
    before = {key: weight.detach().clone() for key, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {key for key, weight in trainer.model.named_parameters() if not torch.equal(weight, before[key])}
    assert moved
    assert all("lora_" in key or "classifier.modules_to_save" in key for key in moved)
    assert any("lora_A" in key for key in moved) and any("lora_B" in key for key in moved)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(name, models, tmp_path, tiny_collection):
    steps = {
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": None,
        "eval_strategy": "no",
        "eval_on_start": False,
    }
    whole = TRAINERS[name](models, tmp_path / "whole", tiny_collection, **steps)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    resumed = TRAINERS[name](models, tmp_path / "resumed", tiny_collection, **steps)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == whole.state.global_step > 4
    assert fingerprints(resumed.model) == fingerprints(whole.model)
    assert any(weight.requires_grad for weight in resumed.model.parameters())


def test_a_checkpoint_with_adapters_is_resumed_with_the_same_adapters(models, tmp_path, tiny_collection):
    ar2(models, tmp_path, tiny_collection, num_rounds=1).train()
    torch.manual_seed(0)
    other = load_retriever(models / "tiny-retriever", device="cpu", lora={"r": 2})
    with pytest.raises(
        ValueError, match=r"adapters-retriever.safetensors: .* has shape \(4, 32\) there and \(2, 32\)"
    ):
        ar2(models, tmp_path, tiny_collection, other).train(resume_from_checkpoint=True)
    plain = load_retriever(models / "tiny-retriever", device="cpu")
    with pytest.raises(ValueError, match="its retriever was trained with adapters"):
        ar2(models, tmp_path, tiny_collection, plain).train(resume_from_checkpoint=True)


def test_an_adapter_that_the_user_added_under_any_name_is_trained_further(models, tmp_path, tiny_collection):
    from peft import LoraConfig

    retriever = load_retriever(models / "tiny-retriever", device="cpu")
    retriever.add_adapter(LoraConfig(r=2, target_modules=["query", "dense"]), "mine")
    trainer = ar2(models, tmp_path / "one", tiny_collection, retriever)
    trainer.train()
    trainer.save_model()
    saved = SentenceTransformer(str(tmp_path / "one" / "retriever"), device="cpu")
    np.testing.assert_allclose(saved.encode(QUERIES), retriever.encode(QUERIES), atol=1e-6)
    assert not any(weight.requires_grad for weight in saved.parameters())

    further = ar2(models, tmp_path / "two", tiny_collection, saved)
    before = weights_fingerprint(saved)
    further.train()
    assert weights_fingerprint(saved) != before
    assert further.training_summary()["adapters"]["retriever"]["r"] == 2


# ---- What is saved --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", ["ar2", "rocketqa-v2"])
def test_saved_folders_give_the_trainers_scores(name, merged, models, tmp_path, tiny_collection):
    trainer = TRAINERS[name](models, tmp_path, tiny_collection, merge_adapters=merged)
    trainer.train()
    trainer.save_model()
    for folder, adapters in ((tmp_path, not merged), (next(tmp_path.glob("checkpoint-*")), True)):
        for role in ("retriever", "ranker"):
            files = {path.name for path in (folder / role).iterdir()}
            assert ("adapter_model.safetensors" in files) is adapters
            assert ("model.safetensors" in files) is not adapters
    retriever = SentenceTransformer(str(tmp_path / "retriever"), device="cpu")
    ranker = CrossEncoder(str(tmp_path / "ranker"), device="cpu")
    np.testing.assert_allclose(retriever.encode(QUERIES), trainer.model.retriever.encode(QUERIES), atol=1e-5)
    np.testing.assert_allclose(ranker.predict(PAIRS), trainer.model.ranker.predict(PAIRS), atol=1e-5)

    card = (tmp_path / "retriever" / "README.md").read_text()
    assert "retriever: adapters (LORA, rank 4, alpha 8, on query and value)" in card
    assert "1,024 of" in card and "parameters\n   trained (0.0041 MB)" in card
    assert ("and peft (this folder has adapters of" in card) is not merged
    assert "with classifier in full" in (tmp_path / "ranker" / "README.md").read_text()


def test_ltre_saves_the_frozen_base_as_passage_tower(models, tmp_path, tiny_collection):
    """The towers' folders are merged, for sentence-transformers loads no adapters from them."""
    trainer = ltre(models, tmp_path, tiny_collection, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    base = SentenceTransformer(str(models / "tiny-retriever"), device="cpu")
    towers = SentenceTransformer(str(tmp_path / "retriever"), device="cpu")
    alone = SentenceTransformer(str(tmp_path / "query_encoder"), device="cpu")
    np.testing.assert_array_equal(towers.encode_document(PASSAGES), base.encode(PASSAGES))
    queries = trainer.model.retriever.encode_query(QUERIES)
    assert np.abs(queries - base.encode(QUERIES)).max() > 1e-3
    np.testing.assert_allclose(towers.encode_query(QUERIES), queries, atol=1e-5)
    np.testing.assert_allclose(alone.encode(QUERIES), queries, atol=1e-6)
    assert has_adapters(alone) and not has_adapters(towers)


def test_ltre_keeps_passages_where_trained_adapters_put_them(models, tmp_path, tiny_collection):
    retriever = trained_retriever(models)
    expected = retriever.encode(PASSAGES)
    trainer = ltre(models, tmp_path, tiny_collection, retriever)
    trainer.train()
    trainer.save_model()
    towers = SentenceTransformer(str(tmp_path / "retriever"), device="cpu")
    np.testing.assert_allclose(towers.encode_document(PASSAGES), expected, atol=1e-5)


def test_a_base_that_its_name_does_not_load_is_saved_beside_the_run(models, tmp_path, tiny_collection):
    """Here: a layer was removed, and a ranker without a head was given a new one."""
    retriever = retriever_of(models, layers=[0])
    torch.manual_seed(0)
    ranker = load_ranker(models / "tiny-retriever", device="cpu", lora={**LORA, "modules_to_save": []})
    trainer = ar2(models, tmp_path, tiny_collection, retriever, ranker)
    trainer.train()
    trainer.save_model()
    for role in ("retriever", "ranker"):
        assert (tmp_path / "base" / role / "model.safetensors").is_file()
        config = json.loads((tmp_path / role / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tmp_path / "base" / role)
    found = SentenceTransformer(str(tmp_path / "retriever"), device="cpu").encode(QUERIES)
    np.testing.assert_allclose(found, retriever.encode(QUERIES), atol=1e-6)
    found = CrossEncoder(str(tmp_path / "ranker"), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(found, ranker.predict(PAIRS), atol=1e-6)


def test_adapters_replace_the_weights_of_an_earlier_run_in_the_folder(models, tmp_path, tiny_collection):
    """Otherwise loaders would add the adapters to those weights."""
    one = ar2(
        models,
        tmp_path,
        tiny_collection,
        load_retriever(models / "tiny-retriever", device="cpu"),
        load_ranker(models / "tiny-ranker", device="cpu"),
        save_strategy="no",
    )
    one.train()
    one.save_model()
    two = ar2(models, tmp_path, tiny_collection, save_strategy="no")
    two.train()
    two.save_model()
    found = SentenceTransformer(str(tmp_path / "retriever"), device="cpu").encode(QUERIES)
    np.testing.assert_allclose(found, two.model.retriever.encode(QUERIES), atol=1e-6)


# ---- Merging and fingerprints ---------------------------------------------------------------------------------------


def test_merging_keeps_embeddings_and_an_untrained_adapter_changes_nothing(models, tmp_path):
    retriever = trained_retriever(models)
    merged = merge_adapters(retriever)
    assert has_adapters(retriever) and not has_adapters(merged)
    np.testing.assert_allclose(merged.encode(QUERIES), retriever.encode(QUERIES), atol=1e-5)
    retriever.save_pretrained(str(tmp_path / "adapters"), create_model_card=False)
    merge_adapters(load_retriever(tmp_path / "adapters", device="cpu")).save_pretrained(
        str(tmp_path / "merged")
    )
    saved = SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    assert weights_fingerprint(saved) == weights_fingerprint(merged)
    base = load_retriever(models / "tiny-retriever", device="cpu")
    assert weights_fingerprint(merge_adapters(retriever_of(models))) == weights_fingerprint(base)
    assert merge_adapters(base) is base

    half = merge_retrievers(retriever, base, 0.5)
    for name, weight in half.named_parameters():
        mean = (dict(merged.named_parameters())[name] + dict(base.named_parameters())[name]) / 2
        torch.testing.assert_close(weight, mean)


def test_fingerprints_depend_on_adapters_and_their_scale(models):
    found = [encoder_fingerprint(load_retriever(models / "tiny-retriever", device="cpu"))]
    retriever = retriever_of(models)
    found.append(encoder_fingerprint(retriever))
    assert encoder_fingerprint(retriever_of(models)) == found[-1]
    found.append(encoder_fingerprint(trained_retriever(models)))
    torch.manual_seed(0)
    stronger = load_retriever(models / "tiny-retriever", device="cpu", lora={"r": 4, "lora_alpha": 16})
    assert weights_fingerprint(stronger) == weights_fingerprint(retriever)
    found.append(encoder_fingerprint(stronger))
    retriever.disable_adapters()
    found.append(encoder_fingerprint(retriever))
    assert len(set(found)) == len(found)


# ---- Errors ---------------------------------------------------------------------------------------------------------


def test_what_could_not_be_saved_is_an_error_before_training(models, tmp_path, tiny_collection):
    retriever = retriever_of(models)
    retriever.get_submodule("0.model.embeddings.LayerNorm").requires_grad_(True)
    with pytest.raises(
        ValueError, match="retriever: parameter 'embeddings.LayerNorm.weight' is trained, but is not"
    ):
        ar2(models, tmp_path, tiny_collection, retriever)
    retriever = retriever_of(models)
    retriever.disable_adapters()
    with pytest.raises(ValueError, match="retriever: its adapter is disabled"):
        ar2(models, tmp_path, tiny_collection, retriever)
    frozen = load_retriever(models / "tiny-retriever", device="cpu").requires_grad_(False)
    with pytest.raises(ValueError, match="retriever: all its parameters are frozen"):
        ar2(models, tmp_path, tiny_collection, frozen)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (16, "lora: found 16, expected a mapping"),
        ({"rank": 4}, "unknown field 'rank'"),
        ({"r": 4, "target_modules": ["qkv"]}, "qkv"),
    ],
)
def test_a_wrong_lora_field_of_a_recipe_is_an_error_before_training(lora, message, body, tmp_path):
    body["models"]["light"]["lora"] = lora
    with pytest.raises(RecipeError, match=f"models.light.*{message}"):
        run_recipe(written(body, tmp_path))
    assert not (tmp_path / "run").exists()


def test_the_first_step_is_not_taken_if_the_base_cannot_be_published(models, tmp_path, tiny_collection):
    with pytest.raises(ValueError, match="retriever: adapters of the base model .* which is not on the Hub"):
        ar2(models, tmp_path, tiny_collection, push_to_hub=True, hub_model_id="me/tiny")


def test_a_base_that_is_gone_is_named(models, tmp_path):
    from hf_ar2.models.saved import read_retriever

    retriever_of(models).save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    path = tmp_path / "saved" / "adapter_config.json"
    path.write_text(path.read_text().replace(str(models), "/nowhere"))
    with pytest.raises(ValueError, match="/nowhere/tiny-retriever, does not exist"):
        read_retriever(tmp_path / "saved")


# ---- Recipes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def body(models, tmp_path, tiny_collection) -> dict[str, Any]:
    """A recipe that trains adapters of both models, and merges those of the retriever."""
    tiny_collection.save(tmp_path / "data")
    short = {
        "num_rounds": 1,
        "retriever_steps": 3,
        "ranker_steps": 3,
        "teacher_gate": "off",
        "pool_depth": 10,
    }
    return {
        "collection": str(tmp_path / "data"),
        "models": {
            "light": {"model": str(models / "tiny-retriever"), "lora": dict(LORA)},
            "ranker": {"model": str(models / "tiny-retriever"), "lora": dict(LORA)},
        },
        "args": {
            "num_negatives": 3,
            "per_device_train_batch_size": 4,
            "eval_strategy": "no",
            "eval_on_start": False,
            "learning_rate": 1e-3,
            "rerank_depth": 5,
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "report_to": "none",
        },
        "stages": {
            "ar2": {"trainer": "ar2", "retriever": "light", "ranker": "ranker", "args": short},
            "merged": {"trainer": "merge", "retriever": "ar2", "args": {"share": 0.0}},
        },
        "evaluation": {
            "rows": {"AR2": {"retriever": "ar2", "ranker": "ar2"}, "merged": {"retriever": "merged"}},
            "metrics": ["mrr@10"],
            "depth": 20,
            "rerank_depth": 5,
            "choose_on": None,
        },
    }


def written(body: dict[str, Any], folder: Path) -> Any:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(body))
    return load_recipe(folder / "recipe.yaml", {"output_dir": str(folder / "run")})


def test_a_recipe_trains_adapters_evaluates_and_merges_them(body, tmp_path, capsys):
    run = run_recipe(written(body, tmp_path))
    trained = load_retriever(run / "stages" / "ar2" / "retriever", device="cpu")
    merged = SentenceTransformer(str(run / "stages" / "merged" / "retriever"), device="cpu")
    assert has_adapters(trained) and not has_adapters(merged)
    np.testing.assert_allclose(merged.encode(QUERIES), trained.encode(QUERIES), atol=1e-5)
    rows = json.loads((run / "metrics.json").read_text())
    assert rows["AR2"]["test"]["retriever"] == pytest.approx(rows["merged"]["test"]["retriever"])
    done = json.loads((run / "stages" / "ar2" / "done.json").read_text())
    assert done["adapters"]["retriever"]["trained"] == 1024
    assert done["adapters"]["ranker"]["modules_to_save"] == ["classifier"]
    assert "retriever: adapters (LORA, rank 4" in (run / "retriever" / "README.md").read_text()


def test_transformers_alone_loads_the_folders_with_equal_scores(models, tmp_path):
    """As the code on the cards does."""
    ranker = ranker_of(models)
    for weight in ranker.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight)
    ranker.save_pretrained(str(tmp_path), create_model_card=False)
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path)(QUERIES, PASSAGES, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = alone(**tokens).logits[:, 0]
    np.testing.assert_allclose(scores.numpy(), ranker.predict(PAIRS), rtol=1e-5, atol=1e-5)
