"""Heads from sums: left-out rows equal refitted heads, and every limit has an answer."""

from __future__ import annotations

import numpy as np
import pytest

from archipelago.pipeline.closedform import (
    CalibrationRows,
    Head,
    KnownTask,
    Sums,
    fit_head,
    fit_ridge,
    left_out_head_scores,
)
from archipelago.pipeline.closedform.discriminant import Discriminant, Removal
from archipelago.pipeline.closedform.head import RIDGE, SHARPNESS
from archipelago.pipeline.closedform.tempering import log_softmax
from tests.unit.tiny_closedform import WIDTH, basis, data, rows_of, task

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
COUNTS = (9, 6, 0, 1, 7, 5)
BASIS = basis()


def _task_with_copies() -> tuple[np.ndarray, np.ndarray, KnownTask]:
    """A task in which some rows occur up to three times and some are not in the sums."""
    features, labels = data("copies", COUNTS)
    first = np.flatnonzero(labels == 0)
    features[first[:3]] = features[first[0]]
    outside = np.flatnonzero(labels == 4)[:2]
    counted = np.isin(np.arange(len(labels)), outside, invert=True)
    sums = Sums.of(features[counted], labels[counted], len(COUNTS))
    return features, labels, KnownTask(sums, rows_of(features, labels, counted))


def _clip(known: KnownTask, informative: float) -> np.ndarray:
    """Scores (R, C) like CLIP's, that say something of the class, or nothing."""
    noise = np.random.default_rng(5).normal(size=(len(known.rows), len(known.sums.counts)))
    noise[np.arange(len(noise)), known.rows.labels] += informative
    return noise


def _without(known: KnownTask, features: np.ndarray, labels: np.ndarray, row: int) -> np.ndarray:
    """Which images the sums hold once a calibration row is left out."""
    same = (features.astype(np.float16) == known.rows.compact[row]).all(axis=1)
    outside = known.rows.places[~known.rows.counted]
    return ~(same & (labels == known.rows.labels[row])) & ~np.isin(np.arange(len(labels)), outside)


@pytest.mark.parametrize("rule", ["background", "identity"])
def test_leaving_a_row_out_equals_refitting(rule: str) -> None:
    features, labels, known = _task_with_copies()
    sums, rows = known.sums, known.rows
    clip = _clip(known, 2.0)
    head = fit_head(sums, rows, clip, BASIS, prior=rule)
    found, mask = left_out_head_scores(head, sums, rows, clip, BASIS)
    assert mask.tolist() == (rows.labels != 3).tolist()
    spare = sums.total - sums.known.sum()
    target = BASIS.target if rule == "background" else np.eye(WIDTH)
    target = target * np.trace(sums.within) / spare / np.trace(target)
    refitted, own, means_of = [], rows.labels[mask], []
    for row in np.flatnonzero(mask):
        kept = _without(known, features, labels, row)
        fewer = Sums.of(features[kept], labels[kept], len(COUNTS))
        covariance = (fewer.within + head.ridge * target) / (spare + head.ridge)
        away = rows.compact[row].astype(np.float64) - fewer.means[fewer.known]
        distances = np.full(len(COUNTS), np.inf)
        distances[fewer.known] = np.einsum("ck,kl,cl->c", away, np.linalg.inv(covariance), away)
        refitted.append(distances)
        means_of.append(fewer.counts)
    distances, images = np.array(refitted), np.maximum(np.array(means_of), 1)
    at = np.arange(len(own))
    spread = (distances[at, own] * images[at, own] / (images[at, own] + 1)).mean()
    unbiased = -0.5 * head.sharpness * (distances - spread / images)
    expected = log_softmax(unbiased + head.clip_weight * clip[mask])
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_class_of_few_images_is_as_near_as_one_of_many() -> None:
    """Fresh images of two classes alike but for how many were learned: no class is favoured."""
    rng = np.random.default_rng(3)
    width, shares, scores = 200, [], []
    wide = basis(width=width, images=2000, raw=width)
    for _ in range(6):
        means = 0.12 * rng.normal(size=(2, width))
        labels = np.repeat([0, 1], [60, 4])
        features = (means[labels] + rng.normal(size=(64, width))).astype(np.float16)
        known = Sums.of(features.astype(np.float32), labels, 2)
        head = fit_head(known, rows_of(features.astype(np.float32), labels), None, wide)
        fresh = means[[0, 1] * 200] + rng.normal(size=(400, width))
        said = head.log_probabilities(fresh.astype(np.float32)).argmax(axis=1)
        shares.append(said.mean())
        scores.append((said == np.tile([0, 1], 200)).mean())
    assert 0.3 < np.mean(shares) < 0.7, "without the correction nearly all are of the large class"
    assert np.mean(scores) > 0.55


def test_leaving_a_row_out_of_a_ridge_equals_refitting() -> None:
    features, labels, known = _task_with_copies()
    sums, rows = known.sums, known.rows
    head = fit_ridge(sums, rows, BASIS)
    found, mask = left_out_head_scores(head, sums, rows, None, BASIS)
    centred = sums.within + sums.between
    penalty = head.ridge * np.trace(centred) / WIDTH * np.eye(WIDTH + 1)
    penalty[WIDTH, WIDTH] = 0.0
    for position, row in enumerate(np.flatnonzero(mask)):
        kept = _without(known, features, labels, row)
        x = np.c_[features[kept].astype(np.float64), np.ones(kept.sum())]
        y = np.eye(len(COUNTS))[labels[kept]]
        solved = np.linalg.solve(x.T @ x + penalty, x.T @ y)
        scores = np.r_[rows.compact[row].astype(np.float64), 1.0] @ solved
        expected = log_softmax(np.where(sums.known, head.sharpness * scores, -np.inf))
        np.testing.assert_allclose(found[position], expected, atol=1e-10)


def test_a_ridge_is_the_ridge_of_the_rows() -> None:
    features, labels = data("r", (20, 15, 9))
    sums = Sums.of(features, labels, 3)
    head = fit_ridge(sums, rows_of(features, labels), BASIS, strengths=(0.1,))
    x, y = features.astype(np.float64), np.eye(3)[labels]
    centred = x - x.mean(axis=0)
    moment = centred.T @ centred
    penalty = 0.1 * np.trace(moment) / WIDTH * np.eye(WIDTH)
    weights = np.linalg.solve(moment + penalty, centred.T @ (y - y.mean(axis=0)))
    np.testing.assert_allclose(head.weights, weights, atol=1e-10)
    np.testing.assert_allclose(head.bias, y.mean(axis=0) - x.mean(axis=0) @ weights, atol=1e-10)
    found = head.log_probabilities(features)
    assert (found.argmax(axis=1) == labels).mean() > 0.9


def test_probabilities_of_the_known_classes() -> None:
    features, labels, known = _task_with_copies()
    head = fit_head(known.sums, known.rows, None, BASIS)
    assert head.known.tolist() == [True, True, False, True, True, True]
    found = head.log_probabilities(features, None)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, atol=1e-12)
    assert (found[:, 2] == -np.inf).all() and np.isfinite(found[:, head.known]).all()
    assert (found.argmax(axis=1) == labels).mean() > 0.9
    part = head.log_probabilities(features[:3], None)
    np.testing.assert_allclose(part, found[:3], atol=1e-10)


def test_clip_counts_where_it_knows_more() -> None:
    hard = task("hard", (20,) * 5, spread=0.07)
    clip = _clip(hard, 2.0)
    head = fit_head(hard.sums, hard.rows, clip, BASIS)
    assert head.clip_weight > 0.5
    assert fit_head(hard.sums, hard.rows, clip, BASIS, clip=False).clip_weight == 0.0
    assert fit_head(hard.sums, hard.rows, None, BASIS).clip_weight == 0.0
    with_clip = left_out_head_scores(head, hard.sums, hard.rows, clip, BASIS)[0]
    alone = fit_head(hard.sums, hard.rows, None, BASIS)
    without = left_out_head_scores(alone, hard.sums, hard.rows, None, BASIS)[0]
    own = (np.arange(len(hard.rows)), hard.rows.labels)
    assert with_clip[own].mean() > without[own].mean() + 0.1
    with pytest.raises(ValueError, match="CLIP"):
        head.log_probabilities(np.zeros((2, WIDTH)), None)


def test_clip_that_knows_nothing_gains_nothing() -> None:
    known = task("noise", (20,) * 5, spread=0.3)
    for seed in range(6):
        noise = np.random.default_rng(seed).normal(size=(100, 5))
        assert fit_head(known.sums, known.rows, noise, BASIS).clip_weight == 0.0


def test_sharpness_and_strength_are_the_likeliest() -> None:
    known = task("s", (30, 30, 30, 30), spread=0.2)
    head = fit_head(known.sums, known.rows, None, BASIS)
    own = (np.arange(len(known.rows)), known.rows.labels)

    def value(sharpness: float, ridge: float) -> float:
        other = Head(head.known, head.weights, head.bias, sharpness, 0.0, ridge, head.rule)
        return left_out_head_scores(other, known.sums, known.rows, None, BASIS)[0][own].mean()

    best = value(head.sharpness, head.ridge)
    for factor in (0.8, 1.25):
        assert value(head.sharpness * factor, head.ridge) < best
    for ridge in (10.0, 3000.0):
        assert ridge == head.ridge or value(head.sharpness, ridge) < best


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (1,), (5,), (1, 0, 1), (0, 3, 0)], ids=str)
def test_heads_where_nothing_can_be_left_out_of_several(counts: tuple[int, ...]) -> None:
    known = task("few", counts)
    clip = _clip(known, 1.0)
    head = fit_head(known.sums, known.rows, clip, BASIS)
    several = sum(count > 0 for count in counts) > 1
    assert (head.ridge, head.sharpness, head.clip_weight) == (RIDGE, SHARPNESS, float(several))
    scores = np.zeros((3, len(counts)))
    found = head.log_probabilities(np.zeros((3, WIDTH)), scores)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0)
    ridge = fit_ridge(known.sums, known.rows, BASIS).log_probabilities(np.zeros((3, WIDTH)))
    np.testing.assert_allclose(np.exp(ridge).sum(axis=1), 1.0)
    left, mask = left_out_head_scores(head, known.sums, known.rows, clip, BASIS)
    assert left.shape == (mask.sum(), len(counts)) and mask.any() == (max(counts) > 1)


def test_one_image_a_class_shrinks_to_the_background_itself() -> None:
    known = task("one", (1, 1, 1))
    head = fit_head(known.sums, known.rows, None, BASIS)
    expected = np.linalg.solve(BASIS.target, known.sums.means.T)
    np.testing.assert_allclose(head.weights, expected, atol=1e-10)


def test_equal_images_have_no_scatter() -> None:
    features, labels = data("equal", (6, 6))
    for label in (0, 1):
        features[labels == label] = features[labels == label][0]
    sums, rows = Sums.of(features, labels, 2), rows_of(features, labels)
    head = fit_head(sums, rows, None, BASIS)
    assert (head.ridge, head.sharpness) == (RIDGE, SHARPNESS), "copies cannot stand for a class"
    assert (head.log_probabilities(features).argmax(axis=1) == labels).all()
    features[:] = features[0]
    head = fit_head(Sums.of(features, labels, 2), rows_of(features, labels), None, BASIS)
    np.testing.assert_allclose(np.exp(head.log_probabilities(features)), 0.5)


def test_no_rows_and_no_images() -> None:
    known = task("a", (8, 8))
    none = known.rows.where(np.zeros(len(known.rows), bool))
    head = fit_head(known.sums, none, np.zeros((0, 2)), BASIS)
    assert (head.ridge, head.sharpness, head.clip_weight) == (RIDGE, SHARPNESS, 1.0)
    left, mask = left_out_head_scores(head, known.sums, none, np.zeros((0, 2)), BASIS)
    assert left.shape == (0, 2) and mask.shape == (0,)
    empty = Sums.of(np.zeros((0, WIDTH), np.float32), np.zeros(0, int), 2)
    for fit in (lambda: fit_head(empty, none, None, BASIS), lambda: fit_ridge(empty, none)):
        with pytest.raises(ValueError, match="image"):
            fit()


def test_rows_outside_the_sums_are_taken_as_they_are() -> None:
    features, labels = data("g", (20, 20, 20))
    counted = np.arange(60) >= 12
    sums = Sums.of(features[counted], labels[counted], 3)
    rows = rows_of(features[:12], labels[:12], counted[:12])
    head = fit_head(sums, rows, None, BASIS)
    found, mask = left_out_head_scores(head, sums, rows, None, BASIS)
    assert mask.all()
    np.testing.assert_allclose(found, head.log_probabilities(rows.compact), atol=1e-10)


def test_the_same_bits_each_time() -> None:
    known = task("same", (20, 20))
    clip = _clip(known, 1.0)
    one, two = (fit_head(known.sums, known.rows, clip, BASIS) for _ in range(2))
    np.testing.assert_array_equal(one.weights, two.weights)
    assert (one.sharpness, one.clip_weight) == (two.sharpness, two.clip_weight)


def test_distances_of_a_discriminant() -> None:
    rng = np.random.default_rng(0)
    means, x = rng.normal(size=(4, WIDTH)), rng.normal(size=(7, WIDTH))
    model = Discriminant(means, BASIS.covariance)
    away = x[:, None] - means
    expected = np.einsum("bgk,kl,bgl->bg", away, np.linalg.inv(BASIS.covariance), away)
    np.testing.assert_allclose(model.distances(x), expected, rtol=1e-9)
    scores = -0.5 * expected
    np.testing.assert_allclose(log_softmax(model.scores(x)), log_softmax(scores), atol=1e-9)
    np.testing.assert_allclose(model.precision, np.linalg.inv(BASIS.covariance), atol=1e-9)
    inside = Removal(np.ones(7, bool), np.ones(7), np.zeros(7))
    left = model.left_out(x, np.zeros(7, int), inside)
    np.testing.assert_allclose(left, expected, rtol=1e-9)


def test_an_empty_choice_of_rows_is_typed() -> None:
    assert isinstance(task("a", (8, 8)).rows.where(np.zeros(16, bool)), CalibrationRows)
