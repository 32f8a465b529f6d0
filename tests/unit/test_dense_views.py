"""Views keep images and targets aligned."""

from __future__ import annotations

import numpy as np
import torch

from archipelago.pipeline.dense.views import view_targets
from archipelago.pipeline.settings import TrainingSettings
from archipelago.pipeline.streams.scenes import render
from archipelago.pipeline.training.views import Views

WHOLE = np.array([[0.0, 0.0, 1.0, 1.0, 1.0]], np.float32)
MIRRORED = np.array([[0.0, 0.0, 1.0, 1.0, -1.0]], np.float32)


def test_mirrored_normals_look_the_other_way() -> None:
    _, targets = render(0, "train", 0)
    normals = torch.from_numpy(targets["normals"])[None]
    assert (view_targets("normals", normals, WHOLE) == normals).all()
    flipped = view_targets("normals", normals, MIRRORED)
    expected = normals.flip(2).clone()
    expected[..., 0] = -expected[..., 0]
    assert (flipped == expected).all() and flipped.dtype == torch.int8
    labels = torch.from_numpy(targets["semseg"])[None]
    assert (view_targets("segmentation", labels, MIRRORED) == labels.flip(2)).all()


def test_views_of_images_and_targets_are_aligned() -> None:
    """A label map painted into the image is found again under every view of both."""
    pairs = [render(0, "train", index) for index in range(4)]
    labels = torch.from_numpy(np.stack([t["semseg"] for _, t in pairs]))
    image = labels[:, None].repeat(1, 3, 1, 1).float() / 7
    views = Views(TrainingSettings(crop=(0.3, 1.0), flip=True), 5, "scenes", 4)
    signs = set()
    for view in range(4):
        boxes = views.boxes(view)
        cut = view_targets("segmentation", labels, boxes)
        assert cut.dtype == torch.uint8 and set(cut.unique().tolist()) <= set(range(8))
        seen = views.apply(image, boxes)[:, 0] * 7
        assert ((seen - cut.float()).abs() < 0.5).float().mean() > 0.93  # all but borders
        assert (view_targets("segmentation", labels, boxes) == cut).all()
        signs |= set(boxes[:, 4].tolist())
    assert signs == {-1.0, 1.0}
