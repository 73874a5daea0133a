"""Embeddings cut to their first dimensions, from the recipe or the command line to index, search, loss and card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny_collection, make_tiny_retriever, write_recipe
from sentence_transformers import SentenceTransformer
from test_recipe_checks import QUICK
from tiny_models import make_model

from hf_ar2.command_line.main import main
from hf_ar2.encoding import RetrieverInputs
from hf_ar2.files import read_json
from hf_ar2.index.corpus_index import CorpusIndex
from hf_ar2.index.encodings import index_fingerprint
from hf_ar2.models.loading import load_retriever
from hf_ar2.models.saved import read_retriever
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.runner import run_recipe


def recipe_of(folder: Path, **models):
    make_tiny_retriever(folder / "tiny-retriever")
    make_tiny_collection().save(folder / "data")
    return {
        "name": "tiny",
        "collection": str(folder / "data"),
        "models": {"light": {"model": str(folder / "tiny-retriever"), **models}},
        "args": dict(QUICK),
        "stages": {
            "warm-up": {"trainer": "retriever", "retriever": "light", "args": {"max_steps": 2}},
            "ltre": {
                "trainer": "ltre",
                "retriever": "warm-up",
                "args": {"max_steps": 1, "list_depth": 8, "num_negatives": 0},
            },
        },
        "evaluation": {
            "splits": ["dev"],
            "report_split": "dev",
            "choose_on": None,
            "metrics": ["mrr@10"],
            "depth": 20,
            "rows": {
                "wide": {"retriever": "ltre"},
                "cut": {"retriever": {"from": "ltre", "truncate_dim": 8}},
            },
        },
    }


def loaded(folder: Path, body: dict):
    recipe = load_recipe(write_recipe(folder / "recipe.yaml", body))
    recipe.output_dir = str(folder / "run")
    return recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truncated")
    return run_recipe(loaded(folder, recipe_of(folder, truncate_dim=16)))


@pytest.mark.slow
def test_a_recipe_cuts_embeddings_of_its_stages_and_of_a_row(run):
    for stage in ("warm-up", "ltre"):
        assert read_retriever(run / "stages" / stage / "retriever").dimension == 16
    served = SentenceTransformer(str(run / "retriever"), device="cpu")
    assert served.get_embedding_dimension() == served.truncate_dim == 8
    assert CorpusIndex.open(run / "index", device="cpu").embeddings.shape == (60, 8)
    collection = make_tiny_collection()
    judged = collection.judgments("dev")
    queries = [collection.queries["text"][row] for row in judged.query_rows]
    for row, dim in (("wide", 16), ("cut", 8)):
        model = load_retriever(run / "stages" / "ltre" / "retriever", truncate_dim=dim, device="cpu")
        scores = model.similarity(
            model.encode_query(queries), model.encode_document(collection.passage_texts())
        )
        ranks = (scores > scores.gather(1, scores.new_tensor(judged.passage_rows).long()[:, None])).sum(dim=1)
        expected = np.mean([1 / (rank + 1) if rank < 10 else 0 for rank in ranks.tolist()])
        assert read_json(run / "metrics.json", {})[row]["dev"]["retriever"]["mrr@10"] == pytest.approx(
            expected
        )


@pytest.mark.slow
def test_the_card_says_how_wide_vectors_are_and_shows_no_code_that_would_not_cut_them(run):
    card = (run / "retriever" / "README.md").read_text()
    assert "to a vector\nof 8 numbers" in card and "With only transformers" not in card


@pytest.mark.slow
def test_evaluating_a_run_at_another_width_leaves_its_index(run, tmp_path, capsys):
    before = (run / "index" / "meta.json").read_text()
    command = ["evaluate", str(run), "--split", "dev", "--metrics", "mrr@10", "--output", str(tmp_path)]
    assert main([*command, "--truncate_dim", "4"]) == 0
    assert (run / "index" / "meta.json").read_text() == before
    assert "retriever" in json.loads((tmp_path / "metrics.json").read_text())["dev"]
    assert main([*command, "--truncate_dim", "33"]) == 1
    assert "truncate_dim=33: the retriever's embeddings have 32 dimensions" in capsys.readouterr().err


def test_commands_cut_the_embeddings_of_models(tmp_path, tiny_retriever_path, tiny_collection):
    tiny_collection.save(tmp_path / "data")
    model, data = str(tiny_retriever_path), str(tmp_path / "data")
    assert main(["encode", model, data, str(tmp_path / "vectors"), "--truncate_dim", "8"]) == 0
    found = np.load(tmp_path / "vectors" / "embeddings.npy")
    theirs = SentenceTransformer(model, device="cpu", truncate_dim=8)
    expected = theirs.encode_document(tiny_collection.passage_texts(), normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert main(["index", model, data, str(tmp_path / "index"), "--truncate_dim", "8"]) == 0
    assert CorpusIndex.open(tmp_path / "index", device="cpu").dim == 8


@pytest.mark.parametrize("dim", [0, 33, 8.0, True])
def test_a_width_that_the_model_does_not_have_is_an_error(dim, tiny_retriever_path):
    with pytest.raises(ValueError, match="embeddings have 32 dimensions; expected a whole number from 1"):
        load_retriever(tiny_retriever_path, truncate_dim=dim, device="cpu")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("models", 0, "models.light.truncate_dim: found 0, expected a whole number of at least 1"),
        (
            "models",
            64,
            "stages.warm-up.args: models.light: truncate_dim=64: the retriever's embeddings have 32 dimensions",
        ),
        ("row", "8", "rows.cut.retriever.truncate_dim: found '8', expected a whole number"),
        ("row", 64, "rows.cut: truncate_dim=64: the retriever's embeddings have 32 dimensions"),
        ("matryoshka", 8, "warm-up.args: matryoshka_dims=.* embeddings have 8 dimensions; leave 16 out"),
        ("factory", 8, "rows.cut: FAISS cannot make"),
    ],
)
def test_errors_show_before_training(place, value, message, tmp_path):
    body = recipe_of(tmp_path)
    if place in ("models", "matryoshka"):
        body["models"]["light"]["truncate_dim"] = value
    else:
        body["evaluation"]["rows"]["cut"]["retriever"]["truncate_dim"] = value
    if place == "matryoshka":
        body["stages"]["warm-up"]["args"]["matryoshka_dims"] = [16]
    if place == "factory":
        body["evaluation"]["rows"]["cut"]["index_factory"] = "PQ16x4"  # 16 parts of 32 dimensions, not of 8
    with pytest.raises(RecipeError, match=message):
        run_recipe(loaded(tmp_path, body))
    assert not (tmp_path / "run" / "stages").exists()


def test_an_index_of_another_width_is_another_index(tmp_path, tiny_collection):
    retriever = load_retriever(make_model("bert", tmp_path / "bert"), device="cpu")
    inputs = RetrieverInputs(retriever, tiny_collection, tmp_path)
    names = set()
    for dim in (None, 16, 8):
        retriever.truncate_dim = dim
        names.add(index_fingerprint(retriever, inputs, precision="False"))
    assert len(names) == 3
