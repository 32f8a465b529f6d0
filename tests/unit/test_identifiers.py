"""Identifiers on Gaussians whose answer is known: decisions, "none", calibration, the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from pipeline.identifiers.signature import Background, shrunk

from pipeline.errors import UserError
from pipeline.identifiers import Evidence, Identifier, Signature, build_identifier
from pipeline.identifiers.prototype import FIRST_ACCEPTANCE
from pipeline.settings import IdentifierSettings

WIDTH, CLASSES = 12, 3
KINDS = ["mean", "class_means", "gaussian", "ridge"]
CENTRES = 3.0 * np.random.default_rng(1).normal(size=(6, WIDTH))


def draw(task: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a task: classes around its centre, noise of one standard deviation."""
    rng = np.random.default_rng((task, seed))
    spread = np.random.default_rng(task).normal(size=(CLASSES, WIDTH))
    labels = np.arange(count) % CLASSES
    noise = rng.normal(size=(count, WIDTH))
    return (CENTRES[task] + spread[labels] + noise).astype(np.float32), labels


def identifier(kind: str = "gaussian", acceptance: float = 0.95) -> Identifier:
    settings = IdentifierSettings(name="prototype", signature=kind, ridge_features=100)
    features = np.concatenate([draw(t, 100, 9)[0] for t in range(6)])
    return build_identifier(settings, Background.of(features), acceptance)


def learn(known: Identifier, tasks: range, held: int = 200) -> list[dict]:
    calibrations = []
    for task in tasks:
        features, labels = draw(task, 400, 0)
        signature = known.prepare(Signature.of(features, labels), features)
        calibrations.append(known.learn(f"t{task}", signature, draw(task, held, 1)[0]))
    return calibrations


@pytest.mark.parametrize("kind", KINDS)
def test_separated_tasks_are_told_apart(kind: str) -> None:
    known = identifier(kind)
    learn(known, range(4))
    for task in range(4):
        found = known.identify(Evidence(draw(task, 300, 2)[0]))
        assert (found.closed == task).mean() > 0.97
        np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0)
        np.testing.assert_allclose(found.shares.sum(axis=1), 1.0)
        assert found.probabilities.shape == (300, 5) and found.options == ("t0", "t1", "t2", "t3")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("acceptance", [0.8, 0.95])
def test_the_threshold_accepts_the_share_asked_for(kind: str, acceptance: float) -> None:
    known = identifier(kind, acceptance)
    learn(known, range(4))
    seen = np.concatenate([draw(t, 300, 3)[0] for t in range(4)])
    unseen = np.concatenate([draw(t, 300, 3)[0] for t in (4, 5)])
    accepted = (known.identify(Evidence(seen)).chosen >= 0).mean()
    assert accepted == pytest.approx(acceptance, abs=0.04)
    found = known.identify(Evidence(unseen))
    assert (found.chosen == -1).mean() > 0.9
    assert known.threshold is not None
    assert np.array_equal(found.chosen == -1, found.unseen_score > known.threshold)


def test_the_first_stage_rejects_one_in_a_hundred() -> None:
    known = identifier(acceptance=0.8)
    assert known.threshold == float("inf")
    learn(known, range(1))
    accepted = (known.identify(Evidence(draw(0, 2000, 5)[0])).chosen >= 0).mean()
    assert accepted == pytest.approx(FIRST_ACCEPTANCE, abs=0.02)


def test_nothing_learned_is_none_for_sure() -> None:
    found = identifier().identify(Evidence(draw(0, 5, 0)[0]))
    assert found.options == () and (found.chosen == -1).all()
    assert found.probabilities.tolist() == [[1.0]] * 5 and found.shares.shape == (5, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_confidence_is_calibrated_and_monotone(kind: str) -> None:
    known = identifier(kind)
    learn(known, range(4))
    features = np.concatenate([draw(t, 300, 6)[0] for t in range(6)])
    found = known.identify(Evidence(features))
    order = np.argsort(found.unseen_score)
    none = found.probabilities[order, -1]
    assert (np.diff(none) >= 0).all() and none[0] < 0.1 and none[-1] > 0.9
    truth = np.repeat(np.arange(6), 300)
    truth[truth > 3] = 4
    confidence, right = found.probabilities.max(axis=1), found.probabilities.argmax(axis=1) == truth
    assert abs(confidence.mean() - right.mean()) < 0.08
    assert right.mean() > 0.9


def test_scores_stay_comparable_when_the_pooled_covariance_moves() -> None:
    """A task's held-out scores are those of its own stage; later stages shift them exactly."""
    known = identifier(acceptance=0.9)
    learn(known, range(1))
    alone = known.identify(Evidence(draw(0, 2000, 7)[0])).unseen_score.mean()
    wide = draw(1, 400, 0)
    stretched = (CENTRES[1] + 2.0 * (wide[0] - CENTRES[1])).astype(np.float32)
    known.learn("wide", Signature.of(stretched[:300], wide[1][:300]), stretched[300:])
    fresh = known.identify(Evidence(draw(0, 2000, 7)[0]))
    assert abs(fresh.unseen_score.mean() - alone) > 1.0, "scores have moved"
    accepted = (fresh.chosen >= 0).mean()
    assert accepted == pytest.approx(0.9, abs=0.06), "and the threshold with them"


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_identified_on_its_own(kind: str) -> None:
    known = identifier(kind)
    learn(known, range(4))
    features = np.concatenate([draw(t, 20, 8)[0] for t in range(6)])
    whole = known.identify(Evidence(features))
    for row in range(len(features)):
        alone = known.identify(Evidence(features[row : row + 1]))
        assert alone.chosen[0] == whole.chosen[row] and alone.closed[0] == whole.closed[row]
        np.testing.assert_allclose(alone.probabilities[0], whole.probabilities[row], atol=1e-9)
    order = np.random.default_rng(0).permutation(len(features))
    assert np.array_equal(known.identify(Evidence(features[order])).chosen, whole.chosen[order])


def test_many_classes_are_no_advantage() -> None:
    """Log-mean-exp: a mirrored task whose classes come ten times over draws mirrored shares."""
    settings = IdentifierSettings(name="prototype", signature="class_means")
    known = build_identifier(settings, Background(np.zeros(WIDTH), 4.0 * np.eye(WIDTH)))
    few, labels = draw(0, 60, 0)
    copies = np.concatenate([labels + CLASSES * copy for copy in range(10)])
    known.learn("few", Signature.of(few, labels), few)
    known.learn("many", Signature.of(-np.tile(few, (10, 1)), copies), -few)
    probe = np.random.default_rng(0).normal(size=(200, WIDTH)).astype(np.float32)
    shares = known.identify(Evidence(probe)).shares[:, 0]
    np.testing.assert_allclose(known.identify(Evidence(-probe)).shares[:, 1], shares, atol=1e-9)
    assert shares.std() > 0.1


def test_gaussian_shares_and_unseen_scores_are_the_formulas() -> None:
    known = identifier()
    calibrations = learn(known, range(4))
    signatures = [Signature.of(*draw(task, 400, 0)) for task in range(4)]
    features = np.concatenate([draw(t, 5, 8)[0] for t in range(6)]).astype(np.float64)
    found = known.identify(Evidence(features))
    shrinkage, weight = known.settings.shrinkage, known.settings.background_weight

    def distances(covariance: np.ndarray, centre: np.ndarray) -> np.ndarray:
        x = features - centre
        return np.einsum("bf,fg,bg->b", x, np.linalg.inv(shrunk(covariance, shrinkage)), x)

    pooled = sum(s.covariance for s in signatures) / 4
    scores = np.stack([-0.5 * distances(pooled, s.mean) for s in signatures], axis=1)
    temperatures = [c["temperature"] for c in calibrations[1:]]
    scores /= np.exp(np.mean(np.log(temperatures)))
    expected = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.shares, expected, atol=1e-9)

    zero = known.background
    within = sum(s.within for s in signatures) + weight * zero.covariance
    within = within / (4 + weight)
    nearest = np.min([distances(within, m) for s in signatures for m in s.means], axis=0)
    relative = nearest - distances(zero.covariance, zero.mean)
    np.testing.assert_allclose(found.unseen_score, relative, atol=1e-8)


def test_a_task_is_learned_once() -> None:
    known = identifier()
    learn(known, range(2))
    with pytest.raises(ValueError, match="known already"):
        learn(known, range(1))
    assert known.tasks == ("t0", "t1")
    assert known.numbers() == 2 * (CLASSES + CLASSES * WIDTH + WIDTH * (WIDTH + 1) // 2)


def test_a_restart_decides_alike() -> None:
    known, again = identifier(), identifier()
    calibrations = learn(known, range(3))
    for task, calibration in enumerate(calibrations):
        again.restore(f"t{task}", Signature.of(*draw(task, 400, 0)), calibration)
    features = np.concatenate([draw(t, 50, 4)[0] for t in range(6)])
    a, b = known.identify(Evidence(features)), again.identify(Evidence(features))
    assert np.array_equal(a.probabilities, b.probabilities) and np.array_equal(a.chosen, b.chosen)


def test_the_oracle_knows() -> None:
    settings = IdentifierSettings(name="oracle")
    oracle = build_identifier(settings, Background(np.zeros(2), np.eye(2)))
    for task in ("a", "b"):
        oracle.learn(task, Signature.of(np.ones((3, 2)), np.zeros(3, int)), np.ones((1, 2)))
    found = oracle.identify(Evidence(np.zeros((3, 2)), "b"))
    assert found.chosen.tolist() == [1, 1, 1]
    assert found.probabilities.tolist() == [[0.0, 1.0, 0.0]] * 3
    found = oracle.identify(Evidence(np.zeros((3, 2)), "unseen"))
    assert (
        found.chosen.tolist() == [-1, -1, -1] and found.probabilities[:, -1].tolist() == [1.0] * 3
    )
    oracle.forget("a")
    assert oracle.tasks == ("b",) and oracle.threshold is None


def test_unknown_identifiers_are_refused() -> None:
    with pytest.raises(UserError, match=r"'psychic' is unknown; choose one of cascade, mllm, o"):
        build_identifier(IdentifierSettings(name="psychic"), Background(np.zeros(2), np.eye(2)))
