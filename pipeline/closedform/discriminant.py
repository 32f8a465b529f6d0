"""A linear discriminant whose rows can be left out in closed form (7.2).

Shapes: B images, R rows that may be left out, G groups (classes or tasks), K compact width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri

LEAST = 1e-3  # smallest denominator of a downdate


@dataclass(frozen=True)
class Removal:
    """What leaving rows out does to a discriminant; without `possible` rows it does nothing.

    Attributes:
        possible: (R,) whether the row can be left out, or was never in.
        stretch: (R,) `k = n/(n - m)`, how much farther the group's mean then is.
        weight: (R,) `e = eps m k`, how much scatter goes.
    """

    possible: np.ndarray
    stretch: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(
        cls, images_R: np.ndarray, copies_R: np.ndarray, counted_R: np.ndarray, share: float
    ) -> Removal:
        """Leave each row out of the group it is in.

        Args:
            images_R: images of the row's group, n.
            copies_R: copies of the row among them, m.
            counted_R: whether they are in the sums at all.
            share: weight of an image in the covariance, eps.
        """
        left = images_R - np.where(counted_R, copies_R, 0)
        possible = (images_R > 0) & (left > 0)
        out = possible & counted_R
        stretch = np.where(out, images_R / np.where(out, left, 1.0), 1.0)
        return cls(possible, stretch, np.where(out, share * copies_R * stretch, 0.0))


@dataclass(frozen=True, eq=False)
class Discriminant:
    """Gaussians of one covariance around several means.

    Attributes:
        means: (G, K).
        covariance: (K, K), positive definite.
        excess: (G,) what squared distances to a mean are too large by on average, since it is the
            mean of few images: `v/n`, v the spread of images around their true mean; None = 0.
    """

    means: np.ndarray
    covariance: np.ndarray
    excess: np.ndarray | None = None

    @cached_property
    def factor(self) -> np.ndarray:
        """Lower Cholesky factor of the covariance, (K, K)."""
        return cholesky(self.covariance, lower=True, check_finite=False)

    @cached_property
    def precision(self) -> np.ndarray:
        """Inverse covariance, (K, K)."""
        lower, failed = dpotri(self.factor, lower=True)
        if failed:
            raise np.linalg.LinAlgError("the covariance is not positive definite")
        return np.tril(lower) + np.tril(lower, -1).T

    @cached_property
    def weights(self) -> np.ndarray:
        """`Sigma^-1 mu`, (K, G)."""
        return cho_solve((self.factor, True), self.means.T, check_finite=False)

    @cached_property
    def bias(self) -> np.ndarray:
        """`-1/2 (diag(mu' Sigma^-1 mu) - v/n)`, (G,)."""
        norms = np.einsum("gk,kg->g", self.means, self.weights)
        return -0.5 * (norms if self.excess is None else norms - self.excess)

    @cached_property
    def _whitened(self) -> np.ndarray:
        return self._whiten(self.means)

    def _whiten(self, x_BK: np.ndarray) -> np.ndarray:
        return solve_triangular(self.factor, x_BK.T, lower=True, check_finite=False).T

    def scores(self, x_BK: np.ndarray) -> np.ndarray:
        """`-1/2 d_g` up to a term that all groups share: (B, G), linear in x."""
        return x_BK.astype(np.float64) @ self.weights + self.bias

    def distances(self, x_BK: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distances `d_g`, less `v/n_g`: (B, G)."""
        x = self._whiten(x_BK.astype(np.float64))
        distances = _squared(x, self._whitened)
        return distances if self.excess is None else distances - self.excess

    def left_out(self, x_RK: np.ndarray, own_R: np.ndarray, removal: Removal) -> np.ndarray:
        """Distances (R, G) of rows to means and under a covariance that do not hold them.

        With `z = x - mu_own`, `h = z' G z`, `e` and `k` of the removal:
        own: `k^2 h / (1 - e h)`; others: `d_j + e ((x - mu_j)' G z)^2 / (1 - e h)`; less `v/n_j`,
        and `v/(n - m)` for the own one.
        """
        x, means = self._whiten(x_RK.astype(np.float64)), self._whitened
        z = x - means[own_R]
        h = np.einsum("rk,rk->r", z, z)
        left = np.maximum(1.0 - removal.weight * h, LEAST)
        along = np.einsum("rk,rk->r", x, z)[:, None] - z @ means.T
        distances = _squared(x, means) + (removal.weight / left)[:, None] * along**2
        mine = removal.stretch**2 * h / left
        if self.excess is not None:
            distances -= self.excess
            mine = mine - removal.stretch * self.excess[own_R]
        distances[np.arange(len(x)), own_R] = mine
        return distances

    def corrected(self, excess: np.ndarray) -> Discriminant:
        """The same with the error of its means taken out."""
        return replace(self, excess=excess)


def _squared(x_BK: np.ndarray, means_GK: np.ndarray) -> np.ndarray:
    norms = np.einsum("bk,bk->b", x_BK, x_BK)[:, None] + np.einsum("gk,gk->g", means_GK, means_GK)
    return np.maximum(norms - 2.0 * x_BK @ means_GK.T, 0.0)
