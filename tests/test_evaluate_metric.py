"""The `evaluate` metric: loads offline from a checkout and from the installed path, equals the numpy functions."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType, SimpleNamespace

import evaluate
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation.metrics import evaluate_rankings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(str(files("hf_ar2") / "evaluation" / "ir_metrics"))
METRICS = ["mrr@5", "recall@20", "hit_rate@3", "ndcg@10", "map@7", "map"]


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> evaluate.Metric:
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("evaluate")))


@pytest.mark.slow
def test_it_loads_from_a_checkout_without_a_network(tmp_path: Path) -> None:
    code = (
        "import evaluate, json\n"
        "metric = evaluate.load('hf_ar2/evaluation/ir_metrics')\n"
        "print(json.dumps(metric.compute(predictions=[['d7', 'd3', 'd4'], ['d6', 'd1', 'd5']], references=["
        "{'passage_ids': ['d4', 'd7'], 'relevance': [1, 2]}, {'passage_ids': ['d5'], 'relevance': [1]}],"
        " metrics=['mrr@3', 'recall@2'])))\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"mrr@3": pytest.approx(2 / 3), "recall@2": 0.25}


def test_it_equals_the_numpy_functions(metric: evaluate.Metric) -> None:
    rng = np.random.default_rng(3)
    retrieved = np.stack([rng.permutation(60)[:20] for _ in range(30)])
    retrieved[4, 12:] = -1  # lists may differ in length
    judged = [(query, passage) for query in range(30) for passage in rng.permutation(60)[:6]]
    grades = rng.integers(-1, 4, len(judged))
    judgments = Judgments.from_triples([q for q, _ in judged], [p for _, p in judged], grades)
    expected = evaluate_rankings(retrieved, judgments, METRICS)

    predictions = [[f"p{row}" for row in ranked if row >= 0] for ranked in retrieved]
    references = [
        {"passage_ids": [f"p{row}" for row in rows], "relevance": relevance.tolist()}
        for rows, relevance in map(judgments.of, range(30))
    ]
    found = metric.compute(predictions=predictions, references=references, metrics=METRICS, per_query=True)
    for name, values in expected.items():
        np.testing.assert_allclose(found["per_query"][name], values, rtol=0, atol=0)
        assert found[name] == values.mean()

    half = 15  # in batches, as a loop over a data loader adds them
    metric.add_batch(predictions=predictions[:half], references=references[:half])
    metric.add_batch(predictions=predictions[half:], references=references[half:])
    assert metric.compute(metrics=METRICS) == {name: found[name] for name in METRICS}


@pytest.mark.parametrize(
    ("ranked", "judged", "options", "message"),
    [
        (["a"], {"passage_ids": [], "relevance": []}, {}, "references[0]: found no judged passage"),
        (["a"], {"passage_ids": ["a"], "relevance": [1, 2]}, {}, "found 2 grades for 1 judged passages"),
        (
            ["a", "b", "a"],
            {"passage_ids": ["a"], "relevance": [1]},
            {},
            "predictions[0]: found passage 'a' twice",
        ),
        (
            ["a"],
            {"passage_ids": ["a", "a"], "relevance": [1, 1]},
            {},
            "references[0]: found passage 'a' twice",
        ),
        (
            ["a"],
            {"passage_ids": ["b", "a"], "relevance": [1.0, 0.9]},
            {},
            "references[0]: found grade 0.9 of passage 'a'; expected whole numbers",
        ),
        (["a"], {"passage_ids": ["a"], "relevance": [1]}, {"metrics": ["mr@1"]}, "did you mean 'mrr@1'"),
        (
            ["a"],
            {"passage_ids": ["a"], "relevance": [1]},
            {"metrics": ["mrr@10"]},
            "cutoff 10 exceeds the lists of 1",
        ),
    ],
)
def test_what_is_wrong_is_named(
    metric: evaluate.Metric, ranked: list, judged: dict, options: dict, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        metric.compute(predictions=[ranked], references=[judged], **({"metrics": ["mrr@1"]} | options))
    assert message in str(error.value)


def test_short_lists_are_whole_where_the_corpus_is_small(metric: evaluate.Metric) -> None:
    found = metric.compute(
        predictions=[["a", "b"]],
        references=[{"passage_ids": ["b"], "relevance": [1]}],
        metrics=["mrr@10"],
        num_passages=2,
    )
    assert found == {"mrr@10": 0.5}


def test_whole_numbers_may_be_floats(metric: evaluate.Metric) -> None:
    for grades in ([1, 2], [1.0, 2.0], np.array([1, 2], np.int32)):
        judged = {"passage_ids": ["a", "b"], "relevance": grades}
        found = metric.compute(predictions=[["a", "b"]], references=[judged], metrics=["ndcg@2"])
        assert found["ndcg@2"] == pytest.approx((1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)))


def test_the_folder_is_a_space() -> None:
    head = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    metadata = yaml.safe_load(head)
    assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py"
    assert {"evaluate", "metric"} <= set(metadata["tags"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["python_version"] in SpecifierSet(project["requires-python"])
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    needed = {
        found.name: found for line in lines if not line.startswith("#") for found in [Requirement(line)]
    }
    # No package index has it, so a name alone would not be found.
    assert set(needed) == {"evaluate", "hf-ar2"} and needed["hf-ar2"].url


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the Space's page gives gradio, a stand-in that takes what every version from 3 on takes."""
    made = SimpleNamespace(launched=False)

    def interface(*, fn: Callable, inputs: list[str], outputs: list[str], title: str) -> SimpleNamespace:
        made.fn, made.values, made.headers = fn, inputs, outputs
        return SimpleNamespace(launch=lambda: setattr(made, "launched", True))

    gradio = ModuleType("gradio")
    gradio.Error = RefusedByThePage
    gradio.Textbox = lambda value, *, label, lines=1: value
    gradio.Dataframe = lambda *, headers, label: headers
    gradio.Interface = interface
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    runpy.run_path(str(FOLDER / "app.py"), run_name="__main__")
    return made


class RefusedByThePage(Exception):
    """In the place of gradio.Error."""


def test_the_page_of_the_space_measures_what_it_shows_first(page: SimpleNamespace) -> None:
    assert page.launched and page.headers == ["metric", "mean"]
    # The lists have three passages each; the default cutoffs are beyond that.
    assert page.fn(*page.values) == [["mrr@3", "0.6667"], ["ndcg@3", "0.7251"], ["recall@3", "1.0000"]]
    run, qrels, _ = page.values
    assert page.fn(f"{run}\nq3 Q0 d1 1 2.0 bm25", f"{qrels}\nq4 0 d1 1\n", "map, recall@2") == [
        ["map", "0.3889"],
        ["recall@2", "0.1667"],
    ]


@pytest.mark.parametrize(
    ("run", "qrels", "metrics", "message"),
    [
        ("", "q 0 a 1", "mrr@1", "Run: found nothing; paste lines of 'query Q0 passage rank score tag'"),
        ("q Q0 a 1 2.0 x", "q 0 a 1\nq b 1", "mrr@1", "Judgments, line 2: found 3 columns; expected"),
        ("q Q0 a 1 2.0 x", "p 0 a 1", "mrr@1", "Run: found no judged query"),
        ("q Q0 a 1 2.0 x", "q 0 a 0.9", "mrr@1", "found grade 0.9 of passage 'a'"),
        ("q Q0 a 1 2.0 x", "q 0 a 1", "mr@1", "did you mean 'mrr@1'"),
    ],
)
def test_the_page_of_the_space_says_what_is_wrong(
    page: SimpleNamespace, run: str, qrels: str, metrics: str, message: str
) -> None:
    with pytest.raises(RefusedByThePage) as error:
        page.fn(run, qrels, metrics)
    assert message in str(error.value)
