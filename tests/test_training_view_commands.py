"""Commands on a collection whose queries are headings: a run and `evaluate` measure alike, `search` shows headings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_tiny_ranker, make_tiny_retriever

from hf_ar2.collections import Collection, load_collection
from hf_ar2.command_line import main as cli
from hf_ar2.recipes.recipe import Recipe
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.training_lists.stored import load_training_lists

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> Path:
    """What a recipe without training leaves, over files whose headings are the queries of the tiny collection."""
    folder = tmp_path_factory.mktemp("headings")
    (folder / "docs").mkdir()
    queries = list(tiny_collection.queries["text"])
    for number, row in enumerate(tiny_collection.corpus):
        heading = f"{queries[number % len(queries)]} {number // len(queries)}"
        (folder / "docs" / f"{number}.md").write_text(f"# {heading}\n\n{row['text']}\n")
    load_collection(f"text:{folder / 'docs'}", all_headings=True).save(folder / "data")
    make_tiny_retriever(folder / "retriever")
    make_tiny_ranker(folder / "ranker")
    models = {role: {"model": str(folder / role)} for role in ("retriever", "ranker")}
    row = {"retriever": "retriever", "ranker": "ranker"}
    settings = {
        "max_passage_length": 32,
        "max_pair_length": 48,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    recipe = Recipe("headings", str(folder / "data"), models=models, stages={}, args=settings)
    recipe.evaluation = {"rows": {"zero-shot": row}, "metrics": ["mrr@10"], "depth": 20, "rerank_depth": 10}
    recipe.evaluation["choose_on"] = None  # the ranker is served too
    recipe.output_dir = str(folder / "run")
    return run_recipe(recipe)


def test_evaluate_measures_what_the_run_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = json.loads((run / "metrics.json").read_text())["zero-shot"]
    assert cli.main(["evaluate", str(run), "--output", str(tmp_path)]) == 0
    assert "read as in training: without the headings that are queries" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == of_run["test"]
    assert cli.main(["compare", str(run)]) == 0
    assert f"{of_run['test']['pipeline']['mrr@10']:.3f}" in capsys.readouterr().out


def test_search_finds_and_shows_headings_and_keeps_an_index_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heading = load_collection(run.parent / "data").queries["text"][0]
    for _ in range(2):  # neither command builds the other's index again
        assert cli.main(["search", str(run), heading, "-k", "60"]) == 0
        assert heading in capsys.readouterr().out
        assert cli.main(["evaluate", str(run)]) == 0
        indexes = {
            folder: (run / folder / "meta.json").read_text() for folder in ("index", "index_for_training")
        }
    assert (
        json.loads(indexes["index"])["fingerprint"]
        != json.loads(indexes["index_for_training"])["fingerprint"]
    )
    assert cli.main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0


def test_lists_are_made_of_what_training_reads(run: Path, tmp_path: Path) -> None:
    assert cli.main(["augment", str(run), "--output", str(tmp_path / "lists"), "--kinds", "undenoised"]) == 0
    lists = load_training_lists(tmp_path / "lists")
    collection = load_collection(run.parent / "data")
    assert lists.manifest["collection"]["corpus_fingerprint"] == collection.for_training().corpus_fingerprint
