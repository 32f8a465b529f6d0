"""What a multimodal identifier remembers of calibration rows, and what it learns from them.

A task's rows are scored once, when it is learned, against the tasks known by then. Temperature,
weight and margin are fitted on the rows of all learned tasks.

Shapes: n rows of a fold, T tasks known when it was scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TEMPERATURES = np.geomspace(0.125, 64.0, 28)
CENTRES = (0.0, 0.5, 1.0)
WEIGHTS = np.linspace(0.0, 1.0, 11)
CUTS = 8  # margins that are tried, up to the share that may be asked
FLOOR = 1e-6  # no share is believed to be below it
ENOUGH = 0.98  # of the best gain in log-likelihood: what remains is not worth more calls
DIGITS = 4


@dataclass(frozen=True, eq=False)
class CalibrationFold:
    """Scores of some calibration rows of one task.

    Attributes:
        task: the true task of all rows.
        options: tasks known when they were scored and still known, `task` among them.
        signature: (n, T) log shares by the statistics alone, each row left out of them.
        scores: (n, T) of the model, larger = fits better; every row was answered.
        margins: of the statistics' shares, over all calibration rows.
    """

    task: str
    options: tuple[str, ...]
    signature: np.ndarray
    scores: np.ndarray
    margins: np.ndarray

    @staticmethod
    def noted(options: Sequence[str], rows: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Plain data for `task.json`: what a model said of some rows."""
        return {
            "options": list(options),
            "rows": rows.tolist(),
            "scores": [
                None if np.isnan(row).any() else np.round(row, DIGITS).tolist() for row in scores
            ],
        }

    @classmethod
    def load(
        cls,
        task: str,
        noted: Mapping[str, Any],
        options: tuple[str, ...],
        shares: np.ndarray,
        margins: np.ndarray,
    ) -> CalibrationFold:
        """The noted rows that were answered, among the options that are left.

        Args:
            task: whose rows.
            noted: what `noted` gave.
            options: those of its options that are known now.
            shares: (R, T) left-out log shares of all calibration rows for these options.
            margins: (R,).
        """
        kept = [noted["options"].index(option) for option in options]
        answered = [i for i, row in enumerate(noted["scores"]) if row is not None]
        scores = np.array([noted["scores"][i] for i in answered], float)
        scores = scores.reshape(len(answered), len(noted["options"]))[:, kept]
        signature = shares[np.array(noted["rows"], np.int64)[answered]]
        return cls(task, options, signature - logsumexp(signature), scores, margins)

    @property
    def truth(self) -> int:
        """Column of the true task."""
        return self.options.index(self.task)


@dataclass(frozen=True)
class ScoreCalibration:
    """How the model's scores are read.

    Attributes:
        temperature: scores are divided by it.
        centre: how much of a description's usual score on its own task is taken off.
        usual: task -> mean score of its own held-out rows; where there are none, as the others'.
    """

    temperature: float = 1.0
    centre: float = 0.0
    usual: dict[str, float] | None = None

    def log_shares(self, scores: np.ndarray, options: Sequence[str]) -> np.ndarray:
        """Calibrated log shares (n, T) of the model."""
        known = self.usual or {}
        others = float(np.mean(list(known.values()))) if known else 0.0
        offsets = np.array([known.get(option, others) for option in options])
        z = (scores - self.centre * offsets) / self.temperature
        return floored(z - logsumexp(z))


def fit_calibration(folds: Sequence[CalibrationFold], centred: bool) -> ScoreCalibration:
    """Temperature and centring of the lowest cross-entropy over all folds with a choice."""
    usual = {f.task: float(f.scores[:, f.truth].mean()) for f in folds if len(f.scores)}
    useful = [fold for fold in folds if len(fold.options) > 1 and len(fold.scores)]
    best, lowest = ScoreCalibration(1.0, 0.0, usual), np.inf
    if not useful:
        return best
    for centre in CENTRES if centred else (0.0,):
        for temperature in TEMPERATURES:
            calibration = ScoreCalibration(float(temperature), centre, usual)
            losses = [
                -calibration.log_shares(fold.scores, fold.options)[:, fold.truth].mean()
                for fold in useful
            ]
            if np.mean(losses) < lowest - 1e-9:
                best, lowest = calibration, float(np.mean(losses))
    return best


@dataclass(frozen=True)
class ConsultRule:
    """When the cascade asks, and how much it believes the answer.

    Attributes:
        margin: images below this margin of the signature's shares are asked about.
        weight: of the model's log share; 1 - weight is the signature's.
    """

    margin: float = 0.0
    weight: float = 0.0


def fit_consult_rule(
    folds: Sequence[CalibrationFold], calibration: ScoreCalibration, share: float
) -> ConsultRule:
    """The weight of the best log-likelihood, and the least margin that has nearly all of the gain.

    At most `share` of the held-out images are below the margin. Where the model does not help, the
    weight is 0 and nobody is asked.
    """
    useful = [fold for fold in folds if len(fold.options) > 1]
    if not useful or share <= 0:
        return ConsultRule()
    pooled = np.concatenate([fold.margins for fold in useful])
    cuts = np.quantile(pooled, share * np.arange(1, CUTS + 1) / CUTS, method="lower")
    parts = [
        (
            margins_of(fold.signature),
            np.stack(
                [
                    combined(
                        fold.signature, calibration.log_shares(fold.scores, fold.options), weight
                    )[:, fold.truth]
                    for weight in WEIGHTS
                ],
                axis=1,
            ),
        )
        for fold in useful
        if len(fold.scores)
    ]
    if not parts:
        return ConsultRule()
    margins = np.concatenate([margin for margin, _ in parts])
    logs = np.concatenate([log for _, log in parts])  # (n, weights) log share of the truth
    below = margins[None] < cuts[:, None]
    gains = np.einsum("cn,nw->cw", below, logs - logs[:, :1])  # (cuts, weights) over weight 0
    weight = int(np.argmax(gains[-1]))
    if gains[-1, weight] <= 0:
        return ConsultRule()
    cut = int(np.argmax(gains[:, weight] >= ENOUGH * gains[:, weight].max()))
    return ConsultRule(float(cuts[cut]), float(WEIGHTS[weight]))


def combined(signature: np.ndarray, model: np.ndarray, weight: float) -> np.ndarray:
    """Weighted log shares (n, T), normalised again."""
    mixed = (1.0 - weight) * floored(signature) + weight * floored(model)
    return mixed - logsumexp(mixed)


def margins_of(log_shares: np.ndarray) -> np.ndarray:
    """Distance of the two largest shares, (n,); 1 where there is one task only."""
    if log_shares.shape[1] < 2:
        return np.ones(len(log_shares))
    top = np.sort(np.exp(log_shares), axis=1)
    return top[:, -1] - top[:, -2]


def floored(log_shares: np.ndarray) -> np.ndarray:
    """No share below `FLOOR`: a certain error must stay correctable."""
    return np.maximum(log_shares, np.log(FLOOR))


def logsumexp(z: np.ndarray) -> np.ndarray:
    """Row by row, (n, 1)."""
    top = z.max(axis=1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    return top + np.log(np.maximum(np.exp(z - top).sum(axis=1, keepdims=True), 1e-300))
