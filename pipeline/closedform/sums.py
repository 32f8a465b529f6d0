"""What a task leaves of its training images: counts, class means, scatter within classes (7.2).

Shapes: N rows, C classes, K compact width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from archipelago.pipeline.closedform.threads import one_thread
from archipelago.pipeline.closedform.triangle import packed, unpacked

_CHUNK = 4096  # rows held in double precision at once


@dataclass(frozen=True, eq=False)
class Sums:
    """Sufficient statistics of a task's compact features, double precision.

    Attributes:
        counts: (C,) training images of each class.
        means: (C, K) class means, zeros where a class has no image.
        scatter: packed upper triangle of `sum (x - mu_c)(x - mu_c)'`, (K (K + 1) / 2,).
    """

    counts: np.ndarray
    means: np.ndarray
    scatter: np.ndarray

    @classmethod
    @one_thread
    def of(cls, compact_NK: np.ndarray, labels_N: np.ndarray, classes: int) -> Sums:
        """Sums of training rows.

        Args:
            compact_NK: compact features, any float.
            labels_N: class of each row, 0 .. classes - 1.
            classes: length of the class list.

        Raises:
            ValueError: a feature is not finite, or a label is out of range.
        """
        labels = np.asarray(labels_N, dtype=np.int64)
        if len(labels) != len(compact_NK):
            raise ValueError(f"{len(compact_NK)} rows, but {len(labels)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels {labels.min()} .. {labels.max()} of {classes} classes")
        width = compact_NK.shape[1]
        counts = np.bincount(labels, minlength=classes).astype(np.float64)
        means, scatter = np.zeros((classes, width)), np.zeros((width, width))
        for rows in _chunks(len(labels)):
            part = compact_NK[rows].astype(np.float64)
            if not np.isfinite(part).all():
                raise ValueError("compact features are not finite")
            np.add.at(means, labels[rows], part)
        means /= np.maximum(counts, 1.0)[:, None]
        for rows in _chunks(len(labels)):
            centred = compact_NK[rows].astype(np.float64) - means[labels[rows]]
            scatter += centred.T @ centred
        return cls(counts, means, packed(scatter))

    def merged(self, other: Sums) -> Sums:
        """Sums of the rows of both, which have the same class list (Chan's pooled update).

        Raises:
            ValueError: the class lists or the widths differ.
        """
        if self.means.shape != other.means.shape:
            raise ValueError(f"sums of shape {self.means.shape} and {other.means.shape}")
        counts = self.counts + other.counts
        share = other.counts / np.maximum(counts, 1.0)
        apart = np.where((self.known & other.known)[:, None], other.means - self.means, 0.0)
        means = np.where(self.known[:, None], self.means + share[:, None] * apart, other.means)
        weighted = np.sqrt(self.counts * share)[:, None] * apart
        scatter = self.scatter + other.scatter + packed(weighted.T @ weighted)
        return Sums(counts, means, scatter)

    def widened(self, places: Sequence[int], classes: int) -> Sums:
        """The same sums in a longer class list.

        Args:
            places: where each class of this list stands in the longer one.
            classes: length of the longer list.

        Raises:
            ValueError: not every class has a place of its own there.
        """
        index = np.asarray(places, dtype=np.int64)
        distinct = len(set(index.tolist())) == len(index) == len(self.counts)
        if not distinct or (len(index) and not 0 <= index.min() <= index.max() < classes):
            raise ValueError(f"{len(self.counts)} classes do not fit places of {classes}")
        counts, means = np.zeros(classes), np.zeros((classes, self.width))
        counts[index], means[index] = self.counts, self.means
        return Sums(counts, means, self.scatter)

    @property
    def width(self) -> int:
        """K."""
        return self.means.shape[1]

    @cached_property
    def total(self) -> float:
        """N, training images of all classes."""
        return float(self.counts.sum())

    @cached_property
    def known(self) -> np.ndarray:
        """(C,) whether a class has an image."""
        return self.counts > 0

    @cached_property
    def mean(self) -> np.ndarray:
        """(K,) mean over all images; zeros without images."""
        return self.counts @ self.means / max(self.total, 1.0)

    @property
    def within(self) -> np.ndarray:
        """(K, K) scatter within classes, `S_t`."""
        return unpacked(self.scatter)

    @property
    def between(self) -> np.ndarray:
        """(K, K) scatter of the class means around the mean, `B_t`."""
        spread = self.spread
        return spread.T @ spread

    @property
    def spread(self) -> np.ndarray:
        """(C, K) `sqrt(n_c) (mu_c - m)`, a factor of `B_t`."""
        return np.sqrt(self.counts)[:, None] * (self.means - self.mean)

    def numbers(self) -> int:
        """Stored numbers."""
        return sum(array.size for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Stored arrays by name."""
        return {"counts": self.counts, "means": self.means, "scatter": self.scatter}

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray]) -> Sums:
        """Inverse of `arrays`; other names are left alone."""
        return cls(arrays["counts"], arrays["means"], arrays["scatter"])


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, rows, _CHUNK)]
