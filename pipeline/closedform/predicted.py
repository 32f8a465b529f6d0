"""Class means predicted from text, by a ridge over the learned classes (7.6).

`mu(u) = m + D' E (E'E + lambda I)^-1 (u - mean u) = m + D' alpha(u)`: a mixture of how the learned
classes differ from their mean, D and E being that of images and of texts. An image is scored by
`-1/2 (x - mu(u))' Sigma^-1 (x - mu(u))`, up to what all classes share:

    (x - m)' R alpha - 1/2 alpha' D R alpha,    R = Sigma^-1 D'

Shapes: B images, C classes to be scored, M learned classes, K compact width, F embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky

from archipelago.pipeline.closedform.unlearned import Pairs


@dataclass(frozen=True, eq=False)
class PredictedMeans:
    """See the module's text.

    Attributes:
        mean: (K,) m.
        text_mean: (F,).
        differences: (M, K) D.
        weights: (K, M) R.
        gram: (M, M) D R.
        coefficients: (M, F), what takes `u - mean u` to alpha.
    """

    mean: np.ndarray
    text_mean: np.ndarray
    differences: np.ndarray
    weights: np.ndarray
    gram: np.ndarray
    coefficients: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs, strength: float) -> PredictedMeans:
        """Solve the ridge; `lambda` is `strength` times the mean second moment of the texts."""
        weights = pairs.weighted_differences
        factor = cholesky(pairs.text_moment(strength), lower=True, check_finite=False)
        coefficients = cho_solve((factor, True), pairs.texts_MF.T, check_finite=False).T
        gram = pairs.images_MK @ weights
        return cls(pairs.mean, pairs.text_mean, pairs.images_MK, weights, gram, coefficients)

    def means(self, text_CF: np.ndarray) -> np.ndarray:
        """Predicted class means (C, K)."""
        return self.mean + self._alpha(text_CF) @ self.differences

    def scores(self, compact_BK: np.ndarray, text_CF: np.ndarray) -> np.ndarray:
        """`-1/2 d` to the predicted means, up to what an image's classes share: (B, C)."""
        alpha = self._alpha(text_CF)
        squares = np.einsum("cm,cm->c", alpha @ self.gram, alpha)
        return (compact_BK - self.mean) @ self.weights @ alpha.T - 0.5 * squares

    def _alpha(self, text_CF: np.ndarray) -> np.ndarray:
        return (text_CF - self.text_mean) @ self.coefficients.T
