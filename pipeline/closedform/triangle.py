"""Symmetric matrices as packed upper triangles, and the two mixtures that keep them invertible.

Shapes: K width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)
def _upper(width: int) -> tuple[np.ndarray, ...]:
    """Indices of an upper triangle, row by row: many matrices of one width come in a row."""
    return np.triu_indices(width)


def packed(matrix_KK: np.ndarray) -> np.ndarray:
    """Upper triangle of a symmetric matrix, row by row: (K (K + 1) / 2,)."""
    return matrix_KK[_upper(len(matrix_KK))]


def unpacked(triangle: np.ndarray) -> np.ndarray:
    """The symmetric matrix (K, K) of a packed triangle, double precision.

    Raises:
        ValueError: the triangle has the length of no width.
    """
    width = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    if width * (width + 1) // 2 != len(triangle):
        raise ValueError(f"{len(triangle)} numbers are no packed triangle")
    full = np.zeros((width, width))
    full[_upper(width)] = triangle
    return full + np.triu(full, 1).T


def shrunk(covariance_KK: np.ndarray, amount: float, least: float = 0.0) -> np.ndarray:
    """`(1 - a) S + a max(tr S, least)/K I`: a covariance of few images becomes invertible."""
    width = len(covariance_KK)
    trace = max(float(np.trace(covariance_KK)), least)
    mixed = (1.0 - amount) * covariance_KK
    mixed[np.diag_indices(width)] += amount * trace / width
    return mixed
