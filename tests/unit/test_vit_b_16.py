"""At full size, with random weights: one training step, one mixed batch, and megabytes a group."""

from __future__ import annotations

import numpy as np
import torch

from archipelago.pipeline.methods import Function, Neighbour, StageContext, build_method
from archipelago.pipeline.methods.trge import GroupAdapter, Trge
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.settings import TrainingSettings
from archipelago.pipeline.store.tensors import dump, load
from archipelago.pipeline.training.loop import train
from archipelago.pipeline.training.objectives import Classification, Prompts
from archipelago.pipeline.training.trunk import TrunkCache
from archipelago.pipeline.training.views import Views
from tests.unit.tiny_clip import images, settings

CLASSES, TEMPLATES = ["cat", "dog"], ["a photo of a {}."]


def test_one_step_and_one_mixed_batch_at_vit_b_16() -> None:
    chosen = settings(
        backbone={"name": "ViT-B-16", "pretrained": "random"},
        experts={"count": 4, "rank": 16},
        training={"steps": 1, "batch_size": 2, "warmup": 0, "learning_rate": 1e-3, "views": 1},
    )
    backbone = load_backbone(chosen.backbone)
    method = build_method(chosen, None, backbone)
    assert isinstance(method, Trge) and method.first_blocks == (6, 6)
    pixels = images(4, size=224).numpy()
    views = Views(TrainingSettings(), 0, "a", 4)
    trunk = TrunkCache(backbone, 6, lambda rows: pixels[rows], np.arange(4), views, 1, 1.0)
    assert trunk.take(0, np.arange(4)).shape == (4, 197, 768)
    text = Prompts(backbone, 6, CLASSES, TEMPLATES)
    labels = torch.tensor([0, 1, 0, 1])
    data = Classification(trunk, labels, trunk[:2], labels[:2], text, backbone)

    for stage, task in enumerate(("a", "b")):
        near = (Neighbour(0.3, "a"),) if stage else ()
        adapter = method.adapter(StageContext(stage, task, near))
        assert isinstance(adapter, GroupAdapter)
        before = load(dump(adapter.export()))
        state = train(method, adapter, [data], seeding=stage, steps=1)
        assert state.step == 1 and state.best_step == 1
        after = adapter.export()
        moved = {k for k in after if k != "neighbours" and not torch.equal(after[k], before[k])}
        assert {"image.B", "text.B"} <= moved, "B = 0 moves first"
        group = dump(after)
        count = adapter.group.parameter_count()
        assert count == 6 * (2 * 64 + 4) * (768 + 512) == 1_013_760
        assert 4 * count <= len(group) < 4 * count + 2_000, "nothing but the group is stored"
        method.install(task, load(group))
    assert backbone.parameter_count() == 149_620_737
    assert len(group) < 0.01 * 4 * backbone.parameter_count()

    x = data.held_x.float()
    with torch.no_grad():
        a, b = Function("a", "a"), Function("b", "b")
        mixed = method.image_features(x[[0, 0]], [a, b])
        features = torch.cat([mixed, method.frozen_features(x[:1])])
        classes = {f.task: method.class_features(CLASSES, TEMPLATES, f) for f in (a, b)}
        alone = method.image_features(x[:1], [b])[0]
    assert features.shape == (3, 512) and torch.isfinite(features).all()
    assert (mixed[1] - alone).abs().max() < 1e-5
    assert torch.pdist(features).min() > 1e-5, "three functions, three answers"
    assert not torch.equal(classes["a"], classes["b"])
