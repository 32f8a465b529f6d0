"""Sums and calibration rows: parts merge to the whole, nothing is lost on disk."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from archipelago.pipeline.closedform import CalibrationRows, Sums
from archipelago.pipeline.closedform import sums as sums_module
from archipelago.pipeline.closedform.triangle import packed, unpacked
from archipelago.pipeline.store.tensors import dump, load
from tests.unit.tiny_closedform import WIDTH, data, pictures, rows_of

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
COUNTS = (40, 25, 0, 1, 14)


def _close(a: Sums, b: Sums, tolerance: float = 1e-9) -> None:
    for name, array in a.arrays().items():
        np.testing.assert_allclose(array, b.arrays()[name], rtol=tolerance, atol=tolerance)


def _same(a: CalibrationRows, b: CalibrationRows) -> None:
    for field in fields(CalibrationRows):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


def test_sums_are_those_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_module, "_CHUNK", 7)
    features, labels = data("a", COUNTS)
    x, sums = features.astype(np.float64), Sums.of(features, labels, len(COUNTS))
    assert sums.counts.tolist() == list(COUNTS)
    assert sums.known.tolist() == [True, True, False, True, True]
    assert (sums.means[2] == 0).all()
    assert sums.total == len(x)
    np.testing.assert_allclose(sums.mean, x.mean(axis=0))
    np.testing.assert_allclose(sums.means[0], x[labels == 0].mean(axis=0))
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(sums.within + sums.between, centred.T @ centred, atol=1e-9)
    inner = x - sums.means[labels]
    np.testing.assert_allclose(sums.within, inner.T @ inner, atol=1e-9)
    assert sums.numbers() == 5 + 5 * WIDTH + WIDTH * (WIDTH + 1) // 2


@pytest.mark.parametrize("cut", [0, 1, 13, 79, 80])
def test_parts_merge_to_the_whole(cut: int) -> None:
    features, labels = data("a", COUNTS)
    parts = [Sums.of(features[part], labels[part], 5) for part in (slice(0, cut), slice(cut, None))]
    _close(parts[0].merged(parts[1]), Sums.of(features, labels, 5))
    _close(parts[1].merged(parts[0]), Sums.of(features, labels, 5))


def test_a_grown_class_list() -> None:
    features, labels = data("a", COUNTS)
    old = np.isin(labels, (0, 3))
    small = Sums.of(features[old], (labels[old] == 3).astype(int), 2)
    rest = Sums.of(features[~old], labels[~old], 5)
    _close(small.widened([0, 3], 5).merged(rest), Sums.of(features, labels, 5))


def test_sums_refuse_what_they_cannot_sum() -> None:
    features, labels = data("a", COUNTS)
    sums = Sums.of(features, labels, 5)
    with pytest.raises(ValueError, match="2 classes"):
        Sums.of(features, labels, 2)
    with pytest.raises(ValueError, match="labels"):
        Sums.of(features, labels[:3], 5)
    for places in ([0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 9]):
        with pytest.raises(ValueError, match="places"):
            sums.widened(places, 6)
    with pytest.raises(ValueError, match="shape"):
        sums.merged(Sums.of(features, labels, 6))
    features[7, 2] = np.inf
    with pytest.raises(ValueError, match="finite"):
        Sums.of(features, labels, 5)


def test_sums_of_nothing() -> None:
    empty = Sums.of(np.zeros((0, WIDTH), np.float32), np.zeros(0, int), 3)
    assert empty.total == 0 and not empty.known.any() and (empty.mean == 0).all()
    features, labels = data("a", (4, 3, 2))
    _close(empty.merged(Sums.of(features, labels, 3)), Sums.of(features, labels, 3))


def test_stored_and_read() -> None:
    features, labels = data("a", COUNTS)
    sums, rows = Sums.of(features, labels, 5), rows_of(features, labels, labels > 0)
    stored = load(dump({**sums.arrays(), **rows.arrays()}))
    arrays = {name: tensor.numpy() for name, tensor in stored.items()}
    _close(Sums.load(arrays), sums, 0.0)
    _same(CalibrationRows.load(arrays), rows)
    assert CalibrationRows.load(arrays).keys.dtype == np.uint64
    assert rows.numbers() == sum(array.size for array in rows.arrays().values())


def test_triangles() -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    np.testing.assert_array_equal(unpacked(packed(matrix + matrix.T)), matrix + matrix.T)
    with pytest.raises(ValueError, match="triangle"):
        unpacked(np.zeros(5))


def test_rows_are_those_with_the_smallest_keys() -> None:
    features, labels = data("a", COUNTS)
    every, few = rows_of(features, labels), rows_of(features, labels, most=10)
    assert len(every) == len(labels)
    assert (np.diff(every.keys.astype(object)) > 0).all()
    _same(few, every.thinned(10))
    _same(every.thinned(1000), every)
    np.testing.assert_array_equal(every.compact, features[every.places].astype(np.float16))
    np.testing.assert_array_equal(every.labels, labels[every.places])
    assert every.counted.all() and (every.copies == 1).all()
    _same(every.where(every.labels == 1), every.where(every.labels == 1).thinned(99))
    assert set(every.relabelled(np.array([4, 3, 2, 1, 0])).labels) == {0, 1, 3, 4}


def test_equal_images_are_counted_unless_their_labels_differ() -> None:
    features, labels = data("a", (6, 6))
    features[:] = features[0]
    rows = rows_of(features, labels)
    assert sorted(zip(rows.labels, rows.copies, strict=True)) == [(0, 6), (1, 6)]
    assert rows.places[rows.labels == 0] == np.flatnonzero(labels == 0)[0]


def test_of_equal_images_those_in_the_sums_count() -> None:
    features, labels = data("a", (6,))
    features[:4] = features[0]
    rows = rows_of(features, labels, np.array([False, True, True, False, False, True]))
    by_place = {int(place): i for i, place in enumerate(rows.places)}
    assert rows.copies[by_place[0]] == 2 and rows.counted[by_place[0]]
    assert rows.copies[by_place[4]] == 1 and not rows.counted[by_place[4]]


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_parts_merge_to_those_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, labels = data("a", (30, 30, 20))
    repeated = rng.integers(0, 60, 80)
    features, labels = features[repeated], labels[repeated]
    counted = rng.random(80) < 0.7
    cut, most = int(rng.integers(0, 81)), int(rng.integers(1, 50))
    parts = [
        rows_of(features[part], labels[part], counted[part], most, start)
        for part, start in ((slice(0, cut), 0), (slice(cut, None), cut))
    ]
    whole = rows_of(features, labels, counted, most)
    _same(parts[0].merged(parts[1], most), whole)
    _same(parts[1].merged(parts[0], most), whole)


def test_rows_refuse_what_is_not_finite_and_survive_what_is_large() -> None:
    features, labels = data("a", (4, 4))
    large = features.copy()
    large[0, 0] = 1e6
    places = np.arange(8)
    rows = CalibrationRows.pick(pictures(features), large, large, labels, places)
    assert np.isfinite(rows.compact).all()
    large[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        CalibrationRows.pick(pictures(features), large, features, labels, places)


def test_no_rows() -> None:
    none = rows_of(np.zeros((0, WIDTH), np.float32), np.zeros(0, int))
    assert len(none) == 0
    _same(none.merged(none), none)
    features, labels = data("a", (4, 4))
    _same(none.merged(rows_of(features, labels)), rows_of(features, labels))
