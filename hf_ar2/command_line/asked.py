"""`hf-ar2 evaluate --questions`: a check before models are loaded, and a line below the table."""

from __future__ import annotations

from collections.abc import Mapping

from hf_ar2.collections import Collection
from hf_ar2.collections.questions import QUESTIONS, qrels_of, read_judged, read_questions
from hf_ar2.evaluation.success import TOP_K, questions_answered
from hf_ar2.evaluation.systems import Ranking


def check_judged(file: str, run: str | None) -> None:
    """Check that a file of questions has judgments; ValueError if not."""
    questions, judged = read_questions(file), read_judged(file)
    if not any(judged.get(id) for id in questions):
        raise ValueError(
            f"{file}: none of its {len(questions):,} questions is judged in {qrels_of(file)}. Judge them "
            f"with: hf-ar2 label {run or 'RUN'} {file}"
        )


def answered_text(collection: Collection, rankings: Mapping[str, Ranking]) -> str:
    """For how many questions the first results of retriever and pipeline have a relevant passage."""
    total = len(collection.judgments(QUESTIONS))
    return "\n".join(
        f"Among the first {TOP_K} of the {name} is a relevant passage in "
        f"{questions_answered(collection, QUESTIONS, rankings[name][0]):,} of {total:,} questions"
        for name in ("retriever", "pipeline")
        if name in rankings
    )
