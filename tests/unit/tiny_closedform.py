"""Tiny tasks of Gaussian classes for tests of the closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archipelago.pipeline.closedform import Basis, CalibrationRows, KnownTask, Sums, make_basis

WIDTH = 12
EMBEDDING = 5


def basis(width: int = WIDTH, images: int = 400, raw: int = WIDTH, seed: int = 0) -> Basis:
    """A basis of correlated features; `raw` of them before they are compacted."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(raw) + 0.15 * rng.normal(size=(raw, raw))
    features = 3.0 * rng.normal(size=(images, raw)) @ mixing + 1.0
    frozen = rng.normal(size=(images, EMBEDDING))
    return make_basis([(features, frozen)], width, "noise", "all")


def data(
    name: str, counts: Sequence[int], spread: float = 0.6, apart: float = 0.7, width: int = WIDTH
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, K) and labels (N,) of a task, `counts[c]` images of class c, shuffled.

    Within classes, between them and between tasks, variances add up to about the background's.
    Features are representable in half precision, so that rows and sums hold the same numbers.
    """
    rng = np.random.default_rng(list(name.encode()))
    centre = apart * rng.normal(size=width)
    means = centre + spread * rng.normal(size=(len(counts), width))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = means[labels] + 0.35 * rng.normal(size=(len(labels), width))
    return features.astype(np.float16).astype(np.float32), labels


def pictures(features: np.ndarray) -> np.ndarray:
    """Something like pixels, the same for the same features: (N, K, 2, 1) uint8."""
    return features.astype(np.float16).view(np.uint8).reshape(*features.shape, 2, 1)


def rows_of(
    features: np.ndarray,
    labels: np.ndarray,
    counted: np.ndarray | None = None,
    most: int = 256,
    start: int = 0,
) -> CalibrationRows:
    """Calibration rows of features; the frozen ones are the first few."""
    places = np.arange(start, start + len(labels))
    return CalibrationRows.pick(
        pictures(features), features, features[:, :EMBEDDING], labels, places, counted, most
    )


def task(name: str, counts: Sequence[int], most: int = 256, **kind: float) -> KnownTask:
    """A learned task."""
    features, labels = data(name, counts, **kind)
    return KnownTask(Sums.of(features, labels, len(counts)), rows_of(features, labels, most=most))
