"""Deterministic splits of a training set into a part to fit on and a part to judge by."""

from __future__ import annotations

import numpy as np

from pipeline.errors import UserError
from pipeline.streams.draws import draws, rank_in_class


def check_held_out(name: str, rows: np.ndarray, held: np.ndarray) -> None:
    """Refuse to train where nothing is left to judge by.

    Args:
        name: of the domain.
        rows: indices to train on.
        held: held-out indices.

    Raises:
        UserError: there are none of the latter.
    """
    if not len(held):
        raise UserError(
            f"{name}: {len(rows)} training images, one a class at most, leave none to hold out for"
            " early stopping; give two images of some class or more, or choose a method that"
            " learns from one, as method=gda_per_task"
        )


def stratified_fold(
    labels: np.ndarray, fraction: float, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of every class, fixed by (seed, name) on any machine and numpy version.

    Args:
        labels: (N,) class of each row.
        fraction: share to hold out, in (0, 1).
        seed: the run's seed.
        name: the domain's name, so that equal seeds do not couple domains.

    Returns:
        (indices to train on, held-out indices), both ascending int64, disjoint and complete.
        Every class keeps at least one training row; classes with two rows or more share the
        held-out places in proportion (largest remainder), at least one place in all.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    labels = np.asarray(labels)
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    keys = draws(len(labels) + len(classes), f"fold/{seed}/{name}")
    takes = _places(counts, fraction, keys[len(labels) :])
    held = rank_in_class(labels, keys[: len(labels)]) < takes[inverse]
    return np.flatnonzero(~held), np.flatnonzero(held)


def _places(counts: np.ndarray, fraction: float, ties: np.ndarray) -> np.ndarray:
    """Held-out rows per class by largest remainder; a class never gives its last row."""
    wanted = np.where(counts >= 2, counts * fraction, 0.0)
    takes = np.minimum(np.floor(wanted + 1e-9), np.maximum(counts - 1, 0)).astype(np.int64)
    total = round(float(wanted.sum()))
    if wanted.any():
        total = max(total, 1)
    for index in np.lexsort((ties, -(wanted - takes).round(9))):
        if takes.sum() >= total:
            break
        if counts[index] >= 2 and takes[index] < counts[index] - 1:
            takes[index] += 1
    return takes
