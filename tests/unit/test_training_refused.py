"""What no other attempt could mend ends a stage on Ray Train's workers in words, at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train as rt
import torch

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.training import checkpoints, launch, worker
from archipelago.pipeline.training.objectives import Classification
from archipelago.pipeline.training.spec import StageSpec
from archipelago.pipeline.training.stage import run_stage
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


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(worker.rt, "get_context", lambda: context)
    monkeypatch.setattr(worker.rt, "report", lambda metrics, checkpoint: None)


def fits(monkeypatch: pytest.MonkeyPatch, spec: StageSpec, attempts: int) -> list[str]:
    """Stands in for Ray Train, which starts workers anew until they end without an error."""
    ended: list[str] = []

    def fit(trainer: object) -> SimpleNamespace:
        for _ in range(attempts):
            try:
                worker.work(spec.plain())
            except RuntimeError as error:
                ended.append(str(error))
                continue
            ended.append("")
            return SimpleNamespace(checkpoint=None)
        raise rt.WorkerGroupError(ended[-1], {0: RuntimeError(ended[-1])})

    monkeypatch.setattr(launch, "_fit", fit)
    return ended


def test_a_diverging_rate_on_a_worker_is_refused_in_one_attempt(
    spec: StageSpec, ranks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, 2)
    ended = fits(monkeypatch, spec, attempts=4)
    words = r"^stage 0 apples: training diverged at step 2, "
    with pytest.raises(UserError, match=words) as caught:
        launch._on_ray(spec, launch.stage_folder(launch.RunFolder(spec.run), spec))
    assert ended == [""] and "training.learning_rate" in str(caught.value)


def test_a_refusal_of_one_rank_ends_those_that_start_anew(
    spec: StageSpec, ranks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others fail for lack of it, and Ray Train starts them all again."""
    started: list[int] = []

    def stage(*_: Any, **__: Any) -> None:
        started.append(1)
        worker.refusals(spec).write_json(worker.REFUSED, "no such image")
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(worker, "run_stage", stage)
    ended = fits(monkeypatch, spec, attempts=4)
    with pytest.raises(UserError, match=r"^stage 0 apples: no such image$"):
        launch._on_ray(spec, launch.stage_folder(launch.RunFolder(spec.run), spec))
    assert ended == ["connection closed by peer", ""] and started == [1]


@pytest.mark.parametrize("refused", [True, False])
def test_workers_that_fail_to_the_end(
    spec: StageSpec, ranks: None, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    def stage(*_: Any, **__: Any) -> None:
        if refused:
            worker.refusals(spec).write_json(worker.REFUSED, "no such image")
        raise RuntimeError("killed")

    monkeypatch.setattr(worker, "run_stage", stage)
    fits(monkeypatch, spec, attempts=1)
    with pytest.raises(UserError if refused else RuntimeError, match=r"such image|last: killed"):
        launch._on_ray(spec, launch.stage_folder(launch.RunFolder(spec.run), spec))


def test_another_attempt_is_not_refused_for_an_earlier_one(
    spec: StageSpec, ranks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.refusals(spec).write_json(worker.REFUSED, "training diverged")
    done: list[Callable[..., None]] = []
    monkeypatch.setattr(worker, "run_stage", lambda *a, **k: done.append(a[0]))
    again = type(spec)(**{**spec.__dict__, "attempt": spec.attempt + 1})
    worker.work(again.plain())
    assert len(done) == 1
    worker.work(spec.plain())
    assert len(done) == 1
