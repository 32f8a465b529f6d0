"""Ridge regression on one-hot targets from a task's sums, rows left out in closed form.

Shapes: R rows, C classes with images, K compact width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky

from archipelago.pipeline.closedform.discriminant import LEAST
from archipelago.pipeline.closedform.sums import Sums


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """`argmin sum |y - W' (x, 1)|^2 + lambda |W without intercept|^2` over the known classes.

    Attributes:
        coefficients: (K + 1, C), the intercept last.
        factor: lower Cholesky factor of the regularised second moment, (K + 1, K + 1).
    """

    coefficients: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, sums: Sums, strength: float) -> RidgeFit:
        """Solve it, with `lambda` = `strength` times the mean centred second moment.

        Raises:
            ValueError: no class has an image.
        """
        if not sums.known.any():
            raise ValueError("ridge regression needs an image of at least one class")
        counts, means = sums.counts[sums.known], sums.means[sums.known]
        width = sums.width
        moment = np.zeros((width + 1, width + 1))
        moment[:width, :width] = sums.within + (counts[:, None] * means).T @ means
        moment[width, :width] = moment[:width, width] = counts @ means
        moment[width, width] = sums.total
        spread = float(np.trace(moment[:width, :width]) - sums.total * (sums.mean @ sums.mean))
        level = spread / width if spread > 1e-12 * float(np.trace(moment)) else 1.0
        moment[np.arange(width), np.arange(width)] += strength * level
        targets = np.concatenate([(counts[:, None] * means).T, counts[None]])
        factor = cholesky(moment, lower=True, check_finite=False)
        return cls(cho_solve((factor, True), targets, check_finite=False), factor)

    @property
    def weights(self) -> np.ndarray:
        """(K, C)."""
        return self.coefficients[:-1]

    @property
    def bias(self) -> np.ndarray:
        """(C,)."""
        return self.coefficients[-1]

    def left_out(self, x_RK: np.ndarray, own_R: np.ndarray, copies_R: np.ndarray) -> np.ndarray:
        """Predictions (R, C) of fits without all copies of a row: `(p - m h y) / (1 - m h)`,
        with `h = x' A^-1 x`, `p` the fit's prediction and `y` the row's one-hot target."""
        x = np.concatenate([x_RK.astype(np.float64), np.ones((len(x_RK), 1))], axis=1)
        solved = cho_solve((self.factor, True), x.T, check_finite=False).T
        taken = copies_R * np.einsum("rk,rk->r", x, solved)
        predictions = x @ self.coefficients
        predictions[np.arange(len(x)), own_R] -= taken
        return predictions / np.maximum(1.0 - taken, LEAST)[:, None]
