"""Which classes a step asks for, and that those stand for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from archipelago.pipeline.methods import Adapter
from archipelago.pipeline.methods.trge import GroupAdapter
from archipelago.pipeline.training import launch
from archipelago.pipeline.training.objectives import asked_classes
from tests.unit.tiny_run import World, make_world, run_settings, stage_spec

CLASSES = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ("apples",))


def test_all_of_the_batch_and_others_drawn_evenly() -> None:
    labels = np.array([7, 2, 7])
    counts = np.zeros(40)
    for draw in range(2000):
        asked = asked_classes(labels, 40, 10, np.array([[draw, 0]]))
        assert asked is not None and len(asked.classes) == 10
        assert (np.diff(asked.classes) > 0).all() and {2, 7} <= set(asked.classes.tolist())
        counts[asked.classes] += 1
    others = np.delete(counts, [2, 7])
    assert (counts[[2, 7]] == 2000).all() and abs(others - 2000 * 8 / 38).max() < 100
    same = [asked_classes(labels, 40, 10, np.array([[3, 1]])) for _ in range(2)]
    assert same[0] is not None and (same[0].classes == same[1].classes).all()  # type: ignore[union-attr]
    for count, wanted in ((40, 0), (10, 10), (9, 10)):
        assert asked_classes(labels, count, wanted, np.array([[0, 0]])) is None


def test_the_sum_over_classes_is_right_on_average() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for draw in range(4000):
        asked = asked_classes(np.array([3]), 30, 12, np.array([[draw, 5]]))
        assert asked is not None
        found.append((logits[asked.classes] + torch.from_numpy(asked.weights)).exp().sum())
    assert float(torch.stack(found).mean()) == pytest.approx(float(logits.exp().sum()), rel=0.02)


def test_more_own_classes_than_asked_for_leave_one_other() -> None:
    asked = asked_classes(np.arange(9), 20, 4, np.array([[0, 0]]))
    assert asked is not None and len(asked.classes) == 10
    assert asked_classes(np.arange(20), 20, 4, np.array([[0, 0]])) is None


def test_a_step_reads_the_names_that_it_asks_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = GroupAdapter.text

    def text(self: Adapter, x_CLD: torch.Tensor, *rest: object) -> torch.Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(x_CLD))
        return real(self, x_CLD, *rest)

    monkeypatch.setattr(GroupAdapter, "text", text)

    def trained(name: str, **parts: object) -> launch.Outcome:
        sizes.clear()
        training = {"negatives": 2, "batch_size": 2, "steps": 6}
        chosen = run_settings(world, **{"method": {"name": "trge"}, "training": training, **parts})
        return launch.train_stage(stage_spec(world, tmp_path / name, chosen))

    few = trained("few")
    assert set(sizes) <= {2, 3} and len(sizes) == 6, "a batch of two has one or two classes"
    every = trained("all", training={"negatives": 0, "batch_size": 2, "steps": 6})
    assert set(sizes) == {CLASSES}
    assert not all(torch.equal(few.group[name], every.group[name]) for name in few.group)
    trained("frozen", experts={"text": "off"})
    templates = len(world.domains[0].templates)
    assert sizes.count(CLASSES) == min(6, templates), "once, where nothing trains them"
    trained("vectors", method={"name": "archipelago"})
    assert set(sizes) <= {CLASSES}, "vectors of its own are never drawn from"


def test_with_all_classes_the_loss_is_plain() -> None:
    asked = asked_classes(np.array([0, 1]), 3, 3, np.array([[0, 0]]))
    assert asked is None
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    exact = F.cross_entropy(logits, torch.tensor([1]))
    drawn = asked_classes(np.array([1]), 3, 2, np.array([[0, 0]]))
    assert drawn is not None and drawn.weights.max() == pytest.approx(np.log(2.0))
    at = torch.from_numpy(drawn.classes)
    label = torch.from_numpy(np.searchsorted(drawn.classes, [1]))
    near = F.cross_entropy(logits[:, at] + torch.from_numpy(drawn.weights).float(), label)
    assert float(near) != pytest.approx(float(exact)) and abs(float(near - exact)) < 0.7
