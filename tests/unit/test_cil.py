"""One domain in steps of classes: candidates are the classes so far, in any order of the steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from archipelago.pipeline.evaluation import html
from archipelago.pipeline.evaluation.console import summary
from archipelago.pipeline.evaluation.report import build_report, write_report
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.lifecycle.erase import erase_files
from archipelago.pipeline.methods import methods
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.tensors import load
from archipelago.pipeline.streams import ImageTable
from tests.unit.tiny_run import (
    World,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
)
from tests.unit.tiny_serving import test_images

CLASSES, STEPS, SHOTS = 8, 3, 1  # 3 + 3 + 2 classes: images and tasks weigh differently
IMAGES = [18, 18, 12]
CLOSED = [n for n, m in methods.known().items() if m.identifies() and not m.holds_out]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    return make_world(root, ("cats",), classes=CLASSES, steps=STEPS, shots=SHOTS)


def chosen(world: World, name: str, **options: Any) -> Settings:
    return run_settings(
        world,
        method={"name": name, "options": options},
        stream={"options": {"steps": len(world.domains), "shots": SHOTS}},
        evaluation={"bootstrap": 50},
        training={"steps": 2},
    )


def without_group(name: str) -> dict[str, Any]:
    """Options with which a closed form trains nothing after it."""
    return {"group": "off"} if "group" in methods.get(name).Options.model_fields else {}


def learned(world: World, path: Path, settings: Settings) -> RunFolder:
    run = RunFolder(path)
    open_run(world, run, settings)
    learn_stream(make_learner(world, run, settings))
    return run


def asked(model: LearnedModel, world: World, steps: int) -> list[float]:
    """Percent of the test images of the first steps that are right among all learned classes."""
    found = []
    for domain in world.domains[:steps]:
        labels = ImageTable.open(domain.tables["test"]).labels
        answers = model.answer(test_images(world, domain.name, 99))
        best = np.array([answer.classes[0][0] for answer in answers])
        found.append(100.0 * float((best == np.array(domain.classes)[labels]).mean()))
    return found


def test_candidates_are_the_classes_so_far(world: World, tmp_path: Path) -> None:
    settings, run = chosen(world, "archipelago", group="off"), RunFolder(tmp_path / "run")
    open_run(world, run, settings)
    learner = make_learner(world, run, settings)
    tests, looked = [domain.tables["test"] for domain in world.domains], []
    look = learner.encoder.look

    def counted(table: str, rows: np.ndarray) -> Any:
        looked.extend(rows.tolist() if table in tests else [])
        return look(table, rows)

    learner.encoder.look = counted  # type: ignore[method-assign]
    first, second = learn_stream(learner, 2)
    assert first["accuracy"]["cil"] == [first["accuracy"]["mtil_given"][0], None, None]
    assert second["accuracy"]["cil"] == [*asked(LearnedModel.open(run.uri), world, 2), None]
    half = build_report(run)["settings"]["cil"]
    assert half["matrix"][2] == [None] * 3 and half["last"] == pytest.approx(
        np.average(second["accuracy"]["cil"][:2], weights=IMAGES[:2]), abs=1e-3
    )
    (third,) = learn_stream(learner)
    assert third["accuracy"]["cil"] == third["accuracy"]["xtail"]
    assert third["accuracy"]["cil"] == asked(LearnedModel.open(run.uri), world, 3)
    assert third["images"] == IMAGES and len(looked) == sum(IMAGES), "each image is encoded once"
    rows = [record["accuracy"]["cil"] for record in (first, second, third)]
    stages = [np.average(r[: i + 1], weights=IMAGES[: i + 1]) for i, r in enumerate(rows)]
    assert stages[0] > stages[2] > 100 / CLASSES, "it gets harder with more classes"
    report = write_report(run)
    found = report["settings"]["cil"]
    assert found["matrix"] == [[v and pytest.approx(v, abs=1e-3) for v in row] for row in rows]
    assert (
        found["last"] == pytest.approx(stages[-1], abs=1e-3) != report["settings"]["xtail"]["last"]
    )
    assert (
        found["average"] == pytest.approx(np.mean(stages), abs=1e-3) and found["transfer"] is None
    )
    assert found["seen_acceptance"] == [None] * 3
    for key in ("average", "last"):
        low, high = found["intervals"][key]
        assert low < found[key] < high < low + 40
    page, screen = html.render(report), Console(file=io.StringIO(), width=200)
    screen.print(summary(report))
    assert isinstance(screen.file, io.StringIO)
    words = (
        f"Transfer/Average/Last -/{found['average']:.1f}/{found['last']:.1f}   all classes so far\n"
    )
    assert words in screen.file.getvalue()
    assert f"Class-incremental Last</span><b>{found['last']:.1f}" in page


@pytest.mark.parametrize("name", CLOSED)
def test_the_order_of_steps_decides_nothing(world: World, tmp_path: Path, name: str) -> None:
    images = np.concatenate([test_images(world, domain.name, 99) for domain in world.domains])
    said = []
    for number, order in enumerate(((0, 1, 2), (2, 0, 1))):
        turned = World([world.domains[i] for i in order], world.backbone)
        run = learned(turned, tmp_path / str(number), chosen(world, name, **without_group(name)))
        right = load(run.folder.read("evaluation/002.safetensors"))
        last = {domain.name: right[f"cil/{domain.name}"].tolist() for domain in world.domains}
        answers = LearnedModel.open(run.uri).answer(images, top_k=CLASSES)
        said.append((last, [answer.classes for answer in answers]))
    assert said[0] == said[1], "to the bit"
    assert 100 / CLASSES < 100 * np.mean(np.concatenate(list(said[0][0].values()))) < 100


@pytest.mark.parametrize("name", ["zero_shot", "lora_per_task", "trge"])
def test_what_other_methods_say_of_steps(tmp_path: Path, name: str) -> None:
    world = make_world(tmp_path, ("cats",), classes=CLASSES, steps=STEPS)
    run = learned(world, tmp_path / "run", chosen(world, name))
    report = write_report(run, pictures=False)
    found, xtail = report["settings"]["cil"], report["settings"]["xtail"]
    if methods.get(name).policy == "given":
        assert found is None and xtail is None, "the task must be given"
        return
    assert found["matrix"][-1] == xtail["matrix"][-1]
    assert [sum(v is not None for v in row) for row in found["matrix"]] == [1, 2, 3]
    given = report["settings"]["mtil_given"]["matrix"]
    assert found["matrix"][0][0] == given[0][0], "one step: its classes alone are asked for"
    if not methods.get(name).learns:
        assert found["matrix"][0][0] > xtail["matrix"][0][0], "there, all of them are"
        assert found["matrix"][-1] == found["zero_shot"] == xtail["zero_shot"]
        frozen = np.average(found["zero_shot"], weights=IMAGES)
        assert found["last"] == pytest.approx(frozen, abs=1e-3)


@pytest.mark.parametrize("name", CLOSED)
def test_a_step_of_one_class_is_enough_for_closed_forms(tmp_path: Path, name: str) -> None:
    alone = make_world(tmp_path, ("cats",), classes=4, steps=4, shots=SHOTS)
    run = learned(alone, tmp_path / "run", chosen(alone, name, **without_group(name)))
    found = build_report(run)["settings"]["cil"]
    assert found["matrix"][0][0] == 100.0, "there is no other class yet"
    assert found["last"] > 40, "chance is a quarter"


def test_where_nothing_is_cut_there_is_no_cil(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("cats", "dogs"), shots=SHOTS)
    settings = run_settings(
        world, method={"name": "gda_per_task"}, stream={"options": {"shots": SHOTS}}
    )
    run = learned(world, tmp_path / "run", settings)
    assert build_report(run)["settings"]["cil"] is None
    assert "cil" not in run.folder.read_json("evaluation/001.json")["accuracy"]
    sums = LearnedModel.open(run.uri).tasks["cats"].sums
    assert sums is not None and sums.counts.tolist() == [SHOTS] * 4


def test_erasing_a_step_takes_its_images_from_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    world = make_world(tmp_path / "run", ("cats", "dogs"), shots=SHOTS)
    step = world.domains[1]
    removed = erase_files(run, step.name, 1, [], list(step.digests.values()))
    assert len(removed) == 2 and not any(Path(p).exists() for p in step.tables.values())
    assert all(Path(path).exists() for path in world.domains[0].tables.values())
