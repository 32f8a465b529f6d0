"""The basis of compact features: what is stored defines it."""

from __future__ import annotations

import numpy as np
import pytest

from archipelago.pipeline.closedform import Basis, BasisSums, make_basis
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.store.tensors import dump, load

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
RAW, FROZEN = 10, 4


def _background(images: int, raw: int = RAW) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(raw, raw)) * np.geomspace(0.1, 10.0, raw)
    features = rng.normal(size=(images, raw)) @ mixing + 5.0
    return features.astype(np.float32), rng.normal(size=(images, FROZEN)).astype(np.float32)


def _make(images: int, width: int) -> Basis:
    return make_basis([_background(images)], width, "noise", "all")


def test_leading_directions_of_the_correlation() -> None:
    features, frozen = _background(500)
    basis = _make(500, 6)
    assert basis.width == 6 and basis.weakness() is None and basis.images == 500
    np.testing.assert_allclose(basis.mean, features.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(basis.scale, features.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(basis.frozen_mean, frozen.mean(axis=0), atol=1e-6)
    compact = basis.compact(features)
    assert compact.dtype == np.float32 and compact.shape == (500, 6)
    np.testing.assert_allclose(np.cov(compact.T, bias=True), basis.covariance, atol=2e-4)
    values = np.linalg.eigvalsh(np.corrcoef(features.T))[::-1][:6]
    np.testing.assert_allclose(np.diag(basis.covariance), values, rtol=5e-3)


def test_batches_do_not_matter() -> None:
    features, frozen = _background(500)
    parts = [slice(0, 3), slice(3, 3), slice(3, 400), slice(400, 500)]
    batched = make_basis([(features[p], frozen[p]) for p in parts], 6, "noise", "all")
    np.testing.assert_allclose(batched.covariance, _make(500, 6).covariance, atol=1e-3)
    np.testing.assert_allclose(batched.mean, _make(500, 6).mean, rtol=1e-6)


def test_few_images_give_seeded_random_directions() -> None:
    few, again = _make(39, 6), _make(39, 6)
    assert "random directions" in str(few.weakness()) and "mixed" not in str(few.weakness())
    assert few.digest == again.digest
    exact = few.projection.astype(np.float64)
    np.testing.assert_allclose(exact.T @ exact, np.eye(6), atol=2e-3)
    sums = BasisSums()
    sums.add(*_background(39))
    assert not np.array_equal(sums.basis(6, "noise", "all", seed=1).projection, few.projection)


def test_a_covariance_of_very_few_images_is_mixed_with_its_diagonal() -> None:
    features, frozen = _background(8)
    basis = make_basis([(features, frozen)], 6, "noise", "all")
    assert "30%" in str(basis.weakness())
    plain = np.cov(basis.compact(features).T, bias=True)
    mixed = 0.7 * plain + 0.3 * np.trace(plain) / 6 * np.eye(6)
    np.testing.assert_allclose(basis.covariance, mixed, atol=1e-3)
    assert np.linalg.eigvalsh(basis.covariance).min() > 0.01


def test_what_heads_shrink_towards() -> None:
    basis = _make(500, 6)
    covariance = basis.covariance
    expected = 0.7 * covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6)
    np.testing.assert_allclose(basis.target, expected, atol=1e-12)


def test_narrowed_is_the_leading_part() -> None:
    features, _ = _background(500)
    wide, narrow = _make(500, 8), _make(500, 8).narrowed(3)
    np.testing.assert_allclose(narrow.compact(features), wide.compact(features)[:, :3], atol=1e-5)
    np.testing.assert_array_equal(narrow.covariance, wide.covariance[:3, :3])
    assert wide.narrowed(8) is wide and wide.narrowed(99) is wide
    assert narrow.digest != wide.digest


def test_wider_than_the_features() -> None:
    assert _make(500, 99).width == RAW


def test_rows_do_not_see_each_other() -> None:
    features, _ = _background(60)
    basis, other = _make(500, 6), features.copy()
    other[1:] = np.nan
    np.testing.assert_array_equal(basis.compact(features)[0], basis.compact(other)[0])


@pytest.mark.parametrize("images", [2, 500])
def test_features_that_never_vary(images: int) -> None:
    features, frozen = _background(images)
    features[:, 2] = 7.0
    basis = make_basis([(features, frozen)], 6, "noise", "trunk")
    assert np.isfinite(basis.compact(features)).all()
    assert np.linalg.eigvalsh(basis.target).min() > 0.0
    still = make_basis([(np.ones((images, RAW)), frozen)], 6, "noise", "final")
    assert np.linalg.eigvalsh(still.target).min() > 0.0


def test_stored_and_read() -> None:
    basis = _make(500, 6)
    arrays = {name: tensor.numpy() for name, tensor in load(dump(basis.arrays())).items()}
    again = Basis.load(arrays)
    assert again.digest == basis.digest
    assert (again.images, again.source, again.depths) == (500, "noise", "all")
    features, _ = _background(20)
    np.testing.assert_array_equal(again.compact(features), basis.compact(features))
    np.testing.assert_array_equal(again.covariance, basis.covariance)
    assert basis.projection.dtype == np.float16
    moved = {**arrays, "mean": arrays["mean"] + np.float32(1e-3)}
    assert Basis.load(moved).digest != basis.digest


def test_a_basis_of_another_backbone() -> None:
    basis = _make(500, 6)
    with pytest.raises(UserError, match="jobs/basis"):
        basis.compact(np.zeros((2, RAW + 1), np.float32))
    arrays = basis.arrays()
    with pytest.raises(UserError, match="scale missing"):
        Basis.load({name: array for name, array in arrays.items() if name != "scale"})
    with pytest.raises(UserError, match="fit together"):
        Basis.load({**arrays, "projection": arrays["projection"][:, :5]})
    with pytest.raises(UserError, match="fit together"):
        Basis.load({**arrays, "mean": arrays["mean"][:5]})


def test_a_background_must_be_something() -> None:
    features, frozen = _background(20)
    with pytest.raises(ValueError, match="two images"):
        make_basis([(features[:1], frozen[:1])], 6, "noise", "all")
    with pytest.raises(ValueError, match="depths"):
        make_basis([(features, frozen)], 6, "noise", "some")
    features[3, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        make_basis([(features, frozen)], 6, "noise", "all")
