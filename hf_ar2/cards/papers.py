"""The papers behind each way of training, with their BibTeX."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """A paper: what the method is called in it, who, what, where, and its number on arXiv."""

    key: str
    method: str
    title: str
    authors: str
    venue: str
    year: int
    arxiv: str

    @property
    def link(self) -> str:
        """The method's name as a Markdown link to the paper."""
        return f"[{self.method}](https://arxiv.org/abs/{self.arxiv})"

    @property
    def bibtex(self) -> str:
        """The entry for a bibliography."""
        return (
            f"@misc{{{self.key},\n"
            f"{_field('title', self.title)}\n"
            f"{_field('author', self.authors)}\n"
            f"  year = {{{self.year}}},\n"
            f"  eprint = {{{self.arxiv}}},\n"
            "  archivePrefix = {arXiv},\n"
            f"  note = {{{self.venue}}}\n"
            "}"
        )


def _field(name: str, value: str) -> str:
    return textwrap.fill(
        f"  {name} = {{{value}}},",
        76,
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )


AR2 = Paper(
    "zhang2022ar2",
    "AR2",
    "Adversarial Retriever-Ranker for Dense Text Retrieval",
    "Zhang, Hang and Gong, Yeyun and Shen, Yelong and Lv, Jiancheng and Duan, Nan and Chen, Weizhu",
    "ICLR 2022",
    2022,
    "2110.03611",
)
ROCKETQA_V2 = Paper(
    "ren2021rocketqav2",
    "RocketQAv2",
    "{RocketQAv2}: A Joint Training Method for Dense Passage Retrieval and Passage Re-ranking",
    "Ren, Ruiyang and Qu, Yingqi and Liu, Jing and Zhao, Wayne Xin and She, QiaoQiao and Wu, Hua and Wang, Haifeng "
    "and Wen, Ji-Rong",
    "EMNLP 2021",
    2021,
    "2110.07367",
)
LTRE = Paper(
    "zhan2020ltre",
    "LTRe",
    "Learning To Retrieve: How to Train a Dense Retrieval Model Effectively and Efficiently",
    "Zhan, Jingtao and Mao, Jiaxin and Liu, Yiqun and Zhang, Min and Ma, Shaoping",
    "arXiv preprint",
    2020,
    "2010.10469",
)
ADORE = Paper(
    "zhan2021adore",
    "STAR and ADORE",
    "Optimizing Dense Retrieval Model Training with Hard Negatives",
    "Zhan, Jingtao and Mao, Jiaxin and Liu, Yiqun and Guo, Jiafeng and Zhang, Min and Ma, Shaoping",
    "SIGIR 2021",
    2021,
    "2104.08051",
)
JPQ = Paper(
    "zhan2021jpq",
    "JPQ",
    "Jointly Optimizing Query Encoder and Product Quantization to Improve Retrieval Performance",
    "Zhan, Jingtao and Mao, Jiaxin and Liu, Yiqun and Guo, Jiafeng and Zhang, Min and Ma, Shaoping",
    "CIKM 2021",
    2021,
    "2108.00644",
)
ROCKETQA = Paper(
    "qu2021rocketqa",
    "RocketQA",
    "{RocketQA}: An Optimized Training Approach to Dense Passage Retrieval for Open-Domain Question Answering",
    "Qu, Yingqi and Ding, Yuchen and Liu, Jing and Liu, Kai and Ren, Ruiyang and Zhao, Wayne Xin and Dong, Daxiang "
    "and Wu, Hua and Wang, Haifeng",
    "NAACL 2021",
    2021,
    "2010.08191",
)
PAIR = Paper(
    "ren2021pair",
    "PAIR",
    "{PAIR}: Leveraging Passage-Centric Similarity Relation for Improving Dense Passage Retrieval",
    "Ren, Ruiyang and Lv, Shangwen and Qu, Yingqi and Liu, Jing and Zhao, Wayne Xin and She, QiaoQiao and Wu, Hua and "
    "Wang, Haifeng and Wen, Ji-Rong",
    "Findings of ACL 2021",
    2021,
    "2108.06027",
)
WISE_FT = Paper(
    "wortsman2022wiseft",
    "WiSE-FT",
    "Robust fine-tuning of zero-shot models",
    "Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and Kornblith, Simon and Roelofs, Rebecca "
    "and Gontijo-Lopes, Raphael and Hajishirzi, Hannaneh and Farhadi, Ali and Namkoong, Hongseok and Schmidt, Ludwig",
    "CVPR 2022",
    2022,
    "2109.01903",
)
DPR = Paper(
    "karpukhin2020dpr",
    "DPR",
    "Dense Passage Retrieval for Open-Domain Question Answering",
    "Karpukhin, Vladimir and Oguz, Barlas and Min, Sewon and Lewis, Patrick and Wu, Ledell and Edunov, Sergey and "
    "Chen, Danqi and Yih, Wen-tau",
    "EMNLP 2020",
    2020,
    "2004.04906",
)
SIMANS = Paper(
    "zhou2022simans",
    "SimANS",
    "{SimANS}: Simple Ambiguous Negatives Sampling for Dense Text Retrieval",
    "Zhou, Kun and Gong, Yeyun and Liu, Xiao and Zhao, Wayne Xin and Shen, Yelong and Dong, Anlei and Lu, Jingwen and "
    "Majumder, Rangan and Wen, Ji-Rong and Duan, Nan and Chen, Weizhu",
    "EMNLP 2022, industry track",
    2022,
    "2210.11773",
)


def papers_of(trainer: str, settings: Mapping[str, Any]) -> list[Paper]:
    """The papers a stage of training follows, the chief one first; none for a plain cross-entropy over lists.

    Args:
        trainer: as in a recipe: `"retriever"`, `"ranker"`, `"ar2"`, `"rocketqa-v2"`, `"ltre"`, `"augment"` or
            `"merge"`.
        settings: of that trainer.
    """
    found: list[Paper] = []
    if trainer == "retriever":
        if settings.get("passage_weight"):
            found.append(PAIR)
        else:
            found.append(ADORE if settings.get("contrast") == "pairwise" else DPR)
    elif trainer == "ltre":
        found += [LTRE, ADORE, *([JPQ] if settings.get("train_centroids") else [])]
    else:
        chief = {"ar2": AR2, "rocketqa-v2": ROCKETQA_V2, "augment": ROCKETQA, "merge": WISE_FT}
        found += [chief[trainer]] if trainer in chief else []
    if settings.get("sampler") == "simans":
        found.append(SIMANS)
    return found
