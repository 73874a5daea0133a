"""The guard: search in other texts, measured before and after, beside what the run was trained for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny_collection, with_passages, write_recipe

from hf_ar2.cards.guard import guard_sentence, guard_table
from hf_ar2.collections import Collection, load_collection
from hf_ar2.command_line import main as cli
from hf_ar2.recipes import guard as module
from hf_ar2.recipes.guard import load_guard
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import Recipe, RecipeError
from hf_ar2.recipes.run import parse_arguments
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.recipes.sampled import sample_of
from hf_ar2.report.page import read_runs
from hf_ar2.report.page.page import other_texts


@pytest.fixture(scope="module")
def body(home: Path) -> dict:
    """A warm-up over the tiny collection; another such collection is in `others`."""
    make_tiny_collection(seed=1).save(home / "others")
    args = {"max_passage_length": 32, "use_cpu": True, "bf16": False, "disable_tqdm": True}
    args |= {"eval_strategy": "no", "eval_on_start": False, "learning_rate": 1e-3, "max_steps": 6}
    rows = {"zero-shot": {"retriever": "light"}, "warm-up": {"retriever": "retriever"}}
    return {
        "name": "tiny",
        "collection": str(home / "data"),
        "models": {"light": {"model": str(home / "retriever"), "max_length": 32, "dropout": 0.0}},
        "args": args,
        "stages": {"retriever": {"trainer": "retriever", "retriever": "light"}},
        "evaluation": {
            "splits": ["test"],
            "metrics": ["mrr@10", "recall@5"],
            "depth": 20,
            "rows": rows,
            "choose_on": None,
        },
    }


def recipe_of(body: dict, folder: Path, **overrides: str) -> Recipe:
    path = write_recipe(folder / "tiny.yaml", body)
    return load_recipe(path, {"output_dir": str(folder / "run"), **overrides})


@pytest.mark.slow
def test_the_table_at_the_end_shows_every_row_and_what_evaluate_says(
    body: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = body["collection"].replace("data", "others")
    run = run_recipe(recipe_of(body, tmp_path, guard=others))
    printed = capsys.readouterr().out
    assert f"Search of other texts ({others}, test): 8 queries, 60 passages" in printed
    guard = json.loads((run / "guard.json").read_text())
    assert list(guard["rows"]) == ["zero-shot", "warm-up"]
    assert guard["before"]["metrics"] == guard["rows"]["zero-shot"]["metrics"]
    assert "test" not in guard["rows"]["zero-shot"]
    change = guard["rows"]["warm-up"]["test"]["difference"]
    before, after = (guard["rows"][row]["metrics"]["mrr@10"] for row in ("zero-shot", "warm-up"))
    assert change == pytest.approx(after - before) and change != 0

    for row, model in (("zero-shot", body["models"]["light"]["model"]), ("warm-up", str(run / "retriever"))):
        arguments = ["evaluate", str(run), "--retriever", model, "--collection", others]
        assert cli.main([*arguments, "--output", str(tmp_path / row)]) == 0
        measured = json.loads((tmp_path / row / "metrics.json").read_text())
        assert measured["test"]["retriever"] == guard["rows"][row]["metrics"]
    card = " ".join((run / "retriever" / "README.md").read_text(encoding="utf-8").split())
    assert guard_sentence(guard, "retriever") in card and "in other languages" in card
    assert other_texts(read_runs([run])[0]) == guard_sentence(guard, "retriever").replace("`", "")
    capsys.readouterr()

    # Once more: nothing is measured again; another row is measured by itself.
    def measured_again(*_: object) -> None:
        raise AssertionError("it was measured before")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_measure", measured_again)
        run_recipe(recipe_of(body, tmp_path, guard=others))
    assert json.loads((run / "guard.json").read_text()) == guard
    rows = {**body["evaluation"]["rows"], "short": {"retriever": {"from": "retriever", "max_length": 8}}}
    calls: list[object] = []
    measure = module._measure
    monkeypatch.setattr(module, "_measure", lambda *given: calls.append(given) or measure(*given))
    run_recipe(
        recipe_of({**body, "evaluation": {**body["evaluation"], "rows": rows}}, tmp_path, guard=others)
    )
    assert len(calls) == 1 and list(json.loads((run / "guard.json").read_text())["rows"]) == list(rows)

    # Without a guard nothing of it is shown.
    capsys.readouterr()
    run_recipe(recipe_of(body, tmp_path))
    assert "other texts" not in capsys.readouterr().out
    assert "Its quality on other texts" in " ".join((run / "retriever" / "README.md").read_text().split())


def test_a_missing_row_has_no_sentence_and_a_model_without_row_has_a_line() -> None:
    test = {"difference": -0.1, "p_value": 0.01, "wins": 1, "losses": 5, "ties": 2}
    before = {"retriever": "base", "metrics": {"mrr@10": 0.9}}
    rows = {"AR2": {"retriever": "ar2", "metrics": {"mrr@10": 0.8}, "test": test}}
    counts = {"queries": 8, "of_queries": 20, "passages": 60, "of_passages": 60}
    guard = {
        "guard": "/home/me/data/fiqa",
        "split": "dev",
        "metric": "mrr@10",
        "before": before,
        "rows": rows,
        **counts,
    }
    assert "before: base   0.900" in guard_table(guard)
    assert "| AR2 | 0.800 | -0.100 | p = .010 ▼ |" in guard_table(guard, markdown=True)
    assert guard_sentence(guard, "retriever") == guard_sentence({}, "ar2") == ""
    assert guard_sentence(guard, "ar2") == (
        "On other texts (`fiqa`, dev: 8 of 20 queries, 60 passages) its MRR@10 is 0.800; the model that training "
        "started from has 0.900 (-0.100, p = .010)."
    )


def test_a_large_guard_is_sampled_with_all_that_is_relevant(
    tiny_collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = with_passages(tiny_collection, 300)
    part = sample_of(whole, "train", queries=10, passages=100, seed=0)
    assert (len(part.queries), len(part.corpus), part.splits) == (10, 100, ["train"])
    relevant = dict(zip(whole.qrels["train"]["query_id"], whole.qrels["train"]["passage_id"], strict=True))
    assert {relevant[id] for id in part.queries["id"]} <= set(part.corpus["id"])
    assert len(part.judgments("train").passage_rows) == 10
    assert part.fingerprint == sample_of(whole, "train", 10, 100, seed=0).fingerprint
    assert part.fingerprint != sample_of(whole, "train", 10, 100, seed=1).fingerprint
    # No room for others: what is relevant is kept all the same. And nothing is left out of what is small.
    assert len(sample_of(whole, "train", queries=10, passages=3, seed=0).corpus) == 10
    small = sample_of(whole, "test", queries=300, passages=300, seed=0)
    assert list(small.corpus["id"]) == list(whole.corpus["id"])
    assert np.array_equal(small.judgments("test").passage_rows, whole.judgments("test").passage_rows)

    whole.save(tmp_path / "large")
    monkeypatch.setattr(module, "PASSAGES", 100)
    guard = load_guard(Recipe("mine", "data/mine", guard=str(tmp_path / "large")))
    assert guard is not None and (guard.choice.split, guard.report.split) == ("dev", "test")
    assert str(guard.report) == "test: 8 queries, 100 of 300 passages"


def test_an_invalid_guard_is_an_error_before_anything_is_trained(body: dict, tmp_path: Path) -> None:
    unjudged = load_collection(body["collection"])
    unjudged.qrels = {"heldout": unjudged.qrels["test"]}
    unjudged.save(tmp_path / "unjudged")
    cases = {
        str(tmp_path / "absent"): "guard: .*absent: found no such folder",
        str(
            tmp_path / "unjudged"
        ): "has no judgments of a split dev or test with a relevant passage; it has heldout",
        body["collection"]: "is the collection that is trained on; expected one of other texts",
    }
    for source, message in cases.items():
        with pytest.raises(RecipeError, match=message):
            run_recipe(recipe_of(body, tmp_path, guard=source))
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="guard: found 3, expected a text, or null"):
        recipe_of(body, tmp_path, guard="3")


def test_the_command_line_names_a_guard(body: dict, tmp_path: Path) -> None:
    name, overrides = parse_arguments(["tiny.yaml", "--guard", "text:docs"])
    assert (name, overrides) == ("tiny.yaml", {"guard": "text:docs"})
    recipe = recipe_of(body, tmp_path, **overrides)
    assert recipe.guard == "text:docs" and recipe.stage_key("retriever") == recipe_of(
        body, tmp_path
    ).stage_key("retriever")
