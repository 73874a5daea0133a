"""Sharded weights (FSDP2) train to what DDP trains to. Two processes on the CPU; no GPU has run this."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_processes import launch_two

from hf_ar2.trainers import RankerConfig, RocketQAv2Config, RocketQAv2Trainer

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
SETTINGS = {
    "retriever": {"num_negatives": 3, "max_steps": 6, "steps_per_round": 3, "mine": True},
    "ranker": {"num_negatives": 3, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 3},
    # The second round has a phase of each model again, after the other one was trained.
    "ar2": {"ranker_steps": 1, "retriever_steps": 2, "num_rounds": 2},
}


def trained(trainer: str, folder: Path, models: Path, *options: str, **settings: object) -> dict:
    """The result of a run in two processes that mines, evaluates and saves twice."""
    save = {"save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    given = json.dumps({**SETTINGS[trainer], **save, **settings})
    launch_two(SCRIPT, models, folder, "--trainer", trainer, "--no_dropout", "--settings", given, *options)
    return json.loads((folder / "result.json").read_text())


def numbers(result: dict) -> list[float]:
    """Losses, norms of gradients and metrics, in their order."""
    return [
        value
        for entry in result["log"]
        for name, value in entry.items()
        if name in ("loss", "grad_norm") or (name.startswith("eval_") and "mrr" in name)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["retriever", "ranker", "ar2"])
def test_a_sharded_model_trains_evaluates_and_resumes_as_with_ddp(
    trainer: str, models: Path, tmp_path: Path
) -> None:
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    expected = trained(trainer, plain, models)
    found = trained(trainer, sharded, models, shard_weights=True)
    assert len(numbers(expected)) > 8 and numbers(found) == pytest.approx(numbers(expected), rel=1e-4)
    for step in (3, 6):  # a checkpoint has the files of one that was never sharded
        for role in ["retriever", "ranker"] if trainer == "ar2" else [trainer]:
            files = [
                next((run / f"checkpoint-{step}" / role).glob("*.safetensors")) for run in (plain, sharded)
            ]
            weights = [load_file(file) for file in files]
            torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
        optimizers = [torch.load(run / f"checkpoint-{step}" / "optimizer.pt") for run in (plain, sharded)]
        for number, state in optimizers[0]["state"].items():
            torch.testing.assert_close(optimizers[1]["state"][number], state, rtol=1e-3, atol=1e-6)
    shutil.rmtree(sharded / "checkpoint-6")
    resumed = trained(trainer, sharded, models, "--resume", shard_weights=True)
    assert resumed["weights"] == found["weights"]


def test_what_cannot_be_sharded_is_named(models: Path, tmp_path: Path, tiny_collection) -> None:
    with pytest.raises(ValueError, match="leave out mini_batch_size and step_tokens"):
        RankerConfig(output_dir=str(tmp_path), shard_weights=True, mini_batch_size=4)
    args = RocketQAv2Config(output_dir=str(tmp_path), shard_weights=True, use_cpu=True)
    with pytest.raises(
        NotImplementedError,
        match="RocketQAv2Trainer is not supported, only RetrieverTrainer, RankerTrainer and AR2Trainer are",
    ):
        RocketQAv2Trainer(str(models / "tiny-retriever"), str(models / "tiny-ranker"), args, tiny_collection)
