"""`hf-ar2 evaluate --nanobeir` and `--mteb`: other packages' evaluators measure what ours do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from hf_ar2.collections import Collection
from hf_ar2.command_line import main as cli

# NanoBEIR's set → the split of the tiny collection that stands for it.
SETS = {"NanoMSMARCO": "test", "NanoSciFact": "dev"}


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory, tiny_retriever_path: Path) -> str:
    """A retriever with prompts, which every evaluator has to put before the texts."""
    folder = tmp_path_factory.mktemp("models") / "prompted"
    model = SentenceTransformer(str(tiny_retriever_path), device="cpu")
    model.prompts = {"query": "find : ", "document": "text : "}
    model.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def offline_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, data: Path, retriever: str) -> dict[str, dict[str, float]]:
    """Split → metric → value, as `hf-ar2 evaluate` writes them."""
    out = tmp_path_factory.mktemp("ours")
    for split in SETS.values():
        command = ["evaluate", "--retriever", retriever, "--collection", str(data), "--split", split]
        metrics = ["--metrics", "ndcg@10", "mrr@10", "recall@10"]
        assert cli.main([*command, *metrics, "--output", str(out)]) == 0
    written = json.loads((out / "metrics.json").read_text())
    return {split: written[split]["retriever"] for split in SETS.values()}


def relevant(collection: Collection, split: str) -> list[tuple[str, str]]:
    """Query id and passage id of every positive."""
    judgments = collection.judgments(split).positives()
    queries, passages = list(collection.queries["id"]), list(collection.corpus["id"])
    return [
        (queries[query], passages[int(row)])
        for i, query in enumerate(judgments.query_rows)
        for row in judgments.of(i)[0]
    ]


def texts_of(collection: Collection, split: str) -> tuple[dict[str, str], dict[str, str]]:
    """Texts by id, of the queries of a split and of all passages."""
    texts = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))
    queries = {id: texts[id] for id, _ in relevant(collection, split)}
    return queries, dict(zip(collection.corpus["id"], collection.passage_texts(), strict=True))


@pytest.mark.parametrize("split", SETS.values())
def test_our_metrics_are_those_of_sentence_transformers(
    ours: dict[str, Any], retriever: str, tiny_collection: Collection, split: str
) -> None:
    queries, passages = texts_of(tiny_collection, split)
    judged: dict[str, set[str]] = {}
    for query, passage in relevant(tiny_collection, split):
        judged.setdefault(query, set()).add(passage)
    evaluator = InformationRetrievalEvaluator(queries, passages, judged, write_csv=False)
    theirs = evaluator(SentenceTransformer(retriever, device="cpu"))
    for metric, value in ours[split].items():
        assert value == pytest.approx(theirs[f"cosine_{metric}"], abs=1e-9), metric


def write_nanobeir(folder: Path, collection: Collection) -> None:
    """A folder that `datasets.load_dataset` reads as it reads NanoBEIR."""
    for name, split in SETS.items():
        queries, passages = texts_of(collection, split)
        pairs = relevant(collection, split)
        for subset, columns in {
            "corpus": {"_id": list(passages), "text": list(passages.values())},
            "queries": {"_id": list(queries), "text": list(queries.values())},
            "qrels": {"query-id": [q for q, _ in pairs], "corpus-id": [p for _, p in pairs]},
        }.items():
            datasets.Dataset.from_dict(columns).to_parquet(folder / subset / f"{name}.parquet")
    configs = [
        {
            "config_name": subset,
            "data_files": [{"split": name, "path": f"{subset}/{name}.parquet"} for name in SETS],
        }
        for subset in ("corpus", "queries", "qrels")
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


@pytest.mark.usefixtures("offline_cache")
def test_nanobeir_measures_what_we_do(
    ours: dict[str, Any], retriever: str, tiny_collection: Collection, tmp_path: Path
) -> None:
    write_nanobeir(tmp_path / "nano", tiny_collection)
    command = ["evaluate", retriever, "--nanobeir", "msmarco", "scifact"]
    given = ["--nanobeir_dataset", str(tmp_path / "nano"), "--output", str(tmp_path / "out")]
    assert cli.main([*command, *given]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["nanobeir"]
    for name, split in SETS.items():
        for metric, value in ours[split].items():
            assert found[name][metric] == pytest.approx(value, abs=1e-9), (name, metric)
    for metric in ours["test"]:
        mean = sum(of[metric] for of in ours.values()) / 2
        assert found["mean"][metric] == pytest.approx(mean, abs=1e-9)


def test_mteb_measures_what_we_do(
    ours: dict[str, Any],
    retriever: str,
    tiny_collection: Collection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mteb = pytest.importorskip("mteb")
    queries, passages = texts_of(tiny_collection, "test")
    judged: dict[str, dict[str, int]] = {}
    for query, passage in relevant(tiny_collection, "test"):
        judged.setdefault(query, {})[passage] = 1

    def load_data(task: Any, **_: Any) -> None:
        corpus = {"id": list(passages), "title": [""] * len(passages), "text": list(passages.values())}
        task.dataset = {
            "default": {
                "test": {
                    "corpus": datasets.Dataset.from_dict(corpus),
                    "queries": datasets.Dataset.from_dict(
                        {"id": list(queries), "text": list(queries.values())}
                    ),
                    "relevant_docs": judged,
                    "top_ranked": None,
                }
            }
        }
        task.data_loaded = True

    monkeypatch.setattr(type(mteb.get_task("SciFact")), "load_data", load_data)
    assert cli.main(["evaluate", retriever, "--mteb", "SciFact", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["mteb"]
    # mteb rounds to five decimals.
    assert found == {"SciFact": {"ndcg_at_10": pytest.approx(ours["test"]["ndcg@10"], abs=1e-5)}}


def test_a_package_that_is_missing_is_named(
    retriever: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    assert cli.main(["evaluate", retriever, "--mteb", "SciFact"]) == 1
    assert "--mteb needs the package mteb. Install it with: pip install mteb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--nanobeir"], "evaluate one model. Name it"),
        (
            ["model", "--nanobeir", "--collection", "data"],
            "--collection cannot be combined with --nanobeir or --mteb",
        ),
        (
            ["model", "--mteb", "SciFact", "--depth", "7"],
            "--depth cannot be combined with --nanobeir or --mteb",
        ),
    ],
)
def test_options_that_do_nothing_are_an_error(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *given])
    assert message in capsys.readouterr().err
