"""The settings of `hf-ar2 augment` and `hf-ar2 score`: which training lists are made, and how a ranker scores them."""

from __future__ import annotations

from dataclasses import dataclass

from hf_ar2.settings.fields import LARGEST_SEED, check_values, setting
from hf_ar2.settings.text import EncodingConfig

# Kinds of training lists.
KINDS = ("undenoised", "denoised", "pseudo")
THRESHOLDS = ("absolute", "quantile", "margin")
# The default thresholds, (irrelevant, relevant); those of `absolute` are RocketQA's.
DEFAULT_LINES = {"absolute": (0.1, 0.9), "quantile": (0.5, 0.99), "margin": (2.0, 2.0)}


@dataclass
class AugmentConfig(EncodingConfig):
    """How training lists are made.

    Raises:
        ValueError: settings that contradict each other.

    Example:
        >>> args = AugmentConfig(calibrate="dev", depth=20)
        >>> args.list_kinds, args.lines
        (('undenoised', 'denoised'), (0.1, 0.9))
        >>> AugmentConfig()
        Traceback (most recent call last):
        ValueError: thresholds='absolute' (0.1, 0.9) need probabilities of relevance. ...
    """

    train_split: str = setting(
        "train", "Split whose labelled queries get undenoised and denoised lists.", minimum=1
    )
    relevance_level: int = setting(
        1, "The lowest grade of a split that is relevant: a positive of a list.", unit="grade", minimum=1
    )
    unlabelled: str | None = setting(
        None, "File of queries for pseudo lists: JSON lines with `_id` and `text`, plain or gzipped."
    )
    kinds: list[str] | None = setting(
        None,
        "Kinds of lists: undenoised, denoised, pseudo. None: all, pseudo only with `unlabelled`.",
        minimum=1,
    )
    depth: int = setting(
        50,
        "Passages retrieved per query.",
        unit="passages",
        paper="RocketQA: 50 for steps 3 and 4, 1000 for the ranker's negatives",
        minimum=1,
    )
    thresholds: str = setting(
        "absolute",
        "Kind of thresholds: absolute (probability of relevance), quantile (of the ranker's share among a query's "
        "passages, over all unlabelled ones) or margin (logits to the query's labelled positives).",
    )
    irrelevant: float | None = setting(
        None,
        "Below it a passage is a negative. None: 0.1 (absolute), 0.5 (quantile) or 2 (margin).",
        paper="RocketQA: 0.1",
    )
    relevant: float | None = setting(
        None,
        "Above it a passage is a positive. None: 0.9 (absolute), 0.99 (quantile) or 2 (margin).",
        paper="RocketQA: 0.9",
    )
    calibrate: str | None = setting(
        None, "Held-out split on which the ranker's logits are calibrated to probabilities."
    )
    pointwise: bool = setting(
        False, "The ranker was trained pointwise: the sigmoid of its logit is a probability."
    )
    added_positives: int = setting(
        1,
        "Passages above the relevant threshold that a list gets in addition to its labelled ones, best first.",
        unit="passages",
        minimum=0,
    )
    stored_negatives: int | None = setting(
        None,
        "Negatives stored per list, drawn at random. None: all; a trainer then draws new ones each time.",
        unit="passages",
        minimum=1,
    )
    seed: int = setting(42, "Seed of the draw of stored_negatives.", minimum=0, maximum=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_values(self)
        if self.thresholds not in THRESHOLDS:
            raise ValueError(f"thresholds={self.thresholds!r}: expected one of {', '.join(THRESHOLDS)}")
        unknown = sorted(set(self.kinds or ()) - set(KINDS))
        if unknown or self.kinds == []:
            raise ValueError(f"kinds={self.kinds}: expected some of {', '.join(KINDS)}")
        if ("pseudo" in self.list_kinds) != (self.unlabelled is not None):
            raise ValueError("pseudo lists need a file of unlabelled queries: give both or neither")
        self.check_passage_template()
        if "pseudo" in self.list_kinds and self.added_positives == 0:
            raise ValueError("added_positives=0 leaves pseudo lists without a positive; expected at least 1")
        if set(self.list_kinds) - {"undenoised"}:
            self._check_thresholds()

    def _check_thresholds(self) -> None:
        low, high = self.lines
        if self.thresholds == "margin":
            if low < 0 or high < 0:
                raise ValueError(f"irrelevant={low}, relevant={high}: expected logits, 0 or more")
            if "pseudo" in self.list_kinds:
                raise ValueError(
                    "thresholds='margin' are relative to a query's labelled positives, and unlabelled queries have "
                    "none; use 'absolute' or 'quantile'"
                )
        elif not 0 <= low < high <= 1:
            raise ValueError(f"irrelevant={low}, relevant={high}: expected 0 ≤ irrelevant < relevant ≤ 1")
        if self.thresholds != "absolute":
            if self.calibrate or self.pointwise:
                raise ValueError("calibrate and pointwise require thresholds='absolute'")
        elif self.calibrate and self.pointwise:
            raise ValueError("a pointwise ranker needs no calibration: choose calibrate or pointwise")
        elif self.calibrate == self.train_split:
            raise ValueError(f"calibrate={self.calibrate!r}: expected a held-out split, not train_split")
        elif not self.calibrate and not self.pointwise:
            raise ValueError(
                f"thresholds='absolute' ({low}, {high}) need probabilities of relevance. A ranker trained on lists has "
                "none: its loss does not change when a constant is added to a query's scores. Calibrate it on a "
                "held-out split (calibrate='dev'), set pointwise=True if it was trained with binary cross-entropy, or "
                "use thresholds='margin' (relative to the labelled positives) or 'quantile'"
            )

    @property
    def list_kinds(self) -> tuple[str, ...]:
        """The kinds of lists to make."""
        if self.kinds is not None:
            return tuple(kind for kind in KINDS if kind in self.kinds)
        return KINDS if self.unlabelled is not None else KINDS[:2]

    @property
    def lines(self) -> tuple[float, float]:
        """The thresholds `irrelevant` and `relevant`; the defaults are those of the kind of thresholds."""
        low, high = DEFAULT_LINES[self.thresholds]
        return (
            low if self.irrelevant is None else self.irrelevant,
            high if self.relevant is None else self.relevant,
        )


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
