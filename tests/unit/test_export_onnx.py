"""Functions of single domains as graphs: they say what the model says, in torch and in ONNX."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.export.folder import export_run
from archipelago.pipeline.export.graph import DomainGraph
from archipelago.pipeline.export.onnx import INPUT, OUTPUT, TOLERANCE, check, pixels, write_onnx
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import learned_run, test_images

METHODS = {
    "closed form": {"name": "gda_per_task"},
    "head and group": {"name": "archipelago", "options": {"group": "on"}},
    "head, CLIP and no group": {"name": "archipelago", "options": {"group": "off"}},
    "one function": {"name": "finetune"},
}


@pytest.fixture(scope="module")
def images(served_world: World) -> np.ndarray:
    """Test images of all domains, and what is between them, so that answers are not all certain."""
    seen = np.concatenate([test_images(served_world, task, 2) for task in TASKS])
    mixed = (seen.astype(np.uint16) + seen[::-1]) // 2
    return np.concatenate([seen, mixed.astype(np.uint8)])


def _said(model: LearnedModel, task: str, images: np.ndarray) -> np.ndarray:
    classes = model.tasks[task].classes
    answers = model.answer(images, task=task, top_k=len(classes))
    return np.array([[dict(answer.classes)[name] for name in classes] for answer in answers])


def _traced(model: LearnedModel, task: str, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return DomainGraph(model, task)(torch.from_numpy(pixels(images))).numpy()


def test_groups_and_what_they_borrow_answer_in_onnx(
    served_run: RunFolder, images: np.ndarray, tmp_path: Path
) -> None:
    done = export_run(served_run.uri, tmp_path / "to", onnx=TASKS[-1])
    assert done.deviation is not None and done.deviation <= TOLERANCE
    file = tmp_path / "to/onnx" / f"{TASKS[-1]}.onnx"
    assert f"onnx/{file.name}" in json.loads((tmp_path / "to/config.json").read_bytes())["files"]
    stored = onnx.load(file)
    onnx.checker.check_model(stored)
    marks = {entry.key: entry.value for entry in stored.metadata_props}
    model = LearnedModel.open(tmp_path / "to")
    assert json.loads(marks["classes"]) == list(model.tasks[TASKS[-1]].classes)
    assert model.tasks[TASKS[-1]] and model.state.groups[-1].neighbours, "it borrows"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = _said(model, TASKS[-1], images)
    assert ((wanted > 0.05) & (wanted < 0.95)).any(), "not all answers are certain"
    for count in (1, 3, len(images)):  # batches of any size
        (found,) = session.run([OUTPUT], {INPUT: pixels(images[:count])})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted[:count], atol=TOLERANCE)
    np.testing.assert_allclose(_traced(model, TASKS[-1], images), wanted, atol=1e-6)
    text = sum(4 * p.numel() for p in model.runtime.backbone.text.parameters())
    assert file.stat().st_size < text, "no text encoder is in it"
    with pytest.raises(RuntimeError, match=r"probabilities differ by .* from the model's"):
        check(model, TASKS[0], file)
    assert not file.exists(), "what answers otherwise is not kept"


@pytest.mark.slow
def test_head_and_group_answer_in_onnx(
    served_world: World, images: np.ndarray, tmp_path: Path
) -> None:
    world = World(served_world.domains[:1], served_world.backbone)
    run = learned_run(world, tmp_path / "run", method=METHODS["head and group"])
    model = LearnedModel.open(run.uri, device="cpu")
    assert write_onnx(model, TASKS[0], tmp_path / "it.onnx") <= TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "it.onnx"))
    (found,) = session.run([OUTPUT], {INPUT: pixels(images)})
    np.testing.assert_allclose(found, _said(model, TASKS[0], images), atol=TOLERANCE)


@pytest.mark.parametrize("kind", METHODS)
def test_graphs_of_other_methods_say_what_the_model_says(
    kind: str, served_world: World, images: np.ndarray, tmp_path: Path
) -> None:
    world = World(served_world.domains[:2], served_world.backbone)
    model = LearnedModel.open(learned_run(world, tmp_path / "run", method=METHODS[kind]).uri)
    for task in model.tasks:
        wanted = _said(model, task, images)
        assert wanted.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(_traced(model, task, images), wanted, atol=1e-5)


def test_what_has_no_graph_or_no_exporter_is_refused(
    served_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LearnedModel.open(served_run.uri)
    with pytest.raises(UserError, match="onnx=birds: is not learned; learned are: apples"):
        DomainGraph(model, "birds")
    with monkeypatch.context() as patch:
        patch.setattr(type(model.state.method), "scores", lambda *_: None)
        with pytest.raises(UserError, match="functions of method trge have no graph"):
            DomainGraph(model, "apples")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'archipelago-cl\[onnx\]'"):
        write_onnx(model, "apples", tmp_path / "it.onnx")
