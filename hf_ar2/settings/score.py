"""The settings of `hf-ar2 score`: which lists a ranker scores, and how."""

from __future__ import annotations

from dataclasses import dataclass

from hf_ar2.settings.fields import check_values, setting
from hf_ar2.settings.text import EncodingConfig


@dataclass
class ScoreConfig(EncodingConfig):
    """How a ranker scores training lists."""

    train_split: str = setting("train", "Split whose queries get lists.")
    depth: int = setting(50, "Passages retrieved per query.", unit="passages", minimum=1)
    batch_tokens: int | None = setting(
        None, "Padded tokens of a batch. None: 2048 on a CPU, 65536 on a GPU.", unit="tokens", minimum=1
    )

    def __post_init__(self) -> None:
        check_values(self)
