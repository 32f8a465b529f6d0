"""What learned tasks may say together: joint class scores, and classes told by their texts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.optimize import minimize_scalar

from archipelago.pipeline.closedform import KnownTask
from archipelago.pipeline.closedform.cca import ENERGY, Correlations
from archipelago.pipeline.closedform.joint import Joint, mixed
from archipelago.pipeline.closedform.predicted import PredictedMeans
from archipelago.pipeline.closedform.taskset import TaskSet
from archipelago.pipeline.closedform.tempering import log_softmax
from archipelago.pipeline.closedform.unlearned import (
    STRENGTHS,
    Pairs,
    TextModel,
    Unlearned,
    retold,
)
from tests.unit.tiny_closedform import EMBEDDING, WIDTH, basis, data, task

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
BASIS = basis()
COUNTS = {"a": (12, 9, 10), "b": (15, 15), "c": (6, 0, 7, 8, 1), "d": (30,), "e": (9, 11, 8, 7)}
TASKS = {name: task(name, counts) for name, counts in COUNTS.items()}
IMAGES = np.concatenate([data(name, counts)[0] for name, counts in COUNTS.items()])
DRAWN = np.random.default_rng(3)
READING = DRAWN.normal(size=(WIDTH, EMBEDDING)) / np.sqrt(WIDTH)
KINDS: tuple[type[TextModel], ...] = (PredictedMeans, Correlations)


def _text(means: np.ndarray) -> np.ndarray:
    """Class features that tell something of the images, normalised, in single precision."""
    u = means @ READING + 0.05 * DRAWN.normal(size=(len(means), EMBEDDING))
    return (u / np.linalg.norm(u, axis=1, keepdims=True)).astype(np.float32)


TEXTS = {name: _text(known.sums.means + 0.01) for name, known in TASKS.items()}


def _set(tasks: Mapping[str, KnownTask], most: int = 8192) -> TaskSet:
    return TaskSet(tasks, BASIS, 0.003, most)


def _pairs(names: str) -> Pairs:
    """The classes of some tasks, summed up image by image."""
    sums = [TASKS[name].sums for name in names]
    weights = [s.counts[s.known] / s.total / len(names) for s in sums]
    texts = [TEXTS[name][TASKS[name].sums.known].astype(np.float64) for name in names]
    model = _set({name: TASKS[name] for name in names}).by_class
    return Pairs(model, np.concatenate(texts), np.concatenate(weights))


# -- joint class scores ----------------------------------------------------------------------------


def test_joint_scores_are_those_of_one_discriminant_as_sharp_as_left_out_rows_say() -> None:
    tasks = _set(TASKS)
    joint = Joint(tasks)
    found = joint.scores(IMAGES)
    assert found is not None and list(found) == list("abcde")
    assert np.isneginf(found["c"][:, 1]).all(), "a class without images"
    every = np.concatenate(list(found.values()), axis=1)
    assert joint.sharpness is not None
    raw = joint.sharpness * tasks.by_class.scores(IMAGES)
    np.testing.assert_allclose(every[:, tasks.known], raw)
    parts = [tasks.left_out_of_classes(t, r) for t, r in enumerate(tasks.rows) if t != 2]
    kept = tasks.rows[2].where(tasks.rows[2].labels != 4)  # the class of one image
    scores = np.concatenate([*parts[:2], tasks.left_out_of_classes(2, kept), *parts[2:]])
    rows = [tasks.rows[0], tasks.rows[1], kept, tasks.rows[3], tasks.rows[4]]
    own = np.concatenate([tasks.own_class(t, r) for t, r in enumerate(rows)])

    def loss(q: float) -> float:
        return -float(log_softmax(q * scores)[np.arange(len(own)), own].mean())

    best = minimize_scalar(loss, bounds=(0.01, 3.0), method="bounded").x
    assert joint.sharpness == pytest.approx(best, rel=0.02)


def test_a_share_of_joint_scores() -> None:
    ours, theirs = log_softmax(DRAWN.normal(size=(6, 5))), log_softmax(DRAWN.normal(size=(6, 5)))
    ours[0, 1] = theirs[0, 1] = -np.inf
    for share in (0.0, 0.3, 1.0):
        both = np.exp(mixed(ours, theirs, share))
        np.testing.assert_allclose(both, (1 - share) * np.exp(ours) + share * np.exp(theirs))


def test_where_no_row_can_be_left_out_nothing_is_joint() -> None:
    single = {name: task(name, (1, 1, 1)) for name in "xyz"}
    assert Joint(_set(single)).scores(IMAGES) is None


# -- classes told by their texts -------------------------------------------------------------------


def test_predicted_means_are_a_ridge_over_images() -> None:
    """Each image regressed on its class's text, a task counting alike whatever its size."""
    pairs, strength = _pairs("abc"), 0.3
    x, u, w = [], [], []
    for name in "abc":
        features, labels = data(name, COUNTS[name])
        x.append(features.astype(np.float64))
        u.append(TEXTS[name][labels].astype(np.float64))
        w.append(np.full(len(labels), 1 / (3 * len(labels))))
    x_NK, u_NF, w_N = np.concatenate(x), np.concatenate(u), np.concatenate(w)
    mean, centre = w_N @ x_NK, w_N @ u_NF
    away = u_NF - centre
    moment = (w_N[:, None] * away).T @ away
    moment += strength * np.trace(moment) / EMBEDDING * np.eye(EMBEDDING)
    ridge = np.linalg.solve(moment, (w_N[:, None] * away).T @ (x_NK - mean))
    model = PredictedMeans.of(pairs, strength)
    expected = mean + (TEXTS["e"] - centre) @ ridge
    np.testing.assert_allclose(model.means(TEXTS["e"]), expected, atol=1e-9)
    apart = IMAGES[:, None].astype(np.float64) - expected
    inverse = np.linalg.inv(pairs.model.covariance)
    distances = np.einsum("bck,kl,bcl->bc", apart, inverse, apart)
    found = model.scores(IMAGES.astype(np.float64), TEXTS["e"].astype(np.float64))
    np.testing.assert_allclose(log_softmax(found), log_softmax(-0.5 * distances), atol=1e-6)


def test_correlations_are_the_canonical_ones() -> None:
    """The generalised eigenproblem of the moments, solved as it stands."""
    pairs, strength = _pairs("abce"), 0.1
    means, w = pairs.model.means, pairs.weights[:, None]
    x, u = means - (w * means).sum(axis=0), pairs.texts - (w * pairs.texts).sum(axis=0)
    within = pairs.model.covariance
    xx, xz, zz = within + (w * x).T @ x, (w * x).T @ u, (w * u).T @ u
    zz = zz + strength * np.trace(zz) / EMBEDDING * np.eye(EMBEDDING)
    squares, texts = eigh(xz.T @ np.linalg.solve(xx, xz), zz)
    squares, texts = squares[::-1], texts[:, ::-1]
    kept = int((np.cumsum(squares) < ENERGY * squares.sum()).sum()) + 1
    rho = np.sqrt(squares[:kept])
    model = Correlations.of(pairs, strength)
    np.testing.assert_allclose(model.rho, rho, atol=1e-9)
    assert (rho < 1.0).all() and kept > 1
    images = np.linalg.solve(xx, xz @ texts[:, :kept]) / rho
    np.testing.assert_allclose(images.T @ xx @ images, np.eye(kept), atol=1e-8)
    a = (IMAGES - pairs.mean) @ images
    b = (TEXTS["d"] - pairs.text_mean) @ (texts[:, :kept] * rho)
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    found = model.scores(IMAGES.astype(np.float64), TEXTS["d"].astype(np.float64))
    np.testing.assert_allclose(found, a @ b.T / norms, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_and_sharpness_are_the_likeliest_for_tasks_left_out(
    kind: type[TextModel],
) -> None:
    model = Unlearned(_set(TASKS), TEXTS, kind)
    assert model.fitted is not None
    _, strength, sharpness = model.fitted
    values = {}
    for tried in STRENGTHS:
        for q in (0.5 * sharpness, sharpness, 2 * sharpness):
            likely = []
            for name in "abce":  # d has one class
                others = "".join(other for other in TASKS if other != name)
                known, rows = TASKS[name].sums.known, TASKS[name].rows
                scores = kind.of(_pairs(others), tried).scores(
                    rows.compact.astype(np.float64), TEXTS[name][known].astype(np.float64)
                )
                own = np.searchsorted(np.flatnonzero(known), rows.labels)
                likely.append(log_softmax(q * scores)[np.arange(len(own)), own])
            values[tried, q] = float(np.concatenate(likely).mean())
    assert max(values, key=lambda at: values[at]) == (strength, sharpness)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_tell_classes_of_a_new_task(kind: type[TextModel]) -> None:
    """Where names say what images show, and enough classes were learned."""
    many = {f"{n:02}": task(f"{n:02}", (8,) * 6) for n in range(8)}
    texts = {name: _text(known.sums.means) for name, known in many.items()}
    features, labels = data("new", (20,) * 4)
    named = _text(np.stack([features[labels == c].mean(axis=0) for c in range(4)]))
    scores = Unlearned(_set(many), texts, kind).scores(features, named)
    assert scores is not None
    assert (scores.argmax(axis=1) == labels).mean() > 0.5


def test_the_order_of_learning_leaves_no_bit_and_images_do_not_see_each_other() -> None:
    strange = _text(DRAWN.normal(size=(3, WIDTH)))

    def said(order: tuple[str, ...], images: np.ndarray) -> list[np.ndarray]:
        tasks = _set({name: TASKS[name] for name in order})
        texts = {name: TEXTS[name] for name in order}
        joint = Joint(tasks).scores(images)
        assert joint is not None
        told = [Unlearned(tasks, texts, kind).scores(images, strange) for kind in KINDS]
        assert told[0] is not None and told[1] is not None
        return [np.concatenate(list(joint.values()), axis=1), told[0], told[1]]

    expected = said(tuple("abcde"), IMAGES)
    for order in itertools.islice(itertools.permutations("abcde"), 7, None, 40):
        for found, wanted in zip(said(order, IMAGES), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(said(tuple("abcde"), IMAGES[4:5]), expected, strict=True):
        np.testing.assert_allclose(found[0], wanted[4], atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["a", "ab", "bd"])
def test_too_few_classes_tell_nothing(kind: type[TextModel], names: str) -> None:
    tasks = _set({name: TASKS[name] for name in names})
    assert Unlearned(tasks, TEXTS, kind).scores(IMAGES, TEXTS["e"]) is None


def test_what_is_told_says_which_and_not_whether() -> None:
    scores, told = DRAWN.normal(size=(7, 4)), DRAWN.normal(size=(7, 4))
    found = retold(scores, told)
    np.testing.assert_allclose(log_softmax(found), log_softmax(scores + told))
    together = np.logaddexp.reduce(found, axis=1)
    np.testing.assert_allclose(together, np.logaddexp.reduce(scores, axis=1))
    np.testing.assert_allclose(retold(scores[:, :1], told[:, :1]), scores[:, :1])
