"""An interrupted stage ends with the same bytes as an uninterrupted one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.methods import methods
from archipelago.pipeline.methods.finetune import Finetune
from archipelago.pipeline.store import Folder, sha256
from archipelago.pipeline.store.tensors import dump
from archipelago.pipeline.streams import PreparedDomain
from archipelago.pipeline.training import checkpoints, launch
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.spec import Outcome
from archipelago.pipeline.training.stage import run_stage
from tests.unit.tiny_run import World, make_world, run_settings, stage_spec

STEPS = (3, 6, 8)  # checkpoints of the runs below


class Killed(Exception):
    """The end of a process, as far as a test can have it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ("apples",))


def _settings(world: World, method: str = "trge", **training: Any) -> Any:
    base = {"steps": 8, "batch_size": 8, "views": 2, "validate_every": 2, "checkpoint_every": 3}
    rate = 0.001 if issubclass(methods.get(method), Finetune) else 0.02
    return run_settings(
        world, method={"name": method}, training=base | {"learning_rate": rate} | training
    )


def _uninterrupted(world: World, run: Path, settings: Any) -> tuple[str, Outcome]:
    outcome = launch.train_stage(stage_spec(world, run, settings))
    return sha256(dump(outcome.group)), outcome


@pytest.mark.parametrize("method", ["trge", "finetune"])
@pytest.mark.parametrize("dies_at", STEPS)
def test_resumed_equals_uninterrupted(
    world: World, tmp_path: Path, method: str, dies_at: int
) -> None:
    _check_resumed(world, tmp_path, _settings(world, method), dies_at)


@pytest.mark.parametrize("method", [name for name, m in methods.known().items() if m.trains])
def test_every_method_that_trains_resumes(world: World, tmp_path: Path, method: str) -> None:
    _check_resumed(world, tmp_path, _settings(world, method), STEPS[1])


def _check_resumed(world: World, tmp_path: Path, settings: Any, dies_at: int) -> None:
    expected, _ = _uninterrupted(world, tmp_path / "whole", settings)
    folder = tmp_path / "checkpoint"
    folder.mkdir()

    def save(metrics: dict, state: TrainingState | None, outcome: Outcome | None) -> None:
        assert state is not None and outcome is None
        if state.step == dies_at:
            checkpoints.save(folder, state)
            raise Killed

    spec = stage_spec(world, tmp_path / "broken", settings)
    with pytest.raises(Killed):
        run_stage(spec, save=save)
    torch.manual_seed(999)  # another process has another random state
    torch.rand(7)
    outcomes: list[Outcome | None] = []
    run_stage(
        spec, resume=checkpoints.restore(Folder(folder)), save=lambda m, s, o: outcomes.append(o)
    )
    assert outcomes[-1] is not None
    assert sha256(dump(outcomes[-1].group)) == expected


def test_every_attempt_goes_on_from_the_last_complete_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(world)
    expected, whole = _uninterrupted(world, tmp_path / "whole", settings)
    steps: list[int] = []
    real = checkpoints.save

    def save(folder: Path, state: TrainingState) -> None:
        steps.append(state.step)
        if len(steps) in (2, 4):  # killed twice while a checkpoint is written
            raise Killed
        real(folder, state)

    monkeypatch.setattr(launch.checkpoints, "save", save)
    for attempt in (1, 2):
        with pytest.raises(Killed):
            launch.train_stage(_attempt(world, tmp_path, settings, attempt))
    outcome = launch.train_stage(_attempt(world, tmp_path, settings, 3))
    assert sha256(dump(outcome.group)) == expected
    assert steps == [3, 6, 6, 8, 8, 8], "each attempt starts after the last checkpoint"
    assert outcome.classes.keys() == {"apples"}
    assert torch.equal(outcome.classes["apples"], whole.classes["apples"])
    assert {k: dump({k: v}) for k, v in outcome.probe.items()} == {
        k: dump({k: v}) for k, v in whole.probe.items()
    }
    for fact in ("temperatures", "held_out_accuracy", "best_step", "parameters", "neighbours"):
        assert outcome.facts[fact] == whole.facts[fact]


def _attempt(world: World, run: Path, settings: Any, attempt: int) -> Any:
    spec = stage_spec(world, run, settings)
    return type(spec)(**{**spec.__dict__, "attempt": attempt})


def test_what_the_result_depends_on(world: World, tmp_path: Path) -> None:
    """The same settings give the same bytes; memory for the cache and checkpoints do not matter."""
    base = {"validate_every": 8}  # the last weights, so that every step counts
    expected, outcome = _uninterrupted(world, tmp_path / "a", _settings(world, **base))
    same = [{}, {"cache_gib": 0.0}, {"checkpoint_every": 2}]
    for number, training in enumerate(same):
        got, _ = _uninterrupted(
            world, tmp_path / f"same{number}", _settings(world, **base, **training)
        )
        assert got == expected, training
    other = [{"views": 1}, {"crop": (0.5, 0.7)}, {"learning_rate": 0.01}, {"label_smoothing": 0.0}]
    for number, training in enumerate(other):
        got, _ = _uninterrupted(
            world, tmp_path / f"other{number}", _settings(world, **base, **training)
        )
        assert got != expected, training
    seeded = _settings(world, **base).model_copy(update={"seed": 1})
    assert _uninterrupted(world, tmp_path / "seed", seeded)[0] != expected
    assert outcome.facts["curve"][-1]["step"] == 8


def test_a_group_depends_on_the_names_of_its_tasks_not_on_their_place(
    world: World, tmp_path: Path
) -> None:
    settings = _settings(world, validate_every=8)
    expected, whole = _uninterrupted(world, tmp_path / "first", settings)
    spec = stage_spec(world, tmp_path / "later", settings)
    later = launch.train_stage(replace(spec, stage=5))
    assert sha256(dump(later.group)) == expected, "the same task as the sixth of a stream"
    assert dump(later.probe) == dump(whole.probe) and dump(later.classes) == dump(whole.classes)
    other = replace(spec, run=str(tmp_path / "other"), domains=(_renamed(world),))
    assert other.seeding != spec.seeding == replace(spec, stage=5).seeding
    assert sha256(dump(launch.train_stage(other).group)) != expected
    both = (*spec.domains, _renamed(world))
    assert len({replace(spec, domains=d).seeding for d in (both, both[::-1], spec.domains)}) == 3


def _renamed(world: World) -> PreparedDomain:
    return replace(world.domains[0], name="pears")


def test_the_best_weights_are_kept_not_the_last(world: World, tmp_path: Path) -> None:
    """A rate that ruins the group late must not cost what was good early."""
    settings = _settings(world, steps=40, learning_rate=0.03, validate_every=1)
    states: list[TrainingState] = []
    outcomes: list[Outcome | None] = []

    def save(metrics: dict, state: TrainingState | None, outcome: Outcome | None) -> None:
        outcomes.append(outcome)
        if state is not None:
            states.append(state)

    run_stage(stage_spec(world, tmp_path, settings), save=save)
    state, outcome = states[-1], outcomes[-1]
    assert outcome is not None and state.best_step < 40
    assert torch.equal(outcome.group["image.A"], state.best["group.image.A"])
    assert not torch.equal(state.best["group.image.A"], state.adapter["group.image.A"])
    assert state.best_accuracy > 0.3, "colours of four classes are learned"


def _state(step: int = 3) -> TrainingState:
    values = {"x": torch.arange(4.0)}
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
    }
    return TrainingState(step, values, optimizer, {"x": torch.zeros(4)}, 2, 0.5, 1.25)


def test_a_checkpoint_holds_everything(tmp_path: Path) -> None:
    torch.manual_seed(3)
    checkpoints.save(tmp_path, _state())
    expected = torch.rand(3)
    torch.manual_seed(4)
    state = checkpoints.restore(Folder(tmp_path))
    assert torch.equal(torch.rand(3), expected), "the random state comes back too"
    assert (state.step, state.best_step, state.best_accuracy, state.best_loss) == (3, 2, 0.5, 1.25)
    assert torch.equal(state.adapter["x"], torch.arange(4.0))
    assert torch.equal(state.best["x"], torch.zeros(4))
    assert torch.equal(state.optimizer["state"][0]["exp_avg"], torch.ones(4))
    assert state.optimizer["param_groups"][0]["lr"] == 0.1
    empty = tmp_path / "empty"
    empty.mkdir()
    checkpoints.save(empty, TrainingState(1, {"x": torch.ones(1)}))
    assert checkpoints.restore(Folder(empty)).best_loss == float("inf")


@pytest.mark.parametrize("damage", ["torn", "no-facts", "half-facts", "no-tensors", "flipped"])
def test_torn_checkpoints_are_refused(tmp_path: Path, damage: str) -> None:
    for number, step in enumerate((3, 6)):
        folder = tmp_path / "attempt-1" / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        checkpoints.save(folder, _state(step))
    tensors, facts = folder / checkpoints.TENSORS, folder / checkpoints.FACTS
    if damage == "torn":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif damage == "no-facts":
        facts.unlink()
    elif damage == "half-facts":
        facts.write_text(facts.read_text()[:20])
    elif damage == "no-tensors":
        tensors.unlink()
    else:
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    with pytest.raises(IntegrityError):
        checkpoints.restore(Folder(folder))
    found = checkpoints.newest(Folder(tmp_path))
    assert found is not None and checkpoints.restore(found).step == 3


def test_the_newest_checkpoint_is_the_one_with_the_most_steps(tmp_path: Path) -> None:
    assert checkpoints.newest(Folder(tmp_path)) is None
    for attempt, name, step in [(1, "b", 9), (1, "c", 6), (2, "a", 7)]:
        folder = tmp_path / f"attempt-{attempt}" / name
        folder.mkdir(parents=True)
        checkpoints.save(folder, _state(step))
    found = checkpoints.newest(Folder(tmp_path))
    assert found is not None and json.loads(found.read(checkpoints.FACTS))["step"] == 9
