"""Invariant 9: a model is its set of records. Order, history and what was forgotten do not matter.

Domains a, b, c are learned in their order and b is forgotten; elsewhere c is learned before a, and
b was never there. Where nothing borrows, both models say the same, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.methods import methods
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import (
    World,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
)
from tests.unit.tiny_serving import SERVING, test_images

TASKS = ("a", "b", "c")
# Nothing borrows, and no stage goes on with another's weights. `lambda_max: auto` is measured on
# the way, which is a history.
ALONE = {"neighbours": {"count": 0}, "unseen": {"lambda_max": 0.5}}
CHOSEN = [
    *(
        {"name": name}
        for name, method in methods.known().items()
        if method.identifies() and not method.joint and not method.continues
    ),
    {"name": "archipelago", "options": {"group": "on"}},  # few groups pay on so few images
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), TASKS)


@pytest.fixture(scope="module")
def images(world: World) -> np.ndarray:
    return np.concatenate([test_images(world, task, 8) for task in TASKS])


def _learned(world: World, run: RunFolder, chosen: Settings, order: str) -> RunFolder:
    known = {domain.name: domain for domain in world.domains}
    ordered = World([known[name] for name in order], world.backbone)
    open_run(ordered, run, chosen)
    learn_stream(make_learner(ordered, run, chosen))
    return run


@pytest.fixture(scope="module", params=CHOSEN, ids=str)
def both(
    request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, RunFolder]:
    """A run that forgot b, and one that never met it, both with the same method."""
    method: dict[str, Any] = request.param | ALONE
    chosen = run_settings(world, method=method, training={"steps": 6})
    where = tmp_path_factory.mktemp("runs")
    whole = _learned(world, RunFolder(where / "abc"), chosen, "abc")
    forget_task(whole.uri, "b", SERVING).finish(erase=True)
    return whole, _learned(world, RunFolder(where / "ca"), chosen, "ca")


def test_forgetting_gives_the_model_that_never_met_the_domain(
    both: tuple[RunFolder, RunFolder], images: np.ndarray
) -> None:
    forgot, never = (LearnedModel.open(run.uri) for run in both)
    assert list(forgot.tasks) == ["a", "c"] and list(never.tasks) == ["c", "a"]
    found, expected = forgot.identify(images), never.identify(images)
    assert found.options == expected.options == ("a", "c")
    for part in ("log_shares", "novelty", "log_odds"):
        assert np.array_equal(getattr(found, part), getattr(expected, part)), part
    for share in (0.05, 0.5):
        assert forgot.state.identifier is not None and never.state.identifier is not None
        threshold = forgot.state.identifier.refusal_threshold(share)
        assert threshold == never.state.identifier.refusal_threshold(share)
    for task in ("a", "c"):
        mine, theirs = forgot.tasks[task], never.tasks[task]
        assert mine.temperature == theirs.temperature and mine.facts == theirs.facts
        assert forgot.answer(images, task=task, top_k=9) == never.answer(images, task=task, top_k=9)
    asked = [("a", "a 1"), ("c", "c 0"), ("a", "a 3")]
    assert forgot.answer(images, candidates=asked) == never.answer(images, candidates=asked)
    assert forgot.answer(images, top_k=9) == never.answer(images, top_k=9)
    for candidates in (["a 1", "zebra", "c 0", "yak"], ["zebra", "yak"], ["b 0", "b 1"]):
        assert forgot.answer(images, candidates) == never.answer(images, candidates)


def test_what_a_domain_leaves_does_not_depend_on_its_place(
    both: tuple[RunFolder, RunFolder],
) -> None:
    """Weights, statistics, texts and probes of c as third and as first, of a as first and last."""
    left = []
    for run in both:
        groups = [GroupRecord.read(run, ref) for ref in run.current_groups()]
        left.append({group.name: group for group in groups})
    assert left[0].keys() == left[1].keys() == {"a", "c"}
    for name, group in left[0].items():
        ours, theirs = group.files(), left[1][name].files()
        for file in ("group.safetensors", "identity.safetensors", "probe.safetensors"):
            assert ours[file] == theirs[file], (name, file)
        a, b = (record.tasks[0].card() for record in (group, left[1][name]))
        different = {key for key in a if a[key] != b[key]}
        assert different <= {"lambda_accuracy"}, "measured before it was learned"
