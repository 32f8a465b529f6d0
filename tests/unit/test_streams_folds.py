"""Held-out folds: stratified, disjoint, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.streams import stratified_fold


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    fraction=st.floats(0.01, 0.49),
    seed=st.integers(0, 2**31),
)
def test_folds_partition_and_stratify(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels)
    train, held = stratified_fold(array, fraction, seed, "d")
    assert sorted([*train, *held]) == list(range(len(array)))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    assert set(array[train]) == set(labels)
    counts = np.bincount(array)
    taken = np.bincount(array[held], minlength=len(counts))
    assert (np.abs(taken - counts * fraction) <= 1).all()
    assert len(held) >= min(1, (counts >= 2).sum())


def test_small_classes_share_the_places() -> None:
    labels = np.repeat(np.arange(100), 3)
    train, held = stratified_fold(labels, 0.1, 0, "few")
    assert len(held) == 30 and len(np.unique(labels[held])) == 30
    assert len(train) == 270


def test_fold_depends_on_seed_and_name_only() -> None:
    labels = np.arange(60) % 4
    first = stratified_fold(labels, 0.2, 7, "aid")[1]
    assert (stratified_fold(labels.astype(np.int32), 0.2, 7, "aid")[1] == first).all()
    assert not np.array_equal(stratified_fold(labels, 0.2, 8, "aid")[1], first)
    assert not np.array_equal(stratified_fold(labels, 0.2, 7, "dtd")[1], first)


def test_fold_is_pinned() -> None:
    """These numbers must never change: stored runs are resumed with them."""
    assert stratified_fold(np.arange(20) % 2, 0.2, 0, "pin")[1].tolist() == [9, 10, 18, 19]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_senseless_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_fold(np.arange(4), fraction, 0, "d")
