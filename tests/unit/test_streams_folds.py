"""Held-out folds: stratified, disjoint, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archipelago.pipeline.streams import stratified_fold


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


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=80),
    apart=st.booleans(),
    fraction=st.floats(0.01, 0.49),
    seed=st.integers(0, 2**31),
)
def test_groups_are_held_out_whole(
    rows: list[tuple[int, int]], apart: bool, fraction: float, seed: int
) -> None:
    """`apart`: each group is of one class; else groups go across classes."""
    labels = np.array([label for label, _ in rows])
    groups = np.array([group + 100 * label * apart for label, group in rows])
    train, held = stratified_fold(labels, fraction, seed, "d", groups)
    assert sorted([*train, *held]) == list(range(len(rows)))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    assert not set(groups[train]) & set(groups[held]), "no group is on both sides"
    assert set(labels[train]) == set(labels), "no class loses its last row"
    if not apart:
        return
    for label in set(labels):
        own, inside = labels == label, np.isin(np.arange(len(rows)), held)
        sizes = np.unique(groups[own & ~inside], return_counts=True)[1]
        number, taken = len(np.unique(groups[own])), int((own & inside).sum())
        assert (taken > 0) == (number > 1), "a group of each class that has two"
        if len(np.unique(groups[own & inside])) > 1:
            off = abs(taken - fraction * own.sum())
            assert off <= min(sizes) / 2 + 1e-6, "within half of the smallest that is left"


def test_groups_across_classes_are_taken_where_no_class_loses_all() -> None:
    labels, groups = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 3])
    for seed in range(20):
        held = stratified_fold(labels, 0.3, seed, "d", groups)[1]
        assert set(groups[held]) in ({0, 2}, {0, 3}), "group 1 has all of class 1"


def test_a_fold_of_groups_depends_on_seed_and_name_only() -> None:
    labels, groups = np.arange(240) % 4, np.arange(240) // 8 * 4 + np.arange(240) % 4
    first = stratified_fold(labels, 0.1, 7, "aid", groups)[1]
    assert (stratified_fold(labels, 0.1, 7, "aid", groups)[1] == first).all()
    for seed, name in ((8, "aid"), (7, "dtd")):
        assert not np.array_equal(stratified_fold(labels, 0.1, seed, name, groups)[1], first)


def test_a_fold_of_groups_is_pinned() -> None:
    """These numbers must never change: stored runs are resumed with them."""
    labels, groups = np.repeat([0, 1], 10), np.arange(20) // 2
    assert stratified_fold(labels, 0.3, 0, "pin", groups)[1].tolist() == [4, 5, 14, 15]
