"""The corpus index finds what brute force finds, and a folder holds a whole index or none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import BertTokenizer
from two_processes import in_two_processes

from hf_ar2.encoding.batches import encode_rows
from hf_ar2.encoding.input_builder import InputBuilder
from hf_ar2.encoding.processes import Processes
from hf_ar2.encoding.tokens import TokenStore
from hf_ar2.index import CorpusIndex, corpus_index, encoders, shards
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.faiss_build import fill_faiss_index, import_faiss
from hf_ar2.index.search import FaissSearcher, TorchSearcher, merge, query_matrix
from hf_ar2.index.shards import Shards

DIM = 16
BUILDER = InputBuilder(
    BertTokenizer(vocab={t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}), 8
)


def vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


class Lookup:
    """A retriever that knows the embedding of every passage: passage i is the single token i."""

    def __init__(self, embeddings: np.ndarray, fail_after: int | None = None) -> None:
        self.table = torch.from_numpy(embeddings)
        self.fail_after = fail_after
        self.calls = 0

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        return self.table[inputs["input_ids"][:, 1]]


def store_of(count: int) -> TokenStore:
    return TokenStore(np.arange(count, dtype=np.int32), np.arange(count + 1))


def build(embeddings, folder, encode=None, **options) -> CorpusIndex:
    options = {
        "fingerprint": "first",
        "dim": embeddings.shape[1],
        "budget": 60,
        "show_progress": False,
    } | options
    return CorpusIndex.build(
        encode or Lookup(embeddings), BUILDER, store_of(len(embeddings)), folder, **options
    )


def brute_force(queries, embeddings, k):
    scores = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


# Building and searching


def test_flat_index_equals_brute_force(tmp_path):
    embeddings, queries = vectors(500), vectors(40, seed=1)
    index = build(embeddings, tmp_path)
    assert np.array_equal(index.embeddings, embeddings) and isinstance(index.embeddings, np.memmap)
    assert (len(index), index.ntotal, index.dim, index.factory) == (500, 500, DIM, "Flat")
    scores, rows = index.search(queries, k=10)
    expected_scores, expected_rows = brute_force(queries, embeddings, 10)
    assert scores.dtype == np.float32 and rows.dtype == np.int64
    assert np.array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_half_precision_embeddings_are_stored_and_searched(tmp_path):
    embeddings, queries = vectors(300), vectors(20, seed=1)
    index = build(embeddings, tmp_path, dtype="float16")
    assert index.embeddings.dtype == np.float16
    assert np.array_equal(index.embeddings, embeddings.astype(np.float16))
    assert np.array_equal(
        index.search(queries, 5)[1], brute_force(queries, embeddings.astype(np.float16), 5)[1]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_queries_of_any_float_dtype(tmp_path, dtype):
    embeddings = vectors(100)
    index = build(embeddings, tmp_path)
    queries = torch.from_numpy(vectors(7, seed=1)).to(dtype).requires_grad_()
    expected = brute_force(queries.detach().float().numpy(), embeddings, 3)[1]
    assert np.array_equal(index.search(queries, 3)[1], expected)
    if dtype is not torch.bfloat16:
        not_contiguous = np.asfortranarray(queries.detach().numpy())
        assert np.array_equal(index.search(not_contiguous, 3)[1], expected)


def test_wrong_queries_raise_an_error(tmp_path):
    index = build(vectors(10), tmp_path)
    queries = vectors(3)
    with pytest.raises(ValueError, match=r"queries must be \[Q, 16\].*found shape \(16,\).*queries\[None\]"):
        index.search(queries[0], 2)
    with pytest.raises(ValueError, match=r"found shape \(3, 8\)"):
        index.search(queries[:, :8], 2)
    with pytest.raises(ValueError, match="a float dtype, found int64"):
        index.search(queries.astype(int), 2)
    queries[1, 4] = np.nan
    with pytest.raises(ValueError, match="query 1 has values that are not finite"):
        index.search(queries, 2)
    with pytest.raises(ValueError, match="k must be at least 1, found 0"):
        index.search(vectors(1), 0)
    assert index.search(np.empty((0, DIM)), 2)[1].shape == (0, 2)


def test_more_passages_than_there_are_is_padded(tmp_path):
    embeddings, queries = vectors(4), vectors(3, seed=1)
    index = build(embeddings, tmp_path)
    for searcher in (index, TorchSearcher(embeddings, "cpu")):
        scores, rows = searcher.search(queries, 6)
        assert np.array_equal(rows[:, :4], brute_force(queries, embeddings, 4)[1])
        assert (rows[:, 4:] == -1).all() and np.isneginf(scores[:, 4:]).all()


def test_of_equal_scores_the_lower_row_comes_first(tmp_path):
    embeddings = np.repeat(np.eye(DIM, dtype=np.float32), 5, axis=0)[np.random.default_rng(0).permutation(80)]
    queries = np.eye(DIM, dtype=np.float32) * 3
    index = build(embeddings, tmp_path)
    for searcher in (index, TorchSearcher(embeddings, "cpu", chunk_rows=7)):
        rows = searcher.search(queries, 5)[1]
        assert np.array_equal(rows, [np.flatnonzero(embeddings[:, i]) for i in range(DIM)])


FACTORIES = ["Flat", "IVF4,Flat", "HNSW8", "SQ8", "SQfp16", "PCA8,Flat", "PQ4x4", "IVF4,PQ4x4", "PQ4x4,RFlat"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_factory_is_built_and_opened_alike(tmp_path, factory):
    embeddings = vectors(640)
    index = build(embeddings, tmp_path, factory=factory)
    queries = embeddings[::7] + 0.1 * vectors(92, seed=1)
    scores, rows = index.search(queries, 20)
    again = CorpusIndex.open(tmp_path).search(queries, 20)
    assert np.array_equal(rows, again[1]) and np.array_equal(scores, again[0])
    found = (rows == np.arange(0, 640, 7)[:, None]).any(axis=1)
    assert found.mean() > 0.6  # each query is a passage with noise; compressed indexes miss some
    # as FAISS makes it in memory
    faiss = import_faiss()
    plain = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    fill_faiss_index(plain, embeddings, seed=0)
    assert np.array_equal(np.sort(plain.search(queries, 20)[1]), np.sort(rows))


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["PQ2", "OPQ2,PQ2", "IVF2,PQ2"])
def test_leaving_out_polysemous_codes_changes_no_score(tmp_path, factory):
    """With them, FAISS trains seconds longer, and numbers the centroids otherwise."""
    embeddings, queries = vectors(640), vectors(30, seed=1)
    index = build(embeddings, tmp_path, factory=factory)
    polysemous = import_faiss().index_factory(DIM, factory, import_faiss().METRIC_INNER_PRODUCT)
    polysemous.train(embeddings)
    polysemous.add(embeddings)
    # Passages with equal codes may come in another order.
    np.testing.assert_array_equal(index.search(queries, 10)[0], polysemous.search(queries, 10)[0])
    with pytest.raises(ValueError, match="ht needs polysemous codes"):
        CorpusIndex.open(tmp_path, search_parameters="ht=4").search(queries, 10)


def test_search_parameters_are_kept_and_can_be_replaced(tmp_path):
    embeddings, queries = vectors(640), vectors(30, seed=1)
    index = build(embeddings, tmp_path, factory="IVF16,Flat", search_parameters="nprobe=16")
    exact = brute_force(queries, embeddings, 10)[1]
    assert np.array_equal(index.search(queries, 10)[1], exact)
    assert np.array_equal(CorpusIndex.open(tmp_path).search(queries, 10)[1], exact)
    assert not np.array_equal(
        CorpusIndex.open(tmp_path, search_parameters="nprobe=1").search(queries, 10)[1], exact
    )
    with pytest.raises(ValueError, match="search_parameters 'efSearch=4' do not fit a IndexIVFFlat"):
        CorpusIndex.open(tmp_path, search_parameters="efSearch=4").search(queries, 10)


def test_training_sample_is_random_and_seeded(monkeypatch):
    monkeypatch.setattr("hf_ar2.index.faiss_build._POINTS_PER_CENTROID", 1)

    class Recorder:
        is_trained = False

        def train(self, sample):
            self.sample = sample[:, 0].astype(int)

        def add(self, block):
            pass

    def sample(seed):
        recorder = Recorder()
        fill_faiss_index(recorder, np.arange(5000, dtype=np.float16)[:2000, None], seed)
        return recorder.sample

    monkeypatch.setattr(import_faiss(), "try_extract_index_ivf", lambda index: None)
    assert len(sample(0)) == 256 == len(np.unique(sample(0)))
    assert sample(0).max() > 1500  # not the beginning of the corpus
    assert np.array_equal(sample(0), sample(0)) and not np.array_equal(sample(0), sample(1))


def test_an_index_that_cannot_be_made_raises_an_error(tmp_path):
    embeddings = vectors(30)
    encode = Lookup(embeddings)
    with pytest.raises(ValueError, match="FAISS cannot make an inner-product index 'Flatt'"):
        build(embeddings, tmp_path, encode, factory="Flatt")
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float16', found 'bfloat16'"):
        build(embeddings, tmp_path, encode, dtype="bfloat16")
    with pytest.raises(ValueError, match="the corpus is empty"):
        build(embeddings[:0], tmp_path, encode)
    assert encode.calls == 0
    with pytest.raises(ValueError, match="30 passages are too few to train this IndexIVFFlat"):
        build(embeddings, tmp_path, factory="IVF64,Flat")


# Ranks


class Ranks:
    """Ranks as threads: what each gives to `gather` reaches all."""

    def __init__(self, count: int) -> None:
        self.barrier, self.values = threading.Barrier(count), [None] * count

    def gather(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


@dataclass(frozen=True)
class RankOfThreads(Processes):
    """One of these threads; all see one disk."""

    together: Ranks

    def gather(self, value):
        return self.together.gather(self.rank, value)

    def barrier(self):
        self.gather(None)

    def of_first(self, value):
        return self.gather(value)[0]

    def share(self, folder, *names, source=0):
        self.barrier()


def built_by(ranks, embeddings, folder, encoders=None, **options):
    """What each of several ranks that build an index together returns or raises."""
    together, results = Ranks(ranks), [None] * ranks

    def work(rank):
        try:
            results[rank] = build(
                embeddings,
                folder,
                encoders[rank] if encoders else None,
                processes=RankOfThreads(rank, ranks, torch.device("cpu"), together),
                **options,
            )
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_ranks_build_one_index_together(tmp_path, factory, dtype):
    embeddings, queries = vectors(400), vectors(20, seed=1)
    expected = build(embeddings, tmp_path / "alone", factory=factory, dtype=dtype).search(queries, 10)
    encoders = [Lookup(embeddings) for _ in range(3)]
    indexes = built_by(3, embeddings, tmp_path / "together", encoders, factory=factory, dtype=dtype)
    assert [encode.calls for encode in encoders] == [7, 7, 7]  # 133 passages of 3 tokens, 60 tokens a batch
    for index in [*indexes, CorpusIndex.open(tmp_path / "together", "first")]:
        assert np.array_equal(index.embeddings, embeddings.astype(dtype))
        for found, alone in zip(index.search(queries, 10), expected, strict=True):
            assert np.array_equal(found, alone)
    names = sorted(re.sub("[0-9a-f]{16}", "*", path.name) for path in (tmp_path / "together").iterdir())
    shards = [f"embeddings-*.{rank}-of-3.npy" for rank in range(3)]
    assert names == [*shards, *(["index-*.faiss"] if factory != "Flat" else []), "meta.json"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("written_by, searched_by", [(1, 3), (2, 2), (4, 3), (3, 1), (8, 8)])
def test_the_shares_of_any_number_of_ranks_hold_what_one_finds(
    tmp_path, monkeypatch, device, written_by, searched_by
):
    monkeypatch.setattr(
        corpus_index, "TorchSearcher", lambda embeddings, device: TorchSearcher(embeddings, "cpu")
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for count in (5, 100):  # fewer passages than ranks, too
        # whole numbers: their scores are exact, and many are equal
        embeddings, queries = np.round(vectors(count)), np.round(vectors(30, seed=1))
        built_by(written_by, embeddings, tmp_path, fingerprint=str(count))
        index = CorpusIndex.open(tmp_path, device=device)
        shares = [index.search(queries, count, rank, searched_by) for rank in range(searched_by)]
        scores, rows = merge(*(np.hstack(arrays) for arrays in zip(*shares, strict=True)), count)
        expected_scores, expected_rows = brute_force(queries, embeddings, count)
        assert np.array_equal(scores, expected_scores) and np.array_equal(rows, expected_rows)
        index.release_device()


def one_of_two_processes(rank: int, folder: str) -> None:
    embeddings, queries = vectors(200), vectors(30, seed=1)
    processes = Processes.current("cpu")
    index = build(embeddings, Path(folder) / "index", processes=processes)
    encoders._CELLS_PER_EXCHANGE = 100  # five queries at a time
    found = Encoders(torch.device("cpu"), processes).search(index, queries, 10)
    for array, expected in zip(found, index.search(queries, 10), strict=True):
        assert np.array_equal(array, expected)
    assert np.array_equal(found[1], brute_force(queries, embeddings, 10)[1])
    assert index.embeddings.parts[rank].shape == (100, DIM)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    in_two_processes(one_of_two_processes, tmp_path)
    index = CorpusIndex.open(tmp_path / "index", "first")
    assert np.array_equal(index.embeddings, vectors(200))


def test_one_process_completes_what_several_encoded(tmp_path):
    embeddings, queries = vectors(100), vectors(5, seed=1)
    built_by(2, embeddings, tmp_path)
    encode = Lookup(embeddings)
    index = build(embeddings, tmp_path, encode)
    assert encode.calls == 0 and len(list(tmp_path.glob("*.faiss"))) == 1
    corpus = index.attach(corpus_of(100))
    assert np.array_equal(corpus.search_batch("embeddings", queries, k=5)[1], index.search(queries, 5)[1])
    index.save(tmp_path / "copy")
    assert np.array_equal(np.load(tmp_path / "copy" / "embeddings.npy"), embeddings)
    assert np.array_equal(
        CorpusIndex.open(tmp_path / "copy").search(queries, 5)[1], index.search(queries, 5)[1]
    )


def test_ranks_may_ask_for_a_whole_faiss_file(tmp_path):
    embeddings = vectors(100)
    for index in built_by(2, embeddings, tmp_path, whole=True):
        assert index.faiss_index.ntotal == 100
    assert len(list(tmp_path.glob("*.faiss"))) == 1


def test_only_exact_indexes_are_searched_in_shares(tmp_path):
    index = build(vectors(50), tmp_path, factory="HNSW8")
    with pytest.raises(
        ValueError, match="factory 'HNSW8': only an index of the factory 'Flat' is searched in"
    ):
        index.search(vectors(1), 2, rank=0, world_size=2)


def test_rows_that_the_file_system_lost_are_named_on_every_rank(tmp_path, monkeypatch):
    def lose(encode, builder, store, rows, out, **options):
        sums = encode_rows(encode, builder, store, rows, out, **options)
        lost = (rows >= 60) & (rows < 63)
        out[lost, 3] = 0  # as the file was before it was filled
        return sums

    monkeypatch.setattr(shards, "encode_rows", lose)
    for error in built_by(2, vectors(100), tmp_path):
        assert re.search(
            r"embeddings-.*\.1-of-2\.npy: 3 of the embeddings of rows 50 to 99 were written and are not in the file, "
            "the first is that of row 60",
            str(error),
        )
    assert not (tmp_path / "meta.json").exists()


def test_a_missing_or_short_shard_is_named_and_encoded_again(tmp_path, caplog):
    embeddings = vectors(100)
    for damage, message in (
        (lambda path: path.unlink(), r"embeddings-.*\.1-of-2\.npy is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), r"\.1-of-2\.npy is \d+ bytes long, expected"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-4] + b"abcd"),
            r"\.1-of-2\.npy: the file is damaged or was replaced",
        ),
    ):
        built_by(2, embeddings, tmp_path)
        damage(next(tmp_path.glob("*1-of-2.npy")))
        with pytest.raises(ValueError, match=message):
            CorpusIndex.open(tmp_path)
        for index in built_by(2, embeddings, tmp_path):
            assert np.array_equal(index.embeddings, embeddings)


def test_shards_are_read_as_one_matrix():
    matrix = vectors(10)
    read = Shards([matrix[:3], matrix[3:3], matrix[3:]])
    rows = np.array([[9, 0], [3, 2]])
    assert np.array_equal(read[rows], matrix[rows]) and np.array_equal(read[2:7], matrix[2:7])
    assert np.array_equal(read, matrix) and np.array_equal(read.between(1, 6), matrix[1:6])
    assert (len(read), read.shape, read.dtype, read.nbytes) == (10, (10, DIM), np.float32, matrix.nbytes)
    with pytest.raises(IndexError, match="rows -1 to 10: expected 0 to 9"):
        read[np.array([-1, 10])]


@pytest.mark.slow
def test_another_process_opens_the_same_index(tmp_path):
    embeddings, queries = vectors(50), vectors(5, seed=1)
    index = build(embeddings, tmp_path / "index")
    np.save(tmp_path / "queries.npy", queries)
    program = (
        "import sys, numpy as np\n"
        "from hf_ar2.index import CorpusIndex\n"
        "index = CorpusIndex.open(sys.argv[1], 'first')\n"
        "print(index.search(np.load(sys.argv[2]), 4)[1].tolist())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "index"), str(tmp_path / "queries.npy")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == index.search(queries, 4)[1].tolist()


# Refreshing, opening, damage


def test_an_index_that_is_there_is_opened(tmp_path):
    embeddings = vectors(30)
    build(embeddings, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    encode = Lookup(embeddings)
    build(embeddings, tmp_path, encode)
    assert encode.calls == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


def test_another_factory_takes_the_same_embeddings(tmp_path):
    embeddings, queries = vectors(200), vectors(5, seed=1)
    build(embeddings, tmp_path)
    encode = Lookup(embeddings)
    index = build(embeddings, tmp_path, encode, factory="IVF2,Flat", search_parameters="nprobe=2")
    assert encode.calls == 0 and index.factory == "IVF2,Flat"
    assert np.array_equal(index.search(queries, 3)[1], brute_force(queries, embeddings, 3)[1])
    assert len(list(tmp_path.iterdir())) == 3


def test_refresh_replaces_the_files_but_not_open_maps(tmp_path):
    old_embeddings, new_embeddings, queries = vectors(300), vectors(300, seed=5), vectors(9, seed=1)
    old = build(old_embeddings, tmp_path)
    new = build(new_embeddings, tmp_path, fingerprint="second")
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [
        "embeddings",
        "index",
        "meta.json",
    ]
    for index, embeddings in ((old, old_embeddings), (new, new_embeddings)):
        assert np.array_equal(index.embeddings, embeddings)
        assert np.array_equal(index.search(queries, 5)[1], brute_force(queries, embeddings, 5)[1])
    assert CorpusIndex.open(tmp_path).fingerprint == "second"


@pytest.mark.parametrize("stage", ["encoding", "indexing", "describing"])
def test_an_interrupted_refresh_leaves_the_old_index(tmp_path, monkeypatch, stage):
    embeddings, encode = vectors(300, seed=5), Lookup(vectors(300, seed=5))

    def interrupt(*args):
        raise KeyboardInterrupt

    def interrupted_build(fingerprint):
        with monkeypatch.context() as patch:
            if stage == "encoding":
                encode.fail_after, encode.calls = 4, 0
            else:
                name = {"indexing": "write_faiss_index", "describing": "write_meta"}[stage]
                patch.setattr(corpus_index, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                build(embeddings, tmp_path, encode, fingerprint=fingerprint)

    interrupted_build("first")
    with pytest.raises(FileNotFoundError, match=r"holds no index: meta.json is missing.*interrupted"):
        CorpusIndex.open(tmp_path)
    build(vectors(300), tmp_path)
    interrupted_build("second")
    assert np.array_equal(CorpusIndex.open(tmp_path, "first").embeddings, vectors(300))
    index = build(embeddings, tmp_path, fingerprint="second")
    assert np.array_equal(index.embeddings, embeddings)
    assert len(list(tmp_path.iterdir())) == 3  # what the interrupted build left is gone


def test_another_fingerprint_raises_an_error(tmp_path):
    build(vectors(5), tmp_path)
    with pytest.raises(
        ValueError, match=r"its fingerprint is first, expected second\. Build it again"
    ) as error:
        CorpusIndex.open(tmp_path, "second")
    assert str(tmp_path) in str(error.value)
    assert CorpusIndex.open(tmp_path, "first").fingerprint == "first"


def damage_embeddings(folder):
    path = next(folder.glob("embeddings-*"))
    path.write_bytes(path.read_bytes()[:200])


def damage_index(folder):
    path = next(folder.glob("index-*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


DAMAGES = {
    r"embeddings-.*is 200 bytes long, expected \d+ bytes: the index is damaged": damage_embeddings,
    r"index-.*is missing, expected \d+ bytes": lambda folder: next(folder.glob("index-*")).unlink(),
    r"index-.*is damaged or was replaced \(another checksum\)\. Delete .* and build the index again": damage_index,
    r"meta\.json: not a complete JSON file": lambda folder: (folder / "meta.json").write_text('{"fing'),
    r"this version cannot read the index: found format None": lambda folder: (
        folder / "meta.json"
    ).write_text("{}"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_files_raise_an_error_and_built_again(tmp_path, message):
    embeddings = vectors(100)
    build(embeddings, tmp_path)
    DAMAGES[message](tmp_path)
    with pytest.raises(ValueError, match=message):
        CorpusIndex.open(tmp_path)
    assert np.array_equal(build(embeddings, tmp_path).embeddings, embeddings)


def test_opening_while_a_refresh_replaces_the_files(tmp_path, monkeypatch):
    build(vectors(20), tmp_path)
    check, pending = corpus_index.check_contents, ["second"]

    def refreshed_meanwhile(folder, meta):
        if pending:
            build(vectors(20, seed=5), tmp_path, fingerprint=pending.pop())
        check(folder, meta)

    monkeypatch.setattr(corpus_index, "check_contents", refreshed_meanwhile)
    assert CorpusIndex.open(tmp_path).fingerprint == "second"


def test_saved_copy_is_whole_and_portable(tmp_path):
    embeddings, queries = vectors(200), vectors(5, seed=1)
    index = build(embeddings, tmp_path / "run", factory="IVF2,Flat", search_parameters="nprobe=2")
    build(
        vectors(200, seed=5), tmp_path / "run", fingerprint="second"
    )  # its files are gone, its maps are not
    for _ in range(2):
        index.save(tmp_path / "copy")
        names = sorted(path.name for path in (tmp_path / "copy").iterdir())
        assert names == ["embeddings.npy", "index.faiss", "meta.json"]
    (tmp_path / "copy").rename(tmp_path / "elsewhere")
    copy = CorpusIndex.open(tmp_path / "elsewhere", "first")
    assert np.array_equal(copy.embeddings, embeddings)
    for found, expected in zip(copy.search(queries, 5), index.search(queries, 5), strict=True):
        assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="is the folder of the index itself"):
        copy.save(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["index.faiss", "embeddings.npy"])
@pytest.mark.parametrize("meta", [None, '{"made by": "somebody else"}'])
def test_files_of_other_origin_are_neither_replaced_nor_removed(tmp_path, name, meta):
    index, theirs = build(vectors(20), tmp_path / "ours"), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / name).write_text("somebody's")
    if meta is not None:
        (theirs / "meta.json").write_text(meta)
    before = {path.name: path.read_text() for path in theirs.iterdir()}
    for write in (lambda: build(vectors(20), theirs), lambda: index.save(theirs)):
        with pytest.raises(ValueError, match=rf"theirs: found {name}, which.*Name another folder"):
            write()
    assert {path.name: path.read_text() for path in theirs.iterdir()} == before


def test_building_over_a_saved_copy_removes_the_copys_files_alone(tmp_path):
    build(vectors(20), tmp_path / "run").save(tmp_path / "copy")
    for name in ("ids.json", "other.faiss", "index-old.faiss"):
        (tmp_path / "copy" / name).write_text("somebody's")
    build(vectors(20, seed=5), tmp_path / "copy", fingerprint="second")
    names = sorted(re.sub("[0-9a-f]{16}", "*", path.name) for path in (tmp_path / "copy").iterdir())
    assert names == [
        *["embeddings-*.npy", "ids.json", "index-*.faiss", "index-old.faiss"],
        *["meta.json", "other.faiss"],
    ]


# Datasets


def corpus_of(count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"passage {i}" for i in range(count)]})


def test_attached_index_serves_the_dataset_without_a_copy(tmp_path, capsys):
    embeddings, queries = vectors(60), vectors(4, seed=1)
    index, corpus = build(embeddings, tmp_path / "index"), corpus_of(60)
    assert index.attach(corpus) is corpus
    assert capsys.readouterr().err == ""
    assert corpus.get_index("embeddings").faiss_index is index.faiss_index
    expected_scores, expected_rows = index.search(queries, 5)
    scores, rows = corpus.search_batch("embeddings", queries, k=5)
    assert np.array_equal(rows, expected_rows) and np.array_equal(scores, expected_scores)
    _, examples = corpus.get_nearest_examples_batch("embeddings", queries, k=5)
    assert examples[2]["text"] == [f"passage {row}" for row in expected_rows[2]]
    corpus.save_faiss_index("embeddings", tmp_path / "saved.faiss")
    other = corpus_of(60)
    other.load_faiss_index("embeddings", tmp_path / "saved.faiss")
    assert np.array_equal(other.search_batch("embeddings", queries, k=5)[1], expected_rows)


def test_attaching_again_replaces_the_index(tmp_path):
    corpus = corpus_of(60)
    build(vectors(60), tmp_path).attach(corpus)
    new = build(vectors(60, seed=5), tmp_path, fingerprint="second", factory="HNSW8")
    new.attach(corpus)
    new.attach(corpus, "other name")
    assert corpus.list_indexes() == ["embeddings", "other name"]
    assert corpus.get_index("embeddings").faiss_index is new.faiss_index
    with pytest.raises(
        ValueError, match="the index holds 60 passages, but the corpus to attach it to has 59"
    ):
        new.attach(corpus_of(59))


# Search in torch, and on a GPU


@pytest.mark.parametrize("copy", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
@pytest.mark.parametrize("chunk_rows, chunk_queries", [(64, 9), (1000, 1000), (10_000, 7)])
def test_torch_search_equals_exact_search(copy, stored, chunk_rows, chunk_queries):
    # a narrow cone, as encoders make it: scores lie close together
    embeddings = vectors(3000, dim=32) + 3
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings = embeddings.astype(stored)
    queries = embeddings[:50].astype(np.float32) + 0.05 * vectors(50, seed=1, dim=32)
    faiss = import_faiss()
    exact = faiss.IndexFlatIP(32)
    exact.add(embeddings.astype(np.float32))
    expected_scores, expected_rows = exact.search(queries, 100)
    searcher = TorchSearcher(embeddings, "cpu", copy, chunk_rows=chunk_rows, chunk_queries=chunk_queries)
    scores, rows = searcher.search(queries, 100)
    assert scores.dtype == np.float32 and rows.dtype == np.int64
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    differ = rows != expected_rows  # only where float32 itself cannot tell two passages apart
    assert differ.mean() < 0.01
    exact_scores = np.einsum("qd,qkd->qk", queries.astype(np.float64), embeddings[rows].astype(np.float64))
    np.testing.assert_allclose(exact_scores[differ], expected_scores[differ], rtol=1e-6)


def test_torch_search_rejects_what_float16_cannot_hold():
    embeddings = np.full((3, 2), 1e5, np.float32)
    with pytest.raises(ValueError, match=r"rows 0 to 2 exceed the range of torch\.float16; use dtype="):
        TorchSearcher(embeddings, "cpu")
    scores, rows = TorchSearcher(embeddings, "cpu", torch.bfloat16).search(np.ones((1, 2), np.float32), 3)
    assert scores.tolist() == [[2e5] * 3] and rows.tolist() == [[0, 1, 2]]


def test_a_gpu_without_faiss_gpu_searches_in_torch(tmp_path, monkeypatch):
    embeddings, queries = vectors(50), vectors(5, seed=1)
    made = []

    def on_the_processor(embeddings, device):
        made.append(str(device))
        return TorchSearcher(embeddings, "cpu")

    monkeypatch.setattr(corpus_index, "TorchSearcher", on_the_processor)
    index = build(embeddings, tmp_path)
    expected = index.search(queries, 5)
    assert made == []
    on_gpu = CorpusIndex.open(tmp_path, device="cuda:0")
    assert np.array_equal(on_gpu.search(queries, 5)[1], expected[1]) and made == ["cuda:0"]
    on_gpu.search(queries, 5)
    assert len(made) == 1  # copied once
    on_gpu.release_device()
    on_gpu.search(queries, 5)
    assert len(made) == 2
    hnsw = build(embeddings, tmp_path, factory="HNSW8", device="cuda:0")
    assert hnsw.search(queries, 5)[1].shape == (5, 5) and len(made) == 2


def test_faiss_limits_on_a_gpu_are_told(tmp_path):
    searcher = FaissSearcher(build(vectors(5), tmp_path).faiss_index)
    searcher.on_gpu = True
    with pytest.raises(ValueError, match="k=2049: FAISS on a GPU returns at most 2048"):
        searcher.search(query_matrix(vectors(1), DIM), 2049)


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_missing_faiss_names_both_extras(tmp_path, monkeypatch, error):
    (tmp_path / "faiss.py").write_text(f"raise {error}('libcublas is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    with pytest.raises(ImportError, match=r'libcublas is missing.*"\.\[cpu\]".*"\.\[gpu\]"'):
        import_faiss()
