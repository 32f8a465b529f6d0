"""Stages that need nothing of others are trained before they are asked for, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.training.launch import Trainer
from archipelago.pipeline.training.spec import Outcome, StageSpec, attempt_folder
from tests.unit.tiny_run import World, learn_stream, make_learner, make_world, run_settings

TASKS = ("apples", "boats", "cats")


class Eager(Trainer):
    """Trains at once what it is told ahead, and notes what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Outcome] = {}
        self.told: list[int] = []
        self.trained: list[int] = []

    def ahead(self, spec: StageSpec) -> None:
        self.told.append(spec.stage)
        self._once(spec)

    def __call__(self, spec: StageSpec) -> Outcome:
        return self._once(spec)

    def _once(self, spec: StageSpec) -> Outcome:
        key = attempt_folder(spec).uri
        if key not in self.kept:
            self.trained.append(spec.stage)
            self.kept[key] = super().__call__(spec)
        return self.kept[key]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), TASKS)


def hashes(world: World, run: Path, trainer: Trainer, **parts: Any) -> list[str]:
    folder = RunFolder(run)
    learn_stream(make_learner(world, folder, run_settings(world, **parts), trainer=trainer))
    return [ref.sha256 for ref in folder.current_groups()]


@pytest.mark.parametrize(
    "method",
    [{"name": "archipelago", "options": {"group": "on"}}, {"name": "lora_per_task"}],
    ids=["archipelago", "lora_per_task"],
)
def test_the_same_groups_come_out(world: World, tmp_path: Path, method: dict[str, Any]) -> None:
    plain = hashes(world, tmp_path / "plain", Trainer(), method=method)
    eager = Eager()
    assert hashes(world, tmp_path / "eager", eager, method=method) == plain
    assert eager.trained == [0, 1, 2], "each once, under the attempt that then asks for it"
    assert eager.told[:2] == [0, 0] and eager.told.index(1) < eager.told.index(2)


class Noted(Eager):
    """Notes which stages were stored and which were measured when one was trained."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = RunFolder(run)
        self.seen: list[tuple[int, int]] = []

    def _once(self, spec: StageSpec) -> Outcome:
        if spec.stage not in self.trained:
            events = [event["event"] for event in self.run.journal.events()]
            self.seen.append((events.count("stage-done"), events.count("evaluated")))
        return super()._once(spec)


@pytest.mark.parametrize("name", ["trge", "lora"])
def test_what_borrows_or_continues_is_trained_before_the_stage_it_needs_is_measured(
    world: World, tmp_path: Path, name: str
) -> None:
    plain = hashes(world, tmp_path / "plain", Trainer(), method={"name": name})
    noted = Noted(tmp_path / "noted")
    assert hashes(world, tmp_path / "noted", noted, method={"name": name}) == plain
    assert noted.told == [1, 2] and noted.trained == [0, 1, 2]
    assert noted.seen == [(0, 0), (1, 0), (2, 1)]


def test_what_cannot_be_judged_is_not_trained(tmp_path: Path) -> None:
    single = make_world(tmp_path / "single", TASKS, train=1)
    eager = Eager()
    hashes(single, tmp_path / "run", eager, method={"name": "archipelago"})
    assert eager.told == eager.trained == []
