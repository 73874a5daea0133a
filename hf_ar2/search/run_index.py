"""The index that a run was evaluated with, if it cannot be rebuilt from the passages: trained, or a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from hf_ar2.cards.facts import served_row
from hf_ar2.encoding.inputs import RetrieverInputs
from hf_ar2.index.encoders import Encoders
from hf_ar2.index.frozen import FrozenIndex, check_fit

# Folders of a run: the index of `hf-ar2 search`; that of `hf-ar2 evaluate`, over passages without the headings that
# are queries; and what else `hf-ar2 label` needs.
INDEX, TRAINING_INDEX, LABEL = "index", "index_for_training", "label"
# The folder in which an LTRe stage, and then the run, stores the index of the training, unless it is exact.
SEARCHED_INDEX = "searched_index"


@dataclass(frozen=True)
class RunIndex:
    """The files of an index, which `FrozenIndex.from_files` opens.

    Attributes:
        path: a FAISS file, or a folder with one.
        ids: the ids of its passages; None: `ids.json` next to it.
    """

    path: Path
    ids: Path | None = None

    @classmethod
    def from_run(cls, folder: str | Path, recipe: dict[str, Any]) -> RunIndex | None:
        """The index that the served row of a run searched; None: it is built when needed."""
        row, stages = served_row(folder, recipe), recipe.get("stages") or {}
        given = row.get("index")
        if given in stages:
            settings = {**(recipe.get("args") or {}), **(stages[given].get("args") or {})}
            return cls.from_stage(Path(folder) / SEARCHED_INDEX, settings)
        if given is not None:
            return cls(Path(given), Path(row["index_ids"]) if row.get("index_ids") else None)
        kept = Path(folder) / SEARCHED_INDEX
        return cls(kept) if kept.is_dir() else None

    @classmethod
    def from_stage(cls, kept: Path, settings: Mapping[str, Any]) -> RunIndex | None:
        """The index that an LTRe stage searched in training; None for an exact one, which can be rebuilt.

        Args:
            kept: the folder of an index that the stage made.
            settings: of the stage.
        """
        given = settings.get("index")
        if given is not None and not settings.get("train_centroids"):
            return cls(Path(given), Path(settings["index_ids"]) if settings.get("index_ids") else None)
        return cls(kept) if given is not None or settings.get("index_factory", "Flat") != "Flat" else None

    def open(
        self,
        encoders: Encoders,
        retriever: SentenceTransformer,
        inputs: RetrieverInputs,
        corpus_ids: list[str],
        search_parameters: str | None = None,
    ) -> FrozenIndex:
        """Open the index; ValueError if it was built from other passages, or by another passage encoder."""
        index = FrozenIndex.from_files(
            self.path, corpus_ids, self.ids, device=encoders.device, search_parameters=search_parameters
        )
        check_fit(index, str(self.path), encoders, retriever, inputs)
        return index
