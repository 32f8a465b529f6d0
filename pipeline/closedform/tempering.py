"""Log-probabilities from scores: the sharpness that left-out rows find most likely.

Shapes: R rows, C classes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, minimize_scalar


def log_softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Normalised log-probabilities; `-inf` stays, a slice needs one finite score."""
    shifted = scores - scores.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def likelihood(scores_RC: np.ndarray, own_R: np.ndarray) -> np.ndarray:
    """(R,) log-probability of each row's own class."""
    return log_softmax(scores_RC)[np.arange(len(own_R)), own_R]


def sharpen(
    scores_RC: np.ndarray, own_R: np.ndarray, bounds: tuple[float, float]
) -> tuple[float, np.ndarray]:
    """The q for which `softmax(q scores)` is most likely, and (R,) log-likelihoods under it."""

    def loss(log_q: float) -> float:
        return -float(likelihood(np.exp(log_q) * scores_RC, own_R).mean())

    low, high = np.log(bounds)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3})
    q = float(np.exp(found.x))
    return q, likelihood(q * scores_RC, own_R)


def blend(
    scores_RC: np.ndarray,
    clip_RC: np.ndarray,
    own_R: np.ndarray,
    start: float,
    bounds: tuple[float, float],
    most: float,
) -> tuple[float, float, np.ndarray]:
    """The q and w for which `softmax(q scores + w clip)` is most likely, and (R,) log-likelihoods.

    The likelihood is concave in (q, w), so there is one answer.

    Args:
        scores_RC: scores of the discriminant.
        clip_RC: CLIP's scores.
        own_R: each row's class.
        start: q without CLIP.
        bounds: least and greatest q.
        most: greatest w.
    """
    rows = np.arange(len(own_R))

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(at[0] * scores_RC + at[1] * clip_RC)
        p = np.exp(log_p)
        slopes = [
            (values[rows, own_R] - (p * values).sum(axis=1)).mean()
            for values in (scores_RC, clip_RC)
        ]
        return -float(log_p[rows, own_R].mean()), -np.array(slopes)

    box = [bounds, (0.0, most)]
    found = minimize(loss, np.array([start, 0.0]), jac=True, method="L-BFGS-B", bounds=box)
    q, w = (float(value) for value in found.x)
    return q, w, likelihood(q * scores_RC + w * clip_RC, own_R)
