"""How recipes and commands say how a model is loaded."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_recipe
from tiny_models import make_model

from hf_ar2.collections import Collection
from hf_ar2.command_line.main import main
from hf_ar2.command_line.open import opened_system
from hf_ar2.models.limits import position_count
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.runner import load_model
from hf_ar2.search.runs import model_fields

CODE = """
from transformers import BertConfig, BertModel
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def own_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose folder brings its own code."""
    folder = make_model("bert", tmp_path_factory.mktemp("models") / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE)
    return folder


def recipe_with(path: Path, model: dict[str, Any]) -> Any:
    stages = {
        "warm-up": {"trainer": "retriever", "retriever": "base"},
        "next": {"trainer": "retriever", "retriever": {"from": "warm-up", "dropout": 0.0}},
    }
    recipe = {"name": "tiny", "collection": "x", "models": {"base": model}, "stages": stages}
    return load_recipe(write_recipe(path / "recipe.yaml", recipe))


def test_code_of_a_model_runs_only_where_that_is_asked_for(own_code: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_retriever(own_code, device="cpu")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(recipe_with(tmp_path, {"model": str(own_code)}), tmp_path, "retriever", "base")
    recipe = recipe_with(tmp_path, {"model": str(own_code), "trust_remote_code": True})
    assert type(load_model(recipe, tmp_path, "retriever", "base")[0].model).__name__ == "OwnModel"


def test_a_recipe_says_how_its_models_are_loaded(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "bert")
    recipe = recipe_with(
        tmp_path,
        {"model": str(folder), "dtype": "bfloat16", "attn_implementation": "eager", "revision": "main"},
    )
    for role in ("retriever", "ranker"):
        model = load_model(recipe, tmp_path, role, "base")
        assert model.dtype == torch.bfloat16
        assert model[0].model.config._attn_implementation == "eager"


def test_a_ranker_that_starts_as_a_retriever_reads_whole_pairs(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "bert")
    load_retriever(folder, device="cpu", max_length=16).save(str(tmp_path / "stages/warm-up/retriever"))
    recipe = recipe_with(tmp_path, {"model": str(folder), "max_length": 16})
    recipe.args["max_pair_length"] = 24
    for source, longest in (("warm-up", 24), ({"from": "warm-up", "max_length": 20}, 20)):
        assert load_model(recipe, tmp_path, "ranker", source).max_seq_length == longest
    # More than the positions: an error now would end a run that has trained.
    recipe.args["max_pair_length"] = 1000
    ranker = load_model(recipe, tmp_path, "ranker", "warm-up")
    assert ranker.max_seq_length == position_count(ranker) < 1000


def test_an_error_of_a_model_names_its_place_in_the_recipe(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "bert")
    long = recipe_with(tmp_path, {"model": str(folder), "max_length": 1000})
    with pytest.raises(RecipeError, match="models.base: max_length=1000: the model has positions for"):
        load_model(long, tmp_path, "retriever", "base")
    absent = recipe_with(tmp_path, {"model": "models/absent"})
    with pytest.raises(RecipeError, match="models.base: ranker 'models/absent': found no such folder"):
        load_model(absent, tmp_path, "ranker", "base")


def test_what_a_stage_trained_is_loaded_as_its_first_model_was(tmp_path: Path) -> None:
    options = {
        "trust_remote_code": True,
        "attn_implementation": "sdpa",
        "revision": "v2",
        "dtype": "bfloat16",
    }
    recipe = recipe_with(tmp_path, {"model": "some/model", **options})
    for stage in ("warm-up", "next"):
        assert model_fields(vars(recipe), "run", stage, "retriever") == {
            "model": f"run/stages/{stage}/retriever",
            "trust_remote_code": True,
            "attn_implementation": "sdpa",
        }


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("trust_remote_code", "yes please", "expected true or false"),
        ("dtype", "half", "expected one of float32, bfloat16, float16"),
        ("atn_implementation", "sdpa", "did you mean 'attn_implementation'"),
    ],
)
def test_a_wrong_value_is_found_before_anything_is_loaded(
    field: str, value: Any, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=f"models.base.*{expected}"):
        recipe_with(tmp_path, {"model": "some/model", field: value})


def test_a_cross_encoder_is_no_retriever(tmp_path: Path) -> None:
    load_ranker(make_model("bert", tmp_path / "encoder"), device="cpu").save_pretrained(
        str(tmp_path / "ranker")
    )
    with pytest.raises(ValueError, match=r"ranker' is a cross-encoder \(BertForSequenceClassification\)"):
        load_retriever(tmp_path / "ranker", device="cpu")
    # A plain classifier of transformers, without files of sentence-transformers.
    for name in ("modules.json", "config_sentence_transformers.json"):
        (tmp_path / "ranker" / name).unlink()
    with pytest.raises(ValueError, match="is a cross-encoder"):
        load_retriever(tmp_path / "ranker", device="cpu")
    # One that someone gave a pooling is an encoder, whatever the configuration of its transformer says.
    retriever = load_retriever(tmp_path / "encoder", device="cpu")
    retriever.save_pretrained(str(tmp_path / "retriever"))
    config = json.loads((tmp_path / "retriever" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "retriever" / "config.json").write_text(json.dumps(config))
    assert load_retriever(tmp_path / "retriever", device="cpu").get_embedding_dimension()


def test_a_loaded_model_takes_a_dtype_alone(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "bert")
    for load in (load_retriever, load_ranker):
        model = load(folder, device="cpu")
        assert load(model, dtype="float16").dtype == torch.float16
        for option in ({"revision": "main"}, {"trust_remote_code": True}, {"attn_implementation": "eager"}):
            with pytest.raises(ValueError, match="the model is loaded already"):
                load(model, **option)


def test_commands_take_them_too(
    own_code: Path, tmp_path: Path, tiny_collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_collection.save(tmp_path / "data")
    command = [
        "encode",
        str(own_code),
        str(tmp_path / "data"),
        str(tmp_path / "out"),
        "--max_passage_length",
        "32",
    ]
    assert main(command) != 0
    assert "trust_remote_code" in capsys.readouterr().err
    options = ["--trust_remote_code", "--model_dtype", "bfloat16", "--attn_implementation", "eager"]
    assert main([*command, *options]) == 0
    assert (tmp_path / "out" / "embeddings.npy").is_file()


def test_float32_weights_are_computed_in_float32(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_ar2.search.system.bf16_is_faster", lambda device: True)
    named = {"retriever": str(home / "retriever"), "collection": str(home / "data")}
    for dtype, bf16 in ((None, True), ("float32", False), ("bfloat16", True)):
        with opened_system(Namespace(**named, model_dtype=dtype)) as system:
            assert system.encoders.bf16 is bf16
