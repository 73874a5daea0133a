"""The tables and the figure at the end of a run."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_recipe

from hf_ar2.evaluation.significance import PairedTest
from hf_ar2.evaluation.tables import NAN_NOTE, display_name, format_p, format_table, stage_table
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.runner import run_recipe
from hf_ar2.report.plot import _running_mean, plot_report

METRICS = {
    "zero-shot": {"test": {"retriever": {"mrr@10": 0.25, "ndcg@10": 0.312, "recall@100": 0.781}}},
    "warm-up": {
        "dev": {"retriever": {"mrr@10": 0.481}},
        "test": {
            "retriever": {"mrr@10": 0.494, "ndcg@10": 0.552, "recall@100": 0.93},
            "pipeline": {"mrr@10": 0.537},
        },
    },
    "ar2": {
        "test": {
            "retriever": {"mrr@10": 0.516, "ndcg@10": 0.571, "recall@100": 0.941},
            "ranker": {"mrr@10": 0.551},
            "pipeline": {"mrr@10": 0.551},
        }
    },
}
TESTS = {
    "warm-up": {
        "test": {
            "retriever": PairedTest(0.244, 0.0001, 210, 35, 203),
            "pipeline": PairedTest(0.043, 0.003, 110, 65, 273),
        }
    },
    "ar2": {
        "test": {
            "retriever": PairedTest(0.022, 0.04, 80, 61, 307),
            "pipeline": PairedTest(0.035, 0.06, 9, 7, 432),
            "pipeline_before": PairedTest(0.014, 0.03, 60, 40, 348),
        }
    },
}


def test_the_table_of_a_run():
    assert stage_table(METRICS, TESTS).split("\n\n* p <")[0] == (
        "test: 448 queries\n"
        "\n"
        "stage      retriever MRR@10  nDCG@10  Recall@100  pipeline MRR@10\n"
        "─────────────────────────────────────────────────────────────────\n"
        "zero-shot         0.250        0.312       0.781            –\n"
        "warm-up           0.494 ***    0.552       0.930        0.537 **\n"
        "ar2               0.516 *      0.571       0.941        0.551\n"
        "\n"
        "MRR@10 compared                    change  significance  better  worse  equal\n"
        "─────────────────────────────────────────────────────────────────────────────\n"
        "retriever: warm-up over zero-shot  +0.244  p < .001 ***     210     35    203\n"
        "pipeline over retriever: warm-up   +0.043  p = .003 **      110     65    273\n"
        "retriever: ar2 over warm-up        +0.022  p = .040 *        80     61    307\n"
        "pipeline: ar2 over warm-up         +0.014  p = .030 *        60     40    348\n"
        "pipeline over retriever: ar2       +0.035  p = .060           9      7    432"
    )


def test_a_run_read_back_from_json_gives_the_same_table():
    tests = {
        stage: {
            split: {k: dataclasses.asdict(test) for k, test in systems.items()}
            for split, systems in splits.items()
        }
        for stage, splits in TESTS.items()
    }
    metrics, tests = json.loads(json.dumps([METRICS, tests]))
    assert stage_table(metrics, tests) == stage_table(METRICS, TESTS)


def test_a_table_keeps_to_the_terminal_and_explains_its_marks():
    for width in (60, 80, 120):
        table = stage_table(METRICS, TESTS, width=width)
        assert max(map(len, table.splitlines())) <= max(width, 65)  # 65: the numbers' own width
        assert "* p < .05" in table and "stage before" in " ".join(table.split())
    assert "p <" not in stage_table(METRICS)  # no tests, no legend
    last = list(METRICS)[-1]
    assert (
        stage_table(METRICS, served=last).count("(served)")
        == 1
        == stage_table(METRICS, served=last).count(f"{last} (served)")
    )


def test_a_table_shows_the_metrics_that_it_is_given():
    table = stage_table(METRICS, TESTS, names=["recall@100", "mrr@10"])
    assert "retriever Recall@100  MRR@10  pipeline Recall@100" in table and "ndcg" not in table.lower()
    assert re.search(r"0\.941 \* +0\.516", table) and "Recall@100 compared" in table


@pytest.mark.parametrize("recipe", ["natural-questions", "trivia-qa"])
@pytest.mark.slow
def test_recipes_with_answers_alone_end_with_their_own_metrics(
    recipe, tiny_collection, home, tmp_path, capsys
):
    """The evaluation of the shipped recipes over DPR's files: no number is missing, and hit rates are named so."""
    shipped = yaml.safe_load((Path(__file__).parents[1] / f"recipes/ar2/{recipe}.yaml").read_text())
    names = shipped["evaluation"]["metrics"]
    rows = {"before": {"retriever": "light"}, "after": {"retriever": "light", "ranker": "heavy"}}
    tiny = {
        "name": "tiny",
        "collection": str(write_dpr(tiny_collection, tmp_path / "data")),
        "models": {"light": {"model": str(home / "retriever")}, "heavy": {"model": str(home / "ranker")}},
        "args": {"use_cpu": True, "bf16": False, "disable_tqdm": True},
        "stages": {},
        "evaluation": {**shipped["evaluation"], "rows": rows},
    }
    path = write_recipe(tmp_path / "tiny.yaml", tiny)
    run = run_recipe(load_recipe(path, {"output_dir": str(tmp_path / "run")}))
    shown = capsys.readouterr().out
    assert re.search(r"^stage +retriever Hit@5 +Hit@1 ", shown, re.M) and "MRR" not in shown
    assert "pipeline Hit@5" in shown and "Hit@5 compared" in shown
    measured = json.loads((run / "metrics.json").read_text())["after"]["test"]["retriever"]
    values = [f"{measured[name]:.3f}" for name in ("hit_rate@5", *(n for n in names if n != "hit_rate@5"))]
    line = next(line for line in shown.splitlines() if line.startswith("after"))
    assert [cell for cell in line.split() if cell[0].isdigit()][: len(values)] == values


def write_dpr(collection, folder: Path) -> Path:
    """The tiny collection as DPR's downloads: the test questions have an answer, the object that they name."""
    folder.mkdir()
    passages = {row["id"]: row for row in collection.corpus}
    lines = ["id\ttext\ttitle", *(f"{row['id']}\t{row['text']}\t{row['title']}" for row in passages.values())]
    (folder / "psgs_w100.tsv").write_text("\n".join(lines) + "\n")
    texts = dict(zip(collection.queries["id"], collection.queries["text"], strict=True))

    def answer(query: str) -> list[str]:
        return [texts[query].split()[-2]]  # "where does the otter hide the lantern ?"

    for split in ("train", "dev"):
        asked = [
            {
                "question": texts[row["query_id"]],
                "answers": answer(row["query_id"]),
                "positive_ctxs": [{**passages[row["passage_id"]], "passage_id": row["passage_id"]}],
                "hard_negative_ctxs": [],
                "negative_ctxs": [],
            }
            for row in collection.qrels[split]
        ]
        (folder / f"biencoder-nq-{split}.json").write_text(json.dumps(asked, indent=4))
    tested = [f"{texts[query]}\t{answer(query)}" for query in collection.qrels["test"]["query_id"]]
    (folder / "nq-test.qa.csv").write_text("\n".join(tested) + "\n")
    return folder


def test_a_worse_stage_is_shown_as_worse():
    tests = {"ar2": {"test": {"retriever": PairedTest(-0.01, 0.0002, 3, 20, 25)}}}
    table = stage_table(METRICS, tests)
    assert "0.516 ▼▼▼" in table and "-0.010  p < .001 ▼▼▼" in table
    assert "▼, ▼▼, ▼▼▼: the same, for a loss" in table
    assert "*" not in table.split("\n\n* p <")[0], "a loss has no star"


def test_pipelines_are_compared_with_the_last_pipeline_before_them():
    """A row between them without a pipeline is passed over; a run from before that test shows what it has."""
    metrics = {"a": METRICS["warm-up"], "b": METRICS["zero-shot"], "c": METRICS["ar2"]}
    test = PairedTest(0.014, 0.03, 60, 40, 348)
    assert "pipeline: c over a " in stage_table(metrics, {"c": {"test": {"pipeline_before": test}}})
    assert "pipeline: " not in stage_table(metrics, {"c": {"test": {"pipeline": test}}})


def test_markdown():
    lines = stage_table(METRICS, TESTS, markdown=True).splitlines()
    assert lines[2:5] == [
        "| stage | retriever MRR@10 | nDCG@10 | Recall@100 | pipeline MRR@10 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| zero-shot | 0.250 | 0.312 | 0.781 | – |",
    ]
    assert lines[-1].startswith(r"\* p < .05, \*\* p < .01")
    assert format_table([["a|b", 1]], ["name", "n"], markdown=True).splitlines()[-1] == r"| a\|b | 1 |"


def test_a_split_that_no_stage_has():
    assert "zero-shot" not in stage_table(METRICS, split="dev")
    with pytest.raises(ValueError, match="no stage has the split 'validation'; splits found: dev, test"):
        stage_table(METRICS, split="validation")


def test_cells_and_alignment():
    table = format_table(
        [["a", 0.12345, 12000, None], ["bb", float("nan"), 7, "x"]], ["name", "value", "count", "note"]
    )
    assert table.splitlines() == [
        "name  value   count  note",
        "─────────────────────────",
        "a     0.123  12,000  –",
        "bb      NaN       7  x",
        "",
        "NaN: there was nothing to average, or a value was not finite.",
    ]
    assert format_table([[float("nan")]], ["a"], markdown=True).splitlines()[2:] == ["| NaN |", "", NAN_NOTE]
    assert format_table([], ["a", "b"]).splitlines() == ["a  b", "────"]
    with pytest.raises(ValueError, match="row 1 has 1 cells for the 2 columns"):
        format_table([[1, 2], [3]], ["a", "b"])


def test_long_text_is_wrapped_and_not_cut():
    words = [f"word{i}" for i in range(30)]
    table = format_table([[" ".join(words), 0.5], ["short", 0.25]], ["text", "score"], width=40)
    assert max(map(len, table.splitlines())) <= 40
    assert [word for word in table.split() if word.startswith("word")] == words


def test_a_name_longer_than_its_column_is_shown_in_full_below():
    name = "hard-negatives-of-the-second-round"
    lines = format_table([[f"{name} + BM25", 0.5], ["b", 0.25]], ["system", "MRR@10"], width=30).splitlines()
    assert max(map(len, lines[:-1])) <= 30
    assert lines[2:] == [
        "hard-negatives-of-the…   0.500",
        "+ BM25",
        "b                        0.250",
        "",
        f"hard-negatives-of-the…: {name}",
    ]
    assert f"| {name} + BM25 |" in format_table([[f"{name} + BM25"]], ["system"], markdown=True, width=30)


def test_p_values_and_names():
    values = [0.0004, 0.001, 0.0099, 0.012, 0.05, 0.16, 1.0]
    assert [format_p(p, 0.1) for p in values] == [
        "p < .001 ***",
        "p = .001 **",
        "p = .010 **",
        "p = .012 *",
        "p = .050",
        "p = .160",
        "p = 1.000",
    ]
    assert [format_p(p, -0.1) for p in values] == [format_p(p, 0.1).replace("*", "▼") for p in values]
    assert [display_name(name) for name in ("map", "recall@100")] == ["MAP", "Recall@100"]


def log_history(steps=90):
    """What the trainers of three stages log, with an evaluation and pool statistics at each round's beginning."""
    retriever = [{"step": s, "epoch": s / 30, "loss": 1.0, "loss/retriever": 3 / s} for s in range(1, steps)]
    ranker = [
        {"step": s, "epoch": s / 30, "loss/ranker": 2 / s, "ranker_accuracy": s / steps}
        for s in range(1, steps)
    ]
    rounds = [
        {
            "step": 30 * i,
            "epoch": i,
            "eval_retriever_mrr@10": 0.5,
            "eval_pipeline_mrr@10": 0.6,
            "pool/outscored": 0.4,
        }
        for i in range(3)
    ]
    game = [
        {"step": s, "epoch": s / 30, "loss/adversarial": 1.0, "loss/new": float("nan")}
        for s in range(1, steps)
    ]
    return {"retriever warm-up": retriever, "ranker warm-up": ranker, "ar2": rounds + game}


def drawn_figure(monkeypatch, *arguments, **options):
    """The matplotlib figure that plot_report saves."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    plot_report(*arguments, **options)
    return figures[0]


@pytest.mark.filterwarnings("error::UserWarning")
def test_the_figure_has_a_series_for_all_that_was_logged(tmp_path, monkeypatch):
    path = tmp_path / "run" / "report.png"
    figure = drawn_figure(monkeypatch, log_history(), METRICS, path, title="quickstart")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    stages, dev, losses, pool = figure.axes
    labels = [axes.get_legend_handles_labels()[1] for axes in figure.axes]
    assert labels == [
        ["retriever", "pipeline"],
        ["retriever", "pipeline"],
        ["retriever", "ranker", "adversarial"],  # a loss that was never finite has no line
        ["lists the ranker gets right", "pools whose top beats the positive"],
    ]
    assert [bar.get_height() for bar in stages.patches] == [0.25, 0.494, 0.516, 0.537, 0.551]
    assert dev.get_title(loc="left") == "MRR@10 per round, dev" and dev.get_xlabel() == "round"
    adversarial = next(line for line in losses.lines if line.get_label() == "adversarial")
    assert adversarial.get_xdata()[0] == 89 + 89 + 1  # stages follow each other
    assert [text.get_text() for text in pool.texts] == ["ranker warm-up", "ar2"]


def test_the_figure_has_bars_of_hybrids(tmp_path, monkeypatch):
    hybrid = {"retriever": {"mrr@10": 0.5}, "hybrid": {"mrr@10": 0.6}}
    metrics = {**METRICS, "merged": {"test": hybrid}}
    stages = drawn_figure(monkeypatch, {}, metrics, tmp_path / "report.png").axes[0]
    assert stages.get_legend_handles_labels()[1] == ["retriever", "retriever + BM25", "pipeline"]
    assert [bar.get_height() for bar in stages.patches] == [0.25, 0.494, 0.516, 0.5, 0.6, 0.537, 0.551]
    places = [bar.get_x() + bar.get_width() / 2 for bar in stages.patches]
    assert places[4] == pytest.approx(3), "between the other two"


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("history", "metrics"),
    [
        ({}, {}),
        ({"ar2": []}, {"ar2": {"test": {}}}),
        ({"ar2": [{"train_runtime": 1.0}]}, {"ar2": {"dev": {"retriever": {"mrr@10": 0.1}}}}),
        ({"ar2": [{"eval_retriever_mrr@10": 0.4, "pool/mean_margin": None}]}, {}),
        ({"ar2": [{"epoch": 1.0, "step": 3, "pool/mean_margin": -0.1}]}, METRICS),
    ],
)
def test_what_was_not_logged_is_left_out(tmp_path, history, metrics):
    plot_report(history, metrics, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


@pytest.mark.slow
def test_tables_need_no_matplotlib():
    import subprocess

    code = "import sys, hf_ar2.evaluation.tables; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_the_running_mean():
    values = np.array([1.0, 2.0, 6.0, 3.0])
    assert _running_mean(values, 1).tolist() == [1.5, 3.0, 11 / 3, 4.5]
    assert _running_mean(values, 0).tolist() == values.tolist()
