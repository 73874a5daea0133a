"""Publishing, against a stand-in for the Hub on the loopback address (hub_stub.py), in a process of its own.

The tests check which calls are made, in what order, and that the uploaded models load. They cannot check that the real
server accepts the calls.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_tiny_collection

from hf_ar2.cards import hub

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def run(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the files that publishing reads."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(models / "tiny-retriever", folder / "retriever")
    shutil.copytree(models / "tiny-ranker", folder / "ranker")
    make_tiny_collection().save(folder / "data")
    recipe = {
        "name": "tiny",
        "collection": str(folder / "data"),
        "models": {"light": {"model": str(models / "tiny-retriever")}},
        "args": {"bf16": False},
        "stages": {"ar2": {"trainer": "ar2", "retriever": "light", "ranker": "light"}},
        "evaluation": {"rows": {"AR2": {"retriever": "ar2", "ranker": "ar2"}}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def results(models: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The results of the steps in sharing.py."""
    output = tmp_path_factory.mktemp("sharing")
    served = subprocess.Popen([sys.executable, str(TESTS / "hub_stub.py")], stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{served.stdout.readline().strip()}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_dummy",
            "HF_HOME": str(output / "home"),
        }
        done = subprocess.run(
            [sys.executable, str(TESTS / "sharing.py"), str(models), str(run), str(output)],
            env=environment,
            cwd=TESTS,
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        served.kill()
        served.wait()
    assert done.returncode == 0, done.stderr[-3000:]
    yield json.loads((output / "results.json").read_text())


def test_what_was_pushed_loads_everywhere_with_equal_outputs(results: dict[str, Any]) -> None:
    pushed = results["run"]
    assert pushed["first"]["code"] == 0 and "/tester/mine-retriever\n" in pushed["first"]["out"]
    assert max(pushed["differences"].values()) <= 1e-6
    assert pushed["missing"] == []
    for scores in pushed["blocks"].values():  # the code on the cards: three ways to the same scores
        assert len(scores) == 3
        np.testing.assert_allclose(scores[1:], [scores[0]] * 2, atol=1e-6)


def test_each_repository_is_a_standard_checkpoint_with_our_card(results: dict[str, Any]) -> None:
    files = results["run"]["files"]
    common = {"README.md", "config.json", "model.safetensors", "modules.json", "tokenizer.json"}
    assert common | {"1_Pooling/config.json"} <= set(files["tester/mine-retriever"])
    assert common <= set(files["tester/mine-ranker"])
    card = results["run"]["cards"]["tester/mine-retriever"]
    assert "with [AR2](https://arxiv.org/abs/2110.03611)" in card
    assert "[tester/mine-ranker](https://huggingface.co/tester/mine-ranker)" in card
    assert "our own" in card


def test_the_index_is_a_dataset_that_finds_with_the_published_retriever(results: dict[str, Any]) -> None:
    assert results["run"]["index_files"] == ["README.md", "ids.json", "index.faiss", "index.json"]
    assert results["run"]["index_finds_the_best"]
    assert "encoded by `tester/mine-retriever`" in results["towers"]["index_card"]


def test_adapters_on_the_hub_load_as_those_of_a_folder(results: dict[str, Any]) -> None:
    found = results["adapters"]
    assert max(found["retriever"], found["ranker"]) <= 1e-6
    assert min(found["retriever without"], found["ranker without"]) > 1e-3


def test_results_on_a_benchmark_of_the_hub_are_files_of_the_repository(results: dict[str, Any]) -> None:
    (place, text), *others = results["eval_results"].items()
    assert place == ".eval_results/benchmark.yaml" and not others  # the other data set is no benchmark
    (entry,) = yaml.safe_load(text)  # eval.yaml has no task over dev
    assert entry == {
        "dataset": {"id": "tester/benchmark", "task_id": "retrieval"},
        "value": 0.75,
        "source": {
            "url": "https://huggingface.co/tester/on-benchmark-retriever",
            "name": "Model card",
        },
        "notes": "nDCG@10, split test",
    }


def test_what_is_there_already_is_not_committed_again(results: dict[str, Any]) -> None:
    before, after = results["run"]["commits"]
    assert results["run"]["again"]["code"] == 0
    assert (
        before
        == after
        == {
            f"{kind}/tester/mine-{part}": ["Publish"]
            for kind, part in (("models", "retriever"), ("models", "ranker"), ("datasets", "index"))
        }
    )


def test_a_public_repository_does_not_take_what_is_private(results: dict[str, Any]) -> None:
    assert results["run"]["public_now"]["code"] == 0
    refused = results["run"]["private_later"]
    assert refused["code"] == 1 and "exists and is public, but should be private" in refused["err"]


@pytest.mark.parametrize("case", ["another's name", "another's repository"])
def test_without_permission_it_says_what_to_do(results: dict[str, Any], case: str) -> None:
    refused = results["refused"][case]
    assert refused["code"] == 1
    assert "the token has no write access there (403). Use one with write access to" in refused["err"]
    assert refused["err"].rstrip().endswith("or publish under your own name")
    commits = results["refused"]["commits"]
    assert not any(made for id, made in commits.items() if "readonly" in id or "someone" in id)


def test_a_token_the_hub_does_not_know(results: dict[str, Any]) -> None:
    said = results["refused"]["a wrong token"]
    assert said.startswith("PermissionError: tester/x-ranker: the Hub does not accept the token (401)")
    assert said.endswith("then run: hf auth login")


def test_a_connection_that_breaks_off_is_tried_again(results: dict[str, Any]) -> None:
    healed = results["refused"]["a break that heals"]
    assert healed["code"] == 0 and healed["err"].count("trying again") == 2
    assert results["refused"]["commits"]["models/tester/healed-ranker"] == ["Publish"]


def test_where_it_stays_broken_nothing_is_published(results: dict[str, Any]) -> None:
    broken = results["refused"]["a break that stays"]
    assert broken["code"] == 1
    assert "was lost 3 times" in broken["err"] and "nothing was published there" in broken["err"]
    assert results["refused"]["commits"]["models/tester/broken-ranker"] == []


def test_files_of_all_repositories_are_uploaded_before_any_is_committed(results: dict[str, Any]) -> None:
    """A failure at the second repository's large files leaves the first as it was."""
    broken = results["refused"]["a break at the second's files"]
    assert broken["code"] == 1 and "both-ranker: the Hub answered 400: The store is closed." in broken["err"]
    commits = results["refused"]["commits"]
    assert commits["models/tester/both-retriever"] == commits["models/tester/both-ranker"] == []


def test_a_name_that_no_repository_can_have(results: dict[str, Any]) -> None:
    refused = results["refused"]["a name with two slashes"]
    assert refused["code"] == 1 and "'tester/my/run-retriever': not a valid repository name" in refused["err"]


def test_an_incomplete_folder_raises_an_error_before_any_repository_is_made(results: dict[str, Any]) -> None:
    torn = results["refused"]["a ranker without weights"]
    assert torn["code"] == 1 and "no model.safetensors" in torn["err"]
    assert not any("torn" in id for id in results["refused"]["commits"])


def test_two_towers_replace_one_and_load_apart(results: dict[str, Any]) -> None:
    towers = results["towers"]
    assert towers["ids"] == {"retriever": "tester/mine-retriever", "index": "tester/mine-index"}
    assert towers["difference"] <= 1e-6 and towers["apart"] > 1e-3
    assert towers["missing"] == []
    np.testing.assert_allclose(towers["blocks"][1:], [towers["blocks"][0]] * 2, atol=1e-6)
    # the single tower's files are gone from the root
    root = {name for name in towers["files"] if "/" not in name}
    assert root == {"README.md", "config_sentence_transformers.json", "modules.json", "router_config.json"}
    assert towers["commits"] == ["Publish", "Two towers"]


def test_the_card_of_two_towers_names_them_and_what_they_belong_to(results: dict[str, Any]) -> None:
    towers = results["towers"]
    assert '"query_0_Transformer"' in towers["card"] and '"document_0_Transformer"' in towers["card"]
    assert towers["license"] == "mit"
    for card in (towers["card"], towers["local_card"]):
        assert "**It only works with the passages of one encoder**" in card
    np.testing.assert_allclose(towers["query_encoder"], towers["blocks"][:1], atol=1e-6)


def test_push_to_hub_publishes_at_saves_and_at_the_end(results: dict[str, Any]) -> None:
    training = results["training"]
    saves = ["Training in progress, step 7", "Training in progress, step 14", "End of training"]
    for role in ("retriever", "ranker"):
        # The end makes a commit if it changes a file: the card has the seconds, rounded.
        assert training["commits"][f"models/tester/every-{role}"] in (saves, saves[:-1])
        assert training["commits"][f"models/tester/at-end-{role}"] == ["End of training"]
    assert training["difference"] <= 1e-6 and training["private"]
    # hub_strategy="checkpoint": what resuming needs, in the same commit
    assert {"last-checkpoint/trainer_state.json", "last-checkpoint/ranker/model.safetensors"} <= set(
        training["files"]
    )
    assert "last-checkpoint/retriever/model.safetensors" in training["files"]
    assert not training["left_behind"]


def test_a_run_continues_from_the_checkpoint_on_the_hub(results: dict[str, Any]) -> None:
    assert results["training"]["resumed"] == list(range(1, 22))  # 14 of them in the checkpoint's own log


def test_a_push_that_fails_while_training_does_not_end_it(results: dict[str, Any]) -> None:
    commits = results["training"]["commits"]["models/tester/failing-retriever"]
    saved = "Training in progress, step 14"
    assert commits in ([saved], [saved, "End of training"])  # the end makes a commit if it changes a file


def test_a_name_without_write_access_fails_before_training(results: dict[str, Any]) -> None:
    assert results["training"]["refused"].startswith(
        "PermissionError: someone/mine-retriever: the token has no write"
    )


def test_offline_nothing_is_tried(run: Path) -> None:
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set, so nothing can be published; unset it"):
        hub.publish({"ranker": run / "ranker"}, "me/mine", lambda what, ids: "# Mine")


def test_without_a_token_it_says_where_to_get_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(
        PermissionError, match="no token for the Hub: make one with write access at .* hf auth login"
    ):
        hub.publish({"ranker": run / "ranker"}, "me/mine", lambda what, ids: "# Mine")


@pytest.mark.parametrize(
    ("part", "file", "change", "message"),
    [
        (
            "ranker",
            "config_sentence_transformers.json",
            {"activation_fn": None},
            "otherwise CrossEncoder applies a sigmoid",
        ),
        ("ranker", "config.json", {"id2label": {"0": "a", "1": "b"}}, "2 labels, expected 1"),
        (
            "retriever",
            "config_sentence_transformers.json",
            {"similarity_fn_name": None},
            "expected 'cosine' or 'dot'",
        ),
        ("retriever", "modules.json", [], "no pooling among"),
    ],
)
def test_a_folder_that_others_would_load_differently_is_an_error(
    run: Path, tmp_path: Path, part: str, file: str, change: Any, message: str
) -> None:
    shutil.copytree(run / part, tmp_path / part)
    path = tmp_path / part / file
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **change} if isinstance(change, dict) else change))
    with pytest.raises(ValueError, match=message):
        hub.check_complete(part, tmp_path / part)


def test_a_model_that_returns_nan_is_an_error(run: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(run / "ranker", tmp_path / "ranker")
    path = tmp_path / "ranker" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="returns NaN or infinite values; its training diverged"):
        hub.check_loads("ranker", tmp_path / "ranker")
