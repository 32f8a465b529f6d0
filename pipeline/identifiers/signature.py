"""The signature of a task: sufficient statistics of its features (the paper's prototype, extended).

Shapes: B images, F signature features, C classes of the task.

Only sums are stored, in double precision, so a signature depends neither on the order of learning
nor on other tasks, and forgetting a task is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

_CHUNK = 4096  # rows whose features are held in double precision at once


@lru_cache(maxsize=1)
def _upper(width: int) -> tuple[np.ndarray, ...]:
    """Indices of an upper triangle: many signatures of one width are unpacked in a row."""
    return np.triu_indices(width)


@dataclass(frozen=True)
class Signature:
    """Statistics of one task's training features.

    Attributes:
        counts: (C,) images per class; classes without images are left out.
        means: (C, F) class means.
        packed: upper triangle of the within-class scatter `sum (f - mu_c)(f - mu_c)'`, row by row.
        gram: (R, R) and
        cross: (R,) sums of random ReLU features, only for the `ridge` signature.
    """

    counts: np.ndarray
    means: np.ndarray
    packed: np.ndarray
    gram: np.ndarray | None = None
    cross: np.ndarray | None = None

    @classmethod
    def of(cls, features_BF: np.ndarray, labels_B: np.ndarray) -> Signature:
        """Signature of a task from its training features and labels.

        Raises:
            ValueError: no images, or features that are not finite.
        """
        if len(features_BF) == 0:
            raise ValueError("a signature needs at least one image")
        if not np.isfinite(features_BF).all():
            raise ValueError("signature features are not finite")
        classes, inverse = np.unique(labels_B, return_inverse=True)
        counts = np.bincount(inverse).astype(np.float64)
        sums = np.zeros((len(classes), features_BF.shape[1]))
        np.add.at(sums, inverse, features_BF.astype(np.float64))
        means = sums / counts[:, None]
        scatter = np.zeros((features_BF.shape[1],) * 2)
        for start in range(0, len(features_BF), _CHUNK):
            part = slice(start, start + _CHUNK)
            centred = features_BF[part].astype(np.float64) - means[inverse[part]]
            scatter += centred.T @ centred
        return cls(counts, means, scatter[np.triu_indices(len(scatter))])

    @property
    def total(self) -> float:
        """Images seen."""
        return float(self.counts.sum())

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean over all images, (F,)."""
        return (self.counts[:, None] * self.means).sum(axis=0) / self.total

    @property
    def within(self) -> np.ndarray:
        """Covariance within classes, (F, F)."""
        width = self.means.shape[1]
        full = np.zeros((width, width))
        full[_upper(width)] = self.packed
        return (full + np.triu(full, 1).T) / self.total

    @property
    def between(self) -> np.ndarray:
        """Covariance of the class means, (F, F)."""
        centred = self.means - self.mean
        return (self.counts[:, None] * centred).T @ centred / self.total

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the task: within classes plus between them, (F, F)."""
        return self.within + self.between

    def numbers(self) -> int:
        """Stored numbers."""
        return sum(array.size for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Stored arrays of `identity.safetensors`."""
        arrays = {"counts": self.counts, "means": self.means, "scatter": self.packed}
        if self.gram is not None and self.cross is not None:
            arrays |= {"gram": self.gram, "cross": self.cross}
        return arrays

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray]) -> Signature:
        """Inverse of `arrays`."""
        return cls(
            arrays["counts"], arrays["means"], arrays["scatter"],
            arrays.get("gram"), arrays.get("cross"),
        )  # fmt: skip


@dataclass(frozen=True)
class Background:
    """Mean and covariance of many unrelated images: fixed with the backbone (method 2.6).

    Attributes:
        mean: (F,).
        covariance: (F, F).
        source: what it was computed from.
    """

    mean: np.ndarray
    covariance: np.ndarray
    source: str = ""
    _factors: dict[float, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def whitening(self, shrinkage: float) -> np.ndarray:
        """`V` with `V V'` the inverse of the shrunk covariance, (F, F); computed once."""
        if shrinkage not in self._factors:
            self._factors[shrinkage] = precision_factor(shrunk(self.covariance, shrinkage))
        return self._factors[shrinkage]

    @classmethod
    def of(cls, features_BF: np.ndarray, source: str = "") -> Background:
        """Background of a set of images."""
        features = features_BF.astype(np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(mean, centred.T @ centred / len(features), source)


def shrunk(covariance: np.ndarray, amount: float) -> np.ndarray:
    """`(1 - a) S + a tr(S)/F I`: keeps a covariance of few images invertible."""
    width = len(covariance)
    level = np.trace(covariance) / width
    return (1.0 - amount) * covariance + amount * max(level, 1e-12) * np.eye(width)


def precision_factor(covariance: np.ndarray) -> np.ndarray:
    """Matrix `V` with `V V' = S^-1`, so that a Mahalanobis distance is a squared norm."""
    lower = np.linalg.cholesky(covariance)
    return np.linalg.solve(lower, np.eye(len(lower))).T


def squared_distances(
    x_BF: np.ndarray, means_MF: np.ndarray, norms_M: np.ndarray | None = None
) -> np.ndarray:
    """Squared Euclidean distances (B, M); `norms_M` are the means' squared norms, where known."""
    norms_M = (means_MF**2).sum(axis=1) if norms_M is None else norms_M
    return (x_BF**2).sum(axis=1)[:, None] - 2.0 * (x_BF @ means_MF.T) + norms_M[None]


def task_distance(a: Signature, b: Signature, background: Background, shrinkage: float) -> float:
    """Cosine distance of two tasks' means after centring and whitening by the background."""
    whiten = background.whitening(shrinkage)
    x, y = ((s.mean - background.mean) @ whiten for s in (a, b))
    return float(1.0 - x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))
