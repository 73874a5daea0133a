"""Maps a ranker's logits to probabilities of relevance, with a temperature and a bias fitted on held-out judgments."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_ar2.files import read_json, write_json

_FORMAT = "hf-ar2 calibration 1"
_STEPS = 100


@dataclass(frozen=True)
class Calibration:
    """`p(relevant) = sigmoid(score / temperature + bias)` (Platt 1999).

    A ranker trained pointwise (binary cross-entropy) needs the identity, temperature 1 and bias 0. Listwise training
    leaves a constant per query undetermined, so its scores have to be calibrated. If that constant differs much between
    queries, calibration cannot correct it, and `report` has a high log loss.
    """

    temperature: float = 1.0  # in logits, above 0
    bias: float = 0.0  # in log-odds
    fingerprint: str = ""  # of the ranker, the queries and the passages that it was fitted on
    report: dict[str, float] = field(default_factory=dict)  # how well it fits, see `fit_calibration`

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of relevance, float64, in the shape of the scores; 0 for a score of -inf."""
        return _sigmoid(np.asarray(scores, dtype=np.float64) / self.temperature + self.bias)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file."""
        write_json(Path(path), {"format": _FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path, fingerprint: str | None = None) -> Calibration:
        """Reads a file that `save` wrote; ValueError for another format, or (unless None) another fingerprint."""
        content: dict[str, Any] = read_json(Path(path))
        if content.pop("format", None) != _FORMAT:
            raise ValueError(f"{path}: not a calibration of the format {_FORMAT!r}; fit it again")
        if fingerprint is not None and content["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path}: fitted on {content['fingerprint']}, expected {fingerprint}: the ranker or the judgments "
                "differ; fit it again"
            )
        return cls(**content)


def fit_calibration(
    scores: np.ndarray,
    relevant: np.ndarray,
    *,
    irrelevant_below: float = 0.1,
    relevant_above: float = 0.9,
    fingerprint: str = "",
) -> Calibration:
    """Fits temperature and bias to the likelihood of held-out judgments with Newton's method.

    Platt's targets, (N₊+1)/(N₊+2) for the relevant and 1/(N₋+2) for the others, keep the fit finite if the scores
    separate the two. Unjudged passages count as irrelevant: with sparse judgments the probabilities are too low
    rather than too high. The scores are the ranker's logits float `[N]` of pairs that it was not trained on.

    Returns:
        The calibration. Its report: `pairs`, `relevant` (how many), `log_loss_before` and `log_loss` (mean, in nats,
        of the raw logits and of the calibrated ones), `above` (pairs above `relevant_above`) and `relevant_above`
        (the share of them that is relevant), `below` and `relevant_below` for the other end.
    """
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if scores.shape != relevant.shape or scores.ndim != 1:
        raise ValueError(f"scores is {scores.shape}, relevant {relevant.shape}; expected [N] for both")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores[{int(np.flatnonzero(~np.isfinite(scores))[0])}] is not finite")
    count = int(relevant.sum())
    if count == 0 or count == len(relevant):
        raise ValueError(
            f"{count} of {len(relevant)} held-out pairs are relevant; expected relevant and irrelevant ones. Retrieve "
            "more passages, or calibrate on another split"
        )
    slope, bias = _newton(scores, relevant)
    if slope <= 0:
        raise ValueError(
            f"the ranker's scores do not rise with relevance on the held-out pairs (slope {slope:.3g}), so they "
            "cannot be calibrated; train the ranker first"
        )
    fitted = Calibration(float(1 / slope), float(bias), fingerprint)
    probabilities = fitted.probabilities(scores)
    above, below = probabilities > relevant_above, probabilities < irrelevant_below
    report = {
        "pairs": len(scores),
        "relevant": count,
        "log_loss_before": _log_loss(scores, relevant),
        "log_loss": _log_loss(slope * scores + bias, relevant),
        "above": int(above.sum()),
        "relevant_above": float(relevant[above].mean()) if above.any() else 0.0,
        "below": int(below.sum()),
        "relevant_below": float(relevant[below].mean()) if below.any() else 0.0,
    }
    return replace(fitted, report=report)


def _newton(scores: np.ndarray, relevant: np.ndarray) -> tuple[float, float]:
    """Slope and bias of the logistic regression, on standardised scores for a well-conditioned Hessian."""
    count = int(relevant.sum())
    targets = np.where(relevant, (count + 1) / (count + 2), 1 / (len(scores) - count + 2))
    centre, scale = scores.mean(), scores.std() or 1.0
    inputs = np.stack([(scores - centre) / scale, np.ones_like(scores)], axis=1)

    def loss(weights: np.ndarray) -> float:
        return _log_loss(inputs @ weights, targets)

    weights = np.array([0.0, np.log(targets.mean() / (1 - targets.mean()))])
    for _ in range(_STEPS):
        probabilities = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (probabilities - targets) / len(scores)
        curvature = probabilities * (1 - probabilities)
        hessian = (inputs * curvature[:, None]).T @ inputs / len(scores) + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        share = 1.0
        while share > 1e-8 and loss(weights - share * step) > loss(weights):
            share /= 2
        weights = weights - share * step
        if np.abs(gradient).max() < 1e-10:
            break
    return weights[0] / scale, weights[1] - weights[0] * centre / scale


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(odds))
    return np.where(odds >= 0, 1, small) / (1 + small)


def _log_loss(odds: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross-entropy of probabilities sigmoid(odds) with targets in [0, 1]."""
    return float(np.mean(np.logaddexp(0, odds) - np.asarray(targets, dtype=np.float64) * odds))
