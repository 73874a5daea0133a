"""Augmentation: who becomes positive and negative, that nothing known to be relevant is a negative, and the shell."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import make_tiny_retriever
from datasets import Dataset, concatenate_datasets
from sentence_transformers import CrossEncoder, SentenceTransformer
from two_processes import in_two_processes

from hf_ar2 import load_collection, load_ranker, load_retriever
from hf_ar2.augmentation import AugmentConfig, augment, read_false_negatives
from hf_ar2.augmentation import scored as scoring
from hf_ar2.augmentation.calibration import Calibration, fit_calibration
from hf_ar2.augmentation.confidence import log_shares
from hf_ar2.collections import Collection
from hf_ar2.command_line import main as cli
from hf_ar2.index.encoders import Encoders
from hf_ar2.training_lists.pool import passage_text_keys
from hf_ar2.training_lists.stored import TrainingLists, load_training_lists

Models = tuple[SentenceTransformer, CrossEncoder]
MARGIN = {"thresholds": "margin", "irrelevant": 0.2, "relevant": 0.2, "bf16": False, "depth": 12}


@pytest.fixture(scope="module")
def models(tiny_retriever_path: Path, tiny_ranker_path: Path) -> Models:
    """The tiny ranker with larger weights: its scores, all alike at first, then spread over some logits."""
    ranker = load_ranker(tiny_ranker_path, device="cpu")
    for module in ranker.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 8 if module is not ranker.model.classifier else 100
    return load_retriever(tiny_retriever_path, device="cpu"), ranker


@pytest.fixture(scope="module")
def collection(tiny_collection: Collection) -> Collection:
    """The tiny collection with a copy of a training query's positive, a second positive, and grades of 0."""
    corpus, train = tiny_collection.corpus, tiny_collection.qrels["train"]
    positive = corpus[corpus["id"].index(train[0]["passage_id"])]
    copy = Dataset.from_dict(
        {"id": ["copy"], "title": [positive["title"]], "text": [positive["text"].upper() + " "]}
    )
    second = [(train[1], train[5], 1)]
    refused = [(train[2], train[other], 0) for other in range(6, 20)]
    more = Dataset.from_list(
        [
            {"query_id": of["query_id"], "passage_id": passage["passage_id"], "relevance": grade}
            for of, passage, grade in second + refused
        ],
        features=train.features,
    )
    qrels = tiny_collection.qrels | {"train": concatenate_datasets([train, more])}
    return Collection("tiny", concatenate_datasets([corpus, copy]), tiny_collection.queries, qrels)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, collection: Collection, models: Models) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    make_tiny_retriever(folder / "retriever")
    models[1].save_pretrained(str(folder / "ranker"))
    collection.save(folder.parent / "data")
    recipe = {
        "name": "tiny",
        "collection": str(folder.parent / "data"),
        "args": {"max_pair_length": 16, "bf16": False},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> Path:
    """Three new queries, one of them twice, and the text of a test query under another id."""
    test = tiny_collection.queries[36]["text"]
    texts = [
        "where is the lynx ?",
        "where is the drum ?",
        "Where is  the lynx ?",
        f" {test}",
        "who guards it ?",
    ]
    path = tmp_path_factory.mktemp("unlabelled") / "queries.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for number, text in enumerate(texts):
            stream.write(json.dumps({"_id": f"u{number}", "text": text}) + "\n")
    return path


def true_scores(
    collection: Collection, ranker: CrossEncoder, queries: Dataset
) -> dict[tuple[str, str], float]:
    """The ranker's score of every pair, by sentence-transformers alone."""
    passages = collection.passage_texts()
    pairs = [(query, passage) for query in queries["text"] for passage in passages]
    scores = ranker.predict(pairs, show_progress_bar=False)
    known = list(collection.corpus["id"])
    ids = [(query, passage) for query in queries["id"] for passage in known]
    return dict(zip(ids, scores.tolist(), strict=True))


def retrieved(collection: Collection, retriever: SentenceTransformer, queries: Dataset, depth: int) -> dict:
    """The first passages of every query, by sentence-transformers alone."""
    similarity = retriever.encode(list(queries["text"])) @ retriever.encode(collection.passage_texts()).T
    order = np.argsort(-similarity, axis=1)[:, :depth]
    ids = np.array(collection.corpus["id"])
    return {query: ids[row].tolist() for query, row in zip(queries["id"], order, strict=True)}


def labels(collection: Collection, split: str = "train") -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in collection.qrels[split]:
        found.setdefault(row["query_id"], {})[row["passage_id"]] = row["relevance"]
    return found


def of_kind(lists: TrainingLists, kind: str) -> dict[str, dict[str, Any]]:
    rows = [row for row in lists.dataset if row["kind"] == kind]
    assert len({row["query_id"] for row in rows}) == len(rows), "one list of a kind per query"
    return {row["query_id"]: row for row in rows}


# --- what the lists hold


def test_lists_hold_what_a_plain_loop_finds(collection: Collection, models: Models, tmp_path: Path) -> None:
    lists = augment(collection, *models, tmp_path, AugmentConfig(**MARGIN))
    queries = collection.queries.select(range(24))
    scores = true_scores(collection, models[1], queries)
    first = retrieved(collection, models[0], queries, 12)
    keys = dict(zip(collection.corpus["id"], passage_text_keys(collection.passage_texts()), strict=True))
    undenoised, denoised = of_kind(lists, "undenoised"), of_kind(lists, "denoised")
    added = dropped = 0
    for query, graded in labels(collection).items():
        positives = [passage for passage, grade in graded.items() if grade > 0]
        copies = {keys[passage] for passage in positives}
        free = [p for p in first[query] if p not in positives and keys[p] not in copies]
        assert undenoised[query]["negative_ids"] == free
        assert sorted(undenoised[query]["positive_ids"]) == sorted(positives)
        score = {passage: scores[query, passage] for passage in collection.corpus["id"]}
        low, high = (pick(score[p] for p in positives) for pick in (min, max))
        negatives = [p for p in free if score[p] < low - 0.2 or graded.get(p) == 0]
        best = max((p for p in free if graded.get(p) != 0), key=score.__getitem__)
        more = [best] if score[best] > high + 0.2 else []
        negatives = [p for p in negatives if p not in more]
        if negatives:
            assert denoised[query]["negative_ids"] == negatives
            assert denoised[query]["positive_ids"][len(positives) :] == more
            np.testing.assert_allclose(
                denoised[query]["negative_scores"], [score[p] for p in negatives], atol=1e-4
            )
            np.testing.assert_allclose(
                denoised[query]["positive_scores"],
                [score[p] for p in denoised[query]["positive_ids"]],
                atol=1e-4,
            )
            added += len(more)
        else:
            assert query not in denoised
            dropped += 1
    counts = lists.manifest["lists"]["denoised"]
    assert added > 0 and counts["added_positives"] == added
    assert counts["dropped_lists"] == {"no relevant passage": 0, "no negative": dropped}
    assert lists.manifest["lists"]["undenoised"]["dropped_passages"]["duplicate of a positive"] >= 1
    refused = labels(collection)[collection.queries["id"][2]]
    least = min(scores[collection.queries["id"][2], p] for p, grade in refused.items() if grade)
    negatives = denoised[collection.queries["id"][2]]["negative_ids"]
    assert any(scores[collection.queries["id"][2], p] > least for p in negatives), (
        "a person's 0 outweighs the ranker"
    )


def test_counts_add_up_to_what_was_retrieved(
    collection: Collection, models: Models, unlabelled: Path, tmp_path: Path
) -> None:
    args = AugmentConfig(
        thresholds="quantile", irrelevant=0.3, relevant=0.9, depth=12, unlabelled=str(unlabelled), bf16=False
    )
    lists = augment(collection, *models, tmp_path, args)
    assert list(lists.manifest["lists"]) == ["undenoised", "denoised", "pseudo"]
    for kind, counts in lists.manifest["lists"].items():
        rows = of_kind(lists, kind).values()
        assert counts["lists"] == len(rows)
        assert counts["lists"] + sum(counts["dropped_lists"].values()) == (3 if kind == "pseudo" else 24)
        assert counts["negatives"] == sum(len(row["negative_ids"]) for row in rows)
        together = counts["negatives"] + counts["added_positives"] + sum(counts["dropped_passages"].values())
        assert counts["retrieved"] == together == 12 * (3 if kind == "pseudo" else 24)


def test_pseudo_lists_come_from_queries_nobody_judged(
    collection: Collection, models: Models, unlabelled: Path, tmp_path: Path
) -> None:
    args = AugmentConfig(
        kinds=["pseudo"], pointwise=True, irrelevant=0.45, relevant=0.55, depth=61, added_positives=2,
        unlabelled=str(unlabelled), bf16=False,
    )  # fmt: skip
    models[1].model.classifier.bias.data -= middle_score(collection, models[1], "where is the lynx ?")
    try:
        lists = augment(collection, *models, tmp_path, args)
        queries = Dataset.from_dict({"id": ["u0"], "text": ["where is the lynx ?"]})
        scores = true_scores(collection, models[1], queries)
    finally:
        models[1].model.classifier.bias.data.zero_()
    assert lists.manifest["unlabelled_queries"] == {
        "read": 5,
        "text of a judged query": 1,
        "text read before": 1,
    }
    found = of_kind(lists, "pseudo")
    assert "u0" in found and set(found) <= {"u0", "u1", "u4"}
    assert lists.queries is not None and set(lists.queries["id"]) == set(found)
    best = sorted(collection.corpus["id"], key=lambda passage: -scores["u0", passage])
    assert found["u0"]["positive_ids"] == best[:2]
    below = {passage for passage in collection.corpus["id"] if scores["u0", passage] < np.log(0.45 / 0.55)}
    assert set(found["u0"]["negative_ids"]) == below and 10 < len(below) < 50
    pool = lists.to_pool(collection.with_queries(lists.queries))
    assert pool.query_rows.min() == 40 and len(pool) == len(found)
    assert not (tmp_path / "false_negatives.jsonl").exists(), "without labels there are none"


def middle_score(collection: Collection, ranker: CrossEncoder, query: str) -> float:
    queries = Dataset.from_dict({"id": ["x"], "text": [query]})
    return float(np.median(list(true_scores(collection, ranker, queries).values())))


def test_the_copy_of_an_added_positive_is_no_negative(
    tiny_collection: Collection, models: Models, tmp_path: Path
) -> None:
    """With lines so near that noise could part two copies, only the text keeps them apart."""
    from hf_ar2.augmentation.labelled import LabelledCandidates
    from hf_ar2.augmentation.lists import build_lists
    from hf_ar2.augmentation.scored import ScoredCandidates

    scored = ScoredCandidates(
        query_rows=np.array([3]),
        rows=np.array([[10, 11, 12, 13]], np.int32),
        scores=np.array([[5.0, 1.0, 0.5, 4.0]], np.float32),
        positive_rows=np.array([[20]], np.int32),
        positive_scores=np.array([[2.0]], np.float32),
    )
    nothing = np.zeros((1, 4), bool)
    text_keys = np.arange(60)
    text_keys[11] = text_keys[10]
    irrelevant, relevant = scored.scores < 3, scored.scores > 3
    table, counts = build_lists(
        "denoised", tiny_collection, LabelledCandidates(scored, nothing, nothing, nothing), (irrelevant, relevant),
        text_keys, AugmentConfig(thresholds="margin", added_positives=1, seed=0),
    )  # fmt: skip
    ids = tiny_collection.corpus["id"]
    assert table[0]["positive_ids"] == [ids[20], ids[10]] and table[0]["negative_ids"] == [ids[12]]
    assert counts["dropped_passages"] == {
        "positive": 0,
        "duplicate of a positive": 1,
        "relevant, beyond added_positives": 1,
        "unsure": 0,
        "of a list that was dropped": 0,
    }


def test_stored_negatives_are_a_seeded_draw(collection: Collection, models: Models, tmp_path: Path) -> None:
    drawn = {}
    for seed in (1, 1, 2):
        args = AugmentConfig(kinds=["undenoised"], stored_negatives=3, seed=seed, depth=12, bf16=False)
        lists = augment(collection, *models, tmp_path / "lists", args)
        rows = [row["negative_ids"] for row in lists.dataset]
        assert {len(negatives) for negatives in rows} == {3}
        assert drawn.setdefault(seed, rows) == rows
    assert drawn[1] != drawn[2]
    whole = augment(
        collection, *models, tmp_path / "lists", AugmentConfig(kinds=["undenoised"], depth=12, bf16=False)
    )
    for row, negatives in zip(whole.dataset, drawn[1], strict=True):
        assert [p for p in row["negative_ids"] if p in negatives] == negatives, "in the retriever's order"
    assert whole.manifest["thresholds"] is None


def test_quantiles_are_of_shares_that_no_constant_changes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 8))
    scores[2, 5:] = -np.inf
    shifted = scores + rng.normal(size=(5, 1)) * 100
    np.testing.assert_allclose(log_shares(scores), log_shares(shifted), atol=1e-10)
    assert (log_shares(np.full((1, 3), -np.inf)) == -np.inf).all()
    np.testing.assert_allclose(np.exp(log_shares(scores)).sum(axis=1), 1)


# --- what was scored is kept


def test_an_interrupted_run_resumes_and_other_thresholds_rank_nothing(
    collection: Collection, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_BLOCK", 10)
    whole = augment(collection, *models, tmp_path / "whole", AugmentConfig(**MARGIN))
    rank, ranked = Encoders.rank, []

    def counted(self: Encoders, ranker: Any, inputs: Any, queries: np.ndarray, *rest: Any) -> np.ndarray:
        if len(ranked) == 2:
            raise KeyboardInterrupt
        ranked.append(len(queries))
        return rank(self, ranker, inputs, queries, *rest)

    monkeypatch.setattr(Encoders, "rank", counted)
    with pytest.raises(KeyboardInterrupt):
        augment(collection, *models, tmp_path / "killed", AugmentConfig(**MARGIN))
    assert not (tmp_path / "killed" / "manifest.json").exists()
    ranked.clear()
    again = augment(collection, *models, tmp_path / "killed", AugmentConfig(**MARGIN))
    assert ranked == [4], "the third block of 24 queries"
    assert again.dataset.to_dict() == whole.dataset.to_dict()
    assert again.manifest == whole.manifest

    other = augment(collection, *models, tmp_path / "killed", AugmentConfig(**MARGIN | {"irrelevant": 1.0}))
    assert ranked == [4] and len(other) < len(again)
    assert other.manifest["scores_fingerprint"] == again.manifest["scores_fingerprint"]
    with pytest.raises(KeyboardInterrupt):  # another depth has other candidates, so all is ranked again
        augment(collection, *models, tmp_path / "killed", AugmentConfig(**MARGIN | {"depth": 13}))


def test_another_ranker_gets_no_old_scores(collection: Collection, models: Models, tmp_path: Path) -> None:
    args = AugmentConfig(kinds=["undenoised"], depth=5, bf16=False)
    before = augment(collection, *models, tmp_path, args)
    bias = models[1].model.classifier.bias.data
    bias += 1
    try:
        after = augment(collection, *models, tmp_path, args)
    finally:
        bias -= 1
    one, two = (np.concatenate(lists.dataset["negative_scores"]) for lists in (before, after))
    np.testing.assert_allclose(two, one + 1, atol=1e-4)
    assert before.manifest["models"]["retriever"] == after.manifest["models"]["retriever"]
    assert before.manifest["models"]["ranker"] != after.manifest["models"]["ranker"]


def augmented_by_one_of_two(rank: int, folder: str) -> None:
    scoring._BLOCK = 10
    run = Path(folder) / "run"
    models = load_retriever(run / "retriever", device="cpu"), load_ranker(run / "ranker", device="cpu")
    lists = augment(load_collection(str(run / "data")), *models, f"{folder}/two", AugmentConfig(**MARGIN))
    assert len(lists) > 24


@pytest.mark.slow
def test_two_processes_write_the_lists_of_one(run: Path, models: Models, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name, path in (("data", run.parent), ("retriever", run), ("ranker", run)):
        (tmp_path / "run" / name).symlink_to(path / name)
    in_two_processes(augmented_by_one_of_two, tmp_path)
    one = augment(
        load_collection(str(run.parent / "data")), *models, tmp_path / "one", AugmentConfig(**MARGIN)
    )
    two = load_training_lists(tmp_path / "two")
    for name in ("query_id", "kind", "positive_ids", "negative_ids"):
        assert one.dataset[name][:] == two.dataset[name][:]
    for name in ("positive_scores", "negative_scores"):
        expected = np.concatenate(one.dataset[name])
        np.testing.assert_allclose(np.concatenate(two.dataset[name]), expected, atol=1e-4)


# --- thresholds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "need probabilities of relevance.* when a constant is added .*calibrate='dev'.*thresholds='margin'",
        ),
        ({"calibrate": "train"}, "expected a held-out split"),
        ({"calibrate": "dev", "pointwise": True}, "choose calibrate or pointwise"),
        ({"pointwise": True, "irrelevant": 0.95}, r"0 ≤ irrelevant < relevant ≤ 1"),
        ({"thresholds": "margin", "relevant": -1.0}, "expected logits, 0 or more"),
        (
            {"thresholds": "margin", "calibrate": "dev"},
            "calibrate and pointwise require thresholds='absolute'",
        ),
        ({"thresholds": "margin", "unlabelled": "x.jsonl"}, "unlabelled queries have none"),
        ({"thresholds": "sure"}, "expected one of absolute, quantile, margin"),
        ({"kinds": ["denoise"], "pointwise": True}, "expected some of undenoised, denoised, pseudo"),
        ({"kinds": ["pseudo"], "pointwise": True}, "give both or neither"),
        (
            {"pointwise": True, "unlabelled": "x", "added_positives": 0},
            "leaves pseudo lists without a positive",
        ),
        ({"kinds": ["undenoised"], "depth": 0}, "expected a whole number of at least 1"),
    ],
)
def test_inconsistent_settings_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**settings)


def test_calibration_is_the_maximum_of_the_likelihood_and_stays_finite() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(3, 2, size=3000)
    relevant = rng.random(3000) < 1 / (1 + np.exp(-(scores / 0.5 - 7)))
    fitted = fit_calibration(scores, relevant, fingerprint="made of this")
    assert fitted.temperature == pytest.approx(0.5, rel=0.1) and fitted.bias == pytest.approx(-7, rel=0.1)
    assert fitted.probabilities(scores).mean() == pytest.approx(relevant.mean(), abs=2e-3)
    assert fitted.report["log_loss"] < fitted.report["log_loss_before"]
    assert fitted.report["relevant_above"] > 0.9 > 0.1 > fitted.report["relevant_below"]
    for temperature, bias in [(1.02, 1.0), (0.98, 1.0), (1.0, 1.02), (1.0, 0.98)]:
        other = Calibration(fitted.temperature * temperature, fitted.bias * bias)
        probabilities = np.clip(other.probabilities(scores), 1e-12, 1 - 1e-12)
        loss = -np.mean(np.where(relevant, np.log(probabilities), np.log(1 - probabilities)))
        assert loss > fitted.report["log_loss"] - 1e-6
    apart = fit_calibration(np.array([-1.0, -0.5, 0.5, 1.0]), np.array([False, False, True, True]))
    assert 0 < apart.temperature < np.inf and 0 < apart.probabilities(np.array([1.0]))[0] < 1
    with pytest.raises(ValueError, match="do not rise with relevance"):
        fit_calibration(-scores, relevant)
    with pytest.raises(ValueError, match="0 of 3000 held-out pairs are relevant"):
        fit_calibration(scores, np.zeros(3000, bool))


def test_a_calibration_is_read_back_only_for_what_it_was_fitted_on(tmp_path: Path) -> None:
    written = Calibration(0.5, -7.0, "ranker and judgments", {"pairs": 3})
    written.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json", "ranker and judgments") == written
    with pytest.raises(ValueError, match="fitted on ranker and judgments, expected another"):
        Calibration.load(tmp_path / "calibration.json", "another")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not a calibration of the format"):
        Calibration.load(tmp_path / "other.json")


# --- the shell


def test_augment_from_a_shell_writes_lists_and_prints_the_audit(
    run: Path,
    collection: Collection,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = tmp_path / "lists"
    options = ["--thresholds", "margin", "--irrelevant", "0.01", "--relevant", "0.01", "--depth", "12"]
    assert cli.main(["augment", str(run), "--output", str(out), *options, "--audit", "2"]) == 0
    shown = capsys.readouterr().out
    lists = load_training_lists(out)
    settings = lists.manifest["settings"]
    assert settings["max_pair_length"] == 16, "as the run's recipe says"
    assert (settings["thresholds"], settings["depth"]) == ("margin", 12)
    assert lists.manifest["models"]["ranker"]["name"] == str(run / "ranker")
    assert lists.manifest["collection"]["corpus_fingerprint"] == collection.corpus_fingerprint

    suspects = read_false_negatives(out / "false_negatives.jsonl")
    assert [suspect.share for suspect in suspects] == sorted((s.share for s in suspects), reverse=True)
    assert all(suspect.score > suspect.positive_score for suspect in suspects)
    scored = {row["query_id"]: row for row in lists.dataset if row["kind"] == "undenoised"}
    for suspect in suspects:
        row = scored[suspect.query_id]
        together = np.exp(row["negative_scores"] - np.float64(suspect.score)).sum()
        assert 0 < suspect.share <= 1 / together + 1e-6, "positives that were retrieved take their part"
    judged = labels(collection)
    assert not any(suspect.passage_id in judged[suspect.query_id] for suspect in suspects)
    total = lists.manifest["false_negatives"]
    assert total == {
        "passages": len(suspects),
        "queries": len({suspect.query_id for suspect in suspects}),
        "of_queries": 24,
    }
    assert f"{total['passages']} unlabelled passages of {total['queries']} of 24 queries" in shown
    read = shown[shown.index("False negatives?") : shown.index("In /")].splitlines()
    first = suspects[0]
    count = sum(suspect.query_id == first.query_id for suspect in suspects)
    text = collection.queries["text"][collection.queries["id"].index(first.query_id)]
    assert f"{first.query_id} ({count} such passage{'s' if count > 1 else ''}): {text}" in shown
    assert f"{first.positive_score:.2f}, labelled, {first.positive_id}: " in shown
    assert f", {first.passage_id}: " in shown
    assert shown.count("such passage") == 2 and all(len(line) <= 100 for line in read)
    assert f"train_lists=['{out}']" in shown and "dropped: unsure" in shown


def test_augment_calibrates_where_it_is_told_to(
    run: Path, collection: Collection, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ranker that nobody trained prefers one side by chance; turned round, it prefers the other."""
    head = models[1].model.classifier.weight.data
    fitted = {}
    for side, sign in (("as it is", 1), ("turned round", -1)):
        head *= sign
        models[1].save_pretrained(str(tmp_path / "ranker"))
        head *= sign
        given = ["augment", str(run), "--output", str(tmp_path / side), "--ranker", str(tmp_path / "ranker")]
        given += ["--depth", "20", "--calibrate", "dev", "--relevant", "0.06", "--irrelevant", "0.05"]
        fitted[side] = cli.main(given)
        shown = capsys.readouterr()
        if fitted[side]:
            assert "scores do not rise with relevance" in shown.err
            continue
        assert "calibrated on 160 pairs" in shown.out
        lists = load_training_lists(tmp_path / side)
        calibration = Calibration.load(tmp_path / side / "calibration.json")
        assert lists.manifest["calibration"]["temperature"] == calibration.temperature
        assert calibration.report["pairs"] == 8 * 20 and 0 < calibration.report["relevant"] <= 8
        for query, row in of_kind(lists, "denoised").items():
            probabilities = calibration.probabilities(np.array(row["negative_scores"]))
            judged = [passage in labels(collection)[query] for passage in row["negative_ids"]]
            assert (probabilities[~np.array(judged)] < 0.05).all()
        shutil.rmtree(tmp_path / side / "work")  # the lists stand by themselves
        assert len(load_training_lists(tmp_path / side).to_pool(collection)) == len(lists) > 0
    assert sorted(fitted.values()) == [0, 1]


def test_augment_says_what_is_wrong(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output", str(tmp_path / "lists")]
    for arguments, message in [
        ([str(run), *out], "need probabilities of relevance"),
        ([str(run), *out, "--pointwise", "--split", "tran"], "has no qrels for split 'tran'"),
        ([str(run), *out, "--pointwise", "--unlabelled", "no.jsonl"], "no.jsonl: no such file"),
        ([str(run), *out, "--kinds", "pseudo"], "give both or neither"),
    ]:
        assert cli.main(["augment", *arguments]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["augment", *out, "--retriever", "x"])
    assert "Name a run folder, or --retriever, --ranker and --collection" in capsys.readouterr().err
    assert not (tmp_path / "lists" / "manifest.json").exists()
