"""How texts are read, encoded and scored: what trainers, augmentation, merging and search have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hf_ar2.settings.fields import Documented, setting


@dataclass
class TextConfig(Documented):
    """How texts are read. Lengths include special tokens, except where the help says otherwise.

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
    )
    ranker_temperature: float = setting(
        1.0,
        "Divides the ranker's scores where they are distilled or added to the retriever's.",
        paper="AR2: 1",
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
