"""Several collections in one run: batches from one of them, and results of each that are those of it alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import faiss
import numpy as np
import pytest
import yaml
from conftest import make_tiny_collection, write_recipe
from datasets import Dataset
from test_recipes import tiny_recipe
from tiny_ar2 import TRAINERS, losses, make_trainer, settings_of, two_collections, without_dropout
from two_processes import launch_two

from hf_ar2 import RetrieverConfig, RetrieverTrainer, join_collections, load_collection
from hf_ar2.cards.facts import Training
from hf_ar2.cards.results import model_index
from hf_ar2.collections import Collection, CollectionError
from hf_ar2.collections.joined import source_text, sources_of
from hf_ar2.command_line import main as cli
from hf_ar2.files import read_json
from hf_ar2.index.frozen import FrozenIndex
from hf_ar2.index.lexical import LexicalIndex
from hf_ar2.index.search import FaissSearcher, FlatSearcher, TorchSearcher, merge, search_in_ranges
from hf_ar2.models.loading import load_ranker, load_retriever
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.training_lists.list_sampler import ListSampler
from hf_ar2.training_lists.pool import CandidatePool

QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "use_cpu": True}
# Of an evaluation without a ranker.
PLAIN = {"eval_metrics": ["mrr@10", "recall@5"], "eval_depth": 20, "rerank_depth": 0}


@pytest.fixture(scope="module")
def parts() -> dict[str, Collection]:
    """Two collections with the same ids; the second has half of the passages, and 8 training queries instead of 24."""
    small = make_tiny_collection(seed=1)
    judged = {split: table.select(range(min(8, len(table)))) for split, table in small.qrels.items()}
    kept = {id for table in judged.values() for id in table["passage_id"]}
    rows = [row for row, id in enumerate(small.corpus["id"]) if id in kept]
    return {
        "big": make_tiny_collection(),
        "small": dataclasses.replace(small, name="small", corpus=small.corpus.select(rows), qrels=judged),
    }


@pytest.fixture(scope="module")
def joined(parts: dict[str, Collection]) -> Collection:
    return join_collections(parts, weights={"small": 3})


def retriever_of(models: Path):
    return without_dropout(load_retriever(models / "tiny-retriever", device="cpu"))


# ---- One collection of several --------------------------------------------------------------------------------------


def test_ids_begin_with_their_collection(joined: Collection, parts: dict[str, Collection]) -> None:
    assert joined.name == "big+small" and joined.members == {"big": 1.0, "small": 3.0}
    assert joined.splits == ["train", "dev", "test", "dev-big", "dev-small", "test-big", "test-small"]
    assert joined.member_rows.tolist() == [[0, 60], [60, 84]]
    assert joined.corpus[60] == {**parts["small"].corpus[0], "id": f"small/{parts['small'].corpus[0]['id']}"}
    for name, part in parts.items():
        own, alone = joined.judgments(f"test-{name}"), part.judgments("test")
        first_query, first_passage = (0, 0) if name == "big" else (40, 60)
        assert (own.query_rows - first_query).tolist() == alone.query_rows.tolist()
        assert (own.passage_rows - first_passage).tolist() == alone.passage_rows.tolist()
    searched = joined.searched_rows(np.array([0, 39, 40]))
    assert searched.tolist() == [[0, 60], [0, 60], [60, 84]]
    assert "small: 24 passages, weight 3" in str(joined)


def test_added_queries_search_everything(joined: Collection) -> None:
    more = joined.with_queries(Dataset.from_dict({"id": ["question-1"], "text": ["where is the otter?"]}))
    assert more.searched_rows(np.array([len(joined.queries), 0])).tolist() == [[0, 84], [0, 60]]
    fewer = dataclasses.replace(joined, corpus=joined.corpus.select(range(50, 84)))
    assert fewer.member_rows.tolist() == [[0, 10], [10, 34]]
    with pytest.raises(CollectionError, match="in this order"):
        _ = dataclasses.replace(joined, corpus=joined.corpus.select(range(83, -1, -1))).member_rows


def test_weights_and_levels_are_part_of_it(joined: Collection, parts: dict[str, Collection]) -> None:
    assert join_collections(parts).fingerprint != joined.fingerprint
    graded = joined.with_relevance_level(2, ["dev"])
    assert graded.judgments("dev-small").level == 2 and graded.judgments("test-small").level == 1


def test_columns_that_one_lacks_are_filled(parts: dict[str, Collection]) -> None:
    small = parts["small"]
    queries = small.queries.add_column("source", ["heading"] * len(small.queries))
    corpus = small.corpus.add_column("training_title", [""] * 24).add_column("training_text", ["cut"] * 24)
    columns = {"query_id": ["q200"], "positive_ids": [["p100"]], "negative_ids": [["p101", "p102"]]}
    scores = {"positive_scores": [[1.0]], "negative_scores": [[0.5, 0.25]], "kind": ["undenoised"]}
    other = dataclasses.replace(
        small, corpus=corpus, queries=queries, lists=Dataset.from_dict(columns | scores),
        answer_splits={"quiz": np.array([3, 1])}, qrels={},
    )  # fmt: skip
    joined = join_collections({"big": parts["big"], "small": other})
    assert joined.query_sources("test") == {"": 8} and joined.queries[40]["source"] == "heading"
    view = joined.for_training().corpus
    assert view[0]["text"] == parts["big"].corpus[0]["text"] and view[60]["text"] == "cut"
    assert joined.lists[0]["negative_ids"] == ["small/p101", "small/p102"]
    assert joined.answer_splits["quiz"].tolist() == joined.answer_splits["quiz-small"].tolist() == [43, 41]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["big"]}, "found \\['big'\\]; expected at least two"),
        ({"names": ["big", "the small"]}, "the name 'the small' contains white space"),
        ({"names": ["big", "a/b"]}, "found 'a/b', expected a name"),
        ({"weights": {"tiny": 2}}, "weights: 'tiny' is not among big, small"),
        ({"weights": {"small": 0}}, "weight of 'small': found 0; expected a number above 0"),
        ({"weights": {"small": "2"}}, "weight of 'small': found '2'"),
        ({"level": 2}, "small: already joined, or with a relevance level"),
        ({"answers": "test"}, "split 'test': some collections have judgments, others only answers"),
        ({"twice": True}, "small: already joined"),
    ],
)
def test_what_cannot_be_joined_is_named(
    parts: dict[str, Collection], joined: Collection, change: dict, message: str
) -> None:
    small = parts["small"]
    if "level" in change:
        small = small.with_relevance_level(2, ["dev"])
    if "answers" in change:
        small = dataclasses.replace(small, qrels={}, answer_splits={"test": np.array([0])})
    given = dict(zip(change.get("names", ["big", "small"]), [parts["big"], small], strict=False))
    with pytest.raises(CollectionError, match=message):
        join_collections(given | ({"small": joined} if "twice" in change else {}), change.get("weights"))


def test_sources_are_a_mapping_a_list_or_a_text(parts: dict[str, Collection], tmp_path: Path) -> None:
    for name, part in parts.items():
        part.save(tmp_path / name)
    big, small = str(tmp_path / "big"), str(tmp_path / "small")
    weighted = load_collection({"big": big, "small": {"path": small, "weight": 3}})
    assert weighted.fingerprint == join_collections(parts, {"small": 3}).fingerprint
    assert load_collection([big, small]).fingerprint == join_collections(parts).fingerprint
    text = source_text({"big": big, "small": {"path": small, "weight": 3}})
    assert load_collection(text).fingerprint == weighted.fingerprint and source_text(text) == text
    assert load_collection(parts).members == {"big": 1.0, "small": 1.0}

    rows = Dataset.from_dict({"anchor": ["who sings?", "who barks?"], "positive": ["Birds do.", "Dogs do."]})
    assert load_collection({"train": rows, "dev": rows}).members == {}  # splits of one collection
    assert load_collection({"one": rows, "two": rows}).members == {"one": 1.0, "two": 1.0}
    with pytest.raises(CollectionError, match="expected one collection, found several"):
        weighted.save(tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("[a/x, b/x]", "two are named 'x'"),
        ("{a: data/a, b: {path: data/b, wieght: 2}}", "collection.b: unknown key 'wieght'"),
        ("{a: data/a, b: 3}", "collection.b: found 3; expected a path or an id"),
        ("{a: data/a", "not valid YAML"),
        ("{a: data/a}", "expected at least two"),
    ],
)
def test_wrong_sources_are_named(source: str, message: str) -> None:
    with pytest.raises(CollectionError, match=message):
        sources_of(source)


# ---- Search in a part of the passages -------------------------------------------------------------------------------


def test_queries_search_their_own_rows() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((50, 8)).astype(np.float32)
    queries = rng.standard_normal((6, 8)).astype(np.float32)
    ranges = np.array([[0, 30], [30, 50], [0, 50]] * 2)
    index = faiss.IndexFlatIP(8)
    index.add(embeddings)
    for searcher in (FaissSearcher(index), TorchSearcher(embeddings, "cpu")):
        scores, rows = search_in_ranges(searcher.search, queries, 25, ranges)
        for number, (start, stop) in enumerate(ranges):
            alone = FlatSearcher(embeddings[start:stop]).search(queries[number : number + 1], 25)
            assert np.where(rows[number] >= 0, rows[number] - start, -1).tolist() == alone[1][0].tolist()
            np.testing.assert_allclose(scores[number], alone[0][0], rtol=1e-5)
    with pytest.raises(ValueError, match="IndexHNSWFlat cannot be searched in a part"):
        FaissSearcher(faiss.IndexHNSWFlat(8, 4)).search(queries, 2, (0, 1))
    frozen = FrozenIndex(index, "mixed", embeddings[::-1], np.arange(50)[::-1])
    with pytest.raises(ValueError, match="an index in another order cannot be searched in a part"):
        frozen.search(queries, 2, (0, 30))


def test_processes_share_a_part(models: Path, tmp_path: Path, joined: Collection) -> None:
    args = RetrieverConfig(output_dir=str(tmp_path), bf16=False, **QUIET)
    index = RetrieverTrainer(retriever_of(models), args, joined).retrieval.refresh()
    queries = np.random.default_rng(0).standard_normal((3, index.dim)).astype(np.float32)
    scores, rows = index.search(queries, 9, within=(60, 84))
    ranks = [index.search(queries, 9, rank, 3, (60, 84)) for rank in range(3)]
    both = merge(*(np.hstack(found) for found in zip(*ranks, strict=True)), 9)
    assert both[1].tolist() == rows.tolist() and rows.min() >= 60
    np.testing.assert_allclose(both[0], scores, rtol=1e-6)


def test_words_are_counted_in_each(joined: Collection, parts: dict[str, Collection], tmp_path: Path) -> None:
    rows = joined.judgments("test-small").query_rows
    texts = list(joined.queries.select(rows)["text"])
    for _ in range(2):  # built, then opened
        index = LexicalIndex.of_members(joined.passage_texts(), joined.member_rows, tmp_path)
        scores, found = index.search(texts, 5, joined.searched_rows(rows))
        alone = LexicalIndex.build(parts["small"].passage_texts()).search(texts, 5)
        np.testing.assert_allclose(scores, alone[0])
        assert np.where(found >= 0, found - 60, -1).tolist() == alone[1].tolist()


# ---- Training lists -------------------------------------------------------------------------------------------------


def members_of(joined: Collection, rows: np.ndarray) -> set[int]:
    return set(np.searchsorted(joined.member_rows[:, 1], rows[rows >= 0], side="right").tolist())


def test_a_step_is_of_one_collection(models: Path, tmp_path: Path, joined: Collection) -> None:
    settings = settings_of(RetrieverConfig) | QUIET | {"num_negatives": 3, "pool_depth": 8}
    args = RetrieverConfig(output_dir=str(tmp_path), **settings)
    trainer = RetrieverTrainer(retriever_of(models), args, joined)
    trainer.begin_round()
    lists, batch = trainer.collator.lists, trainer.global_batch
    lists.hard_share = lambda positions: np.full(len(positions), 0.5)  # half of the negatives are random
    drawn = [lists(np.arange(step * batch, (step + 1) * batch)) for step in range(40)]
    of_step = [members_of(joined, step.passage_rows) for step in drawn]
    assert all(len(found) == 1 for found in of_step)
    # 24 and 8 training queries with weights 1 and 3 have equal shares, in every stretch of steps.
    for start in range(0, 40, 10):
        assert 4 <= sum(found == {1} for found in of_step[start : start + 10]) <= 6
    # The lists are a function of the position: in any parts, and in another order.
    for step in (7, 3):
        halves = [lists(np.arange(step * batch, (step + 1) * batch)[part::2]) for part in (0, 1)]
        for part in (0, 1):
            assert halves[part].passage_rows.tolist() == drawn[step].passage_rows[part::2].tolist()


def pool_with_positives(rows: list[int]) -> CandidatePool:
    """A pool without candidates, with one positive for each query."""
    size = len(rows)
    return CandidatePool(
        query_rows=np.arange(size), passage_rows=np.zeros((size, 0), np.int32), scores=np.zeros((size, 0), np.float32),
        positive_rows=np.array(rows, np.int32)[:, None], positive_scores=np.zeros((size, 1), np.float32),
    )  # fmt: skip


def sampler_of(pool: CandidatePool) -> ListSampler:
    """Two collections, of six passages and of four, and two lists in a step."""
    ranges, weights = np.array([[0, 6], [6, 10]]), np.array([1.0, 1.0])
    return ListSampler(pool, 10, 0, seed=1, member_rows=ranges, member_weights=weights, lists_per_step=2)


def test_every_pass_has_all_queries_of_a_collection() -> None:
    entries = sampler_of(pool_with_positives(list(range(10)))).indices(np.arange(200)).reshape(100, 2)
    small = entries[(entries >= 6).all(axis=1)].ravel()
    big = entries[(entries < 6).all(axis=1)].ravel()
    assert len(small) + len(big) == 200 and abs(len(small) - 80) <= 4
    for start in range(0, len(small) - 3, 4):
        assert sorted(small[start : start + 4]) == [6, 7, 8, 9]
    for start in range(0, len(big) - 5, 6):
        assert sorted(big[start : start + 6]) == list(range(6))


def test_a_new_pool_is_divided_into_collections_again() -> None:
    lists = sampler_of(pool_with_positives(list(range(10))))
    lists.indices(np.arange(40))
    lists.pool = pool_with_positives(list(range(9, -1, -1)))
    assert lists.indices(np.arange(40)).tolist() == sampler_of(lists.pool).indices(np.arange(40)).tolist()


# ---- Evaluation, and every trainer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{}, {"eval_passages": 30}])
def test_each_is_evaluated_as_alone(
    models: Path, tmp_path: Path, joined: Collection, parts: dict[str, Collection], limits: dict
) -> None:
    def evaluated(collection: Collection, split: str = "dev") -> dict[str, float]:
        args = RetrieverConfig(output_dir=str(tmp_path / collection.name / split), eval_split=split, bf16=False,
                               **QUIET, **PLAIN, **limits)  # fmt: skip
        return RetrieverTrainer(retriever_of(models), args, collection).evaluation.metrics()

    found = evaluated(joined)
    assert list(found)[:2] == ["retriever_mrr@10", "retriever_recall@5"]
    if not limits:
        for name, part in parts.items():
            for metric, value in evaluated(part).items():
                assert found[f"{name}_{metric}"] == pytest.approx(value, abs=1e-6)
        own = evaluated(joined, "dev-small")["retriever_mrr@10"]
        assert own == pytest.approx(found["small_retriever_mrr@10"])
    of_each = [found[f"{name}_retriever_mrr@10"] for name in parts]
    assert found["retriever_mrr@10"] == pytest.approx(sum(of_each) / 2)  # 8 queries of each


@pytest.mark.parametrize("method", list(TRAINERS))
def test_every_trainer_takes_several(
    method: str, models: Path, tmp_path: Path, joined: Collection, capsys: pytest.CaptureFixture
) -> None:
    trainer_class, config = TRAINERS[method]
    settings = settings_of(config) | QUIET | {"eval_on_start": True, "max_steps": 3}
    settings |= {"num_negatives": 0, "rerank_depth": 0} if method == "ltre" else {}
    ranker = without_dropout(load_ranker(models / "tiny-ranker", device="cpu"))
    args = config(output_dir=str(tmp_path), **settings)
    trainer = trainer_class(retriever_of(models), ranker, args=args, collection=joined)
    seen: list[set[int]] = []
    step = trainer.list_scores

    def list_scores(outputs, batch):
        scores = step(outputs, batch)
        seen.append(members_of(joined, scores.passage_rows.cpu().numpy()))
        return scores

    trainer.list_scores = list_scores
    trainer.train()
    assert seen and all(len(members) == 1 for members in seen)
    assert "eval_small_retriever_mrr@10" in trainer.state.log_history[0]
    assert "dev-small: retriever" in capsys.readouterr().out


def test_other_indexes_are_an_error_before_training(models: Path, tmp_path: Path, joined: Collection) -> None:
    args = RetrieverConfig(output_dir=str(tmp_path), index_factory="HNSW8", **QUIET)
    with pytest.raises(ValueError, match="index_factory='HNSW8': such an index cannot be searched in a part"):
        RetrieverTrainer(retriever_of(models), args, joined)


# ---- Recipes and commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(home: Path, parts: dict[str, Collection], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a recipe over both, with BM25, a ranker and a stage that augments."""
    folder = tmp_path_factory.mktemp("several")
    for name, part in parts.items():
        part.save(folder / name)
    body = tiny_recipe(home)
    body["collection"] = {"big": str(folder / "big"), "small": {"path": str(folder / "small"), "weight": 3}}
    body["evaluation"]["lexical"] = True
    body["stages"]["lists"] = {"trainer": "augment", "retriever": "retriever", "ranker": "ranker",
                               "args": {"depth": 8, "kinds": ["undenoised"]}}  # fmt: skip
    recipe = load_recipe(write_recipe(folder / "recipe.yaml", body))
    recipe.output_dir = str(folder / "run")
    return run_recipe(recipe)


@pytest.mark.slow
def test_a_run_reports_each(run: Path, parts: dict[str, Collection]) -> None:
    metrics = read_json(run / "metrics.json")
    assert list(metrics["AR2"]) == ["dev", "dev-big", "dev-small", "test", "test-big", "test-small"]
    for row, found in metrics.items():
        for system, values in found["test"].items():
            of_each = [found[f"test-{name}"][system]["mrr@10"] for name in parts]
            assert values["mrr@10"] == pytest.approx(sum(of_each) / 2), (row, system)
    lines = (run / "runs" / "AR2" / "test-small.retriever.trec").read_text().splitlines()
    assert all(line.startswith("small/") and line.split()[2].startswith("small/") for line in lines)
    card = (run / "retriever" / "README.md").read_text()
    assert "`big+small`, test-small, 8 queries" in card and str(run.parent) not in card
    assert "on `big` and `small`, with hf_ar2" in card
    names = {(result.dataset_name, result.dataset_split) for result in _results(card)}
    assert ("small", "test") in names and ("big+small", "test") in names
    lists = [json.loads(line) for line in (run / "stages/lists/lists/false_negatives.jsonl").open()]
    assert all(entry["query_id"].split("/")[0] == entry["passage_id"].split("/")[0] for entry in lists)


def _results(card: str):
    from huggingface_hub import ModelCard

    return ModelCard(card).data.eval_results


@pytest.mark.slow
def test_commands_show_each(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["evaluate", str(run), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "test-small: 8 queries" in shown
    measured, of_run = read_json(tmp_path / "out" / "metrics.json"), read_json(run / "metrics.json")["AR2"]
    for system in ("retriever", "pipeline"):
        assert measured["test-small"][system]["mrr@10"] == pytest.approx(
            of_run["test-small"][system]["mrr@10"], abs=1e-3
        )
    assert cli.main(["compare", str(run), "--split", "test-small"]) == 0
    assert "8 queries" in capsys.readouterr().out
    assert cli.main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0


def test_a_recipe_takes_them_on_the_command_line(home: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", tiny_recipe(home))
    recipe = load_recipe(path, {"collection": "{nq: data/nq, squad: {path: data/squad, weight: 2}}"})
    assert recipe.collection == "{nq: data/nq, squad: {path: data/squad, weight: 2}}"
    assert yaml.safe_load(recipe.collection)["squad"]["weight"] == 2
    with pytest.raises(RecipeError, match=r"collection\.squad: found 3; expected a path"):
        load_recipe(path, {"collection": "{nq: data/nq, squad: 3}"})


@pytest.mark.slow
def test_a_recipe_searches_them_exactly(run: Path) -> None:
    recipe = load_recipe(run.parent / "recipe.yaml", {"evaluation.rows.AR2.index_factory": "HNSW8"})
    recipe.output_dir = str(run.parent / "other")
    with pytest.raises(
        RecipeError, match=r"evaluation.rows.AR2.index_factory: 'HNSW8': such an index cannot"
    ):
        run_recipe(recipe)


def test_a_card_names_the_data_set_of_each() -> None:
    found = {split: {"retriever": {"mrr@10": 0.5}} for split in ("test", "test-fact")}
    training = Training(
        "retriever", "run", "{nq: /home/me/nq, fact: BeIR/scifact}", [], "base", metrics={"row": found},
        on_the_hub=["BeIR/scifact"],
    )  # fmt: skip
    assert [(one.dataset_type, one.dataset_split) for one in model_index(training)] == [
        ("nq-fact", "test"),
        ("BeIR/scifact", "test"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retriever", "ar2"])
def test_two_processes_take_the_steps_of_one(name: str, models: Path, tmp_path: Path) -> None:
    settings = dict(QUIET)
    one = make_trainer(name, models, tmp_path / "one", two_collections(), dropout=False, **settings)
    one.train()
    settings |= {"per_device_train_batch_size": 2}
    options = ["--trainer", name, "--settings", json.dumps(settings), "--no_dropout", "--joined"]
    launch_two(Path(__file__).with_name("tiny_ar2.py"), models, tmp_path / "two", *options)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["world_size"] == 2
    np.testing.assert_allclose(losses(two["log"]), losses(one.state.log_history), rtol=1e-4)
