"""Run and qrels files there and back, what trec_eval makes of them, errors that name the line; answers."""

from __future__ import annotations

import gzip
import io
import unicodedata

import datasets
import numpy as np
import pytest
import regex

from hf_ar2.collections.judgments import Judgments
from hf_ar2.evaluation import columns
from hf_ar2.evaluation.answers import answer_hits, has_answer, token_string
from hf_ar2.evaluation.metrics import evaluate_rankings, hit_rate
from hf_ar2.evaluation.runs import _replacing, read_qrels, read_run, write_qrels, write_run

QUERIES = ["q0", "q1", "q2"]
PASSAGES = ["d0", "d1", "d%2", "d3"]
ROWS = np.array([[3, 0, 2], [1, -1, -1]])
SCORES = np.array([[1 / 3, 1e-7, -12345.678], [7, -np.inf, -np.inf]], np.float32)


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_is_read_as_it_was_written(tmp_path, name):
    write_run(tmp_path / name, ["q2", "q0"], PASSAGES, ROWS, SCORES, "dpr%s")
    run = read_run(tmp_path / name, QUERIES, PASSAGES)
    assert run.tag == "dpr%s"
    assert run.query_rows.tolist() == [0, 2]  # ascending, whatever the order in the file
    np.testing.assert_array_equal(run.passage_rows, ROWS[::-1])
    np.testing.assert_array_equal(run.scores, SCORES[::-1])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_lines_of_a_run(tmp_path):
    write_run(tmp_path / "run", ["q0", "q1"], PASSAGES, ROWS, SCORES, "mine")
    assert (tmp_path / "run").read_text().splitlines() == [
        "q0 Q0 d3 1 0.333333343 mine",
        "q0 Q0 d0 2 1.00000001e-07 mine",
        "q0 Q0 d%2 3 -12345.6777 mine",
        "q1 Q0 d1 1 7 mine",
    ]


def test_equal_runs_give_equal_compressed_files(tmp_path):
    for name in ("a.gz", "b.gz"):
        write_run(tmp_path / name, ["q0", "q1"], PASSAGES, ROWS, SCORES)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_the_rank_column_decides_the_order(tmp_path):
    text = "q1\tQ0\td0  2 0.9 x\nq0 Q0 d3 1 5 x\nq1 Q0 d1 1 0.9 x\n"
    (tmp_path / "run").write_text(text)
    run = read_run(tmp_path / "run", QUERIES, PASSAGES)
    assert run.passage_rows.tolist() == [[3, -1], [1, 0]], "of tied passages the rank decides"
    np.testing.assert_allclose(run.scores, [[5, -np.inf], [0.9, 0.9]])


@pytest.mark.parametrize(
    ("ranks", "problem"),
    [
        ("0000", "lines 1 and 2 have equal ranks"),
        ("1111", "lines 1 and 2 have equal ranks"),
        ("1123", "lines 1 and 2 have equal ranks"),
        ("1234", "lines 1 and 2 have ranks that contradict their scores"),
        ("4321", "lines 2 and 3 have ranks that contradict their scores"),
    ],
)
def test_ranks_that_say_nothing(tmp_path, caplog, ranks, problem):
    """The order is trec_eval's: by score, tied passages by id, descending."""
    scores = {"d1": 0.1, "d3": 0.9, "d0": 0.5, "d%2": 0.5}
    lines = (
        f"q1 Q0 {id} {rank} {score} x\n" for rank, (id, score) in zip(ranks, scores.items(), strict=True)
    )
    (tmp_path / "run").write_text("".join(lines))
    run = read_run(tmp_path / "run", QUERIES, PASSAGES)
    assert [PASSAGES[row] for row in run.passage_rows[0]] == ["d3", "d0", "d%2", "d1"]
    assert f"{problem}, so the run is ordered by score" in caplog.text


def test_byte_order_marks_blank_lines_and_grades_as_decimals(tmp_path):
    (tmp_path / "run").write_bytes(b"\xef\xbb\xbf\n  \nq1 Q0 d1 1.0 2.0 x\r\n\r\nq1 Q0 d0 2.0 1.0 x\n\n")
    assert read_run(tmp_path / "run", QUERIES, PASSAGES).passage_rows.tolist() == [[1, 0]]
    with gzip.open(tmp_path / "qrels.gz", "wb") as file:
        file.write(b"\xef\xbb\xbfq1 0 d1 2.0\n\nq1 0 d0 0.0\n")
    judgments = read_qrels(tmp_path / "qrels.gz", QUERIES, PASSAGES)
    assert judgments.of(0)[1].tolist() == [0, 2]
    for grade in ("0.5", "nan", "inf", "yes"):
        (tmp_path / "qrels").write_text(f"\nq1 0 d1 1\n\nq1 0 d0 {grade}\n")
        with pytest.raises(ValueError, match=f"qrels:4: relevance is '{grade}'; expected a whole number"):
            read_qrels(tmp_path / "qrels", QUERIES, PASSAGES)
    (tmp_path / "qrels").write_text("\nq1 0 d1 1\n\nq1 0 d1 1\n")
    with pytest.raises(ValueError, match="qrels:4: passage 'd1' is judged a second time"):
        read_qrels(tmp_path / "qrels", QUERIES, PASSAGES)


def test_the_ids_of_a_dataset_are_read_together(tmp_path, monkeypatch):
    queries, passages = [f"q{n}" for n in range(3)], [f"d{n}" for n in range(9)]
    rows, scores = np.array([[8, 0, -1], [3, 8, 1], [-1, -1, -1]]), np.array([[3.0, 2, 1]] * 3)
    judgments = Judgments.from_triples([0, 2], [8, 1], [1, 0])
    write_run(tmp_path / "lists.trec", queries, passages, rows, scores)
    write_qrels(tmp_path / "lists.qrels", queries, passages, judgments)
    read, column = [], datasets.Dataset.from_dict({"id": passages})["id"]
    of_column = type(column).__getitem__

    def counted(self, key):
        read.append(key)
        return of_column(self, key)

    monkeypatch.setattr(type(column), "__getitem__", counted)
    write_run(tmp_path / "column.trec", queries, column, rows, scores)
    write_qrels(tmp_path / "column.qrels", queries, column, judgments)
    assert read == [[0, 1, 3, 8], [8, 1]]
    for kind in ("trec", "qrels"):
        assert (tmp_path / f"column.{kind}").read_text() == (tmp_path / f"lists.{kind}").read_text()


def test_an_ms_marco_run(tmp_path):
    write_run(tmp_path / "run.tsv", ["q0", "q1"], PASSAGES, ROWS, SCORES, format="ms-marco")
    assert (tmp_path / "run.tsv").read_text() == "q0\td3\t1\nq0\td0\t2\nq0\td%2\t3\nq1\td1\t1\n"
    run = read_run(tmp_path / "run.tsv", QUERIES, PASSAGES)
    assert run.passage_rows.tolist() == ROWS.tolist()
    np.testing.assert_allclose(run.scores[0], [1, 1 / 2, 1 / 3])


def test_a_run_is_lined_up_with_judgments(tmp_path):
    """A judged query that the run lacks has an empty list, and so counts as 0."""
    write_run(tmp_path / "run", ["q0", "q2"], PASSAGES, ROWS, SCORES)
    judgments = Judgments.from_triples([1, 2], [0, 1], [1, 1])
    run = read_run(tmp_path / "run", QUERIES, PASSAGES).of_queries(judgments.query_rows)
    assert run.passage_rows.tolist() == [[-1, -1, -1], [1, -1, -1]]
    assert evaluate_rankings(run.passage_rows, judgments, ["mrr@3"])["mrr@3"].tolist() == [0.0, 1.0]


def test_an_empty_run(tmp_path):
    (tmp_path / "run").write_text("")
    run = read_run(tmp_path / "run", QUERIES, PASSAGES)
    assert run.passage_rows.shape == (0, 0)
    assert run.of_queries(np.array([0, 2])).passage_rows.shape == (2, 0)


def test_pytrec_eval_reads_both_files_and_agrees(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(0)
    query_ids, passage_ids = [f"q{i}" for i in range(20)], [f"d{i}" for i in range(60)]
    rows = rng.random((20, 60)).argsort(axis=1)[:, :30]
    scores = -np.sort(-rng.random((20, 30)).astype(np.float32), axis=1)
    judgments = Judgments.from_triples(
        np.repeat(np.arange(20), 4), np.tile([3, 9, 27, 50], 20), [1, 2, 0, 1] * 20
    )
    write_run(tmp_path / "run", query_ids, passage_ids, rows, scores)
    write_qrels(tmp_path / "qrels", query_ids, passage_ids, judgments)
    with open(tmp_path / "run") as run, open(tmp_path / "qrels") as qrels:
        evaluator = pytrec_eval.RelevanceEvaluator(
            pytrec_eval.parse_qrel(qrels), {"ndcg_cut_10", "recall_30"}
        )
        theirs = evaluator.evaluate(pytrec_eval.parse_run(run))
    ours = evaluate_rankings(rows, judgments, ["ndcg@10", "recall@30"])
    np.testing.assert_allclose(ours["ndcg@10"], [theirs[q]["ndcg_cut_10"] for q in query_ids], atol=1e-9)
    np.testing.assert_allclose(ours["recall@30"], [theirs[q]["recall_30"] for q in query_ids], atol=1e-9)


@pytest.mark.parametrize("name", ["qrels.txt", "qrels.txt.gz"])
def test_qrels_are_read_as_they_were_written(tmp_path, name):
    judgments = Judgments.from_triples([2, 0, 2], [1, 3, 0], [1, 2, 0])
    write_qrels(tmp_path / name, QUERIES, PASSAGES, judgments)
    again = read_qrels(tmp_path / name, QUERIES, PASSAGES)
    for field in ("query_rows", "offsets", "passage_rows", "relevance"):
        np.testing.assert_array_equal(getattr(again, field), getattr(judgments, field))
    opened = gzip.open(tmp_path / name, "rt") if name.endswith("gz") else open(tmp_path / name)
    with opened as file:
        assert file.read() == "q0 0 d3 2\nq2 0 d0 0\nq2 0 d1 1\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d1 1 0.5", r":3: found 5 columns; expected 6: query Q0 passage rank score tag"),
        ("q1 Q0 d1 first 0.5 x", r":3: rank is 'first'; expected a whole number"),
        ("q1 Q0 d1 99999999999999999999 0.5 x", r":3: rank is '99999999999999999999'"),
        ("q1 Q0 d1 1 high x", r":3: score is 'high'; expected a number"),
        ("q9 Q0 d1 1 0.5 x", r":3: unknown query id 'q9': it is not among the collection's 3 query ids"),
        ("q1 Q0 d9 1 0.5 x", r":3: unknown passage id 'd9'"),
        ("q0 Q0 d1 7 0.5 x", r":3: passage 'd1' is retrieved a second time for query 'q0'"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_bad_line_is_named(tmp_path, monkeypatch, line, message, block):
    monkeypatch.setattr(columns, "_CHARACTERS_PER_BLOCK", block)
    (tmp_path / "run").write_text(f"q0 Q0 d0 1 0.9 x\nq0 Q0 d1 2 0.8 x\n{line}\nq2 Q0 d1 1 0.5 x\n")
    with pytest.raises(ValueError, match=f"run{message}"):
        read_run(tmp_path / "run", QUERIES, PASSAGES)


def test_other_files_that_are_no_runs(tmp_path):
    (tmp_path / "run").write_text("q0,d0,1\n")
    with pytest.raises(
        ValueError, match=r"run:1: found 1 column; expected 'query_id Q0 passage_id rank score tag'"
    ):
        read_run(tmp_path / "run", QUERIES, PASSAGES)
    (tmp_path / "qrels").write_text("q0 0 d0 1\nq0 0 d0 2\n")
    with pytest.raises(ValueError, match=r"qrels:2: passage 'd0' is judged a second time for query 'q0'"):
        read_qrels(tmp_path / "qrels", QUERIES, PASSAGES)
    (tmp_path / "latin").write_bytes("q0 0 d\xe9 1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin: not UTF-8 text"):
        read_qrels(tmp_path / "latin", QUERIES, PASSAGES)


def test_ids_that_the_format_cannot_hold_leave_no_file(tmp_path):
    good = np.array([[0]]), np.array([[1.0]])
    for query_ids, passage_ids, tag, message in [
        (["q 0"], ["d0"], "x", "query id 'q 0'"),
        (["q0"], ["d\t0"], "x", r"passage id 'd\\t0'"),
        (["q0"], [""], "x", "passage id ''"),
        (["q0"], ["d0"], "my run", "run tag 'my run'"),
    ]:
        with pytest.raises(ValueError, match=f"{message} is empty or has white space"):
            write_run(tmp_path / "run", query_ids, passage_ids, *good, tag)
    with pytest.raises(
        ValueError, match=r"needs rows and scores of one shape \[2, K\]; found \[1, 1\] and \[1, 1\]"
    ):
        write_run(tmp_path / "run", ["q0", "q1"], PASSAGES, *good)
    with pytest.raises(ValueError, match="unknown run format 'csv'"):
        write_run(tmp_path / "run", ["q0"], PASSAGES, *good, format="csv")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    write_run(tmp_path / "run", ["q0", "q1"], PASSAGES, ROWS, SCORES)
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(KeyboardInterrupt), _replacing(tmp_path / "run") as file:
        assert isinstance(file, io.TextIOWrapper)
        file.write("half a line")
        raise KeyboardInterrupt
    assert (tmp_path / "run").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def slow_has_answer(answers, text):
    """DPR's definition, token list against token list."""
    token = regex.compile(
        r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", flags=regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
    )

    def words(string):
        return [word.lower() for word in token.findall(unicodedata.normalize("NFD", string))]

    passage = words(text)
    for answer in map(words, answers):
        if answer and any(answer == passage[i : i + len(answer)] for i in range(len(passage))):
            return True
    return False


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("New York", "He moved to new york, then left.", True),
        ("art", "The party", False),
        ("U.S.", "in the U.S. Senate", True),
        ("US", "in the U.S. Senate", False),
        ("Beyoncé", "the singer BEYONCE\u0301 said", True),  # composed against decomposed
        ("İstanbul", "in i\u0307stanbul", True),
        ("ΟΔΟΣ", "η οδος μου", True),  # a final sigma
        ("東京", "東京都", False),
        ("3,000", "about 3,000 men", True),
        ("1906", "b.1906-12-09", True),
        ("", "anything", False),
        ("  ", "anything", False),
        ("a b", "a\x00b a\u00a0b", True),
        ("x", "", False),
    ],
)
def test_answers_match_as_in_dpr(answer, text, found):
    assert has_answer([answer], text) is found
    assert slow_has_answer([answer], text) is found


def test_answers_match_as_in_dpr_on_random_strings():
    rng = np.random.default_rng(0)
    alphabet = list("aAbBéE\u0301ΣσςİI.,-' \t\n9½\u200b_東\u0903")
    agreed = 0
    for _ in range(3000):
        text = "".join(rng.choice(alphabet, 14))
        answer = "".join(rng.choice(alphabet, rng.integers(1, 3)))
        assert has_answer([answer], text) == slow_has_answer([answer], text), (answer, text)
        agreed += has_answer([answer], text)
    assert 200 < agreed < 2800


def test_answer_hits_tokenise_each_passage_once(monkeypatch):
    from hf_ar2.evaluation import answers as module

    texts = ["Paris is in France.", "Rome is in Italy.", "Nothing here.", "never retrieved"]
    retrieved = np.array([[2, 0, 1], [1, 0, -1], [2, -1, -1]])
    wanted = [["rome", "Paris"], ["Italy"], []]
    expected = [
        [has_answer(a, texts[row]) if row >= 0 else False for row in rows]
        for rows, a in zip(retrieved.tolist(), wanted, strict=True)
    ]
    tokenised = []
    monkeypatch.setattr(module, "token_string", lambda text: tokenised.append(text) or token_string(text))
    cache: dict[int, str] = {}
    hits = answer_hits(retrieved, wanted, texts, cache)
    assert hits.dtype == bool and hits.tolist() == expected
    assert [tokenised.count(text) for text in texts] == [1, 1, 1, 0]
    answer_hits(retrieved, wanted, texts, cache)
    assert [tokenised.count(text) for text in texts] == [1, 1, 1, 0]
    assert hit_rate(hits, 2).tolist() == [1.0, 1.0, 0.0]


def test_answers_that_are_no_lists_raise_an_error():
    with pytest.raises(ValueError, match="answers of query 0 are the string 'Paris'"):
        answer_hits(np.array([[0]]), ["Paris"], ["It is Paris."])
    with pytest.raises(ValueError, match="found 2 answer lists for rankings of shape"):
        answer_hits(np.array([[0]]), [["a"], ["b"]], ["It is Paris."])
