"""The head of a task, from its sums alone: a linear discriminant shrunk towards the background
(7.3), or plain ridge regression (the rival `ridge_per_task`).

The mean of n images is itself off by a share of their spread, so an image's squared distance to it
is too large by v/n on average, v being that to the true mean. A class score is therefore
`-1/2 (d_c - v/n_c)`. It makes classes of few images equal to those of many; and without it leaving
a row out of five would always speak against its own class, the only one whose mean is then of four.

Shapes: B images, R calibration rows, C classes, K compact width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from archipelago.pipeline.closedform.basis import Basis
from archipelago.pipeline.closedform.discriminant import Discriminant, Removal
from archipelago.pipeline.closedform.ridge import RidgeFit
from archipelago.pipeline.closedform.rows import CalibrationRows
from archipelago.pipeline.closedform.sums import Sums
from archipelago.pipeline.closedform.tempering import blend, log_softmax, sharpen
from archipelago.pipeline.closedform.threads import one_thread

RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
RIDGE, SHARPNESS = 300.0, 0.3  # where no row can be left out
LEAST_SCALE = 0.01  # of T_t in T_0
SHARPNESSES = (0.01, 3.0)
STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # of plain ridge, in mean second moments
STRENGTH, RIDGE_SHARPNESS = 1e-1, 10.0
RIDGE_SHARPNESSES = (0.1, 1000.0)
MOST_CLIP = 10.0
Prior = Literal["background", "identity"]


@dataclass(frozen=True, eq=False)
class Head:
    """Log-probabilities over a task's classes, linear in the compact features.

    Attributes:
        known: (C,) whether the class has a training image.
        weights: (K, C).
        bias: (C,).
        sharpness: q, on the scores `x W + b`.
        clip_weight: w, on CLIP's scores.
        ridge: nu, the strength that was chosen.
        rule: background | identity (what the covariance shrinks towards) | ridge.
    """

    known: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    sharpness: float
    clip_weight: float
    ridge: float
    rule: Literal["background", "identity", "ridge"]

    @one_thread
    def log_probabilities(
        self, compact_BK: np.ndarray, clip_BC: np.ndarray | None = None
    ) -> np.ndarray:
        """`log softmax(q (x W + b) + w clip)`, (B, C); `-inf` for unknown classes.

        Args:
            compact_BK: compact features.
            clip_BC: CLIP's scores of the task's classes; needed where `clip_weight` is not 0.
        """
        return self._normalised(compact_BK.astype(np.float64) @ self.weights + self.bias, clip_BC)

    def _normalised(self, scores_BC: np.ndarray, clip_BC: np.ndarray | None) -> np.ndarray:
        scores = self.sharpness * scores_BC
        if self.clip_weight and clip_BC is not None:
            scores = scores + self.clip_weight * clip_BC.astype(np.float64)
        elif self.clip_weight:
            raise ValueError("this head needs CLIP's scores")
        return log_softmax(np.where(self.known, scores, -np.inf))


@one_thread
def fit_head(
    sums: Sums,
    rows: CalibrationRows,
    clip_RC: np.ndarray | None,
    basis: Basis,
    *,
    prior: Prior = "background",
    ridges: Sequence[float] = RIDGES,
    clip: bool = True,
) -> Head:
    """Fit a head: strength, sharpness and CLIP's weight by leaving calibration rows out.

    Args:
        sums: of the task.
        rows: of the task; those whose class has no other image are skipped.
        clip_RC: CLIP's scores of the rows, with the task's classes; None = without CLIP.
        basis: of the backbone.
        prior: what the covariance shrinks towards.
        ridges: strengths to try.
        clip: False keeps CLIP's weight at 0.

    Raises:
        ValueError: no class has an image.
    """
    clip_RC = clip_RC if clip else None
    mask = _removal(sums, rows, 1.0).possible
    if sums.known.sum() < 2 or not mask.any():
        weight = float(clip_RC is not None and sums.known.sum() > 1)
        model = _discriminant(sums, _moments(sums, basis, prior), RIDGE)
        return _head(sums, model.weights, model.bias, SHARPNESS, weight, RIDGE, prior)
    images = sums.counts[sums.known].astype(np.float64)
    own = np.searchsorted(np.flatnonzero(sums.known), rows.labels[mask])
    best, moments = None, _moments(sums, basis, prior)
    for ridge in ridges:
        model = _discriminant(sums, moments, ridge)
        scores, spread = _left_out(model, sums, rows, mask, ridge)
        sharpness, found = sharpen(scores, own, SHARPNESSES)
        if best is None or found.mean() > best[0].mean():
            best = found, ridge, sharpness, model, scores, spread
    assert best is not None
    found, ridge, sharpness, model, scores, spread = best
    weight = 0.0
    if clip_RC is not None:
        theirs = clip_RC[mask][:, sums.known].astype(np.float64)
        q, w, blended = blend(scores, theirs, own, sharpness, SHARPNESSES, MOST_CLIP)
        gain = blended - found
        if len(gain) > 1 and gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):
            sharpness, weight = q, w
    bias = model.corrected(spread / images).bias
    return _head(sums, model.weights, bias, sharpness, weight, ridge, prior)


@one_thread
def fit_ridge(
    sums: Sums,
    rows: CalibrationRows,
    basis: Basis | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> Head:
    """Ridge regression on one-hot targets with an intercept, from the same sums.

    Strength (in mean second moments of a feature) and sharpness by leaving calibration rows out.

    Raises:
        ValueError: no class has an image.
    """
    del basis  # plain ridge knows no background
    mask = _removal(sums, rows, 1.0).possible
    if sums.known.sum() < 2 or not mask.any():
        fit = RidgeFit.of(sums, STRENGTH)
        return _head(sums, fit.weights, fit.bias, RIDGE_SHARPNESS, 0.0, STRENGTH, "ridge")
    own = np.searchsorted(np.flatnonzero(sums.known), rows.labels[mask])
    best = None
    for strength in strengths:
        fit = RidgeFit.of(sums, strength)
        scores = fit.left_out(rows.compact[mask], own, _copies(rows, mask))
        sharpness, found = sharpen(scores, own, RIDGE_SHARPNESSES)
        if best is None or found.mean() > best[0]:
            best = found.mean(), strength, sharpness, fit
    assert best is not None
    _, strength, sharpness, fit = best
    return _head(sums, fit.weights, fit.bias, sharpness, 0.0, strength, "ridge")


@one_thread
def left_out_head_scores(
    head: Head, sums: Sums, rows: CalibrationRows, clip_RC: np.ndarray | None, basis: Basis
) -> tuple[np.ndarray, np.ndarray]:
    """What a head says of its own calibration rows once each is left out.

    Returns:
        Log-probabilities (R', C) of the rows that can be left out, and the mask (R,) of those.
    """
    mask = _removal(sums, rows, 1.0).possible
    scores = np.zeros((int(mask.sum()), len(sums.counts)))
    if mask.any() and head.rule == "ridge":
        own = np.searchsorted(np.flatnonzero(sums.known), rows.labels[mask])
        fit = RidgeFit.of(sums, head.ridge)
        scores[:, sums.known] = fit.left_out(rows.compact[mask], own, _copies(rows, mask))
    elif mask.any():
        model = _discriminant(sums, _moments(sums, basis, head.rule), head.ridge)
        scores[:, sums.known] = _left_out(model, sums, rows, mask, head.ridge)[0]
    return head._normalised(scores, None if clip_RC is None else clip_RC[mask]), mask


def _moments(sums: Sums, basis: Basis, prior: str) -> tuple[np.ndarray, np.ndarray]:
    """`S_t` and `T_t`, what it is shrunk towards: `T_0` at the scale of `S_t`, both (K, K)."""
    if not sums.known.any():
        raise ValueError("a head needs an image of at least one class")
    target = basis.target if prior == "background" else np.eye(sums.width)
    scatter = sums.within
    trace = float(np.trace(scatter))
    if trace <= 0.0:
        return scatter, target
    return scatter, max(LEAST_SCALE, trace / _spare(sums) / float(np.trace(target))) * target


def _discriminant(sums: Sums, moments: tuple[np.ndarray, np.ndarray], ridge: float) -> Discriminant:
    """`Sigma_t = (S_t + nu T_t) / (N - C + nu)` around the means of the known classes."""
    scatter, target = moments
    covariance = (scatter + ridge * target) / (_spare(sums) + ridge)
    return Discriminant(sums.means[sums.known], covariance)


def _spare(sums: Sums) -> float:
    """N - C, at least 0: images beyond one a class."""
    return sums.total - float(sums.known.sum())


def _removal(sums: Sums, rows: CalibrationRows, share: float) -> Removal:
    return Removal.of(sums.counts[rows.labels], rows.copies, rows.counted, share)


def _left_out(
    model: Discriminant, sums: Sums, rows: CalibrationRows, mask: np.ndarray, ridge: float
) -> tuple[np.ndarray, float]:
    """Scores (R', C') over known classes of the rows in `mask`, each left out; and the spread v."""
    kept = np.flatnonzero(mask)
    images, copies = sums.counts[rows.labels[kept]], rows.copies[kept]
    removal = Removal.of(images, copies, rows.counted[kept], 1.0 / (_spare(sums) + ridge))
    own = np.searchsorted(np.flatnonzero(sums.known), rows.labels[kept])
    distances = model.left_out(rows.compact[kept], own, removal)
    at, left = np.arange(len(kept)), images / removal.stretch  # images that its mean is of
    mine = distances[at, own]
    spread = float((mine * left / (left + 1.0)).mean())
    distances -= spread / sums.counts[sums.known]
    distances[at, own] = mine - spread / left
    return -0.5 * distances, spread


def _copies(rows: CalibrationRows, mask: np.ndarray) -> np.ndarray:
    return np.where(rows.counted, rows.copies, 0)[mask]


def _head(
    sums: Sums,
    weights: np.ndarray,
    bias: np.ndarray,
    sharpness: float,
    clip_weight: float,
    ridge: float,
    rule: Literal["background", "identity", "ridge"],
) -> Head:
    """A head over the whole class list from one over the known classes."""
    full, offsets = np.zeros((sums.width, len(sums.counts))), np.zeros(len(sums.counts))
    full[:, sums.known], offsets[sums.known] = weights, bias
    return Head(sums.known, full, offsets, sharpness, clip_weight, ridge, rule)
