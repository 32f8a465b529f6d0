"""Who answers for an image: a pure function of the set of tasks, exact when rows are left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from archipelago.pipeline.closedform import Knowledge, KnownTask, Sums, evidence
from archipelago.pipeline.closedform.novelty import logistic, robust
from archipelago.pipeline.closedform.tempering import log_softmax
from tests.unit.tiny_closedform import WIDTH, basis, data, rows_of, task

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
BASIS = basis()
COUNTS = {"a": (12, 9, 10), "b": (15, 15), "c": (6, 0, 7, 8, 1), "d": (30,)}
TASKS = {name: task(name, counts) for name, counts in COUNTS.items()}
IMAGES = np.concatenate([data(name, counts)[0] for name, counts in COUNTS.items()])
OWN = np.repeat(np.arange(4), [sum(counts) for counts in COUNTS.values()])
SHRINKAGE = 0.003


def _shrunk(covariance: np.ndarray, least: float = 0.0) -> np.ndarray:
    level = max(np.trace(covariance), least) / WIDTH
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(WIDTH)


def _distances(x: np.ndarray, means: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    away = x[:, None].astype(np.float64) - means
    return np.einsum("bgk,kl,bgl->bg", away, np.linalg.inv(covariance), away)


Spreads = tuple[np.ndarray, np.ndarray]


def _models(tasks: dict[str, KnownTask]) -> tuple[np.ndarray, np.ndarray]:
    """Covariances of E and of J; `Sums.divisor`, where set, keeps N_t when a row is left out."""
    sums = [tasks[name].sums for name in sorted(tasks)]
    n = [getattr(s, "divisor", s.total) for s in sums]
    total = sum((s.within + s.between) / k for s, k in zip(sums, n, strict=True)) / len(sums)
    within = sum(s.within / k for s, k in zip(sums, n, strict=True))
    pooled = _shrunk((within + 2 * BASIS.covariance) / (len(sums) + 2))
    return _shrunk(total, np.trace(BASIS.covariance)), pooled


def _spreads(tasks: dict[str, KnownTask]) -> Spreads:
    """v of each task: of its images around its mean, and around their class means."""
    sums = [tasks[name].sums for name in sorted(tasks)]
    by_task, by_class = (np.linalg.inv(covariance) for covariance in _models(tasks))
    every = [np.trace(by_task @ (s.within + s.between)) / (s.total - 1) for s in sums]
    own = [np.trace(by_class @ s.within) / (s.total - s.known.sum()) for s in sums]
    return np.array(every), np.array(own)


def _reference(
    tasks: dict[str, KnownTask], x: np.ndarray, tau: float, beta: float, spreads: Spreads
) -> tuple[np.ndarray, np.ndarray]:
    """Log-shares and the two measures of novelty (B, 2), formulas written down as they stand."""
    sums = [tasks[name].sums for name in sorted(tasks)]
    total, pooled = _models(tasks)
    means = np.concatenate([s.means[s.known] for s in sums])
    counts = [s.counts[s.known] for s in sums]
    away = _distances(x, np.stack([s.mean for s in sums]), total)
    e = -0.5 * (away - spreads[0] / [s.total for s in sums])
    excess = np.concatenate([v / n for v, n in zip(spreads[1], counts, strict=True)])
    d = _distances(x, means, pooled) - excess
    starts = np.cumsum([0, *(len(n) for n in counts)])
    j = np.stack(
        [
            np.logaddexp.reduce(-0.5 * beta * d[:, a:b], axis=1)
            for a, b in itertools.pairwise(starts)
        ],
        axis=1,
    )
    origin = _distances(x, np.zeros((1, WIDTH)), _shrunk(BASIS.covariance))[:, 0]
    length = np.linalg.norm(x.astype(np.float64), axis=1)
    cosines = [x @ m / length / np.linalg.norm(m) for m in means]
    return log_softmax(e / tau + j), np.stack([d.min(axis=1) - origin, -np.max(cosines, 0)], axis=1)


def test_the_formulas_as_they_stand() -> None:
    knowledge = Knowledge(TASKS, BASIS)
    shares, measures = _reference(TASKS, IMAGES, knowledge.tau, knowledge.beta, _spreads(TASKS))
    r = measures @ knowledge.novelty_weights
    np.testing.assert_allclose(knowledge.log_shares(IMAGES), shares, atol=1e-8)
    np.testing.assert_allclose(knowledge.novelty(IMAGES), r, atol=1e-8)
    np.testing.assert_allclose(np.exp(shares).sum(axis=1), 1.0)
    assert (shares.argmax(axis=1) == OWN).mean() > 0.95
    unseen = 1 / (1 + np.exp(-knowledge.slope * (r - knowledge.midpoint)))
    np.testing.assert_allclose(knowledge.unseen(IMAGES), unseen, atol=1e-8)
    scores = knowledge.class_scores(IMAGES)
    assert scores.shape == (len(IMAGES), 11)
    assert np.flatnonzero((scores == -np.inf).all(axis=0)).tolist() == [6]


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_leaving_a_row_out_equals_learning_without_it(name: str) -> None:
    """Up to what is held: N_t as divisor, the spread of images, and the level of shrinkage (here of
    a fixed trace)."""
    knowledge, known = Knowledge(TASKS, BASIS, shrinkage=1e-14), TASKS[name]
    features, labels = data(name, COUNTS[name])
    found, mask = knowledge.left_out_log_shares(name)
    assert mask.sum() == len(labels) - (name == "c")
    for position, row in enumerate(np.flatnonzero(mask)):
        kept = np.arange(len(labels)) != known.rows.places[row]
        fewer = Sums.of(features[kept], labels[kept], len(COUNTS[name]))
        object.__setattr__(fewer, "divisor", known.sums.total)
        tasks = {**TASKS, name: KnownTask(fewer, known.rows)}
        x = known.rows.compact[row : row + 1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "SHRINKAGE", 1e-14)
            shares, _ = _reference(tasks, x, knowledge.tau, knowledge.beta, _spreads(TASKS))
        np.testing.assert_allclose(found[position], shares[0], atol=1e-9)


def test_the_order_of_learning_leaves_no_bit() -> None:
    first = Knowledge(TASKS, BASIS)
    expected = first.log_shares(IMAGES), first.unseen(IMAGES)
    for order in itertools.islice(itertools.permutations(TASKS), 1, None, 5):
        other = Knowledge({name: TASKS[name] for name in order}, BASIS)
        assert other.names == ("a", "b", "c", "d")
        assert (other.tau, other.beta, other.slope, other.midpoint) == (
            first.tau,
            first.beta,
            first.slope,
            first.midpoint,
        )
        np.testing.assert_array_equal(other.log_shares(IMAGES), expected[0])
        np.testing.assert_array_equal(other.unseen(IMAGES), expected[1])


def test_images_do_not_see_each_other() -> None:
    knowledge = Knowledge(TASKS, BASIS)
    alone = np.concatenate([knowledge.log_shares(IMAGES[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(alone, knowledge.log_shares(IMAGES)[:9], atol=1e-9)
    alone = np.concatenate([knowledge.novelty(IMAGES[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(alone, knowledge.novelty(IMAGES)[:9], atol=1e-8)


@pytest.mark.parametrize("kind", ["both", "E", "J"])
def test_kinds_of_evidence(kind: str) -> None:
    knowledge = Knowledge(TASKS, BASIS, evidence=kind)
    assert kind == "both" or np.isinf(knowledge.tau) == (kind == "J")
    assert (knowledge.beta == 0.0) == (kind == "E")
    shares = knowledge.log_shares(IMAGES)
    assert (shares.argmax(axis=1) == OWN).mean() > 0.9
    likeliest = [knowledge.left_out_log_shares(n)[0][:, t] for t, n in enumerate(knowledge.names)]
    both = Knowledge(TASKS, BASIS)
    theirs = [both.left_out_log_shares(n)[0][:, t] for t, n in enumerate(both.names)]
    assert np.concatenate(theirs).mean() >= np.concatenate(likeliest).mean() - 1e-12


def test_the_likeliest_evidence_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {name: task(name, (8, 8), apart=0.2) for name in "pqrs"}

    def value() -> float:
        knowledge = Knowledge(tasks, BASIS)
        left = [knowledge.left_out_log_shares(n)[0][:, t] for t, n in enumerate("pqrs")]
        return float(np.concatenate(left).mean())

    best, others = value(), []
    for tau, beta in itertools.product(evidence.TAUS, evidence.BETAS):
        monkeypatch.setattr(evidence, "TAUS", (tau,))
        monkeypatch.setattr(evidence, "BETAS", (beta,))
        others.append(value())
    assert best == max(others) > np.median(others) + 0.01


def test_unseen_images_look_unseen() -> None:
    knowledge = Knowledge(TASKS, BASIS)
    strange = np.concatenate([data(name, (20, 20))[0] for name in ("x", "y", "z")])
    fresh = np.concatenate([data(n, c)[0] for n, c in COUNTS.items()])
    assert knowledge.slope > 0
    assert np.median(knowledge.unseen(strange)) > 0.5 > np.median(knowledge.unseen(fresh))


def test_slope_and_midpoint_are_those_of_the_rows() -> None:
    knowledge = Knowledge(TASKS, BASIS)
    seen, unseen = [], []
    parts: list[int] = []
    for name, known in TASKS.items():
        features, labels = data(name, COUNTS[name])
        possible = known.rows.labels != 4 if name == "c" else np.ones(len(labels), bool)
        others = {other: TASKS[other] for other in TASKS if other != name}
        place = sorted(TASKS).index(name)
        spreads = np.delete(_spreads(TASKS)[0], place), np.delete(_spreads(TASKS)[1], place)
        unseen.append(_reference(others, known.rows.compact[possible], 1.0, 0.1, spreads)[1])
        for row in np.flatnonzero(possible):
            kept = np.arange(len(labels)) != known.rows.places[row]
            fewer = Sums.of(features[kept], labels[kept], len(COUNTS[name]))
            object.__setattr__(fewer, "divisor", known.sums.total)
            tasks = {**TASKS, name: KnownTask(fewer, known.rows)}
            x = known.rows.compact[row : row + 1]
            seen.append(_reference(tasks, x, 1.0, 0.1, _spreads(TASKS))[1][0])
        parts.append(len(seen))

    known = np.split(np.array(seen), parts[:-1])
    s, u = np.concatenate(known), np.concatenate(unseen)
    every = (*known, *unseen)
    centre = np.mean([np.median(m, axis=0) for m in every], axis=0)
    deviations = [1.4826 * np.median(np.abs(m - np.median(m, axis=0)), axis=0) for m in every]
    scale = np.sqrt(np.mean(np.square(deviations), axis=0))
    share = np.concatenate([np.full(len(m), 0.5 / 4 / len(m)) for m in every])
    reference = LogisticRegression(C=10.0, tol=1e-10, max_iter=1000).fit(
        (np.concatenate([s, u]) - centre) / scale, np.arange(len(s) + len(u)) >= len(s), share
    )
    weights = reference.coef_[0] / scale
    # The reference shrinks by the trace without the row, the closed form by that with it.
    np.testing.assert_allclose(knowledge.novelty_weights, weights, rtol=3e-2)
    assert knowledge.slope == 1.0
    midpoint = weights @ centre - reference.intercept_[0]
    assert knowledge.midpoint == pytest.approx(midpoint, rel=3e-2)
    refused = np.mean([expit(m @ weights - midpoint).mean() for m in known])
    taken = np.mean([expit(midpoint - m @ weights).mean() for m in unseen])
    assert refused == pytest.approx(taken, abs=1e-6), "it errs as often on either side"
    seen = s @ knowledge.novelty_weights
    threshold = knowledge.refusal_threshold(0.02)
    assert (seen > threshold).mean() == pytest.approx(0.02, abs=0.015)
    assert knowledge.refusal_threshold(0.0) >= threshold >= knowledge.refusal_threshold(1.0)
    with pytest.raises(ValueError, match="share"):
        knowledge.refusal_threshold(1.5)


def test_only_some_tasks_stand_for_unseen_ones() -> None:
    every, two = Knowledge(TASKS, BASIS), Knowledge(TASKS, BASIS, most_left_out=2)
    assert every.midpoint != two.midpoint
    np.testing.assert_array_equal(every.log_shares(IMAGES), two.log_shares(IMAGES))


def test_a_budget_of_rows_is_shared_out_evenly() -> None:
    knowledge = Knowledge(TASKS, BASIS, most_rows=40)
    thin = {n: KnownTask(k.sums, k.rows.thinned(10)) for n, k in TASKS.items()}
    other = Knowledge(thin, BASIS)
    assert (knowledge.tau, knowledge.midpoint) == (other.tau, other.midpoint)
    assert len(knowledge.left_out_log_shares("b")[1]) == 30


def test_rows_outside_the_sums_count_as_seen() -> None:
    features, labels = data("b", (15, 15))
    counted = np.arange(30) >= 10
    sums = Sums.of(features[counted], labels[counted], 2)
    rows = rows_of(features[:10], labels[:10], counted[:10])
    knowledge = Knowledge({**TASKS, "b": KnownTask(sums, rows)}, BASIS)
    found, mask = knowledge.left_out_log_shares("b")
    assert mask.all()
    np.testing.assert_allclose(found, knowledge.log_shares(rows.compact), atol=1e-9)


def test_what_a_set_refuses() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Knowledge({}, BASIS)
    empty = Sums.of(np.zeros((0, WIDTH), np.float32), np.zeros(0, int), 2)
    with pytest.raises(ValueError, match="'e' has no image"):
        Knowledge({"e": KnownTask(empty, TASKS["a"].rows)}, BASIS)
    with pytest.raises(ValueError, match="width"):
        Knowledge(TASKS, BASIS.narrowed(5))


def test_a_few_rows_that_lie_far_from_everything_decide_nothing() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    far = np.concatenate([values, np.full(60, -1e5)])
    assert robust(values) == pytest.approx((3.0, 4.0), rel=0.1)
    assert robust(far) == pytest.approx(robust(values), rel=0.1)
    assert robust(np.array([1.0, 1.0, 1.0, 5.0])) == (1.0, 3.0), "most are equal"


def test_an_unlike_task_does_not_draw_the_midpoint_to_itself() -> None:
    drawn = np.random.default_rng(1)

    def measures(middle: float, spread: float) -> np.ndarray:
        return np.stack([drawn.normal(middle, spread, 300), drawn.normal(0, 1e-3, 300)], axis=1)

    near, far, unseen = measures(0, 30), measures(-700, 100), [measures(150, 30)]
    weights, midpoint = logistic([near, far], unseen)
    assert 40 < midpoint / weights[0] < 120, "between the nearer task and the unseen one"
    assert weights[0] * 30 > 10 * weights[1] * 1e-3, "the one that tells counts"


def test_a_measure_that_points_the_wrong_way_does_not_count() -> None:
    drawn = np.random.default_rng(2)
    seen, unseen = drawn.normal([0, 1], 1, (200, 2)), drawn.normal([3, 0], 1, (200, 2))
    weights, _ = logistic([seen], [unseen])
    assert weights[0] > 0.5 and weights[1] == 0.0
    assert not logistic([unseen], [seen])[0][0]


def test_few_images_a_class_tell_learned_domains_by_their_directions() -> None:
    """One image says where a class lies, and nothing of how its images spread."""
    for counts, width in (((1,) * 8, 64), ((20,) * 8, 64)):
        wide = basis(width, images=800, raw=width)
        tasks = {name: task(name, counts, width=width) for name in "pqrs"}
        knowledge = Knowledge(tasks, wide)
        fresh = [data(name, (9,) * 8, width=width)[0] for name in "pqrs"]
        strange = [data(name, (9,) * 8, width=width)[0] for name in "xyz"]
        assert (knowledge.novelty_weights > 0).all()
        seen, unseen = (knowledge.novelty(np.concatenate(x)) for x in (fresh, strange))
        assert (unseen[:, None] > seen).mean() > 0.9


def test_either_measure_may_decide_alone() -> None:
    both = Knowledge(TASKS, BASIS)
    for measure, unused in (("distance", 1), ("cosine", 0)):
        alone = Knowledge(TASKS, BASIS, novelty=measure)
        assert alone.novelty_weights[unused] == 0.0 < alone.novelty_weights[1 - unused]
        assert (np.corrcoef(alone.novelty(IMAGES), both.novelty(IMAGES))[0, 1]) > 0.5
        np.testing.assert_array_equal(alone.log_shares(IMAGES), both.log_shares(IMAGES))
        few = Knowledge({"a": task("a", (2, 2))}, BASIS, novelty=measure)
        assert few.novelty_weights[unused] == 0.0 < few.novelty_weights.max()


def test_where_rows_say_nothing_the_distance_alone_counts() -> None:
    few = Knowledge({"a": task("a", (2, 2)), "b": task("b", (1, 2))}, BASIS)
    assert few.novelty_weights.tolist() == [1.0, 0.0] and few.slope == 0.0
