"""How texts are read, encoded and scored: the settings that trainers, augmentation, merging and search share."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hf_ar2.settings.fields import Documented, setting

if TYPE_CHECKING:
    from hf_ar2.collections import Collection


# The help of every setting `relevance_level`.
RELEVANCE_LEVEL_HELP = (
    "The lowest grade of train_split and eval_split that is relevant: a positive in training, and a hit in all metrics "
    "but nDCG, which reads the grades. Lower grades may be negatives."
)


@dataclass
class TextConfig(Documented):
    """How texts are read. Lengths include special tokens, except where the help says otherwise.

    A model's prompt is added to these lengths, up to the model's own limit.

    Example:
        >>> TextConfig(max_passage_length=256).max_query_length
        32
    """

    max_query_length: int = setting(
        32,
        "Queries are truncated to this length. For the ranker, special tokens are not counted.",
        unit="tokens",
        paper="AR2: 32",
        minimum=1,
    )
    max_passage_length: int | None = setting(
        128,
        "Passages are truncated to this length for the retriever. None: the retriever's own limit.",
        unit="tokens",
        paper="AR2: 128",
        minimum=1,
    )
    max_pair_length: int | None = setting(
        160,
        "Pairs of a query and a passage are truncated to this length for the ranker. None: the ranker's own limit.",
        unit="tokens",
        paper="RocketQAv2: 160",
        minimum=1,
    )
    title_separator: str = setting(
        " ", "Text between a passage's title and its text.", paper="AR2's inputs: ' [SEP] '"
    )
    passage_template: str | None = setting(
        None,
        "Joins title and text of all passages, as in 'title: {title} | text: {text}'. None: title_separator joins "
        "them.",
    )

    def passage_texts(self, collection: Collection) -> list[str]:
        """One string per passage, as models read it."""
        return collection.passage_texts(self.title_separator, self.passage_template)

    def lazy_passage_texts(self, collection: Collection) -> Sequence[str]:
        """As `passage_texts`, made when they are asked for, in slices."""
        return _PassageTexts(self, collection)

    def passage_text(self, title: str, text: str) -> str:
        """As `passage_texts`, of one passage."""
        if self.passage_template is not None:
            return self.passage_template.format(title=title, text=text)
        return f"{title}{self.title_separator}{text}" if title and text else title or text

    @property
    def passage_format(self) -> str:
        """A string that identifies how titles and texts are joined."""
        return self.title_separator if self.passage_template is None else f"template {self.passage_template}"

    def check_passage_template(self) -> None:
        """Check that `passage_template` has `{text}`, and no other field than `{title}` and `{text}`."""
        if self.passage_template is None:
            return
        try:
            parts = list(string.Formatter().parse(self.passage_template))
            self.passage_template.format(title="", text="")
            found = [name for _, name, _, _ in parts if name is not None]
        except (ValueError, LookupError, AttributeError):
            found = []
        if "text" not in found or not set(found) <= {"title", "text"}:
            raise ValueError(
                f"passage_template={self.passage_template!r}: expected a text with {{text}} and, for the title, "
                "{title}; other braces are written twice, as {{ and }}"
            )


@dataclass
class EncodingConfig(TextConfig):
    """How texts are read, encoded and indexed."""

    bf16: bool | None = setting(
        None,
        "bf16 autocast. None: where it is faster (GPUs with bf16, CPUs with AMX).",
        checked_on_resume=False,
    )
    index_factory: str = setting(
        "Flat", "FAISS factory string of the index, which ranks by inner product.", paper="AR2: Flat (exact)"
    )
    index_dtype: str = setting("float32", "Data type of the stored embeddings: float32 or float16.")


@dataclass
class ScoringConfig(EncodingConfig):
    """How texts are read, encoded, indexed and scored."""

    retriever_temperature: float | None = setting(
        None,
        "Divides the retriever's scores in every softmax. None: 0.05 for cosine similarity, 1 for dot product.",
        paper="AR2: 1 (dot product)",
        above=0,
    )
    ranker_temperature: float = setting(
        1.0,
        "Divides the ranker's scores where they are distilled or added to the retriever's.",
        paper="AR2: 1",
        above=0,
    )


@dataclass
class StorageConfig(Documented):
    """Where tokens and indexes are kept."""

    cache_dir: str | None = setting(
        None, "Folder of tokenised texts. None: `cache` in the output folder.", affects_result=False
    )
    index_dir: str | None = setting(
        None,
        "Folder of indexes, one subfolder per fingerprint. Runs with the same folder share them. None: `index` in "
        "the output folder.",
        affects_result=False,
    )


def names_of(config: type) -> tuple[str, ...]:
    """The names of a dataclass's fields."""
    return tuple(field.name for field in fields(config))


class _PassageTexts(Sequence[str]):
    def __init__(self, config: TextConfig, collection: Collection) -> None:
        self.config = config
        self.collection = collection

    def __len__(self) -> int:
        return len(self.collection.corpus)

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            return self[rows : rows + 1][0]
        return self.collection.passage_texts(self.config.title_separator, self.config.passage_template, rows)
