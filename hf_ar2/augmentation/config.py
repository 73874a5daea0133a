"""What lists are made, and how: the settings of `hf_ar2.augmentation`."""

from __future__ import annotations

from dataclasses import dataclass

from hf_ar2.augmentation.confidence import DEFAULT_LINES, THRESHOLDS
from hf_ar2.training_lists.stored import KINDS


@dataclass(frozen=True)
class AugmentConfig:
    """How lists are made; lengths are in tokens and named as in the trainers' settings.

    Attributes:
        train_split: split whose labelled queries get undenoised and denoised lists.
        unlabelled: file of queries without labels (JSON lines with `_id` and `text`, plain or gzipped).
        kinds: which lists; None: undenoised, denoised, and with `unlabelled` pseudo.
        depth: n, passages retrieved per query. RocketQA: 50 for steps 3 and 4, 1000 for the ranker's negatives.
        thresholds: `absolute` (probability of relevance), `quantile` (of the ranker's share among a query's
            passages, over all unlabelled ones) or `margin` (logits to the query's labelled positives).
        irrelevant, relevant: the two lines. absolute: .1 and .9 (RocketQA); quantile: .5 and .99; margin: 2 and 2.
        calibrate: held-out split that absolute thresholds are calibrated on, see `Calibration`.
        pointwise: the ranker was trained pointwise, so that the sigmoid of its logit is a probability.
        added_positives: passages the ranker is sure of that a list gets beside its labelled ones, best first.
        stored_negatives: negatives stored in a list at most, drawn at random; None: all, of which a trainer draws
            anew each time.
        seed: of that draw.
        max_query_length, max_passage_length, max_pair_length, title_separator: how texts are read.
        bf16: None: where it pays.
        index_factory, index_dtype: of the index that is searched.

    Raises:
        ValueError: settings that do not fit each other.

    Example:
        >>> args = AugmentConfig(calibrate="dev", depth=20)
        >>> args.list_kinds, args.lines
        (('undenoised', 'denoised'), (0.1, 0.9))
        >>> AugmentConfig()
        Traceback (most recent call last):
        ValueError: thresholds='absolute' (0.1, 0.9) need probabilities of relevance. ...
    """

    train_split: str = "train"
    unlabelled: str | None = None
    kinds: list[str] | None = None
    depth: int = 50
    thresholds: str = "absolute"
    irrelevant: float | None = None
    relevant: float | None = None
    calibrate: str | None = None
    pointwise: bool = False
    added_positives: int = 1
    stored_negatives: int | None = None
    seed: int = 42
    max_query_length: int = 32
    max_passage_length: int | None = 128
    max_pair_length: int | None = 160
    title_separator: str = " "
    bf16: bool | None = None
    index_factory: str = "Flat"
    index_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.thresholds not in THRESHOLDS:
            raise ValueError(f"thresholds={self.thresholds!r}: expected one of {', '.join(THRESHOLDS)}")
        unknown = sorted(set(self.kinds or ()) - set(KINDS))
        if unknown or self.kinds == []:
            raise ValueError(f"kinds={self.kinds}: expected some of {', '.join(KINDS)}")
        if ("pseudo" in self.list_kinds) != (self.unlabelled is not None):
            raise ValueError(
                "lists of the kind pseudo are made from unlabelled queries: give both or neither"
            )
        if self.depth < 1 or self.added_positives < 0 or (self.stored_negatives or 1) < 1:
            raise ValueError(
                f"depth={self.depth}, added_positives={self.added_positives}, stored_negatives="
                f"{self.stored_negatives}: expected at least 1 (0 for added_positives)"
            )
        if "pseudo" in self.list_kinds and self.added_positives == 0:
            raise ValueError("added_positives=0 leaves pseudo lists without a positive; expected at least 1")
        if set(self.list_kinds) - {"undenoised"}:
            self._check_thresholds()

    def _check_thresholds(self) -> None:
        low, high = self.lines
        if self.thresholds == "margin":
            if low < 0 or high < 0:
                raise ValueError(f"margins of {low} and {high}: expected logits, 0 or more")
            if "pseudo" in self.list_kinds:
                raise ValueError(
                    "thresholds='margin' are relative to a query's labelled positives, and unlabelled queries have "
                    "none; use 'absolute' or 'quantile'"
                )
        elif not 0 <= low < high <= 1:
            raise ValueError(f"irrelevant={low}, relevant={high}: expected 0 ≤ irrelevant < relevant ≤ 1")
        if self.thresholds != "absolute":
            if self.calibrate or self.pointwise:
                raise ValueError(
                    f"calibrate and pointwise are only for thresholds='absolute', not {self.thresholds!r}"
                )
        elif self.calibrate and self.pointwise:
            raise ValueError("a pointwise ranker needs no calibration: choose calibrate or pointwise")
        elif self.calibrate == self.train_split:
            raise ValueError(
                f"calibrate={self.calibrate!r}: expected a held-out split, not the one that gets lists"
            )
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
