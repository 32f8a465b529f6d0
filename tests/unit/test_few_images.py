"""One image a class, one domain alone, a class that nobody showed: learned without a warning, or
refused in words before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.methods import methods
from archipelago.pipeline.settings import ClusterSettings, StreamSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, open_stream, prepare
from tests.unit.tiny_run import (
    World,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
)
from tests.unit.tiny_serving import test_images

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
TASKS = ("apples", "boats")
CLOSED = [n for n, m in methods.known().items() if m.identifies() and not m.holds_out]
TRAINED = [n for n, m in methods.known().items() if m.learns and m.holds_out]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two domains of one training image a class."""
    return make_world(tmp_path_factory.mktemp("single"), TASKS, train=1)


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two domains of which the first has no training image of its third class."""
    root = tmp_path_factory.mktemp("lacking")
    world = make_world(root, TASKS)
    file = root / "stream" / TASKS[0] / "train.parquet"
    table = pq.read_table(file)
    labels = np.array(table["label"])
    pq.write_table(table.filter(pa.array(labels != 2)), file)
    facts = json.loads((file.parent / "domain.json").read_text())
    facts["splits"]["train"] = int((labels != 2).sum())
    (file.parent / "domain.json").write_text(json.dumps(facts))
    prepared = prepare(
        open_stream(StreamSettings(reader="parquet", root=str(root / "stream")), 0),
        size=32,
        run=str(root),
        cache_dir=str(root / "again"),
        cache_gib=1.0,
        cluster=ClusterSettings(),
        max_pixels=10_000,
        use_ray=False,
    )
    return World(prepared, world.backbone)


def _learned(world: World, path: Path, method: str, **options: Any) -> RunFolder:
    run = RunFolder(path)
    chosen = run_settings(world, method={"name": method}, training={"steps": 2}, **options)
    open_run(world, run, chosen)
    learn_stream(make_learner(world, run, chosen))
    return run


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("count", [1, 2])
def test_one_image_a_class_is_enough_for_closed_forms(
    single: World, tmp_path: Path, name: str, count: int
) -> None:
    world = World(single.domains[:count], single.backbone)
    run = _learned(world, tmp_path / "run", name)
    model = LearnedModel.open(run.uri)
    images = np.concatenate([test_images(world, task, 99) for task in TASKS[:count]])
    wanted = [f"{task} {label}" for task in TASKS[:count] for label in list(range(4)) * 6]
    for asked in (None, [*wanted[:3], "zebra"], ["zebra", "yak"]):
        for answer in model.answer(images, asked, top_k=9):
            values = [p for _, p in answer.classes]
            assert np.isfinite(values).all() and sum(values) == pytest.approx(1.0)
    given = model.answer(images[:24], task=TASKS[0])
    right = np.mean([a.classes[0][0] == w for a, w in zip(given, wanted[:24], strict=True)])
    assert right > 0.5, "colours are learned from one image: chance is a quarter"
    record = run.folder.read_json(f"evaluation/{count - 1:03d}.json")
    for row in record["accuracy"].values():
        assert all(0.0 <= value <= 100.0 for value in row)
    assert record["identifier"]["seen_acceptance"] is None, "nothing is unlearned at the last stage"


@pytest.mark.parametrize("name", CLOSED)
def test_a_class_that_nobody_showed_is_not_answered(
    lacking: World, tmp_path: Path, name: str
) -> None:
    run = _learned(lacking, tmp_path / "run", name)
    model, images = LearnedModel.open(run.uri), test_images(lacking, TASKS[0], 99)
    record = model.tasks[TASKS[0]]
    assert record.sums is not None and record.sums.counts.tolist() == [11, 11, 0, 11]
    labels = ImageTable.open(lacking.domains[0].tables["test"]).labels
    for task in (None, TASKS[0]):
        found = [dict(answer.classes) for answer in model.answer(images, task=task, top_k=9)]
        assert all(said["apples 2"] == 0.0 for said in found)
        best = [max(said, key=lambda name: said[name]) for said in found]
        wanted = [f"apples {label}" for label in labels]
        right = [a == b for a, b, label in zip(best, wanted, labels, strict=True) if label != 2]
        assert np.mean(right) > 0.7, "the others are as good as ever"
    asked = [("apples", "apples 2"), ("apples", "apples 1")]
    assert all(a.classes[0][0] == "apples 1" for a in model.answer(images, candidates=asked))


@pytest.mark.parametrize("name", TRAINED)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    single: World, tmp_path: Path, name: str
) -> None:
    run = RunFolder(tmp_path / "run")
    chosen = run_settings(single, method={"name": name})
    with pytest.raises(UserError) as caught:
        learn_stream(make_learner(single, run, chosen))
    said = str(caught.value)
    assert said.startswith("apples: 4 training images, one a class at most, leave none to hold out")
    assert "give two images of some class or more" in said and "\n" not in said
    assert run.groups.list() == [] and run.models.versions() == []


@pytest.mark.parametrize("name", TRAINED)
def test_trained_methods_learn_around_a_class_without_images(
    lacking: World, tmp_path: Path, name: str
) -> None:
    run = _learned(lacking, tmp_path / "run", name)
    given = LearnedModel.open(run.uri)
    images = test_images(lacking, TASKS[0])
    for answer in given.answer(images, task=TASKS[0], top_k=9):
        assert {n for n, _ in answer.classes} == {f"apples {c}" for c in range(4)}
        assert np.isfinite([p for _, p in answer.classes]).all()
