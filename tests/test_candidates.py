"""Candidate pools: what is filtered, how they are kept, and how lists are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from hf_ar2.collections.judgments import Judgments
from hf_ar2.files import read_json, write_json
from hf_ar2.training_lists.draws import (
    counter_uniform,
    sample_negatives,
    sample_positive_columns,
    sample_random_passages,
)
from hf_ar2.training_lists.pool import (
    CandidatePool,
    build_pool,
    padded_positives,
    passage_text_keys,
    pool_statistics,
)


def judge(*positives: list[int]) -> Judgments:
    """Judgments in which query i has the given positive passage rows."""
    rows = [row for of_query in positives for row in sorted(of_query)]
    return Judgments(
        query_rows=np.arange(len(positives), dtype=np.int64),
        offsets=np.cumsum([0] + [len(of_query) for of_query in positives]).astype(np.int64),
        passage_rows=np.array(rows, dtype=np.int64),
        relevance=np.ones(len(rows), dtype=np.int32),
    )


def descending(rows: np.ndarray) -> np.ndarray:
    """Scores for retrieved rows, best first: 1, .9, .8, ..."""
    return np.broadcast_to(1 - 0.1 * np.arange(rows.shape[1], dtype=np.float32), rows.shape)


def pool_of(scores: np.ndarray, positive_score: float = 0.0, copies: int = 1) -> CandidatePool:
    """A pool whose every query has candidates 100, 101, ... with the given scores, and positive 7."""
    k = len(scores)
    return CandidatePool(
        query_rows=np.arange(copies),
        passage_rows=np.tile(np.arange(100, 100 + k, dtype=np.int32), (copies, 1)),
        scores=np.tile(np.asarray(scores, dtype=np.float32), (copies, 1)),
        positive_rows=np.full((copies, 1), 7, dtype=np.int32),
        positive_scores=np.full((copies, 1), positive_score, dtype=np.float32),
    )


def assert_drawn_from(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's chi-square lies within four standard deviations of its mean."""
    expected = counts.sum() * probabilities
    freedom = len(counts) - 1
    statistic = (np.square(counts - expected) / expected).sum()
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


class TestBuild:
    def test_positives_are_left_out_and_the_rest_moves_up(self):
        rows = np.array([[4, 7, 2, 9], [7, 4, 3, 1]])
        pool = build_pool(descending(rows), rows, judge([7], [4, 3]), depth=4)
        assert pool.passage_rows.tolist() == [[4, 2, 9, -1], [7, 1, -1, -1]]
        assert pool.scores[0].tolist() == pytest.approx([1.0, 0.8, 0.7, -np.inf])
        assert pool.dropped == {"positive": 3}
        assert pool.positive_rows.tolist() == [[7, -1], [3, 4]]

    def test_judged_not_relevant_is_a_candidate(self):
        judgments = Judgments(
            query_rows=np.array([0]),
            offsets=np.array([0, 2]),
            passage_rows=np.array([4, 7]),
            relevance=np.array([0, 1], dtype=np.int32),
        )
        rows = np.array([[4, 7, 2]])
        pool = build_pool(descending(rows), rows, judgments, depth=3)
        assert pool.passage_rows.tolist() == [[4, 2, -1]]

    def test_a_copy_of_a_positives_text_is_left_out_for_that_query_only(self):
        keys = passage_text_keys(["A cat.", "a  CAT.", "a dog", "a cow"])
        rows = np.array([[1, 2, 0, 3], [1, 0, 2, 3]])
        pool = build_pool(descending(rows), rows, judge([0], [2]), depth=3, text_keys=keys)
        assert pool.passage_rows.tolist() == [[2, 3, -1], [1, 0, 3]]
        assert pool.dropped == {"positive": 2, "duplicate_of_positive": 1}

    def test_passages_with_an_answer_are_left_out_and_counted_once(self):
        rows = np.array([[4, 7, 2, 9]])
        hits = np.array([[False, True, True, False]])
        pool = build_pool(descending(rows), rows, judge([7]), depth=4, answer_hits=hits)
        assert pool.passage_rows.tolist() == [[4, 9, -1, -1]]
        assert pool.dropped == {"positive": 1, "contains_answer": 1}

    def test_depth_cuts_after_the_filters(self):
        rows = np.array([[7, 4, 2, 9, 1]])
        pool = build_pool(descending(rows), rows, judge([7]), depth=3)
        assert pool.passage_rows.tolist() == [[4, 2, 9]]

    def test_short_search_results_are_padded(self):
        rows = np.array([[7, 4, -1, -1]])
        pool = build_pool(descending(rows), rows, judge([7]), depth=2)
        assert pool.passage_rows.tolist() == [[4, -1]]
        assert pool.scores[0, 1] == -np.inf

    def test_equals_a_loop_over_queries(self, monkeypatch):
        monkeypatch.setattr("hf_ar2.training_lists.filters._CHUNK", 7)  # several chunks, the last one short
        random = np.random.default_rng(0)
        rows = np.stack([random.permutation(60)[:20] for _ in range(50)])
        rows[random.random(rows.shape) < 0.1] = -1
        judgments = judge(*[random.permutation(60)[: random.integers(1, 6)].tolist() for _ in range(50)])
        keys = random.integers(0, 40, 60)
        hits = random.random(rows.shape) < 0.1
        pool = build_pool(descending(rows), rows, judgments, depth=15, text_keys=keys, answer_hits=hits)
        for i, retrieved in enumerate(rows):
            positives = set(judgments.of(i)[0].tolist())
            texts = {keys[row] for row in positives}
            left = [
                row
                for row, hit in zip(retrieved.tolist(), hits[i].tolist(), strict=True)
                if row >= 0 and row not in positives and keys[row] not in texts and not hit
            ]
            assert [row for row in pool.passage_rows[i].tolist() if row >= 0] == left[:15]

    @pytest.mark.parametrize(
        "filters",
        [
            {"absolute_margin": 0.2},
            {"absolute_margin": 0.0},
            {"relative_margin": 0.3},
            {"max_score": 0.4},
            {"range_min": 3},
            {"absolute_margin": 0.1, "relative_margin": 0.3, "max_score": 0.5, "range_min": 2},
        ],
    )
    def test_filters_on_scores_and_ranks_equal_a_loop(self, filters, monkeypatch):
        monkeypatch.setattr("hf_ar2.training_lists.filters._CHUNK", 7)
        random = np.random.default_rng(1)
        rows = np.stack([random.permutation(60)[:20] for _ in range(50)])
        rows[random.random(rows.shape) < 0.1] = -1
        scores = -np.sort(-random.normal(size=rows.shape), axis=1)
        judgments = judge(*[random.permutation(60)[: random.integers(1, 4)].tolist() for _ in range(50)])
        positive_scores = random.normal(size=padded_positives(judgments).shape)  # about half are negative
        pool = build_pool(scores, rows, judgments, depth=8, positive_scores=positive_scores, **filters)
        dropped = dict.fromkeys(["positive", *filters], 0)
        for i in range(50):
            positives = judgments.of(i)[0].tolist()
            anchor = positive_scores[i, : len(positives)].mean()
            left = []
            for row, score in zip(rows[i].tolist(), scores[i].tolist(), strict=True):
                if row < 0:
                    continue
                causes = {
                    "positive": row in positives,
                    "absolute_margin": score > anchor - filters.get("absolute_margin", -np.inf),
                    "relative_margin": score > anchor - filters.get("relative_margin", -np.inf) * abs(anchor),
                    "max_score": score > filters.get("max_score", np.inf),
                }
                cause = next((cause for cause, hit in causes.items() if hit), None)
                if cause is None:
                    left.append(row)
                else:
                    dropped[cause] += 1
            skipped = filters.get("range_min", 0)
            if skipped:
                dropped["range_min"] += len(left[:skipped])
            assert [row for row in pool.passage_rows[i].tolist() if row >= 0] == left[skipped : skipped + 8]
        assert pool.dropped == dropped
        counted = pool_statistics(pool)
        assert {cause: counted[f"dropped/{cause}"] for cause in dropped} == dropped

    @pytest.mark.parametrize("margin", ["absolute_margin", "relative_margin"])
    def test_a_margin_needs_the_positives_scores(self, margin):
        rows = np.array([[4, 7]])
        with pytest.raises(ValueError, match=f"{margin} compares .* expected positive_scores, found None"):
            build_pool(descending(rows), rows, judge([7]), depth=2, **{margin: 0.1})

    def test_what_does_not_fit_raises_an_error(self):
        rows = np.array([[4, 7]])
        scores = descending(rows)
        with pytest.raises(ValueError, match="2 queries have a positive, but 1 queries were searched"):
            build_pool(scores, rows, judge([7], [4]), depth=2)
        with pytest.raises(
            ValueError, match=r"positive_scores has shape \(1, 2\), the padded positives \(1, 1\)"
        ):
            build_pool(scores, rows, judge([7]), depth=2, positive_scores=np.zeros((1, 2)))
        with pytest.raises(ValueError, match=r"positive_scores\[0, 0\] is nan"):
            build_pool(scores, rows, judge([7]), depth=2, positive_scores=np.array([[np.nan]]))
        with pytest.raises(ValueError, match="text_keys has 5 entries, but passage row 7 occurs"):
            build_pool(scores, rows, judge([7]), depth=2, text_keys=np.arange(5))
        with pytest.raises(ValueError, match="expected bool"):
            build_pool(scores, rows, judge([7]), depth=2, answer_hits=np.zeros((1, 2)))

    def test_text_keys_ignore_case_and_white_space_only(self):
        keys = passage_text_keys(["The  Cat\n", "the cat", "the cat.", ""])
        assert keys.dtype == np.int64
        assert keys[0] == keys[1]
        assert len(set(keys.tolist())) == 3


class TestFolder:
    rows = np.array([[4, 7, 2], [7, 4, 3]])

    def build(self, folder, **options) -> CandidatePool:
        options = {"positive_scores": [[0.5, 0], [0.4, 0.3]], "fingerprint": "abc", "round": 2} | options
        return build_pool(
            descending(self.rows), self.rows, judge([7], [4, 3]), depth=3, folder=folder, **options
        )

    def test_what_is_saved_is_opened_as_a_shared_map(self, tmp_path):
        in_memory = self.build(None)
        self.build(tmp_path / "pool")
        pool = CandidatePool.open(tmp_path / "pool", fingerprint="abc")
        assert isinstance(pool.passage_rows, np.memmap)
        assert isinstance(pool.scores, np.memmap)
        for name in ("query_rows", "passage_rows", "scores", "positive_rows", "positive_scores"):
            np.testing.assert_array_equal(getattr(pool, name), getattr(in_memory, name))
        assert (pool.dropped, pool.round, pool.fingerprint) == ({"positive": 3}, 2, "abc")
        assert (len(pool), pool.depth) == (2, 3)

    def test_saving_again_replaces_and_leaves_nothing_behind(self, tmp_path):
        first = self.build(tmp_path / "pool")
        self.build(tmp_path / "pool", round=3, fingerprint="def")
        assert CandidatePool.open(tmp_path / "pool").round == 3
        assert [path.name for path in tmp_path.iterdir()] == ["pool"]
        assert first.passage_rows[0].tolist() == [4, 2, -1]  # a map that is open stays readable

    def test_depth_zero_holds_positives_alone(self, tmp_path):
        pool = build_pool(np.zeros((2, 0)), np.zeros((2, 0), dtype=np.int64), judge([7], [4, 3]), depth=0)
        pool.save(tmp_path / "pool")
        pool = CandidatePool.open(tmp_path / "pool")
        assert pool.positive_rows.tolist() == [[7, -1], [3, 4]]
        assert pool_statistics(pool)["candidates"] == 0
        rows, mask = sample_negatives(pool, np.arange(2), 3, seed=0, positions=np.arange(2))
        assert rows.shape == (2, 3) and not mask.any()

    def test_another_fingerprint_raises_an_error(self, tmp_path):
        self.build(tmp_path / "pool")
        with pytest.raises(ValueError, match=r"fingerprint abc, expected xyz.*build the pool again"):
            CandidatePool.open(tmp_path / "pool", fingerprint="xyz")

    def test_an_incomplete_folder_raises_an_error(self, tmp_path):
        self.build(tmp_path / "pool")
        (tmp_path / "pool" / "meta.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"meta.json: no such file.*is not a candidate pool"):
            CandidatePool.open(tmp_path / "pool")

    def test_another_array_raises_an_error(self, tmp_path):
        self.build(tmp_path / "pool")
        np.save(tmp_path / "pool" / "scores.npy", np.zeros((2, 2), dtype=np.float32))
        with pytest.raises(ValueError, match=r"scores.npy: the file is damaged or was replaced"):
            CandidatePool.open(tmp_path / "pool")

    def test_another_format_raises_an_error(self, tmp_path):
        self.build(tmp_path / "pool")
        path = tmp_path / "pool" / "meta.json"
        write_json(path, read_json(path) | {"format": 0})
        with pytest.raises(ValueError, match="field format is 0, expected 1"):
            CandidatePool.open(tmp_path / "pool")


class TestCounterUniform:
    def test_depends_on_seed_position_and_column_alone(self):
        positions = np.arange(1000)
        whole = counter_uniform(3, positions, 20)
        np.testing.assert_array_equal(whole[17::8], counter_uniform(3, positions[17::8], 20))
        np.testing.assert_array_equal(whole[:, :5], counter_uniform(3, positions, 5))
        for other in (counter_uniform(4, positions, 20), counter_uniform(3, positions, 20, stream=1)):
            assert not np.isin(other, whole).any()

    @pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**70 + 3])
    def test_is_uniform_in_both_directions(self, seed):
        numbers = counter_uniform(seed, np.arange(4000), 50)
        assert numbers.min() > 0 and numbers.max() < 1
        bins = np.bincount((numbers * 100).astype(int).ravel(), minlength=100)
        assert_drawn_from(bins, np.full(100, 0.01))
        # Neither neighbouring columns, nor neighbouring positions, nor neighbouring seeds go together.
        error = 5 / np.sqrt(numbers.size)
        for a, b in [
            (numbers[:, 1:], numbers[:, :-1]),
            (numbers[1:], numbers[:-1]),
            (numbers, counter_uniform(seed + 1, np.arange(4000), 50)),
        ]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < error

    def test_stays_inside_at_the_largest_hash(self, monkeypatch):
        monkeypatch.setattr(
            "hf_ar2.training_lists.draws._mix", lambda x: np.full_like(x, np.iinfo(np.uint64).max)
        )
        assert counter_uniform(0, np.arange(1), 1).item() < 1


@dataclass(frozen=True)
class Lists:
    """Many lists of one query, by number."""

    count: int

    @property
    def arguments(self) -> dict:
        return {
            "indices": np.zeros(self.count, dtype=np.int64),
            "positions": np.arange(self.count),
            "seed": 5,
        }


class TestNegatives:
    scores = np.array([2.0, 1.5, 1.0, 0.5, 0.0])

    @pytest.mark.parametrize("sampler", ["uniform", "top", "simans"])
    def test_are_different_candidates(self, sampler):
        rows, mask = sample_negatives(pool_of(self.scores), n=4, sampler=sampler, **Lists(200).arguments)
        assert rows.dtype == np.int64 and mask.all()
        assert all(len(set(row)) == 4 for row in rows.tolist())
        assert np.isin(rows, np.arange(100, 105)).all()

    @pytest.mark.parametrize("sampler", ["uniform", "top", "simans"])
    def test_short_pools_are_padded_under_the_mask_never_by_repetition(self, sampler):
        pool = pool_of(self.scores, copies=3)
        pool.passage_rows[1, 2:] = -1
        pool.passage_rows[2] = -1
        rows, mask = sample_negatives(pool, np.arange(3), 7, seed=0, positions=np.arange(3), sampler=sampler)
        assert mask.sum(axis=1).tolist() == [5, 2, 0]
        assert [sorted(row[real]) for row, real in zip(rows, mask, strict=True)] == [
            [100, 101, 102, 103, 104],
            [100, 101],
            [],
        ]
        assert (rows[~mask] == -1).all()
        assert not np.diff(mask.astype(int), axis=1).max() > 0  # real entries first

    def test_top_takes_the_first(self):
        rows, _ = sample_negatives(pool_of(self.scores), n=3, sampler="top", **Lists(2).arguments)
        assert rows.tolist() == [[100, 101, 102]] * 2

    def test_uniform_draws_every_candidate_and_every_pair_alike(self):
        rows, _ = sample_negatives(pool_of(self.scores), n=2, **Lists(20_000).arguments)
        pairs = np.bincount((rows[:, 0] - 100) * 5 + rows[:, 1] - 100, minlength=25).reshape(5, 5)
        assert np.diag(pairs).sum() == 0
        assert_drawn_from(pairs[~np.eye(5, dtype=bool)], np.full(20, 0.05))

    @pytest.mark.parametrize(("a", "b"), [(0.5, 0.0), (2.0, 0.7), (0.0, 0.0)])
    def test_simans_draws_from_its_softmax(self, a, b):
        pool = pool_of(self.scores, positive_score=1.2)
        rows, _ = sample_negatives(
            pool, n=1, sampler="simans", simans_a=a, simans_b=b, **Lists(20_000).arguments
        )
        weights = np.exp(-a * np.square(self.scores - np.float32(1.2) - b))
        assert_drawn_from(np.bincount(rows[:, 0] - 100, minlength=5), weights / weights.sum())

    def test_simans_draws_on_without_replacement(self):
        """The second draw follows the softmax over what the first one left."""
        pool = pool_of(self.scores, positive_score=1.2)
        rows, _ = sample_negatives(pool, n=2, sampler="simans", simans_a=1.0, **Lists(40_000).arguments)
        weights = np.exp(-np.square(self.scores - np.float32(1.2)))
        second = rows[rows[:, 0] == 101, 1] - 100
        weights[1] = 0
        counts = np.bincount(second, minlength=5)
        assert counts[1] == 0
        others = [0, 2, 3, 4]
        assert_drawn_from(counts[others], weights[others] / weights.sum())

    def test_simans_does_not_underflow(self):
        """A thousand from the positive every weight is exp(-500,000); the nearest still come first."""
        pool = pool_of(np.array([3000.0, 2000.0, 1001.0, 1000.0, -1000.0]), positive_score=0.0)
        rows, mask = sample_negatives(pool, n=3, sampler="simans", **Lists(50).arguments)
        assert mask.all()
        assert (rows[:, 0] == 103).sum() + (rows[:, 0] == 104).sum() == 50
        assert (rows[:, 2] == 102).all()

    def test_simans_is_measured_from_the_lists_own_positive(self):
        pool = pool_of(np.array([9.0, 1.0]))
        pool.positive_rows = np.array([[7, 8]], dtype=np.int32)
        pool.positive_scores = np.array([[9.0, 1.0]], dtype=np.float32)
        for column, nearest in ((0, 100), (1, 101)):
            rows, _ = sample_negatives(
                pool,
                n=1,
                sampler="simans",
                positive_columns=np.full(50, column),
                **Lists(50).arguments,
            )
            assert (rows == nearest).all()

    def test_simans_wants_the_positives_scores(self):
        pool = pool_of(self.scores, positive_score=np.nan)
        with pytest.raises(ValueError, match="SimANS needs every positive's score"):
            sample_negatives(pool, n=1, sampler="simans", **Lists(1).arguments)

    @pytest.mark.parametrize("sampler", ["uniform", "simans"])
    def test_do_not_depend_on_the_batch(self, sampler):
        pool = pool_of(self.scores, copies=12)
        indices, positions = np.arange(12), np.arange(100, 112)
        whole, _ = sample_negatives(pool, indices, 3, seed=1, positions=positions, sampler=sampler)
        for part in (slice(0, 1), slice(3, 9), slice(11, None, -2)):
            rows, _ = sample_negatives(
                pool, indices[part], 3, seed=1, positions=positions[part], sampler=sampler
            )
            np.testing.assert_array_equal(rows, whole[part])

    def test_fewer_are_a_prefix_of_more(self):
        pool = pool_of(self.scores)
        more, _ = sample_negatives(pool, n=4, **Lists(20).arguments)
        fewer, _ = sample_negatives(pool, n=2, **Lists(20).arguments)
        np.testing.assert_array_equal(fewer, more[:, :2])

    def test_an_unknown_sampler_raises_an_error(self):
        with pytest.raises(ValueError, match="sampler is 'hard'; expected one of uniform, top, simans"):
            sample_negatives(pool_of(self.scores), n=1, sampler="hard", **Lists(1).arguments)

    def test_one_position_per_list(self):
        with pytest.raises(ValueError, match=r"indices has shape \(2,\), positions \(3,\)"):
            sample_negatives(pool_of(self.scores), np.zeros(2), 1, seed=0, positions=np.arange(3))


class TestPositives:
    def pool(self) -> CandidatePool:
        pool = pool_of(np.array([1.0]), copies=2)
        pool.positive_rows = np.array([[7, 8, 9], [7, -1, -1]], dtype=np.int32)
        return pool

    def test_are_drawn_evenly_among_the_querys_own(self):
        indices = np.tile([0, 1], 6000)
        columns = sample_positive_columns(self.pool(), indices, seed=0, positions=np.arange(12_000))
        assert_drawn_from(np.bincount(columns[indices == 0], minlength=3), np.full(3, 1 / 3))
        assert (columns[indices == 1] == 0).all()

    def test_the_first_on_request(self):
        columns = sample_positive_columns(
            self.pool(), np.zeros(50), seed=0, positions=np.arange(50), first=True
        )
        assert (columns == 0).all()

    def test_padded_side_by_side(self):
        assert padded_positives(judge([7], [4, 3])).tolist() == [[7, -1], [3, 4]]


class TestRandomPassages:
    def test_are_different_and_avoid_the_excluded(self):
        exclude = np.tile([[3, 0, -1, 3, 19]], (500, 1))
        rows = sample_random_passages(20, 17, seed=0, positions=np.arange(500), exclude=exclude)
        assert (np.sort(rows, axis=1) == np.setdiff1d(np.arange(20), [0, 3, 19])).all()

    def test_are_even(self):
        exclude = np.tile([[2, 4]], (20_000, 1))
        rows = sample_random_passages(7, 2, seed=0, positions=np.arange(20_000), exclude=exclude)
        pairs = np.bincount(rows[:, 0] * 7 + rows[:, 1], minlength=49).reshape(7, 7)
        assert pairs[[2, 4]].sum() == pairs[:, [2, 4]].sum() == np.diag(pairs).sum() == 0
        assert_drawn_from(pairs[pairs > 0], np.full(20, 0.05))

    def test_a_small_corpus_gives_what_it_has(self):
        rows = sample_random_passages(
            3, 4, seed=0, positions=np.arange(9), exclude=np.ones((9, 1), dtype=int)
        )
        assert (np.sort(rows, axis=1) == [-1, -1, 0, 2]).all()
        assert (rows[:, 2:] == -1).all()

    def test_do_not_depend_on_the_batch(self):
        positions, exclude = np.arange(10), np.arange(20).reshape(10, 2)
        whole = sample_random_passages(1000, 5, seed=0, positions=positions, exclude=exclude)
        part = sample_random_passages(1000, 5, seed=0, positions=positions[4:7], exclude=exclude[4:7])
        np.testing.assert_array_equal(part, whole[4:7])

    def test_rows_outside_the_corpus_raise_an_error(self):
        with pytest.raises(ValueError, match="exclude holds row 5; the corpus has rows 0 to 4"):
            sample_random_passages(5, 1, seed=0, positions=np.arange(1), exclude=np.array([[5]]))


class TestStatistics:
    def test_say_how_large_and_how_hard(self):
        pool = CandidatePool(
            query_rows=np.arange(3),
            passage_rows=np.array([[1, 2], [3, -1], [-1, -1]], dtype=np.int32),
            scores=np.array([[0.75, 0.5], [0.25, -np.inf], [-np.inf, -np.inf]], dtype=np.float32),
            positive_rows=np.array([[7, 8], [9, -1], [5, -1]], dtype=np.int32),
            positive_scores=np.array([[0.25, 0.5], [0.75, -np.inf], [0.9, -np.inf]], dtype=np.float32),
        )
        assert pool_statistics(pool) == {
            "queries": 3,
            "candidates": 1,
            "short_pools": 2,
            "empty_pools": 1,
            "top_score": 0.5,
            "positive_score": 0.625,
            "top_margin": 0.125,
            "outscored": 0.5,
        }

    def test_without_the_positives_scores_there_is_no_margin(self):
        rows = np.array([[4, 7]])
        statistics = pool_statistics(build_pool(descending(rows), rows, judge([7]), depth=2))
        assert "top_margin" not in statistics
