"""Canonical correlations of images and texts, from sums of the learned classes (7.6).

Each training image is paired with its class's text, so that all moments follow from records:

    Sxx = Sigma + D'D,    Sxz = D'E,    Szz = E'E + lambda I

Sigma is the covariance within classes, drawn to the background, D and E how class means and texts
differ from their mean. With the singular values rho of `Sxx^-1/2 Sxz Szz^-1/2` an image has
`a = A'(x - m)`, a text `b = B'(u - mean u)`, and both together the score `cos(a, rho b)`, over the
leading directions that hold 0.99 of `sum rho^2`. Linear in both: random features of images cannot
be had from sums.

Shapes: B images, C classes to be scored, r directions, K compact width, F embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from archipelago.pipeline.closedform.unlearned import Pairs

ENERGY = 0.99
LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Correlations:
    """See the module's text.

    Attributes:
        mean: (K,) m.
        text_mean: (F,).
        images: (K, r) A.
        texts: (F, r) B, times rho.
        rho: (r,) correlations, the largest first.
    """

    mean: np.ndarray
    text_mean: np.ndarray
    images: np.ndarray
    texts: np.ndarray
    rho: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs, strength: float) -> Correlations:
        """Solve it; `lambda` is `strength` times the mean second moment of the texts."""
        lower_z = cholesky(pairs.text_moment(strength), lower=True, check_finite=False)
        texts = solve_triangular(lower_z, pairs.texts_MF.T, lower=True, check_finite=False)
        cross = pairs.whitened_images @ texts.T
        squares, right = np.linalg.eigh(cross.T @ cross)
        squares, right = np.maximum(squares[::-1], 0.0), right[:, ::-1]
        held = np.cumsum(squares)
        kept = int(np.searchsorted(held, ENERGY * held[-1])) + 1
        rho, right = np.sqrt(squares[:kept]), right[:, :kept]
        left = cross @ right / np.maximum(rho, LEAST)
        return cls(
            pairs.mean,
            pairs.text_mean,
            solve_triangular(pairs.total_factor, left, lower=True, trans=1, check_finite=False),
            solve_triangular(lower_z, right, lower=True, trans=1, check_finite=False) * rho,
            rho,
        )

    def scores(self, compact_BK: np.ndarray, text_CF: np.ndarray) -> np.ndarray:
        """Cosines (B, C)."""
        a, b = (compact_BK - self.mean) @ self.images, (text_CF - self.text_mean) @ self.texts
        return _unit(a) @ _unit(b).T


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), LEAST)
