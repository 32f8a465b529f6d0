"""Signatures are sums: any order, exact to forget, nothing lost on disk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pipeline.identifiers.background import depths, signature_columns
from pipeline.identifiers.signature import (
    Background,
    precision_factor,
    shrunk,
    squared_distances,
    task_distance,
)

from pipeline.errors import UserError
from pipeline.identifiers import Evidence, Identifier, Signature, build_identifier
from pipeline.settings import IdentifierSettings
from pipeline.store.tensors import dump, load

WIDTH = 10
KINDS = ["mean", "class_means", "gaussian", "ridge"]
TASKS = ["a", "b", "c", "d"]


def _data(task: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(ord(task))
    labels = rng.integers(0, 2 + ord(task) % 3, 60)
    centres = 2.0 * rng.normal(size=(5, WIDTH)) + 4.0 * rng.normal(size=WIDTH)
    return (centres[labels] + rng.normal(size=(60, WIDTH))).astype(np.float32), labels


def _background() -> Background:
    return Background.of(6.0 * np.random.default_rng(0).normal(size=(400, WIDTH)) + 1.0)


def _identifier(kind: str) -> Identifier:
    settings = IdentifierSettings(name="prototype", signature=kind, ridge_features=40)
    return build_identifier(settings, _background())


def _learn(identifier: Identifier, task: str) -> tuple[Signature, dict]:
    features, labels = _data(task)
    signature = Signature.of(features[:50], labels[:50])
    signature = identifier.prepare(signature, features[:50])
    return signature, identifier.learn(task, signature, features[50:])


def test_statistics_are_the_sample_ones() -> None:
    features, labels = _data("a")
    signature = Signature.of(features, labels)
    x = features.astype(np.float64)
    np.testing.assert_allclose(signature.mean, x.mean(axis=0))
    np.testing.assert_allclose(signature.covariance, np.cov(x.T, bias=True), atol=1e-10)
    centred = x.copy()
    for c in np.unique(labels):
        centred[labels == c] -= x[labels == c].mean(axis=0)
    np.testing.assert_allclose(signature.within, centred.T @ centred / 60, atol=1e-10)
    assert signature.total == 60 and signature.means.shape == (len(np.unique(labels)), WIDTH)


def test_a_signature_needs_finite_images() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Signature.of(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="not finite"):
        Signature.of(np.array([[1.0, np.nan]]), np.zeros(1, int))


@pytest.mark.parametrize("kind", KINDS)
def test_storing_loses_nothing(kind: str) -> None:
    signature, _ = _learn(_identifier(kind), "a")
    arrays = {k: v.numpy() for k, v in load(dump(signature.arrays())).items()}
    again = Signature.load(arrays)
    assert set(again.arrays()) == set(signature.arrays()) == set(arrays)
    for name, array in signature.arrays().items():
        assert array.dtype == np.float64 and np.array_equal(again.arrays()[name], array)
    assert again.numbers() == sum(a.size for a in arrays.values())
    assert ("gram" in arrays) == (kind == "ridge")


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_learning_does_not_matter(kind: str) -> None:
    probe = np.concatenate([_data(task)[0] for task in TASKS])
    first = _identifier(kind)
    known = {task: _learn(first, task) for task in TASKS}
    reference = first.identify(Evidence(probe))
    for order in itertools.permutations(TASKS):
        other = _identifier(kind)
        for task in order:
            signature, _ = _learn(other, task)
            for name, array in signature.arrays().items():
                assert np.array_equal(array, known[task][0].arrays()[name])
        # the same calibrations: those depend on what was known when a task came
        restored = _identifier(kind)
        for task in order:
            restored.restore(task, *known[task])
        found = restored.identify(Evidence(probe))
        columns = [order.index(task) for task in TASKS]
        np.testing.assert_allclose(found.shares[:, columns], reference.shares, atol=1e-9)
        np.testing.assert_allclose(found.unseen_score, reference.unseen_score, atol=1e-8)
        assert found.options == order


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("restored", [False, True])
def test_learning_then_forgetting_leaves_no_bit(kind: str, restored: bool) -> None:
    probe = np.concatenate([_data(task)[0] for task in TASKS])
    identifier = _identifier(kind)
    for task in TASKS[:3]:
        signature, calibration = _learn(identifier, task)
    if restored:  # forget in the middle of what a restart has read back
        identifier.forget("b")
    before = identifier.identify(Evidence(probe))
    threshold = identifier.threshold
    signature, calibration = _learn(identifier, "d")
    moved = identifier.identify(Evidence(probe))
    assert moved.shares.shape[1] == before.shares.shape[1] + 1
    identifier.forget("d")
    after = identifier.identify(Evidence(probe))
    for name in ("probabilities", "shares", "chosen", "unseen_score"):
        assert np.array_equal(getattr(after, name), getattr(before, name)), name
    assert identifier.threshold == threshold and after.options == before.options
    identifier.restore("d", signature, calibration)
    again = identifier.identify(Evidence(probe))
    assert np.array_equal(again.probabilities, moved.probabilities)


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_is_as_if_never_learned(kind: str) -> None:
    probe = _data("c")[0]
    whole, never = _identifier(kind), _identifier(kind)
    known = {task: _learn(whole, task) for task in TASKS}
    whole.forget("b")
    for task in ("a", "c", "d"):
        never.restore(task, *known[task])
    got, expected = whole.identify(Evidence(probe)), never.identify(Evidence(probe))
    assert np.array_equal(got.probabilities, expected.probabilities)
    assert np.array_equal(got.unseen_score, expected.unseen_score)


def test_whitening_and_distances() -> None:
    covariance = shrunk(_background().covariance, 0.01)
    factor = precision_factor(covariance)
    np.testing.assert_allclose(factor @ factor.T @ covariance, np.eye(WIDTH), atol=1e-9)
    np.testing.assert_allclose(np.trace(covariance), np.trace(_background().covariance))
    x, means = _data("a")[0].astype(float), _data("b")[0][:4].astype(float)
    np.testing.assert_allclose(
        squared_distances(x, means), ((x[:, None] - means[None]) ** 2).sum(axis=2), atol=1e-9
    )
    a, b, c = (Signature.of(*_data(t)) for t in "abc")
    assert task_distance(a, a, _background(), 0.003) == pytest.approx(0.0, abs=1e-12)
    assert task_distance(a, b, _background(), 0.003) == task_distance(b, a, _background(), 0.003)
    assert 0 < task_distance(a, c, _background(), 0.003) <= 2


def test_depths_and_their_columns() -> None:
    assert depths(12, "all", 6) == (3, 6, 9)
    assert depths(12, "trunk", 6) == (3, 6)
    assert depths(12, "final", 6) == ()
    everything = signature_columns(5, 3, 12, "all", 6)
    assert everything.tolist() == list(range(33))
    assert signature_columns(5, 3, 12, "trunk", 6).tolist() == list(range(20))
    assert signature_columns(5, 3, 12, "final", 6).tolist() == [30, 31, 32]


def test_a_trunk_without_depths_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"identifier\.depths=trunk.*experts\.first_block \(now 0\)"
    ):
        depths(12, "trunk", 0)
    assert depths(12, "all", 0) == (3, 6, 9)
