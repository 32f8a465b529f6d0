"""One domain's function as an ONNX file, held against the model before it is kept.

Shapes: B batch, S side, C classes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.export.graph import DomainGraph
from archipelago.pipeline.learned.model import LearnedModel

INPUT, OUTPUT = "image", "probabilities"
TOLERANCE = 1e-4  # of a probability
CHECKED = 16  # images


def write_onnx(model: LearnedModel, task: str, path: Path) -> float:
    """Write `path`: `image` (B, 3, S, S), RGB from 0 to 1, to `probabilities` (B, C).

    Args:
        model: on the CPU.
        task: the domain.
        path: the file.

    Returns:
        As `check`.

    Raises:
        UserError: the domain is not learned or has no graph, or what writes ONNX is not installed.
        RuntimeError: see `check`.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # torch's exporter is written in it
    except ImportError as error:
        raise UserError(
            f"onnx={task}: {error.name} is not installed; pip install 'archipelago-cl[onnx]'"
        ) from None
    graph = DomainGraph(model, task).eval()
    example = torch.zeros(2, 3, graph.size, graph.size)
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    program.model.metadata_props["task"] = task
    program.model.metadata_props["classes"] = json.dumps(graph.classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=False)
    return check(model, task, path)


def check(model: LearnedModel, task: str, path: Path) -> float:
    """The largest difference of a probability on stored images of a domain.

    Raises:
        RuntimeError: the file answers otherwise than the model; it is removed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    probe = model.state.records[task].probe
    assert probe is not None
    images = probe.images[:CHECKED]
    (found,) = session.run([OUTPUT], {INPUT: pixels(images)})
    deviation = _deviation(model, task, images, found)
    if not deviation <= TOLERANCE:
        path.unlink()
        raise RuntimeError(f"onnx={task}: probabilities differ by {deviation:.2g} from the model's")
    return deviation


def pixels(images_BSSC: np.ndarray) -> np.ndarray:
    """What the graph takes, from uint8 images."""
    return np.ascontiguousarray(images_BSSC.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def _deviation(model: LearnedModel, task: str, images: np.ndarray, found_BC: np.ndarray) -> float:
    """Largest difference by class name: what equal names have adds up, as in an answer."""
    classes = model.state.records[task].classes
    worst = 0.0
    answers = model.answer(images, task=task, top_k=len(classes))
    for answer, row in zip(answers, found_BC, strict=True):
        mine = dict.fromkeys(classes, 0.0)
        for name, p in zip(classes, row.tolist(), strict=True):
            mine[name] += p
        worst = max(worst, *(abs(mine[name] - p) for name, p in answer.classes))
    return worst
