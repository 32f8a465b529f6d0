"""Deterministic splits of a training set into a part to fit on and a part to judge by."""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.draws import draws, rank_in_class


def check_held_out(
    name: str, rows: np.ndarray, held: np.ndarray, groups: np.ndarray | None = None
) -> None:
    """Refuse to train where nothing is left to judge by.

    Args:
        name: of the domain.
        rows: indices to train on.
        held: held-out indices.
        groups: of all rows, where some belong together.

    Raises:
        UserError: there are none of the latter.
    """
    if not len(held):
        count, things = len(rows), "images"
        if groups is not None:
            count, things = len(np.unique(groups)), "groups of images"
        raise UserError(
            f"{name}: {count} training {things}, one a class at most, leave none to hold out for"
            f" early stopping; give two {things} of some class or more, or choose a method that"
            " learns from one, as method=gda_per_task"
        )


def stratified_fold(
    labels: np.ndarray, fraction: float, seed: int, name: str, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of every class, fixed by (seed, name) on any machine and numpy version.

    Args:
        labels: (N,) class of each row.
        fraction: share to hold out, in (0, 1).
        seed: the run's seed.
        name: the domain's name, so that equal seeds do not couple domains.
        groups: (N,) integers; rows of one number stay on one side. None = every row is alone.

    Returns:
        (indices to train on, held-out indices), both ascending int64, disjoint and complete.
        Every class keeps at least one training row; classes with two rows or more share the
        held-out places in proportion (largest remainder), at least one place in all. With groups,
        each class is held out as near to its share as whole groups allow, and at least one group
        of every class that has two, unless another class would lose its last row by that.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    labels = np.asarray(labels)
    if groups is not None:
        held = _grouped(labels, np.asarray(groups), fraction, f"groups/{seed}/{name}")
        return np.flatnonzero(~held), np.flatnonzero(held)
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


def _grouped(labels: np.ndarray, groups: np.ndarray, fraction: float, words: str) -> np.ndarray:
    """(N,) bool: which rows are held out, whole groups at a time.

    In an order drawn from `words`, groups are taken while no class gets more than its share; then
    each class is given the one more that brings all classes of that group nearest to theirs, where
    it comes nearer by it or has none yet.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    names, member = np.unique(groups, return_inverse=True)
    pairs, sizes = np.unique(np.stack([member, inverse], axis=1), axis=0, return_counts=True)
    starts = np.searchsorted(pairs[:, 0], np.arange(len(names) + 1))
    wanted, taken = counts * fraction, np.zeros(len(counts), np.int64)
    chosen = np.zeros(len(names), bool)

    def part(group: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes of a group, and its rows in each."""
        span = slice(starts[group], starts[group + 1])
        return pairs[span, 1], sizes[span]

    def take(group: int) -> None:
        classes, more = part(group)
        taken[classes] += more
        chosen[group] = True

    def nearer(group: int) -> float:
        """By how much its classes come nearer to their shares, in rows."""
        classes, more = part(group)
        off = np.abs(taken[classes] - wanted[classes])
        return float((off - np.abs(taken[classes] + more - wanted[classes])).sum())

    def spares(group: int) -> bool:
        """Whether every class keeps a row without it."""
        classes, more = part(group)
        return bool((taken[classes] + more < counts[classes]).all())

    order = np.argsort(draws(len(names), words), kind="stable")
    for group in order:
        classes, more = part(group)
        if (taken[classes] + more <= wanted[classes] + 1e-9).all():
            take(group)
    places = np.empty(len(names), np.int64)
    places[order] = np.arange(len(names))
    by_class = np.lexsort((places[pairs[:, 0]], pairs[:, 1]))
    bounds = np.searchsorted(pairs[by_class, 1], np.arange(len(counts) + 1))
    for number in range(len(counts)):
        own = pairs[by_class[bounds[number] : bounds[number + 1]], 0]
        left = [group for group in own if not chosen[group] and spares(group)]
        if left:
            best = max(left, key=nearer)
            if not taken[number] or nearer(best) > 0.0:
                take(best)
    return chosen[member]
