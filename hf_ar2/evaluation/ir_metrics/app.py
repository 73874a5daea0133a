"""The page of the Space: the metrics of a run and judgments, pasted as TREC files. A Space brings gradio along."""

from pathlib import Path

import evaluate
import gradio

METRIC = evaluate.load(str(Path(__file__).with_name("ir_metrics.py")))
RUN = """\
q1 Q0 d7 1 9.5 bm25
q1 Q0 d3 2 9.1 bm25
q1 Q0 d4 3 7.0 bm25
q2 Q0 d6 1 8.2 bm25
q2 Q0 d1 2 8.0 bm25
q2 Q0 d5 3 6.4 bm25"""
QRELS = """\
q1 0 d4 1
q1 0 d7 2
q2 0 d5 1"""
METRICS = "mrr@10 ndcg@10 recall@100"


def measure(run: str, qrels: str, metrics: str) -> list[list[str]]:
    """Rows of the table: metric, mean over the judged queries."""
    try:
        return _measure(run, qrels, metrics)
    except ValueError as error:
        raise gradio.Error(str(error)) from None  # of another error the page shows no text


def _measure(run: str, qrels: str, metrics: str) -> list[list[str]]:
    judged: dict[str, dict[str, list]] = {}
    for query, _, passage, grade in _columns("Judgments", qrels, "query 0 passage relevance"):
        one = judged.setdefault(query, {"passage_ids": [], "relevance": []})
        one["passage_ids"].append(passage)
        one["relevance"].append(float(grade))
    ranked: dict[str, list[tuple[int, str]]] = {query: [] for query in judged}
    for query, _, passage, rank, _, _ in _columns("Run", run, "query Q0 passage rank score tag"):
        if query in judged:
            ranked[query].append((int(rank), passage))
    best_first = [sorted(found, key=lambda hit: hit[0]) for found in ranked.values()]
    predictions = [[passage for _, passage in found] for found in best_first]
    longest = max(map(len, predictions))
    if not longest:
        raise ValueError("Run: found no judged query; paste a run and the judgments of its queries")
    # The metric raises for a cutoff that no list reaches, so the table uses the longest list's length.
    names = [_cut(name, longest) for name in metrics.replace(",", " ").split()]
    values = METRIC.compute(predictions=predictions, references=list(judged.values()), metrics=names)
    return [[name, f"{value:.4f}"] for name, value in values.items()]


def _columns(box: str, text: str, names: str) -> list[list[str]]:
    """Fields of the lines that are not empty."""
    found = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not found:
        raise ValueError(f"{box}: found nothing; paste lines of '{names}'")
    for number, fields in found:
        if len(fields) != len(names.split()):
            raise ValueError(f"{box}, line {number}: found {len(fields)} columns; expected '{names}'")
    return [fields for _, fields in found]


def _cut(name: str, longest: int) -> str:
    measure, _, cutoff = name.partition("@")
    return f"{measure}@{min(int(cutoff), longest)}" if cutoff.isdigit() else name


page = gradio.Interface(
    fn=measure,
    inputs=[
        gradio.Textbox(RUN, label="Run: query Q0 passage rank score tag", lines=8),
        gradio.Textbox(QRELS, label="Judgments: query 0 passage relevance", lines=8),
        gradio.Textbox(METRICS, label="Metrics; a cutoff beyond the longest list becomes its length"),
    ],
    outputs=gradio.Dataframe(headers=["metric", "mean"], label="Means over the judged queries"),
    title="IR metrics",
)

if __name__ == "__main__":
    page.launch()
