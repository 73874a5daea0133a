"""The settings of search and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_ar2.settings.fields import setting
from hf_ar2.settings.text import ScoringConfig, names_of


@dataclass
class Settings(ScoringConfig):
    """How texts are read, how many passages are searched, and how two models order them.

    A run chooses `system`, `weight`, `pipeline_depth` and `lexical_weight` on dev. The defaults are those of the
    trainers and of the evaluation at the end of a recipe.

    Example:
        >>> Settings(rerank_depth=50).changed({"depth": 200, "learning_rate": 1e-5}).depth  # others are ignored
        200
    """

    depth: int = setting(100, "Passages that the retriever finds per query.", unit="passages", minimum=1)
    rerank_depth: int = setting(
        20,
        "Passages per query that the ranker reorders. 0: only the retriever is used.",
        unit="passages",
        minimum=0,
    )
    metrics: Sequence[str] = setting(
        ("mrr@10", "ndcg@10", "recall@100"), "Metrics of the table, such as mrr@10 and recall@100.", minimum=1
    )
    test_metric: str | None = setting(None, "Metric of the significance test. None: the first metric.")
    report_split: str = setting("test", "Split of the qrels.")
    search_parameters: str | None = setting(
        None, "How an approximate index is searched: 'nprobe=16', 'efSearch=256'."
    )
    system: str = setting(
        "pipeline", "The scores that order the passages: pipeline (both models') or ranker (only its own)."
    )
    weight: float = setting(
        1.0, "Weight of the ranker's scores in the pipeline (see `pipeline_scores`).", minimum=0
    )
    pipeline_depth: int | None = setting(
        None,
        "Passages that the pipeline reorders. None: all that the ranker scored.",
        unit="passages",
        minimum=0,
    )
    lexical_weight: float = setting(0.0, "Weight of BM25 alongside the retriever. 0: no BM25.", minimum=0)

    @classmethod
    def of_models(cls) -> Settings:
        """For models without a recipe: texts are truncated at the models' own limits."""
        return cls(max_query_length=512, max_passage_length=None, max_pair_length=None)

    def changed(self, values: dict[str, Any]) -> Settings:
        """A copy with other values; names that are not settings are ignored.

        `rerank_depth` also sets the depth of the pipeline.
        """
        if "rerank_depth" in values:
            values = {"pipeline_depth": None} | values
        return replace(self, **{name: value for name, value in values.items() if name in names_of(Settings)})


# Settings from the `evaluation` of a recipe, its served row, or chosen.json; the others are in its `args`.
OF_EVALUATION = tuple(name for name in names_of(Settings) if name not in names_of(ScoringConfig))
