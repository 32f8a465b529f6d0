"""Sets of tasks at their limits: one image, one class, one task, nothing to calibrate by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from archipelago.pipeline.closedform import Knowledge, KnownTask, Sums
from tests.unit.tiny_closedform import EMBEDDING, WIDTH, basis, data, rows_of, task

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
BASIS = basis()


def _tasks(counts: Mapping[str, Sequence[int]]) -> dict[str, KnownTask]:
    return {name: task(name, own) for name, own in counts.items()}


def _check(knowledge: Knowledge, tasks: Mapping[str, KnownTask]) -> np.ndarray:
    """Everything is finite and proper; returns the shares of the tasks' class means."""
    x = np.concatenate([known.sums.means[known.sums.known] for known in tasks.values()])
    shares, unseen = np.exp(knowledge.log_shares(x)), knowledge.unseen(x)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-12)
    assert ((unseen >= 0.0) & (unseen <= 1.0)).all()
    assert np.isfinite([knowledge.slope, knowledge.midpoint]).all() and knowledge.slope >= 0.0
    assert not np.isnan(knowledge.refusal_threshold(0.02))
    for name in knowledge.names:
        left, mask = knowledge.left_out_log_shares(name)
        assert left.shape == (mask.sum(), len(tasks)) and len(mask) == len(tasks[name].rows)
        np.testing.assert_allclose(np.exp(left).sum(axis=1), 1.0, atol=1e-12)
    return shares


@pytest.mark.parametrize("kind", ["both", "E", "J"])
@pytest.mark.parametrize(
    ("counts", "regime"),
    [
        ({"a": (20, 20), "b": (20,), "c": (15,)}, "classes"),
        ({"a": (20,), "b": (20,), "c": (15,)}, "classes"),
        ({"a": (20, 20), "b": (1,), "c": (1, 1)}, "classes"),
        ({"a": (1,) * 40, "b": (1,) * 30, "c": (2, 1)}, "struck"),
        ({"a": (1,) * 9, "b": (1,) * 7}, "tasks"),
        ({"a": (1,) * 9, "b": (1,)}, "tasks"),
        ({"a": (1,), "b": (1,)}, "tasks"),
        ({"a": (1,)}, "tasks"),
        ({"a": (1, 1, 1)}, "tasks"),
        ({"a": (1,) * 12}, "tasks"),
        ({"a": (20, 20)}, "classes"),
        ({"a": (20,)}, "classes"),
        ({"a": (0, 20, 0), "b": (0, 3)}, "classes"),
        ({"a": (2,), "b": (2,)}, "classes"),
    ],
    ids=str,
)
def test_sets_at_their_limits(counts: dict[str, tuple[int, ...]], regime: str, kind: str) -> None:
    tasks = _tasks(counts)
    knowledge = Knowledge(tasks, BASIS, evidence=kind)
    shares = _check(knowledge, tasks)
    assert knowledge.regime == regime
    own = np.repeat(np.arange(len(tasks)), [sum(n > 0 for n in c) for c in counts.values()])
    assert (shares.argmax(axis=1) == own).mean() > 0.8
    if regime != "classes" and len(tasks) > 1:
        assert np.isfinite(knowledge.tau) and knowledge.beta == 0.0, "tau from E alone"


def test_a_class_of_one_image_is_not_near_to_itself() -> None:
    """Where few rows can be left out, their own class is struck out of r."""
    tasks = _tasks({"a": (1,) * 40, "b": (1,) * 30, "c": (2, 1)})
    knowledge = Knowledge(tasks, BASIS)
    known = np.concatenate([known.rows.compact for known in tasks.values()])
    assert knowledge.refusal_threshold(0.5) > np.median(knowledge.novelty(known)) + 1.0


def test_one_task() -> None:
    tasks = _tasks({"a": (30, 30)})
    knowledge = Knowledge(tasks, BASIS)
    assert np.isinf(knowledge.tau)
    assert (knowledge.log_shares(tasks["a"].sums.means) == 0.0).all()
    threshold = knowledge.refusal_threshold(0.01)
    assert knowledge.midpoint == pytest.approx(threshold)
    strange, _ = data("z", (30,), apart=1.5)
    assert np.median(knowledge.unseen(strange)) > 0.9
    left = knowledge.novelty(tasks["a"].rows.compact)
    assert knowledge.slope == pytest.approx(4.0 / left.std(), rel=0.5)


def test_few_rows_say_nothing_of_novelty() -> None:
    for counts in ({"a": (7,)}, {"a": (3,), "b": (3,)}, {"a": (1,), "b": (1,)}):
        knowledge = Knowledge(_tasks(counts), BASIS)
        assert (knowledge.slope, knowledge.midpoint) == (0.0, 0.0)
        assert (knowledge.unseen(np.ones((3, WIDTH))) == 0.5).all()
    assert Knowledge(_tasks({"a": (9,)}), BASIS).slope > 0.0


def test_one_image_a_class_is_measured_by_tasks() -> None:
    tasks = _tasks({"a": (1,) * 40, "b": (1,) * 40})
    knowledge = Knowledge(tasks, BASIS)
    fresh = np.concatenate([data(name, (1,) * 40)[0] for name in "ab"])
    strange = np.concatenate([data(name, (20, 20))[0] for name in "xyz"])
    assert np.median(knowledge.novelty(strange)) > np.median(knowledge.novelty(fresh))
    assert knowledge.slope > 0.0


def test_without_any_rows() -> None:
    full = _tasks({"a": (20, 20), "b": (20,)})
    none = np.zeros(0, bool)
    tasks = {
        name: KnownTask(known.sums, known.rows.where(np.zeros(len(known.rows), bool)))
        for name, known in full.items()
    }
    knowledge = Knowledge(tasks, BASIS)
    shares = _check(knowledge, tasks)
    assert (shares.argmax(axis=1) == [0, 0, 1]).all()
    assert knowledge.slope == 0.0 and knowledge.refusal_threshold(0.02) == np.inf
    assert len(none) == len(knowledge.left_out_log_shares("a")[1])


def test_all_images_of_a_task_are_one() -> None:
    features, labels = data("same", (10, 10))
    features[:] = features[0]
    same = KnownTask(Sums.of(features, labels, 2), rows_of(features, labels))
    assert np.trace(same.sums.within) == pytest.approx(0.0, abs=1e-12)
    for tasks in ({"same": same}, {**_tasks({"a": (20, 20)}), "same": same}):
        _check(Knowledge(tasks, BASIS), tasks)


def test_twins_share_their_images() -> None:
    """Two tasks of equal images: either is as likely, nothing breaks."""
    tasks = {"one": task("t", (20, 20)), "two": task("t", (20, 20))}
    shares = _check(Knowledge(tasks, BASIS), tasks)
    np.testing.assert_allclose(shares, 0.5, atol=1e-9)


def test_wider_than_there_are_images() -> None:
    wide = basis(width=40, raw=40, images=30)
    tasks = {}
    for name, counts in {"a": (3, 3), "b": (5,), "c": (1, 2)}.items():
        features, labels = data(name, counts, width=40)
        rows = rows_of(features, labels)
        assert rows.frozen.shape[1] == EMBEDDING
        tasks[name] = KnownTask(Sums.of(features, labels, len(counts)), rows)
    _check(Knowledge(tasks, wide), tasks)


def test_a_task_of_one_image_a_class_is_recognised_beside_full_ones() -> None:
    """The means of few images are far from everything by their own error alone."""
    rng, width, classes = np.random.default_rng(1), 200, 20
    wide, names = basis(width=width, images=2000, raw=width), ("full", "other", "small")
    means = {
        name: 0.15 * rng.normal(size=width) + 0.5 * rng.normal(size=(classes, width))
        for name in names
    }

    def images(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), count)
        features = means[name][labels] + rng.normal(size=(len(labels), width))
        return features.astype(np.float16).astype(np.float32), labels

    tasks = {}
    for name, count in zip(names, (30, 30, 1), strict=True):
        features, labels = images(name, count)
        tasks[name] = KnownTask(Sums.of(features, labels, classes), rows_of(features, labels))
    knowledge = Knowledge(tasks, wide)
    own = {
        name: (knowledge.log_shares(images(name, 10)[0]).argmax(axis=1) == place).mean()
        for place, name in enumerate(knowledge.names)
    }
    assert own["small"] > 0.7 and min(own["full"], own["other"]) > 0.9, own
