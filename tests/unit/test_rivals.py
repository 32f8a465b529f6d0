"""Methods to compare with: each learns, comes back after a kill, and shows what it forgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.methods import Function, build_method, method_class, methods
from archipelago.pipeline.methods.finetune import Finetune
from archipelago.pipeline.methods.sequential import Sequential
from archipelago.pipeline.records import ClassList
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder, RunFolder, sha256
from archipelago.pipeline.store.tensors import dump
from archipelago.pipeline.streams import ImageTable
from archipelago.pipeline.training import checkpoints, launch
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.spec import Outcome
from archipelago.pipeline.training.stage import run_stage
from tests.unit.tiny_run import (
    World,
    group_hashes,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
    stage_spec,
)
from tests.unit.tiny_serving import SERVING

TASKS = ("apples", "boats", "cats")
KNOWN = methods.known()
TRAINED = [name for name, method in KNOWN.items() if issubclass(method, Sequential)]
STREAMED = [name for name in TRAINED if not KNOWN[name].joint]
SHARED = [name for name in STREAMED if KNOWN[name].continues and not KNOWN[name].mixes]
LEARNING = [n for n, m in KNOWN.items() if m.learns and (m.policy == "one" or n in TRAINED)]
SMALL: dict[str, dict[str, Any]] = {
    "rail": {"width": 40},
    "moe_adapters": {"experts": 6, "rank": 4},
    "zscl": {"hold": 0.0, "weight": 0.1},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), TASKS)


def _settings(world: World, name: str, **options: Any) -> Settings:
    chosen = {"name": name, "options": SMALL.get(name, {}) | options}
    # At these rates so few steps change something on the tiny world without blowing up.
    rate = 0.003 if issubclass(KNOWN[name], Finetune) else 0.02
    training = {"learning_rate": rate, "steps": 16}
    return run_settings(world, method=chosen, training=training)


def _run(world: World, root: Path, name: str, **options: Any) -> tuple[RunFolder, dict[str, Any]]:
    run, chosen = RunFolder(root / name), _settings(world, name, **options)
    open_run(world, run, chosen)
    learn_stream(make_learner(world, run, chosen))
    return run, write_report(run, pictures=False)


Runs = Callable[[str], tuple[RunFolder, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A method's run, learned when it is first asked for."""
    root = tmp_path_factory.mktemp("runs")
    return cache(lambda name: _run(world, root, name))


@pytest.mark.parametrize("name", LEARNING)
def test_it_learns(runs: Runs, name: str) -> None:
    _, report = runs(name)
    matrix, frozen = np.array(report["settings"]["mtil_given"]["matrix"]), report["zero_shot"]
    stages = [[TASKS.index(task) for task in tasks] for tasks in report["stages"]]
    gains = [matrix[i, j] - frozen[j] for i, tasks in enumerate(stages) for j in tasks]
    assert np.mean(gains) > 5, "it is better than frozen CLIP at what it has just learned"
    assert report["parameters"]["total"] > 0 and report["bytes"]["total"] > 0
    if KNOWN[name].policy == "given":
        assert all(matrix[i, j] == matrix[j, j] for j in range(3) for i in range(j, 3))
    else:
        assert report["settings"]["xtail"] is not None, "nobody needs to know the domain"


@pytest.mark.parametrize("name", SHARED)
def test_newer_weights_answer_for_older_tasks(runs: Runs, world: World, name: str) -> None:
    """What a model says of the first task changes with a later stage, and is measured anew."""
    run, _ = runs(name)
    images = ImageTable.open(world.domains[0].tables["test"]).images(np.arange(2))
    said = [
        [
            sorted((c, p) for c, p in a.classes)
            for a in LearnedModel.open(run.uri, manifest).answer(images, task="apples")
        ]
        for manifest in (1, 3)
    ]
    assert said[0] != said[1]
    assert run.folder.local is not None
    found = sorted(run.folder.local.glob("evaluation/functions/apples-*/*.safetensors"))
    assert len(found) == 3, "features of each stage's weights"


def test_what_is_learned_on_shared_weights_is_forgotten(runs: Runs) -> None:
    _, report = runs("lora")
    assert report["forgetting"] > 5 and report["bwt"] < -5


def test_classes_of_older_tasks_are_read_by_the_newest_weights(runs: Runs) -> None:
    state = LearnedModel.open(runs("lora")[0].uri).state
    record, function = state.records["apples"], state.function("apples")
    assert function is not None and function.weights == "cats" and record.own_CF is not None
    asked: list[int] = []

    def encode(listed: ClassList, function: Function | None) -> np.ndarray:
        asked.append(len(listed))
        return np.zeros((len(listed), 1), np.float32)

    texts = Texts(encode)
    texts.remember(state)
    texts.get(record.listed, function, state.versions["cats"])
    assert asked == [4], "what its own stage left is no longer how its classes are read"
    newest = state.records["cats"]
    assert np.array_equal(
        texts.get(newest.listed, function, state.versions["cats"]), newest.own_CF
    ) and asked == [4]


def test_ridge_forgets_exactly(world: World, tmp_path: Path) -> None:
    """Sums of the other domains are those of a model that never met the forgotten one."""
    whole, _ = _run(world, tmp_path / "whole", "rail")
    forget_task(whole.uri, "boats", SERVING).finish(erase=True)
    apples, _, cats = world.domains
    never, _ = _run(World([cats, apples], world.backbone), tmp_path / "never", "rail")
    images = np.concatenate(
        [ImageTable.open(d.tables["test"]).images(np.arange(8)) for d in world.domains]
    )
    asked = ["apples 1", "cats 0", "apples 3", "zebra"]
    said = [
        [a.classes for a in LearnedModel.open(run.uri).answer(images, asked)]
        for run in (whole, never)
    ]
    assert said[0] == said[1]


def test_a_batch_votes_only_where_it_is_asked_for(runs: Runs, world: World) -> None:
    run, _ = runs("moe_adapters")
    model = LearnedModel.open(run.uri)
    tasks = tuple(sorted(TASKS))
    looked = {}
    for domain in world.domains:
        images = ImageTable.open(domain.tables["train"]).images(np.arange(40))
        looked[domain.name] = model.runtime.view(model.state, images, model.texts).compact
    said = np.log(np.full((40, 3), 1 / 3))
    method, chosen = model.state.method, _settings(world, "moe_adapters", selector="batch")
    assert method.choose(tasks, said, looked["boats"]) is said
    voting = build_method(chosen, model.runtime.basis)
    voting.know(model.state.records)
    for name, compact in looked.items():
        assert (voting.choose(tasks, said, compact).argmax(axis=1) == tasks.index(name)).all()
    mixed = np.concatenate([looked["apples"][:40], looked["boats"][:4]])
    votes = voting.choose(tasks, np.zeros((44, 3)), mixed).argmax(axis=1)
    assert (votes == tasks.index("apples")).all(), "a minority of the batch is taken for others"


class Killed(Exception):
    """The end of a process."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMED)
def test_a_second_stage_resumed_equals_uninterrupted(
    world: World, tmp_path: Path, name: str
) -> None:
    run, chosen = RunFolder(tmp_path / name), _settings(world, name)
    open_run(world, run, chosen)
    learn_stream(make_learner(world, run, chosen), 1)
    first = tuple(run.groups.list()) if method_class(name).continues else ()
    spec = replace(stage_spec(world, tmp_path / name, chosen, 1), stage=1, earlier=first)
    expected = sha256(dump(launch.train_stage(spec).group))
    folder = tmp_path / "checkpoint"
    folder.mkdir()

    def save(metrics: dict, state: TrainingState | None, outcome: Outcome | None) -> None:
        if state is not None and state.step == 9:
            checkpoints.save(folder, state)
            raise Killed

    with pytest.raises(Killed):
        run_stage(spec, save=save)
    torch.manual_seed(999)
    outcomes: list[Outcome | None] = []
    state = checkpoints.restore(Folder(folder))
    run_stage(spec, resume=state, save=lambda m, s, o: outcomes.append(o))
    assert outcomes[-1] is not None and sha256(dump(outcomes[-1].group)) == expected


def test_an_interrupted_run_ends_with_the_same_groups(
    runs: Runs, world: World, tmp_path: Path
) -> None:
    for name in ("rail", "moe_adapters"):
        whole, _ = runs(name)
        broken, chosen = RunFolder(tmp_path / "broken" / name), _settings(world, name)
        open_run(world, broken, chosen)
        learn_stream(make_learner(world, broken, chosen), 1)
        learn_stream(make_learner(world, broken, chosen))
        assert group_hashes(broken) == group_hashes(whole)
