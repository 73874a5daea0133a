"""Prints hits and rankings to the terminal."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence

import numpy as np

from hf_ar2.evaluation.systems import out_of_reach
from hf_ar2.search.system import Hit, SearchSystem
from hf_ar2.terminal import column_widths, counted, visible


def left_out(depths: dict[str, int], metrics: Sequence[str], passages: int) -> str:
    """The metrics that a table leaves out, and why, in one line; "" if there are none. `depths`: system -> depth."""
    parts = []
    for system, depth in depths.items():
        if beyond := ", ".join(out_of_reach(metrics, depth, passages)):
            option = "--rerank_depth" if system == "ranker" else "--depth"
            parts.append(
                f"{beyond} of the {system}, which orders {counted(depth, 'passages')} per query ({option})"
            )
    return f"Left out: {'; '.join(parts)}" if parts else ""


def print_searched(system: SearchSystem) -> None:
    """Open or build the index, and print its size and place."""
    print(
        f"{visible(system.collection.name)}: {counted(system.searched.ntotal, 'passages')}, {system.searched_place}"
    )


def print_hits(system: SearchSystem, query: str, arguments: argparse.Namespace) -> None:
    """Search and print the hits, as wide as the terminal."""
    hits = system.search(query, arguments.k)
    print(f"\n{hits_table(hits, shutil.get_terminal_size((100, 24)).columns)}")


def hits_table(hits: Sequence[Hit], width: int) -> str:
    """Hits for a terminal of `width` columns, the scores side by side, each with the beginning of its passage.

    After the score by which a ranker's passages were retrieved is their rank by it.
    """
    ranked = any(hit.ranker_score is not None for hit in hits)
    hybrid = any(hit.hybrid_score is not None for hit in hits)
    heading = f"rank{'   ranker' if ranked else ''}{'     hybrid' if hybrid else '  retriever'}"
    heading += f"{' ' * 9 if ranked else '  '}{'retriever     BM25  ' if hybrid else ''}passage"
    lines = [heading, "─" * max(width, len(heading))]
    for number, hit in enumerate(hits, 1):
        start = f"{number:>4}"
        if ranked:
            start += f"{'–' if hit.ranker_score is None else f'{hit.ranker_score:.3f}':>9}"
        start += f"{hit.retriever_score if hit.hybrid_score is None else hit.hybrid_score:>11.3f}  "
        if ranked:
            start += f"{f'({ordinal(hit.retrieved_rank)})':<7}"
        if hit.hybrid_score is not None:
            start += f"{hit.retriever_score:>9.3f}{hit.bm25_score:>9.3f}  "
        first_line = next((line for line in hit.text.splitlines() if line.strip()), "")
        shown = " · ".join(" ".join(part.split()) for part in (hit.title, first_line) if part.strip())
        lines.append(f"{start}{visible(hit.passage_id)}")
        lines.append(" " * len(start) + clip(visible(shown), max(20, width - len(start))))
    return "\n".join(lines)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`, …, `11th`, …"""
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def clip(text: str, width: int) -> str:
    """The beginning of a text that fits into `width` columns of a terminal, with … where it was cut."""
    ends = np.cumsum(column_widths(text))
    if not len(ends) or ends[-1] <= width:
        return text
    return text[: int(np.searchsorted(ends, width - 1, side="right"))] + "…"
