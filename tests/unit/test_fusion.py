"""The fusion formula of unseen images and the mixing weights of neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.model.fusion import fuse, likeliest, softmax, unseen_weight


def _probabilities(*shape: int, seed: int = 0) -> np.ndarray:
    return softmax(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(
    ("learned", "steps", "expected"),
    [(0, 2.0, 0.0), (1, 2.0, 0.2), (2, 2.0, 0.3), (4, 2.0, 0.4), (3, 0.0, 0.6), (0, 0.0, 0.0)],
)
def test_weight_grows_with_training_progress(learned: int, steps: float, expected: float) -> None:
    assert unseen_weight(learned, 0.6, steps) == pytest.approx(expected)


def test_fusion_is_the_formula() -> None:
    frozen, groups = _probabilities(5, 4), _probabilities(5, 2, 4, seed=1)
    shares = np.array([[0.6, 0.2]] * 5)
    got = fuse(frozen, groups, shares, 0.3)
    expected = 0.7 * frozen + 0.3 * (0.75 * groups[:, 0] + 0.25 * groups[:, 1])
    np.testing.assert_allclose(got, expected)
    np.testing.assert_allclose(got.sum(axis=1), 1.0)
    np.testing.assert_allclose(fuse(frozen, groups, shares, 1.0), (expected - 0.7 * frozen) / 0.3)


def test_weight_zero_is_frozen_clip_to_the_bit() -> None:
    frozen = _probabilities(5, 4)
    assert np.array_equal(fuse(frozen, _probabilities(5, 2, 4), np.ones((5, 2)), 0.0), frozen)
    assert np.array_equal(fuse(frozen, np.zeros((5, 0, 4)), np.ones((5, 0)), 0.5), frozen)


def test_each_side_has_its_temperature() -> None:
    logits = np.array([[100.0, 98.0, 0.0]])
    np.testing.assert_allclose(softmax(logits, 2.0)[0, 0] / softmax(logits, 2.0)[0, 1], np.e)
    assert softmax(logits * 1e4).tolist() == [[1.0, 0.0, 0.0]], "no overflow"


def test_the_likeliest_groups_are_asked() -> None:
    shares = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]])
    asked, weights = likeliest(shares, 2)
    assert asked.tolist() == [[1, 2], [0, 1]]
    np.testing.assert_allclose(weights, [[0.7, 0.2], [0.5, 0.5]])
    assert likeliest(shares[:, :1], 2)[0].tolist() == [[0], [0]], "fewer tasks than asked for"
