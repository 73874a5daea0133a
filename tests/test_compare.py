"""`hf-ar2 compare`: small run files whose numbers can be checked by eye, in all three forms, and what it refuses."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from hf_ar2.collections import Collection, load_collection
from hf_ar2.command_line import main as cli

QUERIES = [f"q{number}" for number in range(1, 7)]


def run_file(path: Path, ranks: dict[str, int], depth: int = 4) -> Path:
    """A run file in which the relevant passage of each query stands at this rank; 0: nowhere."""
    lines = []
    for query, rank in ranks.items():
        passages = [f"x{number}" for number in range(1, depth + 1)]
        if rank:
            passages[rank - 1] = query.replace("q", "d")
        lines += [f"{query} Q0 {passage} {i} {9 - i} t\n" for i, passage in enumerate(passages, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines(lines)
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six queries with one relevant passage each, and three systems."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "test.qrels").write_text("".join(f"{q} 0 {q.replace('q', 'd')} 1\n" for q in QUERIES))
    run_file(tmp_path / "bm_25.trec", dict.fromkeys(QUERIES, 2))  # MRR .5
    run_file(tmp_path / "dense.run.gz", dict.fromkeys(QUERIES, 1))  # MRR 1
    run_file(tmp_path / "mixed.txt", {"q1": 1, "q2": 4, "q3": 2, "q4": 2, "q5": 2, "q6": 2})  # MRR 3.25 / 6
    return tmp_path


COMMAND = ["compare", "bm_25.trec", "dense.run.gz", "mixed.txt", "--metrics", "mrr@4", "recall@1"]


def test_the_table_has_the_numbers_that_the_files_say(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND, "--qrels", "test.qrels"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "test.qrels: 6 queries"
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[2:7]}
    assert rows["bm_25"] == ["0.500", "0.000", "–", "–", "–"]
    # Six of six better: exact p = 2 / 2^6 = .03125, times two comparisons.
    assert rows["dense"] == ["1.000", "1.000", "+0.500", ".062", "6/0/0"]
    # (1 + 1/4 + 4/2) / 6; one better, one worse.
    assert rows["mixed"] == ["0.542", "0.167", "+0.042", "1.000", "1/1/4"]
    assert "MRR@4 against bm_25" in shown and "corrected for 2 comparisons (Holm)" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_the_relevance_level(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in TREC DL: of the six passages that dense finds first, three have grade 2."""
    grades = zip(QUERIES, (1, 2, 1, 2, 1, 2), strict=True)
    (files / "graded").write_text("".join(f"{q} 0 {q.replace('q', 'd')} {grade}\n" for q, grade in grades))
    assert cli.main([*COMMAND, "--qrels", "graded", "--relevance-level", "2"]) == 0
    rows = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines()[2:7]}
    assert rows["dense"] == ["0.500", "0.500"]


def test_one_comparison_is_not_corrected(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "bm_25.trec", "dense.run.gz", "--metrics", "mrr@4", "--qrels", "test.qrels"]
    assert cli.main([*arguments, "--against", "dense"]) == 0
    shown = capsys.readouterr().out
    bm25 = next(line for line in shown.splitlines() if line.startswith("bm_25"))
    assert bm25.split() == ["bm_25", "0.500", "-0.500", ".031", "▼", "0/6/0"]
    assert "Holm" not in shown


def test_markdown_and_latex_hold_the_same_values_escaped(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("mixed.txt", "50%_<b>.trec")
    arguments = ["compare", "50%_<b>.trec", *COMMAND[1:], "--qrels", "test.qrels", "--against", "bm_25"]
    assert cli.main([*arguments, "--markdown", "--output", "out/table.md"]) == 0
    markdown = (files / "out" / "table.md").read_text()
    assert capsys.readouterr().out == f"{markdown}\nIn out/table.md: this table\n"
    assert r"| bm\_25 | 0.500 | 0.000 | – | – | – |" in markdown
    assert r"| 50%\_\<b\> | 0.542 |" in markdown and r"\*\* p \< .01" in markdown

    assert cli.main([*arguments[:-1], "mixed", "--latex"]) == 0
    latex = capsys.readouterr().out
    assert r"bm\_25 & 0.500 & 0.000 & $-$0.042 & 1.000 & 1/1/4 \\" in latex
    assert r"50\%\_$<$b$>$ & 0.542" in latex and r"mixed & 0.542 & 0.167 & -- & -- & -- \\" in latex
    for rule in ("toprule", "midrule", "bottomrule"):
        assert latex.count(rf"\{rule}") == 1
    assert not re.search(r"(?<!\\)[%_#]", latex), "what LaTeX would read as a command"


@pytest.mark.slow
def test_pdflatex_takes_greek_letters(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greek = [chr(code) for code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA)) if code != 0x3A2]
    name = "".join(greek) + "ϵϕϑ≤≥"
    shutil.copy("mixed.txt", f"{name}.trec")
    shutil.copy("mixed.txt", "λ=0.5.trec")
    arguments = ["compare", f"{name}.trec", "λ=0.5.trec", "--qrels", "test.qrels", "--metrics", "mrr@4"]
    assert cli.main([*arguments, "--latex"]) == 0
    latex = capsys.readouterr().out
    assert r"** p $<$ .01, *** p $<$ .001; $\bigtriangledown$, " in latex
    assert r"$\lambda$=0.5 & 0.542 & +0.000" in latex and r"$\Delta$ MRR@4" in latex
    assert latex.isascii()
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed; install Debian's: apt-get install texlive-latex-recommended")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex}\end{{document}}"
    (files / "table.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "table.tex"], cwd=files, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_queries_that_are_missing_or_unjudged_are_told(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file(files / "part.trec", {"q1": 1, "q2": 1, "q3": 1, "q99": 1})
    assert cli.main(["compare", "part.trec", "--qrels", "test.qrels", "--metrics", "mrr@4", "map"]) == 0
    shown = capsys.readouterr().out
    assert "part    0.500  0.500" in shown, "three of six queries have a list"
    assert "part: queries without a list, which count 0: 3." in shown
    assert "part: queries without judgments, which are left out: 1." in shown


# --- run folders


def run_folder(folder: Path, collection: Path, rows: dict[str, list[int]]) -> Path:
    """What a recipe leaves: the first number is the retriever's rank of every relevant passage, then the pipeline's."""
    names = {row: {"retriever": "light"} for row in rows}
    evaluation = {"rows": names, "metrics": ["mrr@4", "recall@1"], "test_metric": "recall@1"}
    folder.mkdir()
    recipe = {"name": folder.name, "collection": str(collection), "evaluation": evaluation}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for row, ranks in rows.items():
        for system, rank in zip(("retriever", "pipeline"), ranks, strict=False):
            run_file(folder / "runs" / row / f"test.{system}.trec", dict.fromkeys(QUERIES, rank))
    return folder


@pytest.fixture
def collection(files: Path) -> Path:
    from datasets import Dataset

    passages = [f"d{number}" for number in range(1, 7)] + [f"x{number}" for number in range(1, 15)]
    qrels = {"query_id": QUERIES, "passage_id": passages[:6], "relevance": [1] * 6}
    text = {"id": passages, "title": passages, "text": passages}
    made = Collection(
        "letters",
        Dataset.from_dict(text),
        Dataset.from_dict({"id": QUERIES, "text": QUERIES}),
        {"test": Dataset.from_dict(qrels)},
    )
    made.save(files / "letters")
    return files / "letters"


def test_run_folders_give_their_rows_and_stand_beside_files(
    files: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(files / "one", collection, {"zero-shot": [3], "AR2": [2, 1]})
    assert cli.main(["compare", "one", "bm_25.trec"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("letters, test: 6 queries\n")
    heading = shown.splitlines()[2]
    assert heading.split()[:3] == ["system", "Recall@1", "MRR@4"], "the recipe's test metric is the first"
    names = [re.split(r"  +", line)[0] for line in shown.splitlines()[4:8]]
    assert names == ["zero-shot", "AR2", "AR2 pipeline", "bm_25"]

    chosen = {
        "row": "AR2",
        "system": "ranker",
        "reason": "AR2 (ranker alone over the first 20): dev MRR@10 .700.",
    }
    (files / "one" / "chosen.json").write_text(json.dumps(chosen))
    run_file(files / "one" / "runs" / "AR2" / "test.ranker.trec", dict.fromkeys(QUERIES, 1))
    run_file(files / "one" / "runs" / "zero-shot" / "test.ranker.trec", dict.fromkeys(QUERIES, 1))
    assert cli.main(["compare", "one"]) == 0
    shown = capsys.readouterr().out
    names = [re.split(r"  +", line)[0] for line in shown.splitlines()[4:8]]
    assert names == ["zero-shot", "AR2", "AR2 pipeline", "AR2 ranker"], "a ranker alone where it is served"
    assert f"one serves {chosen['reason']}" in " ".join(shown.split())
    (files / "one" / "chosen.json").unlink()

    run_folder(files / "two", collection, {"AR2": [4]})
    assert cli.main(["compare", "one", "two", "--against", "two/AR2"]) == 0
    shown = capsys.readouterr().out
    assert "one/AR2 pipeline" in shown and "against two/AR2;" in " ".join(shown.split())


def test_bm25_and_rows_with_it_are_shown(
    files: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        run = run_folder(files / name, collection, {"zero-shot": [3], "AR2": [2, 1]})
        run_file(run / "runs" / "BM25" / "test.retriever.trec", dict.fromkeys(QUERIES, 4))
        run_file(run / "runs" / "AR2" / "test.hybrid.trec", dict.fromkeys(QUERIES, 1))
    assert cli.main(["compare", "one"]) == 0
    shown = capsys.readouterr().out
    names = [re.split(r"  +", line)[0] for line in shown.splitlines()[4:9]]
    assert names == ["BM25", "zero-shot", "AR2", "AR2 + BM25", "AR2 pipeline"]
    assert "against zero-shot;" in " ".join(shown.split()), "the model before training, not BM25"
    assert cli.main(["compare", "one", "two"]) == 0
    names = [re.split(r"  +", line)[0] for line in capsys.readouterr().out.splitlines()[4:13]]
    assert names[0] == "BM25" and not any("BM25" == name.split("/")[-1] for name in names[1:])
    assert names[1] == "one/zero-shot" and names[-1] == "two/AR2 pipeline"


def test_a_split_that_was_searched_in_part_is_told(
    files: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(files / "one", collection, {"zero-shot": [3], "AR2": [2]})
    chosen = {"row": "AR2", "system": "retriever", "split": "test", "reason": "AR2 (retriever): the best."}
    (run / "chosen.json").write_text(json.dumps(chosen))
    (run / "plan.json").write_text(json.dumps({"part": 9, "of_passages": 20, "costs": {"passages": 8}}))
    assert cli.main(["compare", "one"]) == 0
    assert "On test only a part of the corpus was searched, 8 of 20 passages" in capsys.readouterr().out


def test_a_run_without_a_test_split_is_compared_on_its_last_split(
    files: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(files / "one", collection, {"zero-shot": [3], "AR2": [2]})
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["splits"] = ["dev"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for file in run.glob("runs/*/test.*"):
        file.rename(file.with_name(file.name.replace("test", "dev")))
    made = load_collection(str(collection))
    dataclasses.replace(made, qrels={"dev": made.qrels["test"]}).save(files / "other")
    assert cli.main(["compare", "one", "--collection", "other"]) == 0
    assert ", dev: 6 queries" in capsys.readouterr().out


def test_an_unfinished_run_is_told_with_what_finishes_it(
    files: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(files / "one", collection, {"zero-shot": [3]})
    shutil.rmtree(run / "runs")
    assert cli.main(["compare", "one"]) == 1
    assert (
        "one has no results yet: it is not finished. Run the command that started" in capsys.readouterr().err
    )
    recipes = "/somewhere/hf_ar2/recipes"
    command = f"{recipes}/run.py {recipes}/ar2/scifact.yaml --ar2.layers '[0, 1]' --output_dir one"
    (run / "environment.json").write_text(json.dumps({"command": command}))
    expected = "Finish it with: hf-ar2 train ar2/scifact --ar2.layers '[0, 1]' --output_dir one\n"
    for name, arguments in (("compare", []), ("report", []), ("search", ["otter"])):
        assert cli.main([name, "one", *arguments]) == 1
        assert capsys.readouterr().err.endswith(expected), name


def test_a_row_that_is_not_there_yet_is_told(
    files: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(files / "one", collection, {"zero-shot": [3], "AR2": [2]})
    shutil.rmtree(run / "runs" / "AR2")
    assert cli.main(["compare", "one"]) == 0
    assert "one: row AR2 has not been evaluated on test and is left out." in capsys.readouterr().out


# --- what it refuses


def test_bad_input_is_answered_with_what_to_do(
    files: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(files / "one", collection, {"AR2": [2]})
    run_folder(files / "other", files / "elsewhere", {"AR2": [2]})
    run_file(files / "foreign.trec", {"z1": 1, "z2": 1})
    (files / "broken.trec").write_text("q1 Q0 d1 1 0.5 t\nq1 Q0 d2 second 0.4 t\n")
    (files / "empty.qrels").write_text("")
    shutil.copytree(files / "one" / "runs" / "AR2", files / "results")
    cases: list[tuple[list[str], str]] = [
        (["bm_25.trec"], "add --qrels FILE or --collection SOURCE"),
        (["bm25.trec", "--qrels", "test.qrels"], "bm25.trec: no such run folder or TREC run file"),
        (["bm_25.trec", "--qrels", "absent"], "--qrels absent: no such file; expected lines of"),
        (["bm_25.trec", "--qrels", "empty.qrels"], "empty.qrels: found no judgment"),
        (["bm_25.trec", "bm_25.trec", "--qrels", "test.qrels"], "bm_25.trec is given twice"),
        (
            ["foreign.trec", "--qrels", "test.qrels"],
            "foreign.trec: none of its 2 queries is among the 6 judged ones of test.qrels, such as 'q1'",
        ),
        (["foreign.trec", "--collection", "letters"], "foreign.trec:1: unknown query id 'z1'"),
        (
            ["broken.trec", "--qrels", "test.qrels"],
            "broken.trec:2: rank is 'second'; expected a whole number",
        ),
        (
            ["one", "--split", "tset"],
            "one has no run files of split 'tset'; it has test; choose with --split",
        ),
        (["bm_25.trec", "--collection", "letters", "--split", "dev"], "has no split 'dev'; it has test"),
        (["one", "other"], "the runs use 2 collections"),
        (
            ["results"],
            f"results is not a run folder; name its run files: {Path('results/test.retriever.trec')}",
        ),
        (["letters"], "letters is not a run folder: it has no recipe.yaml."),
        (["one", "--metrics", "mr@10"], "did you mean 'mrr@10'?"),
        (["one", "--metrics", "mrr@10"], "the lists of AR2 are too short for mrr@10"),
        (["one", "--against", "AR3"], "--against AR3: no such system; did you mean 'AR2'?"),
        (["bm_25.trec", "--qrels", "test.qrels", "--split", "dev"], "leave it out"),
    ]
    for arguments, message in cases:
        assert cli.main(["compare", *arguments]) == 1, arguments
        assert message in capsys.readouterr().err, arguments
    for arguments, message in [
        (["one", "--markdown", "--latex"], "not allowed with argument --markdown"),
        (["one", "--qrels", "test.qrels", "--collection", "letters"], "not allowed with argument --qrels"),
        ([], "the following arguments are required: SYSTEM"),
    ]:
        with pytest.raises(SystemExit):
            cli.main(["compare", *arguments])
        assert message in capsys.readouterr().err
