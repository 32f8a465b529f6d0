"""What no other attempt could mend ends a stage on Ray Train's workers in words, at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
import torch

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.training import checkpoints, launch, worker
from archipelago.pipeline.training.entry import enter
from archipelago.pipeline.training.objectives import Classification
from archipelago.pipeline.training.spec import StageSpec
from archipelago.pipeline.training.stage import run_stage
from archipelago.pipeline.training.stage_queue import Ending, StageQueue
from tests.unit.tiny_run import World, make_world, run_settings, stage_spec

EVERY = 4  # steps between two looks at the held-out fold


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ("apples",))


@pytest.fixture
def spec(world: World, tmp_path: Path) -> StageSpec:
    training = {"steps": 8, "batch_size": 8, "validate_every": EVERY, "checkpoint_every": EVERY}
    chosen = run_settings(world, method={"name": "trge"}, training=training)
    return stage_spec(world, tmp_path / "run", chosen)


def broken_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Makes the loss of one step no number; returns the steps done."""
    steps: list[int] = []
    real = Classification.loss

    def loss(self: Classification, *arguments: Any) -> torch.Tensor:
        steps.append(len(steps))
        return real(self, *arguments) * (float("nan") if steps[-1] == step else 1.0)

    monkeypatch.setattr(Classification, "loss", loss)
    return steps


@pytest.mark.parametrize(("ours", "others"), [(True, False), (False, True)])
def test_ranks_give_up_together(
    spec: StageSpec, monkeypatch: pytest.MonkeyPatch, ours: bool, others: bool
) -> None:
    """One rank alone met the loss; were it to leave at once, the others would wait for it."""
    steps = broken_at(monkeypatch, 1 if ours else -1)

    def all_reduce(values: torch.Tensor) -> None:
        if values.numel() == 1:
            values += float(others)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with pytest.raises(UserError, match=f"diverged at step {EVERY}"):
        run_stage(spec, rank=0, world=2)
    assert len(steps) == EVERY


def test_weights_that_are_no_numbers_are_no_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step before a checkpoint breaks them, long before they are judged."""
    training = {"steps": 8, "batch_size": 8, "validate_every": 8, "checkpoint_every": 2}
    chosen = run_settings(world, method={"name": "trge"}, training=training)
    real = torch.optim.AdamW.step
    calls: list[None] = []

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        done = real(self, *arguments)
        calls.append(None)
        if len(calls) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match="diverged at step 4"):
        launch.train_stage(stage_spec(world, tmp_path / "run", chosen))
    [kept] = (tmp_path / "run").glob("train/*/*/*")
    assert kept.name == "checkpoint-000002" and (kept / checkpoints.FACTS).exists()


class LocalQueue:
    """A `StageQueue` in this process, called as a handle of the actor is."""

    def __init__(self, world: int = 1, max_failures: int = 2) -> None:
        self._loop = asyncio.new_event_loop()
        self._queue = StageQueue(world, max_failures)

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self._queue, name)
        return SimpleNamespace(
            remote=lambda *given: self._loop.run_until_complete(asyncio.wait_for(method(*given), 5))
        )


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> LocalQueue:
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(worker.rt, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(worker.rt, "report", lambda metrics, checkpoint: None)
    monkeypatch.setattr(ray, "get", lambda found: found)
    return LocalQueue()


def test_a_diverging_rate_on_a_worker_is_refused_in_one_attempt(
    spec: StageSpec, queue: LocalQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, 2)
    queue.add.remote(spec.plain())
    enter({"queue": queue})  # ends well: Ray Train starts nothing anew
    ending = queue.ended.remote(0)
    assert ending.how == "refused" and "training diverged at step 2" in ending.reason
    assert "training.learning_rate" in ending.reason
    assert queue.take.remote(None) is None, "a rank that fails for lack of it has nothing to do"


def test_workers_that_fail_to_the_end_say_why(
    spec: StageSpec, queue: LocalQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(worker, "run_stage", stage)
    queue.add.remote(spec.plain())
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            enter({"queue": queue})
    enter({"queue": queue})
    assert queue.ended.remote(0) == Ending("failed", "RuntimeError: out of memory")


def test_one_stage_after_another(
    spec: StageSpec, queue: LocalQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def stage(spec: StageSpec, **_: Any) -> None:
        done.append(spec.stage)
        if len(done) == 2:
            raise RuntimeError("killed")
        if len(done) == 4:
            queue.close.remote()

    monkeypatch.setattr(worker, "run_stage", stage)
    for number in range(3):
        queue.add.remote(replace(spec, stage=number).plain())
    with pytest.raises(RuntimeError, match="killed"):
        enter({"queue": queue})
    enter({"queue": queue})
    assert done == [0, 1, 1, 2], "a stage that was done is not trained again"
    assert [queue.ended.remote(number).how for number in range(3)] == ["done"] * 3
