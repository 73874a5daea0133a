"""Cards: what they say, where it comes from, and how they look in a terminal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_tiny_ranker, make_tiny_retriever
from huggingface_hub import ModelCard

from hf_ar2.cards import hub
from hf_ar2.cards.card import base_metadata, index_card, model_card
from hf_ar2.cards.facts import Stage, Training, training_of_run, training_of_trainer
from hf_ar2.cards.mark import edited_card, is_edited, marked, write_card
from hf_ar2.cards.provenance import name_of, settings_of
from hf_ar2.collections import Collection
from hf_ar2.command_line import main as cli
from hf_ar2.command_line.push import terminal_text
from hf_ar2.models.loading import load_retriever
from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
)

BASE_CARD = "---\nlicense: mit\nlanguage: [en, de]\ntags: [base]\n---\n# The base model's own words\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_retriever(folder / "retriever")
    make_tiny_ranker(folder / "ranker")
    for name in ("retriever", "ranker"):
        (folder / name / "README.md").write_text(BASE_CARD)
    return folder


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Path:
    """A run folder with a warm-up, AR2, and a stage that neither model comes from."""
    folder = tmp_path / "runs" / "mine"
    for name in ("retriever", "ranker"):
        shutil.copytree(models / name, folder / name)
    stage = {"retriever": {"from": "light", "layers": [0]}, "args": {"max_steps": 60}}
    recipe = {
        "name": "mine",
        "collection": "BeIR/scifact",
        "seed": 7,
        "models": {"light": {"model": str(models / "retriever"), "max_length": 48}},
        "args": {
            "max_query_length": 24,
            "max_passage_length": 40,
            "cache_dir": "somewhere",
            "hub_token": "hf_secret",
        },
        "stages": {
            "warm-up": {"trainer": "retriever", **stage},
            "elsewhere": {"trainer": "retriever", **stage},
            "d0": {"trainer": "ranker", "retriever": "warm-up", "ranker": "warm-up"},
            "ar2": {"trainer": "ar2", "retriever": "warm-up", "ranker": "d0", "args": {"num_rounds": 2}},
        },
        "evaluation": {
            "rerank_depth": 10,
            "rows": {
                "zero-shot": {"retriever": "light"},
                "warm-up": {"retriever": "warm-up", "ranker": "d0"},
                "AR2": {"retriever": "ar2", "ranker": "ar2"},
            },
        },
    }
    test = {"difference": 0.25, "p_value": 0.012, "wins": 30, "losses": 10, "ties": 8}
    values = {
        "zero-shot": {"retriever": {"mrr@10": 0.25}},
        "warm-up": {"retriever": {"mrr@10": 0.5}, "ranker": {"mrr@10": 0.5}, "pipeline": {"mrr@10": 0.55}},
        "AR2": {"retriever": {"mrr@10": 0.75}, "ranker": {"mrr@10": 0.7}, "pipeline": {"mrr@10": 0.8}},
    }
    outcomes = {"zero-shot": {}, "warm-up": {"retriever": test}, "AR2": {"retriever": test, "pipeline": test}}
    files = {
        "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False),
        "environment.json": {
            "python": "3.11.7",
            "packages": {"torch": "2.13.0"},
            "processor": "Some CPU",
            "cores": 2,
            "threads": 1,
            "gpu": None,
            "on_the_hub": ["BeIR/scifact"],
        },
        "metrics.json": {row: {"test": found} for row, found in values.items()},
        "significance.json": {
            "metric": "mrr@10",
            "tests": {row: {"test": found} for row, found in outcomes.items()},
        },
        "stages/ar2/done.json": {
            "seconds": 400,
            "steps": 130,
            "passages": 5183,
            "queries": 648,
            "settings": {
                "learning_rate": 1e-5,
                "num_rounds": 2,
                "max_query_length": 24,
                "max_pair_length": 64,
            },
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def card_of(run: Path, role: str, **options: Any) -> str:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    return model_card(training_of_run(run, recipe, role), run / role, name=f"me/mine-{role}", **options)


def test_the_metadata_is_what_the_hub_reads(run: Path) -> None:
    card = ModelCard(card_of(run, "retriever"))
    data = card.data
    assert data.library_name == "sentence-transformers" and data.pipeline_tag == "sentence-similarity"
    assert {"sentence-transformers", "feature-extraction", "hf-ar2", "ar2"} <= set(data.tags)
    assert data.datasets == ["BeIR/scifact"]
    assert data.base_model is None  # a folder, which the Hub does not know
    result = data.eval_results[0]
    assert (result.metric_type, result.metric_value, result.dataset_type) == (
        "mrr_at_10",
        0.75,
        "BeIR/scifact",
    )
    ranker = ModelCard(card_of(run, "ranker")).data
    assert ranker.pipeline_tag == "text-ranking" and "cross-encoder" in ranker.tags
    assert ranker.eval_results[0].metric_value == 0.7  # the ranker's, not the pipeline's
    assert ranker.eval_results[0].metric_name == "MRR@10, the first 10 passages reordered"


def test_results_are_shown_before_and_after_with_their_significance(run: Path) -> None:
    card = card_of(run, "retriever")
    assert "`BeIR/scifact`, test, 48 queries:" in card
    assert "| zero-shot | 0.250 |  |\n| warm-up | 0.500 | zero-shot: +0.250, p = .012 |" in card
    assert "| AR2 | 0.750 | warm-up: +0.250, p = .012 |" in card
    ranker = card_of(run, "ranker")
    assert "| AR2: pipeline | 0.800 | retriever: +0.250, p = .012 |" in ranker
    assert "zero-shot" not in ranker  # it had no ranker


def test_the_results_say_which_queries_nobody_asked_and_what_was_searched(run: Path) -> None:
    assert "people asked" not in card_of(run, "retriever")
    environment = json.loads((run / "environment.json").read_text())
    environment["query_sources"] = {"train": {"heading": 648}, "test": {"": 3, "heading": 45}}
    (run / "environment.json").write_text(json.dumps(environment))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["AR2"]["dev"] = metrics["AR2"]["test"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "chosen.json").write_text(json.dumps({"row": "AR2", "system": "retriever", "split": "dev"}))
    plan = {"part": 500, "of_passages": 5183, "costs": {"passages": 497}}
    (run / "plan.json").write_text(json.dumps(plan))
    results = " ".join(card_of(run, "retriever").split("## Results")[1].split("## Training")[0].split())
    assert (
        "those of test are headings of the documents (45), plus 3 asked. Such queries use the words"
        in results
    )
    assert "On dev only a part of the corpus was searched, 497 of 5,183 passages" in results
    (run / "plan.json").write_text(json.dumps({**plan, "part": None}))
    assert "only a part of the corpus" not in card_of(run, "retriever")


def test_a_retriever_that_is_served_with_bm25_shows_both(run: Path) -> None:
    metrics, tests = (json.loads((run / f"{name}.json").read_text()) for name in ("metrics", "significance"))
    metrics["AR2"]["test"]["hybrid"] = {"mrr@10": 0.77}
    tests["tests"]["AR2"]["test"]["hybrid"] = tests["tests"]["AR2"]["test"]["pipeline"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "significance.json").write_text(json.dumps(tests))
    assert "BM25" not in card_of(run, "retriever")
    (run / "chosen.json").write_text(json.dumps({"row": "AR2", "system": "hybrid", "reason": "it is best."}))
    card = card_of(run, "retriever")
    assert "| AR2 with BM25 | 0.770 | without: +0.250, p = .012 |" in card
    assert "The run serves it with BM25, which is not part of it" in " ".join(card.split())
    with pytest.raises(ValueError, match="the run serves no ranker"):  # a hybrid needs none
        card_of(run, "ranker")


def test_a_trainer_s_card_says_how_much_its_evaluation_searched() -> None:
    record = {"name": "mine", "collection": "tiny", "trainer": "retriever", "sources": {"retriever": "light"}}
    record |= {"passages": 9000, "settings": {"eval_passages": 2000}}
    log = [{"eval_retriever_mrr@10": 0.5, "step": 0}, {"eval_retriever_mrr@10": 0.6, "step": 1}]
    sources = {"dev": {"generated:t5": 12}}
    training = training_of_trainer(record, "retriever", log, "dev", 20, query_sources=sources)
    asked, part = training.notes
    assert "those of dev are written by t5 (12)" in asked
    assert "On dev only a part of the corpus was searched, about 2,000 of 9,000 passages" in part
    assert list(training.metrics) == ["before", "after 1 step"]


def test_a_ranker_that_was_not_evaluated_has_a_card_that_says_so(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["rerank_depth"] = 0
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    metrics = json.loads((run / "metrics.json").read_text())
    alone = {
        row: {split: {"retriever": found["retriever"]} for split, found in splits.items()}
        for row, splits in metrics.items()
    }
    (run / "metrics.json").write_text(json.dumps(alone))
    card = card_of(run, "ranker")
    assert "The ranker was not evaluated in this run (`rerank_depth` 0)." in card
    assert not ModelCard(card).data.eval_results


def test_the_card_lists_the_stages_of_the_model_and_no_others(run: Path) -> None:
    card = card_of(run, "retriever")
    assert "Data: [BeIR/scifact](https://huggingface.co/datasets/BeIR/scifact): 5,183 passages, 648" in card
    assert "**warm-up**: a retriever, contrastively ([DPR](https://arxiv.org/abs/2004.04906))" in card
    told = " ".join(card.split())
    assert re.search(r"retriever from retriever, max_length 48, layers \[0\]", told)
    assert "ranker from stage d0; 130 steps; 6 min 40 s" in told
    assert "elsewhere" not in card
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])  # type: ignore[index]
    assert settings["ar2"] == {"learning_rate": 1e-5, "max_pair_length": 64, "num_rounds": 2}
    assert settings["all"] == {"max_query_length": 24}
    assert "hf_secret" not in card and "somewhere" not in card
    assert "@misc{zhang2022ar2," in card and card.index("zhang2022ar2") < card.index("karpukhin2020dpr")


def test_licences_and_languages_come_from_the_publisher_or_the_base_model(run: Path, models: Path) -> None:
    data = ModelCard(card_of(run, "retriever")).data
    assert (data.license, data.language) == ("mit", ["en", "de"])  # the base model's own README says so
    card = card_of(run, "retriever", license="apache-2.0", data_license="CC BY 4.0")
    assert ModelCard(card).data.license == "apache-2.0"
    assert "- this model: apache-2.0, as stated by its publisher\n" in card
    assert ": mit, as stated on its card" in card and "`BeIR/scifact`: CC BY 4.0" in card
    assert base_metadata("package:no_such_package/model") == {}
    assert base_metadata(str(models / "no-such-folder")) == {}


def test_the_base_model_s_card_is_never_ours(run: Path) -> None:
    assert "own words" not in card_of(run, "retriever") and "[base]" not in card_of(run, "ranker")


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("towers", [False, True])
def test_each_loader_s_code_comes_to_the_same_scores(
    models: Path, tmp_path: Path, pooling: str, similarity: str, towers: bool
) -> None:
    retriever = load_retriever(
        models / "retriever", pooling=pooling, similarity=similarity, separate_towers=towers, device="cpu"
    )
    retriever.prompts = {"query": "what ", "document": ""}
    retriever.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    training = Training("retriever", "mine", "tiny", [Stage("a", "retriever", {"retriever": "b"})], "b")
    card = model_card(training, tmp_path / "saved", name=str(tmp_path / "saved"))
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    scores = []
    for code in blocks:
        names: dict[str, Any] = {}
        exec(code, names)
        scores.append(names["scores"])
    torch.testing.assert_close(scores[1], scores[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(scores[2], scores[0], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_trainer_writes_cards(models: Path, tmp_path: Path, tiny_collection: Collection) -> None:
    common: dict[str, Any] = {
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "max_steps": 2,
    }
    args = RankerConfig(output_dir=str(tmp_path / "mine"), num_negatives=3, eval_metrics=["mrr@10"], **common)
    trainer = RankerTrainer(models / "retriever", models / "ranker", args=args, collection=tiny_collection)
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "mine" / "ranker" / "README.md").read_text(encoding="utf-8")
    assert "\nlicense: mit\n" in card and "# mine: ranker" in card
    assert "with cross-entropy over lists on `tiny`" in " ".join(card.split())
    assert "60 passages, 24 training queries" in card
    assert "| before: pipeline |" in card and "| after 2 steps: pipeline |" in card
    assert "not tested for significance" in card
    # the retriever only found the lists
    assert not (tmp_path / "mine" / "retriever" / "README.md").exists()
    with pytest.raises(ValueError, match="this trainer trains no retriever whose index could be published"):
        trainer.push_to_hub("me/mine", index=True)


@pytest.mark.slow
def test_a_card_lists_earlier_trainers_of_the_same_model_objects(
    models: Path, tmp_path: Path, tiny_collection: Collection
) -> None:
    """As in the README: warm-up, the ranker's training, then AR2 on the model objects of both."""
    common: dict[str, Any] = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    common |= {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
    warm_up = RetrieverTrainer(
        models / "retriever",
        args=RetrieverConfig(output_dir=str(tmp_path / "g0"), max_steps=2, **common),
        collection=tiny_collection,
    )
    warm_up.train()
    ranker = RankerTrainer(
        models / "retriever",
        models / "ranker",
        args=RankerConfig(output_dir=str(tmp_path / "d0"), num_negatives=3, max_steps=3, **common),
        collection=tiny_collection,
    )
    ranker.train()
    game = {"num_rounds": 1, "ranker_steps": 1, "retriever_steps": 1, "num_negatives": 3}
    trainer = AR2Trainer(
        warm_up.model.retriever,
        ranker.model.ranker,
        args=AR2Config(output_dir=str(tmp_path / "ar2"), **game, **common),
        collection=tiny_collection,
    )
    trainer.train()
    for role in ("retriever", "ranker"):
        training = trainer.publisher.training(role)
        assert [(stage.name, stage.steps) for stage in training.stages] == [("g0", 2), ("d0", 3), ("ar2", 2)]
        assert training.stages[2].sources == {"retriever": "g0", "ranker": "d0"}
        assert training.base == str(models / role)
    trainer.save_model()
    card = (tmp_path / "ar2" / "retriever" / "README.md").read_text(encoding="utf-8")
    assert "1. **g0**" in card and "3. **ar2**" in card and "retriever from g0; ranker from d0" in card
    # A model loaded from a folder has no earlier stages; the folder's card lists them.
    other = RetrieverTrainer(
        tmp_path / "ar2" / "retriever",
        args=RetrieverConfig(output_dir=str(tmp_path / "g1"), max_steps=1, **common),
        collection=tiny_collection,
    )
    assert [stage.name for stage in other.publisher.training("retriever").stages] == ["g1"]


def test_settings_leave_out_secrets_and_what_does_not_affect_the_result(tmp_path: Path) -> None:
    args = RetrieverConfig(
        output_dir=str(tmp_path), hub_token="hf_secret", use_cpu=True, bf16=False, optim="sgd", run_name="x"
    )
    told = settings_of(args)
    assert told["optim"] == "sgd" and told["seed"] == 42 and told["contrast"] == "softmax"
    assert "hf_secret" not in json.dumps(told) and not {"output_dir", "run_name", "logging_steps"} & set(told)


def test_a_run_whose_last_row_was_not_trained_has_no_card(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["rows"] = {"zero-shot": {"retriever": "light"}}
    with pytest.raises(
        ValueError, match="served, names 'light' as retriever, expected a stage that trained it; the stages"
    ):
        training_of_run(run, recipe, "retriever")
    with pytest.raises(ValueError, match="the run serves no ranker that it trained: .* It has: neither"):
        training_of_run(run, recipe, "ranker")


@pytest.mark.parametrize("command", ["card", "push"])
def test_a_run_that_trained_nothing_of_its_last_row_is_an_error(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["rows"] = {"zero-shot": {"retriever": "light"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main([command, str(run), *(["me/mine"] if command == "push" else [])]) == 1
    assert "the row it serves (zero-shot) names no saved model that a stage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "home", ["/home/jane", "/data/jane", "~jane", "../jane", r"C:\Users\jane", "text:/home/jane"]
)
def test_a_path_of_this_machine_is_not_on_a_card(run: Path, home: str) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe |= {
        "collection": f"{home}/data",
        "models": {"light": {"model": f"{home}/light"}},
        "guard": f"{home}/guard",
    }
    recipe["args"] |= {"unlabelled": f"{home}/asked.jsonl", "train_lists": [f"{home}/lists"]}
    guard = {
        "before": {"metrics": {"mrr@10": 0.5}},
        "guard": f"{home}/guard",
        "split": "test",
        "metric": "mrr@10",
    }
    guard |= {"queries": 8, "of_queries": 8, "passages": 60, "of_passages": 60}
    guard["rows"] = {"AR2": {"retriever": "ar2", "metrics": {"mrr@10": 0.5}}}
    (run / "guard.json").write_text(json.dumps(guard))
    for role, partner in (("retriever", "ranker"), ("ranker", "retriever")):
        card = model_card(
            training_of_run(run, recipe, role),
            run / role,
            partner=f"{home}/{partner}",
            query_side_of=f"{home}/retriever" if role == "retriever" else None,
        )
        assert "jane" not in card and str(run.parent) not in card and "huggingface.co/" not in card
        data = ModelCard(card).data
        assert (data.eval_results[0].dataset_type, data.datasets, data.base_model) == (
            "data",
            None,
            None,
        ) or (home.startswith("text:") and data.eval_results[0].dataset_type == "text-data")


def test_a_folder_is_never_an_id_on_the_hub(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "retriever", "models/light")
    base = name_of(load_retriever("models/light", device="cpu"))
    shutil.rmtree("models")
    record = {"name": "mine", "collection": "tiny", "trainer": "retriever", "sources": {"retriever": base}}
    card = model_card(training_of_trainer(record, "retriever", [], "dev", 20), run / "retriever")
    assert ModelCard(card).data.base_model is None and "models/light" not in card


def test_the_command_shows_cards_at_80_columns(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["card", str(run), "--license", "apache-2.0"]) == 0
    shown = capsys.readouterr().out
    prose = [line for line in shown.splitlines() if not line.startswith("    ")]  # code may name long folders
    assert max(map(len, prose)) <= 80 + len(str(run))
    assert "mine: retriever\n═══" in shown and "mine: ranker\n═══" in shown
    assert "warm-up     0.500  zero-shot: +0.250, p = .012" in shown
    assert cli.main(["card", str(run), "--what", "ranker", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("---\ndatasets:\n- BeIR/scifact\n")


def test_a_terminal_shows_tables_lists_and_code() -> None:
    table = "| name | x |\n| --- | ---: |\n| a \\| b | 1 |\n| [c](https://d) | 2 |"
    card = f"---\na: 1\n---\n\n# Head\n\n{table}\n\n- *one*\n  more\n- two\n\n```python\nx\n\ny\n```\n"
    shown = [line.rstrip() for line in terminal_text(card, 40).splitlines()]
    assert shown[:4] == ["Head", "════", "", "name   x"]
    assert shown[5:] == ["a | b  1", "c      2", "", "- one more", "- two", "", "    x", "", "    y"]


def test_the_index_s_card_names_its_retriever() -> None:
    training = Training(
        "retriever", "mine", "BeIR/scifact", [Stage("a", "retriever", {"retriever": "b"})], "b"
    )
    about = {
        "passages": 5183,
        "dimension": 384,
        "type": "IndexFlatIP",
        "made_from": "0abc",
        "similarity": "dot",
    }
    card = index_card(training, about, "me/mine-index", "me/mine-retriever", normalised=False)
    assert "5,183 passages of `BeIR/scifact`, encoded by `me/mine-retriever`" in " ".join(card.split())
    assert 'snapshot_download("me/mine-index", repo_type="dataset")' in card
    assert "normalize_embeddings=False" in card


# ---- Cards that a person edited -------------------------------------------------------------------------------------


def test_a_card_that_a_person_edited_is_known_by_its_mark() -> None:
    card = marked("---\nlicense: mit\n---\n# Mine\n")
    assert not is_edited(card) and not is_edited(card.replace("\n", "\r\n")) and not is_edited(card.rstrip())
    for edited in (card.replace("mit", "apache-2.0"), f"{card}\nUse it well.", "# Mine", "", marked("a")[2:]):
        assert is_edited(edited)


def test_a_card_in_a_folder_is_written_again_unless_a_person_edited_it(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_card(tmp_path, marked(text))
        assert text in (tmp_path / "README.md").read_text()
    assert edited_card(tmp_path) is None
    (tmp_path / "README.md").write_text(marked("# Generated").replace("ated", "ated, and edited"))
    assert "and edited" in str(edited_card(tmp_path))
    (tmp_path / "README.md").write_text("# Mine")  # or of another program
    assert edited_card(tmp_path) is None
    write_card(tmp_path, marked("third"))
    assert (tmp_path / "README.md").read_text() == "# Mine"


@pytest.mark.parametrize(
    ("there", "replace", "published"),
    [
        (None, False, True),
        (marked("# Generated before"), False, True),
        ("# Mine", False, False),
        (marked("# Generated before").replace("before", "and edited"), False, False),
        ("# Mine", True, True),
    ],
)
def test_a_card_on_the_hub_stays_if_a_person_edited_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str | None, replace: bool, published: bool
) -> None:
    class Api:
        def list_repo_files(self, *_: Any, **__: Any) -> list[str]:
            return ["config.json"] if there is None else ["config.json", "README.md"]

        def hf_hub_download(self, *_: Any, **__: Any) -> str:
            (tmp_path / "README.md").write_text(str(there))
            return str(tmp_path / "README.md")

        def create_commit(self, id: str, operations: list[Any], **_: Any) -> list[str]:
            return [operation.path_in_repo for operation in operations]

    card = {"README.md": b"# Generated"}
    api: Any = Api()
    part = hub._Part("me/x", "model", None, {}, card)
    committed: Any = hub._commit(api, part, "Publish", replace)
    assert ("README.md" in committed) == published
    assert ("was edited on the Hub and is not replaced" in caplog.text) == (not published)
