"""A run that an earlier version stored: opened, continued, served, appended to, forgotten from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from archipelago.pipeline.config import stored_settings
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.learned import Ask, LearnedModel
from archipelago.pipeline.learner import Learner
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import open_stream, prepare
from tests.unit.stored_run import LEARNED, TASKS, copy
from tests.unit.tiny_run import World, learn_stream, make_learner
from tests.unit.tiny_serving import SERVING, point


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return copy(tmp_path / "stored")


def learner_of(place: Path, tasks: tuple[str, ...]) -> Learner:
    """Who takes the run up, with these tasks."""
    run = RunFolder(place / "run")
    chosen = stored_settings(run.read())
    stream = chosen.stream.model_copy(update={"order": list(tasks)})
    chosen = chosen.model_copy(update={"stream": stream, "run_dir": run.uri})
    domains = prepare(
        open_stream(stream, chosen.seed),
        size=32,
        run=run.uri,
        cache_dir=str(place / "cache"),
        cache_gib=1.0,
        cluster=chosen.cluster,
        max_pixels=10_000,
        use_ray=False,
    )
    return make_learner(World(domains, place / "clip"), run, chosen)


def test_it_opens_and_answers_as_it_did(place: Path) -> None:
    images, wanted = (
        np.load(place / "images.npy"),
        json.loads((place / "expected.json").read_text()),
    )
    model = LearnedModel.open(place / "run")
    assert tuple(model.tasks) == LEARNED
    assert all(task.facts["group"]["kept"] for task in model.tasks.values())
    for answer, said in zip(model.answer(images, top_k=99), wanted, strict=True):
        assert answer.task == said["task"]
        assert dict(answer.classes) == pytest.approx(said["classes"], abs=1e-3)


def test_keys_of_other_identifiers_that_it_stored_are_no_settings(place: Path) -> None:
    stored = RunFolder(place / "run").read()["config"]["identifier"]
    assert stored["name"] == "prototype" and "driver" in stored
    settings = LearnedModel.open(place / "run").runtime.settings.identifier
    assert not isinstance(settings, MultimodalSettings) and settings.width == stored["width"]


def test_it_is_served(place: Path) -> None:
    run, images = RunFolder(place / "run"), np.load(place / "images.npy")
    point(run, run.models.versions()[-1])
    _, answers, _ = ServedModel(run.uri, SERVING, "cpu").classify(images, [Ask()] * len(images))
    assert answers == LearnedModel.open(run.uri).answer(images)


def test_nothing_is_left_to_do_and_more_can_be_learned(place: Path) -> None:
    run = RunFolder(place / "run")
    stored = {ref.name: ref.sha256 for ref in run.current_groups()}
    assert learn_stream(learner_of(place, LEARNED)) == []
    learn_stream(learner_of(place, TASKS))
    found = {ref.name: ref.sha256 for ref in run.current_groups()}
    assert {name: found[name] for name in LEARNED} == stored
    assert tuple(LearnedModel.open(run.uri).tasks) == TASKS


def test_a_domain_is_forgotten(place: Path) -> None:
    run = RunFolder(place / "run")
    forget_task(run.uri, LEARNED[0], SERVING).finish(erase=True)
    assert tuple(LearnedModel.open(run.uri).tasks) == LEARNED[1:]
