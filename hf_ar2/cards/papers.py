"""The papers behind each trainer; their BibTeX entries are in papers.bib."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_ENTRIES = {
    re.findall(r"@misc{(\w+),", entry)[0]: entry.strip()
    for entry in Path(__file__).with_name("papers.bib").read_text(encoding="utf-8").split("\n\n")
}


class Paper(NamedTuple):
    """A paper, under the name of its method."""

    method: str
    key: str

    @property
    def bibtex(self) -> str:
        """The paper's entry in papers.bib."""
        return _ENTRIES[self.key]

    @property
    def arxiv(self) -> str:
        """The paper's number on arXiv."""
        return str(re.findall(r"eprint = {(.+)}", self.bibtex)[0])

    @property
    def link(self) -> str:
        """The method's name as a Markdown link to the paper."""
        return f"[{self.method}](https://arxiv.org/abs/{self.arxiv})"


ADORE = Paper("STAR and ADORE", "zhan2021adore")
DPR = Paper("DPR", "karpukhin2020dpr")
JPQ = Paper("JPQ", "zhan2021jpq")
PAIR = Paper("PAIR", "ren2021pair")
MATRYOSHKA = Paper("Matryoshka Representation Learning", "kusupati2022matryoshka")
SIMANS = Paper("SimANS", "zhou2022simans")

# Trainer → what it trains, and the papers that it follows with any settings, the main one first.
TRAINERS: dict[str, tuple[str, list[Paper]]] = {
    "retriever": ("a retriever, contrastively", []),
    "ranker": ("a ranker, by cross-entropy over lists", []),
    "ar2": ("a retriever and a ranker against each other", [Paper("AR2", "zhang2022ar2")]),
    "rocketqa-v2": ("a retriever and a ranker together", [Paper("RocketQAv2", "ren2021rocketqav2")]),
    "ltre": ("a query encoder against the complete corpus", [Paper("LTRe", "zhan2020ltre"), ADORE]),
    "augment": ("training lists, denoised by the ranker", [Paper("RocketQA", "qu2021rocketqa")]),
    "merge": (
        "the retriever's weights averaged with its starting weights",
        [Paper("WiSE-FT", "wortsman2022wiseft")],
    ),
}


def papers_of(trainer: str, settings: Mapping[str, Any]) -> list[Paper]:
    """The papers that a stage of training with these settings follows, the main one first."""
    papers = list(TRAINERS.get(trainer, ("", []))[1])
    if trainer == "retriever":
        pairwise = settings.get("contrast") == "pairwise"
        papers.append(PAIR if settings.get("passage_weight") else ADORE if pairwise else DPR)
    if trainer == "ltre" and settings.get("train_centroids"):
        papers.append(JPQ)
    if settings.get("matryoshka_dims") and trainer != "ranker":
        papers.append(MATRYOSHKA)
    if settings.get("sampler") == "simans":
        papers.append(SIMANS)
    return papers
