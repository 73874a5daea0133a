"""The trainers' promises: what moves and what does not, exact resuming, one process = two, standard checkpoints."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import with_passages
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny_ar2 import SETTINGS, losses, make_trainer, moved, settings_of, snapshot
from transformers import AutoModel, AutoModelForSequenceClassification, EarlyStoppingCallback
from two_processes import launch_two

from hf_ar2.index import CorpusIndex
from hf_ar2.models.loading import load_retriever
from hf_ar2.trainers import (
    AR2Config,
    AR2Trainer,
    RankerConfig,
    RankerTrainer,
    RetrieverConfig,
    RetrieverTrainer,
)
from hf_ar2.trainers.arguments import check_launch
from hf_ar2.trainers.checkpoints import write_checksums
from hf_ar2.training_lists.pool import CandidatePool

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
WARM_UP = {k: v for k, v in SETTINGS.items() if k in {f.name for f in dataclasses.fields(RankerConfig)}}


def ar2(models, output, collection, dropout=True, callbacks=None, **settings):
    return make_trainer("ar2", models, output, collection, dropout=dropout, callbacks=callbacks, **settings)


def unused(name):
    """Mean pooling never reads BERT's own pooler."""
    return name.startswith("retriever.") and ".pooler." in name


def test_ar2_moves_every_parameter_of_both_models(models, tmp_path, tiny_collection):
    trainer = ar2(models, tmp_path, tiny_collection)
    before = snapshot(trainer)
    trainer.train()
    assert moved(trainer, before) == {name for name in before if not unused(name)}


def test_each_phase_moves_its_own_model_only(models, tmp_path, tiny_collection):
    for phase, settings in {
        "ranker": {"ranker_steps": 4, "retriever_steps": 0},
        "retriever": {"ranker_steps": 0, "retriever_steps": 4},
    }.items():
        trainer = ar2(models, tmp_path / phase, tiny_collection, weight_decay=0.1, num_rounds=1, **settings)
        before = snapshot(trainer)
        trainer.train()
        assert moved(trainer, before) == {n for n in before if n.startswith(phase) and not unused(n)}


def test_the_schedule_of_each_model_counts_its_own_steps(models, tmp_path, tiny_collection):
    trainer = ar2(models, tmp_path, tiny_collection, warmup_steps=0, eval_on_start=False, eval_strategy="no")
    trainer.train()
    rates = [(e["lr/retriever"], e["lr/ranker"]) for e in trainer.state.log_history if "lr/ranker" in e]
    ranker = [rate for step, (_, rate) in enumerate(rates) if trainer.phases.phase(step) == "ranker"]
    retriever = [rate for step, (rate, _) in enumerate(rates) if trainer.phases.phase(step) == "retriever"]
    np.testing.assert_allclose(ranker, [1e-3 * (1 - i / 6) for i in range(6)])
    np.testing.assert_allclose(retriever, [1e-3 * (1 - i / 8) for i in range(8)])


def test_phases_walk_through_all_queries_and_lists_hold_what_they_should(models, tmp_path, tiny_collection):
    trainer = ar2(models, tmp_path, tiny_collection, ranker_steps=6, retriever_steps=6, eval_on_start=False)
    trainer.begin_round()
    judgments = tiny_collection.judgments("train")
    seen = {"ranker": [], "retriever": []}
    for step in range(12):
        batch = trainer.collator(list(range(step * 4, step * 4 + 4)))
        lists = trainer.collator.lists(np.arange(4), 0)
        assert lists.mask.all() and lists.passage_rows.shape == (4, 4)
        positives, rows = batch["known_positives"][:, 0], batch["passage_rows"]
        assert torch.equal(rows[:, 0], positives) and (rows[:, 1:] != positives[:, None]).all()
        seen[batch["phase"]].extend(positives.tolist())
    for rows in seen.values():
        assert sorted(rows) == sorted(judgments.passage_rows.tolist())


def test_warm_ups_learn_and_leave_the_other_model_alone(models, tmp_path, tiny_collection):
    args = RetrieverConfig(
        output_dir=str(tmp_path / "g"), **{**WARM_UP, "num_negatives": 0, "num_train_epochs": 12}
    )
    retriever = RetrieverTrainer(
        load_retriever(models / "tiny-retriever"), args=args, collection=tiny_collection
    )
    retriever.train()
    curve = losses(retriever.state.log_history)
    assert np.mean(curve[-6:]) < 0.8 * np.mean(curve[:6])

    args = RankerConfig(output_dir=str(tmp_path / "d"), **{**WARM_UP, "num_train_epochs": 2})
    ranker = RankerTrainer(
        retriever.model.retriever, models / "tiny-ranker", args=args, collection=tiny_collection
    )
    before = snapshot(ranker)
    ranker.train()
    assert moved(ranker, before) == {name for name in before if name.startswith("ranker.")}
    assert {"eval_retriever_mrr@10", "eval_pipeline_mrr@10"} <= set(ranker.evaluate())


def test_ranker_lists_go_from_random_to_hard(models, tmp_path, tiny_collection):
    args = RankerConfig(output_dir=str(tmp_path), **{**WARM_UP, "num_train_epochs": 10})
    trainer = RankerTrainer(
        models / "tiny-retriever", models / "tiny-ranker", args=args, collection=tiny_collection
    )
    trainer.begin_round()

    def share_from_pool(step):
        positions = np.arange(step * 4, step * 4 + 4)
        lists = trainer.collator.lists(positions)
        pool = trainer.pool.passage_rows[trainer.collator.lists.indices(positions)]
        return (lists.passage_rows[:, 1:, None] == pool[:, None, :]).any(axis=2).mean()

    assert share_from_pool(0) < 0.6  # a pool of 10 of 60 passages is hit by chance, too
    assert share_from_pool(trainer.total_steps // 2) == 1


def test_accumulated_steps_equal_one_large_batch(models, tmp_path, tiny_collection):
    whole = ar2(models, tmp_path / "a", tiny_collection, dropout=False)
    parts = ar2(
        models,
        tmp_path / "b",
        tiny_collection,
        dropout=False,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    whole.train()
    parts.train()
    np.testing.assert_allclose(losses(whole.state.log_history), losses(parts.state.log_history), rtol=1e-4)


def test_the_last_entry_says_what_the_time_was_spent_on(models, tmp_path, tiny_collection):
    trainer = ar2(models, tmp_path, tiny_collection)
    trainer.train()
    last = trainer.state.log_history[-1]
    spent = {key.removeprefix("seconds/"): value for key, value in last.items() if key.startswith("seconds/")}
    assert set(spent) == {"refresh", "evaluation", "ranker", "retriever", "saving"}
    assert all(value > 0 for value in spent.values())
    assert 0.8 * last["train_runtime"] < sum(spent.values()) <= 1.01 * last["train_runtime"]


def test_a_run_that_was_killed_ends_where_the_uninterrupted_one_does(models, tmp_path):
    settings = json.dumps(
        {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "save_total_limit": 3}
    )

    def run(name, *options):
        command = [
            sys.executable,
            str(SCRIPT),
            str(models),
            str(tmp_path / name),
            "--settings",
            settings,
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    whole = run("whole")
    assert whole.returncode == 0, whole.stderr
    # In the middle of the second round, between two checkpoints and between two log entries.
    assert run("killed", "--kill_after", "11").returncode == -signal.SIGKILL
    # A checkpoint that was being written when the process died is passed over.
    (tmp_path / "killed" / "checkpoint-11").mkdir()
    resumed = run("killed", "--resume")
    assert resumed.returncode == 0, resumed.stderr

    expected, found = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    )
    assert found["weights"] == expected["weights"]

    def entries(result):  # the last entry holds times
        return [entry for entry in result["log"] if "train_runtime" not in entry]

    assert entries(found) == entries(expected)


def test_two_processes_reach_the_losses_of_one(models, tmp_path, tiny_collection):
    settings = {"contrastive_weight": 0.5, "index_factory": "Flat"}
    one = ar2(models, tmp_path / "one", tiny_collection, dropout=False, **settings)
    one.train()
    options = ["--settings", json.dumps({**settings, "per_device_train_batch_size": 2})]
    launch_two(SCRIPT, models, tmp_path / "two", "--no_dropout", *options)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["world_size"] == 2
    np.testing.assert_allclose(losses(two["log"]), losses(one.state.log_history), rtol=1e-4)
    measured = [
        [e for e in log if "eval_retriever_mrr@10" in e] for log in (two["log"], one.state.log_history)
    ]
    assert len(measured[0]) == 3
    for a, b in zip(*measured, strict=True):
        assert a["eval_pipeline_mrr@10"] == pytest.approx(b["eval_pipeline_mrr@10"])
    pools = [CandidatePool.open(tmp_path / name / "pool") for name in ("one", "two")]
    assert np.array_equal(pools[0].passage_rows, pools[1].passage_rows)
    np.testing.assert_allclose(pools[0].scores, pools[1].scores, rtol=1e-4)
    # Each process encoded half of the corpus; one process opens both.
    (folder,) = (tmp_path / "two" / "index").glob("*/meta.json")
    index = CorpusIndex.open(folder.parent)
    assert [len(part) for part in index.embeddings.parts] == [30, 30] and "index" not in index.meta["files"]


def test_checkpoints_load_everywhere_with_equal_outputs(models, tmp_path, tiny_collection):
    trainer = ar2(models, tmp_path, tiny_collection, num_rounds=1)
    trainer.train()
    trainer.save_model()
    texts = ["where does the otter hide the drum ?", "the brave otter hides a drum in the attic"]
    retriever, ranker = trainer.model.retriever.eval(), trainer.model.ranker.eval()

    loaded = SentenceTransformer(str(tmp_path / "retriever"), device="cpu")
    np.testing.assert_allclose(loaded.encode(texts), retriever.encode(texts), atol=1e-6)
    encoder, report = AutoModel.from_pretrained(tmp_path / "retriever", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = loaded.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = encoder.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    np.testing.assert_allclose(mean.numpy(), retriever.encode(texts), atol=1e-6)

    pair = [(texts[0], texts[1])]
    np.testing.assert_allclose(
        CrossEncoder(str(tmp_path / "ranker")).predict(pair), ranker.predict(pair), atol=1e-6
    )
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ranker", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        logit = classifier.eval()(**loaded.tokenizer(*pair[0], return_tensors="pt")).logits[0, 0]
    np.testing.assert_allclose(logit, ranker.predict(pair)[0], atol=1e-6)
    card = (tmp_path / "retriever" / "README.md").read_text(encoding="utf-8")
    # Ours, not the base model's.
    assert "Trained with [AR2](https://arxiv.org/abs/2110.03611) on `tiny`" in card


def test_separate_towers_train_apart_and_are_saved(models, tmp_path, tiny_collection):
    retriever = load_retriever(models / "tiny-retriever", separate_towers=True, device="cpu")
    args = AR2Config(output_dir=str(tmp_path), **{**SETTINGS, "num_rounds": 1})
    trainer = AR2Trainer(retriever, models / "tiny-ranker", args=args, collection=tiny_collection)
    trainer.train()
    trainer.save_model()
    weights = dict(trainer.model.named_parameters())
    pairs = [(name, name.replace("sub_modules.query", "sub_modules.document")) for name in weights]
    pairs = [(a, b) for a, b in pairs if a != b and ".pooler." not in a]
    assert pairs and not any(torch.equal(weights[a], weights[b]) for a, b in pairs)
    loaded = load_retriever(tmp_path / "retriever", device="cpu")
    text = ["the otter"]
    assert not np.allclose(loaded.encode_query(text), loaded.encode_document(text))
    np.testing.assert_allclose(loaded.encode_query(text), retriever.eval().encode_query(text), atol=1e-6)


def test_best_checkpoint_by_a_retrieval_metric_is_loaded_at_the_end(models, tmp_path, tiny_collection):
    trainer = ar2(
        models,
        tmp_path,
        tiny_collection,
        num_rounds=3,
        load_best_model_at_end=True,
        metric_for_best_model="retriever_mrr@10",
        greater_is_better=True,
    )
    trainer.train()
    scores = [e["eval_retriever_mrr@10"] for e in trainer.state.log_history if "eval_retriever_mrr@10" in e]
    assert trainer.state.best_metric == max(scores[1:])
    assert trainer.evaluate()["eval_retriever_mrr@10"] == pytest.approx(trainer.state.best_metric)


def test_the_best_checkpoint_of_a_run_whose_folder_was_moved_is_loaded_or_missed(
    models, tmp_path, tiny_collection
):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "retriever_mrr@10", "num_rounds": 2}
    trainer = ar2(models, tmp_path / "before", tiny_collection, **best)
    trainer.train()
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = ar2(models, tmp_path / "after", tiny_collection, **best)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step == trainer.state.best_global_step
    assert not moved(resumed, snapshot(trainer))
    best_step = trainer.state.best_global_step
    assert best_step < trainer.state.global_step, "else the last weights are the best ones"
    (tmp_path / "after" / f"checkpoint-{best_step}").rename(tmp_path / "away")
    with pytest.raises(
        ValueError, match=rf"after/checkpoint-{best_step}: there is no such folder, and it is the"
    ):
        ar2(models, tmp_path / "after", tiny_collection, **best).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("metric", ["retriever_mrr", "eval_pipeline_ndcg@7", None])
def test_a_metric_that_no_evaluation_gives_is_an_error_before_training(
    models, tmp_path, tiny_collection, metric
):
    settings = {"load_best_model_at_end": True, "metric_for_best_model": metric}
    with pytest.raises(ValueError, match=rf"metric_for_best_model='{metric or 'loss'}': .*retriever_mrr@10"):
        ar2(models, tmp_path, tiny_collection, **settings)
    settings |= {"metric_for_best_model": "eval_of_my_own"}
    args = AR2Config(output_dir=str(tmp_path), **settings_of(AR2Config) | settings)
    retriever, ranker = models / "tiny-retriever", models / "tiny-ranker"
    AR2Trainer(retriever, ranker, args, tiny_collection, compute_metrics=lambda found: {"of_my_own": 1.0})


def test_activation_checkpointing_and_bf16_run(models, tmp_path, tiny_collection):
    plain = ar2(models, tmp_path / "a", tiny_collection, dropout=False, num_rounds=1)
    # Its name before transformers 5.23 was another.
    new_name = "activation_checkpointing" in AR2Config.__dataclass_fields__
    saving_memory = {"activation_checkpointing" if new_name else "gradient_checkpointing": True}
    saving = ar2(models, tmp_path / "b", tiny_collection, dropout=False, num_rounds=1, **saving_memory)
    half = ar2(models, tmp_path / "c", tiny_collection, dropout=False, num_rounds=1, bf16=True)
    for trainer in (plain, saving, half):
        trainer.train()
    expected = losses(plain.state.log_history)
    np.testing.assert_allclose(losses(saving.state.log_history), expected, rtol=1e-5)
    np.testing.assert_allclose(losses(half.state.log_history), expected, atol=0.03)


def test_what_cannot_work_raises_an_error_with_the_reason(models, tmp_path, tiny_collection, monkeypatch):
    with pytest.raises(ValueError, match="nothing to train"):
        AR2Config(output_dir=str(tmp_path), ranker_steps=0, retriever_steps=0)
    with pytest.raises(ValueError, match="λ is between 0 and 1"):
        AR2Config(output_dir=str(tmp_path), adversarial_weight=1.5)
    with pytest.raises(ValueError, match="expected one of uniform, top, simans"):
        AR2Config(output_dir=str(tmp_path), sampler="hardest")
    with pytest.raises(ValueError, match="persistent_workers"):
        AR2Config(output_dir=str(tmp_path), dataloader_num_workers=1, dataloader_persistent_workers=True)
    with pytest.raises(ValueError, match="linear, cosine"):
        AR2Config(output_dir=str(tmp_path), lr_scheduler_type="polynomial")
    with pytest.raises(ValueError, match="has the splits dev, test, train|has the splits train, dev, test"):
        ar2(models, tmp_path, tiny_collection, eval_split="validation")
    empty = dataclasses.replace(
        tiny_collection, qrels={**tiny_collection.qrels, "dev": tiny_collection.qrels["dev"].select([])}
    )
    with pytest.raises(ValueError, match="eval_split='dev': this split of .* has no query with a relevant"):
        ar2(models, tmp_path, empty)
    trainer = ar2(models, tmp_path, tiny_collection)
    for attribute, name in (("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")):
        with monkeypatch.context() as patch, pytest.raises(NotImplementedError, match=name):
            patch.setattr(trainer, attribute, True)
            check_launch(trainer)
    trainer.args._n_gpu = 2
    with pytest.raises(NotImplementedError, match="DataParallel"):
        check_launch(trainer)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (RetrieverConfig, {"eval_metrics": ["mrr10"]}, "unknown metric 'mrr10'"),
        (RetrieverConfig, {"eval_metrics": "mrr@10"}, "eval_metrics: found 'mrr@10', expected a list"),
        (RetrieverConfig, {"eval_depth": 20}, "recall@100 needs 100 passages per query, but eval_depth=20"),
        (RetrieverConfig, {"auto_find_batch_size": True}, "change the batch in the middle of a run"),
        (
            RetrieverConfig,
            {"lr_scheduler_kwargs": {"num_cycles": 2}},
            "no effect: .* warmup_steps and decay_",
        ),
        (AR2Config, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 would have no effect"),
        (RetrieverConfig, {"simans_a": -1.0}, "simans_a: found -1.0, expected a number of at least 0"),
        (
            RetrieverConfig,
            {"absolute_margin": -0.1},
            "absolute_margin: found -0.1, expected a number of at least 0",
        ),
        (RetrieverConfig, {"max_score": float("nan")}, "max_score: found nan, expected a number"),
        (RetrieverConfig, {"range_min": -1}, "range_min: found -1, expected a whole number of at least 0"),
        (RankerConfig, {"num_negatives": 0}, "at least one negative to rank"),
        (
            RankerConfig,
            {"easy_share": 2},
            "easy_share: found 2, expected a number of at least 0 and of at most 1",
        ),
        (
            AR2Config,
            {"contrastive_weight": -1.0},
            "contrastive_weight: found -1.0, expected a number of at least 0",
        ),
        (AR2Config, {"num_train_epochs": 7}, "num_train_epochs=7 contradicts num_rounds=10"),
    ],
)
def test_settings_that_fail_later_raise_an_error_at_once(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(output_dir="unused", **settings)


def test_a_cutoff_beyond_the_depth_is_no_matter_where_nothing_is_evaluated():
    assert RetrieverConfig(
        output_dir="unused", eval_depth=20, eval_strategy="no", eval_on_start=False
    ).eval_metrics == ["mrr@10", "ndcg@10", "recall@100"]


def test_default_settings_measure_a_corpus_of_fewer_passages_than_the_cutoff(
    models, tmp_path, tiny_collection
):
    args = RetrieverConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True
    )
    trainer = RetrieverTrainer(models / "tiny-retriever", args=args, collection=tiny_collection)
    assert trainer.evaluate()["eval_retriever_recall@100"] == 1  # all 60 passages are found


def test_a_data_set_to_evaluate_on_raises_an_error(models, tmp_path, tiny_collection):
    trainer = ar2(models, tmp_path, tiny_collection)
    with pytest.raises(ValueError, match="evaluates retrieval on the qrels split named by `eval_split`"):
        trainer.evaluate(tiny_collection.queries)


def test_training_stops_early_by_a_retrieval_metric(models, tmp_path, tiny_collection):
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    still = {
        "num_rounds": 6,
        "load_best_model_at_end": True,
        "metric_for_best_model": "pipeline_mrr@10",
        "greater_is_better": True,
    }
    trainer = ar2(models, tmp_path, tiny_collection, callbacks=[stop], **still)
    values = iter([0.1, 0.2, 0.5, 0.4, 0.3, 0.6, 0.7])  # at the start, then after each round
    trainer.evaluation.metrics = lambda: {"pipeline_mrr@10": next(values)}
    trainer.train()
    assert trainer.state.epoch == 4  # two rounds after the best one
    assert trainer.state.best_metric == 0.5 and trainer.state.best_global_step == 2 * trainer.steps_per_round


def test_a_checkpoint_is_continued_by_its_own_run_alone(models, tmp_path, tiny_collection, caplog):
    short = {"num_rounds": 1, "eval_strategy": "no", "eval_on_start": False, "save_strategy": "steps"}
    ar2(models, tmp_path, tiny_collection, save_steps=3, **short).train()
    cases = {
        r"num_negatives \(3 there, 4 here\)": {"num_negatives": 4},
        r"seed \(42 there, 7 here\)": {"seed": 7},
        r"global_batch \(4 there, 8 here\)": {"per_device_train_batch_size": 8},
        r"lr_scheduler_type \(linear there, cosine here\)": {"lr_scheduler_type": "cosine"},
        r"adam_beta2 \(0.999 there, 0.9 here\)": {"adam_beta2": 0.9},
        r"retriever_steps \(4 there, 5 here\), ranker_steps": {"ranker_steps": 2, "retriever_steps": 5},
    }
    for message, settings in cases.items():
        with pytest.raises(ValueError, match=f"checkpoint-7: this checkpoint's run differs in {message}"):
            ar2(models, tmp_path, tiny_collection, **{**short, **settings}).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="differs in collection"):
        ar2(models, tmp_path, with_passages(tiny_collection, 61), **short).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no such checkpoint"):
        ar2(models, tmp_path, tiny_collection, **short).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-5")
        )

    # How it is measured and fits into memory may change, and with a warning how long it is.
    free = {**short, "num_rounds": 2, "eval_depth": 30, "mini_batch_size": 4, "save_strategy": "no"}
    longer = ar2(models, tmp_path, tiny_collection, **free)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 14
    assert "of a run of 7 steps, and this one has 14" in caplog.text

    checkpoint = tmp_path / "checkpoint-7"
    for name in ("optimizer.pt", "checksums.json"):  # as save_only_model=True leaves it
        (checkpoint / name).unlink()
    write_checksums(checkpoint)
    with pytest.raises(ValueError, match=r"no optimizer.pt \(save_only_model=True writes none\)"):
        ar2(models, tmp_path, tiny_collection, **short).train(resume_from_checkpoint=True)


def test_resuming_without_a_complete_checkpoint_says_so(models, tmp_path, tiny_collection):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        ar2(models, tmp_path, tiny_collection).train(resume_from_checkpoint=True)
