"""A method in one file: registered by name, it is learned, stored, measured and answers.

The method here shares its weights: every domain has a function of its own, and all of them use the
weights that the newest stage left. What a function was before, it is no more, and the matrix says
so, because features are kept under the hash of the weights that they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.methods import Function, methods
from archipelago.pipeline.methods.finetune import Finetune
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.tensors import load
from tests.unit.tiny_run import (
    Never,
    World,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
)
from tests.unit.tiny_serving import test_images

TASKS = ("apples", "boats", "cats")


class Shared(Finetune):
    """Continual fine-tuning that is told domains apart: the newest weights, each class list."""

    name = "shared"
    policy = "hard"

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        return Function(task, learned[-1]) if task is not None and task in learned else None

    def image_features(self, x_BLD: Tensor, functions: Sequence[Function]) -> Tensor:
        (weights,) = {function.weights for function in functions}
        return super().image_features(x_BLD, [Function(str(weights), weights)])

    def class_features(
        self, classes: Sequence[str], templates: Sequence[str], function: Function | None
    ) -> Tensor:
        own = None if function is None else Function(str(function.weights), function.weights)
        return super().class_features(classes, templates, own)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    methods.register("shared")(Shared)
    yield
    del methods._known["shared"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), TASKS)


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "shared")
    chosen = run_settings(world, method={"name": "shared"}, training={"learning_rate": 0.003})
    open_run(world, run, chosen)
    learn_stream(make_learner(world, run, chosen))
    return run


def _right(run: RunFolder, stage: int, setting: str, task: str) -> np.ndarray:
    stored = load(run.folder.read(f"evaluation/{stage:03d}.safetensors"))
    return stored[f"{setting}/{task}"].numpy()


def test_its_forgetting_shows_in_the_matrix(run: RunFolder) -> None:
    """Keyed by the domain alone, a feature of the first stage would be taken for that of the last,
    and every row below the diagonal would repeat the diagonal."""
    report = write_report(run, pictures=False)
    assert report["method"] == "shared" and report["status"] == "complete"
    assert report["forgetting"] > 10 and report["bwt"] < -10
    for setting in ("mtil_given", "xtail"):
        first, last = (_right(run, stage, setting, "apples") for stage in (0, 2))
        assert not np.array_equal(first, last), setting


def test_features_are_kept_under_the_weights_they_come_from(run: RunFolder) -> None:
    assert run.folder.local is not None
    found = sorted(run.folder.local.glob("evaluation/functions/apples-*/apples-*.safetensors"))
    assert len(found) == len(TASKS), "one function of apples for each stage that changed it"
    features = [load(path.read_bytes())["features"].numpy() for path in found]
    apart = [
        np.abs(a - b).max() for a, b in ((features[0], features[1]), (features[1], features[2]))
    ]
    assert min(apart) > 1e-3


def test_every_version_answers_as_it_was_measured(run: RunFolder, world: World) -> None:
    for manifest in (1, 2, 3):
        model = LearnedModel.open(run.uri, manifest)
        for task in TASKS[:manifest]:
            domain = next(d for d in world.domains if d.name == task)
            images = test_images(world, task, 99)
            said = [a.classes[0][0] for a in model.answer(images, task=task, top_k=1)]
            right = _right(run, manifest - 1, "mtil_given", task)
            learner = make_learner(world, run, model.runtime.settings)
            labels = learner.evaluator.labels(task)
            wanted = [domain.classes[label] for label in labels]
            assert [a == b for a, b in zip(said, wanted, strict=True)] == right.tolist()
            function = model.state.function(task)
            assert function == Function(task, TASKS[manifest - 1])


def test_an_interrupted_run_measures_the_same(run: RunFolder, world: World, tmp_path: Path) -> None:
    settings = LearnedModel.open(run.uri).runtime.settings
    before = [run.folder.read_json(f"evaluation/{i:03d}.json")["accuracy"] for i in range(3)]
    for stage in range(3):
        run.folder.delete(f"evaluation/{stage:03d}.json")
    again = learn_stream(make_learner(world, run, settings, trainer=Never()))
    assert [record["accuracy"] for record in again] == before
