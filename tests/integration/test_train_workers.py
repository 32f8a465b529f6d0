"""Ray Train workers that stay: the same groups as ever, no start for a stage, side by side."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from archipelago.pipeline.benchmark.memory import _tree
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import sha256
from archipelago.pipeline.store.tensors import dump
from archipelago.pipeline.training.launch import Trainer, train_stage
from archipelago.pipeline.training.spec import Outcome, StageSpec, attempt_folder
from tests.running import TRAINER, titled, wait_until
from tests.unit.tiny_run import World, make_world, run_settings

TASKS = ("apples", "pears", "plums")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), TASKS)


def trainers() -> list[int]:
    """Processes of training workers below this one."""
    return titled(_tree(os.getpid()), TRAINER)


def chosen(world: World, workers: int, lanes: int = 1, **training: object) -> Settings:
    train = {"num_workers": workers, "num_cpus": 0.5, "lanes": lanes}
    cluster = {"train": train, "encode": {"num_workers": 0}, "max_failures": 1}
    return run_settings(world, method={"name": "lora_per_task"}, cluster=cluster, training=training)


def specs(world: World, run: Path, settings: Settings) -> list[StageSpec]:
    return [
        StageSpec(settings, str(run), Kernels(), stage, (domain,), threads=1)
        for stage, domain in enumerate(world.domains)
    ]


def digest(outcome: Outcome) -> str:
    return sha256(dump(outcome.group))


def test_workers_stay_and_learn_what_a_process_learns(
    world: World, tmp_path: Path, local_ray: str
) -> None:
    alone = [digest(train_stage(s)) for s in specs(world, tmp_path / "a", chosen(world, 0))]
    seen: list[list[int]] = []
    with Trainer() as trainer:
        mine = specs(world, tmp_path / "b", chosen(world, 1))
        found = [digest(trainer(mine[0]))]
        seen.append(trainers())
        for spec in mine[1:]:
            trainer.ahead(spec)
        wait_until(lambda: attempt_folder(mine[2]).exists("final/facts.json"), "nobody has asked")
        found += [digest(trainer(spec)) for spec in mine[1:]]
        seen.append(trainers())
        # A worker that dies while there is nothing to do is no failure of the next stage.
        os.kill(seen[1][0], signal.SIGKILL)
        again = replace(mine[0], attempt=2, run=str(tmp_path / "c"))
        assert digest(trainer(again)) == alone[0]
    assert found == alone
    assert len(seen[0]) == 1 and seen[0] == seen[1]
    assert not list((tmp_path / "b" / "train").glob("workers-*"))


def test_lanes_train_side_by_side(world: World, tmp_path: Path, local_ray: str) -> None:
    mine = specs(world, tmp_path / "run", chosen(world, 1, lanes=2))
    with Trainer() as trainer:
        for spec in mine:
            trainer.ahead(spec)
        wait_until(lambda: len(trainers()) == 2, "two workers")
        found = [digest(trainer(spec)) for spec in mine]
    assert found == [digest(train_stage(s)) for s in specs(world, tmp_path / "a", chosen(world, 0))]


def test_a_stage_that_cannot_succeed_costs_the_others_nothing(
    world: World, tmp_path: Path, local_ray: str
) -> None:
    good, bad, _ = specs(world, tmp_path / "run", chosen(world, 1))
    bad = replace(bad, settings=chosen(world, 1, learning_rate=1e30))
    with Trainer() as trainer:
        trainer.ahead(bad)
        trainer.ahead(good)
        with pytest.raises(UserError, match=r"^stage 1 pears: training diverged at step"):
            trainer(bad)
        assert trainer(good).facts["parameters"] > 0
