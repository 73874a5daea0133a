"""LTRe: what is searched, what moves and what stays, exact resuming, two processes = one, JPQ, what is saved."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from conftest import make_tiny_retriever, with_passages
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_ar2 import losses, settings_of, snapshot, without_dropout
from transformers import BertTokenizer

from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.index import CorpusIndex, frozen
from hf_ar2.index.codebook import Codebook
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.index.search import TorchSearcher
from hf_ar2.models.loading import load_retriever
from hf_ar2.trainers import LTReConfig, LTReTrainer
from hf_ar2.trainers.frozen_retrieval import with_missed

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tiny_ar2.py")
LTRE = {"num_negatives": 0, "list_depth": 10, "max_steps": 6, "steps_per_round": 3}
JPQ = {"index_factory": "OPQ8_32,PQ8", "train_centroids": True, "centroid_learning_rate": 1e-2}


@pytest.fixture
def collection(tiny_collection):
    """As `tiny_collection`, with enough passages for 256 centroids."""
    return with_passages(tiny_collection, 300)


def ltre(models, output, collection, dropout=True, retriever=None, compute_metrics=None, **settings):
    retriever = retriever or load_retriever(models / "tiny-retriever", device="cpu")
    if not dropout:
        without_dropout(retriever)
    args = LTReConfig(output_dir=str(output), **{**settings_of(LTReConfig), **LTRE, **settings})
    return LTReTrainer(retriever, args=args, collection=collection, compute_metrics=compute_metrics)


# ---- What moves and what stays ------------------------------------------------------------------------------------


def test_every_query_parameter_moves_and_no_passage_parameter_or_vector(models, tmp_path, tiny_collection):
    trainer = ltre(models, tmp_path, tiny_collection)
    before = snapshot(trainer)
    vectors = trainer.index.vectors(np.arange(60)).clone()
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".sub_modules.query." in name and ".pooler." not in name}
    assert any(".sub_modules.document." in name for name in before)
    assert torch.equal(trainer.index.vectors(np.arange(60)), vectors)
    assert trainer.retrieval.refresh() is trainer.index


def test_it_learns_to_retrieve(models, tmp_path, tiny_collection):
    trainer = ltre(models, tmp_path, tiny_collection, max_steps=90, steps_per_round=45)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "train_mrr@10" in entry]
    assert np.mean([entry["train_mrr@10"] for entry in logs[:6]]) < 0.7  # a pass over the 24 queries
    assert np.mean([entry["train_mrr@10"] for entry in logs[-6:]]) > 0.9
    assert np.mean([entry["missed_positives"] for entry in logs[-6:]]) < 0.1
    assert all(0 < entry["search_share"] < 1 for entry in logs)


def test_the_step_is_the_loss_of_the_list_that_is_retrieved_now(models, tmp_path, tiny_collection):
    """By hand: encode, order all passages, append the missed positive, weigh the pairs."""
    trainer = ltre(models, tmp_path, tiny_collection, list_depth=5, dropout=False, filter_duplicates=False)
    batch = trainer.collator(list(range(4)))
    outputs = trainer.model(queries=batch["queries"])
    scores = trainer.list_scores(outputs, batch)
    loss, _ = trainer.phase_loss("retriever", scores)
    logs = trainer.diagnostics("retriever", scores)
    queries, passages = outputs["query_embeddings"], trainer.index.vectors(np.arange(60))
    lists, reciprocal, missed = [], [], 0
    for query, positive in zip(queries, batch["known_positives"][:, 0].tolist(), strict=True):
        scores = passages @ query
        ranked = scores.topk(5).indices.tolist()
        reciprocal.append(1 / (1 + ranked.index(positive)) if positive in ranked else 0.0)
        if positive not in ranked:
            ranked.append(positive)
            missed += 1
        value = [1 / (i + 1) if i < 5 else 0.0 for i in range(6)]
        place = ranked.index(positive)
        pairs = [
            abs(value[place] - value[i]) * torch.nn.functional.softplus((scores[n] - scores[positive]) / 0.05)
            for i, n in enumerate(ranked)
            if n != positive
        ]
        lists.append(sum(pairs) / len(pairs))
    torch.testing.assert_close(loss, sum(lists) / 4)
    assert logs["train_mrr@10"].item() == pytest.approx(np.mean(reciprocal))
    assert logs["missed_positives"].item() == pytest.approx(missed / 4)


def test_missed_positives_are_appended_all_or_where_none_was_found():
    found = np.array([[4, 7, -1], [3, 2, 5]])
    known = np.array([[7, 9], [8, -1]])
    rows, relevant = with_missed(found, known)
    assert rows.tolist() == [[4, 7, -1, 9, -1], [3, 2, 5, 8, -1]]
    assert relevant.tolist() == [[False, True, False, True, False], [False, False, False, True, False]]
    rows, relevant = with_missed(found, known, only_if_none=True)
    assert rows.tolist() == [[4, 7, -1, -1, -1], [3, 2, 5, 8, -1]]
    assert relevant.sum() == 2


def test_rows_of_minus_one_change_nothing(models, tmp_path, tiny_collection):
    """An inverted file that finds two passages of ten gives the loss of those two, and of the positive they lack."""
    trainer = ltre(
        models, tmp_path, tiny_collection, dropout=False, cut=2
    )  # an appended positive has no value
    batch = trainer.collator(list(range(4)))
    outputs = trainer.model(queries=batch["queries"])
    search = trainer.index.search

    def few(queries, k):
        scores, rows = search(queries, k)
        scores[:, 2:], rows[:, 2:] = -np.inf, -1
        return scores, rows

    trainer.index.search = few
    loss, _ = trainer.phase_loss("retriever", trainer.list_scores(outputs, batch))
    trainer.index.search = lambda queries, k: search(queries, 2)
    expected, _ = trainer.phase_loss("retriever", trainer.list_scores(outputs, batch))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6) and loss > 0
    (gradient,) = torch.autograd.grad(loss, outputs["query_embeddings"])
    assert torch.isfinite(gradient).all()


def test_passages_with_a_positives_text_are_no_negatives(models, tmp_path, tiny_collection):
    import dataclasses

    from datasets import Dataset

    rows = list(tiny_collection.corpus)
    copies = [{**row, "id": row["id"] + "-again"} for row in rows]
    doubled = dataclasses.replace(tiny_collection, corpus=Dataset.from_list(rows + copies))
    trainer = ltre(models, tmp_path, doubled)
    known = np.array([[3], [5]])
    listed = np.array([[63, 3, 8], [4, 65, 5]])
    relevant = listed == known
    assert trainer.retrieval.duplicates(listed, known, relevant).tolist() == [
        [True, False, False],
        [False, True, False],
    ]


# ---- Resuming and processes -----------------------------------------------------------------------------------------


def in_processes(models, output, *options, number=1, settings=None, code=0):
    given = json.dumps({**LTRE, **(settings or {})})
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    launch += ["--num_processes", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if number == 2:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [
        *launch,
        str(SCRIPT),
        str(models),
        str(output),
        "--trainer",
        "ltre",
        "--settings",
        given,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    path = output / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


@pytest.mark.parametrize(
    "settings", [{}, {"index_factory": "IVF4,Flat", "vectors": "index"}], ids=["flat", "ivf"]
)
def test_a_killed_run_ends_as_the_uninterrupted_one(models, tmp_path, settings):
    whole = in_processes(models, tmp_path / "whole", settings=settings)
    command = [sys.executable, str(SCRIPT), str(models), str(tmp_path / "killed"), "--trainer", "ltre"]
    command += ["--settings", json.dumps({**LTRE, **settings})]
    killed = subprocess.run([*command, "--kill_after", "5"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert resumed["weights"] == whole["weights"]
    assert losses(resumed["log"]) == losses(whole["log"])


def test_two_processes_are_one(models, tmp_path):
    """Equal queries in all, without dropout, whose random numbers differ by process."""
    one = in_processes(models, tmp_path / "one", "--no_dropout", settings={"per_device_train_batch_size": 8})
    two = in_processes(
        models, tmp_path / "two", "--no_dropout", number=2, settings={"per_device_train_batch_size": 4}
    )
    assert two["world_size"] == 2
    np.testing.assert_allclose(losses(one["log"]), losses(two["log"]), rtol=1e-4)
    key = "train_mrr@10"
    assert [e[key] for e in one["log"] if key in e] == pytest.approx([e[key] for e in two["log"] if key in e])


def test_a_checkpoint_rejects_another_index(models, tmp_path, tiny_collection):
    ltre(models, tmp_path, tiny_collection).train()
    other = ltre(models, tmp_path, tiny_collection, index_factory="HNSW8")
    with pytest.raises(
        ValueError, match=r"trained against another index \(60 passages.*resume with the index"
    ):
        other.train(resume_from_checkpoint=True)


# ---- Indexes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "SQ8", "PQ8", "OPQ8_32,PQ8", "IVF4,PQ8"])
def test_any_index_trains_on_its_own_vectors(models, tmp_path, collection, factory):
    trainer = ltre(models, tmp_path, collection, index_factory=factory, vectors="index", max_steps=2)
    trainer.train()
    queries = torch.nn.functional.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    scores, rows = trainer.index.search(queries, 4)
    real = torch.from_numpy(rows >= 0)
    again = torch.einsum("bd,bld->bl", queries, trainer.index.vectors(rows))
    torch.testing.assert_close(again[real], torch.from_numpy(scores)[real], rtol=1e-4, atol=1e-4)


def test_a_faiss_file_with_ids_in_another_order_serves_as_well(models, tmp_path, tiny_collection):
    built = ltre(models, tmp_path / "built", tiny_collection, dropout=False)
    order = np.random.default_rng(0).permutation(60)
    index = faiss.IndexFlatIP(32)
    index.add(built.index.vectors(order).numpy())
    faiss.write_index(index, str(tmp_path / "theirs.faiss"))
    ids = [tiny_collection.corpus["id"][row] for row in order]
    (tmp_path / "theirs.txt").write_text("\n".join(ids))
    given = {"index": str(tmp_path / "theirs.faiss"), "index_ids": str(tmp_path / "theirs.txt")}
    theirs = ltre(models, tmp_path / "theirs", tiny_collection, dropout=False, vectors="index", **given)
    queries = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(theirs.index.search(queries, 5)[1], built.index.search(queries, 5)[1])
    built.train()
    theirs.train()
    np.testing.assert_allclose(losses(theirs.state.log_history), losses(built.state.log_history), rtol=1e-4)
    theirs.save_index(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "ids.json").read_text()) == ids


def test_a_folder_that_hf_ar2_index_wrote_is_opened_by_what_its_meta_json_names(tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd"]
    builder = InputBuilder(BertTokenizer(vocab={word: i for i, word in enumerate(words)}), 8)
    built = CorpusIndex.build(
        lambda inputs: torch.from_numpy(embeddings)[inputs["input_ids"][:, 1] - 5],
        builder,
        TokenStore(np.arange(5, 9, dtype=np.int32), np.arange(5)),
        tmp_path,
        fingerprint="four",
        dim=2,
        show_progress=False,
    )
    (tmp_path / "ids.json").write_text('["d", "c", "b", "a"]')
    index = FrozenIndex.from_files(tmp_path, ["a", "b", "c", "d"])
    assert built.meta["files"]["index"] != "index.faiss"
    for content in (b"d\nc\nb\na", b"\xef\xbb\xbfd\r\nc\r\nb\r\na\r\n\r\n"):  # as other systems write lines
        (tmp_path / "ids.txt").write_bytes(content)
        again = FrozenIndex.from_files(tmp_path, ["a", "b", "c", "d"], tmp_path / "ids.txt")
        assert np.array_equal(again.corpus_rows, index.corpus_rows)
    assert np.array_equal(index.search(embeddings, 4)[1], 3 - built.search(embeddings, 4)[1])


def test_a_gpu_that_faiss_cannot_use_searches_flat_files_in_torch(tmp_path, monkeypatch):
    """The choice of the searcher alone: the device is named, no tensor is put on it and no GPU searches here."""
    rng = np.random.default_rng(0)
    passages, queries = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(2, 4))
    ids = [f"p{number}" for number in range(9)]
    (tmp_path / "ids.json").write_text(json.dumps(ids[::-1]))
    for factory in ("Flat", "HNSW4"):
        index = faiss.index_factory(4, factory, faiss.METRIC_INNER_PRODUCT)
        index.add(passages[::-1].copy())
        faiss.write_index(index, str(tmp_path / f"{factory}.faiss"))
    copied = []

    def on_the_processor(embeddings, device):
        copied.append((str(device), np.array(embeddings)))
        return TorchSearcher(embeddings, "cpu")

    monkeypatch.setattr(frozen, "TorchSearcher", on_the_processor)
    # as with a build for GPUs on a machine whose GPU it cannot use
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    found = FrozenIndex.from_files(tmp_path / "Flat.faiss", ids, device="cuda:0").search(queries, 3)
    assert [device for device, _ in copied] == ["cuda:0"] and np.array_equal(copied[0][1], passages[::-1])
    expected = FrozenIndex.from_files(tmp_path / "Flat.faiss", ids).search(queries, 3)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert np.array_equal(found[1], expected[1])
    FrozenIndex.from_files(tmp_path / "HNSW4.faiss", ids, device="cuda:0")
    FrozenIndex.from_files(tmp_path / "Flat.faiss", ids, device="cpu")
    assert len(copied) == 1


def test_an_index_of_another_model_raises_an_error(models, tmp_path, tiny_collection):
    make_tiny_retriever(tmp_path / "other-retriever", seed=5)
    other = LTReTrainer(
        tmp_path / "other-retriever",
        args=LTReConfig(output_dir=str(tmp_path / "other"), **{**settings_of(LTReConfig), **LTRE}),
        collection=tiny_collection,
    )
    other.save_index(tmp_path / "index")
    trainer = ltre(models, tmp_path / "mine", tiny_collection, index=str(tmp_path / "index"), vectors="index")
    with pytest.raises(
        ValueError, match="made by another model, from other texts, or its ids are in another"
    ):
        trainer.train()


def test_files_that_do_not_fit_are_named(tmp_path):
    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    with pytest.raises(FileNotFoundError, match="b.faiss: no such FAISS index"):
        FrozenIndex.from_files(tmp_path / "b.faiss", ["a"])
    with pytest.raises(FileNotFoundError, match="ids.json: no such file; expected the ids"):
        FrozenIndex.from_files(tmp_path / "a.faiss", ["a"])
    ids = tmp_path / "ids.json"
    for content, message in (
        ('["a", "b"]', "2 ids, but .*a.faiss holds 4 passages"),
        ('["a", "b", "c", "x"]', "the id 'x' is not in the corpus"),
        ('["a", "b", "c", "c"]', r"4 ids \(3 of them different\); expected each of the corpus's 4 ids once"),
        ("{}", "expected a JSON list of passage ids"),
        ("[", "not valid JSON"),
    ):
        ids.write_text(content)
        with pytest.raises(ValueError, match=message):
            FrozenIndex.from_files(tmp_path / "a.faiss", ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="L2 distance"):
        FrozenIndex(faiss.IndexFlatL2(4), "x")
    with pytest.raises(ValueError, match="numbers its passages itself"):
        FrozenIndex(faiss.IndexIDMap(faiss.IndexFlatIP(4)), "x")
    with pytest.raises(
        ValueError, match="vectors='exact': a IndexScalarQuantizer keeps only compressed vectors"
    ):
        FrozenIndex(faiss.index_factory(4, "SQ8", faiss.METRIC_INNER_PRODUCT), "x")


# ---- JPQ ------------------------------------------------------------------------------------------------------------


def test_the_codebooks_scores_are_those_of_faiss_and_differentiable():
    rng = np.random.default_rng(0)
    passages = rng.standard_normal((400, 16)).astype(np.float32)
    queries = torch.from_numpy(rng.standard_normal((3, 16)).astype(np.float32))
    for factory in ("PQ4np", "OPQ4,PQ4np"):  # np: no polysemous codes, which take seconds
        index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(passages)
        index.add(passages)
        codebook = Codebook(index)
        scores, rows = index.search(queries.numpy(), 7)
        found = codebook(queries, torch.from_numpy(rows))
        torch.testing.assert_close(found, torch.from_numpy(scores), rtol=1e-4, atol=1e-4)
        found.sum().backward()
        used = torch.zeros(codebook.centroids.shape[:2], dtype=torch.bool)
        for row in rows.reshape(-1):
            used[torch.arange(4), codebook.codes[row].long()] = True
        assert torch.equal(codebook.centroids.grad.abs().sum(-1) > 0, used)
        with torch.no_grad():
            codebook.centroids.add_(0.1)
        codebook.write_back()
        scores, rows = index.search(queries.numpy(), 7)
        found = codebook(queries, torch.from_numpy(rows))
        torch.testing.assert_close(found, torch.from_numpy(scores), rtol=1e-4, atol=1e-4)
        assert codebook.codes.dtype == torch.uint8


def test_jpq_moves_queries_and_centroids_and_keeps_codes_and_rotation(models, tmp_path, collection):
    trainer = ltre(models, tmp_path, collection, **JPQ)
    trainer.prepare()
    codebook = trainer.codebook
    centroids, codes = codebook.centroids.detach().clone(), codebook.codes.clone()
    rotation, documents = codebook.rotation.clone(), trainer.retrieval.retriever[0].sub_modules["document"]
    before = [p.clone() for p in documents.parameters()]
    trainer.train()
    assert not torch.equal(codebook.centroids, centroids)
    inner = faiss.downcast_index(trainer.index.faiss_index.index)
    assert np.array_equal(faiss.vector_to_array(inner.codes).reshape(codes.shape), codes.numpy())
    assert torch.equal(codebook.rotation, rotation) and torch.equal(codebook.codes, codes)
    assert all(torch.equal(a, b) for a, b in zip(before, documents.parameters(), strict=True))
    # What is searched has the centroids of the last step, and what is saved loads with plain FAISS.
    in_index = faiss.vector_to_array(inner.pq.centroids)
    np.testing.assert_array_equal(in_index, codebook.centroids.detach().numpy().reshape(-1))
    trainer.save_index(tmp_path / "index")
    loaded = faiss.read_index(str(tmp_path / "index" / "index.faiss"))
    queries = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    np.testing.assert_array_equal(loaded.search(queries, 5)[1], trainer.index.search(queries, 5)[1])
    rate = {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rate["retriever/centroids/plain"] == 1e-2


def test_jpq_keeps_the_centroids_of_the_best_weights(models, tmp_path, collection):
    values = iter([1.0, 3.0, 2.0])  # of the start, of step 1 and of the last step
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "save_strategy": "best",
        "metric_for_best_model": "eval_mine",
        "load_best_model_at_end": True,
        "max_steps": 2,
    }
    trainer = ltre(
        models, tmp_path, collection, compute_metrics=lambda _: {"mine": next(values)}, **JPQ, **best
    )
    trainer.train()
    assert trainer.state.best_global_step == 1
    saved = load_file(tmp_path / "checkpoint-1" / "codebook.safetensors")["centroids"]
    assert torch.equal(trainer.codebook.centroids, saved)
    in_index = faiss.vector_to_array(faiss.downcast_index(trainer.index.faiss_index.index).pq.centroids)
    np.testing.assert_array_equal(in_index, saved.numpy().reshape(-1))


def test_jpq_resumes_and_runs_in_two_processes(models, tmp_path):
    settings = {
        **JPQ,
        "index_factory": "PQ8",
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "steps_per_round": 2,
    }
    options = ["--no_dropout", "--passages", "300"]
    whole = in_processes(models, tmp_path / "one", *options, settings=settings)
    command = [
        sys.executable,
        str(SCRIPT),
        str(models),
        str(tmp_path / "killed"),
        "--trainer",
        "ltre",
        *options,
    ]
    command += ["--settings", json.dumps({**LTRE, **settings})]
    assert subprocess.run([*command, "--kill_after", "3"], capture_output=True).returncode == -signal.SIGKILL
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert resumed["weights"] == whole["weights"] and resumed["centroids"] == whole["centroids"]
    settings["per_device_train_batch_size"] = 4
    two = in_processes(models, tmp_path / "two", *options, number=2, settings=settings)
    np.testing.assert_allclose(losses(whole["log"]), losses(two["log"]), rtol=1e-4)
    np.testing.assert_allclose(two["centroids"], whole["centroids"], atol=1e-4)


def test_only_a_product_quantiser_has_centroids_to_train(models, tmp_path, collection):
    with pytest.raises(ValueError, match=r"index_factory='Flat'; use an index like 'PQ48' or 'OPQ48,PQ48'"):
        ltre(models, tmp_path, collection, train_centroids=True)
    with pytest.raises(ValueError, match="found IndexIVFPQ; use an index like 'PQ48'"):
        ltre(models, tmp_path, collection, index_factory="IVF1,PQ8", train_centroids=True).train()


# ---- What is saved --------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_as_two_towers_and_as_a_query_encoder(models, tmp_path, tiny_collection):
    trainer = ltre(models, tmp_path, tiny_collection)
    trainer.train()
    trainer.save_model()
    both = SentenceTransformer(str(tmp_path / "retriever"), device="cpu")
    alone = SentenceTransformer(str(tmp_path / "query_encoder"), device="cpu")
    original = SentenceTransformer(str(models / "tiny-retriever"), device="cpu")
    texts = ["where does the otter hide the drum ?", "the calm lynx"]
    np.testing.assert_allclose(both.encode_document(texts), original.encode(texts), atol=1e-6)
    np.testing.assert_allclose(both.encode_query(texts), alone.encode(texts), atol=1e-6)
    assert np.abs(both.encode_query(texts) - original.encode(texts)).max() > 1e-3
    card = (tmp_path / "query_encoder" / "README.md").read_text()
    assert "It only works with the passages of one encoder" in card and trainer.index.fingerprint in card


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_negatives": 3}, "LTRe samples none; list_depth"),
        ({"cut": 0}, "cut: found 0, expected a whole number of at least 1"),
        ({"list_depth": 0}, "list_depth: found 0, expected a whole number of at least 1"),
        ({"missed": "some"}, "missed='some': expected one of all, if_none"),
        ({"train_lists": ["x"]}, "takes its lists from the search"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        LTReConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_gradient_caching_takes_the_plain_step(models, tmp_path, tiny_collection):
    logs = []
    for size in (None, 2):
        trainer = ltre(models, tmp_path / str(size), tiny_collection, mini_batch_size=size, dropout=False)
        trainer.train()
        logs.append(losses(trainer.state.log_history))
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-4)
