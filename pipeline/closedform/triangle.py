"""Symmetric matrices as packed upper triangles, products of them, and what keeps them invertible.

Shapes: K width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def packed(matrix_KK: np.ndarray) -> np.ndarray:
    """Upper triangle of a symmetric matrix, row by row: (K (K + 1) / 2,)."""
    return np.concatenate([row[number:] for number, row in enumerate(matrix_KK)])


def unpacked(triangle: np.ndarray) -> np.ndarray:
    """The symmetric matrix (K, K) of a packed triangle, double precision.

    Raises:
        ValueError: the triangle has the length of no width.
    """
    width = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    if width * (width + 1) // 2 != len(triangle):
        raise ValueError(f"{len(triangle)} numbers are no packed triangle")
    upper, start = np.zeros((width, width)), 0
    for number in range(width):
        upper[number, number:] = triangle[start : start + width - number]
        start += width - number
    full = upper + upper.T
    np.fill_diagonal(full, upper.diagonal())
    return full


def inner(matrix_KK: np.ndarray, triangles: Sequence[np.ndarray]) -> np.ndarray:
    """`tr(A S)` of a symmetric matrix with each of some packed ones, (n,)."""
    weights = 2.0 * matrix_KK
    weights[np.diag_indices(len(weights))] *= 0.5
    row = packed(weights)
    return np.array([float(row @ triangle) for triangle in triangles])


def shrunk(covariance_KK: np.ndarray, amount: float, least: float = 0.0) -> np.ndarray:
    """`(1 - a) S + a max(tr S, least)/K I`: a covariance of few images becomes invertible."""
    width = len(covariance_KK)
    trace = max(float(np.trace(covariance_KK)), least)
    mixed = (1.0 - amount) * covariance_KK
    mixed[np.diag_indices(width)] += amount * trace / width
    return mixed
